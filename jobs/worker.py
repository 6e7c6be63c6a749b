"""The loop behind `manage.py worker`: a thread per lane, each running one job at a time."""

import enum
import logging
import os
import signal
import socket
import threading
import time
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from django.db import InterfaceError, OperationalError, close_old_connections, connections

from jobs import process, queue, registry, schedule
from jobs.models import Job
from jobs.queue import LeaseLost
from jobs.running import Cancelled, JobFailed, RunningJob, TryAgain, WorkerStopping

logger = logging.getLogger("jobs")

IDLE_POLL_S = 0.5
SCHEDULE_POLL_S = 2.0
SEEN_EVERY_S = 10.0
STOP_LIMIT_S = process.STOP_GRACE_S + 15  # then a handler that will not stop is left behind
SAME_SIGNAL_S = 1.0  # Ctrl+C reaches us from the terminal and, at once, from whoever started us
DATABASE_PAUSE = timedelta(seconds=10)

UNKNOWN_KIND = (
    "This worker does not know jobs of kind {kind}: it runs an older or newer version than the "
    "site. Nothing was done; restart the worker and start the job again."
)
UNEXPECTED = (
    "Stopped by an unexpected error ({error}). What was written before is kept. The worker's log "
    "has the details under job {id}."
)
DATABASE_AWAY = "The database could not be reached, or was too busy; it is tried again."


class Until(enum.Enum):
    """How long a worker works."""

    STOPPED = "stopped"
    IDLE = "idle"
    ONE_JOB = "one job"


class Worker:
    """Takes jobs of its lanes until it is told to stop.

    The first SIGTERM or SIGINT: no new jobs; programs checkpoint and stop, their jobs go back to
    the queue. A second one, more than a second later: everything is killed; the jobs are taken
    over when their leases run out.
    """

    def __init__(self, *, lanes: Sequence[str], until: Until = Until.STOPPED) -> None:
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self._lanes = lanes
        self._until = until
        self._stopping = threading.Event()
        self._signalled_at: float | None = None
        self._busy = 0
        self._busy_lock = threading.Lock()
        self._seen_at = self._ticked_at = float("-inf")

    def run(self) -> int:
        """Work; returns the exit status, 0 unless a handler had to be left behind."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        self._keep_house()
        logger.info("worker %s takes jobs of: %s", self.name, ", ".join(self._lanes))
        groups = [self._lanes] if self._until is Until.ONE_JOB else [[x] for x in self._lanes]
        threads = [
            threading.Thread(target=self._work, args=(lanes,), name="-".join(lanes), daemon=True)
            for lanes in groups
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            if not self._go_on():
                return 1
            time.sleep(0.2)
        logger.info("worker %s has stopped", self.name)
        return 0

    def _on_signal(self, number: int, _frame: types.FrameType | None) -> None:
        # Only a plain assignment: setting an Event here could wait for a lock that the
        # interrupted code holds. The main loop passes it on.
        now = time.monotonic()
        if self._signalled_at is None:
            self._signalled_at = now
        elif now - self._signalled_at > SAME_SIGNAL_S:
            process.kill_programs()
            os._exit(128 + number)

    def _go_on(self) -> bool:
        if self._signalled_at is None:
            self._keep_house()
            return True
        if not self._stopping.is_set():
            logger.info("worker %s is stopping", self.name)
            self._stopping.set()
        if time.monotonic() - self._signalled_at < STOP_LIMIT_S:
            return True
        process.kill_programs()
        logger.error("worker %s leaves a job behind that does not stop", self.name)
        return False

    def _keep_house(self) -> None:
        now = time.monotonic()
        try:
            close_old_connections()
            if now - self._seen_at >= SEEN_EVERY_S:
                queue.saw_worker(name=self.name, lanes=self._lanes)
                self._seen_at = now
            if now - self._ticked_at >= SCHEDULE_POLL_S:
                schedule.tick()
                self._ticked_at = now
        except Exception:
            logger.exception("worker %s could not look at the schedules", self.name)
            connections.close_all()
            self._seen_at = self._ticked_at = now

    def _work(self, lanes: Sequence[str]) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    ran = self._run_one(lanes)
                    if self._until is Until.ONE_JOB or (not ran and self._over()):
                        return
                    if not ran:
                        self._stopping.wait(IDLE_POLL_S)
                except Exception:
                    # A lane outlives whatever happens to the database; the lease covers the job.
                    logger.exception("worker %s could not take or end a job", self.name)
                    connections.close_all()
                    self._stopping.wait(5.0)
        finally:
            connections.close_all()

    def _run_one(self, lanes: Sequence[str]) -> bool:
        with self._being_busy():
            close_old_connections()
            job = queue.claim(lanes=lanes, worker=self.name)
            if job is None:
                return False
            run_job(job, self._stopping)
            return True

    def _over(self) -> bool:
        """Whether nothing runs here, which might still enqueue something, and nothing is due."""
        if self._until is not Until.IDLE or self._busy:
            return False
        return not Job.objects.due(self._lanes).exists()

    @contextmanager
    def _being_busy(self) -> Iterator[None]:
        with self._busy_lock:
            self._busy += 1
        try:
            yield
        finally:
            with self._busy_lock:
                self._busy -= 1


def run_job(job: Job, worker_stopping: threading.Event) -> None:
    """Run a claimed job's handler and record how it ended, unless the lease was lost meanwhile."""
    logger.info("%s starts, attempt %s", job, job.attempts)
    running = RunningJob(job, worker_stopping)
    with running.kept():
        try:
            _execute(job, running)
        except LeaseLost:
            logger.warning("%s now belongs to another worker; this one lets go of it", job)


def _execute(job: Job, running: RunningJob) -> None:
    handler = registry.find(job.kind)
    if handler is None:
        queue.fail(job, UNKNOWN_KIND.format(kind=job.kind))
        return
    try:
        try:
            running.check()
            handler.run(running)
        finally:
            close_old_connections()  # it may have gone stale in the hours that have passed
    except LeaseLost:
        raise
    except Cancelled:
        queue.cancel(job)
    except WorkerStopping:
        queue.requeue(job, count_attempt=False)
    except TryAgain as again:
        queue.requeue(job, delay=again.delay, reason=str(again), progressed=again.progressed)
    except (OperationalError, InterfaceError):
        logger.warning("%s lost touch with the database", job, exc_info=True)
        queue.requeue(job, delay=DATABASE_PAUSE, reason=DATABASE_AWAY)
    except JobFailed as failed:
        logger.info("%s failed: %s", job, failed)
        queue.fail(job, str(failed))
    except (Exception, SystemExit) as error:
        logger.exception("%s failed", job)
        queue.fail(job, UNEXPECTED.format(error=type(error).__name__, id=job.pk))
    else:
        queue.finish(job)
        logger.info("%s is done", job)
