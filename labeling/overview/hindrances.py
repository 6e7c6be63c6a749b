"""Where the loop is stuck: what keeps it from going on by itself, by station and in words."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from labeling.agreement import Couple, disagreement
from labeling.models import Evaluation
from labeling.overview.counts import Counts, is_live
from labeling.overview.saying import failure, first_line, number
from labeling.templatetags.prefloop import percent

WORKER_SILENT = timedelta(seconds=60)  # a worker that lives says so every few seconds


@dataclass(frozen=True, kw_only=True)
class Hindrance:
    """What is in the way at a station; the loop goes on in spite of it unless it `stops`."""

    station: str
    text: str
    stops: bool = True


def hindrances(counts: Counts) -> list[Hindrance]:
    """Everything in the way, in the order of the stations."""
    found = [*_candidates(counts), *_judgments(counts), *_rounds(counts), *_policies(counts)]
    silent = worker_silence(counts.worker_seen)
    if silent and (place := _waits_for_worker(counts)):
        found.insert(0, Hindrance(station=place, text=silent))
    return found


def worker_silence(seen: datetime | None) -> str:
    """What to say where no worker is alive; empty where one is."""
    if seen is None:
        return _("No worker has ever run. Start one: python3 manage.py worker")
    silent = timezone.now() - seen
    if silent < WORKER_SILENT:
        return ""
    minutes = max(1, round(silent.total_seconds() / 60))
    words = ngettext(
        "The worker has not been seen for %(number)s minute. "
        "Start it again: python3 manage.py worker",
        "The worker has not been seen for %(number)s minutes. "
        "Start it again: python3 manage.py worker",
        minutes,
    )
    return words % number(minutes)


def _waits_for_worker(counts: Counts) -> str:
    """The station where something waits for a worker, "" where nothing does."""
    if is_live(counts.batch):
        return "candidates"
    if is_live(counts.round) or (counts.schedule and not counts.schedule.paused):
        return "rounds"
    return "policies" if counts.judging and counts.judging.evaluation.live else ""


def _candidates(counts: Counts) -> list[Hindrance]:
    if counts.batch and counts.batch.state == "failed":
        text = _("Batch %(number)s failed: %(reason)s") % failure(counts.batch)
    elif counts.stopped:
        text = _("No comparisons are kept ready for now: %(reason)s") % {
            "reason": first_line(counts.stopped)
        }
    else:
        return []
    return [Hindrance(station="candidates", text=text)]


def _judgments(counts: Counts) -> list[Hindrance]:
    found = disagreement(counts.project)
    if found is None:
        return []
    return [Hindrance(station="judgments", text=_disagree(found), stops=False)]


def _disagree(found: Couple) -> str:
    words = ngettext(
        "%(first)s and %(second)s disagree on %(share)s of the pairs in %(number)s comparison. "
        "Talk it over, or say more in the guidelines.",
        "%(first)s and %(second)s disagree on %(share)s of the pairs in %(number)s comparisons. "
        "Talk it over, or say more in the guidelines.",
        found.comparisons,
    )
    names = {"first": found.first, "second": found.second, "share": percent(1 - found.share)}
    return words % (names | number(found.comparisons))


def _rounds(counts: Counts) -> list[Hindrance]:
    texts = []
    if counts.round and counts.round.state == "failed":
        texts.append(_("Round %(number)s failed: %(reason)s") % failure(counts.round))
    schedule = counts.schedule
    if schedule and schedule.held_up and not schedule.paused:
        reason = {"reason": first_line(schedule.held_up)}
        texts.append(_("A round was due and did not start: %(reason)s") % reason)
    return [Hindrance(station="rounds", text=text) for text in texts]


def _policies(counts: Counts) -> list[Hindrance]:
    judging = counts.judging
    if judging is None:
        return []
    evaluation = judging.evaluation
    if evaluation.state != Evaluation.State.WAITING or not evaluation.problem:
        return []
    text = _("The evaluation of %(policy)s has no responses yet: %(reason)s") % {
        "policy": evaluation.policy,
        "reason": first_line(evaluation.problem),
    }
    return [Hindrance(station="policies", text=text)]
