"""The starter policy's corpus and a classifier of its four styles. Standard library only.

The corpus is about 450 everyday prompts, each answered in four styles. The starter policy is
trained on it, and the demo's simulated annotators use the classifier to tell which style a
response is written in.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

STYLES = ("careful", "curt", "reckless", "long_winded")
CORPUS_DIR = Path(__file__).resolve().parent / "corpus"

_WORD = re.compile(r"[a-z']+")
# The smallest word count of each length band; band 0 is below the first of them.
_LENGTH_BANDS = (4, 9, 12, 16, 20, 24, 28, 33, 40, 50, 65)
# A response has one length and many words: its length counts as this many words.
_LENGTH_WEIGHT = 3.0


class CorpusError(Exception):
    """The corpus cannot be read; the message names the file and the line."""


@dataclass(frozen=True, kw_only=True)
class CorpusRow:
    """One prompt and a response to it in each of the four styles."""

    id: str
    topic: str
    prompt: str
    careful: str
    curt: str
    reckless: str
    long_winded: str

    def responses(self) -> dict[str, str]:
        """The four responses by style, in the order of `STYLES`."""
        return {style: getattr(self, style) for style in STYLES}


@dataclass(frozen=True, kw_only=True)
class BundledPrompt:
    """One prompt of the corpus, without its responses."""

    id: str
    topic: str
    prompt: str


def read_corpus() -> list[CorpusRow]:
    """Every row of the corpus, ordered by file name and line; raises CorpusError."""
    paths = sorted(CORPUS_DIR.glob("*.jsonl"))
    rows = [row for path in paths for row in _rows(path)]
    if not rows:
        raise CorpusError(f"No corpus rows in {CORPUS_DIR}. Reinstall Prefloop.")
    return rows


def bundled_prompts() -> list[BundledPrompt]:
    """The prompts of the corpus, in the corpus's order."""
    return [BundledPrompt(id=r.id, topic=r.topic, prompt=r.prompt) for r in read_corpus()]


def _rows(path: Path) -> Iterator[CorpusRow]:
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _row(line, f"{path.name} line {number}")


def _row(line: str, where: str) -> CorpusRow:
    try:
        data = json.loads(line)
    except json.JSONDecodeError as error:
        raise CorpusError(f"{where} is not JSON: {error}") from error
    keys = {field.name for field in fields(CorpusRow)}
    if not isinstance(data, dict) or set(data) != keys:
        raise CorpusError(f"{where} must be an object with exactly the keys {sorted(keys)}")
    if not all(isinstance(value, str) and value.strip() for value in data.values()):
        raise CorpusError(f"{where}: every value must be a non-empty string")
    return CorpusRow(**data)


class StyleClassifier:
    """Multinomial naive Bayes over word unigrams, bigrams and a length band.

    Laplace smoothing (add one); equal priors, because the corpus has every style once a prompt.
    """

    def __init__(self, rows: Iterable[CorpusRow]) -> None:
        self._counts: dict[str, Counter[str]] = {style: Counter() for style in STYLES}
        for row in rows:
            for style, text in row.responses().items():
                self._counts[style].update(_features(text))
        vocabulary = {feature for counts in self._counts.values() for feature in counts}
        self._denominators = {
            style: counts.total() + len(vocabulary) + 1 for style, counts in self._counts.items()
        }

    @classmethod
    def from_corpus(cls) -> "StyleClassifier":
        """The classifier trained on the whole corpus (built once a process)."""
        return _corpus_classifier()

    def classify(self, text: str) -> str:
        """The likeliest of `STYLES`; equal scores go to the earlier style."""
        scores = self.scores(text)
        return max(STYLES, key=scores.__getitem__)

    def scores(self, text: str) -> dict[str, float]:
        """log p(text | style) for each style, in nats, up to a constant that all share."""
        features = _features(text)
        return {style: self._log_likelihood(style, features) for style in STYLES}

    def _log_likelihood(self, style: str, features: list[str]) -> float:
        counts, log_total = self._counts[style], math.log(self._denominators[style])
        return sum(
            (_LENGTH_WEIGHT if feature.startswith("#") else 1.0)
            * (math.log(counts[feature] + 1) - log_total)
            for feature in features
        )


@cache
def _corpus_classifier() -> StyleClassifier:
    return StyleClassifier(read_corpus())


def _features(text: str) -> list[str]:
    words = _WORD.findall(text.lower())
    band = sum(len(words) >= smallest for smallest in _LENGTH_BANDS)
    bigrams = [f"{first} {second}" for first, second in zip(words, words[1:], strict=False)]
    return [*words, *bigrams, f"#{band}"]
