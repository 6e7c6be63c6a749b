"""Keys of the judging page: what each does, and which a person may choose instead.

A key is what the keyboard types, in small letters ("a", "?", "é"), or a name of NAMED. What a
person changed is stored as {action: key}; nothing that `check` refuses ever reaches a page.
"""

import unicodedata
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy


class Action(NamedTuple):
    """Something that a key does on the judging page."""

    name: str
    key: str
    label: str | Promise


ACTIONS = (
    Action("a_much", "1", gettext_lazy("A is much better")),
    Action("a_better", "2", gettext_lazy("A is better")),
    Action("a_slightly", "3", gettext_lazy("A is slightly better")),
    Action("tie", "4", gettext_lazy("Tie")),
    Action("b_slightly", "5", gettext_lazy("B is slightly better")),
    Action("b_better", "6", gettext_lazy("B is better")),
    Action("b_much", "7", gettext_lazy("B is much better")),
    Action("both_bad", "0", gettext_lazy("All answers are bad")),
    Action("quick_a", "a", gettext_lazy("A, without saying how much")),
    Action("quick_b", "b", gettext_lazy("B, without saying how much")),
    Action("quick_tie", "e", gettext_lazy("Equal")),
    Action("skip", "s", gettext_lazy("Skip")),
    Action("flag", "f", gettext_lazy("Flag")),
    Action("differences", "d", gettext_lazy("Differences")),
    Action("reason", "r", gettext_lazy("Reason")),
    Action("rewrite", "w", gettext_lazy("Rewrite")),
    Action("undo", "z", gettext_lazy("Undo")),
    Action("raw", "v", gettext_lazy("Text as it was written")),
    Action("scroll", "t", gettext_lazy("Scroll the answers together")),
    Action("guide", "g", gettext_lazy("Guidelines")),
    Action("help", "?", gettext_lazy("All keys")),
    Action("tie_with_last", "=", gettext_lazy("Tie with the answer placed last")),
    Action("take_back", "backspace", gettext_lazy("Take the last place back")),
    Action("send", "enter", gettext_lazy("Send")),
)
DEFAULTS = {action.name: action.key for action in ACTIONS}
# Only a pair has these. Three answers or more are ranked by digits, which are then not free.
PAIR_ONLY = frozenset(
    ("a_much", "a_better", "a_slightly", "tie", "b_slightly", "b_better", "b_much")
    + ("quick_a", "quick_b", "quick_tie")
)
PLACES = frozenset("12345678")
NAMED = {
    "enter": gettext_lazy("Enter"),
    "backspace": gettext_lazy("Backspace"),
    "delete": gettext_lazy("Delete"),
    "space": gettext_lazy("Space"),
    "arrowleft": gettext_lazy("Left arrow"),
    "arrowright": gettext_lazy("Right arrow"),
}
PRINTED = frozenset("LNPS")  # letters, digits, punctuation, symbols; no marks, spaces or controls


class BadKeys(ValueError):
    """Keys that cannot be used; `problems` tells why, by action ("" for the whole)."""

    def __init__(self, problems: Mapping[str, str]) -> None:
        super().__init__("; ".join(problems.values()))
        self.problems = dict(problems)


def effective(changed: object) -> dict[str, str]:
    """The key of every action. Keys that are not (or no longer) usable leave the defaults."""
    try:
        return DEFAULTS | check(changed)
    except BadKeys:
        return dict(DEFAULTS)


def check(changed: object) -> dict[str, str]:
    """What differs from the defaults, ready to be stored; BadKeys names every problem.

    Only known actions, each with one key, each key with one action.
    """
    if not isinstance(changed, Mapping):
        raise BadKeys({"": _("Keys are given as one key for each action.")})
    if unknown := [name for name in changed if name not in DEFAULTS]:
        raise BadKeys({"": _("There is no such action: %s.") % ascii(unknown[0])[:40]})
    keys = {name: _normal(key) for name, key in changed.items()}
    problems = {
        name: _("A key is one character, or one of: %s.") % ", ".join(NAMED)
        for name, key in keys.items()
        if not _usable(key)
    }
    problems |= {
        name: _("Digits from 1 to 8 choose answers where there are three or more.")
        for name, key in keys.items()
        if key in PLACES and name not in PAIR_ONLY
    }
    if problems or (problems := _shared(DEFAULTS | keys)):
        raise BadKeys(problems)
    return {name: key for name, key in keys.items() if key != DEFAULTS[name]}


def shown(key: str) -> str:
    """A key as the keyboard has it printed: "A", "Backspace"."""
    if key in NAMED:
        return str(NAMED[key])
    return key.upper() if len(key.upper()) == 1 else key


def _normal(key: object) -> str:
    """Spaces around a key are not the key; " " alone is the space bar, as browsers name it."""
    if not isinstance(key, str):
        return ""
    return "space" if key == " " else key.strip().lower()


def _usable(key: str) -> bool:
    return key in NAMED or (len(key) == 1 and unicodedata.category(key)[0] in PRINTED)


def _shared(keys: Mapping[str, str]) -> dict[str, str]:
    """A problem for each action whose key another one has too."""
    names = defaultdict(list)
    for name, key in keys.items():
        names[key].append(name)
    labels = {action.name: action.label for action in ACTIONS}
    return {
        name: _("“%(key)s” is already the key for: %(action)s.")
        % {"key": shown(key), "action": next(labels[one] for one in using if one != name)}
        for key, using in names.items()
        if len(using) > 1
        for name in using
    }
