"""Ratings as marks on one scale, for the page of policies."""

from collections.abc import Mapping
from dataclasses import dataclass

from labeling.ratings import ANCHOR, Rating

WIDTH = 160.0  # of a picture, in its own units
MARGIN = 5.0  # so that a dot at the end is whole
REACH = 400.0  # points beyond the outermost ratings that are drawn; wider intervals run off
LEAST = 100.0  # points that the scale spans


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A rating as it is drawn: places on the scale, from 0 to WIDTH."""

    rating: Rating
    at: float
    low: float
    high: float
    anchor: float  # where 1000 is

    @property
    def exact(self) -> bool:
        """Whether it is 1000 by definition, without an interval."""
        return self.rating.low == self.rating.high


def marks(ratings: Mapping[int, Rating]) -> dict[int, Mark]:
    """Marks by policy, all on the scale that shows these ratings best."""
    if not ratings:
        return {}
    values = [one.value for one in ratings.values()] + [ANCHOR]
    first, last = min(values), max(values)
    low = max(first - REACH, min(one.low for one in ratings.values()))
    high = min(last + REACH, max(one.high for one in ratings.values()))
    low, high = min(low, first - LEAST / 2), max(high, last + LEAST / 2)

    def place(points: float) -> float:
        share = min(1.0, max(0.0, (points - low) / (high - low)))
        return round(MARGIN + share * (WIDTH - 2 * MARGIN), 1)

    return {
        policy: Mark(
            rating=one,
            at=place(one.value),
            low=place(one.low),
            high=place(one.high),
            anchor=place(ANCHOR),
        )
        for policy, one in ratings.items()
    }
