"""Verdicts. The only writer of judgments and skips, but for imported ones (importing.py)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.db import transaction
from django.utils import timezone

from labeling.models import Comparison, Judgment, Lease, Skip, User
from labeling.services import assigning
from labeling.services.aggregating import rewrite_preferences
from labeling.votes import check_tiers

MAX_ACTIVE_MS = 24 * 60 * 60 * 1000


class Conflict(Exception):
    """The same submission key came again with another verdict, or on another comparison."""


class NotHeld(Exception):
    """The annotator has no business with this comparison: not leased to them, or retired."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What an annotator says of a comparison. Tiers name slots, not places on the page."""

    tiers: Sequence[Sequence[int]]
    all_bad: bool = False
    strength: int | None = None
    ratings: Mapping[str, Any] = field(default_factory=dict)
    rationale: str = ""
    flags: Sequence[str] = ()
    active_ms: int = 0


@transaction.atomic
def record_judgment(*, lease: Lease, verdict: Verdict, key: str) -> Judgment:
    """Write a verdict, and the preferences that follow from it, in one transaction.

    Sent again with the same key it is the same judgment. Where the lease ran out meanwhile and
    others filled the overlap, the verdict is kept as surplus and does not count: work is never
    thrown away. BadTiers, Conflict or NotHeld otherwise, with nothing written.
    """
    comparison = Comparison.objects.select_for_update().get(pk=lease.comparison_id)
    earlier = Judgment.objects.filter(annotator=lease.annotator_id, key=key).first()
    if earlier is not None:
        return _same_or_conflict(earlier, comparison, verdict)
    if not Lease.objects.filter(annotator=lease.annotator_id, token=lease.token).exists():
        raise NotHeld("That comparison was dealt with in another tab; nothing was changed.")
    if comparison.state == Comparison.State.RETIRED:
        raise NotHeld("This comparison was retired while you had it; nothing was counted.")
    slots = comparison.slots.count()
    tiers = check_tiers([list(tier) for tier in verdict.tiers], slots)
    Judgment.objects.current().filter(comparison=comparison, annotator=lease.annotator_id).update(
        superseded_at=timezone.now()
    )
    counted = _counted(comparison)
    surplus = counted + _held_by_others(comparison, lease) >= comparison.overlap
    judgment = Judgment.objects.create(
        comparison=comparison,
        annotator_id=lease.annotator_id,
        tiers=tiers,
        all_bad=verdict.all_bad,
        strength=verdict.strength if slots == 2 and len(tiers) == 2 else None,
        ratings=dict(verdict.ratings),
        rationale=verdict.rationale,
        flags=list(verdict.flags),
        active_ms=min(max(verdict.active_ms, 0), MAX_ACTIVE_MS),
        shown_order=assigning.shown_order(comparison.pk, lease.annotator_id, slots),
        surplus=surplus,
        key=key,
    )
    Lease.objects.filter(comparison=comparison, annotator=lease.annotator_id).delete()
    _settle(comparison, counted + (not surplus))
    return judgment


@transaction.atomic
def undo(*, judgment: Judgment) -> Lease | None:
    """Take a verdict back; the comparison is the annotator's to judge again if a place is free.

    Undoing twice does nothing the second time.
    """
    comparison = Comparison.objects.select_for_update().get(pk=judgment.comparison_id)
    undone = Judgment.objects.current().filter(pk=judgment.pk).update(superseded_at=timezone.now())
    if not undone:
        return None
    _settle(comparison, _counted(comparison))
    return assigning.lease_again(comparison=comparison, annotator=judgment.annotator)


@transaction.atomic
def skip(*, lease: Lease) -> None:
    """Give a comparison back and don't offer it to this annotator again."""
    Comparison.objects.select_for_update().get(pk=lease.comparison_id)
    Skip.objects.get_or_create(
        comparison_id=lease.comparison_id, annotator_id=lease.annotator_id, undone_at=None
    )
    Lease.objects.filter(pk=lease.pk).delete()


@transaction.atomic
def undo_skip(*, skip: Skip) -> Lease | None:
    """Offer a skipped comparison again, at once if a place is free."""
    if not Skip.objects.filter(pk=skip.pk, undone_at=None).update(undone_at=timezone.now()):
        return None
    return assigning.lease_again(comparison=skip.comparison, annotator=skip.annotator)


def last_action(*, annotator: User, project: int) -> Judgment | Skip | None:
    """What "undo" would take back: the annotator's latest current judgment or skip."""
    judgment = (
        Judgment.objects.current()
        .filter(annotator=annotator, comparison__project=project)
        .order_by("-created_at")
        .first()
    )
    skipped = (
        Skip.objects.filter(annotator=annotator, comparison__project=project, undone_at=None)
        .order_by("-at")
        .first()
    )
    if judgment is None or (skipped is not None and skipped.at > judgment.created_at):
        return skipped
    return judgment


def _same_or_conflict(earlier: Judgment, comparison: Comparison, verdict: Verdict) -> Judgment:
    same = (
        earlier.comparison_id == comparison.pk
        and earlier.tiers == [list(tier) for tier in verdict.tiers]
        and earlier.all_bad == verdict.all_bad
    )
    if not same:
        raise Conflict("This form was already sent with another verdict; the first one stands.")
    return earlier


def _counted(comparison: Comparison) -> int:
    """From the rows, not `comparison.judged`: an earlier judgment may just have been superseded."""
    return Judgment.objects.counted().filter(comparison=comparison).count()


def _held_by_others(comparison: Comparison, lease: Lease) -> int:
    live = Lease.objects.live().filter(comparison=comparison)
    return live.exclude(annotator=lease.annotator_id).count()


def _settle(comparison: Comparison, counted: int) -> None:
    """Bring the comparison's count, state and preferences in line with its judgments."""
    comparison.judged = counted
    if comparison.state != Comparison.State.RETIRED:
        full = comparison.judged >= comparison.overlap
        comparison.state = Comparison.State.JUDGED if full else Comparison.State.OPEN
    comparison.save(update_fields=["judged", "state"])
    rewrite_preferences([comparison])
