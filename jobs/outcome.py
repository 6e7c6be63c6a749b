"""What a program's end means, in words for the user."""

import signal
from pathlib import Path

from jobs.run_dir import EXIT_OUT_OF_MEMORY, read_jsonl

LOG_TAIL_BYTES = 2000
OUT_OF_MEMORY = "It was killed, most likely because the machine ran out of memory."


def failure_words(run_dir: Path, code: int, *, advice: str) -> str:
    """Why a program that exited with `code` failed: its own words where it left some.

    `advice` is appended where memory ran out.
    """
    said = _last_error(run_dir)
    if code == -signal.SIGKILL or (code == EXIT_OUT_OF_MEMORY and not said):
        return f"{OUT_OF_MEMORY} {advice}"
    if said:
        return said
    tail = _log_tail(run_dir / "program.log")
    return f"The program ended with exit code {code}. The end of its log: {tail}"


def _last_error(run_dir: Path) -> str:
    """What the last run said; an earlier run of the same directory ended for its own reason."""
    path = run_dir / "events.jsonl"
    if not path.exists():
        return ""
    said = ""
    for row in read_jsonl(path):
        if row.get("kind") == "start":
            said = ""
        elif row.get("kind") == "error":
            said = str(row.get("message", ""))
    return said


def _log_tail(path: Path) -> str:
    """The last lines of a log, without reading the rest of it."""
    if not path.exists():
        return "(no log)"
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
        lines = file.read().decode(errors="replace").strip().splitlines()
    return " / ".join(lines[-4:]) or "(the log is empty)"
