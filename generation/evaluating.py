"""Responses for evaluations: both policies answer held-out prompts, alike in everything else."""

import math
import random
from typing import Any

from django.dispatch import receiver
from django.utils.translation import gettext as _

from generation.models import Batch, BatchState
from generation.plans import plan_of
from generation.selecting import Selection
from generation.services import BatchLive, CannotGenerate, start_batch
from labeling.models import Evaluation, Split
from labeling.services.evaluating import begin_judging, note_problem, responses_wanted

MOST_PAIRS = 8  # of one prompt, where few are held out: a batch samples at most 16 responses
FAILED = (BatchState.FAILED, BatchState.CANCELLED)


@receiver(responses_wanted)
def write_responses(*, evaluation: Evaluation, **_kwargs: Any) -> None:
    """Start the evaluation's batch, or note what it waits for. May be called again and again."""
    batch = evaluation.batches.order_by("-number").first()
    if batch is None:
        _start(evaluation)
    elif batch.state == BatchState.SUCCEEDED:
        begin_judging(evaluation=evaluation)
    elif batch.state in FAILED:
        words = _("%(batch)s has not written them all: let it go on, or stop the evaluation.")
        note_problem(evaluation=evaluation, problem=words % {"batch": batch})


def _start(evaluation: Evaluation) -> None:
    try:
        start_batch(
            project=evaluation.project,
            policies={evaluation.policy: 1, evaluation.against: 1},
            actor=evaluation.started_by,
            origin=Batch.Origin.EVALUATION,
            evaluation=evaluation,
            **_asked(evaluation),
        )
    except BatchLive:
        words = _("Another batch is being written; the responses come after it.")
        note_problem(evaluation=evaluation, problem=words)
    except CannotGenerate as reason:
        note_problem(evaluation=evaluation, problem=str(reason))
    else:
        note_problem(evaluation=evaluation, problem="")


def _asked(evaluation: Evaluation) -> dict[str, Any]:
    """Prompts by chance, and the responses of each, sampled as candidates are.

    As many prompts as there may be judgments, each with one pair; several pairs of each where
    fewer are held out.
    """
    held_out = evaluation.project.prompts.filter(split=Split.HELD_OUT)
    ids = list(held_out.order_by("id").values_list("pk", flat=True))
    pairs = min(MOST_PAIRS, math.ceil(evaluation.wanted / max(1, len(ids))))
    number = min(len(ids), math.ceil(evaluation.wanted / pairs))
    chosen = random.Random(f"evaluation:{evaluation.pk}").sample(ids, number)
    sampling = plan_of(evaluation.project).sampling | {"k": 2 * pairs}
    return {**sampling, "selection": Selection(ids=tuple(sorted(chosen)))}
