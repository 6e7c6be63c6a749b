"""Early stopping and the best step, from nothing but (step, held-out accuracy)."""

import json

import pytest

from training.trainer.stopping import Best


def after(*accuracies: float) -> Best:
    """The best after evaluations at steps 10, 20, 30, …"""
    best = Best()
    for number, accuracy in enumerate(accuracies, start=1):
        best = best.after(10 * number, accuracy)
    return best


@pytest.mark.parametrize(
    ("accuracies", "step", "since"),
    [
        ((0.3,), 10, 0),
        ((0.3, 0.6, 0.5), 20, 1),
        ((0.6, 0.5, 0.7), 30, 0),
        ((0.6, 0.6, 0.6), 10, 2),
        ((0.0, 0.0), 10, 1),
        ((0.5, 0.7, 0.7, 0.6), 20, 2),
    ],
)
def test_the_best_is_the_highest_and_of_equals_the_earliest(accuracies, step, since):
    best = after(*accuracies)
    assert (best.step, best.since) == (step, since)
    assert best.accuracy == max(accuracies)


def test_a_round_stops_after_so_many_evaluations_that_are_no_better():
    assert not after(0.6, 0.5).stops(2)
    assert after(0.6, 0.5, 0.6).stops(2)
    assert not after(0.6, 0.5, 0.7).stops(2)
    assert after(0.6, 0.5, 0.7, 0.1).stops(1)


def test_a_round_never_stops_early_unless_it_is_asked_to():
    assert not after(*[0.9] + [0.1] * 100).stops(None)


def test_before_any_evaluation_there_is_no_best_and_no_reason_to_stop():
    assert Best().step is None
    assert not Best().stops(1)


def test_it_goes_through_json_unchanged():
    for best in (Best(), after(0.6, 0.5)):
        assert Best.from_json(json.loads(json.dumps(best.to_json()))) == best
