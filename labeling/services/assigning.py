"""Who judges what next. The only writer of leases.

Live leases + counted judgments <= overlap: checked here under a lock on the comparison's row, and
once more when the judgment is written.
"""

import hashlib
import random
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from django.db import transaction
from django.db.models import Count, Exists, F, OuterRef, Q, QuerySet
from django.db.models.functions import Coalesce
from django.utils import timezone

from labeling.models import Comparison, Judgment, Lease, Project, Skip, Slot, User
from labeling.models.comparisons import SHUFFLE_RANGE

LEASE = timedelta(minutes=10)
TRIES = 20  # each loses only to somebody who took the row in between


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


def next_assignment(*, project: Project, annotator: User) -> Assignment | None:
    """The comparison this annotator shall judge now, leased to them; None where none is left.

    Their own live lease comes first (a reload never burns a comparison), then the manager's
    priority, then comparisons others have begun, then the annotator's own place on the circle.
    """
    lease = _own_lease(project, annotator) or _take_lease(project, annotator)
    return None if lease is None else assignment_of(lease)


def assignment_of(lease: Lease) -> Assignment:
    """What the holder of a lease sees."""
    comparison = lease.comparison
    responses = comparison.slots.select_related("response")
    slots = list(responses.defer("response__token_ids", "response__sampling"))
    order = shown_order(comparison.pk, lease.annotator_id, len(slots))
    return Assignment(lease=lease, comparison=comparison, slots=[slots[i] for i in order])


def held_lease(*, annotator: User, token: UUID) -> Lease | None:
    """The annotator's lease with this token, run out or not."""
    return (
        Lease.objects.filter(annotator=annotator, token=token)
        .select_related("comparison__prompt", "comparison__project")
        .first()
    )


@transaction.atomic
def renew(*, annotator: User, token: UUID) -> bool:
    """Hold a live lease for longer, while its page is being looked at."""
    return bool(
        Lease.objects.live()
        .filter(annotator=annotator, token=token)
        .update(expires_at=timezone.now() + LEASE)
    )


@transaction.atomic
def lease_again(*, comparison: Comparison, annotator: User) -> Lease | None:
    """Give a comparison back to an annotator who undid their judgment, if a place is free."""
    Comparison.objects.select_for_update().get(pk=comparison.pk)
    free = _free_places().filter(pk=comparison.pk, state=Comparison.State.OPEN)
    if not free.exists():
        return None
    return _create_lease(comparison, annotator)


def left_for(*, project: Project, annotator: User) -> int:
    """How many comparisons this annotator could still judge."""
    return _eligible(project, annotator).count()


def _own_lease(project: Project, annotator: User) -> Lease | None:
    return (
        Lease.objects.live()
        .filter(
            annotator=annotator,
            comparison__project=project,
            comparison__state=Comparison.State.OPEN,
        )
        .select_related("comparison__prompt")
        .order_by("taken_at")
        .first()
    )


@transaction.atomic
def _take_lease(project: Project, annotator: User) -> Lease | None:
    """Lease the first comparison in this annotator's order that has a free place.

    On PostgreSQL a row that somebody else is taking is passed over (SKIP LOCKED), and places are
    counted once more under the row's lock; on SQLite the IMMEDIATE transaction lets one writer in
    at a time.
    """
    for _ in range(TRIES):
        comparison = _first_in_order(project, annotator)
        if comparison is None:
            return None
        if _free_places().filter(pk=comparison.pk).exists():
            return _create_lease(comparison, annotator)
    return None


def _first_in_order(project: Project, annotator: User) -> Comparison | None:
    """The best level of priority and judgments, and there the first from one's own place on.

    The place is on the circle of shuffle keys: people begin elsewhere, so they seldom want the
    same row. Two walks along the queue's index, however long the queue is.
    """
    queue = _eligible(project, annotator).order_by("-priority", "-judged", "shuffle_key")
    best = queue.values_list("priority", "judged").first()
    if best is None:
        return None
    start = _place_on_circle(project, annotator)
    level = (
        queue.filter(priority=best[0], judged=best[1])
        .select_related("prompt")
        .select_for_update(skip_locked=True, of=("self",))
    )
    return level.filter(shuffle_key__gte=start).first() or level.first()


def _place_on_circle(project: Project, annotator: User) -> int:
    digest = hashlib.sha256(f"circle:{project.pk}:{annotator.pk}".encode()).digest()
    return int.from_bytes(digest[:4]) % SHUFFLE_RANGE


def _eligible(project: Project, annotator: User) -> QuerySet[Comparison]:
    mine = {"comparison": OuterRef("pk"), "annotator": annotator}
    return (
        _free_places()
        .filter(project=project, state=Comparison.State.OPEN)
        .exclude(Exists(Judgment.objects.current().filter(**mine)))
        .exclude(Exists(Skip.objects.filter(**mine, undone_at__isnull=True)))
        .exclude(Exists(Lease.objects.live().filter(**mine)))
    )


def _free_places() -> QuerySet[Comparison]:
    """Comparisons whose live leases and counted judgments leave a place of the overlap."""
    live = (
        Lease.objects.live()
        .filter(comparison=OuterRef("pk"))
        .order_by()
        .values("comparison")
        .annotate(number=Count("pk"))
        .values("number")
    )
    return Comparison.objects.annotate(held=Coalesce(live, 0)).filter(
        Q(judged__lt=F("overlap")) & Q(judged__lt=F("overlap") - F("held"))
    )


def _create_lease(comparison: Comparison, annotator: User) -> Lease:
    """A new lease; it takes the place of the annotator's own that ran out."""
    lease = Lease(comparison=comparison, annotator=annotator, expires_at=timezone.now() + LEASE)
    Lease.objects.bulk_create(
        [lease],
        update_conflicts=True,
        unique_fields=["comparison", "annotator"],
        update_fields=["token", "taken_at", "expires_at"],
    )
    return lease
