"""What each way of choosing comparisons brings, measured against those chosen at random.

It reads all of a project's comparisons, preferences and judgments, so what was counted is kept
where that takes long (labeling.figures).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from django.db.models import Count, F, Q, Sum
from django.db.models.expressions import Combinable, CombinedExpression
from django.utils.translation import gettext as _

from labeling.figures import Kept, counted, figure
from labeling.intervals import wilson
from labeling.models import Comparison, Judgment, Project

Pairing = Comparison.Pairing
Counts = Mapping[str, Any]
Figures = dict[str, "Estimate | None"]

NAME = "pairing.worth"
_CHOSEN = Q(purpose=Comparison.Purpose.STANDARD) & ~Q(pairing="")
FRESH_S = 60.0  # it changes slowly
AXIS = 96  # how long the axis of the bars is, in the drawing's own units


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with its 95 % interval, and whether it is "higher" or "lower" than at random."""

    value: float
    low: float
    high: float
    against: str = ""

    def beside(self, random: "Estimate | None") -> "Estimate":
        """Higher or lower is said only where the two intervals have nothing in common."""
        if random is None:
            return self
        higher, lower = self.low > random.high, self.high < random.low
        return replace(self, against="higher" if higher else "lower" if lower else "")

    def times(self, factor: float) -> "Estimate":
        """The same in another unit."""
        return Estimate(value=self.value * factor, low=self.low * factor, high=self.high * factor)


@dataclass(frozen=True, kw_only=True)
class Bar:
    """Where on the axis the interval, its figure, and the figure at random are."""

    low: float
    value: float
    high: float
    random: float | None


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way of choosing, and what came of it. Nothing is estimated from nothing: None.

    A judged comparison is decided where one response has more votes than another, all bad where
    every judgment says so, else tied. `agreement` is how often two annotators ordered two
    responses alike. `brings` is decided pairs, the ones that a round learns from, for each
    judgment; by it the way is called better or worse than chance.
    """

    pairing: Comparison.Pairing
    made: int
    judged: int
    judgments: int
    decided: Estimate | None
    tied: Estimate | None
    all_bad: Estimate | None
    agreement: Estimate | None
    brings: Estimate | None
    bar: Bar | None
    verdict: str

    @property
    def shares(self) -> list[Estimate | None]:
        """Those that are shown as percentages, in the table's order."""
        return [self.decided, self.tied, self.all_bad, self.agreement]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Every way that a project uses, chance first; the axis of the bars is from 0 to `top`."""

    ways: list[Way]
    top: float
    kept: Kept = field(compare=False)
    axis: int = AXIS

    @property
    def judged(self) -> bool:
        """Whether there is something to tell of another way than chance."""
        return any(way.judged for way in self.ways[1:])


def report(project: Project) -> Report | None:
    """What the project's ways of choosing bring; None where it leaves everything to chance.

    Those that people chose, those of prompts where the way asked for could not be followed, gold
    ones and evaluations have no part in it.
    """
    kept = figure(project, NAME, fresh_s=FRESH_S)
    made, outcomes, bad = (kept.value[name] for name in ("made", "outcomes", "all_bad"))
    used = made.keys() | _planned(project)
    if not used - {Pairing.RANDOM}:
        return None
    figures = {
        one: _figures(made.get(one, {}), outcomes.get(one, {}), bad.get(one, 0))
        for one in Pairing
        if one in used or one == Pairing.RANDOM
    }
    brought = [found["brings"] for found in figures.values()]
    top = math.ceil(max((2 * one.high for one in brought if one), default=2)) / 2
    ways = [_way(one, made.get(one, {}), figures, top) for one in figures]
    return Report(ways=ways, top=top, kept=kept)


def estimate(share: float, number: int) -> Estimate:
    """Above 1 a share counts as 1: somebody may judge between the query that gave the number and
    another."""
    share = min(1.0, share)
    low, high = wilson(share, number)
    return Estimate(value=share, low=low, high=high)


def _planned(project: Project) -> set[str]:
    """How the comparisons to come are chosen. The plan belongs to an app above this one."""
    plan = getattr(project, "plan", None)
    return {plan.pairing} if plan and plan.ready else set()


@counted(NAME)
def _count(project: Project) -> dict[str, Any]:
    """One query a table, and only the first where there is nothing to tell."""
    made = _comparisons(project)
    told = (made.keys() | _planned(project)) - {Pairing.RANDOM}
    return {
        "made": made,
        "outcomes": _outcomes(project) if told else {},
        "all_bad": _all_bad(project) if told else {},
    }


def _comparisons(project: Project) -> dict[str, Counts]:
    """Comparisons made and judged, and their counted judgments, by pairing."""
    rows = (
        project.comparisons.filter(_CHOSEN)
        .values("pairing")
        .annotate(
            made=Count("pk"),
            judged_once=Count("pk", filter=Q(judged__gt=0)),
            judged_twice=Count("pk", filter=Q(judged__gt=1)),
            verdicts=Sum("judged"),
        )
    )
    return {row["pairing"]: row for row in rows}


def _outcomes(project: Project) -> dict[str, Counts]:
    """What the judged comparisons and their pairs of responses came to, by pairing.

    `couples` are the pairs of judgments on each pair of responses, `alike` those that agree.
    """
    decided = Q(votes_for__gt=F("votes_against"))
    one_side, other_side, level = F("votes_for"), F("votes_against"), F("votes_tied")
    votes = one_side + other_side + level
    rows = (
        project.preferences.filter(comparison__purpose=Comparison.Purpose.STANDARD)
        .exclude(comparison__pairing="")
        .values(pairing=F("comparison__pairing"))
        .annotate(
            pairs=Count("pk"),
            decided_pairs=Count("pk", filter=decided),
            decided_ones=Count("comparison", distinct=True, filter=decided),
            couples=Sum(_couples(votes)),
            alike=Sum(_couples(one_side) + _couples(other_side) + _couples(level)),
        )
    )
    return {row["pairing"]: row for row in rows}


def _couples(number: Combinable) -> CombinedExpression:
    return number * (number - 1)


def _all_bad(project: Project) -> dict[str, int]:
    """How many comparisons all their judgments call all bad, by pairing."""
    bad = (
        Judgment.objects.counted()
        .filter(comparison__project=project, all_bad=True)
        .values("comparison")
        .annotate(said=Count("pk"))
        .filter(comparison__judged=F("said"))
    )
    rows = (
        project.comparisons.filter(_CHOSEN, pk__in=bad.values("comparison"))
        .values("pairing")
        .annotate(number=Count("pk"))
    )
    return {row["pairing"]: row["number"] for row in rows}


def _figures(made: Counts, outcome: Counts, bad: int) -> Figures:
    """The estimates of one way.

    The pairs of one comparison hang together, so that intervals are over comparisons. How many
    pairs a judgment can bring at most is given: by the size of comparisons and their overlap.
    """
    if not outcome or not made.get("judged_once"):
        return dict.fromkeys(("decided", "tied", "all_bad", "agreement", "brings"))
    judged, twice, pairs = made["judged_once"], made["judged_twice"], outcome["pairs"]
    couples = outcome["couples"]
    tied = max(0, judged - outcome["decided_ones"] - bad)
    return {
        "decided": estimate(outcome["decided_ones"] / judged, judged),
        "tied": estimate(tied / judged, judged),
        "all_bad": estimate(bad / judged, judged),
        "agreement": estimate(outcome["alike"] / couples, twice) if twice and couples else None,
        "brings": estimate(outcome["decided_pairs"] / pairs, judged).times(
            pairs / made["verdicts"]
        ),
    }


def _way(pairing: Pairing, made: Counts, figures: dict[Pairing, Figures], top: float) -> Way:
    own, chance = figures[pairing], figures[Pairing.RANDOM]
    beside = {name: one and one.beside(chance[name]) for name, one in own.items()}
    brings, at_random = beside["brings"], chance["brings"]
    return Way(
        pairing=pairing,
        made=made.get("made", 0),
        judged=made.get("judged_once", 0),
        judgments=made.get("verdicts", 0),
        bar=_bar(brings, at_random, top) if brings else None,
        verdict="" if pairing == Pairing.RANDOM else _verdict(brings, at_random),
        **beside,
    )


def _verdict(brings: Estimate | None, at_random: Estimate | None) -> str:
    if brings is None:
        return _("not judged yet")
    if at_random is None:
        return _("nothing at random judged yet")
    words = {"higher": _("better than random"), "lower": _("worse than random")}
    return words.get(brings.against, _("no difference seen yet"))


def _bar(brings: Estimate, at_random: Estimate | None, top: float) -> Bar:
    def at(value: float) -> float:
        return round(AXIS * value / top, 1)

    return Bar(
        low=at(brings.low),
        value=at(brings.value),
        high=at(brings.high),
        random=at(at_random.value) if at_random else None,
    )
