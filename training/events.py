"""What the trainer said of a round besides its metrics: events.jsonl, read while it is written.

Events come from our own program, but their texts do not: model output and file contents are in
them, so everything here is data to be escaped, and whatever is not as expected is passed over.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop

from training.metrics import read_tail

PHASES = {
    "start": gettext_noop("Reading the preferences"),
    "data_report": gettext_noop("Loading the policy and scoring responses under the reference"),
    "reference_cache": gettext_noop("Measuring the policy before the first step"),
    "samples": gettext_noop("Taking the first step"),
    "resume": gettext_noop("Going on from the last checkpoint"),
    "stopped": gettext_noop("Stopped; waiting to go on"),
}


@dataclass(kw_only=True)
class Events:
    """The newest of each kind; warnings in order, each once, since a resumed run repeats them."""

    report: Mapping[str, Any] = field(default_factory=dict)
    cache: Mapping[str, Any] = field(default_factory=dict)
    samples: dict[str, Mapping[str, Any]] = field(default_factory=dict)  # by "before", "after"
    warnings: list[str] = field(default_factory=list)
    phase: str = ""  # what the trainer is doing, as long as it has taken no step
    checkpoint: int | None = None

    def add(self, event: Mapping[str, Any]) -> None:
        """Take in one line."""
        kind = event.get("kind")
        if phase := PHASES.get(str(kind)):
            self.phase = _(phase)
        if kind == "data_report":
            self.report = event
        elif kind == "error" and isinstance(event.get("data_report"), dict):
            self.report = event["data_report"]  # of a round that has nothing to train on
        elif kind == "reference_cache":
            self.cache = event
        elif kind == "samples":
            self.samples[str(event.get("when"))] = event
        elif kind == "checkpoint":
            self.checkpoint = count(event, "step") or self.checkpoint
        elif kind == "cleaned":
            self.checkpoint = None
        elif kind == "warning" and (message := str(event.get("message", ""))) not in self.warnings:
            self.warnings.append(message)


def read_events(run_dir: Path) -> Events:
    """A round's events as they are on disk now."""
    events = Events()
    for event in read_tail(run_dir / "events.jsonl"):
        events.add(event)
    return events


def count(row: Mapping[str, Any], *path: str) -> int:
    """The whole number at this place of nested objects, 0 where there is none."""
    value = at(row, *path)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def at(row: Mapping[str, Any], *path: str) -> Any:
    """What is at this place of nested objects; None where nothing is."""
    value: Any = row
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value
