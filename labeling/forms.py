"""What the judging page sends. Forms speak of places on the page; slots stay on the server."""

import json
import string
from collections.abc import Mapping
from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from labeling.models import Flag, Project, Rationale
from labeling.services.verdicts import RATINGS, FlagGiven, Rewrite, Verdict
from labeling.wording import SCALE

STRENGTHS = {key: strength for key, _words, strength in SCALE}
TIE = "4"
ALL_BAD = "0"
RANKING = "ranking"
MAX_PLACES = 8
LETTERS = string.ascii_uppercase[:MAX_PLACES]
MAX_TEXT = 256 * 1024  # characters of a rewrite
MAX_REASON = 10_000  # characters of a rationale
MAX_DRAFT = 512 * 1024  # bytes


class PlaceField(forms.ChoiceField):
    """A letter as the number of its place, from 0; None where there is none."""

    def __init__(self) -> None:
        super().__init__(choices=[(one, one) for one in LETTERS], required=False)

    def clean(self, value: Any) -> int | None:
        """The place's number."""
        given = super().clean(value)
        return LETTERS.index(given) if given else None


class TokensForm(forms.Form):
    """Up to two leases that the page has, and what is filled in for the first."""

    draft = forms.JSONField(required=False)

    def clean(self) -> dict[str, Any]:
        """Adds `tokens`."""
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        token = forms.UUIDField()
        given = self.data.getlist("lease")  # type: ignore[attr-defined]
        cleaned["tokens"] = [token.clean(one) for one in given[:2]]
        return cleaned

    def clean_draft(self) -> dict[str, str] | None:
        """Names of form fields and their values, as strings."""
        draft = self.cleaned_data["draft"]
        if draft is None:
            return None
        plain = isinstance(draft, Mapping) and all(isinstance(one, str) for one in draft.values())
        if not plain or len(json.dumps(draft)) > MAX_DRAFT:
            raise forms.ValidationError(_("This is no draft of a verdict."))
        return dict(draft)


class SkipForm(forms.Form):
    """Names a lease, and perhaps what is wrong with the comparison."""

    lease = forms.UUIDField()
    flag_reason = forms.ChoiceField(choices=Flag.Reason, required=False)
    flag_place = PlaceField()
    flag_note = forms.CharField(max_length=500, required=False)

    def flags(self) -> list[FlagGiven]:
        """What was flagged; a place stands for a slot."""
        cleaned = self.cleaned_data
        if not cleaned["flag_reason"]:
            return []
        return [
            FlagGiven(
                reason=cleaned["flag_reason"],
                slot=cleaned["flag_place"],
                note=cleaned["flag_note"],
            )
        ]


class VerdictForm(SkipForm):
    """A verdict on a comparison.

    A pair's verdict is one key of its scale. A ranking of three or more gives each place a
    number from 1; equal numbers tie. Whether the places are those of the comparison is for the
    service to say, which alone has read it.
    """

    key = forms.CharField(max_length=64)
    active_ms = forms.IntegerField(required=False)
    choice = forms.CharField(max_length=16)
    rationale = forms.CharField(max_length=MAX_REASON, required=False)
    rewrite_place = PlaceField()
    rewrite_text = forms.CharField(max_length=MAX_TEXT, required=False, strip=False)
    confirmed = forms.BooleanField(required=False)
    guidelines = forms.IntegerField(required=False)

    def __init__(self, *args: Any, project: Project, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.project = project
        for name in LETTERS if self.data.get("choice") == RANKING else "":
            self.fields[f"place_{name}"] = forms.IntegerField(
                min_value=1, max_value=MAX_PLACES, required=False
            )
        self.criteria = [criterion["key"] for criterion in project.criteria]
        for field in self._rating_fields():
            self.fields[field] = forms.IntegerField(
                min_value=RATINGS[0], max_value=RATINGS[-1], required=False
            )
        if project.rationale == Rationale.REQUIRED:
            self.fields["rationale"].required = True
            self.fields["rationale"].error_messages["required"] = _("Write down why.")

    def clean(self) -> dict[str, Any]:
        """Adds `tiers`, of places."""
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        choice = cleaned.get("choice")
        if choice == ALL_BAD:
            cleaned["tiers"] = []
        elif choice in STRENGTHS:
            cleaned["tiers"] = _pair_tiers(choice)
        elif choice == RANKING:
            cleaned["tiers"] = self._ranking(cleaned)
            if _as_shown(cleaned["tiers"]) and not cleaned.get("confirmed"):
                self.add_error("confirmed", _in_order())
        else:
            raise forms.ValidationError(_("Choose one of the answers below; nothing was sent."))
        return cleaned

    def clean_rewrite_text(self) -> str:
        """A text that a response may have."""
        text: str = self.cleaned_data["rewrite_text"]
        return text.replace("\r\n", "\n")

    def clean_guidelines(self) -> int | None:
        """The version that the page showed, if it is one of the project's."""
        shown: int | None = self.cleaned_data["guidelines"]
        if shown is None or shown == self.project.guidelines_id:
            return shown
        return shown if self.project.versions.filter(pk=shown).exists() else None

    def verdict(self) -> Verdict:
        """The verdict, of places."""
        cleaned = self.cleaned_data
        return Verdict(
            tiers=cleaned["tiers"],
            all_bad=cleaned["choice"] == ALL_BAD,
            strength=STRENGTHS.get(cleaned["choice"]),
            ratings=self._ratings(),
            rationale=cleaned["rationale"],
            flags=self.flags(),
            rewrite=self._rewrite(),
            active_ms=cleaned.get("active_ms") or 0,
            guidelines=cleaned["guidelines"],
        )

    def _rating_fields(self) -> list[str]:
        return [f"rating_{key}_{name}" for key in self.criteria for name in LETTERS]

    def _ratings(self) -> dict[str, dict[int, int]]:
        ratings = {
            key: {
                place: given
                for place, name in enumerate(LETTERS)
                if (given := self.cleaned_data.get(f"rating_{key}_{name}")) is not None
            }
            for key in self.criteria
        }
        return {key: given for key, given in ratings.items() if given}

    def _rewrite(self) -> Rewrite | None:
        place, text = self.cleaned_data["rewrite_place"], self.cleaned_data["rewrite_text"]
        return Rewrite(slot=place, text=text) if place is not None and text.strip() else None

    def _ranking(self, cleaned: dict[str, Any]) -> list[list[int]]:
        given = [cleaned.get(f"place_{name}") for name in LETTERS]
        while given and given[-1] is None:
            given.pop()
        if not given or None in given:
            raise forms.ValidationError(
                _("The ranking is not complete: give every answer a place. Nothing was sent.")
            )
        return [
            [place for place, rank in enumerate(given) if rank == best]
            for best in sorted({rank for rank in given if rank is not None})
        ]


def _pair_tiers(choice: str) -> list[list[int]]:
    if choice == TIE:
        return [[0, 1]]
    return [[0], [1]] if choice < TIE else [[1], [0]]


def _as_shown(tiers: list[list[int]]) -> bool:
    """Whether the ranking is the order in which the page shows the answers."""
    return tiers == [[place] for place in range(len(tiers))]


def _in_order() -> forms.ValidationError:
    return forms.ValidationError(
        _("You ranked them in the order they were shown. Send again if you mean it."),
        code="in_order",
    )
