"""Verdicts. The only writer of judgments, skips and flags, but for imported judgments."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from django.db import transaction
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext as _

from labeling.models import Comparison, Flag, Judgment, Lease, Project, Response, Skip, User
from labeling.models.prompts import text_digest
from labeling.services import assigning, statements
from labeling.services.aggregating import write_preferences
from labeling.services.comparing import NewComparison, create_comparisons
from labeling.services.statements import Held, known
from labeling.services.verdicts import FlagGiven, Rewrite, Verdict
from labeling.votes import BadTiers

SITTING = timedelta(minutes=30)  # a longer pause between verdicts begins a new sitting


class Conflict(Exception):
    """The same submission key came again with another verdict, or on another comparison."""


class NotHeld(Exception):
    """The annotator has no business with this comparison: not leased to them, or retired."""


class TooLate(Exception):
    """A verdict that its annotator may no longer change. The message says why."""


@dataclass(kw_only=True)
class _Standing:
    """A locked comparison, its current judgments and what is in its slots."""

    comparison: Comparison
    judgments: list[Judgment]
    responses: list[int]  # ids by slot

    def own(self, annotator: int) -> Judgment | None:
        return next((one for one in self.judgments if one.annotator_id == annotator), None)

    def counted(self) -> list[Judgment]:
        return [one for one in self.judgments if not one.surplus]


def record_judgment(
    *, annotator: User, token: UUID, verdict: Verdict, key: str, placed: bool = False
) -> Judgment:
    """Write a verdict, and the preferences that follow from it, in one transaction.

    `placed`: the verdict names places on the annotator's page, not slots. Sent again with the
    same key it is the same judgment. Where the lease ran out meanwhile and others filled the
    overlap, the verdict is kept as surplus and does not count: work is never thrown away.
    BadTiers, Conflict or NotHeld otherwise, with nothing written.
    """
    written = _record(annotator, token, verdict, key, placed)
    if isinstance(written, BadTiers):
        raise written
    return written or _repeated(annotator, verdict, key, placed)


@transaction.atomic
def rejudge(*, judgment: Judgment, verdict: Verdict, key: str, placed: bool = False) -> Judgment:
    """Put another verdict in the place of one's own; the old one is superseded.

    It counts where the old one counted. TooLate where the window has closed, or the verdict was
    already taken back; sent again with the same key it is the same judgment.
    """
    standing = _stand(_lock(judgment.comparison_id), judgment.annotator_id)
    whole = _whole(verdict, _order(standing, judgment.annotator_id), placed)
    earlier = Judgment.objects.filter(annotator=judgment.annotator_id, key=key).first()
    if earlier is not None:
        return _same_or_conflict(earlier, judgment.comparison_id, whole)
    own = standing.own(judgment.annotator_id)
    if own is None or own.pk != judgment.pk:
        raise TooLate(_("This verdict was already changed or taken back."))
    _check_changeable(own, standing.comparison)
    _supersede(own, standing)
    return _write(standing, own.annotator_id, whole, key, own.sitting_place, surplus=own.surplus)


def changeable(judgment: Judgment) -> bool:
    """Whether its annotator may still take it back or judge again. Reads comparison and project."""
    try:
        _check_changeable(judgment, judgment.comparison)
    except TooLate:
        return False
    return judgment.superseded_at is None


@transaction.atomic
def undo(*, judgment: Judgment) -> Lease | None:
    """Take a verdict back; the comparison is the annotator's to judge again if a place is free.

    Undoing twice does nothing the second time. TooLate where the window has closed.
    """
    standing = _stand(_lock(judgment.comparison_id), judgment.annotator_id)
    own = standing.own(judgment.annotator_id)
    if own is None or own.pk != judgment.pk:
        return None
    _check_changeable(own, standing.comparison)
    _supersede(own, standing)
    _settle(standing)
    return assigning.lease_again(comparison=standing.comparison, annotator=judgment.annotator)


@transaction.atomic
def skip(
    *, annotator: User, token: UUID, flags: Sequence[FlagGiven] = (), placed: bool = False
) -> Skip:
    """Give a comparison back and don't offer it to this annotator again.

    NotHeld where the lease is not theirs any more.
    """
    lease = Lease.objects.filter(annotator=annotator, token=token).first()
    if lease is None:
        raise NotHeld(_elsewhere())
    comparison = _lock(lease.comparison_id)
    skipped, _new = Skip.objects.get_or_create(
        comparison=comparison, annotator=annotator, undone_at=None
    )
    if placed and flags:
        order = _order(_stand(comparison, annotator.pk), annotator.pk)
        flags = Verdict(tiers=[], flags=flags).moved(order).flags
    _flag(comparison, annotator.pk, flags, skip=skipped)
    lease.delete()
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
    annotator: User, token: UUID, verdict: Verdict, key: str, placed: bool
) -> Judgment | BadTiers | None:
    """The judgment; None, with nothing written, where this lease is not there (any more).

    What is wrong is returned, not raised: without a savepoint, raising would end the caller's
    transaction where there is one.
    """
    sitting = timezone.now() - SITTING
    held = statements.lock_held(annotator=annotator.pk, token=token, sitting=sitting)
    if held is None or held.state == Comparison.State.RETIRED:
        return None
    standing = _stand(_comparison(held), annotator.pk, key)
    if any(one.annotator_id == annotator.pk and one.key == key for one in standing.judgments):
        return None
    try:
        whole = _whole(verdict, _order(standing, annotator.pk), placed)
    except BadTiers as error:
        return error
    # On PostgreSQL the lease may have gone while we waited for its comparison: then we are late.
    if not Lease.objects.filter(pk=held.lease, token=token).delete()[0]:
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


def _lock(comparison: int) -> Comparison:
    return (
        Comparison.objects.select_related("project")
        .select_for_update(of=("self",))
        .get(pk=comparison)
    )


def _stand(comparison: Comparison, annotator: int, key: str = "") -> _Standing:
    """Read under the lock. A judgment of the annotator with this key is in too, current or not."""
    of_key = Q(annotator=annotator, key=key) if key else Q(pk=None)
    current = Q(comparison=comparison, superseded_at__isnull=True)
    judgments = list(Judgment.objects.filter(current | of_key).order_by("pk"))
    slots = comparison.slots.order_by("index").values_list("response_id", flat=True)
    return _Standing(comparison=comparison, judgments=judgments, responses=list(slots))


def _order(standing: _Standing, annotator: int) -> list[int]:
    return assigning.shown_order(standing.comparison.pk, annotator, len(standing.responses))


def _whole(verdict: Verdict, order: Sequence[int], placed: bool) -> Verdict:
    return (verdict.moved(order) if placed else verdict).whole(len(order))


def _surplus(held: Held, standing: _Standing, annotator: int) -> bool:
    """Whether the overlap is full. A live lease is itself a place; one that ran out may be gone."""
    taken = len(standing.counted())
    if not held.live:
        others = Lease.objects.live().filter(comparison=standing.comparison)
        taken += others.exclude(annotator=annotator).count()
    return taken >= standing.comparison.overlap


def _write(
    standing: _Standing,
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
        guidelines_id=standing.comparison.project.guidelines_id,
        sitting_place=sitting_place,
        active_ms=verdict.active_ms,
        shown_order=_order(standing, annotator),
        surplus=surplus,
        key=key,
    )
    standing.judgments.append(judgment)
    _settle(standing)
    _flag(standing.comparison, annotator, verdict.flags, judgment=judgment)
    if verdict.rewrite is not None:
        _prefer_rewrite(judgment, standing.responses[verdict.rewrite.slot], verdict.rewrite)
    return judgment


def _settle(standing: _Standing) -> None:
    """Bring the comparison's count, state and preferences in line with its judgments."""
    comparison, counted = standing.comparison, standing.counted()
    comparison.judged = len(counted)
    if comparison.state != Comparison.State.RETIRED:
        full = comparison.judged >= comparison.overlap
        open_or_held = (
            comparison.state if comparison.state == Comparison.State.HELD else Comparison.State.OPEN
        )
        comparison.state = Comparison.State.JUDGED if full else open_or_held
    comparison.save(update_fields=["judged", "state"])
    write_preferences(
        comparison=comparison,
        rankings=[one.tiers for one in counted],
        responses=standing.responses,
    )


def _supersede(judgment: Judgment, standing: _Standing) -> None:
    """Take a current judgment out of the standing; a rewrite that came with it goes too."""
    now = timezone.now()
    Judgment.objects.filter(pk=judgment.pk).update(superseded_at=now)
    standing.judgments.remove(judgment)
    for rewrite in Judgment.objects.current().filter(rewrite_of=judgment):
        Judgment.objects.filter(pk=rewrite.pk).update(superseded_at=now)
        comparison = _lock(rewrite.comparison_id)
        comparison.state = Comparison.State.RETIRED  # nobody else is to judge it
        _settle(_Standing(comparison=comparison, judgments=[], responses=[]))


def _prefer_rewrite(judgment: Judgment, original: int, rewrite: Rewrite) -> None:
    """The annotator's own text as a response, preferred to the one that it was made from.

    The two make a comparison of their own that nobody else is asked about.
    """
    before = Response.objects.get(pk=original)
    digest = text_digest(rewrite.text)
    if digest == before.text_digest:
        return
    response, _new = Response.objects.get_or_create(
        prompt_id=before.prompt_id,
        annotator_id=judgment.annotator_id,
        text_digest=digest,
        defaults={"text": rewrite.text},
    )
    wanted = NewComparison(responses=[response, before], purpose=Comparison.Purpose.REWRITE)
    project = judgment.comparison.project
    (comparison,) = create_comparisons(project=project, wanted=[wanted], overlap=1)
    preferred = Judgment.objects.create(
        comparison=comparison,
        annotator_id=judgment.annotator_id,
        tiers=[[0], [1]],
        shown_order=[0, 1],
        guidelines_id=judgment.guidelines_id,
        rewrite_of=judgment,
        key=hashlib.sha256(f"rewrite:{judgment.pk}".encode()).hexdigest(),
    )
    _settle(
        _Standing(comparison=comparison, judgments=[preferred], responses=[response.pk, before.pk])
    )


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


def _check_changeable(judgment: Judgment, comparison: Comparison) -> None:
    hours = comparison.project.rejudge_hours
    if judgment.created_at + timedelta(hours=hours) <= timezone.now():
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
    return _(
        "That comparison was already dealt with, here or in another tab, or retired. "
        "Nothing was changed."
    )
