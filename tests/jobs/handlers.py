"""Handlers that only the tests know; run_worker.py brings them into a worker."""

import os
import sys
import time
from datetime import timedelta
from pathlib import Path

from jobs.models import Job, JobState
from jobs.process import run_program
from jobs.registry import handler
from jobs.run_dir import append_jsonl, read_jsonl
from jobs.running import JobFailed, RunningJob, TryAgain

ROOT = Path(__file__).resolve().parents[2]


def ended(job: Job, state: JobState, error: str) -> None:
    """Leave a trace where the payload asks for one."""
    if "ended" in job.payload:
        append_jsonl(Path(job.payload["ended"]), {"job": job.pk, "state": state, "error": error})


@handler("test.note", ended=ended)
def note(job: RunningJob) -> None:
    append_jsonl(Path(job.payload["path"]), {"job": job.id, "pid": os.getpid()})


@handler("test.program", ended=ended)
def program(job: RunningJob) -> None:
    folder = Path(job.payload["folder"])
    metrics = folder / "metrics.jsonl"

    def follow() -> None:
        steps = [row["step"] for row in read_jsonl(metrics)] if metrics.exists() else []
        job.progress(max(steps, default=0), 10)

    code = run_program(
        job,
        [sys.executable, str(ROOT / "tests/jobs/program.py"), str(folder), job.payload["does"]],
        cwd=ROOT,
        env={"PREFLOOP_GIVEN": "by the caller", "PYTHONPATH": str(ROOT)},
        on_tick=follow,
        log_path=folder / "program.log",
        silence_s=job.payload.get("silence_s", 60),
        stop_grace_s=5,
    )
    if code:
        raise JobFailed(f"The program ended with {code}.")


@handler("test.fail", ended=ended)
def fail(job: RunningJob) -> None:
    raise JobFailed("Only 3 pairs are decided; 10 are needed. Judge more comparisons first.")


@handler("test.crash", ended=ended)
def crash(job: RunningJob) -> None:
    raise KeyError("a secret detail")


@handler("test.exit", ended=ended)
def leave(job: RunningJob) -> None:
    sys.exit("a library called exit")


@handler("test.again", ended=ended)
def again(job: RunningJob) -> None:
    raise TryAgain("The server was busy.", delay=timedelta(0))


@handler("test.wait", ended=ended)
def wait(job: RunningJob) -> None:
    append_jsonl(Path(job.payload["path"]), {"job": job.id, "pid": os.getpid()})
    while True:
        job.check()
        time.sleep(0.05)


@handler("test.late", ended=ended)
def late(job: RunningJob) -> None:
    """Looks at nothing until a file is there, then writes: what a frozen worker does on waking."""
    path = Path(job.payload["path"])
    append_jsonl(path, {"attempt": job.attempt})
    while not Path(job.payload["until"]).exists():
        time.sleep(0.05)
    with job.fenced():
        append_jsonl(path, {"wrote": job.attempt})
