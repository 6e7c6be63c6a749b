"""The loop of a project as data: what is there, what runs, where it is stuck, what to do next.

Counts come from one query per table, or are kept where that takes long. Batches, rounds and their
schedule belong to apps above this one; their rows are read through the project's reverse relations.
"""

from dataclasses import dataclass

from labeling.models import Policy, Project
from labeling.overview.counts import count
from labeling.overview.hindrances import Hindrance, hindrances, worker_silence
from labeling.overview.stations import Station, stations
from labeling.overview.steps import GOOD_ROUND_PAIRS, ROUND_PAIRS, NextStep, next_step

__all__ = [
    "GOOD_ROUND_PAIRS",
    "ROUND_PAIRS",
    "Hindrance",
    "NextStep",
    "Overview",
    "Station",
    "overview",
    "worker_silence",
]


@dataclass(frozen=True, kw_only=True)
class Overview:
    """A project's loop at one moment."""

    stations: list[Station]
    hindrances: list[Hindrance]
    step: NextStep
    serving: Policy | None
    live: bool

    @property
    def stuck(self) -> list[str]:
        """What is in the way, in words."""
        return [one.text for one in self.hindrances]


def overview(project: Project) -> Overview:
    """The project's loop as it is now."""
    counts = count(project)
    step = next_step(counts)
    found = hindrances(counts)
    return Overview(
        stations=stations(counts, step, found),
        hindrances=found,
        step=step,
        serving=counts.serving,
        live=counts.live,
    )
