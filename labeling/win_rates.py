"""How a new policy does against the one that serves, from what people have judged so far."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

from django.db.models.functions import Length
from django.utils.translation import gettext as _

from labeling.length_control import length_controlled
from labeling.models import Comparison, Evaluation, Judgment, Policy, PolicyEvent, Slot
from labeling.sequential import interval, intervals

POINTS = 24  # of the course that the page draws


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One judgment, seen from the new policy."""

    prompt: int
    score: float  # 1 won, ½ tied, 0 lost
    bad: bool  # both responses were called bad
    length: int  # characters of the new policy's response
    against: int  # and of the other's


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Judgments counted, seen from the new policy."""

    wins: int
    ties: int
    losses: int

    @property
    def number(self) -> int:
        """All of them."""
        return self.wins + self.ties + self.losses


@dataclass(frozen=True)
class WinRate:
    """An evaluation's judgments in the order in which they were made."""

    outcomes: Sequence[Outcome]

    @cached_property
    def tally(self) -> Tally:
        """Wins, ties and losses."""
        wins = sum(one.score == 1 for one in self.outcomes)
        losses = sum(one.score == 0 for one in self.outcomes)
        ties = len(self.outcomes) - wins - losses
        return Tally(wins=wins, ties=ties, losses=losses)

    @property
    def rate(self) -> float:
        """The mean over prompts of their scores, a tie half a win; one half without any."""
        return fmean(by_prompt(self.outcomes)) if self.outcomes else 0.5

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95 % confidence sequence: holds however often it is looked at."""
        return interval(by_prompt(self.outcomes))

    @property
    def low(self) -> float:
        """What the gate looks at."""
        return self.interval[0]

    @property
    def both_bad(self) -> int:
        """Judgments that called both bad."""
        return sum(one.bad for one in self.outcomes)

    @cached_property
    def at_equal_length(self) -> tuple[float, float, float] | None:
        """The length-controlled win rate with its 95 % interval; None while there is too little."""
        return length_controlled(
            [one.score for one in self.outcomes],
            [one.length - one.against for one in self.outcomes],
        )

    @cached_property
    def course(self) -> list[tuple[int, float, float, float]]:
        """How the interval narrowed: judgments, rate, low, high at some moments, the last with."""
        number = len(self.outcomes)
        ends = sorted({round(number * place / POINTS) for place in range(1, POINTS + 1)} - {0})
        samples = [by_prompt(self.outcomes[:end]) for end in ends]
        found = intervals(samples) if samples else []
        return [
            (end, fmean(sample), low, high)
            for end, sample, (low, high) in zip(ends, samples, found, strict=True)
        ]

    def as_json(self) -> dict[str, Any]:
        """For `Evaluation.result`."""
        controlled = self.at_equal_length
        return {
            "wins": self.tally.wins,
            "ties": self.tally.ties,
            "losses": self.tally.losses,
            "both_bad": self.both_bad,
            "rate": self.rate,
            "low": self.interval[0],
            "high": self.interval[1],
            "at_equal_length": list(controlled) if controlled else None,
        }


def by_prompt(outcomes: Sequence[Outcome]) -> list[float]:
    """Each prompt's mean score: what one prompt says, however often it was judged."""
    scores: dict[int, list[float]] = defaultdict(list)
    for one in outcomes:
        scores[one.prompt].append(one.score)
    return [fmean(found) for found in scores.values()]


def win_rate(evaluation: Evaluation) -> WinRate:
    """What has been judged of an evaluation's two policies so far; two queries.

    Earlier evaluations of the same two belong to it: the interval holds over one sequence, and
    would not over the best of several. Judgments count that are current; those of comparisons that
    a manager withdrew do not.
    """
    comparisons = Comparison.objects.filter(
        evaluation__policy=evaluation.policy_id, evaluation__against=evaluation.against_id
    ).exclude(state=Comparison.State.RETIRED)
    slots: dict[int, dict[int, tuple[int | None, int]]] = {}
    rows = Slot.objects.filter(comparison__in=comparisons).values_list(
        "comparison", "index", "response__policy", Length("response__text")
    )
    for comparison, index, policy, length in rows:
        slots.setdefault(comparison, {})[index] = (policy, length)
    judged = (
        Judgment.objects.counted()
        .filter(comparison__in=comparisons)
        .order_by("created_at", "id")
        .values_list("comparison", "comparison__prompt", "tiers", "all_bad")
    )
    return WinRate(
        [
            _outcome(prompt, tiers, bad, slots[key], evaluation.policy_id)
            for key, prompt, tiers, bad in judged
        ]
    )


def passes_gate(evaluation: Evaluation, rate: WinRate) -> bool:
    """Whether the judgments so far let the policy serve."""
    return rate.low * 100 > evaluation.project.gate_percent


def gate_words(rate: WinRate) -> str:
    """The evidence in a sentence, for the record of a promotion."""
    return _("Won %(rate)s of %(number)s judgments against its predecessor, at least %(low)s.") % {
        "rate": f"{rate.rate:.0%}",
        "number": rate.tally.number,
        "low": f"{rate.low:.0%}",
    }


def evidence(policy: Policy, serving: Policy) -> str:
    """What people's judgments say for putting a policy in another's place; "" if not enough.

    Where the gate was passed, the figures of that moment. Nothing after the policy was rolled back
    to that other one: then a person says why.
    """
    found = policy.evaluations.filter(against=serving).select_related("project")
    newest = found.order_by("-id").first()
    if newest is None or was_rolled_back(policy, serving):
        return ""
    earlier = found.filter(passed_at__isnull=False).order_by("passed_at").first()
    if earlier is not None:
        return str(earlier.result.get("passed_with") or gate_words(win_rate(newest)))
    rate = win_rate(newest)
    return gate_words(rate) if passes_gate(newest, rate) else ""


def was_rolled_back(policy: Policy, serving: Policy) -> bool:
    """Whether this one served in the other's place and was taken back."""
    return PolicyEvent.objects.filter(
        kind=PolicyEvent.Kind.ROLLED_BACK, policy=serving, replaced=policy
    ).exists()


def _outcome(
    prompt: int,
    tiers: list[list[int]],
    bad: bool,
    slots: dict[int, tuple[int | None, int]],
    policy: int,
) -> Outcome:
    own = next(index for index, (writer, _length) in slots.items() if writer == policy)
    other = next(index for index in slots if index != own)
    place = {slot: rank for rank, tier in enumerate(tiers) for slot in tier}
    better, worse = place[own] < place[other], place[own] > place[other]
    return Outcome(
        prompt=prompt,
        score=1.0 if better else 0.0 if worse else 0.5,
        bad=bad,
        length=slots[own][1],
        against=slots[other][1],
    )
