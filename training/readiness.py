"""May a round start, and what should its manager know? Problems as data, so a page can say them."""

from dataclasses import dataclass

from django.db.models import F, Q

from labeling.models import Comparison, Preference, Project, Split
from labeling.overview import GOOD_ROUND_PAIRS, ROUND_PAIRS
from labeling.services.promoting import serving_policy
from training.models import LIVE_ROUND_STATES


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing in the way of a round (`blocks`), or worth knowing before it."""

    text: str
    blocks: bool


@dataclass(frozen=True, kw_only=True)
class PairCounts:
    """Decided pairs a round would use."""

    train: int
    held_out: int
    undecided: int


def count_pairs(project: Project) -> PairCounts:
    """The pairs of standard comparisons, by side; undecided ones have even votes."""
    pairs = Preference.objects.filter(
        project=project, comparison__purpose=Comparison.Purpose.STANDARD
    ).exclude(comparison__state=Comparison.State.RETIRED)
    decided = pairs.filter(votes_for__gt=F("votes_against"))
    held_out = Q(comparison__prompt__split=Split.HELD_OUT)
    return PairCounts(
        train=decided.exclude(held_out).count(),
        held_out=decided.filter(held_out).count(),
        undecided=pairs.filter(votes_for=F("votes_against")).count(),
    )


def readiness(project: Project, pairs: PairCounts) -> list[Problem]:
    """Everything in the way of a round, then everything worth knowing."""
    problems = []
    if serving_policy(project) is None:
        problems.append(Problem(text="No policy serves yet; register one first.", blocks=True))
    if project.rounds.filter(state__in=LIVE_ROUND_STATES).exists():
        problems.append(Problem(text="A round is waiting or running.", blocks=True))
    if pairs.train < ROUND_PAIRS:
        missing = ROUND_PAIRS - pairs.train
        text = (
            f"{missing} more decided pairs on the train side are needed (at least {ROUND_PAIRS})."
        )
        problems.append(Problem(text=text, blocks=True))
    elif pairs.train < GOOD_ROUND_PAIRS:
        text = f"Only {pairs.train} decided pairs: expect a small change."
        problems.append(Problem(text=text, blocks=False))
    if pairs.held_out == 0:
        text = "No decided pair is held out: the round's reward accuracy cannot be checked."
        problems.append(Problem(text=text, blocks=False))
    return problems
