"""An evaluation as a page shows it: the rate with its interval, its course, and what stands beside.

Pure but for the two queries of `win_rate`. The chart is drawn on the server, in its own units.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop

from labeling.intervals import wilson
from labeling.models import Comparison, Evaluation
from labeling.win_rates import WinRate, passes_gate, win_rate

WIDTH, HEIGHT = 420, 190
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 10, 24
HALF = 0.5
# A win rate that shrinks by so much at equal length was won by length.
BOUGHT = 0.05
# Share of 4-grams that an answer has had before: under 0.02 for sound text of this length, near 1
# for a loop; so much more means that some answers have begun to loop.
MORE_REPETITION = 0.1

Point = tuple[int, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One outcome of the judgments, as a stretch of a bar."""

    key: str
    title: str
    number: int
    start: float  # per cent of all
    width: float


@dataclass(frozen=True, kw_only=True)
class Course:
    """The interval narrowing, in units of the drawing."""

    width: int
    height: int
    band: str
    line: str
    half: float
    gate: float | None
    left: int
    right: int
    marks: Sequence[tuple[float, str]]
    ends: Sequence[tuple[float, str]]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One automatic figure before and after the round; `warning` says what is wrong with it."""

    title: str
    before: str
    after: str
    warning: str = ""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Everything that the page of an evaluation shows of its judgments."""

    evaluation: Evaluation
    rate: WinRate
    done: int  # comparisons of this evaluation that are judged
    wanted: int  # and all of them
    passed: bool
    checks: Sequence[Check]

    @property
    def judged(self) -> int:
        """Judgments so far, those of earlier evaluations of the same two policies among them."""
        return self.rate.tally.number

    @property
    def earlier(self) -> int:
        """How many of them are from earlier evaluations."""
        return self.judged - self.done

    @property
    def bars(self) -> list[Bar]:
        """Won, tied and lost, in one bar."""
        tally = self.rate.tally
        counts = [
            ("won", _("Won"), tally.wins),
            ("tied", _("Tied"), tally.ties),
            ("lost", _("Lost"), tally.losses),
        ]
        found, start = [], 0.0
        for key, title, number in counts:
            width = 100 * number / tally.number if tally.number else 0.0
            found.append(Bar(key=key, title=title, number=number, start=start, width=width))
            start += width
        return found

    @property
    def verdict(self) -> str:
        """What the interval says, in a sentence."""
        low, high = self.rate.interval
        if not self.judged:
            return _("Nobody has judged it yet.")
        if low > HALF:
            return _("People prefer the new policy: one half lies below the interval.")
        if high < HALF:
            return _("People prefer the policy that serves: one half lies above the interval.")
        return _("Not decided: one half lies within the interval.")

    @property
    def lengths(self) -> tuple[float, float] | None:
        """Mean characters of the new policy's responses and of the other's."""
        if not self.judged:
            return None
        outcomes = self.rate.outcomes
        return fmean(one.length for one in outcomes), fmean(one.against for one in outcomes)

    @property
    def bought(self) -> bool:
        """Whether length has won what the new policy won."""
        controlled = self.rate.at_equal_length
        return controlled is not None and self.rate.rate - controlled[0] > BOUGHT

    @property
    def course(self) -> Course | None:
        """The picture; None before the second judgment."""
        points = self.rate.course
        gate = self.evaluation.project.gate_percent / 100
        return _drawn(points, gate) if len(points) > 1 else None


def standing_of(evaluation: Evaluation) -> Standing:
    """How an evaluation stands now."""
    rate = win_rate(evaluation)
    made = evaluation.comparisons.exclude(state=Comparison.State.RETIRED)
    states = Counter(made.values_list("state", flat=True))
    round_ = getattr(evaluation.policy, "made_by_round", None)
    return Standing(
        evaluation=evaluation,
        rate=rate,
        done=states[Comparison.State.JUDGED],
        wanted=states.total(),
        passed=bool(evaluation.passed_at) or passes_gate(evaluation, rate),
        checks=checks(round_.results) if round_ else [],
    )


def _drawn(points: Sequence[Point], gate: float) -> Course:
    last = points[-1][0]

    def at(number: float, rate: float) -> str:
        x = LEFT + (WIDTH - LEFT - RIGHT) * number / last
        return f"{x:.1f} {_height(rate):.1f}"

    lows = [at(number, low) for number, _rate, low, _high in points]
    highs = [at(number, high) for number, _rate, _low, high in points]
    start = [f"{LEFT} {_height(1):.1f}", f"{LEFT} {_height(0):.1f}"]
    return Course(
        width=WIDTH,
        height=HEIGHT,
        band="M" + "L".join([start[1], *lows, *reversed(highs), start[0]]) + "Z",
        line="M" + "L".join(at(number, rate) for number, rate, _low, _high in points),
        half=_height(HALF),
        gate=_height(gate) if gate > HALF else None,
        left=LEFT,
        right=WIDTH - RIGHT,
        marks=[(_height(share), f"{share:.0%}") for share in (0.0, 0.25, 0.5, 0.75, 1.0)],
        ends=[(LEFT, "0"), (WIDTH - RIGHT, str(last))],
    )


def _height(rate: float) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - rate)


# Of a round's results: where a figure is, its title, and how many digits it is worth.
FIGURES = (
    ("held_out", "kl", gettext_noop("KL to the reference, nats"), 1),
    ("samples", "tokens", gettext_noop("Mean length, tokens"), 0),
    ("samples", "repetition", gettext_noop("Repetition, share of 4-grams"), 2),
)


def checks(results: Mapping[str, Any]) -> list[Check]:
    """What was measured without people: reward accuracy, divergence, length, repetition."""
    found = [_accuracy(results)]
    for group, key, title, digits in FIGURES:
        before, after = (_number(results, f"{group}_{when}", key) for when in ("before", "after"))
        if after is None:
            continue
        repeats = key == "repetition" and before is not None and after - before > MORE_REPETITION
        found.append(
            Check(
                title=_(title),
                before="–" if before is None else f"{before:.{digits}f}",
                after=f"{after:.{digits}f}",
                warning=_("Answers repeat themselves.") if repeats else "",
            )
        )
    return [one for one in found if one is not None]


def _accuracy(results: Mapping[str, Any]) -> Check | None:
    before = _number(results, "held_out_before", "accuracy")
    after = _number(results, "held_out_after", "accuracy")
    pairs = _number(results, "held_out_after", "pairs")
    if before is None or after is None or not pairs:
        return None
    low, high = wilson(after, int(pairs))
    return Check(
        title=_("Reward accuracy on held-out pairs"),
        before=f"{before:.0%}",
        after=_("%(rate)s (%(low)s to %(high)s)")
        % {"rate": f"{after:.0%}", "low": f"{low:.0%}", "high": f"{high:.0%}"},
        warning=_("No better than a coin.") if low < HALF else "",
    )


def _number(results: Mapping[str, Any], group: str, key: str) -> float | None:
    found = results.get(group)
    value = found.get(key) if isinstance(found, dict) else None
    return float(value) if isinstance(value, (int, float)) else None
