"""What a benchmark hands back, as a table and as JSON: figures, machine, settings, raw runs."""

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Options:
    """The flags that every benchmark takes."""

    quick: bool = False
    data: Path | None = None


@dataclass(frozen=True)
class Figure:
    """One number, the bound it must keep (">=6", "<=0.35", "" for none), both sides in words."""

    name: str
    value: float
    bound: str
    ours: str
    theirs: str

    @property
    def holds(self) -> bool:
        """Whether the value keeps its bound; a figure without one always does."""
        if not self.bound:
            return True
        sign, limit = self.bound[:2], float(self.bound[2:])
        return self.value >= limit if sign == ">=" else self.value <= limit


@dataclass(kw_only=True)
class Report:
    """All of a benchmark's figures, what they were measured with, and the single runs."""

    title: str
    figures: list[Figure]
    settings: dict[str, Any]
    runs: list[dict[str, Any]] = field(default_factory=list)


def table(report: Report) -> str:
    """The figures with their bounds and both sides' settings, as Markdown."""
    head = ("figure", "value", "bound", "", "ours", "against")
    rows = [
        (f.name, f"{f.value:.3g}", f.bound, "" if f.holds else "missed", f.ours, f.theirs)
        for f in report.figures
    ]
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
    lines = [_line(head, widths), "|" + "|".join("-" * (width + 2) for width in widths) + "|"]
    return "\n".join([report.title, "", *lines, *(_line(row, widths) for row in rows)])


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    return "| " + " | ".join(padded) + " |"


def store(report: Report, path: Path) -> None:
    """Write the report as JSON."""
    content = {
        "title": report.title,
        "figures": {figure.name: figure.value for figure in report.figures},
        "bounds": {figure.name: figure.bound for figure in report.figures if figure.bound},
        "machine": machine(),
        "settings": {"date": datetime.now(UTC).date().isoformat()} | report.settings,
        "runs": report.runs,
    }
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """What it ran on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 2**30, 1),
        "os": platform.platform(),
        "python": platform.python_version(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    fields: Mapping[str, str] = dict(
        [part.strip() for part in line.split(":", 1)] for line in lines if ":" in line
    )
    return fields.get("model name", platform.processor())
