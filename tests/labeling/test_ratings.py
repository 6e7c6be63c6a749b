"""Ratings: known truths are found again, and what nobody compared has no rating."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labeling.ratings import ANCHOR, ELO, Rating, Votes, rate


def votes(*rows: tuple[int, int, int, float, float]) -> Votes:
    """(prompt, first, second, wins, losses)."""
    columns = list(zip(*rows, strict=True)) if rows else [(), (), (), (), ()]
    prompts, first, second = (np.array(column, dtype=np.int64) for column in columns[:3])
    wins, losses = (np.array(column, dtype=np.float64) for column in columns[3:])
    return Votes(prompts=prompts, first=first, second=second, wins=wins, losses=losses)


def simulated(strengths: dict[int, float], *, prompts: int, seed: int) -> Votes:
    """Each prompt is judged once for each pair of policies."""
    rng = np.random.default_rng(seed)
    rows = []
    for prompt in range(prompts):
        for first in strengths:
            for second in strengths:
                if first < second:
                    chance = 1 / (1 + math.exp(strengths[second] - strengths[first]))
                    won = float(rng.random() < chance)
                    rows.append((prompt, first, second, won, 1 - won))
    return votes(*rows)


def near(rating: Rating) -> tuple[float, ...]:
    return (rating.value, rating.low, rating.high, rating.votes)


def test_the_anchor_is_a_thousand_and_no_votes_are_no_ratings() -> None:
    assert rate(votes(), 1) == {}
    found = rate(votes((1, 1, 2, 3, 1)), 1)
    assert near(found[1]) == pytest.approx((ANCHOR, ANCHOR, ANCHOR, 4))


def test_three_wins_of_four_are_odds_of_three_to_one() -> None:
    found = rate(votes(*((prompt, 1, 2, 1, 3) for prompt in range(100))), 1)
    assert found[2].value == pytest.approx(1000 + 400 * math.log10(3), abs=0.1)


def test_ties_are_half_a_win_for_each() -> None:
    found = rate(votes((1, 1, 2, 0.5, 0.5), (2, 1, 2, 0.5, 0.5)), 1)
    assert found[2].value == pytest.approx(ANCHOR)
    assert found[2].votes == 2


def test_policies_that_never_met_are_compared_through_a_third() -> None:
    chain = [(prompt, 1, 2, 1.0, 2.0) for prompt in range(60)]
    chain += [(prompt, 2, 3, 1.0, 2.0) for prompt in range(60)]
    found = rate(votes(*chain), 1)
    assert found[3].value - found[2].value == pytest.approx(found[2].value - ANCHOR, abs=0.5)


def test_what_no_chain_of_votes_leads_to_has_no_rating() -> None:
    assert set(rate(votes((1, 1, 2, 3, 1), (1, 3, 4, 2, 2)), 1)) == {1, 2}
    assert rate(votes((1, 3, 4, 2, 2)), 1) == {}


def test_a_policy_that_won_everything_is_rated_and_its_interval_is_wide() -> None:
    found = rate(votes(*((prompt, 1, 2, 0, 1) for prompt in range(10))), 1)
    assert ANCHOR + 100 < found[2].value < ANCHOR + 2000
    assert found[2].low < ANCHOR + 400
    assert math.isfinite(found[2].high)


def test_one_vote_says_next_to_nothing() -> None:
    found = rate(votes((1, 1, 2, 0, 1)), 1)
    assert found[2].low < ANCHOR < found[2].high


def test_known_strengths_lie_in_their_intervals() -> None:
    """60 intervals of 95 %: by chance a few miss, and by the binomial law hardly nine."""
    truth = {1: 0.0, 2: 0.5, 3: -0.4, 4: 1.2, 5: 0.1}
    missed = 0
    for seed in range(15):
        found = rate(simulated(truth, prompts=40, seed=seed), 1)
        for policy, strength in truth.items():
            missed += not found[policy].low <= ANCHOR + ELO * strength <= found[policy].high
    assert missed < 9


def test_many_votes_find_the_strengths() -> None:
    truth = {1: 0.0, 2: 0.5, 3: -0.4}
    found = rate(simulated(truth, prompts=4000, seed=3), 1)
    for policy, strength in truth.items():
        assert found[policy].value == pytest.approx(ANCHOR + ELO * strength, abs=15)
    assert found[2].high - found[2].low < 45


def test_votes_on_one_prompt_are_alike_and_widen_the_interval() -> None:
    """Forty votes on four prompts that all agree within a prompt know less than forty prompts."""
    clustered = [
        (prompt, 1, 2, 10.0 * (prompt % 2), 10.0 * (1 - prompt % 2)) for prompt in range(4)
    ]
    spread = [(p, 1, 2, float(p % 2), float(1 - p % 2)) for p in range(40)]
    few, many = rate(votes(*clustered), 1)[2], rate(votes(*spread), 1)[2]
    assert few.high - few.low > 1.5 * (many.high - many.low)


rows = st.lists(
    st.tuples(
        st.integers(0, 5),
        st.integers(1, 5),
        st.integers(1, 5),
        st.integers(0, 6).map(lambda n: n / 2),
        st.integers(0, 6).map(lambda n: n / 2),
    ),
    max_size=12,
)


@settings(max_examples=12, deadline=None)
@given(rows, st.randoms(use_true_random=False))
def test_any_votes_give_finite_ratings_whatever_their_order(given_rows, random) -> None:
    found = rate(votes(*given_rows), 1)
    for rating in found.values():
        assert rating.low <= rating.value <= rating.high
        assert all(map(math.isfinite, near(rating)))
    turned = [
        (p, second, first, losses, wins)
        if random.random() < 0.5
        else (p, first, second, wins, losses)
        for p, first, second, wins, losses in given_rows
    ]
    random.shuffle(turned)
    again = rate(votes(*turned), 1)
    assert again.keys() == found.keys()
    for policy, rating in found.items():
        assert near(again[policy]) == pytest.approx(near(rating), abs=1e-3)
