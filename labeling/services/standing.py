"""A comparison under its lock, and how it is kept in line with its judgments."""

from dataclasses import dataclass

from labeling.models import Comparison, Judgment
from labeling.services import statements
from labeling.services.aggregating import write_preferences
from labeling.services.assigning import shown_order


@dataclass(kw_only=True)
class Standing:
    """A locked comparison, its current judgments and what is in its slots."""

    comparison: Comparison
    judgments: list[Judgment]
    responses: list[int]  # ids by slot

    def own(self, annotator: int) -> Judgment | None:
        """The annotator's current judgment."""
        return next((one for one in self.judgments if one.annotator_id == annotator), None)

    def counted(self) -> list[Judgment]:
        """Those that fill a place of the overlap."""
        return [one for one in self.judgments if not one.surplus]

    def order(self, annotator: int) -> list[int]:
        """Slot indexes in the order in which the annotator sees them."""
        return shown_order(self.comparison.pk, annotator, len(self.responses))


def lock(comparison: int) -> Comparison:
    """The comparison with its project; whoever else wants to change it waits."""
    return (
        Comparison.objects.select_related("project")
        .select_for_update(of=("self",))
        .get(pk=comparison)
    )


def stand(comparison: Comparison, annotator: int, key: str = "") -> Standing:
    """Read under the lock. A judgment of the annotator with this key is in too, current or not."""
    return Standing(
        comparison=comparison,
        judgments=statements.judgments_of(comparison=comparison.pk, annotator=annotator, key=key),
        responses=statements.responses_of(comparison=comparison.pk),
    )


def settle(standing: Standing) -> None:
    """Bring the comparison's count, state and preferences in line with its judgments."""
    comparison, counted = standing.comparison, standing.counted()
    comparison.judged = len(counted)
    comparison.state = _state(comparison)
    changed = {"judged": comparison.judged, "state": comparison.state}
    Comparison.objects.filter(pk=comparison.pk).update(**changed)
    write_preferences(
        comparison=comparison,
        rankings=[one.tiers for one in counted],
        responses=standing.responses,
    )


def _state(comparison: Comparison) -> str:
    """Retired stays retired; what a manager holds back stays so until it is full."""
    if comparison.state == Comparison.State.RETIRED:
        return comparison.state
    if comparison.judged >= comparison.overlap:
        return Comparison.State.JUDGED
    held = comparison.state == Comparison.State.HELD
    return Comparison.State.HELD if held else Comparison.State.OPEN
