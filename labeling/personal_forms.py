"""A person's own settings: how they read, and which keys they press."""

from collections.abc import Mapping
from dataclasses import dataclass

from django import forms
from django.conf import settings
from django.http import QueryDict
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from labeling.keys import ACTIONS, DEFAULTS, PAIR_ONLY, Action, effective
from labeling.models import TextSize, User

KEY = "key_"
RANKING_ONLY = frozenset(("tie_with_last", "take_back"))
GROUPS: tuple[tuple[Promise, frozenset[str]], ...] = (
    (_("Two answers"), PAIR_ONLY),
    (_("Three answers or more"), RANKING_ONLY),
    (_("Everywhere"), frozenset(DEFAULTS) - PAIR_ONLY - RANKING_ONLY),
)


class ReadingForm(forms.Form):
    """The language, and the size of the text."""

    language = forms.ChoiceField(
        label=_("Language"),
        required=False,
        choices=lambda: [("", _("What my browser asks for")), *settings.LANGUAGES],
    )
    text_size = forms.ChoiceField(
        label=_("Size of the text"),
        required=False,
        choices=TextSize.choices,
        widget=forms.RadioSelect,
    )


@dataclass(frozen=True, kw_only=True)
class KeyField:
    """An action, the key it has on the page, and why that cannot be."""

    action: Action
    value: str
    error: str

    @property
    def name(self) -> str:
        """Of the form's field."""
        return KEY + self.action.name


@dataclass(frozen=True, kw_only=True)
class KeyGroup:
    """Actions that belong together."""

    title: Promise
    fields: list[KeyField]


def sent_keys(data: QueryDict) -> dict[str, str]:
    """What a form says about keys: unknown actions too, for `keys.check` to refuse."""
    return {name.removeprefix(KEY): str(data[name]) for name in data if name.startswith(KEY)}


def key_groups(user: User, sent: Mapping[str, str], errors: Mapping[str, str]) -> list[KeyGroup]:
    """The person's keys, or those that they have just sent."""
    values = effective(user.keys) | dict(sent)
    return [
        KeyGroup(
            title=title,
            fields=[
                KeyField(
                    action=action, value=values[action.name], error=errors.get(action.name, "")
                )
                for action in ACTIONS
                if action.name in names
            ],
        )
        for title, names in GROUPS
    ]
