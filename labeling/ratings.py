"""Bradley-Terry ratings (1952) of policies from votes between them. Pure functions on numpy.

The probability that one policy's response is preferred to another's is the logistic function of
the difference of their strengths. Strengths are fitted to all votes at once, so policies that
never met are compared through those that both met. They are told on the Elo scale.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indexes = NDArray[np.int64]

ANCHOR = 1000.0  # the rating of the policy that the others are measured from
ELO = 400 / math.log(10)  # points in one unit of log-odds: 400 points are odds of ten to one
RIDGE = 0.01  # keeps a policy that won or lost every vote finite; a hundred votes do not feel it
DRAWS = 500
FEWER_DRAWS = 100  # where each takes long: they then say less exactly how wide an interval is
MANY_POLICIES, MANY_ROWS = 150, 100_000
SEED = 20_260_101
STEPS = 50  # of Newton; five are usual
CLOSE = 1e-8
Z_95 = 1.96


@dataclass(frozen=True, kw_only=True)
class Votes:
    """Rows of votes, one for a prompt and two policies. A tie is half a win and half a loss."""

    prompts: Indexes
    first: Indexes
    second: Indexes
    wins: Floats  # of the first over the second
    losses: Floats

    def where(self, mask: NDArray[np.bool_]) -> "Votes":
        """Some of the rows."""
        return Votes(
            prompts=self.prompts[mask],
            first=self.first[mask],
            second=self.second[mask],
            wins=self.wins[mask],
            losses=self.losses[mask],
        )


@dataclass(frozen=True, kw_only=True)
class Rating:
    """A policy's place on the Elo scale, with its 95 % interval; the anchor's has no width."""

    value: float
    low: float
    high: float
    votes: int


def rate(votes: Votes, anchor: int) -> dict[int, Rating]:
    """Ratings of all policies that votes connect with the anchor; the others have none.

    The interval holds the middle 95 % of the ratings in resamples of the prompts, since votes on
    one prompt are alike; and it is never narrower than the curvature of the likelihood allows,
    for resampling does not see that ten wins of ten leave room for a loss.
    """
    votes = votes.where((votes.wins + votes.losses > 0) & (votes.first != votes.second))
    votes = votes.where(np.isin(votes.first, _connected(votes, anchor)))
    if not len(votes.first):
        return {}
    table = _Table(votes, anchor)
    strengths = table.fit(table.wins, table.losses)
    drawn = table.resampled(strengths)
    reach = Z_95 * table.deviations(strengths)
    low = np.minimum(np.percentile(drawn, 2.5, axis=0), strengths - reach)
    high = np.maximum(np.percentile(drawn, 97.5, axis=0), strengths + reach)
    return {
        int(policy): Rating(
            value=ANCHOR + ELO * float(strengths[at]),
            low=ANCHOR + ELO * float(low[at]),
            high=ANCHOR + ELO * float(high[at]),
            votes=round(float(table.votes[at])),
        )
        for at, policy in enumerate(table.policies)
    }


def _connected(votes: Votes, anchor: int) -> list[int]:
    """The policies that a chain of votes leads to from the anchor."""
    met: dict[int, set[int]] = {}
    pairs = np.unique(np.stack([votes.first, votes.second]), axis=1)
    for first, second in pairs.T.tolist():
        met.setdefault(first, set()).add(second)
        met.setdefault(second, set()).add(first)
    found, ahead = {anchor}, [anchor]
    while ahead:
        for other in met.get(ahead.pop(), set()) - found:
            found.add(other)
            ahead.append(other)
    return sorted(found)


class _Table:
    """Votes by pair of policies. Strengths are in log-odds, the anchor's is 0."""

    def __init__(self, votes: Votes, anchor: int) -> None:
        self.policies = np.unique(np.concatenate([votes.first, votes.second]))
        size = len(self.policies)
        self._anchor = int(np.searchsorted(self.policies, anchor))
        first = np.searchsorted(self.policies, votes.first)
        second = np.searchsorted(self.policies, votes.second)
        turned = first > second
        lower, upper = np.where(turned, second, first), np.where(turned, first, second)
        pairs, self._pair = np.unique(lower * size + upper, return_inverse=True)
        self._lower, self._upper = pairs // size, pairs % size
        prompts, self._prompt = np.unique(votes.prompts, return_inverse=True)
        self._prompts = len(prompts)
        self._row_wins = np.where(turned, votes.losses, votes.wins)
        self._row_losses = np.where(turned, votes.wins, votes.losses)
        self.wins, self.losses = self._weighted(np.ones(self._prompts))
        self.votes = self._by_policy(self.wins + self.losses)

    def _by_policy(self, of_pair: Floats, sign: int = 1) -> Floats:
        """What pairs come to for each policy; the upper one's share with `sign`."""
        size = len(self.policies)
        return _sums(self._lower, of_pair, size) + sign * _sums(self._upper, of_pair, size)

    def _weighted(self, weights: Floats) -> tuple[Floats, Floats]:
        """Wins and losses of each pair's lower policy, where each prompt counts so often."""
        weight, pairs = weights[self._prompt], len(self._lower)
        return (
            _sums(self._pair, weight * self._row_wins, pairs),
            _sums(self._pair, weight * self._row_losses, pairs),
        )

    def fit(self, wins: Floats, losses: Floats, start: Floats | None = None) -> Floats:
        """Strengths of the highest penalized likelihood, by Newton's method with halved steps."""
        strengths = np.zeros(len(self.policies)) if start is None else start
        height = self._height(strengths, wins, losses)
        for _ in range(STEPS):
            gradient, curvature = self._slopes(strengths, wins, losses)
            step = np.linalg.solve(curvature, gradient)
            higher = self._height(strengths + step, wins, losses)
            while higher < height and np.abs(step).max() > CLOSE:
                step /= 2
                higher = self._height(strengths + step, wins, losses)
            if np.abs(step).max() <= CLOSE:
                break
            strengths, height = strengths + step, higher
        anchored: Floats = strengths - strengths[self._anchor]
        return anchored

    def _lead(self, strengths: Floats) -> Floats:
        """By how much the lower policy of each pair is stronger, within what exp can hold."""
        lead: Floats = np.clip(strengths[self._lower] - strengths[self._upper], -500, 500)
        return lead

    def _height(self, strengths: Floats, wins: Floats, losses: Floats) -> float:
        lead = self._lead(strengths)
        likelihood = -(wins * np.logaddexp(0, -lead) + losses * np.logaddexp(0, lead)).sum()
        return float(likelihood - RIDGE / 2 * ((strengths - strengths.mean()) ** 2).sum())

    def _slopes(self, strengths: Floats, wins: Floats, losses: Floats) -> tuple[Floats, Floats]:
        """Gradient and negative Hessian; the ridge is on the distance from the mean."""
        size = len(self.policies)
        chance = 1 / (1 + np.exp(-self._lead(strengths)))
        number = wins + losses
        gradient = self._by_policy(wins - number * chance, -1)
        gradient -= RIDGE * (strengths - strengths.mean())
        weight = number * chance * (1 - chance)
        curvature = np.zeros((size, size))
        curvature[self._lower, self._upper] = curvature[self._upper, self._lower] = -weight
        curvature[np.diag_indices(size)] = self._by_policy(weight) + RIDGE
        return gradient, curvature

    def resampled(self, start: Floats) -> Floats:
        """[draws, policies] strengths, each fitted to as many prompts drawn with replacement."""
        rng = np.random.default_rng(SEED)
        many = len(self.policies) > MANY_POLICIES or len(self._pair) > MANY_ROWS
        fitted = []
        for _ in range(FEWER_DRAWS if many else DRAWS):
            drawn = rng.integers(0, self._prompts, self._prompts)
            weights = np.bincount(drawn, minlength=self._prompts).astype(np.float64)
            fitted.append(self.fit(*self._weighted(weights), start))
        return np.array(fitted)

    def deviations(self, strengths: Floats) -> Floats:
        """Standard deviations of the distances from the anchor, by the curvature."""
        _gradient, curvature = self._slopes(strengths, self.wins, self.losses)
        spread = np.linalg.inv(curvature)
        own, between = np.diag(spread), spread[self._anchor]
        variance = own + own[self._anchor] - 2 * between
        deviations: Floats = np.sqrt(np.maximum(variance, 0))
        return deviations


def _sums(places: Indexes, values: Floats, size: int) -> Floats:
    """What the values at each place from 0 to size-1 add up to."""
    return np.bincount(places, values, size).astype(np.float64)
