"""Summed log-probabilities against the chain rule, one token at a time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.trainer.builders import make_model
from training.trainer import logps as logps_module
from training.trainer.batches import Branch
from training.trainer.logps import plain_logps, response_logps
from training.trainer.model import Policy

ARCHITECTURES = ["llama", "gpt2"]
POLICIES = {
    name: Policy(make_model(name), torch.device("cpu"), "float32") for name in ARCHITECTURES
}
TOKENS = st.lists(st.integers(0, 200), min_size=1, max_size=12).map(tuple)
BRANCHES = st.lists(st.builds(Branch, TOKENS, TOKENS), min_size=1, max_size=6)


@torch.no_grad()
def chain_rule(policy: Policy, branch: Branch) -> float:
    """Σ_t log π(y_t | x, y_<t), each from a forward pass over exactly what precedes y_t."""
    total = 0.0
    for position, token in enumerate(branch.response):
        before = torch.tensor([branch.prompt + branch.response[:position]])
        last = policy.model(input_ids=before).logits[0, -1]
        total += torch.log_softmax(last.double(), dim=-1)[token].item()
    return total


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=10, deadline=None)
@given(branches=BRANCHES)
def test_trap_1_logps_are_the_chain_rule_token_by_token(architecture, branches):
    policy = POLICIES[architecture]
    expected = [chain_rule(policy, branch) for branch in branches]
    got = response_logps(policy, branches).tolist()
    assert got == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert plain_logps(policy, branches).tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_trap_1_the_end_token_is_scored():
    policy = POLICIES["llama"]
    cut, ended = Branch((5, 6), (7, 8)), Branch((5, 6), (7, 8, 0))
    short, long = response_logps(policy, [cut, ended]).tolist()
    last = chain_rule(policy, Branch((5, 6, 7, 8), (0,)))
    assert long - short == pytest.approx(last, abs=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_trap_2_no_prompt_token_is_ever_scored(architecture):
    """The same text cut elsewhere into prompt and response differs by exactly those tokens."""
    policy = POLICIES[architecture]
    text = tuple(range(10, 22))
    scores = response_logps(policy, [Branch(text[:at], text[at:]) for at in range(1, 12)])
    steps = [chain_rule(policy, Branch(text[:at], text[at : at + 1])) for at in range(1, 12)]
    expected = [sum(steps[at:]) for at in range(11)]
    assert scores.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=15, deadline=None)
@given(branches=BRANCHES, width=TOKENS)
def test_trap_8_padding_changes_nothing(architecture, branches, width):
    """Alone or beside a longer neighbour, with rotary and with learned positions."""
    policy = POLICIES[architecture]
    alone = torch.cat([response_logps(policy, [branch]) for branch in branches])
    beside = response_logps(policy, [*branches, Branch(tuple(range(1, 41)), width)])[:-1]
    assert beside.tolist() == pytest.approx(alone.tolist(), abs=1e-4)


def test_trap_8_the_cut_into_forward_passes_changes_nothing(monkeypatch):
    policy = POLICIES["gpt2"]
    branches = [Branch(tuple(range(1, 2 + i)), tuple(range(3, 4 + 3 * i))) for i in range(9)]
    whole = response_logps(policy, branches)
    for budget in (1, 40, 100):
        monkeypatch.setattr(logps_module, "FORWARD_TOKENS", budget)
        assert torch.allclose(response_logps(policy, branches), whole, atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_are_those_of_the_plain_passes(architecture):
    policy = POLICIES[architecture]
    branches = [Branch((1, 2, 3), (4, 5)), Branch((1, 2, 3), (6, 7, 8, 9))]
    parameters = list(policy.model.parameters())
    ours = torch.autograd.grad((response_logps(policy, branches) ** 2).sum(), parameters)
    plain = torch.autograd.grad((plain_logps(policy, branches) ** 2).sum(), parameters)
    for got, expected in zip(ours, plain, strict=True):
        assert (got - expected).norm() <= 1e-4 * expected.norm() + 1e-5


def test_the_head_sees_only_positions_that_predict_a_response_token():
    policy, seen = POLICIES["llama"], []
    head = policy.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda _m, _inputs, logits: seen.append(logits.shape))
    response_logps(policy, [Branch((1,) * 30, (2, 3)), Branch((1,) * 20, (2, 3, 4))])
    hook.remove()
    assert [shape[0] for shape in seen] == [5]


def test_logps_are_fp32_when_the_model_computes_in_bfloat16():
    policy = Policy(make_model("llama"), torch.device("cpu"), "bfloat16")
    branches = [Branch((1, 2, 3), tuple(range(4, 40)))]
    got = response_logps(policy, branches)
    exact = response_logps(POLICIES["llama"], branches)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(exact.item(), rel=0.01)
