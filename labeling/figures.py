"""Counts over whole tables: exact where counting is quick, kept and told with their age where not.

A figure is a function of a project that gives what JSON can hold: numbers and keys, no words, for
these are in the reader's language. It goes by a name:

    @counted("overview.prompts")
    def _prompts(project: Project) -> int: ...

    figure(project, "overview.prompts")  # -> Kept(value=..., as_of=...)

Only what took long is kept. So a small project always sees its own numbers as they are now, and a
large one waits for a count once: when its page is opened for the first time. From then on it is
told the kept value; one that has grown old is counted again by the worker meanwhile.
"""

import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.utils import timezone

from jobs import queue
from jobs.models import Job
from labeling.models import Figure, Project

KIND = "labeling.figures"
CHEAP_S = 0.03  # what takes no longer is counted on every page
FRESH_S = 10.0
SHARE = 20  # counting takes one part in so many of the worker's time at most
ALONE = timedelta(minutes=10)  # with no worker for so long, the page counts by itself
TOLD = timedelta(seconds=5)  # older values are told with their age

Count = Callable[[Project], Any]

_counts: dict[str, Count] = {}


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a count came to, and when it was begun."""

    value: Any
    as_of: datetime

    @property
    def old(self) -> bool:
        """Whether a page must say how old the value is."""
        return timezone.now() - self.as_of > TOLD


def counted(name: str) -> Callable[[Count], Count]:
    """Register the decorated function as the figure of this name."""

    def register(count: Count) -> Count:
        if name in _counts:
            raise ValueError(f"two counts of the name {name}")
        _counts[name] = count
        return count

    return register


def known(name: str) -> bool:
    """Whether a module that counts this has been imported."""
    return name in _counts


def figure(project: Project, name: str, *, fresh_s: float = FRESH_S) -> Kept:
    """The figure of this name, as the module tells. KeyError where nothing is registered so.

    A kept value counts as fresh for `fresh_s` seconds, and for longer where counting it takes
    long. It may be deleted at any time.
    """
    return figures(project, [name], fresh_s=fresh_s)[name]


def figures(
    project: Project, names: Collection[str], *, fresh_s: float = FRESH_S
) -> dict[str, Kept]:
    """Several by name; what is kept of them is read in one query."""
    rows = {row.name: row for row in Figure.objects.filter(project=project, name__in=names)}
    return {name: _figure(project, name, rows.get(name), fresh_s) for name in names}


def _figure(project: Project, name: str, row: Figure | None, fresh_s: float) -> Kept:
    if row is None:
        row = measure(project, name)
        if _slow(row):
            keep(row)
    elif timezone.now() - row.as_of > _fresh_for(row, fresh_s):
        if _alone():
            row = measure(project, name)
            keep(row)
        else:
            _ask_worker(project, name)
    return Kept(value=row.value, as_of=row.as_of)


def measure(project: Project, name: str) -> Figure:
    """Count now; the row is not saved."""
    as_of, started = timezone.now(), time.monotonic()
    value = _counts[name](project)
    took = time.monotonic() - started
    return Figure(project=project, name=name, value=value, as_of=as_of, took_ms=round(1000 * took))


def keep(made: Figure) -> None:
    """Save what took long to count; what did not is counted on every page from now on."""
    if _slow(made):
        values = {"value": made.value, "as_of": made.as_of, "took_ms": made.took_ms}
        Figure.objects.update_or_create(project_id=made.project_id, name=made.name, defaults=values)
    else:
        Figure.objects.filter(project=made.project_id, name=made.name).delete()


def _slow(made: Figure) -> bool:
    return made.took_ms > 1000 * CHEAP_S


def _fresh_for(kept: Figure, fresh_s: float) -> timedelta:
    return timedelta(seconds=max(fresh_s, SHARE * kept.took_ms / 1000))


def _alone() -> bool:
    """Whether there has been no worker for long, which could count again."""
    seen = queue.worker_seen()
    return seen is None or timezone.now() - seen > ALONE


def _ask_worker(project: Project, name: str) -> None:
    """Have it counted again; of many pages that ask, one does."""
    once_key = f"{KIND}:{project.pk}:{name}"
    if Job.objects.live().filter(once_key=once_key).exists():
        return  # a page that only reads should write nothing
    with suppress(queue.AlreadyQueued):
        payload = {"project": project.pk, "name": name}
        queue.enqueue(kind=KIND, payload=payload, lane="light", once_key=once_key)
