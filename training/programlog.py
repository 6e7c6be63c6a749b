"""The end of what the trainer's program printed: for whoever looks into a round."""

from pathlib import Path

TAIL_BYTES = 16_000
LINES = 100


def log_tail(run_dir: Path) -> list[str]:
    """The last lines of a round's log, or of what made its run directory; [] where there is none.

    The program is started without any secret of the site (jobs.process), so it can print none.
    What it prints is model output and file names: text to be escaped.
    """
    beside = run_dir.with_name(f"{run_dir.name}.init")
    for folder in (run_dir, beside):
        if lines := _tail(folder / "program.log"):
            return lines
    return []


def _tail(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            text = file.read(TAIL_BYTES).decode(errors="replace")
    except OSError:
        return []
    lines = text.splitlines()
    return lines[1 if size > TAIL_BYTES else 0 :][-LINES:]
