"""The six stations of the loop: each with its count, its trend, what runs there, and its state."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from django.utils.translation import gettext as _
from django.utils.translation import ngettext, pgettext

from labeling.models import Evaluation
from labeling.overview import counts as counting
from labeling.overview.counts import Counts, is_live
from labeling.overview.hindrances import Hindrance
from labeling.overview.saying import number, url
from labeling.overview.steps import NextStep
from labeling.overview.trends import Trend, accuracy, days, win_rates
from labeling.templatetags.prefloop import thin

State = Literal["calm", "live", "next", "stuck", "warned"]


# Where the count of a station is kept.
FIGURE_OF = {
    "prompts": counting.PROMPTS,
    "candidates": counting.RESPONSES,
    "judgments": counting.JUDGMENTS,
    "preferences": counting.PREFERENCES,
}


@dataclass(frozen=True, kw_only=True)
class Activity:
    """Something that runs or waits now; `total` is 0 while its size is unknown."""

    label: str
    done: int
    total: int
    unit: str


@dataclass(frozen=True, kw_only=True)
class Station:
    """One of the six places of the loop. `note` explains the count in a few words.

    `as_of` is set where the count is not of just now.
    """

    key: str
    title: str
    count: int
    note: str
    url: str
    trend: Trend | None
    as_of: datetime | None = None
    state: State = "calm"
    activity: Activity | None = None


def stations(counts: Counts, step: NextStep, found: list[Hindrance]) -> list[Station]:
    """All six, in the order of the loop."""
    running = _activities(counts)
    stuck = {one.station: one.stops for one in found}

    def station(
        key: str, title: str, count: int, note: str, route: str, trend: Trend | None
    ) -> Station:
        kept = counts.kept.get(FIGURE_OF.get(key, ""))
        return Station(
            key=key,
            title=title,
            count=count,
            note=note,
            url=url(route, counts.project),
            trend=trend,
            as_of=kept.as_of if kept and kept.old else None,
            state=_state(key, step, stuck, running),
            activity=running.get(key),
        )

    rounds = counts.round.number if counts.round else 0
    trends = {key: days(counts.days(figure)) for key, figure in FIGURE_OF.items()}
    return [
        station(
            "prompts",
            _("Prompts"),
            counts.prompts,
            _prompts_note(counts),
            "generation:batches",
            trends["prompts"],
        ),
        station(
            "candidates",
            _("Candidates"),
            counts.responses,
            _open_note(counts),
            "generation:batches",
            trends["candidates"],
        ),
        station(
            "judgments",
            _("Judgments"),
            counts.judgments,
            _judgments_note(counts),
            "labeling:judge",
            trends["judgments"],
        ),
        station(
            "preferences",
            _("Preferences"),
            counts.pairs,
            _preferences_note(counts),
            "labeling:preferences",
            trends["preferences"],
        ),
        station(
            "rounds",
            _("Rounds"),
            rounds,
            _rounds_note(counts),
            "training:rounds",
            accuracy(counts.project),
        ),
        station(
            "policies",
            _("Policies"),
            counts.policies,
            _policies_note(counts),
            "labeling:policies",
            win_rates(counts.project),
        ),
    ]


def _state(key: str, step: NextStep, stuck: dict[str, bool], running: dict[str, Activity]) -> State:
    if stuck.get(key):
        return "stuck"
    if key in running:
        return "live"
    if key in stuck:
        return "warned"
    return "next" if key == step.station else "calm"


def _prompts_note(counts: Counts) -> str:
    if not counts.prompts:
        return pgettext("prompts", "none yet")
    if not counts.unanswered:
        return _("all answered")
    words = ngettext("%(number)s unanswered", "%(number)s unanswered", counts.unanswered)
    return words % number(counts.unanswered)


def _open_note(counts: Counts) -> str:
    words = ngettext("%(number)s comparison open", "%(number)s comparisons open", counts.open)
    return words % number(counts.open)


def _judgments_note(counts: Counts) -> str:
    return _("%(today)s today, %(wanted)s wanted") % {
        "today": thin(counts.days(counting.JUDGMENTS)[-1]),
        "wanted": thin(counts.wanted),
    }


def _preferences_note(counts: Counts) -> str:
    return _("%(decided)s decided, %(fresh)s new") % {
        "decided": thin(counts.decided),
        "fresh": thin(counts.fresh),
    }


def _rounds_note(counts: Counts) -> str:
    """How the last one ended, and whether the next starts by itself."""
    schedule = counts.schedule
    if schedule and schedule.paused:
        return _("the schedule is paused")
    if counts.round is None:
        return pgettext("rounds", "none yet")
    return _("last one %(state)s") % {"state": counts.round.get_state_display().lower()}


def _policies_note(counts: Counts) -> str:
    return (
        _("%(policy)s serves") % {"policy": counts.serving} if counts.serving else _("none serves")
    )


def _activities(counts: Counts) -> dict[str, Activity]:
    """What is under way, by station. A size is known once the worker has begun."""
    found = {}
    batch, round_, judging = counts.batch, counts.round, counts.judging
    if is_live(batch):
        found["candidates"] = Activity(
            label=_("Batch %(number)s") % {"number": batch.number},
            done=batch.done,
            total=batch.total if batch.started_at else 0,
            unit=pgettext("unit of progress", "prompts"),
        )
    if is_live(round_):
        found["rounds"] = Activity(
            label=_("Round %(number)s") % {"number": round_.number},
            done=round_.step,
            total=round_.total_steps,
            unit=pgettext("unit of progress", "steps"),
        )
    if judging and judging.evaluation.state == Evaluation.State.JUDGING:
        found["policies"] = Activity(
            label=_("%(policy)s before people") % {"policy": judging.evaluation.policy},
            done=judging.done,
            total=judging.done + judging.wanted,
            unit=pgettext("unit of progress", "judgments"),
        )
    return found
