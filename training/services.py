"""Rounds: start, follow, end. The only writer of Round rows."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import count
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Max
from django.utils import timezone
from django.utils.translation import gettext as _

from jobs import queue
from jobs.run_dir import read_json
from labeling.lineage import initial_policy
from labeling.models import Policy, Project, User
from labeling.policy_files import is_small
from labeling.services.promoting import inspect_policy, register_policy, serving_policy
from training.models import LIVE_ROUND_STATES, Reference, Round, RoundState, Snapshot
from training.readiness import Problem, count_pairs, readiness
from training.snapshots import freeze

KIND = "training.round"


class NotReady(Exception):
    """A round cannot start now; `problems` say why."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(" ".join(problem.text for problem in problems))
        self.problems = problems


def default_options(policy: Policy) -> dict[str, Any]:
    """Trainer options that suit the policy's size on disk; a manager may change each.

    Small models take a large learning rate and full fine-tuning (above 1e-4 the starter policy
    loses its grammar: docs/lab-log.md); large ones repeat themselves above about 1e-6 in full
    (SimPO's notes), so they get an adapter at 1e-5.
    """
    small = is_small(Path(policy.model_path))
    return {
        "method": "full" if small else "lora",
        "beta": 0.1,
        "learning_rate": 8e-5 if small else 1e-5,
        "epochs": 2 if small else 1,
        "batch_groups": 8,
        "max_length": 1024,
        "dtype": "float32" if small else "bfloat16",
    }


def reference_cache(project: Project) -> Path:
    """Where the project's rounds keep reference log-probabilities; the trainer makes the file.

    It is a cache by content: deleted at any time, the next round fills it again.
    """
    folder: Path = settings.RUNS_DIR / "reference-logps"
    return folder / f"project-{project.pk}.sqlite3"


def start_round(
    *,
    project: Project,
    actor: User | None,
    options: dict[str, Any] | None = None,
    reference: Reference = Reference.INITIAL,
) -> Round:
    """Queue a round that starts from the serving policy. NotReady says what is in the way."""
    blocking = [p for p in readiness(project, count_pairs(project)) if p.blocks]
    start = serving_policy(project)
    if blocking or start is None:
        raise NotReady(blocking)
    held_to = initial_policy(start) if reference == Reference.INITIAL else start
    try:
        with transaction.atomic():
            round_ = Round.objects.create(
                project=project,
                number=_next_number(project),
                start=start,
                reference=held_to,
                options=default_options(start) | (options or {}),
                started_by=actor,
            )
            round_.run_dir = str(settings.RUNS_DIR / f"round-{round_.pk:06d}")
            job = queue.enqueue(kind=KIND, payload={"round": round_.pk}, lane="gpu")
            round_.job_id = job.pk
            round_.save(update_fields=["run_dir", "job_id"])
    except IntegrityError:
        text = _("Another round was started just now.")
        raise NotReady([Problem(text=text, blocks=True, live=True)]) from None
    return round_


def cancel_round(*, round_: Round) -> None:
    """Ask for the round to stop; its last checkpoint stays."""
    if round_.job_id is not None:
        queue.request_cancel(round_.job_id)


def begin(round_: Round) -> Snapshot:
    """Mark the round as running and freeze its snapshot, unless an earlier attempt did."""
    Round.objects.filter(pk=round_.pk, state=RoundState.QUEUED).update(
        state=RoundState.RUNNING, started_at=timezone.now()
    )
    if round_.snapshot is None:
        folder = settings.RUNS_DIR / "snapshots"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / f"round-{round_.pk:06d}.jsonl"
        round_.snapshot = freeze(project=round_.project, path=path)
        round_.save(update_fields=["snapshot"])
    return round_.snapshot


def note_progress(*, round_: Round, step: int, total: int) -> None:
    """The trainer's last logged step."""
    Round.objects.filter(pk=round_.pk, state=RoundState.RUNNING).update(
        step=step, total_steps=total
    )


def end_round(*, round_: Round, state: RoundState, error: str = "") -> None:
    """Bring a live round to an end that is not success."""
    Round.objects.filter(pk=round_.pk, state__in=LIVE_ROUND_STATES).update(
        state=state, error=error, finished_at=timezone.now()
    )


def take_in(*, round_: Round, fenced: Callable[[], AbstractContextManager[None]]) -> None:
    """Register the policy a round made, and its figures, in one `fenced` transaction; once only."""
    run_dir = Path(round_.run_dir)
    manifest = read_json(run_dir / "manifest.json")
    adapter = (run_dir / "policy" / "adapter_config.json").exists()
    model_path = Path(round_.start.model_path) if adapter else run_dir / "policy"
    adapter_path = run_dir / "policy" if adapter else None
    digest = inspect_policy(model_path, adapter_path)
    with fenced():
        round_ = Round.objects.select_for_update().get(pk=round_.pk)
        if not round_.live:
            return
        round_.policy = register_policy(
            project=round_.project,
            name=_free_name(round_),
            model_path=model_path,
            adapter_path=adapter_path,
            digest=digest,
            parent=round_.start,
            actor=round_.started_by,
        )
        round_.results = manifest["results"]
        round_.state = RoundState.SUCCEEDED
        round_.finished_at = timezone.now()
        round_.save(update_fields=["policy", "results", "state", "finished_at"])


def _free_name(round_: Round) -> str:
    """ "Round 3", or "Round 3 (2)" where a manager gave that name to a model of their own."""
    taken = set(round_.project.policies.values_list("name", flat=True))
    names = (f"Round {round_.number}" + (f" ({n})" if n > 1 else "") for n in count(1))
    return next(name for name in names if name not in taken)


def _next_number(project: Project) -> int:
    Project.objects.select_for_update(no_key=True).get(pk=project.pk)
    return (project.rounds.aggregate(last=Max("number"))["last"] or 0) + 1
