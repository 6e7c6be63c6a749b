"""The loss against numbers worked by hand, and against the form that the lecture prints."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.trainer.objectives import PairLogps, dpo_loss, soft_label

LOGPS = st.floats(-200, 0, width=32)


def pair(chosen: float, rejected: float, *, grad: bool = False) -> PairLogps:
    return PairLogps(*(torch.tensor([float(v)], requires_grad=grad) for v in (chosen, rejected)))


def loss_of(policy: PairLogps, reference: PairLogps, *, beta: float = 0.1, label: float = 1.0):
    return dpo_loss(policy, reference, beta=beta, label=torch.tensor([label]))


def lecture_objective(policy: PairLogps, reference: PairLogps, *, beta: float) -> torch.Tensor:
    """As printed: log σ(β·P(y+)/P_ref(y+) − β·P(y-)/P_ref(y-)), no logarithm and no minus."""
    ratios = [(p - r).exp() for p, r in zip(policy, reference, strict=True)]
    return torch.nn.functional.logsigmoid(beta * (ratios[0] - ratios[1]))


def test_the_loss_is_the_one_worked_by_hand():
    # β·[(-10 + 12) − (-15 + 14)] = 0.5·(2 + 1) = 1.5; −log σ(1.5) = ln(1 + e^-1.5) = 0.2014133
    got = loss_of(pair(-10, -15), pair(-12, -14), beta=0.5)
    assert got.loss.item() == pytest.approx(0.2014133, abs=1e-6)
    assert got.margin.item() == pytest.approx(1.5)
    assert got.chosen_reward.item() == pytest.approx(1.0)
    assert got.rejected_reward.item() == pytest.approx(-0.5)


def test_a_soft_label_mixes_both_directions_as_worked_by_hand():
    # 0.75·ln(1 + e^-1.5) + 0.25·ln(1 + e^1.5) = 0.75·0.2014133 + 0.25·1.7014133 = 0.5764133
    got = loss_of(pair(-10, -15), pair(-12, -14), beta=0.5, label=0.75)
    assert got.loss.item() == pytest.approx(0.5764133, abs=1e-6)


def test_an_extreme_margin_is_linear_and_not_infinite():
    assert loss_of(pair(-2000, 0), pair(0, -2000), beta=1.0).loss.item() == pytest.approx(4000)
    assert loss_of(pair(0, -2000), pair(-2000, 0), beta=1.0).loss.item() == 0


@given(chosen=LOGPS, rejected=LOGPS, label=st.floats(0, 1))
def test_a_policy_that_is_its_reference_has_loss_ln_2_for_every_label(chosen, rejected, label):
    same = pair(chosen, rejected)
    assert loss_of(same, same, label=label).loss.item() == pytest.approx(math.log(2), abs=1e-6)


@given(a=LOGPS, b=LOGPS, c=LOGPS, d=LOGPS, label=st.floats(0, 1))
def test_swapping_the_pair_negates_the_margin_and_mirrors_the_label(a, b, c, d, label):
    got = loss_of(pair(a, b), pair(c, d), label=label)
    swapped = loss_of(pair(b, a), pair(d, c), label=1 - label)
    assert swapped.margin.item() == -got.margin.item()
    assert swapped.loss.item() == pytest.approx(got.loss.item(), rel=1e-5, abs=1e-6)


@given(margin=st.floats(-20, 20), label=st.floats(0, 1))
def test_the_gradient_is_the_papers(margin, label):
    """∂loss/∂log π(y+) = −β·(label − σ(margin)), and the opposite for y-."""
    policy = pair(margin / 0.1, 0, grad=True)
    got = loss_of(policy, pair(0, 0), label=label)
    got.loss.sum().backward()
    expected = -0.1 * (label - torch.sigmoid(got.margin).item())
    assert policy.chosen.grad.item() == pytest.approx(expected, abs=1e-5)
    assert policy.rejected.grad.item() == pytest.approx(-expected, abs=1e-5)


def test_the_soft_label_is_where_the_loss_is_least():
    policy = pair(math.log(0.75 / 0.25) / 0.1, 0, grad=True)
    loss_of(policy, pair(0, 0), label=0.75).loss.sum().backward()
    assert policy.chosen.grad.item() == pytest.approx(0, abs=1e-6)


def test_the_lectures_form_agrees_in_gradient_up_to_sign_at_initialisation():
    ours, theirs = pair(-10, -15, grad=True), pair(-10, -15, grad=True)
    loss_of(ours, pair(-10, -15)).loss.sum().backward()
    lecture_objective(theirs, pair(-10, -15), beta=0.1).sum().backward()
    assert ours.chosen.grad.item() == pytest.approx(-theirs.chosen.grad.item())
    assert ours.rejected.grad.item() == pytest.approx(-theirs.rejected.grad.item())


def test_the_lectures_form_differs_away_from_initialisation():
    """u = e² and e^-1: β·(e² − e^-1) = 0.702, not β·(2 + 1) = 0.3; and its sign is the other."""
    policy, reference = pair(-10, -15), pair(-12, -14)
    theirs = lecture_objective(policy, reference, beta=0.1).item()
    assert theirs == pytest.approx(-math.log1p(math.exp(-0.1 * (math.e**2 - math.e**-1))), abs=1e-6)
    assert abs(-theirs - loss_of(policy, reference).loss.item()) > 0.1
    overflow = lecture_objective(pair(0, 0), pair(-100, -100), beta=0.1)
    assert not overflow.isfinite()


@pytest.mark.parametrize(
    ("votes", "labels", "expected"),
    [
        ((3, 0), "votes", 1.0),
        ((2, 1), "votes", 2 / 3),
        ((1, 1), "votes", 0.5),
        ((0, 0), "votes", None),
        ((2, 1), "majority", 1.0),
        ((1, 2), "majority", 0.0),
        ((1, 1), "majority", None),
        ((0, 0), "majority", None),
    ],
)
def test_votes_become_labels_and_ties_none(votes, labels, expected):
    assert soft_label(*votes, labels=labels) == expected
