"""The data report: what became of every pair, before the first step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.trainer.data import Group

SHOWN = 5  # ids in the report, for each reason


@dataclass
class Report:
    """What is counted while rows become groups: a pair is kept, or dropped for a reason."""

    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    sources: Counter[str] = field(default_factory=Counter)  # of the kept responses' token ids
    shortened: list[str] = field(default_factory=list)  # groups whose oldest turns were left out
    template_errors: list[str] = field(default_factory=list)

    def drop(self, reason: str, pair: str) -> None:
        """Count a pair out and keep the first few ids for each reason."""
        self.dropped[reason] += 1
        shown = self.examples.setdefault(reason, [])
        if len(shown) < SHOWN:
            shown.append(pair)


def summary(
    report: Report, train: list[Group], held_out: list[Group], *, tie_nu: float | None
) -> dict[str, Any]:
    """The report as JSON. Lengths are in tokens, the end token included."""
    sides = {"train": train, "held_out": held_out}
    groups = [*train, *held_out]
    pairs = [pair for group in groups for pair in group.pairs]
    lengths = _lengths(groups)
    return {
        "groups": {name: len(side) for name, side in sides.items()},
        "pairs": {name: sum(len(g.pairs) for g in side) for name, side in sides.items()},
        "responses": {name: sum(len(g.responses) for g in side) for name, side in sides.items()},
        "evenly_split": sum(pair.label == 0.5 and pair.tied < 1 for pair in pairs),
        "tied": sum(pair.tied > 0 for pair in pairs),
        "tie_nu": tie_nu,
        "dropped": dict(report.dropped),
        "dropped_examples": report.examples,
        "shortened": len(report.shortened),
        "shortened_examples": report.shortened[:SHOWN],
        "token_ids": dict(report.sources),
        "lengths": lengths,
        "longest": lengths["longest"],
        "template_errors": report.template_errors[:SHOWN],
    }


def _lengths(groups: list[Group]) -> dict[str, float]:
    """Means over pairs and, for prompts, over groups; and the longest prompt with a response."""
    ends = [
        (len(group.responses[pair.chosen]), len(group.responses[pair.rejected]))
        for group in groups
        for pair in group.pairs
    ]
    whole = [len(group.prompt) + max(map(len, group.responses)) for group in groups]
    return {
        "chosen": _mean(chosen for chosen, _ in ends),
        "rejected": _mean(rejected for _, rejected in ends),
        "prompt": _mean(len(group.prompt) for group in groups),
        "longest": max(whole, default=0),
    }


def _mean(values: Iterable[int]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0
