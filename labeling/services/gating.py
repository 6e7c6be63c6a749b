"""Evidence turned into service: the gate that a policy passes, and what follows by itself."""

from django.db import transaction
from django.urls import reverse
from django.utils import timezone

from labeling.models import Comparison, Evaluation, Event, PolicyState, Project
from labeling.services.evaluating import end_evaluation, want_again
from labeling.services.notifying import notify
from labeling.services.promoting import promote
from labeling.win_rates import WinRate, gate_words, passes_gate, win_rate

HALF = 0.5


def look(evaluation: Evaluation) -> None:
    """See how an evaluation stands, and do what is due. May be called at any time, and often.

    The policy passes the gate as soon as the lower bound of its win rate exceeds the project's
    gate: the bound holds at all moments together, so looking often takes nothing from it. Then it
    is promoted, where that was asked for. The evaluation ends when all is judged, or when the
    policy is seen to be the worse one.
    """
    want_again(evaluation)
    with transaction.atomic():
        Project.objects.select_for_update(no_key=True).get(pk=evaluation.project_id)
        locked = Evaluation.objects.select_for_update(of=("self",)).get(pk=evaluation.pk)
        if locked.live and locked.against.state != PolicyState.SERVING:
            end_evaluation(evaluation=locked, problem="")  # whoever promoted was cut off after it
            return
        if locked.state != Evaluation.State.JUDGING:
            return
        rate = win_rate(locked)
        if not locked.passed_at and passes_gate(locked, rate):
            locked.passed_at = timezone.now()
            locked.result = {"passed_with": gate_words(rate)}
            locked.save(update_fields=["passed_at", "result"])
            _tell(locked, rate)
        if locked.passed_at and locked.promote_if_better:
            promote(policy=locked.policy, actor=None)
        elif rate.interval[1] < HALF or not _still_open(locked):
            end_evaluation(evaluation=locked, problem="")


def _tell(evaluation: Evaluation, rate: WinRate) -> None:
    project = evaluation.project
    notify(
        project=project,
        event=Event.GATE_PASSED,
        facts={
            "policy": evaluation.policy.name,
            "against": evaluation.against.name,
            "judgments": rate.tally.number,
            "win_rate": round(rate.rate, 4),
            "low": round(rate.interval[0], 4),
            "high": round(rate.interval[1], 4),
        },
        url=reverse("labeling:evaluation", args=[project.slug, evaluation.pk]),
    )


def _still_open(evaluation: Evaluation) -> bool:
    waiting = (Comparison.State.OPEN, Comparison.State.HELD)
    return evaluation.comparisons.filter(state__in=waiting).exists()
