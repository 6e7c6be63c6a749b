"""The run directory: how the site and its programs hand work to each other.

A worker writes a directory, starts a program on it and takes in what the program left
(docs/decisions/0003-run-directories.md). These are the primitives both sides share. Standard
library only: the programs import no Django, the site imports no torch.
"""

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import signal
import threading
import types
import typing
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

LAST_LINE_BYTES = 16_384

EXIT_DONE = 0
EXIT_BAD_INPUT = 2
EXIT_REFUSED = 3
EXIT_OUT_OF_MEMORY = 4
EXIT_DISK_FULL = 5
EXIT_UNAVAILABLE = 69  # EX_UNAVAILABLE: a server that the program needs is away; run again later
EXIT_STOPPED = 75  # EX_TEMPFAIL: run the same directory again and it goes on


class RunDirError(Exception):
    """A run directory, or a file in it, is not what it must be. The message is for the user."""


def encode(value: Any, *, indent: int | None = None) -> str:
    """JSON text with Unicode kept; NaN and infinities raise ValueError (they are not JSON)."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file completely or not at all: temporary beside it, fsync, rename, fsync folder."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Atomic `write_bytes` of indented JSON."""
    write_bytes(path, (encode(value, indent=1) + "\n").encode())


def read_json(path: Path) -> Any:
    """The value in a JSON file; RunDirError names the file when it is absent or malformed."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise RunDirError(f"{path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunDirError(f"{path} is not JSON: {error}") from None


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write all rows or none, streaming; returns how many."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    count = 0
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            for row in rows:
                file.write(encode(row) + "\n")
                count += 1
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)
    return count


def append_jsonl(path: Path, row: dict[str, Any]) -> None:
    """Append one line with one write, so that a reader never sees two lines mixed.

    A line torn by a kill in the middle of an earlier write is ended first: the new line must
    not be glued to it.
    """
    line = (encode(row) + "\n").encode()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line
        written = os.write(descriptor, line)
        if written != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(descriptor)


def read_jsonl(path: Path, *, torn: bool = True) -> Iterator[dict[str, Any]]:
    """The rows of a JSON-lines file, one at a time.

    With `torn`, lines that are not whole JSON are passed over: a file that a killed program
    appended to may hold one. Without it, RunDirError names the first bad line.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise RunDirError(f"{path} does not exist") from None
    with file:
        for number, line in enumerate(file, start=1):
            if not line.strip() or (torn and not line.endswith(b"\n")):
                continue
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                if torn:
                    continue
                raise RunDirError(f"{path.name}, line {number}: not JSON ({error})") from None
            if not isinstance(row, dict):
                raise RunDirError(f"{path.name}, line {number}: expected an object")
            yield row


def last_line(path: Path) -> dict[str, Any]:
    """The last whole line of a JSON-lines file, {} where there is none. Reads only its end."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LAST_LINE_BYTES))
            row = json.loads(file.read().split(b"\n")[-2])
    except (OSError, IndexError, ValueError):
        return {}
    return row if isinstance(row, dict) else {}


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def append_event(run_dir: Path, kind: str, **fields: Any) -> None:
    """Append a state change or a warning to the run directory's events.jsonl."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    append_jsonl(run_dir / "events.jsonl", {"at": at, "kind": kind, **fields})


def fsync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_dir(source: Path, target: Path) -> None:
    """Move a finished folder into place: `target` is complete or absent, never half there."""
    for path in source.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        else:
            fsync_folder(path)
    fsync_folder(source)
    if target.exists():
        shutil.rmtree(target)
    os.rename(source, target)
    fsync_folder(target.parent)


def stop_on_orphaned() -> None:
    """Exit with EXIT_STOPPED when the process that started this program is gone.

    The parent holds our stdin open; end of file means it died. A raw `os.read` rather than
    sys.stdin: a daemon thread inside a buffered read makes a finished program abort at exit.
    """
    if os.environ.get("PREFLOOP_WATCH_STDIN") != "1":
        return

    def watch() -> None:
        while os.read(0, 1):
            pass
        if os.getpgrp() == os.getpid():  # ours alone: whatever we started goes too
            os.killpg(0, signal.SIGKILL)
        os._exit(EXIT_STOPPED)

    threading.Thread(target=watch, name="orphan-guard", daemon=True).start()


class StopRequest:
    """Turns SIGTERM and SIGINT into a flag that a program looks at between steps."""

    def __init__(self) -> None:
        self.requested = False
        signal.signal(signal.SIGTERM, self._note)
        signal.signal(signal.SIGINT, self._note)

    def _note(self, _signal: int, _frame: types.FrameType | None) -> None:
        self.requested = True


def check_spec(cls: type[T], data: Any, *, problems: Iterable[str] = ()) -> T:
    """Build a frozen keyword-only dataclass from a JSON object, strictly.

    One RunDirError names everything that is wrong, so that a person mends it in one go: unknown,
    missing and wrongly typed keys, what the class's own `rules` say, and the caller's `problems`.
    `rules`, where the class has it, is given the values of the keys that are there and well
    typed, and yields messages. Nested dataclasses and the items of lists are checked alike.
    """
    found = list(problems)
    value = _build(cls, data, "", found)
    if found:
        raise RunDirError("the spec has problems: " + "; ".join(found))
    return typing.cast(T, value)


def _build(cls: Any, data: Any, prefix: str, problems: list[str]) -> Any:
    if not isinstance(data, dict):
        problems.append(f"{prefix[:-1] or 'the spec'}: expected an object, got {data!r}")
        return None
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    before = len(problems)
    problems += [f"unknown key {prefix}{key}" for key in data if key not in fields]
    values: dict[str, Any] = {}
    for name, field in fields.items():
        known = len(problems)
        if name in data:
            value = _typed(hints[name], data[name], f"{prefix}{name}", problems)
            if len(problems) == known:
                values[name] = value
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            problems.append(f"missing key {prefix}{name}")
    problems += getattr(cls, "rules", lambda _values: ())(values)
    if len(problems) > before:
        return None
    try:
        return cls(**values)
    except ValueError as error:  # a dataclass's own __post_init__ rule
        problems.append(str(error))
        return None


def _typed(hint: Any, value: Any, name: str, problems: list[str], null: str = "") -> Any:
    """The value as the hint wants it; `null` is what a message adds where null is allowed."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, f"{name}.", problems)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        inner = next(option for option in options if option is not type(None))
        return _typed(inner, value, name, problems, " or null")
    if origin is typing.Literal:
        if (type(value), value) not in [(type(option), option) for option in options]:
            named = ", ".join(map(str, options))
            problems.append(f"{name} must be one of {named}{null}, got {value!r}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            problems.append(f"{name} is too large for a float")
            return value
    if origin is list and isinstance(value, list):
        return [_typed(options[0], v, f"{name}[{at}]", problems) for at, v in enumerate(value)]
    expected = origin or hint
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        problems.append(f"{name} must be {expected.__name__}{null}, got {value!r}")
    return value
