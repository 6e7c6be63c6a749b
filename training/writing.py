"""What the policy writes: answers to held-out prompts before and after a round. Pure.

Before and after are drawn with the same luck, so an answer changes only where the policy has. The
texts are model output: hostile until a template has escaped them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop

from labeling.differences import Piece, differences
from labeling.evaluation_standing import MORE_REPETITION
from labeling.intervals import wilson
from training.events import Events
from training.heldout import Row
from training.metrics import numbers_in

LONGER = 1.25  # answers growing by a quarter are what R-DPO and others call length exploitation
FEWER_ENDED = 0.2  # share of answers that still stop by themselves
FIGURES = (
    ("tokens", gettext_noop("Mean length, tokens"), 0, None),
    ("tokens_p95", gettext_noop("One in twenty is longer than"), 0, None),
    ("repetition", gettext_noop("Repetition, share of 4-grams"), 2, None),
    ("ended", gettext_noop("Ended by themselves, share"), 2, True),
)


@dataclass(frozen=True, kw_only=True)
class Answers:
    """One prompt's answers in pieces, those that differ marked; `after` is empty until then."""

    prompt: str
    before: list[Piece]
    after: list[Piece]

    @property
    def same(self) -> bool:
        """Whether the round has changed nothing here."""
        return [piece.text for piece in self.before] == [piece.text for piece in self.after]


@dataclass(frozen=True, kw_only=True)
class Writing:
    """Figures over so many prompts, what they warn of, and a few of the texts."""

    prompts: int
    rows: list[Row]
    warnings: list[str]
    answers: list[Answers]
    done: bool  # whether there is an after


def writing(results: Mapping[str, Any], events: Events) -> Writing | None:
    """What a round's samples say; None where nothing was sampled."""
    before = _figures(results, events, "before")
    after = _figures(results, events, "after")
    if not before:
        return None
    return Writing(
        prompts=int(before.get("prompts", 0)),
        rows=list(_rows(before, after)),
        warnings=list(_warnings(before, after)),
        answers=list(_answers(events)),
        done=bool(after),
    )


def _figures(results: Mapping[str, Any], events: Events, when: str) -> dict[str, float]:
    """The manifest's figures or, as long as there is none, the event's."""
    told = results.get(f"samples_{when}") or events.samples.get(when, {}).get("metrics")
    return numbers_in(told) if isinstance(told, dict) else {}


def _rows(before: Mapping[str, float], after: Mapping[str, float]) -> Iterator[Row]:
    prompts = int(before.get("prompts", 0))
    for key, title, digits, better in FIGURES:
        if key not in before or key not in after:
            continue
        share = key == "ended" and prompts > 0
        yield Row(
            title=_(title),
            before=before[key],
            after=after[key],
            digits=digits,
            before_interval=wilson(before[key], prompts) if share else None,
            after_interval=wilson(after[key], prompts) if share else None,
            higher_is_better=better,
        )


def _warnings(before: Mapping[str, float], after: Mapping[str, float]) -> Iterator[str]:
    """What is wrong with the answers, in words and with what to do."""
    first, last = before.get("tokens"), after.get("tokens")
    if first and last and last > LONGER * first:
        yield _(
            "The answers to these prompts have become %(share)s longer. Length is the easiest "
            "thing to learn; if it was not meant, take a length penalty (with DPO) or the mean "
            "log-probability a token."
        ) % {"share": f"{last / first - 1:.0%}"}
    if _change(before, after, "repetition") > MORE_REPETITION:
        yield _(
            "Answers repeat themselves: the policy is losing its language. Do not promote it; "
            "lower the learning rate or take fewer epochs."
        )
    if _change(before, after, "ended") < -FEWER_ENDED:
        yield _(
            "Fewer answers come to an end by themselves. Look whether chosen responses were cut "
            "off when they were sampled: nobody can learn an ending from those."
        )


def _change(before: Mapping[str, float], after: Mapping[str, float], key: str) -> float:
    return after[key] - before[key] if key in before and key in after else 0.0


def _answers(events: Events) -> Iterator[Answers]:
    """Answers to the same prompts, which both events tell in the same order."""
    after = _texts(events, "after")
    for place, (prompt, first) in enumerate(_texts(events, "before")):
        if place < len(after) and after[place][0] == prompt:
            yield _held_against(prompt, first, after[place][1])
        else:
            yield Answers(prompt=prompt, before=_whole(first), after=[])


def _held_against(prompt: str, first: str, last: str) -> Answers:
    found = differences(first, last)
    if found is None:  # too long
        return Answers(prompt=prompt, before=_whole(first), after=_whole(last))
    return Answers(prompt=prompt, before=found.first, after=found.second)


def _whole(text: str) -> list[Piece]:
    return [Piece(text, differs=False)]


def _texts(events: Events, when: str) -> list[tuple[str, str]]:
    """Prompts with responses, as the event tells them."""
    texts = events.samples.get(when, {}).get("texts")
    rows = [row for row in texts if isinstance(row, dict)] if isinstance(texts, list) else []
    return [(str(row.get("prompt", "")), str(row.get("response", ""))) for row in rows]
