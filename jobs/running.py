"""A job in the hands of this worker, as its handler sees it."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from django.db import InterfaceError, OperationalError, connections, transaction

from jobs import queue
from jobs.models import Job
from jobs.queue import LeaseLost

logger = logging.getLogger("jobs")

LOOK_S = 1.0  # how often a running job looks whether it is to be cancelled, or lost its lease


class JobFailed(Exception):
    """A handler raises this to fail its job for good; the message is for the user."""


class TryAgain(Exception):
    """A handler raises this when the same job may well succeed later; it counts as an attempt.

    Unless this one got further, `progressed`: then attempts are counted anew.
    """

    def __init__(
        self,
        reason: str,
        *,
        delay: timedelta = timedelta(seconds=30),
        progressed: bool = False,
    ) -> None:
        super().__init__(reason)
        self.delay, self.progressed = delay, progressed


class Cancelled(Exception):
    """Somebody asked to cancel the job. Handlers let it pass."""


class WorkerStopping(Exception):
    """The worker was told to stop; the job will go on elsewhere. Handlers let it pass."""


class RunningJob:
    """What a handler works with: the payload, progress, and the duty to stop when told to."""

    def __init__(self, job: Job, worker_stopping: threading.Event) -> None:
        self._job = job
        self._worker_stopping = worker_stopping
        self._cancelled = threading.Event()
        self._lost = threading.Event()
        self._done = threading.Event()
        self._progress: tuple[float, tuple[int, int, str]] = (float("-inf"), (0, 0, ""))

    @property
    def id(self) -> int:
        return self._job.pk

    @property
    def payload(self) -> dict[str, Any]:
        return dict(self._job.payload)

    @property
    def attempt(self) -> int:
        """1 the first time."""
        return self._job.attempts

    @property
    def lost(self) -> bool:
        """Whether another worker may own the job by now."""
        return self._lost.is_set()

    def check(self) -> None:
        """Raise LeaseLost, Cancelled or WorkerStopping if the work must stop here.

        Cheap. A handler that works in this process calls it between steps.
        """
        if self._lost.is_set():
            raise LeaseLost(str(self._job))
        if self._cancelled.is_set():
            raise Cancelled(str(self._job))
        if self._worker_stopping.is_set():
            raise WorkerStopping(str(self._job))

    def wait_for_stop(self, seconds: float) -> None:
        """Give a stop that may be on its way `seconds` to arrive."""
        self._worker_stopping.wait(seconds)

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Show how far the work is. Written at most once a second, so call it freely."""
        written_at, written = self._progress
        wanted = (done, total, note)
        early = time.monotonic() - written_at < 1 and done < total
        if wanted == written or early:
            return
        queue.set_progress(self._job, done=done, total=total, note=note)
        self._progress = (time.monotonic(), wanted)

    @contextmanager
    def fenced(self) -> Iterator[None]:
        """A transaction that commits only if the job is still ours; LeaseLost otherwise.

        Everything a handler writes to the database belongs in one. Keep it short: no other
        write to the job, a renewal of its lease included, gets through meanwhile.
        """
        with transaction.atomic():
            queue.heartbeat(self._job)
            yield

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Renew the lease, and watch for cancellation, for as long as the block runs."""
        keeper = threading.Thread(target=self._keep, name=f"lease-{self.id}", daemon=True)
        keeper.start()
        try:
            yield
        finally:
            self._done.set()
            keeper.join()

    def _keep(self) -> None:
        renewed = time.monotonic()
        try:
            while not self._done.wait(min(LOOK_S, queue.renewal_seconds())):
                try:
                    renewed = self._look(renewed)
                except LeaseLost:
                    self._lost.set()
                    return
                except Exception as error:
                    away = isinstance(error, (OperationalError, InterfaceError))
                    logger.warning("cannot look after %s: %s", self._job, error, exc_info=not away)
                    connections.close_all()
                    # Out of reach for a whole lease: somebody else may own the job by now.
                    if time.monotonic() - renewed > queue.lease_seconds():
                        self._lost.set()
                        return
        finally:
            connections.close_all()

    def _look(self, renewed: float) -> float:
        now = time.monotonic()
        if now - renewed >= queue.renewal_seconds():
            queue.heartbeat(self._job)
            renewed = now
        if queue.cancel_requested(self._job):
            self._cancelled.set()
        return renewed
