"""What an annotator says of a comparison, before it is written. Pure, and checked here."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from labeling.votes import BadTiers, check_tiers

MAX_ACTIVE_MS = 24 * 60 * 60 * 1000
RATINGS = range(1, 6)

Ratings = Mapping[str, Mapping[int, int]]  # by criterion and slot


@dataclass(frozen=True, kw_only=True)
class FlagGiven:
    """Something is wrong with the comparison, or with the response in one slot."""

    reason: str
    slot: int | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Rewrite:
    """A better text for the response in a slot, by the annotator."""

    slot: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Tiers of slots, best first, and what comes with them. Where all are bad, tiers may be empty.

    The page speaks of places; `moved` turns its verdict into one of slots.
    """

    tiers: Sequence[Sequence[int]]
    all_bad: bool = False
    strength: int | None = None
    ratings: Ratings = field(default_factory=dict)
    rationale: str = ""
    flags: Sequence[FlagGiven] = ()
    rewrite: Rewrite | None = None
    active_ms: int = 0
    guidelines: int | None = None  # the id of the version before them; else the one in force

    def moved(self, order: Sequence[int]) -> "Verdict":
        """The same verdict with `order[n]` wherever it says n. BadTiers beyond the order."""
        if max(self._numbers(), default=0) >= len(order):
            raise BadTiers(f"there are {len(order)} responses; the verdict names another")
        return replace(
            self,
            tiers=[[order[place] for place in tier] for tier in self.tiers],
            ratings={
                criterion: {order[place]: rating for place, rating in given.items()}
                for criterion, given in self.ratings.items()
            },
            flags=[
                flag if flag.slot is None else replace(flag, slot=order[flag.slot])
                for flag in self.flags
            ],
            rewrite=self.rewrite and replace(self.rewrite, slot=order[self.rewrite.slot]),
        )

    def _numbers(self) -> Iterator[int]:
        """Every place or slot that the verdict names."""
        for tier in self.tiers:
            yield from tier
        for given in self.ratings.values():
            yield from given
        yield from (flag.slot for flag in self.flags if flag.slot is not None)
        if self.rewrite is not None:
            yield self.rewrite.slot

    def whole(self, slots: int) -> "Verdict":
        """The verdict as it is stored, for a comparison of so many slots. BadTiers if it is none.

        Strength means something between the two sides of a pair only.
        """
        bad = [list(range(slots))] if self.all_bad and not self.tiers else self.tiers
        tiers = check_tiers([list(tier) for tier in bad], slots)
        return replace(
            self,
            tiers=tiers,
            strength=self.strength if slots == 2 and len(tiers) == 2 else None,
            active_ms=min(max(self.active_ms, 0), MAX_ACTIVE_MS),
        )
