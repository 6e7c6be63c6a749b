"""From rankings to votes on pairs. Pure functions, standard library only."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

Tiers = Sequence[Sequence[int]]
JEFFREYS = 0.5  # pseudo-votes for each side: the Jeffreys prior Beta(1/2, 1/2)


class BadTiers(ValueError):
    """A ranking that does not name every slot exactly once."""


@dataclass(frozen=True, kw_only=True)
class PairVotes:
    """How often the lower slot of a pair was ranked above the higher one, below it, or level."""

    low: int = 0
    high: int = 0
    tied: int = 0

    @property
    def low_leads(self) -> bool:
        """Whether the lower slot is the chosen one; even votes leave it so."""
        return self.low >= self.high

    @property
    def probability(self) -> float:
        """Posterior mean that the leading side is better; a tie is half a vote for each."""
        leading = max(self.low, self.high) + self.tied / 2
        total = self.low + self.high + self.tied
        return (leading + JEFFREYS) / (total + 2 * JEFFREYS)


def check_tiers(tiers: object, slots: int) -> list[list[int]]:
    """The ranking as lists, if it names each of the slots 0 .. slots-1 once; else BadTiers.

    A tier has no order within: its slots come sorted, so that equal rankings are written alike.
    """
    if not isinstance(tiers, list) or not all(isinstance(tier, list) and tier for tier in tiers):
        raise BadTiers("a ranking is a list of tiers, each a list of slots that is not empty")
    named = [slot for tier in tiers for slot in tier]
    if not all(type(slot) is int for slot in named) or sorted(named) != list(range(slots)):
        raise BadTiers(f"a ranking must name each of the {slots} responses once")
    return [sorted(tier) for tier in tiers]


def count_votes(rankings: Iterable[Tiers], slots: int) -> dict[tuple[int, int], PairVotes]:
    """Votes for every unordered pair (low, high) of slots over all rankings."""
    tallies = {pair: [0, 0, 0] for pair in combinations(range(slots), 2)}
    for tiers in rankings:
        rank = {slot: place for place, tier in enumerate(tiers) for slot in tier}
        for (low, high), tally in tallies.items():
            outcome = (rank[low] > rank[high]) + 2 * (rank[low] == rank[high])
            tally[outcome] += 1
    return {
        pair: PairVotes(low=low, high=high, tied=tied)
        for pair, (low, high, tied) in tallies.items()
    }
