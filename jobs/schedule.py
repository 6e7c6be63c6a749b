"""Schedules: the one writer of that table, and the tick that turns due ones into jobs.

Promises: however many workers tick, a due time makes one job; times that nobody was there for
make one job together; while a schedule's job is live, its next one is left out.
"""

import logging
from typing import Any

from django.db import transaction
from django.db.models import DateTimeField, ExpressionWrapper
from django.db.models.functions import Now
from django.utils import timezone

from jobs import queue
from jobs.cron import CronError, next_time
from jobs.models import Schedule

logger = logging.getLogger("jobs")


def set_schedule(
    *, name: str, kind: str, payload: dict[str, Any], lane: str, cron: str, time_zone: str
) -> Schedule:
    """Make the schedule of this name, or change it; it next fires at its next time from now on.

    Raises CronError, whose message is for the user.
    """
    wanted = {
        "kind": kind,
        "payload": payload,
        "lane": lane,
        "cron": cron,
        "time_zone": time_zone,
        "next_run_at": next_time(cron, time_zone, timezone.now()),
    }
    schedule, _ = Schedule.objects.update_or_create(name=name, defaults=wanted)
    return schedule


def set_paused(schedule: Schedule, *, paused: bool) -> None:
    """Pause or resume. What would have been due during the pause is not made up for."""
    schedule.paused = paused
    schedule.next_run_at = next_time(schedule.cron, schedule.time_zone, timezone.now())
    schedule.save(update_fields=["paused", "next_run_at"])


def tick() -> int:
    """Enqueue the jobs of the schedules that are due by the database's clock; returns how many."""
    now = ExpressionWrapper(Now(), output_field=DateTimeField())
    due = Schedule.objects.filter(paused=False, next_run_at__lte=Now()).annotate(now=now)
    return sum(_fire(schedule) for schedule in due)


@transaction.atomic
def _fire(schedule: Any) -> bool:
    """Move `next_run_at` on by compare-and-swap; only the one whose swap succeeds enqueues."""
    this = Schedule.objects.filter(pk=schedule.pk)
    try:
        coming = next_time(schedule.cron, schedule.time_zone, schedule.now)
    except CronError as error:  # time zones and their names do change under a stored schedule
        this.update(paused=True)
        logger.error("schedule %s is paused: %s", schedule, error)
        return False
    swapped = this.filter(paused=False, next_run_at=schedule.next_run_at)
    if not swapped.update(next_run_at=coming):
        return False
    try:
        job = queue.enqueue(
            kind=schedule.kind,
            payload=schedule.payload,
            lane=schedule.lane,
            once_key=f"schedule:{schedule.pk}",
        )
    except queue.AlreadyQueued as already:
        logger.info("schedule %s is left out this time: %s", schedule, already)
        return False
    this.update(last_job=job)
    if schedule.last_job_id is not None:
        queue.forget(schedule.last_job_id)  # one that fires each minute would fill the table
    return True
