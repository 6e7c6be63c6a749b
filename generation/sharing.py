"""Which policy writes which of a prompt's responses. A pure function."""

import math
import random
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def share_out(weights: Mapping[T, int], *, k: int, turn: int, seed: int) -> list[T]:
    """Who writes the k responses of the prompt whose turn it is (0 for a batch's first).

    Each policy gets its share of k, rounded down or up. Over every run of prompts as long as the
    weights' sum (in lowest terms) the roundings add up to exactly its share. From one such run to
    the next the policies change places, so that all of them come to be compared.
    """
    lowest = math.gcd(*weights.values())
    parts = {one: weight // lowest for one, weight in weights.items()}
    total = sum(parts.values())
    cycle, place = divmod(turn, total)
    order = list(parts)
    random.Random(f"{seed}:{cycle}").shuffle(order)
    number = {}
    passed = 0  # remainders so far, in parts of `total`: each crossing of place + n·total rounds up
    for one in order:
        whole, rest = divmod(k * parts[one], total)
        ups = _crossed(passed + rest, place, total) - _crossed(passed, place, total)
        number[one] = whole + ups
        passed += rest
    return [one for one in parts for _ in range(number[one])]


def _crossed(reached: int, place: int, total: int) -> int:
    """How many of the marks place, place + total, place + 2·total, ... lie below `reached`."""
    return max(0, -(-(reached - place) // total))
