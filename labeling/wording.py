"""Verdicts in the words of the page: letters for places, not slots."""

import string
from collections.abc import Sequence

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from labeling.models import Judgment

# A pair's scale, from the first place to the second: key, words, strength.
SCALE = (
    ("1", gettext_lazy("A much"), 3),
    ("2", gettext_lazy("A better"), 2),
    ("3", gettext_lazy("A slightly"), 1),
    ("4", gettext_lazy("Tie"), None),
    ("5", gettext_lazy("B slightly"), 1),
    ("6", gettext_lazy("B better"), 2),
    ("7", gettext_lazy("B much"), 3),
)


def letter(place: int) -> str:
    """The name of a place on the page: A, B, ... and numbers after Z."""
    return string.ascii_uppercase[place] if place < 26 else str(place + 1)


def sentence(tiers: Sequence[Sequence[int]]) -> str:
    """A ranking of places as people read it: "C over A = B over D"."""
    return _(" over ").join(" = ".join(letter(place) for place in tier) for tier in tiers)


def choice_of(judgment: Judgment) -> str:
    """The key of a pair's scale that was pressed; "0" for all bad, "ranking" for three or more."""
    if judgment.all_bad:
        return "0"
    if len(judgment.shown_order) > 2:
        return "ranking"
    if len(judgment.tiers) == 1:
        return "4"
    strength = judgment.strength or 2
    first_place_won = judgment.tiers[0] == [judgment.shown_order[0]]
    return str(4 - strength if first_place_won else 4 + strength)


def placed_tiers(judgment: Judgment) -> list[list[int]]:
    """The ranking in places as the annotator saw them, from 0."""
    place = {slot: number for number, slot in enumerate(judgment.shown_order)}
    return [sorted(place[slot] for slot in tier) for tier in judgment.tiers]


def in_words(judgment: Judgment) -> str:
    """The verdict as the annotator gave it."""
    choice = choice_of(judgment)
    pair = len(judgment.shown_order) == 2
    if choice == "0":
        return _("both bad") if pair else _("all bad")
    if pair:
        return next(str(words) for key, words, _strength in SCALE if key == choice)
    return sentence(placed_tiers(judgment))
