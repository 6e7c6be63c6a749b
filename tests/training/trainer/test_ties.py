"""The model of ties (Rao and Kupper): what a tie costs, and the ν that the votes tell."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.training.trainer.test_objectives import (
    MARGINS,
    PLAIN,
    SHARES,
    ZEROS,
    at_margin,
    scores,
    slope,
    votes,
)
from training.trainer.objectives import (
    Objective,
    Outcome,
    PairLogps,
    fitted_nu,
    pair_losses,
    tied_share,
)


def test_a_tie_is_the_one_worked_by_hand():
    # −ln(ν² − 1) − log σ(1.5 − ln 2) − log σ(−1.5 − ln 2)
    ties = Objective(name="dpo", beta=0.5, tie_nu=2.0)
    assert scores(ties, outcome=votes(0, 0, 1)).loss.item() == pytest.approx(1.5692850, abs=1e-6)
    # ν = 3 gives a tie half of the probability at margin 0, and a quarter to either side
    level = Objective(name="dpo", beta=0.5, tie_nu=3.0)
    for outcome, share in ((votes(0, 0, 1), 0.5), (votes(1, 0), 0.25), (votes(0, 1), 0.25)):
        got = scores(level, ZEROS, ZEROS, outcome=outcome)
        assert got.loss.item() == pytest.approx(-math.log(share), abs=1e-6)


@given(margin=MARGINS, nu=st.floats(1.001, 1e6))
def test_win_loss_and_tie_are_all_that_can_happen(margin, nu):
    ties = Objective(name="dpo", beta=1.0, tie_nu=nu)
    policy, start = (
        PairLogps(*torch.tensor([[value], [0.0]], dtype=torch.float64)) for value in (margin, 0.0)
    )
    chances = [
        (-pair_losses(ties, policy, start, start, Outcome(*row[:, None])).loss).exp().item()
        for row in torch.eye(3, dtype=torch.float64)
    ]
    assert math.fsum(chances) == pytest.approx(1, abs=1e-9)


@given(margin=MARGINS, label=SHARES)
def test_as_nu_falls_to_1_the_ties_model_becomes_dpo(margin, label):
    outcome = votes(label, 1 - label)
    ties = Objective(name="dpo", beta=0.5, tie_nu=1 + 1e-7)
    got, plain = (scores(o, at_margin(margin), ZEROS, outcome=outcome) for o in (ties, PLAIN))
    assert got.loss.item() == pytest.approx(plain.loss.item(), abs=1e-5)


def test_a_tie_pulls_the_margin_to_0_from_both_sides():
    ties = Objective(name="dpo", beta=0.5, tie_nu=2.0)
    pulls = []
    for margin in (-3, 0, 3):
        policy = at_margin(margin, grad=True)
        scores(ties, policy, ZEROS, outcome=votes(0, 0, 1)).loss.sum().backward()
        pulls.append(slope(policy.chosen))
    assert pulls[0] < 0 < pulls[2]
    assert pulls[1] == 0


@given(st.lists(st.just(0.0) | st.floats(0.01, 0.95), min_size=1, max_size=20))
def test_the_fitted_nu_explains_the_ties_of_an_untrained_policy_best(tied):
    nu = fitted_nu(tied)
    share: float = sum(tied) / len(tied)

    def loss(nu: float) -> float:
        tie = share * math.log((nu - 1) / (nu + 1)) if share else 0.0
        return -tie - (1 - share) * math.log(1 / (1 + nu))

    assert nu >= 1
    for other in (nu * 1.1, 1 + (nu - 1) * 0.9):
        assert loss(nu) <= loss(other) + 1e-12


def test_the_fitted_nu_is_the_one_worked_by_hand():
    assert fitted_nu([0.0, 1.0]) == 3.0
    assert fitted_nu([0.0, 0.0]) == 1.0
    with pytest.raises(ValueError, match="every vote is a tie"):
        fitted_nu([1.0, 1.0])


@pytest.mark.parametrize(
    ("votes", "by_votes", "by_majority"),
    [
        ((3, 0, 0), 0.0, 0.0),
        ((2, 0, 1), 1 / 3, 0.0),
        ((1, 1, 0), 0.0, 1.0),
        ((1, 0, 1), 0.5, 1.0),
        ((1, 1, 2), 0.5, 1.0),
        ((0, 2, 1), 1 / 3, 0.0),
        ((0, 0, 2), 1.0, 1.0),
    ],
)
def test_the_share_of_ties(votes, by_votes, by_majority):
    assert tied_share(*votes, labels="votes") == pytest.approx(by_votes)
    assert tied_share(*votes, labels="majority") == by_majority
