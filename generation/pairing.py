"""Which of a prompt's responses to put side by side. Pure functions.

Every rule makes groups of one size and at most one smaller group of the rest, so that what the
rules bring can be compared. A rest of one has nothing to be compared with and is left out.
"""

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from operator import attrgetter

from rapidfuzz.distance import Indel

RANDOM = "random"
ACROSS = "across"
DIFFERENT = "different"
SMALLEST_MARGIN = "smallest_margin"
LARGEST_MARGIN = "largest_margin"
BEST_OF_N = "best_of_n"
NEEDS_REWARDS = frozenset({SMALLEST_MARGIN, LARGEST_MARGIN, BEST_OF_N})

WORDS_READ = 2000  # of a text, when texts are told apart: bounds the cost of very long ones
_UNSPACED = r"\u3040-\u30ff\u3400-\u9fff"  # scripts that put no space between words
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A response that may be compared.

    `reward` is its log-probability under the leading policy minus that under the reference: its
    implicit reward over β, which puts the responses to a prompt in the same order.
    """

    id: int
    text: str
    policy: int
    reward: float | None = None


@dataclass(frozen=True, kw_only=True)
class Group:
    """Candidates to compare, and the way they were chosen: a value of Comparison.Pairing.

    "" where the way that was asked for could not be followed, so that chance took its place.
    """

    ids: tuple[int, ...]
    pairing: str


Candidates = list[Candidate]
_reward: Callable[[Candidate], float] = attrgetter("reward")


def pair(
    candidates: Sequence[Candidate], *, size: int, strategy: str, random_percent: int, seed: int
) -> list[Group]:
    """Comparisons of up to `size` of one prompt's candidates, each used once at most.

    The first draw from `seed` decides whether this prompt is one of the `random_percent` that are
    paired at random whatever the strategy: the others are measured against them. Where a strategy
    cannot be followed, chance takes its place and the groups say "", those of the random share
    too: prompts that have no counterpart must not be measured. Of candidates with the same text
    only the first is used. The candidates' order changes nothing.
    """
    rng = random.Random(seed)
    by_chance = 100 * rng.random() < random_percent
    drawn = _distinct(candidates)
    rng.shuffle(drawn)  # what a rule has no opinion on is left to chance
    way, label = strategy, strategy
    if not _can_follow(strategy, drawn):
        way, label = RANDOM, ""
    elif by_chance:
        way = label = RANDOM
    made = []
    for group in RULES[way](drawn, size):
        rng.shuffle(group)  # the order of slots says nothing about how they were chosen
        mixed = len({one.policy for one in group}) > 1
        pairing = "" if way == ACROSS and not mixed else label
        made.append(Group(ids=tuple(one.id for one in group), pairing=pairing))
    return made


def _distinct(candidates: Sequence[Candidate]) -> Candidates:
    """By id, without those whose text an earlier one has."""
    by_text: dict[str, Candidate] = {}
    for one in sorted(candidates, key=attrgetter("id")):
        by_text.setdefault(one.text, one)
    return list(by_text.values())


def _can_follow(strategy: str, candidates: Candidates) -> bool:
    if strategy in NEEDS_REWARDS:
        return all(one.reward is not None and math.isfinite(one.reward) for one in candidates)
    return strategy != ACROSS or len({one.policy for one in candidates}) > 1


def _cut(candidates: Candidates, size: int) -> list[Candidates]:
    cut = [candidates[start : start + size] for start in range(0, len(candidates), size)]
    return [group for group in cut if len(group) >= 2]


def _across(candidates: Candidates, size: int) -> list[Candidates]:
    """Deal the candidates out, policy after policy, each to the group that has least of its policy.

    The policy with the most comes last and fills up: a group has one policy only where all others
    together have fewer candidates than there are groups.
    """
    number = Counter(one.policy for one in candidates)
    turns = sorted(number, key=number.__getitem__)  # of as many each, by chance
    room = [min(size, len(candidates) - start) for start in range(0, len(candidates), size)]
    groups: list[Candidates] = [[] for _ in room]

    def crowded(at: int, policy: int) -> tuple[float, float]:
        its_own = sum(one.policy == policy for one in groups[at])
        return its_own / room[at], len(groups[at]) / room[at]

    for one in sorted(candidates, key=lambda one: turns.index(one.policy)):
        free = [at for at, group in enumerate(groups) if len(group) < room[at]]
        groups[min(free, key=lambda at: crowded(at, one.policy))].append(one)
    return [group for group in groups if len(group) >= 2]


def _different(candidates: Candidates, size: int) -> list[Candidates]:
    words = {one.id: _words(one.text) for one in candidates}
    return _far_apart(
        candidates, size, lambda a, b: Indel.normalized_distance(words[a.id], words[b.id])
    )


def _words(text: str) -> list[str]:
    return [found.group() for found in islice(_WORD.finditer(text.casefold()), WORDS_READ)]


def _largest_margin(candidates: Candidates, size: int) -> list[Candidates]:
    """Pairs from the outermost rewards inwards; larger groups spread out between the two."""
    return _far_apart(candidates, size, lambda a, b: abs(_reward(a) - _reward(b)))


def _far_apart(
    candidates: Candidates, size: int, distance: Callable[[Candidate, Candidate], float]
) -> list[Candidates]:
    """Groups that begin with the two farthest apart of those that are left.

    Each further member is the one that is farthest from the nearest member so far.
    """
    apart = {pair: distance(*pair) for pair in combinations(candidates, 2)}
    apart |= {(b, a): far for (a, b), far in apart.items()}
    left = dict.fromkeys(candidates)
    groups = []
    for a, b in sorted(combinations(candidates, 2), key=apart.__getitem__, reverse=True):
        if a not in left or b not in left:
            continue
        group = [a, b]
        nearest = {one: min(apart[a, one], apart[b, one]) for one in left if one not in group}
        while nearest and len(group) < size:
            new = max(nearest, key=nearest.__getitem__)
            del nearest[new]
            group.append(new)
            nearest = {one: min(near, apart[new, one]) for one, near in nearest.items()}
        left = dict.fromkeys(nearest)
        groups.append(group)
    return groups


def _smallest_margin(candidates: Candidates, size: int) -> list[Candidates]:
    """Neighbours in order of reward; of one too many, whoever widens the groups most goes."""
    ordered = sorted(candidates, key=_reward)
    if len(ordered) % size == 1:
        rests = [ordered[:at] + ordered[at + 1 :] for at in range(0, len(ordered), size)]
        ordered = min(rests, key=lambda rest: _width(_cut(rest, size)))
    return _cut(ordered, size)


def _width(groups: list[Candidates]) -> float:
    return sum(_reward(group[-1]) - _reward(group[0]) for group in groups)


def _best_of_n(candidates: Candidates, size: int) -> list[Candidates]:
    """The best by reward with others drawn at random: one group a prompt."""
    best = max(candidates, key=_reward, default=None)
    others = [one for one in candidates if one is not best]
    return [[best, *others[: size - 1]]] if best and others else []


RULES: dict[str, Callable[[Candidates, int], list[Candidates]]] = {
    RANDOM: _cut,
    ACROSS: _across,
    DIFFERENT: _different,
    SMALLEST_MARGIN: _smallest_margin,
    LARGEST_MARGIN: _largest_margin,
    BEST_OF_N: _best_of_n,
}
