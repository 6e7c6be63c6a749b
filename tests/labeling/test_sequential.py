"""The confidence sequence and the win rate at equal length, against what is known of them."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeling.length_control import LEAST, length_controlled
from labeling.sequential import ALPHA, interval, intervals, log_capital

counts = st.integers(0, 400)


def tally(wins: int, ties: int, losses: int) -> list[float]:
    """Scores of so many prompts, judged once each."""
    return [1.0] * wins + [0.5] * ties + [0.0] * losses


def capital(scores: list[float], rate: float) -> float:
    found = np.array([scores or [0.5]])
    counts = np.full_like(found, float(bool(scores)))
    return float(log_capital(found, counts, np.array([rate]))[0])


@given(counts, counts, counts)
def test_the_interval_holds_the_rate_and_mirrors_when_the_policies_change_places(w, t, lost):
    low, high = interval(tally(w, t, lost))
    mean = (w + t / 2) / (w + t + lost) if w + t + lost else 0.5
    assert 0 <= low <= mean <= high <= 1
    mirrored = interval(tally(lost, t, w))
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-5)


@given(counts, counts, counts)
def test_the_ends_are_where_the_capital_reaches_its_limit(w, t, lost):
    scores = tally(w, t, lost)
    for end in interval(scores):
        if 0 < end < 1:
            assert capital(scores, end) == pytest.approx(-math.log(ALPHA), abs=0.01)


def test_without_judgments_nothing_is_known():
    assert interval([]) == (0.0, 1.0)


@given(st.floats(0.01, 0.99), st.integers(0, 20), st.integers(0, 20), st.integers(0, 20))
def test_a_bet_is_fair_at_the_true_rate(rate, w, t, lost):
    """E[K after one more judgment] = K, whatever share of them are ties."""
    now = capital(tally(w, t, lost), rate)
    for ties in (0.0, min(rate, 1 - rate)):
        win = rate - ties / 2
        after = [
            (win, tally(w + 1, t, lost)),
            (ties, tally(w, t + 1, lost)),
            (1 - win - ties, tally(w, t, lost + 1)),
        ]
        expected = sum(chance * math.exp(capital(one, rate) - now) for chance, one in after)
        assert expected == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize(("win", "tie"), [(0.5, 0.0), (0.45, 0.3), (0.7, 0.1)])
def test_it_covers_the_true_rate_at_every_look(win, tie):
    looks, missed, runs = 300, 0, 200
    draws = np.random.default_rng(6).random((runs, looks))
    wins = np.cumsum(draws < win, axis=1).astype(float)
    ties = np.cumsum((draws >= win) & (draws < win + tie), axis=1).astype(float)
    losses = np.arange(1, looks + 1) - wins - ties
    rates = np.full(looks, win + tie / 2)
    for run in range(runs):
        counts = np.column_stack([wins[run], ties[run], losses[run]])
        capitals = log_capital(np.tile([1.0, 0.5, 0.0], (looks, 1)), counts, rates)
        missed += bool((capitals >= -math.log(ALPHA)).any())
    assert missed <= 0.08 * runs  # at most 5 % are expected


def test_many_at_once_are_what_each_is_alone():
    samples = [tally(n, n // 2, 40 - n) for n in range(0, 41, 5)]
    assert intervals(samples) == [pytest.approx(interval(one)) for one in samples]


def test_more_judgments_and_more_ties_make_it_narrower():
    def width(scores: list[float]) -> float:
        low, high = interval(scores)
        return high - low

    assert width(tally(60, 0, 40)) < width(tally(6, 0, 4))
    assert width(tally(40, 40, 20)) < width(tally(60, 0, 40))


def test_prompts_that_are_judged_often_count_once_each():
    """Equal policies on prompts of very different difficulty: few pass, at whatever look."""
    luck = np.random.default_rng(5)
    passed, runs, prompts, pairs = 0, 120, 25, 8
    for _ in range(runs):
        chances = luck.beta(0.3, 0.3, prompts)
        scores = (luck.random((pairs, prompts)) < chances).astype(float)
        seen = np.cumsum(scores, axis=0) / np.arange(1, pairs + 1)[:, None]
        passed += any(low > 0.5 for low, _high in intervals([list(row) for row in seen]))
    assert passed <= 0.06 * runs


# Length


def drawn(theta: float, phi: float, number: int = 2000) -> tuple[list[float], list[float]]:
    luck = random.Random(3)
    longer = [luck.gauss(60, 100) for _ in range(number)]
    spread = math.sqrt(sum(one * one for one in longer) / number)
    chance = [1 / (1 + math.exp(-theta - phi * math.tanh(one / spread))) for one in longer]
    return [float(luck.random() < p) for p in chance], longer


def test_what_length_has_won_is_taken_out():
    scores, longer = drawn(theta=0.0, phi=1.5)
    assert np.mean(scores) > 0.6
    found = length_controlled(scores, longer)
    assert found is not None
    rate, low, high = found
    assert low < 0.5 < high
    assert rate == pytest.approx(0.5, abs=0.05)


def test_what_length_has_not_won_stays():
    found = length_controlled(*drawn(theta=0.6, phi=0.0))
    assert found is not None
    assert found[0] == pytest.approx(1 / (1 + math.exp(-0.6)), abs=0.03)


def test_it_stays_finite_where_all_agree_or_all_are_as_long_and_waits_for_enough():
    found = length_controlled([1.0] * LEAST, [0.0] * LEAST)
    assert found is not None
    assert 0.9 < found[0] < 1
    assert found[1] < 0.9, "twenty of twenty may be luck at nine of ten"
    tied = length_controlled([0.5] * LEAST, [0.0] * LEAST)
    assert tied is not None
    assert tied[2] - tied[1] > 0.3
    assert length_controlled([1.0] * (LEAST - 1), [5.0] * (LEAST - 1)) is None


def test_where_the_new_policy_always_writes_longer_length_cannot_be_taken_out():
    scores, longer = drawn(theta=0.6, phi=0.5, number=200)
    assert length_controlled(scores, [abs(one) + 1 for one in longer]) is None
