"""Who judges what next. The only writer of leases.

Live leases + counted judgments <= overlap: counted here while the comparison's row is locked, and
once more when the judgment is written.
"""

import hashlib
import random
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

from django.db import transaction
from django.utils import timezone

from labeling.days import midnight
from labeling.models import (
    Comparison,
    Judgment,
    Lease,
    Membership,
    Project,
    Prompt,
    Response,
    Slot,
    User,
)
from labeling.models.comparisons import SHUFFLE_RANGE
from labeling.services import statements
from labeling.services.statements import Queued, Shown, known

LEASE = timedelta(minutes=10)
AT_ONCE = 2  # leases of one annotator in one project: what they look at, and what comes next
TRIES = 20  # each loses only to somebody who took the row in between


class LimitReached(Exception):
    """The annotator has given as many verdicts today as the manager allows."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """A comparison that an annotator holds, and the order in which they see its slots."""

    lease: Lease
    comparison: Comparison
    slots: list[Slot]

    @property
    def shown_order(self) -> list[int]:
        """Slot indexes from the first place on the page to the last."""
        return [slot.index for slot in self.slots]


def shown_order(comparison: int, annotator: int, slots: int) -> list[int]:
    """A shuffle that is fixed per annotator and comparison, so that a reload changes nothing."""
    seed = hashlib.sha256(f"order:{comparison}:{annotator}".encode()).digest()
    order = list(range(slots))
    random.Random(seed).shuffle(order)
    return order


def next_assignment(
    *,
    project: Project,
    annotator: User,
    besides: Collection[UUID] = (),
    daily_limit: int | None = None,
) -> Assignment | None:
    """The comparison this annotator shall judge now, leased to them; None where none is left.

    Their own live leases come first (a reload never burns a comparison), but for `besides`: the
    tokens of those that the page has already. Then the manager's priority, then comparisons
    others have begun, then the annotator's own place on the circle. LimitReached where the
    annotator's day is full.
    """
    own = statements.own_leases(project=project.pk, annotator=annotator.pk)
    for token, _shuffle_key in own:
        if token not in besides:
            lease = held_lease(annotator=annotator, token=token)
            return assignment_of(lease) if lease else None
    if len(own) >= AT_ONCE:
        return None
    start = own[-1][1] if own else _place_on_circle(project, annotator)
    taken = _take(project, annotator, start, daily_limit)
    if isinstance(taken, LimitReached):
        raise taken
    return taken


def assignment_of(lease: Lease) -> Assignment:
    """What the holder of a lease sees."""
    shown = statements.shown_slots(comparison=lease.comparison_id, annotator=lease.annotator_id)
    return _assignment(lease, shown)


def held_lease(*, annotator: User, token: UUID) -> Lease | None:
    """The annotator's lease with this token, run out or not."""
    return (
        Lease.objects.filter(annotator=annotator, token=token)
        .select_related("comparison__prompt", "comparison__project")
        .first()
    )


@transaction.atomic
def hold(
    *, annotator: User, tokens: Sequence[UUID], draft: Mapping[str, Any] | None = None
) -> list[UUID]:
    """Hold live leases for longer, while their page is being looked at; those still held.

    `draft` is what the annotator has filled in for the first of them and not sent yet; it is kept
    with the lease, whether that lives or has run out.
    """
    if draft is not None and tokens:
        Lease.objects.filter(annotator=annotator, token=tokens[0]).update(draft=dict(draft))
    live = Lease.objects.live().filter(annotator=annotator, token__in=tokens)
    held = list(live.values_list("token", flat=True))
    Lease.objects.filter(annotator=annotator, token__in=held).update(
        expires_at=timezone.now() + LEASE
    )
    return held


@transaction.atomic
def give_back(*, annotator: User, tokens: Collection[UUID]) -> None:
    """Let go of comparisons that the annotator holds and has not judged.

    Another tab may still show one: like a lease that ran out, its token still takes a verdict.
    """
    Lease.objects.filter(annotator=annotator, token__in=tokens).update(expires_at=timezone.now())


@transaction.atomic
def give_all_back(*, project: Project, annotator: User) -> None:
    """Let go of everything the annotator holds in a project that they leave."""
    Lease.objects.filter(annotator=annotator, comparison__project=project).delete()


@transaction.atomic
def lease_again(*, comparison: Comparison, annotator: User) -> Lease | None:
    """Give a comparison back to an annotator who undid their judgment, if a place is free."""
    locked = Comparison.objects.select_for_update().get(pk=comparison.pk)
    others = Lease.objects.live().filter(comparison=locked).exclude(annotator=annotator)
    full = locked.judged + others.count() >= locked.overlap
    if full or locked.state != Comparison.State.OPEN:
        return None
    return _create_lease(locked, annotator)


def left_for(*, project: Project, annotator: User, at_most: int) -> int:
    """How many comparisons this annotator could still judge, counted up to `at_most`."""
    return statements.left_in_queue(project=project.pk, annotator=annotator.pk, at_most=at_most)


def held_open(*, project: Project, annotator: User) -> int:
    """How many open comparisons the annotator holds now."""
    return len(statements.own_leases(project=project.pk, annotator=annotator.pk))


def judged_today(project: Project, annotator: User) -> int:
    """The annotator's current verdicts since midnight, in the site's time zone."""
    return (
        Judgment.objects.current()
        .filter(
            annotator=annotator,
            comparison__project=project,
            created_at__gte=midnight(),
            rewrite_of=None,
        )
        .count()
    )


@transaction.atomic(savepoint=False)
def _take(
    project: Project, annotator: User, start: int, daily_limit: int | None
) -> Assignment | LimitReached | None:
    """Lease the first comparison in this annotator's order that has a free place.

    On PostgreSQL a row that somebody else is taking is passed over (SKIP LOCKED). Whoever was
    quicker may have committed between our look and our lock, so places are counted once more,
    ours among them, when the slots are read; on SQLite the IMMEDIATE transaction lets one writer
    in at a time.
    """
    if daily_limit is not None and _day_is_full(project, annotator, daily_limit):
        return LimitReached()
    for _ in range(TRIES):
        queued = _first_in_order(project, annotator, start)
        if queued is None:
            return None
        lease = _create_lease(_comparison(project, queued), annotator)
        shown = statements.shown_slots(comparison=queued.pk, annotator=annotator.pk)
        if queued.judged + shown[0].live <= queued.overlap:
            return _assignment(lease, shown)
        Lease.objects.filter(pk=lease.pk).update(expires_at=timezone.now())
    return None


def _day_is_full(project: Project, annotator: User, daily_limit: int) -> bool:
    """Counted while the membership is locked: requests side by side do not get past the limit."""
    membership = Membership.objects.filter(user=annotator, project=project)
    list(membership.select_for_update(no_key=True))
    held = statements.own_leases(project=project.pk, annotator=annotator.pk)
    return len(held) + judged_today(project, annotator) >= daily_limit


def _first_in_order(project: Project, annotator: User, start: int) -> Queued | None:
    """The best level of priority and judgments, and there the first from `start` on.

    `start` is a place on the circle of shuffle keys: people begin elsewhere, so they seldom want
    the same row. Two walks along the queue's index, however long the queue is. While a policy is
    evaluated, chance gives its comparisons the share that the project sets, and all that is left
    where nothing else is.
    """
    first = partial(statements.first_in_queue, project=project.pk, annotator=annotator.pk)
    best = first()
    if best is None or best.evaluation and _turn_of_evaluation(project):
        found = statements.first_of_evaluation(
            project=project.pk, annotator=annotator.pk, start=start
        )
        return found or best
    if best.shuffle_key >= start:
        return best
    return first(level=(best.priority, best.judged, start)) or best


def _turn_of_evaluation(project: Project) -> bool:
    return secrets.randbelow(100) < project.evaluation_percent


def _place_on_circle(project: Project, annotator: User) -> int:
    digest = hashlib.sha256(f"circle:{project.pk}:{annotator.pk}".encode()).digest()
    return int.from_bytes(digest[:4]) % SHUFFLE_RANGE


def _assignment(lease: Lease, shown: list[Shown]) -> Assignment:
    """What the lease's holder sees. Of the prompt and the responses only the texts were read."""
    order = shown_order(lease.comparison_id, lease.annotator_id, len(shown))
    first = shown[0]
    lease.draft = first.draft
    lease.comparison.prompt = known(Prompt, id=first.prompt, messages=first.messages)
    return Assignment(
        lease=lease, comparison=lease.comparison, slots=[_slot(shown[index]) for index in order]
    )


def _slot(shown: Shown) -> Slot:
    slot = known(Slot, id=shown.slot, index=shown.at, response_id=shown.response)
    slot.response = known(Response, id=shown.response, text=shown.text)
    return slot


def _comparison(project: Project, queued: Queued) -> Comparison:
    """What is known of it; anything else would be read when it is asked for."""
    comparison = known(
        Comparison,
        id=queued.pk,
        project_id=project.pk,
        priority=queued.priority,
        judged=queued.judged,
        overlap=queued.overlap,
        shuffle_key=queued.shuffle_key,
    )
    comparison.project = project
    return comparison


def _create_lease(comparison: Comparison, annotator: User) -> Lease:
    now = timezone.now()
    lease = Lease(comparison=comparison, annotator=annotator, taken_at=now, expires_at=now + LEASE)
    lease.pk, lease.token = statements.take_lease(
        comparison=comparison.pk,
        annotator=annotator.pk,
        token=lease.token,
        expires=lease.expires_at,
    )
    return lease
