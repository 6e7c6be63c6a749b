"""Several rounds held against each other: their curves over one another, and one table."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop

from labeling.templatetags.prefloop import duration, thin
from training.charts import CHARTS, Spec
from training.curves import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    SMOOTHED_SHARE,
    TOP,
    WIDTH,
    Mark,
    number,
    path_of,
    running_mean,
    scale,
    step_marks,
    tick_digits,
    y_ticks,
)
from training.filter_form import filters_in_words
from training.metrics import Metrics, read_metrics
from training.metrics import thin as thinned
from training.models import Round
from training.options import named_options

MOST_ROUNDS = 6  # as many dashes and marks as can be told apart
COMPARED = ("loss", "margin", "accuracy", "kl", "length")
LABEL_APART, LABEL_WIDTH = 11.0, 16.0  # of the numbers at the ends of lines
# What the manifest tells of the held-out pairs and of the samples, before and after.
FIGURES = (
    ("held_out", "accuracy", gettext_noop("Reward accuracy, held-out"), 2),
    ("held_out", "loss", gettext_noop("Loss, held-out"), 3),
    ("held_out", "margin", gettext_noop("Reward margin, held-out"), 2),
    ("held_out", "kl", gettext_noop("KL to the reference, held-out"), 1),
    ("samples", "tokens", gettext_noop("Mean length of answers, tokens"), 0),
    ("samples", "repetition", gettext_noop("Repetition of answers"), 2),
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A round with what it logged; `place` decides its dash and its mark."""

    round: Round
    metrics: Metrics
    place: int

    @property
    def name(self) -> str:
        """What it is called in a chart."""
        return _("Round %(number)s") % {"number": self.round.number}

    @property
    def last_step(self) -> int:
        """The step up to which it is drawn: its last one, or the last that is still to come."""
        return max(1, self.metrics.step, self.metrics.total if self.round.live else 0)


@dataclass(frozen=True, kw_only=True)
class Traced:
    """One round's curve, and the evaluations of its held-out pairs."""

    run: Run
    path: str
    dots: list[tuple[float, float, str]]
    end: tuple[float, float] | None  # where its number stands, beside the end of the line
    last: str


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """A chart of several rounds; everything in the chart's own units."""

    key: str
    title: str
    lines: list[Traced]
    y_marks: list[Mark]
    x_marks: list[Mark]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - 2 * RIGHT

    @property
    def summary(self) -> str:
        """The chart in words, for those who cannot see it."""
        told = ", ".join(f"{one.run.name} {one.last}" for one in self.lines if one.last)
        return f"{self.title}: {told or _('nothing logged yet')}"


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row of the table: a value for each round; `same` where they do not differ."""

    title: str
    values: list[str]

    @property
    def same(self) -> bool:
        """Whether it is no difference."""
        return len(set(self.values)) < 2


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything the page shows."""

    runs: list[Run]
    overlays: list[Overlay]
    results: list[Line]
    different: list[Line]
    alike: list[Line]


def compare_rounds(rounds: Sequence[Round]) -> Comparison:
    """The rounds, at most MOST_ROUNDS, side by side in this order."""
    runs = [
        Run(round=one, metrics=read_metrics(Path(one.run_dir)), place=place)
        for place, one in enumerate(rounds[:MOST_ROUNDS])
    ]
    settings = list(_settings(runs))
    return Comparison(
        runs=runs,
        overlays=[_overlay(spec, runs) for spec in CHARTS if spec.key in COMPARED],
        results=list(_results(runs)),
        different=[line for line in settings if not line.same],
        alike=[line for line in settings if line.same],
    )


def _overlay(spec: Spec, runs: Sequence[Run]) -> Overlay:
    key, name = spec.series[0]
    dots = spec.dots if spec.dots == key else ""
    smooth = {run.place: _smooth(run.metrics, key) for run in runs}
    values = [value for points in smooth.values() for _step, value in points]
    values += [row[dots] for run in runs for row in run.metrics.held_out if dots in row]
    ticks = y_ticks(spec, values)
    last = max(run.last_step for run in runs)
    x = scale(0, last, LEFT, WIDTH - 2 * RIGHT)
    y = scale(ticks[0], ticks[-1], HEIGHT - BOTTOM, TOP)
    last_points = {place: points[-1] for place, points in smooth.items() if points}
    ends = apart({place: (x(at) + 4, y(value)) for place, (at, value) in last_points.items()})
    return Overlay(
        key=spec.key,
        title=_(spec.title) if len(spec.series) == 1 else f"{_(spec.title)}, {_(name)}",
        lines=[_traced(run, smooth[run.place], dots, x, y, ends, spec.digits) for run in runs],
        y_marks=[Mark(at=y(tick), text=number(tick, tick_digits(ticks))) for tick in ticks],
        x_marks=step_marks(last, x),
    )


def _smooth(metrics: Metrics, key: str) -> list[tuple[float, float]]:
    """Steps with the mean over the last of them."""
    rows = [row for row in thinned(metrics.steps, [key]) if key in row]
    values = running_mean([row[key] for row in rows], max(1, len(rows) // SMOOTHED_SHARE))
    return [(row["step"], value) for row, value in zip(rows, values, strict=True)]


def _traced(
    run: Run,
    points: Sequence[tuple[float, float]],
    dots: str,
    x: Callable[[float], float],
    y: Callable[[float], float],
    ends: dict[int, tuple[float, float]],
    digits: int,
) -> Traced:
    held_out = [row for row in run.metrics.held_out if dots in row]
    words = _("%(round)s, held-out at step %(step)s: %(value)s")
    return Traced(
        run=run,
        path=path_of([(x(step), y(value)) for step, value in points]),
        dots=[
            (
                x(row["step"]),
                y(row[dots]),
                words
                % {
                    "round": run.name,
                    "step": f"{row['step']:.0f}",
                    "value": number(row[dots], digits),
                },
            )
            for row in held_out
        ],
        end=ends.get(run.place),
        last=number(points[-1][1], digits) if points else "",
    )


def apart(ends: dict[int, tuple[float, float]]) -> dict[int, tuple[float, float]]:
    """The ends of lines, pushed down where two are too near for their numbers to be read."""
    placed: dict[int, tuple[float, float]] = {}
    for place, (x, y) in sorted(ends.items(), key=lambda one: one[1][1]):
        for near, other in sorted(placed.values(), key=lambda one: one[1]):
            if abs(near - x) < LABEL_WIDTH and y < other + LABEL_APART:
                y = other + LABEL_APART
        placed[place] = (x, round(y, 1))
    return placed


def _results(runs: Sequence[Run]) -> Iterator[Line]:
    yield Line(title=_("State"), values=[str(run.round.get_state_display()) for run in runs])
    for what, key, title, digits in FIGURES:
        values = [_before_after(run, what, key, digits) for run in runs]
        if any(values):
            yield Line(title=_(title), values=values)
    yield Line(
        title=_("Steps"),
        values=[f"{thin(run.metrics.step)} / {thin(run.metrics.total)}" for run in runs],
    )
    yield Line(title=_("Took"), values=[_took(run.round) for run in runs])
    yield Line(
        title=_("Tokens a second"), values=[_of_steps(run, "tokens_per_s", median) for run in runs]
    )
    yield Line(title=_("Memory, MiB"), values=[_of_steps(run, "memory_mb", max) for run in runs])


def _before_after(run: Run, what: str, key: str, digits: int) -> str:
    """A figure of the manifest; of a round without one, what was logged first and last."""
    values = [run.round.results.get(f"{what}_{when}") for when in ("before", "after")]
    if values == [None, None] and what == "held_out" and len(run.metrics.held_out) > 1:
        values = [run.metrics.held_out[0], run.metrics.held_out[-1]]
    told = [value.get(key) for value in values if isinstance(value, dict)]
    known = [number(value, digits) for value in told if isinstance(value, (int, float))]
    return " → ".join(known) if len(known) == 2 else ""


def _took(round_: Round) -> str:
    if round_.started_at is None or round_.finished_at is None:
        return ""
    return duration((round_.finished_at - round_.started_at).total_seconds())


def _of_steps(run: Run, key: str, told: Callable[[list[float]], float]) -> str:
    values = [row[key] for row in run.metrics.steps if key in row]
    return thin(told(values)) if values else ""


def _settings(runs: Sequence[Run]) -> Iterator[Line]:
    """Everything that was chosen, by name, in the order of the first round that has it."""
    chosen = [dict(_chosen(run.round)) for run in runs]
    names: Iterable[str] = dict.fromkeys(name for options in chosen for name in options)
    for name in names:
        yield Line(title=name, values=[options.get(name, "") for options in chosen])


def _chosen(round_: Round) -> Iterator[tuple[str, str]]:
    yield _("From"), str(round_.start)
    yield _("Held to"), str(round_.reference)
    yield from named_options(round_.options)
    yield from filters_in_words(round_.project, round_.filters)
    if round_.snapshot is not None:
        yield _("Pairs"), thin(round_.snapshot.pairs)
        yield _("Held-out pairs"), thin(round_.snapshot.held_out_pairs)
