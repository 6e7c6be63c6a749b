"""Which function does which kind of job. Apps register theirs in their tasks.py."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.models import Job, JobState

if TYPE_CHECKING:
    from jobs.running import RunningJob

Run = Callable[["RunningJob"], None]
Ended = Callable[[Job, JobState, str], None]


@dataclass(frozen=True, kw_only=True)
class Handler:
    """What is done for one kind of job.

    `run` does the work. It may run again after it was cut off anywhere, so it must be idempotent.
    `ended(job, state, error)` is told of every end but success: failed, cancelled (queued jobs
    too), or given up after too many attempts. It runs in the transaction that ends the job, so a
    domain row that it closes ends with the job or not at all; it must be quick.
    """

    run: Run
    ended: Ended | None


_handlers: dict[str, Handler] = {}


def handler(kind: str, *, ended: Ended | None = None) -> Callable[[Run], Run]:
    """Register the decorated function for jobs of `kind`."""

    def register(run: Run) -> Run:
        if kind in _handlers:
            raise ValueError(f"two handlers for jobs of kind {kind}")
        _handlers[kind] = Handler(run=run, ended=ended)
        return run

    return register


def find(kind: str) -> Handler | None:
    """The handler for jobs of `kind`; None where no installed app has one."""
    return _handlers.get(kind)
