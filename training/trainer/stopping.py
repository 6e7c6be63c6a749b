"""When a round has seen its best: early stopping, and which checkpoint to keep."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Best:
    """The best held-out accuracy of a round so far, and how long ago it was.

    A tie goes to the earlier step: of two policies that agree with the annotators equally often,
    that one has moved less from the reference. The evaluation before the first step is not fed
    in: the start is not a result of the round.
    """

    step: int | None = None  # None: nothing was evaluated yet
    accuracy: float = 0.0  # share of held-out pairs, in [0, 1]
    since: int = 0  # evaluations after it, none of them better

    def after(self, step: int, accuracy: float) -> "Best":
        """The best once this step was evaluated too."""
        if self.step is None or accuracy > self.accuracy:
            return Best(step, accuracy)
        return Best(self.step, self.accuracy, self.since + 1)

    def stops(self, early_stopping: int | None) -> bool:
        """Whether so many evaluations in a row were no better (None: a round never stops early)."""
        return early_stopping is not None and self.since >= early_stopping

    def to_json(self) -> dict[str, Any]:
        """For the state in a checkpoint."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Best":
        """What `to_json` gave."""
        return cls(**data)
