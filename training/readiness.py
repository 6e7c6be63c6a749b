"""May a round start, and what should its manager know? Problems as data, so a page can say them."""

from collections.abc import Iterator
from dataclasses import dataclass

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from labeling.models import Project
from labeling.overview import GOOD_ROUND_PAIRS, ROUND_PAIRS
from labeling.services.promoting import serving_policy
from labeling.templatetags.prefloop import percent
from training.disk import disk_warning
from training.material import PairCounts, Sample
from training.models import LIVE_ROUND_STATES

FEW_PAIRS = 30  # of fewer, a share says nothing
MUCH_LONGER = 0.65  # of pairs with the longer response chosen
LITTLE_AGREEMENT = 0.8  # two or three votes a pair, thrown like coins, agree to 0.75 on average


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing in the way of a round (`blocks`), or worth knowing before it.

    `live` where it is that a round waits or runs.
    """

    text: str
    blocks: bool
    live: bool = False


def readiness(project: Project, pairs: PairCounts, sample: Sample | None = None) -> list[Problem]:
    """Everything in the way of a round, then everything worth knowing.

    With a sample, of the data too.
    """
    problems = []
    start = serving_policy(project)
    if start is None:
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
    if start is not None and (text := disk_warning(start)):
        problems.append(Problem(text=text, blocks=False))
    if sample is not None:
        problems += [Problem(text=text, blocks=False) for text in _of_the_data(sample)]
    return problems


def _of_the_data(sample: Sample) -> Iterator[str]:
    """What the pairs would teach besides what people meant."""
    if sample.train >= FEW_PAIRS and (sample.longer_chosen or 0) > MUCH_LONGER:
        yield _(
            "The chosen response is the longer one in %(share)s of pairs: longer is the easiest "
            "thing to learn. If it was not meant, take a length penalty."
        ) % {"share": percent(sample.longer_chosen)}
    if sample.twice >= FEW_PAIRS and (sample.agreement or 1) < LITTLE_AGREEMENT:
        yield _(
            "Of the votes on a pair only %(share)s say the same. Look at the guidelines before you "
            "train, or train on pairs with more agreement."
        ) % {"share": percent(sample.agreement)}
    if sample.identical:
        yield ngettext(
            "%(number)s pair has two identical responses: the trainer leaves it out.",
            "%(number)s pairs have two identical responses: the trainer leaves them out.",
            sample.identical,
        ) % {"number": sample.identical}
