"""Mistakes that trainers are known to make with the losses, each by its number in our list of
traps."""

import math
from typing import Any

import pytest
import torch

from jobs.run_dir import RunDirError, check_spec
from tests.training.trainer.test_objectives import EACH, slope, two, votes
from training.trainer.config import DEFAULTS, Spec
from training.trainer.objectives import (
    Objective,
    Outcome,
    PairLogps,
    objective_of,
    pair_losses,
)

SOURCE = {"model": "/m", "adapter": None}
NEEDED: dict[str, dict[str, Any]] = {
    "dpo": {},
    "ipo": {"logratio": "sum"},
    "hinge": {},
    "robust": {"label_noise": 0.1},
    "simpo": {"target_margin": 0.5},
}
OWN_LOGRATIO = dict.fromkeys(NEEDED, "sum") | {"simpo": "mean"}
each_objective = pytest.mark.parametrize("objective", EACH)


def random_pairs(objective: Objective, count: int = 7) -> tuple[Any, ...]:
    """Logps, token counts and votes of some pairs, as `pair_losses` takes them."""
    torch.manual_seed(1)
    policy, reference = (PairLogps(*(-40 * torch.rand(2, count))) for _ in range(2))
    tokens = PairLogps(*torch.randint(1, 12, (2, count)).float())
    shares = torch.rand(3, count)
    if objective.tie_nu == 1:
        shares[2] = 0
    return policy, reference, tokens, Outcome(*(shares / shares.sum(0)))


def picked(pairs: tuple[Any, ...], places: Any) -> tuple[Any, ...]:
    """The pairs at some places."""
    return tuple(type(values)(*(value[places] for value in values)) for values in pairs)


# --- trap 2: half of a batch scored otherwise ------------------------------------------------


@each_objective
def test_trap_2_a_pairs_loss_does_not_depend_on_its_place_or_its_company(objective):
    pairs = random_pairs(objective)
    together = pair_losses(objective, *pairs)
    for place in range(len(together.loss)):
        alone = pair_losses(objective, *picked(pairs, [place]))
        torch.testing.assert_close(alone.loss, together.loss[[place]])
        assert torch.equal(alone.margin, together.margin[[place]])


@each_objective
def test_trap_2_chosen_and_rejected_swapped_negates_the_margin_exactly(objective):
    policy, reference, tokens, outcome = random_pairs(objective)
    a, b, c = (PairLogps(pair.rejected, pair.chosen) for pair in (policy, reference, tokens))
    got = pair_losses(objective, policy, reference, tokens, outcome)
    assert torch.equal(pair_losses(objective, a, b, c, outcome).margin, -got.margin)


# --- trap 9: a start that is not level -------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "loss"),
    [
        (Objective(name="dpo", beta=0.3), math.log(2)),
        (Objective(name="dpo", beta=0.3, logratio="mean"), math.log(2)),
        (Objective(name="dpo", beta=0.3, chosen_floor=50.0), math.log(2)),
        (Objective(name="dpo", beta=0.3, tie_nu=3.0), math.log(4)),  # P_win = 1/(1 + ν)
        (Objective(name="robust", beta=0.3, label_noise=0.4), math.log(2)),
        (Objective(name="hinge", beta=0.3), 1.0),
        (Objective(name="ipo", beta=0.25), 4.0),  # (1/(2·0.25))²
    ],
)
def test_trap_9_where_the_policy_is_its_reference_the_loss_is_known(objective, loss):
    _, start, tokens, _ = random_pairs(objective)
    won = Outcome(*torch.tensor([[1.0], [0.0], [0.0]]).expand(3, 7))
    got = pair_losses(objective, start, start, tokens, won)
    assert got.loss.tolist() == pytest.approx([loss] * 7, abs=1e-6)
    assert got.margin.abs().max() == 0


# --- trap 15: the chosen response's probability falls ----------------------------------------


def train_near_twins(*, chosen_floor: float) -> PairLogps:
    """Logratios after DPO on two responses that differ in one token of ten.

    The policy is a bigram model, logits E[previous]·U with U trained. The tokens in which the
    responses differ have embeddings in one direction, so what is unlearned after the one is
    unlearned after the other.
    """
    torch.manual_seed(0)
    embedding = torch.randn(8, 4)
    embedding[2] = 1.5 * embedding[1]
    unembedding = torch.zeros(4, 8, requires_grad=True)
    responses = torch.tensor([[0, 1, *[3] * 8], [0, 2, *[3] * 8]])

    def logps() -> PairLogps:
        logits = (embedding[responses[:, :-1]] @ unembedding).log_softmax(-1)
        each = logits.gather(-1, responses[:, 1:, None]).sum((1, 2))
        return PairLogps(each[:1], each[1:])

    start = PairLogps(*(logp.detach() for logp in logps()))
    objective = Objective(name="dpo", beta=0.3, chosen_floor=chosen_floor)
    for _ in range(300):
        pairs = pair_losses(objective, logps(), start, two((9, 9)), votes(1, 0))
        (gradient,) = torch.autograd.grad(pairs.loss.sum(), unembedding)
        unembedding.data -= 0.1 * gradient
    return PairLogps(*(now.detach() - then for now, then in zip(logps(), start, strict=True)))


def test_trap_15_near_twins_lower_the_chosen_response_and_dpop_does_not_let_them():
    plain, floored = train_near_twins(chosen_floor=0.0), train_near_twins(chosen_floor=5.0)
    assert plain.chosen.item() < -5
    assert floored.chosen.item() > -0.1
    for ratios in (plain, floored):
        assert ratios.chosen.item() - ratios.rejected.item() > 5, "both learn the preference"


# --- trap 17: normalisers that divide by something else ---------------------------------------


@pytest.mark.parametrize("name", sorted(NEEDED))
def test_trap_17_the_mean_is_over_the_responses_own_tokens(name):
    """Three times the log-probability over three times the tokens is the same mean."""
    objective = Objective(name=name, beta=0.5, logratio="mean", label_noise=0.1, target_margin=0.1)
    policy, reference, tokens, outcome = random_pairs(objective)
    a, b, c = (PairLogps(*(3 * v for v in pair)) for pair in (policy, reference, tokens))
    got = pair_losses(objective, policy, reference, tokens, outcome)
    again = pair_losses(objective, a, b, c, outcome)
    assert again.loss.tolist() == pytest.approx(got.loss.tolist(), rel=1e-5)
    if name != "simpo":
        ratio = (policy.chosen - reference.chosen) / tokens.chosen
        assert got.chosen_reward.tolist() == pytest.approx((0.5 * ratio).tolist())


# --- trap 18: likelihoods next to 1 -----------------------------------------------------------


@pytest.mark.parametrize("mean", [-1e-8, -1e-4, -1.0, -50.0])
@each_objective
def test_trap_18_no_mean_logp_gives_a_loss_that_is_not_finite(objective, mean):
    policy = two((4 * mean, 5 * mean), grad=True)
    outcome = votes(0.5, 0.5) if objective.tie_nu == 1 else votes(0.4, 0.3, 0.3)
    loss = pair_losses(objective, policy, two((-7, -9)), two((4, 5)), outcome).loss
    loss.sum().backward()
    assert loss.isfinite().all()
    assert all(math.isfinite(slope(logp)) for logp in policy)


# --- trap 21: options that are silently ignored -----------------------------------------------


def loss_under(settings: dict[str, Any]) -> float | str:
    """Of a pair whose chosen response fell and is the longer one; what is wrong with the spec."""
    try:
        spec = check_spec(Spec, DEFAULTS | {"policy": SOURCE, "reference": SOURCE} | settings)
    except RunDirError as error:
        return str(error)
    objective = objective_of(spec, tie_nu=spec.tie_nu or 1.0)
    tie = 0.25 if objective.tie_nu > 1 else 0.0
    outcome = votes((1 - tie) * 0.75, (1 - tie) * 0.25, tie)
    pair = two((-14, -19)), two((-12, -14)), two((8, 5))
    return pair_losses(objective, *pair, outcome).loss.item()


@pytest.mark.parametrize("name", sorted(NEEDED))
@pytest.mark.parametrize(
    "option",
    [
        {"beta": 0.07},
        {"logratio": "mean"},
        {"logratio": "sum"},
        {"label_noise": 0.2},
        {"target_margin": 0.7},
        {"length_penalty": 0.05},
        {"chosen_floor": 3.0},
        {"ties": "rao_kupper", "tie_nu": 2.0},
    ],
    ids=lambda option: next(iter(option)),
)
def test_trap_21_every_option_changes_the_loss_or_is_an_error(name, option):
    base = {"objective": name} | NEEDED[name]
    before, after = loss_under(base), loss_under(base | option)
    assert isinstance(before, float)
    if isinstance(after, str):
        assert next(iter(option)) in after
    elif option.get("logratio") == (base.get("logratio") or OWN_LOGRATIO[name]):
        assert after == before, "this is what the objective does without being told"
    else:
        assert abs(after - before) > 1e-3


def test_trap_21_hinge_and_ipo_are_not_dpo_in_disguise():
    losses = {loss_under({"objective": name} | NEEDED[name]) for name in NEEDED}
    assert len(losses) == len(NEEDED)
