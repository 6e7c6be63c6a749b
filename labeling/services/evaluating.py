"""Evaluations by people, beside their ordinary work. The only writer of Evaluation rows.

After a round both policies answer held-out prompts; the pairs go into the annotators' queue among
the others, at the project's rate, and nothing tells them apart. Whoever generates listens to
`responses_wanted`; whoever judges notices nothing.
"""

from collections.abc import Sequence
from typing import Any

from django.db import IntegrityError, transaction
from django.dispatch import Signal, receiver
from django.utils import timezone
from django.utils.translation import gettext as _

from jobs.models import Schedule
from jobs.schedule import set_paused, set_schedule
from labeling.models import Comparison, Evaluation, Policy, Project, Response, Split, User
from labeling.models.evaluations import LEAST_WANTED, MOST_WANTED, WANTED
from labeling.services.comparing import NewComparison, create_comparisons, retire_unheld
from labeling.services.deleting import FilesDeleted, ensure_files
from labeling.services.promoting import policy_promoted, serving_policy
from labeling.win_rates import win_rate

KIND = "labeling.evaluation"
EVERY_MINUTE = "* * * * *"

# Sent after the commit, and again every minute while an evaluation waits.
responses_wanted = Signal()


class CannotEvaluate(Exception):
    """Why no evaluation was started; the message is for the user."""


def start_evaluation(
    *, policy: Policy, actor: User | None, wanted: int = WANTED, promote_if_better: bool = False
) -> Evaluation:
    """Put a policy and the one that serves before people, on held-out prompts.

    `wanted`: judgments, at most. CannotEvaluate where one is under way already, where the policy
    serves or is gone, or where no prompt is held out.
    """
    project = policy.project
    if not LEAST_WANTED <= wanted <= MOST_WANTED:
        limits = {"least": LEAST_WANTED, "most": MOST_WANTED}
        raise CannotEvaluate(_("Ask for %(least)s to %(most)s judgments.") % limits)
    if not project.prompts.filter(split=Split.HELD_OUT).exists():
        raise CannotEvaluate(
            _("No prompt is held out. Policies are compared on prompts that none has learned from.")
        )
    try:
        with transaction.atomic():
            evaluation = Evaluation.objects.create(
                project=project,
                policy=policy,
                against=_opponent(policy),
                wanted=wanted,
                promote_if_better=promote_if_better,
                started_by=actor,
            )
            _look_every_minute(project)
            transaction.on_commit(lambda: _want(evaluation))
    except IntegrityError:
        raise CannotEvaluate(
            _("Another policy is being evaluated. One at a time: stop that one first.")
        ) from None
    return evaluation


def _opponent(policy: Policy) -> Policy:
    """The policy that serves; the project is locked from here on. CannotEvaluate without one."""
    Project.objects.select_for_update(no_key=True).get(pk=policy.project_id)
    serving = serving_policy(policy.project)
    if serving is None or serving == policy:
        raise CannotEvaluate(
            _("%(policy)s serves already: there is nothing to compare it with.")
            % {"policy": policy.name}
        )
    policy.refresh_from_db(fields=["deleted_at"])
    try:
        ensure_files(policy)
    except FilesDeleted as reason:
        raise CannotEvaluate(str(reason)) from None
    if policy.evaluations.filter(against=serving, passed_at__isnull=False).exists():
        raise CannotEvaluate(
            _("%(policy)s has passed the gate against %(serving)s already.")
            % {"policy": policy.name, "serving": serving.name}
        )
    return serving


def _want(evaluation: Evaluation) -> None:
    responses_wanted.send(sender=Evaluation, evaluation=evaluation)


def want_again(evaluation: Evaluation) -> None:
    """Ask for responses once more, where none are written yet."""
    if evaluation.state == Evaluation.State.WAITING:
        _want(evaluation)


def note_problem(*, evaluation: Evaluation, problem: str) -> None:
    """Why there are no responses, for the page; "" once it is over."""
    waiting = Evaluation.objects.filter(pk=evaluation.pk, state=Evaluation.State.WAITING)
    waiting.exclude(problem=problem).update(problem=problem)


@transaction.atomic
def take_pairs(
    *, evaluation: Evaluation, pairs: Sequence[tuple[Response, Response]]
) -> list[Comparison]:
    """Put pairs of the two policies' responses into the queue, each to be judged once.

    Those with equal texts are counted and not compared; what is beyond the evaluation's wish is
    left out, and everything where it has ended meanwhile. One judgment a pair: more prompts tell
    more than more opinions of one.
    """
    locked = Evaluation.objects.select_for_update(of=("self",)).get(pk=evaluation.pk)
    if not locked.live:
        return []
    pairs = pairs[: locked.wanted - locked.alike - locked.comparisons.count()]
    different = [pair for pair in pairs if pair[0].text_digest != pair[1].text_digest]
    locked.alike += len(pairs) - len(different)
    locked.save(update_fields=["alike"])
    return create_comparisons(
        project=locked.project,
        wanted=[
            NewComparison(responses=pair, purpose=Comparison.Purpose.EVALUATION)
            for pair in different
        ],
        overlap=1,
        evaluation=locked,
    )


@transaction.atomic
def begin_judging(*, evaluation: Evaluation) -> None:
    """All responses are there. With nothing to compare, the evaluation ends."""
    Project.objects.select_for_update(no_key=True).get(pk=evaluation.project_id)
    locked = Evaluation.objects.select_for_update(of=("self",)).get(pk=evaluation.pk)
    if locked.state != Evaluation.State.WAITING:
        return
    locked.state, locked.problem = Evaluation.State.JUDGING, ""
    locked.save(update_fields=["state", "problem"])
    if not locked.comparisons.exists():
        _end(locked, _("The two policies said the same to every prompt: nothing to judge."))


def stop_evaluation(*, evaluation: Evaluation) -> None:
    """End an evaluation before its time; what was judged stays and counts."""
    end_evaluation(evaluation=evaluation, problem="")


@transaction.atomic
def end_evaluation(*, evaluation: Evaluation, problem: str) -> None:
    """Keep the figures as they are now and take what is unjudged out of the queue."""
    Project.objects.select_for_update(no_key=True).get(pk=evaluation.project_id)
    locked = Evaluation.objects.select_for_update(of=("self",)).get(pk=evaluation.pk)
    if locked.live:
        _end(locked, problem)


def _end(locked: Evaluation, problem: str) -> None:
    locked.state, locked.problem = Evaluation.State.ENDED, problem
    locked.result, locked.ended_at = locked.result | win_rate(locked).as_json(), timezone.now()
    locked.save(update_fields=["state", "problem", "result", "ended_at"])
    sweep(project=locked.project)


@transaction.atomic
def sweep(*, project: Project) -> None:
    """Take what ended evaluations left unjudged out of the queue; what somebody looks at stays.

    Called again every minute, until nobody does and no evaluation lives.
    """
    Project.objects.select_for_update(no_key=True).get(pk=project.pk)
    left = project.comparisons.filter(
        evaluation__state=Evaluation.State.ENDED,
        state__in=(Comparison.State.OPEN, Comparison.State.HELD),
        judged=0,
    )
    retire_unheld(left)
    if left.exists() or project.evaluations.exclude(state=Evaluation.State.ENDED).exists():
        return
    for schedule in Schedule.objects.filter(name=_schedule_name(project)):
        set_paused(schedule, paused=True)


@receiver(policy_promoted)
def end_those_of_the_past(*, policy: Policy, **_kwargs: Any) -> None:
    """Where another policy serves, an evaluation against the one before answers no question."""
    live = policy.project.evaluations.exclude(state=Evaluation.State.ENDED)
    for evaluation in live.exclude(against=policy):
        chosen = evaluation.policy_id == policy.pk
        words = _("%(policy)s came to serve meanwhile.") % {"policy": policy.name}
        end_evaluation(evaluation=evaluation, problem="" if chosen else words)


def _schedule_name(project: Project) -> str:
    return f"{KIND}:{project.pk}"


def _look_every_minute(project: Project) -> None:
    """For as long as an evaluation lives."""
    schedule = set_schedule(
        name=_schedule_name(project),
        kind=KIND,
        payload={"project": project.pk},
        lane="light",
        cron=EVERY_MINUTE,
        time_zone="UTC",
    )
    set_paused(schedule, paused=False)
