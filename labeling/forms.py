"""What the judging page sends. Forms speak of places on the page; slots stay on the server."""

import string
from collections.abc import Sequence
from typing import Any

from django import forms

from labeling.services.judging import Verdict

# A pair's scale, from the first place to the second: key, words, strength and side.
SCALE = (
    ("1", "A much", 3),
    ("2", "A better", 2),
    ("3", "A slightly", 1),
    ("4", "Tie", None),
    ("5", "B slightly", 1),
    ("6", "B better", 2),
    ("7", "B much", 3),
)
STRENGTHS = {key: strength for key, _, strength in SCALE}
TIE = "4"
ALL_BAD = "0"
RANKING = "ranking"


def letter(place: int) -> str:
    """The name of a place on the page: A, B, ... and numbers after Z."""
    return string.ascii_uppercase[place] if place < 26 else str(place + 1)


def sentence(tiers: Sequence[Sequence[int]]) -> str:
    """A ranking of places as people read it: "C over A = B over D"."""
    return " over ".join(" = ".join(letter(place) for place in tier) for tier in tiers)


class HeldForm(forms.Form):
    """Names a lease."""

    lease = forms.UUIDField()


class VerdictForm(HeldForm):
    """A verdict on a comparison with this many places.

    A pair's verdict is one key of its scale. A ranking of three or more gives each place a
    number from 1; equal numbers tie.
    """

    key = forms.CharField(max_length=64)
    active_ms = forms.IntegerField(required=False)
    choice = forms.CharField(max_length=16)

    def __init__(self, *args: Any, places: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.places = places
        if places > 2:
            for place in range(places):
                self.fields[f"place_{letter(place)}"] = forms.IntegerField(
                    min_value=1, max_value=places, required=False
                )

    def clean(self) -> dict[str, Any]:
        """Adds `tiers`, of places."""
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        choice = cleaned.get("choice")
        if choice == ALL_BAD:
            cleaned["tiers"] = [list(range(self.places))]
        elif self.places == 2 and choice in STRENGTHS:
            cleaned["tiers"] = _pair_tiers(choice)
        elif self.places > 2 and choice == RANKING:
            cleaned["tiers"] = self._ranking(cleaned)
        else:
            raise forms.ValidationError("Choose one of the answers below; nothing was sent.")
        return cleaned

    def verdict(self, order: Sequence[int]) -> Verdict:
        """The verdict in slots: `order` names the slot at each place."""
        cleaned = self.cleaned_data
        return Verdict(
            tiers=[[order[place] for place in tier] for tier in cleaned["tiers"]],
            all_bad=cleaned["choice"] == ALL_BAD,
            strength=STRENGTHS.get(cleaned["choice"]) if self.places == 2 else None,
            active_ms=cleaned.get("active_ms") or 0,
        )

    def in_words(self) -> str:
        """The verdict as the annotator gave it."""
        choice = self.cleaned_data["choice"]
        if choice == ALL_BAD:
            return "both bad" if self.places == 2 else "all bad"
        if self.places == 2:
            return next(words for key, words, _ in SCALE if key == choice)
        return sentence(self.cleaned_data["tiers"])

    def _ranking(self, cleaned: dict[str, Any]) -> list[list[int]]:
        given = [cleaned.get(f"place_{letter(place)}") for place in range(self.places)]
        ranks = [rank for rank in given if rank is not None]
        if len(ranks) < self.places:
            raise forms.ValidationError(
                "The ranking is not complete: give every answer a place. Nothing was sent."
            )
        return [
            [place for place in range(self.places) if ranks[place] == rank]
            for rank in sorted(set(ranks))
        ]


def _pair_tiers(choice: str) -> list[list[int]]:
    if choice == TIE:
        return [[0, 1]]
    return [[0], [1]] if choice < TIE else [[1], [0]]
