"""`python -m training.trainer init|run|probe|merge ...`: make a round's run directory, train it;
write what a policy says of a few texts; merge an adapter into its model."""

import argparse
import ctypes
import errno
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.run_dir import (
    EXIT_BAD_INPUT,
    EXIT_DISK_FULL,
    EXIT_DONE,
    EXIT_OUT_OF_MEMORY,
    RunDirError,
    StopRequest,
    append_event,
    replace_dir,
    stop_on_orphaned,
    write_json,
    write_jsonl,
)
from labeling.chat import ChatError
from labeling.policy_files import UnsafePolicy, check_policy_dir
from training.trainer.config import PolicySource, resolve_spec
from training.trainer.rows import read_table
from training.trainer.run_dir import BadInput, RoundFiles, Stopped, TrainerError

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
NO_MEMORY = ("out of memory", "can't allocate memory")  # as CUDA says it, as the CPU does
OUT_OF_MEMORY = (
    "out of memory: {error}. The last checkpoint is kept. Use activation_checkpointing=true, a "
    "smaller pack_tokens or max_length, method=lora or dtype=bfloat16 in a new run directory, or "
    "a device with more memory"
)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, a quota, a limit on one file
DISK_FULL = (
    "the disk is full, or a limit on files is reached: {error}. Checkpoints that were complete "
    "are kept; free space and run again"
)


def main(argv: list[str] | None = None) -> int:
    """The exit code of the sub-command."""
    arguments = _parser().parse_args(argv)
    if arguments.command == "init":
        return _ending(None, lambda: init(arguments))
    if arguments.command == "probe":
        return _ending(None, lambda: probe(arguments))
    stop_on_orphaned()
    if arguments.command == "merge":
        return _ending(arguments.run_dir, lambda: merge(arguments))
    return _ending(arguments.run_dir, lambda: run(arguments.run_dir))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.trainer", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("init", help="make a run directory from preferences")
    make.add_argument("run_dir", type=Path)
    ask = commands.add_parser("probe", help="write log-probabilities that prove a policy")
    ask.add_argument("file", type=Path, help="JSON-lines file to write")
    ask.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    join = commands.add_parser("merge", help="merge an adapter into the model that it is on")
    join.add_argument("run_dir", type=Path, help="the merged policy comes to lie in its policy/")
    for command in (make, ask, join):
        command.add_argument("--policy", type=Path, required=True, help="folder of its model")
        command.add_argument("--adapter", type=Path, help="folder of its LoRA adapter")
    make.add_argument("--preferences", type=Path, required=True, help="JSON-lines file")
    make.add_argument(
        "--set", dest="settings", nargs="+", action="extend", default=[], metavar="KEY=VALUE"
    )
    train = commands.add_parser("run", help="train, or go on with a round that was stopped")
    train.add_argument("run_dir", type=Path)
    return parser


def init(arguments: argparse.Namespace) -> None:
    """Make a run directory, complete or not at all; one that exists is refused."""
    target = arguments.run_dir
    if target.exists():
        raise BadInput(f"{target} exists already; choose another run directory")
    source = _source(arguments)
    for folder in source.folders:
        check_policy_dir(folder)
    spec = resolve_spec(source, arguments.settings)
    table = read_table(arguments.preferences)
    beside = target.with_name(f".{target.name}.new")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    files = RoundFiles(beside)
    write_json(files.spec, spec)
    count = write_jsonl(files.preferences, table.groups)
    replace_dir(beside, target)
    if table.unread_keys:
        print(f"these keys of plain rows are not read: {', '.join(table.unread_keys)}")
    print(f"{target}: {count} ranked groups; train with: python -m training.trainer run {target}")


def _source(arguments: argparse.Namespace) -> PolicySource:
    adapter = arguments.adapter and str(arguments.adapter.resolve())
    return PolicySource(model=str(arguments.policy.resolve()), adapter=adapter)


def probe(arguments: argparse.Namespace) -> None:
    """Write the probes of a policy, complete or not at all."""
    from training.trainer.probes import probes

    stop_on_orphaned()
    write_jsonl(arguments.file, probes(_source(arguments), arguments.dtype))


def merge(arguments: argparse.Namespace) -> None:
    """Merge the adapter, complete or not at all."""
    from training.trainer import merging

    arguments.run_dir.mkdir(parents=True, exist_ok=True)
    merging.merge(_source(arguments), arguments.run_dir)


def run(run_dir: Path) -> None:
    """Train the round. Torch is imported here: a bad command line answers at once without it."""
    from training.trainer import loop

    keep_freed_memory()
    loop.run(run_dir, StopRequest())


def keep_freed_memory() -> None:
    """Ask the C library to keep what is freed, for the next step to take again.

    As it comes, glibc gives large blocks back to the system and asks for them anew, and the
    system clears each page: about 5 % of a step on a CPU. Other C libraries are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _ending(run_dir: Path | None, work: Callable[[], None]) -> int:
    """Do the work; errors with an exit code of their own are told, recorded and returned."""
    try:
        work()
    except Exception as error:
        code, message = _verdict(error)
        if code is None:
            raise
        details = error.details if isinstance(error, TrainerError) else {}
        kind = "stopped" if isinstance(error, Stopped) else "error"
        print(message, file=sys.stderr)
        _record(run_dir, kind, message=message, exit=code, **details)
        return code
    return EXIT_DONE


def _verdict(error: Exception) -> tuple[int | None, str]:
    """Exit code and message for an error; None for one that nobody expected."""
    if isinstance(error, TrainerError):
        return error.exit_code, str(error)
    if isinstance(error, (RunDirError, UnsafePolicy, ChatError)):
        return EXIT_BAD_INPUT, str(error)
    if isinstance(error, MemoryError) or any(part in str(error) for part in NO_MEMORY):
        return EXIT_OUT_OF_MEMORY, OUT_OF_MEMORY.format(error=error)
    named = any(f"(os error {number})" in str(error) for number in NO_ROOM)  # by safetensors
    if named or getattr(error, "errno", None) in NO_ROOM:
        return EXIT_DISK_FULL, DISK_FULL.format(error=error)
    return None, ""


def _record(run_dir: Path | None, kind: str, **fields: Any) -> None:
    """An event, if there is a run directory and it can still be written to; one, by torchrun's
    first process."""
    if run_dir is None or not run_dir.is_dir() or os.environ.get("RANK", "0") != "0":
        return
    try:
        append_event(run_dir, kind, **fields)
    except OSError as error:
        print(f"the event could not be written: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
