"""Varied copies of corpus rows. Standard library only.

The starter policy sees every row about a dozen times. Seen unchanged, a row is learnt by heart.
Two variations keep it from that: the prompt is asked in other words, and the row's subject is
exchanged for another row's in the prompt and in all its responses. The second makes the model
look at the prompt for the subject instead of remembering it.
"""

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from training.starter.styles import STYLES, CorpusRow

_WORD = re.compile(r"[A-Za-z]+")
_SHORTEST_SUBJECT = 4
_LEAST_USES = 2  # a subject is named in at least this many of a row's four responses
_NOT_SUBJECTS = frozenset(
    "about after again always away back been before best better both clean come could does down"
    " each even every feel find first from give gets good have help here into just keep know last"
    " left like little long look lots made make many more most much need never next only other"
    " over part people right safe should slow some start stop sure take than that their them then"
    " there they thing things this time times want week well what when where which while will"
    " with without work would year your days small learn really ready often once whole same until"
    " tell talk going using getting doing making keeping being".split()
)
_HOW = ("How do I ", "How can I ", "How should I ", "What is the best way to ")
_ASK = (*_HOW, "Please tell me how to ", "I want to ", "Can you tell me how to ")
_OPENINGS = ("Hello. ", "Please help. ", "I have a question. ", "Quick question. ")
_ENDINGS = (" Thank you.", " Any advice?", " What do you think?", " Please help me.")


@dataclass(frozen=True, kw_only=True)
class Variations:
    """How often a row is varied; each share is a probability."""

    rephrased_share: float
    exchanged_share: float


def subject(row: CorpusRow) -> str | None:
    """The prompt's lower-case word that its responses name most, or None if none stands out."""
    uses: Counter[str] = Counter()
    for text in row.responses().values():
        uses.update(set(_WORD.findall(text)))
    words = [word for word in _WORD.findall(row.prompt) if _may_be_subject(word)]
    best = max(words, key=lambda word: uses[word], default=None)
    return best if best is not None and uses[best] >= _LEAST_USES else None


def _may_be_subject(word: str) -> bool:
    return len(word) >= _SHORTEST_SUBJECT and word.islower() and word not in _NOT_SUBJECTS


class Varier:
    """Draws varied copies of rows; the draws follow from the random generator alone."""

    def __init__(self, rows: Sequence[CorpusRow], variations: Variations) -> None:
        self._variations = variations
        self._subjects = {row.id: subject(row) for row in rows}
        self._by_shape: dict[tuple[bool, str], list[str]] = {}
        for word in sorted({word for word in self._subjects.values() if word}):
            self._by_shape.setdefault(_shape(word), []).append(word)

    def vary(self, row: CorpusRow, rng: random.Random) -> CorpusRow:
        """The row itself or a varied copy of it, with the same id."""
        if rng.random() < self._variations.exchanged_share:
            row = self._exchange_subject(row, rng)
        if rng.random() < self._variations.rephrased_share:
            row = replace(row, prompt=rephrase(row.prompt, rng))
        return row

    def _exchange_subject(self, row: CorpusRow, rng: random.Random) -> CorpusRow:
        old = self._subjects[row.id]
        if old is None:
            return row
        new = rng.choice(self._by_shape[_shape(old)])
        texts = {key: _exchange(getattr(row, key), old, new) for key in ("prompt", *STYLES)}
        return replace(row, **texts)


def rephrase(prompt: str, rng: random.Random) -> str:
    """The same request in other words: another opening, a greeting or a closing."""
    for opening in _HOW:
        if prompt.startswith(opening):
            prompt = _reopen(prompt.removeprefix(opening), rng)
            break
    kind = rng.randrange(4)
    if kind == 0:
        return rng.choice(_OPENINGS) + prompt
    if kind == 1:
        return prompt + rng.choice(_ENDINGS)
    return prompt.rstrip("?.") if kind == 2 else prompt


def _reopen(rest: str, rng: random.Random) -> str:
    opening = rng.choice(_ASK)
    if opening in _HOW or opening.startswith("Can"):
        return opening + rest
    return opening + rest.replace("?", ".")


def _shape(word: str) -> tuple[bool, str]:
    """Words of one shape can stand for each other: "a" or "an", one or many, noun or verb form."""
    ending = next((end for end in ("ing", "ed", "ly", "s") if word.endswith(end)), "")
    return word[0] in "aeiou", ending


def _exchange(text: str, old: str, new: str) -> str:
    text = re.sub(rf"\b{old}\b", new, text)
    return re.sub(rf"\b{old.capitalize()}\b", new.capitalize(), text)
