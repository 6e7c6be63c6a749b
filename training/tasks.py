"""What the worker does for a round: freeze the preferences, run the trainer, take in the policy."""

import errno
import signal
from pathlib import Path

from django.conf import settings

from jobs.models import Job, JobState
from jobs.outcome import failure_words
from jobs.process import run_program
from jobs.registry import handler
from jobs.run_dir import EXIT_DONE, EXIT_OUT_OF_MEMORY, EXIT_STOPPED, last_line
from jobs.running import JobFailed, RunningJob, TryAgain
from training import (
    policy_tasks,  # noqa: F401  registers its handlers
    schedule_tasks,  # noqa: F401  registers its handler
    services,
)
from training.models import Round, RoundState
from training.spec import init_arguments

SILENCE_S = 30 * 60.0
ADVICE = (
    "Take fewer groups a batch, a shorter maximum length, or LoRA, and start a round again; "
    "the judgments are all kept."
)
RAN_OUT = (EXIT_OUT_OF_MEMORY, -signal.SIGKILL)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, a quota, a limit on one file
NO_ROOM_LEFT = (
    "The disk is full, or a limit on files is reached: {error}. The judgments are all kept, and so "
    "are checkpoints that were complete; free space and let the round go on."
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
        services.follow_up(round_=round_)  # an earlier attempt was cut off before it
        return
    try:
        _train(job, round_)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise JobFailed(NO_ROOM_LEFT.format(error=error.strerror)) from error
    job.check()
    services.take_in(round_=round_, fenced=job.fenced)


def _train(job: RunningJob, round_: Round) -> None:
    snapshot = services.begin(round_)
    run_dir = Path(round_.run_dir)
    if not run_dir.exists():  # `init` leaves it complete or absent
        _run(job, round_, init_arguments(round_, Path(snapshot.path)), _log_folder(run_dir))
    _run(job, round_, ["run", str(run_dir)], run_dir)


def _log_folder(run_dir: Path) -> Path:
    """Where `init` logs, before there is a run directory."""
    folder = run_dir.with_name(f"{run_dir.name}.init")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


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
        words = failure_words(log_folder, code, advice=ADVICE)
        peak = _peak(run_dir, code)
        raise JobFailed(f"{words.rstrip('.')}. {peak}" if peak else words)


def _peak(run_dir: Path, code: int) -> str:
    """Where memory ran out, how much the trainer had used by its last logged step."""
    used = last_line(run_dir / "metrics.jsonl").get("memory_mb")
    if code not in RAN_OUT or not isinstance(used, (int, float)):
        return ""
    return f"By its last logged step it had used {used:.0f} MiB."
