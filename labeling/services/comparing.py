"""Responses to comparisons. The only writer of Comparison rows and their slots."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from django.db import transaction
from django.db.models import QuerySet

from labeling.models import Comparison, Evaluation, Lease, Policy, Project, Response, Slot

CHUNK = 500  # rows of one statement


class CannotCompare(ValueError):
    """Responses that make no comparison: too few, of several prompts, or with equal texts."""


@dataclass(frozen=True, kw_only=True)
class NewComparison:
    """Responses to be put side by side; their order is the order of the slots."""

    responses: Sequence[Response]
    purpose: Comparison.Purpose = Comparison.Purpose.STANDARD
    priority: int = 0
    pairing: str = ""


@transaction.atomic
def create_comparisons(
    *,
    project: Project,
    wanted: Collection[NewComparison],
    overlap: int | None = None,
    retired: bool = False,
    evaluation: Evaluation | None = None,
) -> list[Comparison]:
    """Make comparisons, each wanting `overlap` judgments (default: the project's).

    `retired`: of a policy that has been replaced; `reopen_retired` opens them if it serves again.
    `evaluation`: what they are for, if that is to compare two policies.
    CannotCompare, with nothing written, where one of them is none.
    """
    for one in wanted:
        _check(one.responses)
    comparisons = Comparison.objects.bulk_create(
        [
            Comparison(
                project=project,
                prompt_id=one.responses[0].prompt_id,
                purpose=one.purpose,
                priority=one.priority,
                pairing=one.pairing,
                state=Comparison.State.RETIRED if retired else Comparison.State.OPEN,
                overlap=overlap or project.overlap,
                evaluation=evaluation,
            )
            for one in wanted
        ],
        batch_size=500,
    )
    Slot.objects.bulk_create(
        [
            Slot(comparison=comparison, index=index, response=response)
            for comparison, one in zip(comparisons, wanted, strict=True)
            for index, response in enumerate(one.responses)
        ],
        batch_size=1000,
    )
    return comparisons


def _check(responses: Sequence[Response]) -> None:
    if len(responses) < 2:
        raise CannotCompare("a comparison needs at least two responses")
    if len({response.prompt_id for response in responses}) > 1:
        raise CannotCompare("a comparison's responses must answer one prompt")
    if len({response.text_digest for response in responses}) < len(responses):
        raise CannotCompare("identical responses are never compared with each other")


def retire_unjudged(*, project: Project, keep_policy: int | None) -> int:
    """Retire what is open, nobody has judged and other policies alone have written.

    What a replaced policy wrote tells little about its successor; judged comparisons stay.
    Returns how many were retired. `keep_policy` is the id of the policy that serves now.
    """
    stale = Comparison.objects.filter(
        project=project,
        state=Comparison.State.OPEN,
        purpose=Comparison.Purpose.STANDARD,
        judged=0,
        slots__response__policy__isnull=False,
    ).exclude(slots__response__policy=keep_policy)
    return retire_unheld(Comparison.objects.filter(pk__in=stale.values("pk")))


def retire_unheld(comparisons: QuerySet[Comparison]) -> int:
    """Retire those of the comparisons that nobody has judged or holds; how many.

    The rows are locked first, and leases looked for in a second statement: PostgreSQL, having
    waited for a row, looks at nothing but that row again, and would not see the lease of somebody
    who was taking it just then.
    """
    locked = list(comparisons.select_for_update(of=("self",)).values_list("pk", flat=True))
    retired = 0
    for start in range(0, len(locked), CHUNK):
        chunk = locked[start : start + CHUNK]
        unjudged = Comparison.objects.filter(
            pk__in=chunk, judged=0, state__in=(Comparison.State.OPEN, Comparison.State.HELD)
        )
        held = Lease.objects.live().filter(comparison__in=chunk).values("comparison")
        retired += unjudged.exclude(pk__in=held).update(state=Comparison.State.RETIRED)
    return retired


def reopen_retired(*, policy: Policy) -> int:
    """Open again what was retired unjudged when this policy was replaced, or made retired after.

    Returns how many.
    """
    return Comparison.objects.filter(
        pk__in=Slot.objects.filter(response__policy=policy).values("comparison"),
        state=Comparison.State.RETIRED,
        purpose=Comparison.Purpose.STANDARD,
        judged=0,
        withdrawn=False,
    ).update(state=Comparison.State.OPEN)
