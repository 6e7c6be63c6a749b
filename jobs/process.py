"""Programs that do a job's heavy work, each in a process session of its own.

Promises: whatever happens to the job or to this worker, no process of the program outlives it for
long; the program sees no secret of the site; one program at a time works in a run directory.
"""

import fcntl
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

from django.db import InterfaceError, OperationalError, close_old_connections

from jobs.run_dir import EXIT_DONE, EXIT_STOPPED
from jobs.running import Cancelled, JobFailed, RunningJob, TryAgain, WorkerStopping

logger = logging.getLogger("jobs")

POLL_S = 0.2
TICK_S = 1.0
STOP_GRACE_S = 25.0  # from "stop" to SIGKILL; with the rest of a worker's stop, under 30 s
CANCEL_GRACE_S = 8.0  # people wait for a cancellation; nothing after the last checkpoint is needed
LOCK_WAIT_S = 30.0

INHERITED = {"PATH", "HOME", "LANG", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH"}
INHERITED_PREFIXES = ("LC_", "CUDA_", "OMP_", "GOMP_")
# Threads that wait by spinning halve the speed of a program that shares its cores with the site.
PATIENT = {"GOMP_SPINCOUNT": "2000"}
SECRET_WORDS = {"SECRET", "DATABASE", "TOKEN", "PASSWORD"}

_live: set[int] = set()  # process groups of the programs that run now


class ProgramSilent(JobFailed):
    """The program wrote nothing for too long and was stopped."""


def run_program(
    job: RunningJob,
    argv: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    on_tick: Callable[[], None],
    log_path: Path,
    silence_s: float,
    stop_grace_s: float = STOP_GRACE_S,
) -> int:
    """Run a program on the run directory that holds `log_path`; returns its exit code.

    `on_tick` is called each second, and once more when the program has ended. What the program
    prints is appended to `log_path`. Its standard input stays open for as long as this worker
    lives (see run_dir.stop_on_orphaned).

    Raises Cancelled, WorkerStopping, LeaseLost; ProgramSilent when no file of the run directory
    changed for `silence_s` seconds; TryAgain when an earlier run there will not end. The program,
    with every process in its group, has ended when this returns or raises.
    """
    job.check()
    with _started(argv, cwd=cwd, env=program_environment(env), log_path=log_path) as program:
        return _follow(job, program, on_tick, _Silence(log_path.parent, silence_s), stop_grace_s)


def program_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The few variables that a program inherits, and the caller's own; never a secret."""
    refused = [name for name in extra if _secret(name)]
    if refused:
        raise ValueError(f"a program's environment must not hold {', '.join(refused)}")
    inherited = {
        name: value
        for name, value in os.environ.items()
        if (name in INHERITED or name.startswith(INHERITED_PREFIXES)) and not _secret(name)
    }
    ours = {"HF_HUB_OFFLINE": "1", "PREFLOOP_WATCH_STDIN": "1", "PYTHONUNBUFFERED": "1"}
    return PATIENT | inherited | ours | dict(extra)


def kill_programs() -> None:
    """Kill whatever runs, at once: the worker itself is about to go."""
    for group in tuple(_live):
        _signal_group(group, signal.SIGKILL)


def _secret(name: str) -> bool:
    return not SECRET_WORDS.isdisjoint(name.upper().split("_"))


def _follow(
    job: RunningJob,
    program: subprocess.Popen[bytes],
    on_tick: Callable[[], None],
    silence: "_Silence",
    stop_grace_s: float,
) -> int:
    next_tick = time.monotonic()
    while not _ended(program, POLL_S):
        try:
            job.check()
        except Cancelled:
            _stop(job, program, CANCEL_GRACE_S)
            _tick(on_tick)
            raise
        except WorkerStopping:
            if _stop(job, program, stop_grace_s) == EXIT_DONE:
                break  # it was just done: no need to run it again
            _tick(on_tick)
            raise
        if silence.lasts():
            _stop(job, program, stop_grace_s)
            raise ProgramSilent(silence.words())
        if time.monotonic() >= next_tick:
            _tick(on_tick)
            next_tick = time.monotonic() + TICK_S
    _tick(on_tick)
    if program.returncode in (EXIT_STOPPED, -signal.SIGTERM):
        # systemd signals every process of a service: the program may have heard before we did.
        job.wait_for_stop(2.0)
        job.check()
    return program.returncode


def _tick(on_tick: Callable[[], None]) -> None:
    """Call `on_tick`; a database that is away for a moment must not end hours of training."""
    try:
        on_tick()
    except (OperationalError, InterfaceError):
        logger.warning("could not take in a program's progress", exc_info=True)
        close_old_connections()


def _stop(job: RunningJob, program: subprocess.Popen[bytes], grace_s: float) -> int | None:
    """SIGTERM, and time to write a checkpoint; the caller's way out kills what is left."""
    _signal_group(program.pid, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while not _ended(program, POLL_S):
        if job.lost or time.monotonic() > deadline:
            return None
    return program.returncode


def _ended(program: subprocess.Popen[bytes], seconds: float) -> bool:
    with suppress(subprocess.TimeoutExpired):
        program.wait(seconds)
    return program.returncode is not None


def _signal_group(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):  # macOS: EPERM for a group of zombies
        os.killpg(group, number)


@contextmanager
def _started(
    argv: Sequence[str], *, cwd: Path, env: dict[str, str], log_path: Path
) -> Iterator[subprocess.Popen[bytes]]:
    lock = _lock(log_path.parent / "program.lock")
    try:
        log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            program = subprocess.Popen(
                list(argv),
                cwd=cwd,
                env=env,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[lock],
            )
        except OSError as error:
            raise JobFailed(
                f"{argv[0]} could not be started: {error.strerror}. Nothing was changed; whoever "
                "runs this installation must correct the setting that names it."
            ) from error
        finally:
            os.close(log)
    finally:
        os.close(lock)  # from here on the program alone holds it
    _live.add(program.pid)
    try:
        _prefer_for_the_oom_killer(program.pid)
        yield program
    finally:
        _signal_group(program.pid, signal.SIGKILL)  # the program, or what it left behind
        program.wait()
        _live.discard(program.pid)
        if program.stdin is not None:
            program.stdin.close()


def _prefer_for_the_oom_killer(pid: int) -> None:
    """When memory runs out, let the kernel take the program and not the site or its database."""
    with suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text("1000")


def _lock(path: Path) -> int:
    """Lock a run directory for one program; returns the descriptor that the program inherits.

    The lock is held by whoever inherited it, so it is free exactly when every such process has
    ended. One that is left belongs to a worker that lost the job (we own it now): it is killed.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            _kill_holders(path)
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise TryAgain(
                    f"An earlier run in {path.parent} has not ended yet, perhaps on another "
                    "machine. Nothing was changed; it is tried again later.",
                    delay=timedelta(seconds=60),
                ) from None
            time.sleep(POLL_S)


def _kill_holders(path: Path) -> None:
    """Kill the program groups on this machine that have the lock file open (Linux)."""
    lock = path.stat()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            held, pid = link.stat(), int(link.parts[2])
            if (held.st_dev, held.st_ino) != (lock.st_dev, lock.st_ino) or pid == os.getpid():
                continue
            group = os.getpgid(pid)
            if group == os.getsid(pid) != os.getsid(0):  # a session that run_program started
                _signal_group(group, signal.SIGKILL)


class _Silence:
    """Whether a run directory has stood still for too long."""

    def __init__(self, folder: Path, limit_s: float) -> None:
        self._folder = folder
        self._limit_s = limit_s
        self._seen = self._look()
        self._lasted_s = 0.0

    def lasts(self) -> bool:
        """To be called at each poll. Counts polls, so that a suspended machine is not silence."""
        now = self._look()
        self._lasted_s = 0.0 if now != self._seen else self._lasted_s + POLL_S
        self._seen = now
        return self._lasted_s > self._limit_s

    def words(self) -> str:
        minutes = max(1, round(self._limit_s / 60))
        return (
            f"The program wrote nothing for {minutes} min and was stopped. What it had written, "
            f"checkpoints included, is kept in {self._folder}; the log there may say where it "
            "hung. Start it again to go on from there."
        )

    def _look(self) -> set[tuple[str, int, int]]:
        found = set()
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    status = entry.stat()
                    found.add((entry.name, status.st_size, status.st_mtime_ns))
        return found
