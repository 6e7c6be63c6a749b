"""A round's held-out figures before and after, for the page. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop

from labeling.intervals import wilson
from training.curves import number


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure before and after; an interval where the figure is an estimate of a share."""

    title: str
    before: float
    after: float
    digits: int
    before_interval: tuple[float, float] | None = None
    after_interval: tuple[float, float] | None = None
    higher_is_better: bool | None = None

    @property
    def before_text(self) -> str:
        """The figure before, as it is shown."""
        return number(self.before, self.digits)

    @property
    def after_text(self) -> str:
        """The figure after, as it is shown."""
        return number(self.after, self.digits)

    @property
    def change_text(self) -> str:
        """After minus before, with its sign."""
        change = number(self.after - self.before, self.digits)
        return change if change[0] == "\u2212" else f"+{change}"

    @property
    def verdict(self) -> str:
        """Whether the change is for the better, where better has a direction."""
        if self.higher_is_better is None or self.before_text == self.after_text:
            return ""
        better = (self.after > self.before) == self.higher_is_better
        return _("better") if better else _("worse")


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Held-out figures over so many pairs."""

    pairs: int
    rows: list[Row]


FIGURES = (
    ("accuracy", gettext_noop("Reward accuracy"), 2, True),
    ("loss", gettext_noop("Loss"), 3, False),
    ("margin", gettext_noop("Reward margin"), 2, True),
    ("kl", gettext_noop("KL to the reference, nats"), 2, None),
)


def comparison(results: Mapping[str, Any]) -> HeldOut | None:
    """What the round did to the held-out pairs; None where nothing was held out."""
    before, after = results.get("held_out_before"), results.get("held_out_after")
    if not isinstance(before, dict) or not isinstance(after, dict):
        return None
    pairs = int(after.get("pairs", 0))
    rows = [
        _row(key, title, digits, better, before[key], after[key], pairs)
        for key, title, digits, better in FIGURES
        if key in before and key in after
    ]
    return HeldOut(pairs=pairs, rows=rows)


def _row(
    key: str, title: str, digits: int, better: bool | None, before: float, after: float, pairs: int
) -> Row:
    share = key == "accuracy" and pairs > 0
    return Row(
        title=_(title),
        before=before,
        after=after,
        digits=digits,
        before_interval=wilson(before, pairs) if share else None,
        after_interval=wilson(after, pairs) if share else None,
        higher_is_better=better,
    )
