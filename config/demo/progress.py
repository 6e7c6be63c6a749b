"""Progress bars on a terminal, and plain lines where there is none."""

import sys
import time
from typing import TextIO

WIDTH = 28
LINES_PER_TASK = 10  # without a terminal: one line each tenth


class Bar:
    """One task's bar: `[#####     ] 52 %  writing responses  14 s left`."""

    def __init__(self, label: str, out: TextIO | None = None) -> None:
        self._label = label
        self._out = out or sys.stdout
        self._terminal = self._out.isatty()
        self._started = time.monotonic()
        self._shown = -1

    def update(self, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` are done."""
        share = min(done / total, 1.0) if total else 0.0
        tenth = int(share * LINES_PER_TASK)
        if self._terminal:
            filled = int(share * WIDTH)
            bar = "#" * filled + " " * (WIDTH - filled)
            text = f"{self._label:<28} [{bar}] {share:4.0%}  {self._left(share)} {note}"
            self._out.write(f"\r{text:<100}")
        elif tenth != self._shown:
            self._shown = tenth
            self._out.write(f"{self._label}: {share:.0%} {note}\n")
        self._out.flush()

    def finish(self, note: str = "") -> None:
        """Replace the bar by one line."""
        seconds = time.monotonic() - self._started
        text = f"{self._label:<28} done in {seconds:.0f} s{'  ' + note if note else ''}"
        self._out.write(f"\r{text:<100}\n" if self._terminal else f"{text}\n")
        self._out.flush()

    def _left(self, share: float) -> str:
        elapsed = time.monotonic() - self._started
        if share < 0.02 or elapsed < 2:
            return ""
        return f"{elapsed * (1 - share) / share:.0f} s left"
