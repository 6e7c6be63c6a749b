"""Examples as pages show them: a place is a slot, so that everybody sees what the author saw.

They are not shuffled: the reasons name answers by their letters, and nothing here is counted.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from django.db.models import QuerySet
from django.utils.translation import gettext as _

from labeling.cards import Place
from labeling.models import Example, Judgment, Prompt, Slot
from labeling.votes import Tiers
from labeling.wording import letter, placed_tiers, sentence


@dataclass(frozen=True, kw_only=True)
class ExampleCard:
    """A comparison with its known answer, as tiers of places."""

    example: Example | None  # none yet, where one is about to be made
    prompt: Prompt
    places: list[Place]
    answer: Tiers

    @property
    def key(self) -> str:
        """What tells it from the others on a page."""
        return str(self.example.pk) if self.example else ""

    @property
    def verdict(self) -> str:
        """The known answer in words."""
        return self.in_words(self.answer)

    @property
    def best(self) -> list[str]:
        """The letters of the best answers; none where all are equally good."""
        return [letter(place) for place in self.answer[0]] if len(self.answer) > 1 else []

    def in_words(self, tiers: Tiers) -> str:
        """What somebody says of this comparison."""
        if len(self.places) > 2:
            return sentence(tiers)
        if len(tiers) == 1:
            return _("Neither is better")
        return _("%(letter)s is better") % {"letter": letter(tiers[0][0])}


def cards_of(examples: Sequence[Example]) -> list[ExampleCard]:
    """The cards of examples, in one query however many there are."""
    places: dict[int, list[Place]] = {}
    for slot in _slots({one.comparison_id for one in examples}):
        places.setdefault(slot.comparison_id, []).append(_place(slot, slot.index))
    return [
        ExampleCard(
            example=one,
            prompt=one.comparison.prompt,
            places=places[one.comparison_id],
            answer=one.comparison.gold_tiers or [],
        )
        for one in examples
    ]


def card_of_judgment(judgment: Judgment) -> ExampleCard:
    """What one's own verdict would be as an example."""
    slots = list(_slots({judgment.comparison_id}))
    shown = [slots[index] for index in judgment.shown_order]
    return ExampleCard(
        example=None,
        prompt=judgment.comparison.prompt,
        places=[_place(slot, place) for place, slot in enumerate(shown)],
        answer=placed_tiers(judgment),
    )


def _slots(comparisons: Collection[int]) -> QuerySet[Slot]:
    return (
        Slot.objects.filter(comparison__in=comparisons)
        .select_related("response")
        .defer("response__token_ids", "response__sampling")
        .order_by("comparison", "index")
    )


def _place(slot: Slot, place: int) -> Place:
    return Place(letter=letter(place), text=slot.response.text, words=slot.response.words)
