"""The statements behind "next" and "send", written by hand.

Everywhere else the ORM writes our SQL. On these two paths building it took Django several times as
long as either database takes to answer it (docs/decisions/0010), and people wait for them. Each
function is one statement; what may change together is locked by the first of its transaction.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from django.db import connection
from django.db.models import Model
from django.utils import timezone

from labeling.models import (
    Comparison,
    Evaluation,
    Judgment,
    Lease,
    Project,
    Prompt,
    Response,
    Skip,
    Slot,
)

ModelT = TypeVar("ModelT", bound=Model)

# What the statements are put together from: table names, and conditions that several share.
_PARTS = {
    model.__name__.lower(): f'"{model._meta.db_table}"'
    for model in (
        Comparison,
        Evaluation,
        Judgment,
        Lease,
        Project,
        Prompt,
        Response,
        Skip,
        Slot,
    )
}


def _fill(statement: str) -> str:
    return statement.format_map(_PARTS)


_PARTS["live"] = _fill(
    "(SELECT count(*) FROM {lease} l WHERE l.comparison_id = c.id AND l.expires_at > %(now)s)"
)
# What an annotator may be given: open, with a free place, and nothing of theirs in it.
_PARTS["eligible"] = _fill("""
    c.project_id = %(project)s AND c.state = 'open' AND c.judged < c.overlap
    AND c.judged + {live} < c.overlap
    AND NOT EXISTS (SELECT 1 FROM {judgment} j WHERE j.comparison_id = c.id
        AND j.annotator_id = %(annotator)s AND j.superseded_at IS NULL)
    AND NOT EXISTS (SELECT 1 FROM {skip} k WHERE k.comparison_id = c.id
        AND k.annotator_id = %(annotator)s AND k.undone_at IS NULL)
    AND NOT EXISTS (SELECT 1 FROM {lease} m WHERE m.comparison_id = c.id
        AND m.annotator_id = %(annotator)s AND m.expires_at > %(now)s)
    AND NOT EXISTS (SELECT 1 FROM {slot} s JOIN {response} r ON r.id = s.response_id
        WHERE s.comparison_id = c.id AND r.annotator_id = %(annotator)s)
""")
_PARTS["judging"] = _fill(
    "(SELECT e.id FROM {evaluation} e WHERE e.project_id = %(project)s AND e.state = 'judging')"
)
_PARTS["queued"] = _fill("""
    SELECT c.id, c.priority, c.judged, c.overlap, c.shuffle_key, {judging} FROM {comparison} c
    WHERE {eligible}
""")
_FIRST = _fill("""
    {queued} AND c.evaluation_id IS NULL
    ORDER BY c.priority DESC, c.judged DESC, c.shuffle_key LIMIT 1
""")
_FIRST_FROM = _fill("""
    {queued} AND c.evaluation_id IS NULL
    AND c.priority = %(priority)s AND c.judged = %(judged)s AND c.shuffle_key >= %(start)s
    ORDER BY c.shuffle_key LIMIT 1
""")
# Of the one evaluation that is being judged: at most some thousands, so the circle may be sorted.
_FIRST_OF_EVALUATION = _fill("""
    {queued} AND c.evaluation_id = {judging}
    ORDER BY c.shuffle_key < %(start)s, c.shuffle_key LIMIT 1
""")
_LEFT = _fill("""
    SELECT count(*) FROM (SELECT 1 FROM {comparison} c WHERE {eligible}
        AND (c.evaluation_id IS NULL OR c.evaluation_id = {judging}) LIMIT %(most)s) AS reachable
""")
_OWN = _fill("""
    SELECT l.token, c.shuffle_key FROM {lease} l JOIN {comparison} c ON c.id = l.comparison_id
    WHERE l.annotator_id = %(annotator)s AND l.expires_at > %(now)s
    AND c.project_id = %(project)s AND c.state = 'open'
    ORDER BY l.taken_at, l.id
""")
_TAKE = _fill("""
    INSERT INTO {lease} (comparison_id, annotator_id, token, taken_at, expires_at, draft)
    VALUES (%(comparison)s, %(annotator)s, %(token)s, %(now)s, %(expires)s, '{{}}')
    ON CONFLICT (comparison_id, annotator_id) DO UPDATE SET
        taken_at = excluded.taken_at, expires_at = excluded.expires_at
    RETURNING id, token
""")
_SHOWN = _fill("""
    SELECT s.id, s."index", r.id, r.text, p.id, p.messages, own.draft, {live}
    FROM {slot} s
    JOIN {response} r ON r.id = s.response_id
    JOIN {comparison} c ON c.id = s.comparison_id
    JOIN {prompt} p ON p.id = c.prompt_id
    JOIN {lease} own ON own.comparison_id = c.id AND own.annotator_id = %(annotator)s
    WHERE s.comparison_id = %(comparison)s ORDER BY s."index"
""")
_HELD = _fill("""
    SELECT l.id, l.expires_at > %(now)s, c.id, c.state, c.overlap, c.project_id, c.prompt_id,
        p.guidelines_id,
        (SELECT CASE WHEN j.created_at > %(sitting)s THEN j.sitting_place + 1 ELSE 0 END
            FROM {judgment} j WHERE j.annotator_id = %(annotator)s AND j.rewrite_of_id IS NULL
            ORDER BY j.created_at DESC LIMIT 1)
    FROM {lease} l JOIN {comparison} c ON c.id = l.comparison_id
    JOIN {project} p ON p.id = c.project_id
    WHERE l.annotator_id = %(annotator)s AND l.token = %(token)s
    AND c.project_id = %(project)s
""")


_JUDGMENTS = _fill("""
    SELECT id, comparison_id, annotator_id, key, tiers, surplus FROM {judgment}
    WHERE comparison_id = %(comparison)s AND superseded_at IS NULL
    OR annotator_id = %(annotator)s AND key = %(key)s
    ORDER BY id
""")
_RESPONSES = _fill("""
    SELECT response_id FROM {slot} WHERE comparison_id = %(comparison)s ORDER BY "index"
""")
_END = _fill("DELETE FROM {lease} WHERE id = %(lease)s AND token = %(token)s RETURNING id")


class Queued(NamedTuple):
    """A comparison in the queue."""

    pk: int
    priority: int
    judged: int
    overlap: int
    shuffle_key: int
    evaluation: int | None  # the project's evaluation that is being judged now, if any


class Shown(NamedTuple):
    """One slot of a comparison that somebody is about to see, with what it takes to show it."""

    slot: int
    at: int  # the slot's index
    response: int
    text: str
    prompt: int
    messages: list[dict[str, str]]
    draft: dict[str, str]
    live: int  # leases of the comparison that have not run out, this one among them


class Held(NamedTuple):
    """A lease with its comparison, whose row is locked."""

    lease: int
    live: bool
    comparison: int
    state: str
    overlap: int
    project: int
    prompt: int
    guidelines: int | None
    sitting_place: int | None


def known(model: type[ModelT], **values: Any) -> ModelT:
    """An instance of which so much is known; anything else is read when it is asked for."""
    fields = [field.attname for field in model._meta.concrete_fields if field.attname in values]
    return model.from_db(None, fields, [values[name] for name in fields])


def own_leases(*, project: int, annotator: int) -> list[tuple[UUID, int]]:
    """Token and shuffle key of the annotator's live leases on open comparisons, oldest first."""
    rows = _rows(_OWN, project=project, annotator=annotator, now=timezone.now())
    return [(UUID(str(token)), shuffle_key) for token, shuffle_key in rows]


def first_in_queue(
    *, project: int, annotator: int, level: tuple[int, int, int] | None = None
) -> Queued | None:
    """The first comparison that the annotator may have, locked; one that is locked is passed over.

    `level`: of this priority and number of judgments only, from this shuffle key on. Those that
    evaluate a policy are left to `first_of_evaluation`.
    """
    values: dict[str, Any] = {"project": project, "annotator": annotator, "now": timezone.now()}
    if level is not None:
        values |= dict(zip(("priority", "judged", "start"), level, strict=True))
    statement = _FIRST if level is None else _FIRST_FROM
    found = _rows(statement + _locking("c", skip=True), **values)
    return Queued(*found[0]) if found else None


def first_of_evaluation(*, project: int, annotator: int, start: int) -> Queued | None:
    """The first comparison that evaluates a policy, from this shuffle key on; locked likewise."""
    found = _rows(
        _FIRST_OF_EVALUATION + _locking("c", skip=True),
        project=project,
        annotator=annotator,
        now=timezone.now(),
        start=start,
    )
    return Queued(*found[0]) if found else None


def take_lease(
    *, comparison: int, annotator: int, token: UUID, expires: datetime
) -> tuple[int, UUID]:
    """A lease's id and token. The annotator's own that ran out lives again, with its draft.

    It keeps its token, too: an older page that shows the comparison may still send its verdict.
    """
    ((pk, kept),) = _rows(
        _TAKE,
        comparison=comparison,
        annotator=annotator,
        token=token,
        now=timezone.now(),
        expires=expires,
    )
    return int(pk), UUID(str(kept))


def shown_slots(*, comparison: int, annotator: int) -> list[Shown]:
    """Every slot of a comparison that the annotator has a lease on, by index."""
    rows = _rows(_SHOWN, comparison=comparison, annotator=annotator, now=timezone.now())
    return [
        Shown._make((*ids_and_text, _json(messages), _json(draft), live))
        for *ids_and_text, messages, draft, live in rows
    ]


def left_in_queue(*, project: int, annotator: int, at_most: int) -> int:
    """How many comparisons the annotator may still have, counted up to `at_most`."""
    ((number,),) = _rows(
        _LEFT, project=project, annotator=annotator, now=timezone.now(), most=at_most
    )
    return int(number)


def lock_held(*, project: int, annotator: int, token: UUID, sitting: datetime) -> Held | None:
    """The annotator's lease with this token, run out or not; its comparison is locked.

    `sitting`: an earlier verdict belongs to the same sitting if it is not older than this.
    """
    found = _rows(
        _HELD + _locking("c"),
        project=project,
        annotator=annotator,
        token=token,
        now=timezone.now(),
        sitting=sitting,
    )
    return Held(*found[0]) if found else None


def judgments_of(*, comparison: int, annotator: int, key: str) -> list[Judgment]:
    """The current judgments of a comparison, and what the annotator sent with this key."""
    rows = _rows(_JUDGMENTS, comparison=comparison, annotator=annotator, key=key)
    return [
        known(
            Judgment,
            id=pk,
            comparison_id=comparison_id,
            annotator_id=annotator_id,
            key=key,
            tiers=_json(tiers),
            surplus=bool(surplus),
        )
        for pk, comparison_id, annotator_id, key, tiers, surplus in rows
    ]


def responses_of(*, comparison: int) -> list[int]:
    """The ids of a comparison's responses, by slot."""
    return [response for (response,) in _rows(_RESPONSES, comparison=comparison)]


def end_lease(*, lease: int, token: UUID) -> bool:
    """Delete a lease; whether it was still there under this token."""
    return bool(_rows(_END, lease=lease, token=token))


def _rows(statement: str, **values: Any) -> Sequence[Any]:
    with connection.cursor() as cursor:
        cursor.execute(statement, _adapted(values))
        found: Sequence[Any] = cursor.fetchall()
    return found


def _locking(alias: str, *, skip: bool = False) -> str:
    """SQLite has no row locks: there an IMMEDIATE transaction is the only one that writes."""
    if not connection.features.has_select_for_update:
        return ""
    return f" FOR UPDATE OF {alias}" + (" SKIP LOCKED" if skip else "")


def _adapted(values: Mapping[str, Any]) -> dict[str, Any]:
    """Times and UUIDs as the database stores them."""
    return {name: _adapt(value) for name, value in values.items()}


def _adapt(value: Any) -> Any:
    if isinstance(value, datetime):
        return connection.ops.adapt_datetimefield_value(value)
    if isinstance(value, UUID) and not connection.features.has_native_uuid_field:
        return value.hex
    return value


def _json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value
