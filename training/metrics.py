"""A round's metrics as the trainer logs them: read while they are being written, and thinned."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

TAIL_BYTES = 2_000_000  # read at most this much from a file's end, however long the round
MOST_POINTS = 300


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """What a round has logged: training steps, and evaluations of the held-out pairs."""

    steps: list[dict[str, float]]
    held_out: list[dict[str, float]]

    @cached_property
    def step(self) -> int:
        """The last step that was logged."""
        return int(max((row["step"] for row in [*self.steps, *self.held_out]), default=0))

    @cached_property
    def total(self) -> int:
        """All steps of the round, 0 as long as nothing is logged."""
        return int(max((row.get("total", 0) for row in [*self.steps, *self.held_out]), default=0))


def read_tail(path: Path, limit: int = TAIL_BYTES) -> list[dict[str, Any]]:
    """The JSON objects in the last `limit` bytes of a JSON-lines file; [] where there is none.

    A line that is cut, torn or not an object is passed over: the file is being written.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            start = max(0, size - limit)
            file.seek(start)
            data = file.read(limit)
    except OSError:
        return []
    lines = data.split(b"\n")[1 if start else 0 : -1]
    return [row for row in map(_object, lines) if row is not None]


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def read_metrics(run_dir: Path) -> Metrics:
    """A round's metrics as they are on disk now."""
    steps: list[dict[str, float]] = []
    held_out: list[dict[str, float]] = []
    for row in read_tail(run_dir / "metrics.jsonl"):
        numbers = numbers_in(row)
        if "step" not in numbers:
            continue
        evaluated = row.get("held_out")
        if isinstance(evaluated, dict):
            held_out.append(numbers_in(evaluated) | numbers)
        else:
            steps.append(numbers)
    return Metrics(steps=steps, held_out=held_out)


def numbers_in(row: dict[str, Any]) -> dict[str, float]:
    """The values of a row that are finite numbers."""
    return {key: float(value) for key, value in row.items() if _is_number(value)}


def _is_number(value: object) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False


def seconds_left(metrics: Metrics, window: int = 50) -> float | None:
    """Seconds until the last step, at the pace of the last steps; None while that is unknown."""
    timed = [row for row in metrics.steps if "seconds" in row][-window:]
    if len(timed) < 2 or not metrics.total:
        return None
    steps = timed[-1]["step"] - timed[0]["step"]
    seconds = timed[-1]["seconds"] - timed[0]["seconds"]
    if steps <= 0 or seconds < 0:
        return None
    return max(0.0, metrics.total - timed[-1]["step"]) * seconds / steps


def thin(
    rows: Sequence[dict[str, float]], keys: Iterable[str], most: int = MOST_POINTS
) -> list[dict[str, float]]:
    """At most `most` rows: means over runs of neighbouring rows, at the last one's step."""
    if len(rows) <= most:
        return list(rows)
    keys = list(keys)
    edges = [round(index * len(rows) / most) for index in range(most + 1)]
    thinned = []
    for start, end in zip(edges, edges[1:], strict=False):
        run = rows[start:end]
        row = {"step": run[-1]["step"]}
        for key in keys:
            if values := [r[key] for r in run if key in r]:
                row[key] = math.fsum(values) / len(values)
        thinned.append(row)
    return thinned
