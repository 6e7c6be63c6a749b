"""A win rate that longer responses cannot buy. Pure functions.

After length-controlled AlpacaEval (Dubois and others 2024, arXiv 2404.04475, equation 2), with one
prompt term less: P(win) = σ(θ + φ·tanh(Δ / s)), where Δ is by how much the new policy's response
is longer and s the root mean square of Δ. The length-controlled win rate is σ(θ): what it would
be with responses of equal length.
"""

import math
from collections.abc import Sequence

import numpy as np

from labeling.intervals import Z_95

LEAST = 20  # judgments; fewer tell nothing about length
RIDGE = 0.1  # on φ and θ: keeps both finite where all judgments agree
STEPS = 50
SMALL = 1e-10
BOTH_WAYS = 5  # of the judgments in which the new response is longer, and in which it is shorter


def length_controlled(
    scores: Sequence[float], longer: Sequence[float]
) -> tuple[float, float, float] | None:
    """The win rate at equal length with its 95 % interval; None where it cannot be told.

    That takes `LEAST` judgments, and responses that are now longer, now shorter: what always comes
    together cannot be taken apart.

    `scores`: 1, ½ or 0 for the new policy; `longer`: Δ of each, in any unit. Unlike a confidence
    sequence the interval holds at one look only, decided beforehand: it informs, and gates nothing.
    """
    score, delta = np.asarray(scores, float), np.asarray(longer, float)
    if len(score) < LEAST or min((delta >= 0).sum(), (delta <= 0).sum()) < BOTH_WAYS:
        return None
    scale = math.sqrt((delta**2).mean()) or 1.0
    design = np.column_stack([np.ones_like(delta), np.tanh(delta / scale)])
    penalty = RIDGE * np.eye(2)
    weights = np.zeros(2)
    for _ in range(STEPS):  # Newton: the penalised log-likelihood is concave
        chance = 1 / (1 + np.exp(-design @ weights))
        slope = design.T @ (score - chance) - penalty @ weights
        curvature = (design * (chance * (1 - chance))[:, None]).T @ design + penalty
        step = np.linalg.solve(curvature, slope)
        weights += step
        if np.abs(step).max() < SMALL:
            break
    # The scores' own spread (sandwich), and never less than the curvature allows: where all agree
    # they have none.
    residual = design * (score - 1 / (1 + np.exp(-design @ weights)))[:, None]
    inverse = np.linalg.inv(curvature)
    sandwich = inverse @ (residual.T @ residual) @ inverse
    spread = math.sqrt(max(sandwich[0, 0], inverse[0, 0]))
    theta = float(weights[0])
    return _sigmoid(theta), _sigmoid(theta - Z_95 * spread), _sigmoid(theta + Z_95 * spread)


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))
