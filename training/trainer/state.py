"""A round in progress, and the lines it writes about itself."""

import time
from dataclasses import dataclass, field
from typing import Any

import torch

from jobs.run_dir import append_event, append_jsonl
from training.trainer.batches import steps_of
from training.trainer.config import Spec
from training.trainer.data import Dataset
from training.trainer.model import Policy
from training.trainer.objectives import Objective
from training.trainer.parallel import leads
from training.trainer.reference import Reference
from training.trainer.run_dir import RoundFiles
from training.trainer.stopping import Best


@dataclass
class Round:
    """Everything a step needs, and where the round stands."""

    files: RoundFiles
    spec: Spec
    origin: dict[str, Any]  # digests of all inputs; a checkpoint of other inputs is refused
    tokenizer: Any
    dataset: Dataset
    objective: Objective
    policy: Policy
    reference: Reference
    optimizer: torch.optim.Optimizer
    step: int = 0
    best: Best = field(default_factory=Best)
    results: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0  # spent by earlier runs of this directory
    started: float = field(default_factory=time.monotonic)

    @property
    def total(self) -> int:
        """Optimizer steps of the whole round."""
        spec = self.spec
        return steps_of(self.dataset.train, size=spec.batch_groups, epochs=spec.epochs)

    @property
    def elapsed(self) -> float:
        """Seconds in all runs of this directory."""
        return self.seconds + time.monotonic() - self.started

    def log(self, numbers: dict[str, Any]) -> None:
        """One line of metrics.jsonl."""
        if leads():
            head = {"step": self.step, "total": self.total}
            append_jsonl(self.files.metrics, head | numbers | {"seconds": round(self.elapsed, 3)})

    def event(self, kind: str, **fields: Any) -> None:
        """One line of events.jsonl."""
        note(self.files, kind, **fields)


def note(files: RoundFiles, kind: str, **fields: Any) -> None:
    """An event of a round that is not there yet; written once, however many processes train."""
    if leads():
        append_event(files.root, kind, **fields)
