"""What managers change in the queue: its order, and what is in it. The only writer of QueueChange.

Comparisons are changed a thousand at a time by primary key, each thousand in a transaction of its
own that also counts it in the change's record, so nobody who judges waits long, and a process that
dies leaves a true record. What somebody has in hand, or has judged, is never held back or retired.
"""

import time
from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from math import inf
from typing import Any

from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet

from labeling.models import Comparison, Lease, Project, QueueChange, Slot, User
from labeling.searching import Says

CHUNK = 1000
SECONDS = 20.0  # a change stops then; who asked for it goes on with another one
PRIORITIES = range(-9, 10)
MOST_RANGES = 2000  # of changed ids; a change that is more scattered cannot be undone
UNDONE_BY = {
    QueueChange.Action.HOLD: QueueChange.Action.RELEASE,
    QueueChange.Action.RELEASE: QueueChange.Action.HOLD,
}
# How far a comparison has come, as filters call it.
STATES = {
    "untouched": Q(state=Comparison.State.OPEN, judged=0),
    "started": Q(state=Comparison.State.OPEN, judged__gt=0),
    "held": Q(state=Comparison.State.HELD),
    "judged": Q(state=Comparison.State.JUDGED),
    "retired": Q(state=Comparison.State.RETIRED),
}
BY_PEOPLE = "people"  # as a pairing: people chose what stands side by side


class CannotUndo(Exception):
    """Only a project's last change can be undone, if it held back or released."""


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Which comparisons of a project; every part narrows further, and none means all."""

    state: str = ""
    purpose: str = ""
    split: str = ""
    pairing: str = ""
    policy: int | None = None
    answers: int | None = None
    text: str = ""

    def narrow(self, rows: QuerySet[Comparison]) -> QuerySet[Comparison]:
        """The rows that are left."""
        slots = Slot.objects.filter(comparison=OuterRef("pk"))
        if self.state:
            rows = rows.filter(STATES[self.state])
        if self.purpose:
            rows = rows.filter(purpose=self.purpose)
        if self.split:
            rows = rows.filter(prompt__split=self.split)
        if self.pairing:
            rows = rows.filter(pairing="" if self.pairing == BY_PEOPLE else self.pairing)
        if self.policy is not None:
            rows = rows.filter(Exists(slots.filter(response__policy=self.policy)))
        if self.answers is not None:
            rows = rows.filter(
                Exists(slots.filter(index=self.answers - 1)),
                ~Exists(slots.filter(index=self.answers)),
            )
        if self.text:
            rows = rows.filter(
                Q(prompt__external_id=self.text) | Q(Says("prompt__messages", self.text))
            )
        return rows

    def as_json(self) -> dict[str, Any]:
        """For `QueueChange.filters`: what is set."""
        return {name: value for name, value in asdict(self).items() if value not in ("", None)}


@dataclass(kw_only=True)
class Outcome:
    """What came of a change so far; not `finished` where time ran out before the matches did."""

    change: QueueChange | None = None
    changed: int = 0
    finished: bool = True


@dataclass(kw_only=True)
class _Run:
    """A change while it is being made.

    `ranges` hold what it has changed and nothing else that its opposite would change, so that
    the opposite within them undoes it; None where there are too many.
    """

    record: QueueChange
    ranges: list[list[int]] | None = field(default_factory=list)

    def add(self, ids: Sequence[int], others: Sequence[int] | None) -> None:
        """Note ids that were changed. A range ends at any of `others`; if None, at any gap."""
        if self.ranges is None:
            return
        for pk in ids:
            last = self.ranges[-1] if self.ranges else None
            if last is None or _apart(last[1], pk, others):
                self.ranges.append([pk, pk])
            else:
                last[1] = pk
        if len(self.ranges) > MOST_RANGES:
            self.ranges = None


def _apart(before: int, pk: int, others: Sequence[int] | None) -> bool:
    if others is None:
        return pk != before + 1
    return bisect(others, before) < bisect(others, pk)


def change(
    *,
    project: Project,
    filters: Filters,
    action: QueueChange.Action,
    actor: User,
    priority: int | None = None,
) -> Outcome:
    """Do something to every matching comparison that allows it; asked again, it goes on.

    PRIORITY concerns what is open or held back, HOLD what is open, RELEASE what is held back,
    RETIRE both. Nothing changed leaves no record.
    """
    if (action == QueueChange.Action.PRIORITY) != (priority is not None):
        raise ValueError("a priority is given where it is set, and only there")
    if priority is not None and priority not in PRIORITIES:
        raise ValueError(f"priorities go from {PRIORITIES.start} to {PRIORITIES.stop - 1}")
    record = QueueChange(
        project=project,
        action=action,
        priority=priority,
        filters=filters.as_json(),
        changed=0,
        actor=actor,
    )
    rows = filters.narrow(_allowed(record).filter(project=project))
    return _work(_Run(record=record), _ids(rows), seconds=SECONDS)


def undo(*, change: QueueChange, actor: User) -> Outcome:
    """Release what a change held back, or hold back what it released: exactly that.

    What has been judged or retired since stays so. It is gone through to the end, for half an undo
    could not be gone on with. CannotUndo where it is not the last change.
    """
    if not can_undo(change) or change != _last(change.project):
        raise CannotUndo
    record = QueueChange(
        project=change.project,
        action=UNDONE_BY[QueueChange.Action(change.action)],
        filters={"undoes": change.pk},
        changed=0,
        actor=actor,
    )
    rows = _allowed(record).filter(project=change.project_id)
    ids = (pk for first, last in change.filters["ids"] for pk in _ids(rows, first, last))
    return _work(_Run(record=record), ids, seconds=inf)


def can_undo(change: QueueChange) -> bool:
    """Whether it is known what the change changed, and there is an opposite."""
    return change.action in UNDONE_BY and bool(change.filters.get("ids"))


def _last(project: Project) -> QueueChange | None:
    return project.queue_changes.order_by("-pk").first()


def _ids(rows: QuerySet[Comparison], first: int = 1, last: int | None = None) -> Iterator[int]:
    """Keys of the rows from the first to the last, in order, read a thousand at a time."""
    keys = rows.order_by("pk").values_list("pk", flat=True)
    if last is not None:
        keys = keys.filter(pk__lte=last)
    while page := list(keys.filter(pk__gte=first)[:CHUNK]):
        yield from page
        first = page[-1] + 1


def _work(run: _Run, ids: Iterator[int], *, seconds: float) -> Outcome:
    deadline = time.monotonic() + seconds
    while chunk := list(islice(ids, CHUNK)):
        if time.monotonic() > deadline:
            return _outcome(run, finished=False)
        _change_chunk(run, chunk)
    return _outcome(run, finished=True)


def _outcome(run: _Run, *, finished: bool) -> Outcome:
    record = run.record
    made = record if record.changed else None
    return Outcome(change=made, changed=record.changed, finished=finished)


@transaction.atomic
def _change_chunk(run: _Run, ids: Sequence[int]) -> None:
    """On PostgreSQL a row that somebody is taking or judging just now is passed over.

    The rows are locked first and looked at afterwards, so that a lease that was committed before
    our lock is seen.
    """
    rows = Comparison.objects.filter(project=run.record.project_id)
    locked = rows.filter(pk__in=ids).select_for_update(skip_locked=True, of=("self",))
    allowed = _allowed(run.record).filter(pk__in=list(locked.values_list("pk", flat=True)))
    free = sorted(allowed.values_list("pk", flat=True))
    if free:
        others = _already_held(run, free)
        rows.filter(pk__in=free).update(**_values(run.record))
        _record(run, free, others)


def _allowed(record: QueueChange) -> QuerySet[Comparison]:
    """The comparisons to which this may be done."""
    states = Comparison.State
    rows = Comparison.objects.all()
    nobodys = rows.filter(~Exists(Lease.objects.live().filter(comparison=OuterRef("pk"))), judged=0)
    match record.action:
        case QueueChange.Action.HOLD:
            return nobodys.filter(state=states.OPEN)
        case QueueChange.Action.RELEASE:
            return rows.filter(state=states.HELD)
        case QueueChange.Action.RETIRE:
            return nobodys.filter(state__in=(states.OPEN, states.HELD))
        case _:
            waiting = rows.filter(state__in=(states.OPEN, states.HELD))
            return waiting.exclude(priority=record.priority or 0)


def _values(record: QueueChange) -> Mapping[str, Any]:
    match record.action:
        case QueueChange.Action.HOLD:
            return {"state": Comparison.State.HELD}
        case QueueChange.Action.RELEASE:
            return {"state": Comparison.State.OPEN}
        case QueueChange.Action.RETIRE:
            return {"state": Comparison.State.RETIRED, "withdrawn": True}
        case _:
            return {"priority": record.priority}


def _already_held(run: _Run, ids: Sequence[int]) -> list[int] | None:
    """Before more is held back: what is held already among it, for undoing must not free that.

    None for other actions: what is open now may have been anything before.
    """
    if run.record.action != QueueChange.Action.HOLD:
        return None
    since = run.ranges[-1][1] if run.ranges else ids[0]
    held = run.record.project.comparisons.filter(
        state=Comparison.State.HELD, pk__gt=since, pk__lt=ids[-1]
    )
    return list(held.order_by("pk").values_list("pk", flat=True)[: MOST_RANGES + 1])


def _record(run: _Run, ids: Sequence[int], others: Sequence[int] | None) -> None:
    """Count the ids in the change's row, made with the first of them."""
    record = run.record
    record.changed += len(ids)
    if record.action in UNDONE_BY:
        if others is not None and len(others) > MOST_RANGES:
            run.ranges = None
        run.add(ids, others)
        record.filters["ids"] = run.ranges or []
    record.save()
