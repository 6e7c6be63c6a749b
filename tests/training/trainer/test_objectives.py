"""Each loss against numbers worked by hand, its gradient, and the form that the lecture prints."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.trainer.config import DEFAULTS, PolicySource, Spec
from training.trainer.objectives import (
    LOSSES,
    Objective,
    Outcome,
    PairLogps,
    PairScores,
    objective_of,
    pair_losses,
    soft_label,
)

LOGPS = st.floats(-200, 0, width=32)
MARGINS = st.floats(-20, 20)
SHARES = st.floats(0, 1)
LN_2 = math.log(2)
# r(y+) = 2, r(y-) = -1, so h = 3; per token 0.5 and -0.2, so h = 0.7
POLICY, REFERENCE, TOKENS = (-10.0, -15.0), (-12.0, -14.0), (4.0, 5.0)
PLAIN = Objective(name="dpo", beta=0.5)
EACH = [
    Objective(name="dpo", beta=0.5),
    Objective(name="dpo", beta=2.0, logratio="mean"),
    Objective(name="dpo", beta=0.5, length_penalty=0.1, chosen_floor=2.0),
    Objective(name="dpo", beta=0.5, tie_nu=2.0),
    Objective(name="ipo", beta=0.5),
    Objective(name="ipo", beta=0.5, logratio="mean"),
    Objective(name="hinge", beta=0.5),
    Objective(name="robust", beta=0.5, label_noise=0.1),
    Objective(name="simpo", beta=2.0, logratio="mean", target_margin=0.5),
]
each_objective = pytest.mark.parametrize("objective", EACH)


def two(values: tuple[float, float], *, grad: bool = False) -> PairLogps:
    return PairLogps(*(torch.tensor([float(v)], requires_grad=grad) for v in values))


def votes(win: float, loss: float, tie: float = 0.0) -> Outcome:
    return Outcome(*(torch.tensor([share]) for share in (win, loss, tie)))


def scores(
    objective: Objective,
    policy: PairLogps | None = None,
    reference: PairLogps | None = None,
    *,
    tokens: tuple[float, float] = TOKENS,
    outcome: Outcome | None = None,
) -> PairScores:
    """Of one pair, of the numbers above where none are given; its chosen response won."""
    policy = two(POLICY) if policy is None else policy
    reference = two(REFERENCE) if reference is None else reference
    return pair_losses(objective, policy, reference, two(tokens), outcome or votes(1, 0))


def at_margin(margin: float, *, grad: bool = False) -> PairLogps:
    """A policy with that margin under PLAIN, against a reference of zeros."""
    return two((margin / PLAIN.beta, 0), grad=grad)


ZEROS = two((0, 0))


def slope(logp: torch.Tensor) -> float:
    """∂loss/∂logp after `backward`."""
    assert logp.grad is not None
    return logp.grad.item()


def lecture_objective(policy: PairLogps, reference: PairLogps, *, beta: float) -> torch.Tensor:
    """As printed: log σ(β·P(y+)/P_ref(y+) − β·P(y-)/P_ref(y-)), no logarithm and no minus."""
    ratios = [(p - r).exp() for p, r in zip(policy, reference, strict=True)]
    return torch.nn.functional.logsigmoid(beta * (ratios[0] - ratios[1]))


# --- worked by hand -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "loss"),
    [
        # −log σ(0.5·3) = ln(1 + e^-1.5)
        (PLAIN, 0.2014133),
        # Tulu 3: −log σ(0.5·0.7) = ln(1 + e^-0.35)
        (Objective(name="dpo", beta=0.5, logratio="mean"), 0.5333822),
        # R-DPO: 0.5·3 + 0.1·(4 − 5) = 1.4
        (Objective(name="dpo", beta=0.5, length_penalty=0.1), 0.2204174),
        # DPOP: the chosen response did not fall, so nothing is taken off
        (Objective(name="dpo", beta=0.5, chosen_floor=2.0), 0.2014133),
        # Rao-Kupper: −log σ(1.5 − ln 2)
        (Objective(name="dpo", beta=0.5, tie_nu=2.0), 0.3689811),
        # (3 − 1/(2·0.5))² and (0.7 − 1)²
        (Objective(name="ipo", beta=0.5), 4.0),
        (Objective(name="ipo", beta=0.5, logratio="mean"), 0.09),
        # max(0, 1 − 0.1·3) and max(0, 1 − 1.5)
        (Objective(name="hinge", beta=0.1), 0.7),
        (Objective(name="hinge", beta=0.5), 0.0),
        # (0.9·ln(1 + e^-1.5) − 0.1·ln(1 + e^1.5)) / 0.8 = (0.1812720 − 0.1701413) / 0.8
        (Objective(name="robust", beta=0.5, label_noise=0.1), 0.0139133),
        # −log σ(2·(-10/4) − 2·(-15/5) − 0.5) = −log σ(0.5)
        (Objective(name="simpo", beta=2.0, logratio="mean", target_margin=0.5), 0.4740770),
    ],
)
def test_each_loss_is_the_one_worked_by_hand(objective, loss):
    assert scores(objective).loss.item() == pytest.approx(loss, abs=1e-6)


def test_dpop_takes_the_fall_of_the_chosen_response_off_the_margin():
    # r(y+) = r(y-) = -1, so h = 0: 0.5·(0 − 2·1) = −1; −log σ(−1) = ln(1 + e)
    floor = Objective(name="dpo", beta=0.5, chosen_floor=2.0)
    got = scores(floor, two((-13, -15)), two((-12, -14)))
    assert got.loss.item() == pytest.approx(1.3132617, abs=1e-6)
    assert got.margin.item() == 0


def test_the_rewards_are_beta_times_the_logratio():
    got = scores(PLAIN)
    assert [v.item() for v in got[1:]] == pytest.approx([1.0, -0.5, 1.5])
    mean = scores(Objective(name="dpo", beta=0.5, logratio="mean"))
    assert [v.item() for v in mean[1:]] == pytest.approx([0.25, -0.1, 0.35])
    simpo = scores(Objective(name="simpo", beta=2.0, logratio="mean", target_margin=0.5))
    assert [v.item() for v in simpo[1:]] == pytest.approx([-5.0, -6.0, 1.0])


def test_only_the_loss_carries_a_gradient():
    got = scores(PLAIN, two(POLICY, grad=True))
    assert [value.requires_grad for value in got] == [True, False, False, False]


def test_a_soft_label_mixes_both_directions_as_worked_by_hand():
    # 0.75·ln(1 + e^-1.5) + 0.25·ln(1 + e^1.5) = 0.75·0.2014133 + 0.25·1.7014133 = 0.5764133
    got = scores(PLAIN, outcome=votes(0.75, 0.25))
    assert got.loss.item() == pytest.approx(0.5764133, abs=1e-6)


# --- what holds for each of them ------------------------------------------------------------


@each_objective
@given(a=LOGPS, b=LOGPS, c=LOGPS, d=LOGPS, label=SHARES, tie=SHARES)
def test_swapping_the_pair_negates_the_margin_and_mirrors_the_votes(
    objective, a, b, c, d, label, tie
):
    tie = tie if objective.tie_nu > 1 else 0.0
    shares = (1 - tie) * label, (1 - tie) * (1 - label)
    got = scores(objective, two((a, b)), two((c, d)), outcome=votes(*shares, tie))
    swapped = scores(
        objective, two((b, a)), two((d, c)), tokens=TOKENS[::-1], outcome=votes(*shares[::-1], tie)
    )
    assert swapped.margin.item() == -got.margin.item()
    assert swapped.loss.item() == pytest.approx(got.loss.item(), rel=1e-5, abs=1e-6)


@each_objective
@given(label=SHARES, tie=SHARES)
def test_the_votes_mix_the_losses_of_pure_outcomes(objective, label, tie):
    tie = tie if objective.tie_nu > 1 else 0.0
    shares = (1 - tie) * label, (1 - tie) * (1 - label), tie
    pure = [scores(objective, outcome=votes(*row)).loss.item() for row in torch.eye(3).tolist()]
    mixed = sum(share * loss for share, loss in zip(shares, pure, strict=True))
    got = scores(objective, outcome=votes(*shares)).loss.item()
    assert got == pytest.approx(mixed, rel=1e-5, abs=1e-6)


@each_objective
@pytest.mark.parametrize("far", [(-1e4, 0.0), (0.0, -1e4)])
@pytest.mark.parametrize("won", [0.0, 0.7, 1.0])
def test_extreme_margins_stay_finite_with_their_gradients(objective, far, won):
    policy = two(far, grad=True)
    tie = 0.1 if objective.tie_nu > 1 else 0.0
    outcome = votes((1 - tie) * won, (1 - tie) * (1 - won), tie)
    loss = scores(objective, policy, ZEROS, outcome=outcome).loss
    loss.sum().backward()
    assert loss.isfinite().all()
    assert all(math.isfinite(slope(logp)) for logp in policy)


@each_objective
def test_the_gradient_is_that_of_the_loss(objective):
    torch.manual_seed(0)
    policy, reference = (
        [(-30 * torch.rand(6, dtype=torch.float64)).requires_grad_(grad) for _ in range(2)]
        for grad in (True, False)
    )
    tokens = PairLogps(*(torch.randint(1, 9, (6,)).double() for _ in range(2)))
    shares = torch.rand(3, 6, dtype=torch.float64)
    if objective.tie_nu == 1:
        shares[2] = 0
    outcome = Outcome(*(shares / shares.sum(0)))

    def loss(*logps: torch.Tensor) -> torch.Tensor:
        pairs = pair_losses(objective, PairLogps(*logps), PairLogps(*reference), tokens, outcome)
        return pairs.loss

    assert torch.autograd.gradcheck(loss, policy)


@each_objective
def test_fp32_logps_give_fp32_losses(objective):
    assert {value.dtype for value in scores(objective)} == {torch.float32}


def test_there_is_a_loss_for_each_name_and_each_is_tested():
    assert {objective.name for objective in EACH} == set(LOSSES)


# --- dpo ------------------------------------------------------------------------------------


def test_an_extreme_margin_is_linear_and_not_infinite():
    one = Objective(name="dpo", beta=1.0)
    assert scores(one, two((-2000, 0)), two((0, -2000))).loss.item() == pytest.approx(4000)
    assert scores(one, two((0, -2000)), two((-2000, 0))).loss.item() == 0


@given(chosen=LOGPS, rejected=LOGPS, label=SHARES)
def test_a_policy_that_is_its_reference_has_loss_ln_2_for_every_label(chosen, rejected, label):
    same = two((chosen, rejected))
    got = scores(PLAIN, same, same, outcome=votes(label, 1 - label))
    assert got.loss.item() == pytest.approx(LN_2, abs=1e-6)


@given(margin=MARGINS, label=SHARES)
def test_the_gradient_is_the_papers(margin, label):
    """∂loss/∂log π(y+) = −β·(label − σ(margin)), and the opposite for y-."""
    policy = at_margin(margin, grad=True)
    got = scores(PLAIN, policy, ZEROS, outcome=votes(label, 1 - label))
    got.loss.sum().backward()
    expected = -PLAIN.beta * (label - torch.sigmoid(got.margin).item())
    assert slope(policy.chosen) == pytest.approx(expected, abs=1e-5)
    assert slope(policy.rejected) == pytest.approx(-expected, abs=1e-5)


@given(label=st.floats(0.01, 0.99))
def test_the_soft_label_is_where_the_loss_is_least(label):
    policy = at_margin(math.log(label / (1 - label)), grad=True)
    scores(PLAIN, policy, ZEROS, outcome=votes(label, 1 - label)).loss.sum().backward()
    assert slope(policy.chosen) == pytest.approx(0, abs=1e-6)


def test_a_pair_won_by_length_teaches_less_under_the_length_penalty():
    def pull(tokens: tuple[float, float]) -> float:
        policy = two(POLICY, grad=True)
        penalised = Objective(name="dpo", beta=0.5, length_penalty=0.1)
        scores(penalised, policy, tokens=tokens).loss.sum().backward()
        return -slope(policy.chosen)

    assert pull((20, 5)) < pull((5, 5)) < pull((5, 20))


# --- robust, ipo ----------------------------------------------------------------------------


@given(margin=MARGINS, noise=st.floats(0, 0.45))
def test_robust_is_unbiased_under_flipped_votes(margin, noise):
    """Its mean over labels of which a share ε was flipped is the DPO loss of the true ones."""
    robust = Objective(name="robust", beta=0.5, label_noise=noise)
    flipped = scores(robust, at_margin(margin), ZEROS, outcome=votes(1 - noise, noise))
    clean = scores(PLAIN, at_margin(margin), ZEROS)
    assert flipped.loss.item() == pytest.approx(clean.loss.item(), rel=1e-4, abs=1e-4)


@given(label=SHARES)
def test_ipo_is_least_at_a_margin_that_the_votes_bound(label):
    """h = (2·label − 1)/(2τ): also certain votes ask for no more than 1/(2τ)."""
    policy = two(((2 * label - 1) / (2 * 0.5), 0), grad=True)
    ipo = Objective(name="ipo", beta=0.5)
    scores(ipo, policy, ZEROS, outcome=votes(label, 1 - label)).loss.sum().backward()
    assert slope(policy.chosen) == pytest.approx(0, abs=1e-5)


# --- the lecture's form ---------------------------------------------------------------------


def test_the_lectures_form_agrees_in_gradient_up_to_sign_at_initialisation():
    ours, theirs = two(POLICY, grad=True), two(POLICY, grad=True)
    scores(PLAIN, ours, two(POLICY)).loss.sum().backward()
    lecture_objective(theirs, two(POLICY), beta=0.5).sum().backward()
    assert slope(ours.chosen) == pytest.approx(-slope(theirs.chosen))
    assert slope(ours.rejected) == pytest.approx(-slope(theirs.rejected))


def test_the_lectures_form_differs_away_from_initialisation():
    """u = e² and e^-1: β·(e² − e^-1) = 3.51, not β·(2 + 1) = 1.5; and its sign is the other."""
    ours, theirs = two(POLICY, grad=True), two(POLICY, grad=True)
    loss = scores(PLAIN, ours).loss
    printed = lecture_objective(theirs, two(REFERENCE), beta=0.5)
    assert printed.item() == pytest.approx(
        -math.log1p(math.exp(-0.5 * (math.e**2 - math.e**-1))), abs=1e-6
    )
    assert abs(-printed.item() - loss.item()) > 0.1
    loss.sum().backward()
    printed.sum().backward()
    assert abs(slope(ours.chosen) + slope(theirs.chosen)) > 0.01
    overflow = lecture_objective(two((0, 0)), two((-100, -100)), beta=0.1)
    assert not overflow.isfinite()


# --- from the spec and the votes ------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"name": "dpo", "logratio": "sum"}),
        ({"logratio": "mean"}, {"name": "dpo", "logratio": "mean"}),
        ({"length_penalty": 0.01, "chosen_floor": 5.0}, {"name": "dpo"}),
        ({"objective": "hinge"}, {"name": "hinge", "logratio": "sum"}),
        ({"objective": "ipo", "logratio": "sum"}, {"name": "ipo", "logratio": "sum"}),
        ({"objective": "robust", "label_noise": 0.1}, {"name": "robust", "logratio": "sum"}),
        ({"objective": "simpo", "target_margin": 0.5}, {"name": "simpo", "logratio": "mean"}),
    ],
)
def test_the_objective_is_the_specs_with_its_defaults_resolved(options, expected):
    source = PolicySource(model="/m", adapter=None)
    spec = Spec(**(DEFAULTS | {"policy": source, "reference": source} | options))
    terms = ("label_noise", "target_margin", "length_penalty", "chosen_floor")
    given: dict[str, Any] = {name: options[name] for name in terms if name in options}
    wanted = {"beta": 0.1, "logratio": "sum", "tie_nu": 1.5} | given | expected
    assert objective_of(spec, tie_nu=1.5) == Objective(**wanted)


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
