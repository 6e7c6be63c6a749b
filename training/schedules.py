"""Rounds that start by themselves: after so many new preferences, by the clock, or both.

The only writer of RoundSchedule rows. The worker looks every minute. However many workers look,
and whatever the clocks do, a due time starts one round at most, and so do enough new preferences:
the look that starts one holds the schedule's row, and the next finds it moved on.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from django.conf import settings
from django.db import transaction
from django.db.models import DateTimeField, ExpressionWrapper
from django.db.models.functions import Now
from django.utils import formats, timezone, translation
from django.utils.translation import gettext as _
from django.utils.translation import ngettext, pgettext

from jobs.cron import CronError, next_time
from jobs.schedule import set_paused, set_schedule
from labeling.models import Project, User
from training.filters import Filters
from training.material import count_pairs
from training.models import (
    ENDED_EARLY,
    LIVE_ROUND_STATES,
    AfterSuccess,
    Reference,
    Round,
    RoundSchedule,
    RoundState,
)
from training.new_pairs import New, count_now, last_learned, new_pairs
from training.services import NotReady, start_round

KIND = "training.schedule"
EVERY_MINUTE = "* * * * *"
COMING = 5  # times that are shown ahead


class CannotSchedule(Exception):
    """A schedule that cannot be meant: `field` is at fault, the message is for the user."""

    def __init__(self, field: str, words: str) -> None:
        super().__init__(words)
        self.field = field


def save_schedule(
    *,
    project: Project,
    actor: User | None,
    every: int = 0,
    cron: str = "",
    time_zone: str = "UTC",
    after: AfterSuccess = AfterSuccess.EVALUATE,
    options: dict[str, Any] | None = None,
    filters: Filters | None = None,
    reference: Reference = Reference.INITIAL,
) -> RoundSchedule:
    """Have rounds start after `every` new pairs, by `cron`, or, with both, when both are so.

    What held the schedule up is forgotten; a paused one stays paused. Without options a round
    takes what suits its policy. CannotSchedule says what cannot be meant.
    """
    cron = " ".join(cron.split())
    if not every and not cron:
        words = _("Say after how many new preferences, at which times, or both.")
        raise CannotSchedule("every", words)
    values = {
        "every": every,
        "cron": cron,
        "time_zone": time_zone,
        "next_at": _next_at(cron, time_zone),
        "after": after,
        "options": options or {},
        "filters": filters.as_json() if filters else {},
        "reference": reference,
        "held_up": "",
        "saved_by": actor,
    }
    with transaction.atomic():
        schedule, _made = RoundSchedule.objects.update_or_create(project=project, defaults=values)
        _have_looked(schedule)
    return schedule


@transaction.atomic
def pause(*, project: Project) -> None:
    """Start nothing until it is resumed; a round that is under way goes on."""
    for schedule in RoundSchedule.objects.select_for_update().filter(project=project):
        RoundSchedule.objects.filter(pk=schedule.pk).update(paused=True)
        schedule.paused = True
        _have_looked(schedule)


@transaction.atomic
def resume(*, project: Project) -> None:
    """Go on. Times that came during the pause are not made up for; preferences all count."""
    for schedule in RoundSchedule.objects.select_for_update().filter(project=project):
        schedule.paused, schedule.held_up = False, ""
        schedule.next_at = _next_at(schedule.cron, schedule.time_zone)
        schedule.save()
        _have_looked(schedule)


def look(
    *, project: Project, fenced: Callable[[], AbstractContextManager[None]] = transaction.atomic
) -> Round | None:
    """Start a round if one is due, in one `fenced` transaction; mostly there is nothing to do.

    Where a time was due and none could start, the schedule says why.
    """
    now = ExpressionWrapper(Now(), output_field=DateTimeField())
    running = RoundSchedule.objects.filter(project=project, paused=False)
    seen = running.select_related("project").annotate(now=now).first()
    if seen is None or (seen.cron and (seen.next_at is None or seen.next_at > seen.now)):
        return None
    new = new_pairs(project)
    if seen.cron or new.number >= _wanted(seen):
        new = count_now(project)  # the figure may be old; a due time is decided once
    if new.number < _wanted(seen) and not seen.cron:
        return None
    count_pairs(project)  # start_round asks: where counting takes long, not while the row is held
    with fenced(), translation.override(settings.LANGUAGE_CODE):  # what is kept is for all to read
        same = running.filter(saved_at=seen.saved_at, next_at=seen.next_at)
        if same.select_for_update().first() is None:
            return None
        return _fire(seen, new, seen.now)


def missing(schedule: RoundSchedule, new: New) -> int:
    """How many more new pairs it takes."""
    return max(0, _wanted(schedule) - new.number)


def coming(cron: str, time_zone: str) -> list[datetime]:
    """The next times of `cron`, in its own time zone. CronError where it cannot be meant."""
    found, last = [], timezone.now()
    for _time in range(COMING):
        last = next_time(cron, time_zone, last)
        found.append(last.astimezone(ZoneInfo(time_zone)))
    return found


def in_words(moment: datetime) -> str:
    """A local time with its weekday, and the name that its clocks go by."""
    return formats.date_format(moment, pgettext("format of a coming time", "l j F Y, H:i (T)"))


def due_in_words(schedule: RoundSchedule) -> str:
    """When the clock is next due; "" where it is not."""
    if schedule.next_at is None:
        return ""
    return in_words(schedule.next_at.astimezone(ZoneInfo(schedule.time_zone)))


def _fire(schedule: RoundSchedule, new: New, now: datetime) -> Round | None:
    """Start the round, or say why not; then the schedule waits for its next time."""
    this = RoundSchedule.objects.filter(pk=schedule.pk)
    learned = last_learned(schedule.project)
    if not schedule.cron and (
        schedule.project.rounds.filter(state__in=LIVE_ROUND_STATES).exists()
        or new.since != (learned.pk if learned else 0)
    ):
        return None  # somebody else was quicker
    try:
        next_at = schedule.cron and next_time(schedule.cron, schedule.time_zone, now)
    except CronError as error:  # time zones and their names do change under a stored schedule
        this.update(next_at=None, paused=True, held_up=str(error))
        return None
    round_, reason = None, _in_the_way(schedule, new)
    if not reason:
        try:
            round_ = _start(schedule)
        except NotReady as not_ready:
            reason = str(not_ready)
    reason = _told(schedule, reason)
    if next_at or reason != schedule.held_up:
        this.update(next_at=next_at or None, held_up=reason)
    return round_


def _start(schedule: RoundSchedule) -> Round:
    return start_round(
        project=schedule.project,
        actor=schedule.saved_by,
        options=schedule.options,
        reference=Reference(schedule.reference),
        filters=Filters.from_json(schedule.filters),
        after=AfterSuccess(schedule.after),
        origin=Round.Origin.SCHEDULE,
    )


def _in_the_way(schedule: RoundSchedule, new: New) -> str:
    """Why no round starts now; "" where one may."""
    if new.number < _wanted(schedule):
        if not new.number:
            return _("There were no new preferences since the last round.")
        return ngettext(
            "There was %(number)s new preference since the last round; %(every)s are asked for.",
            "There were %(number)s new preferences since the last round; %(every)s are asked for.",
            new.number,
        ) % {"number": new.number, "every": schedule.every}
    last = schedule.project.rounds.order_by("-number").first()
    if last is not None and last.live:
        return _("Round %(number)s was not done yet.") % {"number": last.number}
    last = _spoilt(schedule)
    if not schedule.cron and last is not None:
        return _(
            "Round %(number)s, which this schedule started, ended as: %(state)s. So that it does "
            "not start the same again and again, it waits until a round succeeds, or you resume "
            "or save it."
        ) % {"number": last.number, "state": last.get_state_display().lower()}
    return ""


def _spoilt(schedule: RoundSchedule) -> Round | None:
    """The schedule's own last round, if it came to nothing and no later round succeeded."""
    own = schedule.project.rounds.filter(
        origin=Round.Origin.SCHEDULE, created_at__gt=schedule.saved_at
    )
    last = own.order_by("-number").first()
    if last is None or last.state not in ENDED_EARLY:
        return None
    later = schedule.project.rounds.filter(number__gt=last.number, state=RoundState.SUCCEEDED)
    return None if later.exists() else last


def _told(schedule: RoundSchedule, reason: str) -> str:
    due = due_in_words(schedule)
    if not reason or not due:
        return reason
    return _("Due %(when)s: %(reason)s") % {"when": due, "reason": reason}


def _wanted(schedule: RoundSchedule) -> int:
    """With nothing new a round would only do again what the last one did."""
    return max(1, schedule.every)


def _next_at(cron: str, time_zone: str) -> datetime | None:
    try:
        moment = next_time(cron or EVERY_MINUTE, time_zone, timezone.now())
    except CronError as error:
        known = _is_zone(time_zone)
        raise CannotSchedule("cron" if known else "time_zone", str(error)) from None
    return moment if cron else None


def _is_zone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return False
    return True


def _have_looked(schedule: RoundSchedule) -> None:
    """Have the worker look every minute, for as long as it is not paused."""
    made = set_schedule(
        name=f"{KIND}:{schedule.project_id}",
        kind=KIND,
        payload={"project": schedule.project_id},
        lane="light",
        cron=EVERY_MINUTE,
        time_zone="UTC",
    )
    set_paused(made, paused=schedule.paused)
