"""Real worker processes on the test's database, and ways to look at them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from jobs import queue
from jobs.models import Job, JobState
from jobs.run_dir import read_jsonl
from tests.jobs import handlers  # noqa: F401  (this process ends jobs too)


def eventually(holds: Callable[[], Any], what: str, seconds: float = 20) -> Any:
    """The first true value of `holds`; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := holds():
            return value
        time.sleep(0.05)
    return pytest.fail(f"not within {seconds} s: {what}")


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(job: Job, state: JobState, seconds: float = 20) -> Job:
    """The job, once it is in `state`."""

    def reached() -> bool:
        job.refresh_from_db()
        return job.state == state

    eventually(reached, f"{job} {state} (it is {job.state}: {job.error})", seconds)
    return job


class RunDir:
    """A run directory of program.py."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()

    def enqueue(self, does: str, **payload: Any) -> Job:
        wanted = {"folder": str(self.path), "does": does, **payload}
        return queue.enqueue(kind="test.program", payload=wanted, lane="gpu")

    def pids(self, kind: str = "start") -> list[int]:
        events = self.path / "events.jsonl"
        if not events.exists():
            return []
        return [row["pid"] for row in read_jsonl(events) if row["kind"] == kind]

    def started(self, times: int = 1) -> int:
        """Process id of the program, once it has been started `times` times."""
        eventually(lambda: len(self.pids()) >= times, f"start number {times} of the program")
        return self.pids()[times - 1]

    def finish(self) -> None:
        """Let the program end well."""
        (self.path / "finish").touch()


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run")


class Workers:
    """Worker processes, each leading a process group as it would under a terminal."""

    def __init__(self, env: dict[str, str], log: Path) -> None:
        self.env = env
        self.log = log
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, *args: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            worker = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("run_worker.py")), *args],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.started.append(worker)
        return worker

    def kill(self) -> None:
        for worker in self.started:
            with suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait(10)


@pytest.fixture
def workers(site_env: dict[str, str], tmp_path: Path) -> Iterator[Workers]:
    secrets = {
        "PREFLOOP_SECRET_KEY": "canary-site-secret-key-that-is-long-enough-for-django-to-take-it",
        "AWS_SESSION_TOKEN": "canary-token",
        "CUDA_API_TOKEN": "canary-token",
        "PGPASSWORD": "canary-password",
        "SOMETHING_ELSE": "canary-other",
    }
    started = Workers(site_env | secrets, tmp_path / "workers.log")
    yield started
    started.kill()
    print(started.log.read_text() if started.log.exists() else "no worker was started")
