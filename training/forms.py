"""The form that starts a round: it refuses what the trainer would refuse, at the field at fault."""

from dataclasses import dataclass
from typing import Any

from django import forms
from django.forms.boundfield import BoundField
from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop

from training.models import Reference
from training.options import CONDITIONS, FURTHER, MAIN, OptionFields, only_for, shown
from training.trainer.config import NEEDED

IDLE = (None, "", "drop", "adapter")  # values by which an option says that it is not in use

# What an objective needs, by the option that says it (training.trainer.config.NEEDED).
NEEDS = {
    "label_noise": gettext_noop("the share of votes that are wrong, at least 0 and below 0.5"),
    "target_margin": gettext_noop("γ, in the units of the reward margin; half of beta is usual"),
    "logratio": gettext_noop("sum, as in the paper, or mean, over tokens; beta differs with it"),
}

START = {
    "reference": Reference.INITIAL,
    "labels": "votes",
    "objective": "dpo",
    "ties": "drop",
    "long_prompts": "shorten",
    "keep": "last",
    "lora_export": "adapter",
    "seed": 0,
}


@dataclass(frozen=True, kw_only=True)
class Option:
    """A field, and with what it means anything: for people, and for the page's script."""

    field: BoundField
    only: str = ""  # "Robust DPO"
    when: str = ""  # "objective=robust"


@dataclass(frozen=True, kw_only=True)
class Group:
    """Options under one heading."""

    title: str
    options: list[Option]


class RoundForm(OptionFields):
    """A round's options; the initial values suit the size of the policy."""

    def __init__(
        self, data: Any = None, *, defaults: dict[str, Any] | None = None, held_out: int = 0
    ) -> None:
        """`held_out` is how many held-out pairs the round would have."""
        super().__init__(data, initial=START | (defaults or {}))
        self.held_out = held_out
        for field in self.fields.values():
            if isinstance(field, forms.FloatField):
                field.widget.attrs["step"] = "any"

    def clean(self) -> dict[str, Any]:
        """Names each option that has no effect here, and each that is missing."""
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        if "objective" in cleaned:
            cleaned["objective"] = cleaned["objective"] or "dpo"
        for name in CONDITIONS:
            if self._in_use(name) and not self._applies(name):
                words = _("Only for %(what)s: leave it as it was.")
                self.add_error(name, words % {"what": only_for(name)})
        self._check_needed(cleaned)
        if not self.held_out:
            self._check_without_held_out(cleaned)
        return cleaned

    def _check_needed(self, cleaned: dict[str, Any]) -> None:
        objective = cleaned.get("objective", "")
        name, what = NEEDED.get(objective, ("", ""))
        if name in cleaned and not self._in_use(name):
            words = {"objective": shown("objective", objective), "what": _(NEEDS.get(name, what))}
            self.add_error(name, _("%(objective)s needs this: %(what)s.") % words)

    def _check_without_held_out(self, cleaned: dict[str, Any]) -> None:
        asked = {"early_stopping": cleaned.get("early_stopping"), "keep": cleaned.get("keep")}
        for name, value in asked.items():
            if value not in (None, "", "last"):
                self.add_error(name, _("Needs held-out pairs, and there are none yet."))

    def _in_use(self, name: str) -> bool:
        return self.cleaned_data.get(name) not in IDLE

    def _applies(self, name: str) -> bool:
        """Whether the option means anything; True where the one it hangs on is wrong itself."""
        other, values = CONDITIONS.get(name, ("", ()))
        return other not in self.cleaned_data or self.cleaned_data[other] in values

    @property
    def options(self) -> dict[str, Any]:
        """Trainer options by the names of the trainer's spec: those that say something here."""
        return {
            name: value
            for name, value in self.cleaned_data.items()
            if name != "reference"
            and value not in (None, "")
            and value is not False
            and self._applies(name)
        }

    def as_it_begins(self) -> dict[str, Any]:
        """The options that the form says before anybody has changed it."""
        said = {
            name: "on" if value is True else str(value)
            for name, value in self.initial.items()
            if value is not None and value is not False
        }
        form = RoundForm(said, held_out=self.held_out)
        return form.options if form.is_valid() else {}

    @property
    def main(self) -> list[Option]:
        """What most rounds decide."""
        return [Option(field=self[name]) for name in MAIN]

    @property
    def further(self) -> list[Group]:
        """The rest, by subject."""
        return [
            Group(title=_(title), options=[self._option(name) for name in names])
            for title, names in FURTHER.items()
        ]

    def _option(self, name: str) -> Option:
        if name not in CONDITIONS:
            return Option(field=self[name])
        other, values = CONDITIONS[name]
        return Option(field=self[name], only=only_for(name), when=f"{other}={' '.join(values)}")

    @property
    def unfolded(self) -> bool:
        """Whether a person has been at the folded options, or must look at them."""
        return any(self._touched(name) for names in FURTHER.values() for name in names)

    def _touched(self, name: str) -> bool:
        sent = self.data.get(name)
        return name in self.errors or sent not in (None, "", str(self.initial.get(name, "")))
