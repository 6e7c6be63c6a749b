"""Small pictures of how it went lately: a bar a day, or a line over the last rounds.

Plain numbers on a drawing of WIDTH by HEIGHT; `words` say the same to who does not see it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from labeling.models import Evaluation, Project
from labeling.templatetags.prefloop import percent, thin

WIDTH, HEIGHT = 84, 24
BAR = 4  # and a gap of 2
LAST = 14  # rounds or evaluations
HALF = 0.5  # a coin toss


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A day's."""

    x: int
    y: float
    height: float


@dataclass(frozen=True, kw_only=True)
class Trend:
    """Bars or the points of a line, with the height of a guide where there is one."""

    words: str
    bars: Sequence[Bar] = ()
    points: str = ""
    end: tuple[float, float] | None = None
    guide: float | None = None
    width: int = WIDTH
    height: int = HEIGHT
    bar: int = BAR


def days(numbers: Sequence[int]) -> Trend | None:
    """A bar a day, today's last; None where nothing happened."""
    most = max(numbers, default=0)
    if not most:
        return None
    heights = [max(1.0, round(HEIGHT * one / most, 1)) if one else 0 for one in numbers]
    words = ngettext(
        "The last %(days)s days: %(most)s on the busiest, %(number)s today",
        "The last %(days)s days: %(most)s on the busiest, %(number)s today",
        numbers[-1],
    ) % {"days": len(numbers), "most": thin(most), "number": thin(numbers[-1])}
    step = WIDTH // len(numbers)
    return Trend(
        words=words,
        bars=[
            Bar(x=place * step, y=round(HEIGHT - height, 1), height=height)
            for place, height in enumerate(heights)
            if height
        ],
    )


def accuracy(project: Project) -> Trend | None:
    """Reward accuracy on held-out pairs, over the last rounds that succeeded."""
    newest = project.rounds.filter(state="succeeded").order_by("-number")
    results = newest.values_list("results", flat=True)[:LAST]
    shares = [_number((one.get("held_out_after") or {}).get("accuracy")) for one in results]
    return _line(shares, _("Held-out accuracy of the last rounds: %(shares)s"))


def win_rates(project: Project) -> Trend | None:
    """How often people preferred each policy to the one before it, over the last evaluations."""
    ended = project.evaluations.filter(state=Evaluation.State.ENDED).order_by("-pk")
    shares = [_number(one.get("rate")) for one in ended.values_list("result", flat=True)[:LAST]]
    return _line(shares, _("Win rates of the last evaluations: %(shares)s"))


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


def _line(newest_first: Sequence[float | None], words: str) -> Trend | None:
    """Shares, the oldest first, with a guide at one half; None where there are not two."""
    shares = [one for one in reversed(newest_first) if one is not None]
    if len(shares) < 2:
        return None
    low, high = min(HALF, *shares), max(HALF, *shares)
    span = max(high - low, 0.1)

    def at(share: float) -> float:
        return round(HEIGHT - 2 - (HEIGHT - 4) * (share - low) / span, 1)

    step = (WIDTH - 4) / (len(shares) - 1)
    places = [(round(2 + step * place, 1), at(share)) for place, share in enumerate(shares)]
    return Trend(
        words=words % {"shares": ", ".join(percent(one) for one in shares)},
        points=" ".join(f"{x},{y}" for x, y in places),
        end=places[-1],
        guide=at(HALF),
    )
