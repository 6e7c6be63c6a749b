"""Which of a prompt's responses to put side by side. Pure functions."""

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def groups(responses: Sequence[T], *, size: int, seed: int) -> list[list[T]]:
    """Shuffle, then cut into comparisons of `size`, using each response once.

    A rest of one has nothing to be compared with and is left out.
    """
    shuffled = list(responses)
    random.Random(seed).shuffle(shuffled)
    cut = [shuffled[start : start + size] for start in range(0, len(shuffled), size)]
    return [group for group in cut if len(group) >= 2]
