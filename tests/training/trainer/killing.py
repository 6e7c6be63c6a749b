"""Real processes that die by SIGKILL: at a step, or right before the n-th thing they do to a file.

The children are forked from this process, which has torch loaded, so that one costs little.
"""

import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.run_dir import read_json
from tests.training.trainer.builders import metrics_of, weights_of
from training.trainer import checkpoint, loop
from training.trainer.__main__ import main

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
# Audit events (docs.python.org/3/library/audit_events.html) that change what is on the disk.
# Their first argument is a path; here is the place of the open folder that it may be in.
CHANGES = {"os.rename": 2, "os.remove": 1, "os.mkdir": 2, "os.rmdir": 1}
Patch = Callable[[], None]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_child(work: Callable[[], int]) -> int:
    """The exit status of `work` in a process of its own; −9 when it was killed."""
    child = os.fork()
    if child == 0:
        gc.freeze()  # else a collection in the child touches, and so copies, all of our memory
        status = 70
        try:
            status = work()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_in_child(run_dir: Path, patch: Patch = lambda: None) -> int:
    """The exit status of the trainer's `run`, in a process to which `patch` was done first."""

    def work() -> int:
        patch()
        return main(["run", str(run_dir)])

    return in_child(work)


def kill_on(target: Any, name: str, when: Callable[..., bool]) -> Patch:
    """A patch that kills the process as soon as `when` is true of the arguments."""

    def patch() -> None:
        real = getattr(target, name)

        def lethal(*args: Any, **kwargs: Any) -> Any:
            if when(*args, **kwargs):
                die()
            return real(*args, **kwargs)

        setattr(target, name, lethal)

    return patch


def at_step(step: int) -> Patch:
    return kill_on(loop, "take_step", lambda _round, at, *_: at == step)


Act = Callable[[str, Callable[[], Any]], None]  # told what comes next, and how to half do it


class Operations:
    """A patch: `act` is called before each thing that the process does to files under a folder.

    Renaming, removing, making and opening for writing come from Python's audit hook. Syncs and
    writes are not audited: they are wrapped. So is the writing of tensors, which is not Python's.
    """

    def __init__(self, folder: Path, act: Act) -> None:
        self.folder = f"{folder}/"
        self.act = act
        self.acting = False  # what `act` itself does to files is not told

    def __call__(self) -> None:
        """Install the hooks, for the rest of the process's life."""
        sys.addaudithook(self._audited)
        os.fsync = self._before(os.fsync, lambda file: self._tell("fsync", file))
        os.write = self._before(os.write, self._write)
        module: Any = checkpoint
        save_file = module.save_file

        def save_and_tell(tensors: Any, path: Path) -> None:
            save_file(tensors, path)
            half = path.stat().st_size // 2
            self._tell("save_file", path, half=lambda: os.truncate(path, half))

        module.save_file = save_and_tell

    def _audited(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _mode, flags = arguments
            if isinstance(path, (str, bytes, Path)) and flags & WRITING:
                self._tell(event, path)
        elif event in CHANGES:
            self._tell(event, arguments[0], arguments[CHANGES[event]])

    def _write(self, file: int, data: bytes) -> None:
        self._tell("write", file, half=lambda: os.pwrite(file, data[: len(data) // 2], 0))

    def _tell(
        self, what: str, path: Any, folder: int = -1, *, half: Callable[[], Any] = lambda: None
    ) -> None:
        if self.acting:
            return
        self.acting = True
        try:
            where = _absolute(path, folder)
            if f"{where}/".startswith(self.folder):
                self.act(f"{what} {where.removeprefix(self.folder)}", half)
        finally:
            self.acting = False

    @staticmethod
    def _before(real: Callable[..., Any], tell: Callable[..., None]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            tell(*arguments)
            return real(*arguments)

        return wrapped


def _absolute(path: Any, folder: int) -> str:
    """The path of an open file, of a name, or of a name in an open folder."""
    if isinstance(path, int):
        return os.readlink(f"/proc/self/fd/{path}")
    start = os.readlink(f"/proc/self/fd/{folder}") if folder != -1 else os.getcwd()
    return os.path.join(start, os.fsdecode(path))


def operations_of(run_dir: Path) -> list[str]:
    """All that a run of this directory does to its files, from start to end."""
    log = run_dir.with_name(f"{run_dir.name}.operations")

    def note(what: str, _half: Callable[[], Any]) -> None:
        with log.open("a") as file:
            file.write(what + "\n")

    assert run_in_child(run_dir, Operations(run_dir, note)) == 0
    return log.read_text().splitlines()


def kill_points(operations: list[str]) -> list[int]:
    """Numbers of the operations to die in: all that leave files of their own.

    To a process that dies, a sync changes nothing: dying before it or after it leaves the same
    files. A line to be appended is left half written, and not also left out.
    """
    return [
        number
        for number, operation in enumerate(operations)
        if operation.startswith(("write", "save_file"))
        or (
            not operations[number - 1].startswith("fsync")
            and operations[number + 1 : number + 2] != [operation.replace("open", "write", 1)]
        )
    ]


def before_operation(run_dir: Path, number: int) -> Patch:
    """A patch that kills the process in the operation of this number, counted from 0."""
    count = -1

    def act(_what: str, half: Callable[[], Any]) -> None:
        nonlocal count
        count += 1
        if count == number:
            half()
            die()

    return Operations(run_dir, act)


def assert_same(run_dir: Path, whole: Path) -> None:
    """Both rounds ended with the same bytes of weights, the same metrics and results."""
    assert weights_of(run_dir) == weights_of(whole)
    assert metrics_of(run_dir) == metrics_of(whole)
    ours, theirs = (read_json(folder / "manifest.json") for folder in (run_dir, whole))
    for results in (ours["results"], theirs["results"]):
        results.pop("seconds")
    assert ours["results"] == theirs["results"]
    assert ours["policy_digest"] == theirs["policy_digest"]
