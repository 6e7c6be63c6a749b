"""Plans: comparisons kept ready, and what a promotion sets off. The only writer of Plan rows."""

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import F, QuerySet
from django.utils import timezone, translation
from django.utils.translation import gettext_noop

from generation.lineage import by_word
from generation.models import AUTOMATIC, LIVE_BATCH_STATES, MOST_READY, Batch, BatchState, Plan
from generation.pairing import BEST_OF_N
from generation.selecting import Selection, least_answered
from generation.services import BatchLive, CannotGenerate, start_batch
from jobs.models import Schedule
from jobs.schedule import set_paused, set_schedule
from labeling.models import Comparison, Evaluation, Policy, Project, User
from labeling.services.evaluating import want_again
from labeling.services.promoting import serving_policy

KIND = "generation.top_up"
EVERY_MINUTE = "* * * * *"
IN_VAIN = 3  # batches in a row without a comparison; then another one is not worth its time
NOTHING_NEW = gettext_noop(
    "The last three batches brought nothing new to compare: the policy repeats itself, or its "
    "prompts fail."
)
NOTHING_LEFT = gettext_noop(
    "No prompt is left that could bring something new to compare: each failed, or its responses "
    "were all alike."
)


def last_asked(project: Project) -> Batch | None:
    """The last batch that wrote candidates: an evaluation's samples as many as it needs."""
    return project.batches.filter(evaluation=None).order_by("-number").first()


def plan_of(project: Project) -> Plan:
    """The project's plan; where nobody has saved one, one that is off, not saved.

    It then samples as the project's last batch did.
    """
    found = Plan.objects.filter(project=project).first()
    if found is not None:
        return found
    last = last_asked(project)
    return Plan(project=project, **(last.sampling if last else {}))


def save_plan(
    *,
    project: Project,
    actor: User | None,
    ready: int,
    weights: Mapping[str, int],
    **sampling: Any,
) -> Plan:
    """Keep this many comparisons ready from now on, 0 for none; what had stopped it is forgotten.

    `weights` go by the words of `generation.lineage`, `sampling` is the rest of what `start_batch`
    takes. CannotGenerate where something asked for cannot be.
    """
    values = {"ready": ready, **weights, **sampling}
    plan = Plan(project=project, **values)
    try:
        plan.clean_fields({field.name for field in Plan._meta.fields} - {*values})
    except ValidationError as error:
        raise CannotGenerate(error.message_dict) from None
    kept = {"saved_by": actor, "since": timezone.now(), "stopped": "", "stopped_at": ""}
    with transaction.atomic():
        plan, _ = Plan.objects.update_or_create(project=project, defaults=values | kept)
        _schedule(plan)
    return plan


def _schedule(plan: Plan) -> None:
    """Have the worker look every minute, for as long as something is to be kept ready."""
    name = f"{KIND}:{plan.project_id}"
    if not plan.ready and not Schedule.objects.filter(name=name).exists():
        return
    schedule = set_schedule(
        name=name,
        kind=KIND,
        payload={"project": plan.project_id},
        lane="light",
        cron=EVERY_MINUTE,
        time_zone="UTC",
    )
    set_paused(schedule, paused=not plan.ready)


def ready_now(project: Project) -> int:
    """Standard comparisons that still want judgments; not counted beyond what a plan can ask."""
    waiting = project.comparisons.filter(
        state=Comparison.State.OPEN,
        purpose=Comparison.Purpose.STANDARD,
        judged__lt=F("overlap"),
    )
    return waiting[: MOST_READY + 1].count()


def top_up(
    *, project: Project, origin: Batch.Origin = Batch.Origin.TOP_UP, actor: User | None = None
) -> Batch | None:
    """Start a batch of as many prompts as are needed to have the plan's comparisons ready again.

    None where enough are ready, a batch is live, or batches bring nothing: then the plan says why
    it stopped, and goes on once something has changed. Cheap where nothing is to be done.
    """
    plan = Plan.objects.filter(project=project, ready__gt=0).first()
    serving = serving_policy(project)
    if plan is None or serving is None:
        return None
    missing = plan.ready - ready_now(project)
    if missing <= 0 or project.batches.filter(state__in=LIVE_BATCH_STATES).exists():
        return None
    circumstances = _circumstances(project, serving)
    if plan.stopped:
        if plan.stopped_at == circumstances:
            return None
        _go_on(plan)
    if project.evaluations.filter(state=Evaluation.State.WAITING).exists():
        return None  # its responses come first: people wait to know which policy is better
    try:
        with translation.override(settings.LANGUAGE_CODE):  # what is kept is for all to read
            return _start(plan, serving, missing, origin, actor)
    except BatchLive:
        return None
    except CannotGenerate as reason:
        plan.stopped, plan.stopped_at = str(reason), circumstances
        plan.save(update_fields=["stopped", "stopped_at"])
        return None


def _start(
    plan: Plan, serving: Policy, missing: int, origin: Batch.Origin, actor: User | None
) -> Batch:
    before = plan.project.batches.filter(
        origin__in=AUTOMATIC, leading=serving, created_at__gte=plan.since
    )
    if reason := _in_vain(before):
        raise CannotGenerate({"": [reason]})
    fruitless = {pk for barren in before.values_list("barren", flat=True) for pk in barren}
    needed = math.ceil(missing / comparisons_per_prompt(plan))
    prompts = least_answered(serving, number=needed, without=fruitless)
    if not prompts:
        raise CannotGenerate({"": [NOTHING_LEFT]})
    return start_batch(
        project=plan.project,
        policies=by_word(plan.project, plan.weights),
        actor=actor,
        origin=origin,
        selection=Selection(ids=tuple(prompts)),
        **plan.sampling,
    )


def _in_vain(before: QuerySet[Batch]) -> str:
    """Why one more batch like those before would bring nothing; "" where it may."""
    last = list(before.order_by("-number").defer("barren")[:IN_VAIN])
    if not last:
        return ""
    if last[0].state == BatchState.FAILED:
        return f"{last[0]} failed: {(last[0].error.strip().splitlines() or ['no reason given'])[0]}"
    if last[0].state == BatchState.CANCELLED:
        return f"{last[0]} was cancelled."
    return NOTHING_NEW if len(last) == IN_VAIN and not any(b.comparisons for b in last) else ""


def comparisons_per_prompt(plan: Plan) -> int:
    """How many comparisons a prompt's responses make where all of them differ."""
    if plan.pairing == BEST_OF_N:
        return 1
    whole, rest = divmod(plan.k, plan.project.comparison_size)
    return max(1, whole + (rest >= 2))


def _circumstances(project: Project, serving: Policy) -> str:
    """What a stopped plan waits for: another policy, more prompts, a batch that succeeds.

    That is one of somebody's own, or one of the plan's that somebody let go on.
    """
    succeeded = project.batches.filter(state=BatchState.SUCCEEDED).count()
    return f"{serving.pk} {project.prompts.count()} {succeeded} {project.comparison_size}"


def _go_on(plan: Plan) -> None:
    """Batches until now say nothing any more."""
    plan.since, plan.stopped, plan.stopped_at = timezone.now(), "", ""
    plan.save(update_fields=["since", "stopped", "stopped_at"])


def write_candidates(*, project: Project, actor: User | None) -> Batch | None:
    """Have the policy that serves now write what the one before it no longer does.

    With a plan, as much as that keeps ready; else it answers every prompt that it has not, sampled
    as the project's last batch was. CannotGenerate where there is nothing to answer.
    """
    plan = plan_of(project)
    if plan.ready:
        _go_on(plan)  # what stopped it, and what was cancelled, was the other policy's
        return top_up(project=project, origin=Batch.Origin.PROMOTION, actor=actor)
    return start_batch(
        project=project,
        policies=by_word(project, plan.weights),
        actor=actor,
        origin=Batch.Origin.PROMOTION,
        **plan.sampling,
    )


def follow_up(*, batch: Batch) -> None:
    """Where another policy came to serve while this batch was live, have that one write."""
    serving = serving_policy(batch.project)
    if serving is not None and serving != batch.leading:
        with suppress(CannotGenerate):
            write_candidates(project=batch.project, actor=None)


def carry_on(batch: Batch) -> None:
    """What comes after a batch that succeeded.

    An evaluation's judgments, or its responses; another policy's candidates; or more to keep
    enough ready.
    """
    for evaluation in batch.project.evaluations.filter(state=Evaluation.State.WAITING):
        want_again(evaluation)
    follow_up(batch=batch)
    top_up(project=batch.project)
