"""Simulated annotators' hidden taste, known here and nowhere else in the product.

Careful over reckless, concise over long-winded; one judgment in ten is random, equally good
answers are tied.
"""

import random
from collections.abc import Sequence

from training.starter.styles import StyleClassifier

# What an answer of each style is worth to these people.
WORTH = {"careful": 3, "curt": 2, "long_winded": 1, "reckless": 0}
PREFERRED = "careful"
NOISE = 0.10  # share of judgments that are random rankings


class Taste:
    """Ranks answers as one simulated person does."""

    def __init__(self, classifier: StyleClassifier, seed: int) -> None:
        self._classifier = classifier
        self._random = random.Random(seed)

    def rank(self, texts: Sequence[str]) -> list[list[int]]:
        """Tiers of positions in `texts`, best first."""
        if self._random.random() < NOISE:
            return [[place] for place in self._random.sample(range(len(texts)), len(texts))]
        worth = [WORTH[self._classifier.classify(text)] for text in texts]
        levels = sorted(set(worth), reverse=True)
        return [[place for place, value in enumerate(worth) if value == level] for level in levels]


def preferred_share(
    texts: Sequence[str], times: Sequence[int], classifier: StyleClassifier
) -> float:
    """Share of sampled answers in the preferred style; `times` is how often each was sampled."""
    preferred = sum(
        count
        for text, count in zip(texts, times, strict=True)
        if classifier.classify(text) == PREFERRED
    )
    return preferred / sum(times)
