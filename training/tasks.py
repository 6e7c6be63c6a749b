"""What the worker does for a round: freeze the preferences, run the trainer, take in the policy."""

import json
from pathlib import Path
from typing import Any

from django.conf import settings

from jobs.models import Job, JobState
from jobs.outcome import failure_words
from jobs.process import run_program
from jobs.registry import handler
from jobs.run_dir import EXIT_DONE, EXIT_STOPPED, last_line
from jobs.running import JobFailed, RunningJob, TryAgain
from labeling.models import Policy
from training import services
from training.models import Round, RoundState

SILENCE_S = 30 * 60.0
ADVICE = (
    "Take fewer groups a batch, a shorter maximum length, or LoRA, and start a round again; "
    "the judgments are all kept."
)


def _ended(job: Job, state: JobState, error: str) -> None:
    round_ = Round.objects.get(pk=job.payload["round"])
    services.end_round(round_=round_, state=RoundState(state), error=error)


@handler(services.KIND, ended=_ended)
def run_round(job: RunningJob) -> None:
    """Idempotent: a rerun goes on from the last complete checkpoint."""
    round_ = Round.objects.select_related("project", "start", "reference", "snapshot").get(
        pk=job.payload["round"]
    )
    if not round_.live:
        return
    snapshot = services.begin(round_)
    run_dir = Path(round_.run_dir)
    if not run_dir.exists():  # `init` leaves it complete or absent
        _run(job, round_, init_arguments(round_, Path(snapshot.path)), _log_folder(run_dir))
    _run(job, round_, ["run", str(run_dir)], run_dir)
    job.check()
    services.take_in(round_=round_, fenced=job.fenced)


def _log_folder(run_dir: Path) -> Path:
    """Where `init` logs, before there is a run directory."""
    folder = run_dir.with_name(f"{run_dir.name}.init")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def init_arguments(round_: Round, preferences: Path) -> list[str]:
    """Arguments of `python -m training.trainer` that make the round's run directory."""
    start = round_.start
    arguments = ["init", round_.run_dir, "--policy", start.model_path]
    if start.adapter_path:
        arguments += ["--adapter", start.adapter_path]
    arguments += ["--preferences", str(preferences), "--set"]
    chosen = sorted(trainer_settings(round_).items())
    return arguments + [f"{name}={json.dumps(value)}" for name, value in chosen]


def trainer_settings(round_: Round) -> dict[str, Any]:
    """The round's options, and what its manager does not choose, by the keys of the spec.

    An option without a value is left to the trainer's default.
    """
    chosen = {name: value for name, value in round_.options.items() if value is not None}
    chosen["reference_cache"] = str(services.reference_cache(round_.project))
    if round_.reference != round_.start:
        chosen["reference"] = policy_folders(round_.reference)
    return chosen


def policy_folders(policy: Policy) -> dict[str, str | None]:
    """A policy as the programs name it."""
    return {"model": policy.model_path, "adapter": policy.adapter_path or None}


def _run(job: RunningJob, round_: Round, arguments: list[str], log_folder: Path) -> None:
    """Run the trainer with these arguments; raises unless it did all it was asked."""
    run_dir = Path(round_.run_dir)

    def follow() -> None:
        line = last_line(run_dir / "metrics.jsonl")
        step, total = int(line.get("step", 0)), int(line.get("total", 0))
        if total:
            job.progress(step, total, "training")
            services.note_progress(round_=round_, step=step, total=total)

    code = run_program(
        job,
        [settings.TRAINER_PYTHON, "-m", "training.trainer", *arguments],
        cwd=settings.BASE_DIR,
        env={},
        on_tick=follow,
        log_path=log_folder / "program.log",
        silence_s=SILENCE_S,
    )
    if code == EXIT_STOPPED:
        raise TryAgain("The trainer was stopped from outside.")
    if code != EXIT_DONE:
        raise JobFailed(failure_words(log_folder, code, advice=ADVICE))
