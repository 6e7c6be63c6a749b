"""Verdicts. The only writer of judgments, skips and flags, but for imported judgments."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from labeling.models import Comparison, Flag, Judgment, Lease, Project, Skip, User
from labeling.services import assigning, statements
from labeling.services.rewriting import drop_rewrites, prefer_rewrite
from labeling.services.standing import Standing, lock, settle, stand
from labeling.services.statements import Held, known
from labeling.services.verdicts import FlagGiven, Verdict
from labeling.votes import BadTiers

SITTING = timedelta(minutes=30)  # a longer pause between verdicts begins a new sitting


class Conflict(Exception):
    """The same submission key came again with another verdict, or on another comparison."""


class NotHeld(Exception):
    """The annotator has no business with this comparison: not leased to them, or retired."""


class TooLate(Exception):
    """A verdict that its annotator may no longer change. The message says why."""


def record_judgment(
    *,
    project: Project,
    annotator: User,
    token: UUID,
    verdict: Verdict,
    key: str,
    placed: bool = False,
) -> Judgment:
    """Write a verdict, and the preferences that follow from it, in one transaction.

    `placed`: the verdict names places on the annotator's page, not slots. Sent again with the
    same key it is the same judgment. Where the lease ran out meanwhile and others filled the
    overlap, the verdict is kept as surplus and does not count: work is never thrown away.
    BadTiers, Conflict or NotHeld otherwise, with nothing written.
    """
    written = _record(project, annotator, token, verdict, key, placed)
    if isinstance(written, BadTiers):
        raise written
    return written or _repeated(annotator, verdict, key, placed)


@transaction.atomic
def rejudge(*, judgment: Judgment, verdict: Verdict, key: str, placed: bool = False) -> Judgment:
    """Put another verdict in the place of one's own; the old one is superseded.

    It counts where the old one counted. TooLate where the window has closed, or the verdict was
    already taken back; sent again with the same key it is the same judgment.
    """
    standing = stand(lock(judgment.comparison_id), judgment.annotator_id)
    whole = _whole(verdict, standing.order(judgment.annotator_id), placed)
    earlier = Judgment.objects.filter(annotator=judgment.annotator_id, key=key).first()
    if earlier is not None:
        return _same_or_conflict(earlier, judgment.comparison_id, whole)
    own = standing.own(judgment.annotator_id)
    if own is None or own.pk != judgment.pk:
        raise TooLate(_("This verdict was already changed or taken back."))
    _check_changeable(_begun(own), standing.comparison)
    _supersede(own, standing)
    place = _sitting_place(own.annotator_id)
    return _write(standing, own.annotator_id, whole, key, place, surplus=own.surplus)


def changeable(judgment: Judgment) -> bool:
    """Whether its annotator may still take it back or judge again. Reads comparison and project.

    A verdict that was changed before may be refused all the same: its window began with the first.
    """
    try:
        _check_changeable(judgment.created_at, judgment.comparison)
    except TooLate:
        return False
    return judgment.superseded_at is None


@transaction.atomic
def undo(*, judgment: Judgment) -> Lease | None:
    """Take a verdict back; the comparison is the annotator's to judge again if a place is free.

    Undoing twice does nothing the second time. TooLate where the window has closed.
    """
    standing = stand(lock(judgment.comparison_id), judgment.annotator_id)
    own = standing.own(judgment.annotator_id)
    if own is None or own.pk != judgment.pk:
        return None
    _check_changeable(_begun(own), standing.comparison)
    _supersede(own, standing)
    settle(standing)
    return assigning.lease_again(comparison=standing.comparison, annotator=judgment.annotator)


@transaction.atomic
def skip(
    *,
    project: Project,
    annotator: User,
    token: UUID,
    flags: Sequence[FlagGiven] = (),
    placed: bool = False,
) -> Skip:
    """Give a comparison back and don't offer it to this annotator again.

    NotHeld where the lease is not theirs any more.
    """
    held = Lease.objects.filter(annotator=annotator, token=token, comparison__project=project)
    lease = held.first()
    if lease is None:
        raise NotHeld(_elsewhere())
    comparison = lock(lease.comparison_id)
    if not statements.end_lease(lease=lease.pk, token=token):
        raise NotHeld(_elsewhere())  # another tab was quicker while we waited
    skipped, _new = Skip.objects.get_or_create(
        comparison=comparison, annotator=annotator, undone_at=None
    )
    if placed and flags:
        order = stand(comparison, annotator.pk).order(annotator.pk)
        flags = Verdict(tiers=[], flags=flags).moved(order).flags
    _flag(comparison, annotator.pk, flags, skip=skipped)
    return skipped


@transaction.atomic
def undo_skip(*, skip: Skip) -> Lease | None:
    """Offer a skipped comparison again, at once if a place is free."""
    if not Skip.objects.filter(pk=skip.pk, undone_at=None).update(undone_at=timezone.now()):
        return None
    return assigning.lease_again(comparison=skip.comparison, annotator=skip.annotator)


def last_action(*, annotator: User, project: Project) -> Judgment | Skip | None:
    """What "undo" would take back: the annotator's latest current judgment or skip."""
    judgment = (
        Judgment.objects.current()
        .filter(annotator=annotator, comparison__project=project, rewrite_of=None)
        .select_related("comparison__project", "annotator")
        .order_by("-created_at")
        .first()
    )
    skipped = (
        Skip.objects.filter(annotator=annotator, comparison__project=project, undone_at=None)
        .select_related("comparison", "annotator")
        .order_by("-at")
        .first()
    )
    if judgment is None or (skipped is not None and skipped.at > judgment.created_at):
        return skipped
    return judgment


@transaction.atomic(savepoint=False)
def _record(
    project: Project, annotator: User, token: UUID, verdict: Verdict, key: str, placed: bool
) -> Judgment | BadTiers | None:
    """The judgment; None, with nothing written, where this lease is not there (any more).

    What is wrong is returned, not raised: without a savepoint, raising would end the caller's
    transaction where there is one.
    """
    sitting = timezone.now() - SITTING
    held = statements.lock_held(
        project=project.pk, annotator=annotator.pk, token=token, sitting=sitting
    )
    if held is None or held.state == Comparison.State.RETIRED:
        return None
    standing = stand(_comparison(held), annotator.pk, key)
    if any(one.annotator_id == annotator.pk and one.key == key for one in standing.judgments):
        return None
    try:
        whole = _whole(verdict, standing.order(annotator.pk), placed)
    except BadTiers as error:
        return error
    # On PostgreSQL the lease may have gone while we waited for its comparison: then we are late.
    if not statements.end_lease(lease=held.lease, token=token):
        return None
    own = standing.own(annotator.pk)
    if own is not None:
        _supersede(own, standing)
    return _write(
        standing,
        annotator.pk,
        whole,
        key,
        held.sitting_place or 0,
        surplus=_surplus(held, standing, annotator.pk),
    )


def _comparison(held: Held) -> Comparison:
    """What is known of the comparison; anything else would be read when it is asked for."""
    comparison = known(
        Comparison,
        id=held.comparison,
        state=held.state,
        overlap=held.overlap,
        project_id=held.project,
        prompt_id=held.prompt,
    )
    comparison.project = known(Project, id=held.project, guidelines_id=held.guidelines)
    return comparison


def _whole(verdict: Verdict, order: Sequence[int], placed: bool) -> Verdict:
    return (verdict.moved(order) if placed else verdict).whole(len(order))


def _surplus(held: Held, standing: Standing, annotator: int) -> bool:
    """Whether the overlap is full. A live lease is itself a place; one that ran out may be gone."""
    taken = len(standing.counted())
    if not held.live:
        others = Lease.objects.live().filter(comparison=standing.comparison)
        taken += others.exclude(annotator=annotator).count()
    return taken >= standing.comparison.overlap


def _write(
    standing: Standing,
    annotator: int,
    verdict: Verdict,
    key: str,
    sitting_place: int,
    *,
    surplus: bool,
) -> Judgment:
    """The judgment with all that hangs on it; the comparison is brought in line with it."""
    judgment = Judgment.objects.create(
        comparison=standing.comparison,
        annotator_id=annotator,
        tiers=verdict.tiers,
        all_bad=verdict.all_bad,
        strength=verdict.strength,
        ratings=verdict.ratings,
        rationale=verdict.rationale,
        guidelines_id=verdict.guidelines or standing.comparison.project.guidelines_id,
        sitting_place=sitting_place,
        active_ms=verdict.active_ms,
        shown_order=standing.order(annotator),
        surplus=surplus,
        key=key,
    )
    standing.judgments.append(judgment)
    settle(standing)
    _flag(standing.comparison, annotator, verdict.flags, judgment=judgment)
    if verdict.rewrite is not None:
        original = standing.responses[verdict.rewrite.slot]
        prefer_rewrite(judgment=judgment, original=original, text=verdict.rewrite.text)
    return judgment


def _supersede(judgment: Judgment, standing: Standing) -> None:
    """Take a current judgment out of the standing; a rewrite that came with it goes too."""
    now = timezone.now()
    Judgment.objects.filter(pk=judgment.pk).update(superseded_at=now)
    standing.judgments.remove(judgment)
    drop_rewrites(judgment=judgment)


def _flag(
    comparison: Comparison,
    annotator: int,
    flags: Sequence[FlagGiven],
    *,
    judgment: Judgment | None = None,
    skip: Skip | None = None,
) -> None:
    if flags:
        Flag.objects.bulk_create(
            Flag(
                comparison=comparison,
                annotator_id=annotator,
                judgment=judgment,
                skip=skip,
                reason=flag.reason,
                slot=flag.slot,
                note=flag.note,
            )
            for flag in flags
        )


def _begun(judgment: Judgment) -> datetime:
    """When its annotator first judged this comparison: judging again opens no new window."""
    first = Judgment.objects.filter(
        comparison=judgment.comparison_id, annotator=judgment.annotator_id
    ).earliest("created_at")
    return first.created_at


def _sitting_place(annotator: int) -> int:
    """How many verdicts the annotator gave before in the sitting that goes on now."""
    before = Judgment.objects.filter(annotator=annotator, rewrite_of=None).latest("created_at")
    recent = before.created_at > timezone.now() - SITTING
    return before.sitting_place + 1 if recent else 0


def _check_changeable(begun: datetime, comparison: Comparison) -> None:
    hours = comparison.project.rejudge_hours
    if begun + timedelta(hours=hours) <= timezone.now():
        raise TooLate(
            _("Verdicts can be changed for %(hours)d hours; this one is older.") % {"hours": hours}
        )
    if comparison.state == Comparison.State.RETIRED:
        raise TooLate(_("This comparison was retired: its verdicts can no longer be changed."))


def _repeated(annotator: User, verdict: Verdict, key: str, placed: bool) -> Judgment:
    """What an earlier submission with this key wrote; NotHeld where there was none."""
    earlier = (
        Judgment.objects.filter(annotator=annotator, key=key).select_related("comparison").first()
    )
    if earlier is None:
        raise NotHeld(_elsewhere())
    whole = _whole(verdict, earlier.shown_order, placed)
    return _same_or_conflict(earlier, earlier.comparison_id, whole)


def _same_or_conflict(earlier: Judgment, comparison: int, verdict: Verdict) -> Judgment:
    same = (
        earlier.comparison_id == comparison
        and earlier.tiers == verdict.tiers
        and earlier.all_bad == verdict.all_bad
    )
    if not same:
        raise Conflict(_("This form was already sent with another verdict; the first one stands."))
    return earlier


def _elsewhere() -> str:
    return _("That comparison was already dealt with, here or in another tab, or retired.")
