"""How often annotators who judged the same comparison order two responses alike.

Looked at are the newest judgments of comparisons that several judged; both above, both below or
both level is alike, anything else is not.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from labeling.figures import Kept, counted, figure
from labeling.intervals import wilson
from labeling.models import Judgment, Project, User
from labeling.votes import Tiers

NAME = "agreement"
LOOKED_AT = 5_000  # newest judgments
LEAST = 20  # comparisons; of fewer nothing is said
LOW = 0.6  # below, annotators are said to disagree
MOST_COUPLES = 200  # of annotators, those with most in common


@dataclass(frozen=True, kw_only=True)
class Couple:
    """Two annotators, what they have both judged, and the pairs of it that they order alike."""

    first: str
    second: str
    comparisons: int
    pairs: int
    alike: int

    @property
    def share(self) -> float:
        """How often they order two responses alike."""
        return self.alike / self.pairs

    @property
    def interval(self) -> tuple[float, float]:
        """95 %; the pairs of one comparison hang together, so that it is over comparisons."""
        return wilson(self.share, self.comparisons)

    @property
    def low(self) -> bool:
        """Whether they are said to disagree."""
        return self.share < LOW


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The couples with enough in common, those who agree least first; `share` is over them all."""

    couples: Sequence[Couple]
    kept: Kept

    @property
    def share(self) -> float | None:
        """How often any two ordered two responses alike; None where nobody has enough in common."""
        pairs = sum(one.pairs for one in self.couples)
        return sum(one.alike for one in self.couples) / pairs if pairs else None


def agreement_of(project: Project) -> Agreement:
    """How far a project's annotators agree."""
    kept = figure(project, NAME)
    enough = [row for row in kept.value if row[2] >= LEAST]
    ids = {annotator for first, second, *_rest in enough for annotator in (first, second)}
    names = dict(User.objects.filter(pk__in=ids).values_list("pk", "username"))
    couples = [
        Couple(
            first=names[first],
            second=names[second],
            comparisons=comparisons,
            pairs=pairs,
            alike=alike,
        )
        for first, second, comparisons, pairs, alike in enough
    ]
    return Agreement(couples=sorted(couples, key=lambda one: one.share), kept=kept)


def disagreement(project: Project) -> Couple | None:
    """The two annotators who agree least, if that is seldom."""
    least = next(iter(agreement_of(project).couples), None)
    return least if least and least.low else None


@counted(NAME)
def _count(project: Project) -> list[list[int]]:
    """Rows of two annotators' ids, comparisons, pairs and pairs alike; most comparisons first."""
    newest = (
        Judgment.objects.counted()
        .filter(comparison__project=project, comparison__judged__gt=1, rewrite_of=None)
        .order_by("-pk")
        .values_list("comparison", "annotator", "tiers")[:LOOKED_AT]
    )
    by_comparison: dict[int, list[tuple[int, Tiers]]] = defaultdict(list)
    for comparison, annotator, tiers in newest:
        by_comparison[comparison].append((annotator, tiers))
    comparisons, pairs, alike = Counter[Any](), Counter[Any](), Counter[Any]()
    for said in by_comparison.values():
        for (one, mine), (other, yours) in combinations(sorted(said, key=lambda row: row[0]), 2):
            outcomes = list(_alike(mine, yours))
            comparisons[one, other] += 1
            pairs[one, other] += len(outcomes)
            alike[one, other] += sum(outcomes)
    return [
        [*couple, number, pairs[couple], alike[couple]]
        for couple, number in comparisons.most_common(MOST_COUPLES)
    ]


def _alike(mine: Tiers, yours: Tiers) -> Iterator[bool]:
    """For each pair of responses, whether two rankings order it alike."""
    own, other = _ranks(mine), _ranks(yours)
    for low, high in combinations(range(len(own)), 2):
        yield _sign(own[low] - own[high]) == _sign(other[low] - other[high])


def _ranks(tiers: Tiers) -> Sequence[int]:
    places = {slot: place for place, tier in enumerate(tiers) for slot in tier}
    return [places[slot] for slot in range(len(places))]


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)
