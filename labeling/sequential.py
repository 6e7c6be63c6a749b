"""Intervals that hold at every moment: a win rate may be looked at after each judgment.

Pure functions. A 95 % interval computed afresh after every judgment, and acted on when it first
excludes one half, is wrong far more often than once in twenty: somebody who looks often enough
sees an accident. A confidence sequence is right at all moments together (Waudby-Smith and Ramdas,
Estimating means of bounded random variables by betting, JRSS B 2024, theorem 3).

What is bet on is one score a prompt, the mean of its judgments: several judgments of one prompt say
more of that prompt than of the policy, and taken for independent they would let four times as many
equal policies pass (simulated: 25 prompts of very different difficulty, 8 pairs each). With one
judgment a prompt the theorem holds as it stands; where a prompt's score still changes with further
judgments, simulations find the promise kept.
"""

from collections import Counter
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ALPHA = 0.05  # the true rate is ever outside, at any moment, in at most this share of sequences
GRID = 128  # bets; their mixture is valid however many there are, and sharper with more
HALVINGS = 15  # of an interval of at most 1: to 3 in 100,000
NEAR = 1e-9  # how close to 0 and 1 rates are looked for


@cache
def _bets() -> tuple[Array, Array]:
    """Rates to bet on, and the logarithms of their Jeffreys weights; sum of the weights 1."""
    bets = (np.arange(GRID) + 0.5) / GRID
    weights = 1 / np.sqrt(bets * (1 - bets))
    return bets, np.log(weights / weights.sum())


def log_capital(scores: Array, counts: Array, rates: Array) -> Array:
    """log K(m): what has been won by betting that the win rate is not m, from a capital of 1.

    K(m) = Σ_p w_p Π_i (1 + λ(x_i - m)), λ = (p - m) / (m(1 - m)), for scores x_i in [0, 1].
    Each factor has mean 1 where the win rate is m, so K(m) is a martingale there, and exceeds
    1/α at any time with probability α at most (Ville). A bet on p multiplies by p/m at a win, by
    (1-p)/(1-m) at a loss and by what lies between them at a score between; so the order does not
    matter. Shapes: scores and how often each was seen [n, k], rates [n]: n samples, each against
    its own m in (0, 1).
    """
    bets, weights = _bets()
    win, loss = bets / rates[:, None], (1 - bets) / (1 - rates)[:, None]  # [n, GRID]
    factors = scores[:, :, None] * (win - loss)[:, None] + loss[:, None]  # [n, k, GRID]
    terms = weights + (counts[:, :, None] * np.log(factors)).sum(axis=1)
    most = terms.max(axis=1)
    total: Array = most + np.log(np.exp(terms - most[:, None]).sum(axis=1))
    return total


def interval(scores: Sequence[float], alpha: float = ALPHA) -> tuple[float, float]:
    """The rates that the scores so far do not speak against, at level 1 - `alpha`."""
    ((low, high),) = intervals([scores], alpha)
    return low, high


def intervals(
    samples: Sequence[Sequence[float]], alpha: float = ALPHA
) -> list[tuple[float, float]]:
    """The interval of each sample of scores; (0, 1) where it is empty.

    log K is convex in m, so the rates below 1/α are an interval around where it is least.
    """
    scores, counts = _counted(samples)
    number = np.maximum(counts.sum(axis=1), 1)
    middle = np.where(counts.sum(axis=1) > 0, (scores * counts).sum(axis=1) / number, 0.5)
    inside = np.clip(middle, NEAR, 1 - NEAR)
    limit = -np.log(alpha)

    def edge(end: float) -> Array:
        """Where the capital reaches 1/α between the mean itself and an end of [0, 1]."""
        near, far = inside.copy(), np.full_like(inside, end)
        open_ended = log_capital(scores, counts, far) < limit
        for _ in range(HALVINGS):
            between = (near + far) / 2
            within = log_capital(scores, counts, between) < limit
            near, far = np.where(within, between, near), np.where(within, far, between)
        rounded: Array = np.where(open_ended, round(end), far)
        return rounded

    lows, highs = edge(NEAR), edge(1 - NEAR)
    return [(float(low), float(high)) for low, high in zip(lows, highs, strict=True)]


def _counted(samples: Sequence[Sequence[float]]) -> tuple[Array, Array]:
    """The distinct scores of each sample and how often each was seen, filled up with zeros."""
    tallies = [Counter(sample) for sample in samples]
    widest = max(1, *(len(tally) for tally in tallies)) if tallies else 1
    scores, counts = np.zeros((len(tallies), widest)), np.zeros((len(tallies), widest))
    for row, tally in enumerate(tallies):
        scores[row, : len(tally)] = list(tally)
        counts[row, : len(tally)] = list(tally.values())
    return scores, counts
