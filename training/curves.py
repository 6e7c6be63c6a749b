"""A round's curves as data for server-drawn SVG. Pure functions.

All charts of a round have one size and one axis of steps, so that they can be read against each
other.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from django.utils import formats
from django.utils.translation import gettext as _

from training.charts import CHARTS, Spec, reading
from training.guides import Aim, Course, Guide, advise, guides
from training.metrics import Metrics, thin

MOST_STRIPS = 48  # places to hover over
SMOOTHED_SHARE = 12  # the line is the mean over a twelfth of what has been logged

WIDTH, HEIGHT = 340, 176
LEFT, RIGHT, TOP, BOTTOM = 40, 8, 10, 22


@dataclass(frozen=True, kw_only=True)
class Line:
    """A named curve: the mean over the last steps, and what it is the mean of, faintly."""

    name: str
    path: str
    faint: str
    second: bool
    last: str


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A text at a place of the chart, in the chart's own units."""

    at: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A guide or warning line: from x to x at height y."""

    y: float
    start: float
    end: float
    text: str
    warns: bool

    @property
    def short(self) -> bool:
        """Whether it ends early; its text then stands to the right of it."""
        return self.end < WIDTH - RIGHT


@dataclass(frozen=True, kw_only=True)
class Strip:
    """An upright strip to hover over, which tells the values at one step."""

    x: float
    width: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Dot:
    """One evaluation of the held-out pairs."""

    x: float
    y: float
    value: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Everything a template needs to draw one chart; nothing in it is computed later."""

    key: str
    title: str
    reading: str
    advice: list[str]
    lines: list[Line]
    dots: list[Dot]
    dots_name: str
    dots_path: str
    drawn: list[Drawn]
    y_marks: list[Mark]
    x_marks: list[Mark]
    strips: list[Strip]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM

    @property
    def plot_height(self) -> int:
        """Height of the part that curves are in."""
        return self.bottom - self.top

    @property
    def last_dot(self) -> str:
        """The newest held-out value."""
        return self.dots[-1].value if self.dots else ""

    @property
    def summary(self) -> str:
        """The chart in words, for those who cannot see it."""
        ends = ", ".join(f"{line.name} {line.last}" for line in self.lines if line.last)
        told = ends or _("nothing logged yet")
        return _("%(title)s: %(values)s") % {"title": self.title, "values": told}


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value and the `window` - 1 before it (fewer at the start)."""
    return [
        math.fsum(values[max(0, end - window) : end]) / min(window, end)
        for end in range(1, len(values) + 1)
    ]


def nice_ticks(low: float, high: float, most: int = 4) -> list[float]:
    """Round numbers that span [low, high]: 1, 2 or 5 times a power of ten apart."""
    span = high - low
    raw = span / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def charts(metrics: Metrics, aim: Aim | None = None) -> list[Chart]:
    """The charts of a round, whatever has been logged so far."""
    course = Course(
        steps=metrics.steps, held_out=metrics.held_out, total=metrics.total, aim=aim or Aim()
    )
    return [chart(spec, metrics, course) for spec in CHARTS]


def chart(spec: Spec, metrics: Metrics, course: Course) -> Chart:
    """One chart, laid out."""
    keys = [key for key, _name in spec.series]
    rows = thin(metrics.steps, keys)
    dots = [row for row in metrics.held_out if spec.dots in row]
    lines_to_draw = guides(spec.key, course)
    values = [row[key] for row in rows for key in keys if key in row]
    values += [row[spec.dots] for row in dots]
    ticks = y_ticks(spec, values, lines_to_draw)
    x = scale(0, max(metrics.total, metrics.step, 1), LEFT, WIDTH - RIGHT)
    y = scale(ticks[0], ticks[-1], HEIGHT - BOTTOM, TOP)
    points = [(x(row["step"]), y(row[spec.dots]), row) for row in dots]
    return Chart(
        key=spec.key,
        title=_(spec.title),
        reading=reading(spec, course.aim),
        advice=advise(spec.key, course),
        lines=[
            _line(rows, key, _(name), x, y, spec.digits, second=bool(index))
            for index, (key, name) in enumerate(spec.series)
        ],
        dots=[
            _dot(px, py, row["step"], number(row[spec.dots], spec.digits)) for px, py, row in points
        ],
        dots_name=_(spec.dots_name),
        dots_path=path_of([(px, py) for px, py, _row in points]),
        drawn=[_drawn(line, x, y) for line in lines_to_draw if ticks[0] <= line.at <= ticks[-1]],
        y_marks=[Mark(at=y(tick), text=number(tick, tick_digits(ticks))) for tick in ticks],
        x_marks=step_marks(max(metrics.total, metrics.step), x),
        strips=_strips(spec, rows, x),
    )


def number(value: float, digits: int) -> str:
    """A number as it stands on a chart, with a true minus sign and no minus before 0."""
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.removeprefix("-")
    return formats.number_format(text, digits).replace("-", "\u2212")


def y_ticks(spec: Spec, values: Sequence[float], lines: Sequence[Guide] = ()) -> list[float]:
    """Marks of the upright axis that span these values and, where they come near, the lines."""
    if spec.share:
        return [0.0, 0.25, 0.5, 0.75, 1.0]
    shown = [0.0, *values]
    reach = 2 * max(map(abs, shown))
    shown += [line.at for line in lines if line.always or abs(line.at) <= reach]
    low, high = min(shown), max(shown)
    if high - low < 1e-9:
        high = low + 1.0
    return nice_ticks(low, high)


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """Where a value between low and high is drawn, between start and end."""

    def place(value: float) -> float:
        share = min(1.0, max(0.0, (value - low) / (high - low)))
        return round(start + share * (end - start), 1)

    return place


def _line(
    rows: Sequence[dict[str, float]],
    key: str,
    name: str,
    x: Callable[[float], float],
    y: Callable[[float], float],
    digits: int,
    *,
    second: bool,
) -> Line:
    steps = [row["step"] for row in rows if key in row]
    values = [row[key] for row in rows if key in row]
    smooth = running_mean(values, max(1, len(values) // SMOOTHED_SHARE))
    return Line(
        name=name,
        path=path_of([(x(s), y(v)) for s, v in zip(steps, smooth, strict=True)]),
        faint=path_of([(x(s), y(v)) for s, v in zip(steps, values, strict=True)]),
        second=second,
        last=number(smooth[-1], digits) if smooth else "",
    )


def path_of(points: Sequence[tuple[float, float]]) -> str:
    """SVG path data; a lone point gets a stub, since a path of one point is not drawn."""
    if not points:
        return ""
    if len(points) == 1:
        points = [points[0], (points[0][0] + 1, points[0][1])]
    return "M" + "L".join(f"{px:g} {py:g}" for px, py in points)


def _drawn(line: Guide, x: Callable[[float], float], y: Callable[[float], float]) -> Drawn:
    return Drawn(
        y=y(line.at),
        start=LEFT,
        end=WIDTH - RIGHT if line.until is None else x(line.until),
        text=line.text,
        warns=line.warns,
    )


def tick_digits(ticks: Sequence[float]) -> int:
    """How many digits tell these marks apart."""
    step = ticks[1] - ticks[0]
    if step >= 1:
        return 0
    digits = math.ceil(-math.log10(step) - 1e-9)
    return digits if abs(step * 10**digits - round(step * 10**digits)) < 1e-6 else digits + 1


def step_marks(last: int, x: Callable[[float], float]) -> list[Mark]:
    """Marks of the axis of steps, the last one among them."""
    if not last:
        return []
    inner = [tick for tick in nice_ticks(0, last) if tick < last * 0.88 and tick == int(tick)]
    return [Mark(at=x(tick), text=number(tick, 0)) for tick in [*inner, last]]


def _strips(
    spec: Spec, rows: Sequence[dict[str, float]], x: Callable[[float], float]
) -> list[Strip]:
    """Strips that fill the logged part of the chart, each telling its last row's values."""
    every = max(1, math.ceil(len(rows) / MOST_STRIPS))
    chosen = [rows[min(i + every, len(rows)) - 1] for i in range(0, len(rows), every)]
    strips = []
    edge: float = LEFT
    for row in chosen:
        end = x(row["step"])
        told = [
            f"{_(name)} {number(row[key], spec.digits)}" for key, name in spec.series if key in row
        ]
        if end > edge and told:
            shown = {"step": f"{row['step']:.0f}", "values": ", ".join(told)}
            text = _("Step %(step)s: %(values)s") % shown
            strips.append(Strip(x=edge, width=round(end - edge, 1), text=text))
            edge = end
    return strips


def _dot(x: float, y: float, step: float, value: str) -> Dot:
    text = _("Held-out at step %(step)s: %(value)s") % {"step": f"{step:.0f}", "value": value}
    return Dot(x=x, y=y, value=value, text=text)
