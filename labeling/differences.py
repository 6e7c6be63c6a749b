"""Which words of two texts differ. Pure."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rapidfuzz.distance import LCSseq

MOST_CHARACTERS = 64 * 1024  # of one text
MOST_WORDS = 16 * 1024  # of one text; time grows with the product of both: 0.1 s at the most
BY_CHANCE = 3  # words in a row
# Scripts that put no spaces between words are compared by character. An apostrophe is part of a
# word, every other sign is a word of its own.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_SIGNS = "!-&(-/:-@\\[-^`{-~\u00a1-\u00bf\u2010-\u2018\u201a-\u2027\u2030-\u205e\u3001-\u303f"
_WORD = re.compile(f"[{_UNSPACED}]|[{_SIGNS}]|[^\\s{_UNSPACED}{_SIGNS}]+")
_Words = Sequence[re.Match[str]]


@dataclass(frozen=True)
class Piece:
    """A run of a text: words that the other text has, too, or words that differ."""

    text: str
    differs: bool


@dataclass(frozen=True, kw_only=True)
class Differences:
    """Both texts in pieces, which joined are the texts themselves, white space and all."""

    first: list[Piece]
    second: list[Piece]
    shared: float  # of the words of both texts, the share that is not marked


class _Run(NamedTuple):
    """Words of the first and of the second text, either of them perhaps none, that differ."""

    first: range
    second: range

    @property
    def size(self) -> int:
        return max(len(self.first), len(self.second))


def differences(first: str, second: str) -> Differences | None:
    """The words of each text that the other does not have in that place; None if too long.

    What both have only by chance, a few words between longer runs that differ, counts as
    different: marked phrases read better than crumbs. White space alone never differs.
    """
    if max(len(first), len(second)) > MOST_CHARACTERS:
        return None
    ours, theirs = list(_WORD.finditer(first)), list(_WORD.finditer(second))
    words = len(ours) + len(theirs)
    if max(len(ours), len(theirs)) > MOST_WORDS:
        return None
    runs = list(_without_chance(_runs(ours, theirs)))
    marked = sum(len(run.first) + len(run.second) for run in runs)
    return Differences(
        first=list(_pieces(first, ours, [run.first for run in runs])),
        second=list(_pieces(second, theirs, [run.second for run in runs])),
        shared=1 - marked / words if words else 1.0,
    )


def _runs(ours: _Words, theirs: _Words) -> Iterator[_Run]:
    numbers: dict[str, int] = {}  # rapidfuzz compares hashes; of small numbers no two are alike
    first, second = (
        [numbers.setdefault(word[0], len(numbers)) for word in words] for words in (ours, theirs)
    )
    for step in LCSseq.opcodes(first, second):
        if step.tag != "equal":
            yield _Run(range(step.src_start, step.src_end), range(step.dest_start, step.dest_end))


def _without_chance(runs: Iterable[_Run]) -> Iterator[_Run]:
    """The runs, those joined that only a chance agreement keeps apart."""
    last: _Run | None = None
    for run in runs:
        if last is None:
            last = run
            continue
        between = run.first.start - last.first.stop
        if between == 0 or (between <= BY_CHANCE and between < min(last.size, run.size)):
            last = _Run(
                range(last.first.start, run.first.stop), range(last.second.start, run.second.stop)
            )
        else:
            yield last
            last = run
    if last is not None:
        yield last


def _pieces(text: str, words: _Words, runs: Iterable[range]) -> Iterator[Piece]:
    end = 0
    for run in runs:
        if not run:
            continue
        begin = words[run.start].start()
        if begin > end:
            yield Piece(text[end:begin], differs=False)
        end = words[run.stop - 1].end()
        yield Piece(text[begin:end], differs=True)
    if end < len(text):
        yield Piece(text[end:], differs=False)
