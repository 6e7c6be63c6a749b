"""Which responses are put side by side."""

import time
from collections import Counter
from collections.abc import Sequence
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generation.pairing import NEEDS_REWARDS, RULES, WORDS_READ, Candidate, Group, pair
from labeling.models import Comparison

STRATEGIES = sorted(RULES)
WORDS = ["an", "apple", "a", "day", "keeps", "the", "doctor", "away", "Brot", "パン"]
sizes = st.integers(2, 8)
seeds = st.integers(0, 2**63)


@st.composite
def candidates(draw, most: int = 16, policies: int = 3) -> list[Candidate]:
    """Candidates with ids of their own, some with equal texts or rewards."""
    texts = draw(
        st.lists(st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join), max_size=most)
    )
    return [
        Candidate(
            id=number,
            text=text,
            policy=draw(st.integers(1, policies)),
            reward=draw(st.floats(-50, 50)),
        )
        for number, text in enumerate(texts, start=1)
    ]


def scored(*rewards: float | None) -> list[Candidate]:
    return [
        Candidate(id=number, text=f"Answer {number}.", policy=1, reward=reward)
        for number, reward in enumerate(rewards)
    ]


def of_policies(*numbers: int) -> list[Candidate]:
    """So many candidates of each policy."""
    policies = [policy for policy, number in enumerate(numbers) for _ in range(number)]
    return [Candidate(id=at, text=f"Answer {at}", policy=one) for at, one in enumerate(policies)]


def telling(*texts: str) -> list[Candidate]:
    return [Candidate(id=at, text=text, policy=1) for at, text in enumerate(texts)]


def follow(strategy: str, found: Sequence[Candidate], size: int = 2, seed: int = 0) -> list[Group]:
    """Pair with no random share."""
    return pair(found, size=size, strategy=strategy, random_percent=0, seed=seed)


def members(groups: list[Group]) -> set[tuple[int, ...]]:
    """Who is with whom; the order within a group means nothing."""
    return {tuple(sorted(group.ids)) for group in groups}


def test_every_strategy_is_one_that_a_comparison_can_name() -> None:
    assert sorted(Comparison.Pairing.values) == STRATEGIES
    assert set(STRATEGIES) >= NEEDS_REWARDS


@given(candidates(), sizes, st.sampled_from(STRATEGIES), st.integers(0, 100), seeds)
def test_each_candidate_is_used_once_and_never_beside_its_own_text(
    found, size, strategy, percent, seed
) -> None:
    groups = pair(found, size=size, strategy=strategy, random_percent=percent, seed=seed)
    texts = {one.id: one.text for one in found}
    used = [id for group in groups for id in group.ids]
    assert len(used) == len(set(used))
    for group in groups:
        assert 2 <= len(group.ids) <= size
        assert len({texts[id] for id in group.ids}) == len(group.ids)
        assert group.pairing in {strategy, "random", ""}


@given(candidates(), sizes, st.sampled_from(sorted(set(STRATEGIES) - {"best_of_n"})), seeds)
def test_all_groups_are_full_but_for_one_and_at_most_one_text_is_left_out(
    found, size, strategy, seed
) -> None:
    texts = len({one.text for one in found})
    full, rest = divmod(texts, size)
    wanted = [size] * full + [rest] * (rest >= 2)
    assert sorted(len(group.ids) for group in follow(strategy, found, size, seed)) == sorted(wanted)


@given(st.data(), candidates(), sizes, st.sampled_from(STRATEGIES), seeds)
def test_the_seed_decides_and_the_candidates_order_does_not(
    data, found, size, strategy, seed
) -> None:
    def made(given) -> list[Group]:
        return pair(given, size=size, strategy=strategy, random_percent=20, seed=seed)

    assert made(found) == made(data.draw(st.permutations(found)))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_another_seed_leaves_other_things_to_chance(strategy) -> None:
    found = [
        Candidate(id=at, text=f"{at} and", policy=at % 2, reward=float(at == 0)) for at in range(9)
    ]
    assert len({tuple(follow(strategy, found, seed=seed)) for seed in range(20)}) > 1


def test_a_random_share_of_prompts_is_kept() -> None:
    found = scored(0.0, 1.0, 2.0, 3.0)

    def random_ones(percent: int) -> int:
        made = [
            pair(found, size=2, strategy="smallest_margin", random_percent=percent, seed=seed)
            for seed in range(4000)
        ]
        assert all(len({group.pairing for group in groups}) == 1 for groups in made)
        return sum(groups[0].pairing == "random" for groups in made)

    assert random_ones(0) == 0
    assert abs(random_ones(20) - 800) < 130  # five standard deviations
    assert random_ones(100) == 4000


@given(candidates(), st.sampled_from(STRATEGIES), seeds)
def test_the_same_prompts_are_paired_at_random_whatever_the_strategy(found, strategy, seed) -> None:
    def made(strategy: str) -> list[Group]:
        return pair(found, size=2, strategy=strategy, random_percent=50, seed=seed)

    always = pair(found, size=2, strategy="random", random_percent=100, seed=seed)
    decided = pair(scored(0, 1), size=2, strategy="best_of_n", random_percent=50, seed=seed)
    if decided[0].pairing == "random":
        assert [group.ids for group in made(strategy)] == [group.ids for group in always]


def test_random_pairs_all_as_often() -> None:
    found = scored(0, 1, 2, 3)
    seen = Counter(
        one for seed in range(3000) for one in members(follow("random", found, seed=seed))
    )
    assert set(seen) == set(combinations(range(4), 2))
    assert all(abs(number - 1000) < 130 for number in seen.values())


@pytest.mark.parametrize("strategy", sorted(NEEDS_REWARDS))
@pytest.mark.parametrize("unknown", [None, float("nan"), float("-inf")])
def test_without_every_reward_chance_takes_its_place(strategy, unknown) -> None:
    found = scored(1.0, unknown, 2.0, 3.0)
    groups = follow(strategy, found)
    assert [group.pairing for group in groups] == ["", ""]
    assert members(groups) == members(follow("random", found))


def test_with_one_policy_there_is_nothing_to_pair_across() -> None:
    assert {group.pairing for group in follow("across", of_policies(4))} == {""}


def test_a_group_of_one_policy_that_across_leaves_over_is_not_chosen_by_it() -> None:
    groups = follow("across", of_policies(3, 1))
    assert sorted(group.pairing for group in groups) == ["", "across"]


def test_what_could_not_be_followed_is_measured_neither_as_such_nor_as_random() -> None:
    """The random share is of prompts where the strategy could have been followed."""
    for found, strategy in ((of_policies(4), "across"), (scored(1.0, None, 2.0), "best_of_n")):
        for percent in (0, 100):
            for seed in range(20):
                made = pair(found, size=2, strategy=strategy, random_percent=percent, seed=seed)
                assert {group.pairing for group in made} == {""}
    assert {group.pairing for group in follow("random", of_policies(4))} == {"random"}


def test_too_few_different_texts_make_no_comparison() -> None:
    same = [Candidate(id=at, text="Yes.", policy=at, reward=1.0) for at in range(3)]
    for strategy in STRATEGIES:
        assert follow(strategy, []) == []
        assert follow(strategy, same) == []


def test_the_order_of_slots_does_not_tell_the_better_one() -> None:
    groups = [follow("best_of_n", scored(0, 9), seed=seed)[0] for seed in range(1000)]
    assert 400 < sum(group.ids[0] == 1 for group in groups) < 600


@given(st.lists(st.integers(1, 8), min_size=2, max_size=4), sizes, seeds)
def test_across_mixes_policies_in_every_group_while_they_last(numbers, size, seed) -> None:
    found = of_policies(*numbers)
    policy = {one.id: one.policy for one in found}
    groups = follow("across", found, size, seed)
    mixed = [group for group in groups if len({policy[id] for id in group.ids}) > 1]
    assert all((group.pairing == "across") == (group in mixed) for group in groups)
    of_others = len(found) - max(numbers)
    assert len(mixed) >= min(len(groups), of_others)


@given(st.integers(1, 4), st.integers(2, 4), st.integers(1, 3), seeds)
def test_across_shares_a_group_out_evenly(groups, policies, each, seed) -> None:
    found = of_policies(*[groups * each] * policies)
    policy = {one.id: one.policy for one in found}
    for group in follow("across", found, policies * each, seed):
        assert set(Counter(policy[id] for id in group.ids).values()) == {each}


def test_across_leaves_each_policy_out_as_often() -> None:
    seen = Counter(
        one
        for seed in range(3000)
        for one in members(follow("across", of_policies(1, 1, 1), 2, seed))
    )
    assert set(seen) == {(0, 1), (0, 2), (1, 2)}
    assert all(abs(number - 1000) < 130 for number in seen.values())


def test_different_puts_the_most_different_texts_together() -> None:
    found = telling("a b c d", "a b c e", "a b f g", "h i j k")
    for seed in range(20):
        first, second = follow("different", found, seed=seed)
        assert first.pairing == second.pairing == "different"
        assert 3 in first.ids  # it shares no word with any
    unlike = telling("a b c d", "a b c e", "h i j k", "h i j l")
    assert {(0, 1), (2, 3)}.isdisjoint(members(follow("different", unlike)))
    chain = telling("a b c d", "a b c z", "a b y z", "a x y z")
    assert members(follow("different", chain)) == {(0, 3), (1, 2)}


def test_a_larger_group_of_different_texts_has_one_of_each_kind() -> None:
    found = telling("a b c d", "a b c e", "f g h i", "f g h j", "k l m n", "k l m o")
    for seed in range(20):
        for group in follow("different", found, 3, seed):
            assert {id // 2 for id in group.ids} == {0, 1, 2}


def test_texts_without_spaces_between_words_are_told_apart() -> None:
    found = telling(
        "今日はパンを食べる", "今日はパンを食べた", "明日は魚が泳ぐ", "明日は魚が泳いだ"
    )
    assert {0, 1} not in [set(group) for group in members(follow("different", found))]


def test_case_and_punctuation_make_no_difference() -> None:
    found = telling("yes it is", "Yes, it is!", "no it was not", "No. It was not.")
    for seed in range(20):
        assert not members(follow("different", found, seed=seed)) & {(0, 1), (2, 3)}


def test_very_long_texts_are_read_in_part_and_quickly() -> None:
    start = "word " * WORDS_READ
    found = telling(start + "a " * 10**6, start + "b " * 10**6, "c")
    begun = time.perf_counter()
    assert members(follow("different", found)) <= {(0, 2), (1, 2)}
    assert time.perf_counter() - begun < 2


def test_the_smallest_margin_is_between_neighbours() -> None:
    found = scored(5.0, 0.0, 5.5, 1.0)
    assert members(follow("smallest_margin", found)) == {(1, 3), (0, 2)}
    assert members(follow("smallest_margin", scored(1, 2, 3, 11, 12, 13), 3)) == {
        (0, 1, 2),
        (3, 4, 5),
    }


@pytest.mark.parametrize(
    ("rewards", "size", "expected"),
    [
        ((0, 10, 11), 2, {(1, 2)}),
        ((0, 1, 11), 2, {(0, 1)}),
        ((0, 1, 50, 90, 91), 2, {(0, 1), (3, 4)}),
        ((0, 50, 51, 52), 3, {(1, 2, 3)}),
    ],
)
def test_of_one_too_many_the_one_far_from_its_neighbours_is_left_out(
    rewards, size, expected
) -> None:
    assert members(follow("smallest_margin", scored(*rewards), size)) == expected


@given(st.lists(st.integers(0, 100), min_size=2, max_size=7), seeds)
def test_no_pairing_has_smaller_margins_in_sum(rewards, seed) -> None:
    found = scored(*rewards)
    groups = follow("smallest_margin", found, seed=seed)
    total = sum(abs(rewards[a] - rewards[b]) for a, b in (group.ids for group in groups))
    assert total == least_sum(sorted(rewards))


def least_sum(rewards: list[int]) -> int:
    """The least sum of margins over all ways to pair (leaving one out of an odd number)."""
    if len(rewards) < 2:
        return 0
    first, *others = rewards
    sums = [
        abs(first - other) + least_sum(others[:at] + others[at + 1 :])
        for at, other in enumerate(others)
    ]
    if len(rewards) % 2:
        sums.append(least_sum(others))
    return min(sums)


def test_the_largest_margins_are_from_the_outermost_inwards() -> None:
    found = scored(3.0, 0.0, 9.0, 5.0, 7.0)
    assert members(follow("largest_margin", found)) == {(1, 2), (0, 4)}
    six = scored(0, 1, 5, 6, 10, 11)
    assert members(follow("largest_margin", six, 3)) in (
        {(0, 2, 5), (1, 3, 4)},
        {(0, 3, 5), (1, 2, 4)},
    )


@given(candidates(), sizes, seeds)
def test_best_of_n_puts_the_best_beside_others_once_a_prompt(found, size, seed) -> None:
    rewards = {one.id: one.reward for one in found}
    first = {one.text: one for one in reversed(found)}  # equal texts: the first stands for them
    groups = follow("best_of_n", found, size, seed)
    assert len(groups) == (len(first) >= 2)
    for group in groups:
        assert group.pairing == "best_of_n"
        assert len(group.ids) == min(size, len(first))
        assert max(rewards[id] for id in group.ids) == max(one.reward for one in first.values())


def test_best_of_n_draws_the_others_at_random() -> None:
    found = scored(9, 0, 1, 2)
    seen = Counter(
        one for seed in range(3000) for one in members(follow("best_of_n", found, seed=seed))
    )
    assert set(seen) == {(0, 1), (0, 2), (0, 3)}
    assert all(abs(number - 1000) < 130 for number in seen.values())
