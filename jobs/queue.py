"""The one writer of the job table.

Promises: a job is claimed by one worker; a worker's writes are fenced by its lease, so one that
froze and woke cannot overwrite; work that a dead worker left is taken over once its lease has run
out. Leases go by the database's clock: a machine whose own clock is wrong can neither steal nor
hold. (With SQLite, the database's clock is the machine's.)
"""

import logging
from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from django.conf import settings
from django.db import IntegrityError, OperationalError, transaction
from django.db.models import F, Max
from django.db.models.functions import Now

from jobs import registry
from jobs.models import Job, JobQuerySet, JobState, WorkerSeen

logger = logging.getLogger("jobs")

GIVEN_UP = (
    "Given up after {attempts} attempts: each time the worker stopped without a word, as when it "
    "is killed or the machine runs out of memory. What was written so far is kept. Look at the "
    "worker's log and the memory in use, then start it again."
)


class AlreadyQueued(Exception):
    """A live job has this once_key already: `.job`."""

    def __init__(self, job: Job) -> None:
        super().__init__(f"{job} is {job.state} already")
        self.job = job


class LeaseLost(Exception):
    """The job is no longer this worker's. Stop its program and write nothing more."""


def lease_seconds() -> float:
    """How long a worker owns a job without renewing its lease."""
    return float(getattr(settings, "JOB_LEASE_SECONDS", 30))


def renewal_seconds() -> float:
    """How often a lease is renewed: three renewals may fail before it runs out."""
    return lease_seconds() * 8 / 30


def forget(job_id: int) -> None:
    """Drop a job that succeeded, where nothing will ask about it again."""
    Job.objects.filter(pk=job_id, state=JobState.SUCCEEDED).delete()


def enqueue(
    *,
    kind: str,
    payload: dict[str, Any],
    lane: str,
    once_key: str = "",
    run_after: datetime | None = None,
    max_attempts: int = 5,
) -> Job:
    """Queue a job, in the caller's transaction: it is there when, and only when, that commits.

    Raises AlreadyQueued with the live job that has the same `once_key`.
    """
    wanted = Job(
        kind=kind, payload=payload, lane=lane, once_key=once_key, max_attempts=max_attempts
    )
    if run_after is not None:
        wanted.run_after = run_after
    try:
        return _insert(wanted)
    except IntegrityError:
        twin = Job.objects.live().filter(once_key=once_key).exclude(once_key="").first()
    if twin is not None:
        raise AlreadyQueued(twin)
    return _insert(wanted)  # the twin has ended meanwhile; any other fault shows itself again


@transaction.atomic
def _insert(job: Job) -> Job:
    job.save(force_insert=True)
    job.refresh_from_db()
    return job


def claim(*, lanes: Collection[str], worker: str) -> Job | None:
    """Take the oldest job that is due in one of `lanes`, under a new lease; None if there is none.

    Abandoned jobs that were cancelled, or have had all their attempts, are ended on the way.
    """
    while Job.objects.due(lanes).exists():  # a plain read: an idle worker locks nothing
        job = _take(lanes, worker)
        if job is None or job.state == JobState.RUNNING:
            return job
    return None


@transaction.atomic
def _take(lanes: Collection[str], worker: str) -> Job | None:
    # PostgreSQL locks the row and passes over those that others lock. SQLite ignores
    # select_for_update; there IMMEDIATE transactions let one writer in at a time.
    job = Job.objects.due(lanes).select_for_update(skip_locked=True).order_by("pk").first()
    if job is None:
        return None
    this = Job.objects.filter(pk=job.pk)
    if job.cancel_requested_at is not None:
        _end(this, job, JobState.CANCELLED, "")
    elif job.state == JobState.RUNNING and job.attempts >= job.max_attempts:
        _end(this, job, JobState.FAILED, GIVEN_UP.format(attempts=job.attempts))
    else:
        this.update(
            state=JobState.RUNNING,
            attempts=F("attempts") + 1,
            lease=uuid4(),
            lease_expires_at=_lease_end(),
            worker=worker,
            started_at=Now(),
            error="",
        )
        job.refresh_from_db()
    return job


def heartbeat(job: Job) -> None:
    """Renew the lease. In a transaction it also keeps the job ours until that ends."""
    _write(job, lease_expires_at=_lease_end())


def cancel_requested(job: Job) -> bool:
    """Whether somebody asked to cancel the job since we took it."""
    found = Job.objects.owned(job.pk, job.lease).values_list("cancel_requested_at").first()
    if found is None:
        raise LeaseLost(str(job))
    return found[0] is not None


def set_progress(job: Job, *, done: int, total: int, note: str = "") -> None:
    """Say how far the job is."""
    _write(job, progress_done=done, progress_total=total, progress_note=note[:200])


def finish(job: Job) -> None:
    """The job has succeeded."""
    _end(Job.objects.owned(job.pk, job.lease), job, JobState.SUCCEEDED, "")


def fail(job: Job, error: str) -> None:
    """The job has failed for good; `error` tells the user what happened and what to do."""
    _end(Job.objects.owned(job.pk, job.lease), job, JobState.FAILED, error)


def cancel(job: Job) -> None:
    """The running job was stopped because somebody asked for it."""
    _end(Job.objects.owned(job.pk, job.lease), job, JobState.CANCELLED, "")


@transaction.atomic
def requeue(
    job: Job,
    *,
    delay: timedelta = timedelta(0),
    reason: str = "",
    count_attempt: bool = True,
    progressed: bool = False,
) -> None:
    """Hand the job back, to be run again after `delay`.

    A job that was to be cancelled is cancelled now. With `count_attempt`, one that has had all
    its attempts fails with `reason`; without, this attempt is as if it had not been. `progressed`
    says that this attempt got further: then all attempts so far are as if they had not been.
    """
    ours = Job.objects.owned(job.pk, job.lease)
    now = ours.select_for_update().first()
    if now is None:
        raise LeaseLost(str(job))
    if now.cancel_requested_at is not None:
        _end(ours, job, JobState.CANCELLED, "")
    elif count_attempt and not progressed and now.attempts >= now.max_attempts:
        _end(ours, job, JobState.FAILED, f"{reason} Given up after {now.attempts} attempts.")
    else:
        _write(
            job,
            state=JobState.QUEUED,
            attempts=0 if progressed else F("attempts") - (0 if count_attempt else 1),
            # SQLite writes a sum finer than Now(): plus nothing, it would be due a millisecond on.
            run_after=Now() + delay if delay else Now(),
            error=reason,
            lease=None,
            lease_expires_at=None,
            worker="",
        )


@transaction.atomic
def request_cancel(job_id: int) -> Job:
    """Cancel a queued or abandoned job now; ask the worker that runs it otherwise.

    A finished job stays as it is. Returns the job as it now is.
    """
    job = Job.objects.select_for_update().get(pk=job_id)
    this = Job.objects.filter(pk=job_id)
    if job.state == JobState.QUEUED or this.filter(lease_expires_at__lt=Now()).exists():
        _end(this, job, JobState.CANCELLED, "")
    elif job.state == JobState.RUNNING:
        this.filter(cancel_requested_at=None).update(cancel_requested_at=Now())
    job.refresh_from_db()
    return job


def saw_worker(*, name: str, lanes: Collection[str]) -> None:
    """Record that this worker is alive."""
    if not WorkerSeen.objects.filter(name=name).update(seen_at=Now()):
        WorkerSeen.objects.create(name=name, lanes=",".join(lanes))
        WorkerSeen.objects.filter(seen_at__lt=Now() - timedelta(days=7)).delete()


def worker_seen() -> datetime | None:
    """When any worker was last alive; None if none has ever been."""
    seen: datetime | None = WorkerSeen.objects.aggregate(latest=Max("seen_at"))["latest"]
    return seen


def _lease_end() -> Any:
    return Now() + timedelta(seconds=lease_seconds())


def _write(job: Job, **changes: Any) -> None:
    if not Job.objects.owned(job.pk, job.lease).update(**changes):
        raise LeaseLost(str(job))


@transaction.atomic
def _end(which: JobQuerySet, job: Job, state: JobState, error: str) -> None:
    """End the job and tell its handler, together."""
    changed = which.update(
        state=state, error=error, finished_at=Now(), lease=None, lease_expires_at=None
    )
    if not changed:
        raise LeaseLost(str(job))
    job.refresh_from_db(fields=["state", "error", "finished_at"])
    if state != JobState.SUCCEEDED:
        _tell_handler(job, state, error)


def _tell_handler(job: Job, state: JobState, error: str) -> None:
    handler = registry.find(job.kind)
    if handler is None or handler.ended is None:
        return
    try:
        with transaction.atomic():
            handler.ended(job, state, error)
    except OperationalError:
        raise  # the database is in trouble: the whole end is rolled back and comes again
    except Exception:
        # A job must be able to end even so; else it would come back for ever.
        logger.exception("%s ended as %s, but its handler could not take that in", job, state)
