"""Rounds as they come about, and what a trainer leaves in their run directories."""

import json
from pathlib import Path
from typing import Any

from django.urls import reverse
from django.utils import timezone

from jobs.run_dir import append_event
from labeling.models import Project
from training.models import Round, RoundState

OPTIONS = {
    "reference": "initial",
    "method": "full",
    "beta": "0.2",
    "learning_rate": "3e-4",
    "epochs": "1",
    "batch_groups": "8",
    "max_length": "512",
    "labels": "votes",
    "dtype": "float32",
}
RESULTS = {
    "loss_step0": 0.693147,
    "held_out_before": {"accuracy": 0.5, "loss": 0.6931, "margin": 0.0, "kl": 0.0, "pairs": 40},
    "held_out_after": {"accuracy": 0.8, "loss": 0.5, "margin": 1.2, "kl": 2.0, "pairs": 40},
    "steps": 20,
}
SAMPLES = {"prompts": 16, "tokens": 40.0, "tokens_p95": 90, "ended": 1.0, "repetition": 0.01}
REPORT = {
    "groups": {"train": 30, "held_out": 6},
    "pairs": {"train": 1980, "held_out": 110},
    "responses": {"train": 95, "held_out": 20},
    "evenly_split": 4,
    "tied": 31,
    "tie_nu": 1.2704,
    "dropped": {"tied": 12, "too_long": 3},
    "dropped_examples": {"tied": [], "too_long": []},
    "shortened": 2,
    "shortened_examples": [],
    "token_ids": {"sampled": 100, "cut": 3, "encoded": 12},
    "lengths": {"chosen": 36.4, "rejected": 40.6, "prompt": 15.5, "longest": 1020},
    "longest": 1020,
    "template_errors": [],
}


def new_round(project: Project) -> str:
    """Address of the form."""
    return reverse("training:new_round", args=[project.slug])


def page_of(round_: Round) -> str:
    """Address of a round's page."""
    return reverse("training:round", args=[round_.project.slug, round_.number])


def make_round(
    project: Project, state: RoundState, run_dir: Path | None = None, **more: Any
) -> Round:
    """A round of the project's first policy; ended now where its state says so."""
    policy = project.policies.order_by("id")[0]
    return Round.objects.create(
        project=project,
        number=project.rounds.count() + 1,
        start=policy,
        reference=policy,
        state=state,
        run_dir=str(run_dir or "/nowhere"),
        started_at=timezone.now(),
        finished_at=None if state in (RoundState.QUEUED, RoundState.RUNNING) else timezone.now(),
        **more,
    )


def log_steps(run_dir: Path, number: int, total: int) -> None:
    """What the trainer logs in so many steps."""
    rows = [
        {"step": step, "total": total, "loss": 0.6, "accuracy": 0.7, "seconds": step * 2.0}
        for step in range(1, number + 1)
    ]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def log_samples(run_dir: Path, when: str, *texts: tuple[str, str], **figures: float) -> None:
    """The trainer's answers to held-out prompts: prompts with responses."""
    told = [{"prompt": prompt, "response": response} for prompt, response in texts]
    append_event(run_dir, "samples", when=when, metrics=SAMPLES | figures, texts=told)
