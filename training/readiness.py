"""May a round start, and what should its manager know? Problems as data, so a page can say them."""

from dataclasses import dataclass

from django.db.models import F, Q
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from labeling.models import Comparison, Preference, Project, Split
from labeling.models.comparisons import TRAINED_ON
from labeling.overview import GOOD_ROUND_PAIRS, ROUND_PAIRS
from labeling.services.promoting import serving_policy
from training.models import LIVE_ROUND_STATES


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing in the way of a round (`blocks`), or worth knowing before it.

    `live` where it is that a round waits or runs.
    """

    text: str
    blocks: bool
    live: bool = False


@dataclass(frozen=True, kw_only=True)
class PairCounts:
    """Decided pairs a round would use."""

    train: int
    held_out: int
    undecided: int


def count_pairs(project: Project) -> PairCounts:
    """The pairs of comparisons that are trained on, by side; undecided ones have even votes."""
    pairs = Preference.objects.filter(project=project, comparison__purpose__in=TRAINED_ON).exclude(
        comparison__state=Comparison.State.RETIRED
    )
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
        text = _("No policy serves yet; register one first.")
        problems.append(Problem(text=text, blocks=True))
    if project.rounds.filter(state__in=LIVE_ROUND_STATES).exists():
        text = _("A round is waiting or running.")
        problems.append(Problem(text=text, blocks=True, live=True))
    if pairs.train < ROUND_PAIRS:
        missing = ROUND_PAIRS - pairs.train
        words = ngettext(
            "%(missing)s more decided pair on the train side is needed (at least %(least)s).",
            "%(missing)s more decided pairs on the train side are needed (at least %(least)s).",
            missing,
        )
        text = words % {"missing": missing, "least": ROUND_PAIRS}
        problems.append(Problem(text=text, blocks=True))
    elif pairs.train < GOOD_ROUND_PAIRS:
        text = _("Only %(number)s decided pairs: expect a small change.") % {"number": pairs.train}
        problems.append(Problem(text=text, blocks=False))
    if pairs.held_out == 0:
        text = _("No decided pair is held out: the round's reward accuracy cannot be checked.")
        problems.append(Problem(text=text, blocks=False))
    return problems
