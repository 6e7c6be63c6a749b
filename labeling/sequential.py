"""Intervals that hold at every moment: a win rate may be looked at after each judgment.

Pure functions. A 95 % interval computed afresh after every judgment, and acted on when it first
excludes one half, is wrong far more often than once in twenty: somebody who looks often enough
sees an accident. A confidence sequence is right at all moments together (Waudby-Smith and Ramdas,
Estimating means of bounded random variables by betting, JRSS B 2024, theorem 3).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ALPHA = 0.05  # the true rate is ever outside, at any moment, in at most this share of sequences
GRID = 200  # bets; their mixture is valid however many there are, and sharper with more
HALVINGS = 20  # of an interval of at most 1: to a millionth
NEAR = 1e-9  # how close to 0 and 1 rates are looked for


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Judgments of two policies, seen from the new one; a tie is half a win."""

    wins: int = 0
    ties: int = 0
    losses: int = 0

    @property
    def number(self) -> int:
        """All judgments."""
        return self.wins + self.ties + self.losses

    @property
    def rate(self) -> float:
        """The win rate; one half where there is no judgment."""
        return (self.wins + self.ties / 2) / self.number if self.number else 0.5


@cache
def _bets() -> tuple[Array, Array]:
    """Rates to bet on, and the logarithms of their Jeffreys weights; sum of the weights 1."""
    bets = (np.arange(GRID) + 0.5) / GRID
    weights = 1 / np.sqrt(bets * (1 - bets))
    return bets, np.log(weights / weights.sum())


def log_capital(wins: Array, ties: Array, losses: Array, rates: Array) -> Array:
    """log K(m): what has been won by betting that the win rate is not m, from a capital of 1.

    K(m) = Σ_p w_p Π_i (1 + λ(x_i - m)), λ = (p - m) / (m(1 - m)), for outcomes x_i of 1, ½ and 0.
    Each factor has mean 1 where the win rate is m, so K(m) is a martingale there, and exceeds
    1/α at any time with probability α at most (Ville). A bet on p multiplies by p/m at a win, by
    (1-p)/(1-m) at a loss and by their mean at a tie; so only the counts matter, not the order.
    All arguments have one shape [n]: n tallies, each against its own m in (0, 1).
    """
    bets, weights = _bets()
    win, loss = bets / rates[:, None], (1 - bets) / (1 - rates)[:, None]  # [n, GRID]
    terms = weights + wins[:, None] * np.log(win) + losses[:, None] * np.log(loss)
    terms += ties[:, None] * np.log((win + loss) / 2)
    most = terms.max(axis=1)
    total: Array = most + np.log(np.exp(terms - most[:, None]).sum(axis=1))
    return total


def interval(tally: Tally, alpha: float = ALPHA) -> tuple[float, float]:
    """The rates that the judgments so far do not speak against, at level 1 - `alpha`."""
    ((low, high),) = intervals([tally], alpha)
    return low, high


def intervals(tallies: Sequence[Tally], alpha: float = ALPHA) -> list[tuple[float, float]]:
    """The interval of each tally.

    log K is convex in m, so the rates below 1/α are an interval around where it is least.
    """
    wins, ties, losses = np.array(
        [(one.wins, one.ties, one.losses) for one in tallies], dtype=float
    ).T
    inside = np.clip([one.rate for one in tallies], NEAR, 1 - NEAR)
    limit = -np.log(alpha)

    def edge(end: float) -> Array:
        """Where the capital reaches 1/α between the rate itself and an end of [0, 1]."""
        near, far = inside.copy(), np.full_like(inside, end)
        open_ended = log_capital(wins, ties, losses, far) < limit
        for _ in range(HALVINGS):
            middle = (near + far) / 2
            within = log_capital(wins, ties, losses, middle) < limit
            near, far = np.where(within, middle, near), np.where(within, far, middle)
        rounded: Array = np.where(open_ended, round(end), far)
        return rounded

    lows, highs = edge(NEAR), edge(1 - NEAR)
    return [(float(low), float(high)) for low, high in zip(lows, highs, strict=True)]
