"""Summed log-probabilities against the chain rule, one token at a time, by every way there is."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.trainer.builders import ARCHITECTURES, as_policy, batch_of, make_model
from training.trainer import logps as logps_module
from training.trainer.attention import TREE_MODELS, why_padded
from training.trainer.batches import Branch, packs
from training.trainer.logps import batch_logps, padded_logps, plain_logps
from training.trainer.model import Policy

POLICIES = {name: as_policy(make_model(name)) for name in ARCHITECTURES}
TOKENS = st.lists(st.integers(0, 200), min_size=1, max_size=12).map(tuple)
PROMPTS = st.lists(st.tuples(TOKENS, st.lists(TOKENS, min_size=1, max_size=4)), max_size=4)
BRANCHES = PROMPTS.map(lambda groups: [Branch(p, r) for p, rs in groups for r in rs]).filter(bool)


def tree_logps(policy: Policy, branches: list[Branch]) -> torch.Tensor:
    return batch_logps(policy, batch_of(branches))


WAYS = {"tree": tree_logps, "padded": padded_logps}


@torch.no_grad()
def chain_rule(policy: Policy, branch: Branch) -> float:
    """Σ_t log π(y_t | x, y_<t), each from a forward pass over exactly what precedes y_t."""
    total = 0.0
    for position, token in enumerate(branch.response):
        before = torch.tensor([branch.prompt + branch.response[:position]])
        last = policy.model(input_ids=before).logits[0, -1]
        total += torch.log_softmax(last.double(), dim=-1)[token].item()
    return total


def test_every_model_that_may_share_prompts_is_tested_here():
    assert set(ARCHITECTURES) == set(TREE_MODELS)
    assert all(policy.shares_prompts for policy in POLICIES.values())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=8, deadline=None)
@given(branches=BRANCHES)
def test_trap_1_logps_are_the_chain_rule_token_by_token(architecture, branches):
    policy = POLICIES[architecture]
    expected = [chain_rule(policy, branch) for branch in branches]
    for way in (*WAYS.values(), plain_logps):
        assert way(policy, branches).tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_trap_1_the_end_token_is_scored(way):
    policy = POLICIES["llama"]
    cut, ended = Branch((5, 6), (7, 8)), Branch((5, 6), (7, 8, 0))
    short, long = WAYS[way](policy, [cut, ended]).tolist()
    last = chain_rule(policy, Branch((5, 6, 7, 8), (0,)))
    assert long - short == pytest.approx(last, abs=1e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_trap_2_no_prompt_token_is_ever_scored(architecture, way):
    """The same text cut elsewhere into prompt and response differs by exactly those tokens."""
    policy = POLICIES[architecture]
    text = tuple(range(10, 22))
    scores = WAYS[way](policy, [Branch(text[:at], text[at:]) for at in range(1, 12)])
    steps = [chain_rule(policy, Branch(text[:at], text[at : at + 1])) for at in range(1, 12)]
    expected = [sum(steps[at:]) for at in range(11)]
    assert scores.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=8, deadline=None)
@given(branches=BRANCHES, width=TOKENS)
def test_trap_8_neighbours_change_nothing(architecture, way, branches, width):
    """Alone or beside a longer one, with rotary and with learned positions."""
    policy, logps = POLICIES[architecture], WAYS[way]
    alone = torch.cat([logps(policy, [branch]) for branch in branches])
    beside = logps(policy, [*branches, Branch(tuple(range(1, 41)), width)])[:-1]
    assert beside.tolist() == pytest.approx(alone.tolist(), abs=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_response_does_not_see_the_others_of_its_prompt(architecture):
    policy, prompt, own = POLICIES[architecture], (1, 2, 3), (4, 5, 6, 7)
    for place in range(3):
        others = [tuple(range(30, 35)), tuple(range(50, 58))]
        responses = [*others[:place], own, *others[place:]]
        logps = tree_logps(policy, [Branch(prompt, response) for response in responses])
        alone = chain_rule(policy, Branch(prompt, own))
        assert logps[place].item() == pytest.approx(alone, abs=1e-5)


@settings(max_examples=15, deadline=None)
@given(branches=BRANCHES, tokens=st.integers(1, 80))
def test_packs_are_whole_groups_and_change_nothing(branches, tokens):
    policy, batch = POLICIES["gpt2"], batch_of(branches)
    parts = packs(batch, tokens)
    assert [group for part in parts for group in part.groups] == list(batch.groups)
    assert all(part.tokens <= tokens or len(part.groups) == 1 for part in parts)
    packed = torch.cat([batch_logps(policy, part) for part in parts])
    assert packed.tolist() == pytest.approx(batch_logps(policy, batch).tolist(), abs=1e-4)


def test_trap_8_the_cut_into_padded_passes_changes_nothing(monkeypatch):
    policy = POLICIES["gpt2"]
    branches = [Branch(tuple(range(1, 2 + i)), tuple(range(3, 4 + 3 * i))) for i in range(9)]
    whole = padded_logps(policy, branches)
    for budget in (1, 40, 100):
        monkeypatch.setattr(logps_module, "FORWARD_TOKENS", budget)
        assert torch.allclose(padded_logps(policy, branches), whole, atol=1e-4)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_trap_10_logps_are_fp32_when_the_model_computes_in_bfloat16(way, dtype):
    """With fp32 weights under autocast, and with weights that are bfloat16 themselves."""
    policy = as_policy(make_model("llama").to(dtype), dtype="bfloat16")
    branches = [Branch((1, 2, 3), tuple(range(4, 40)))]
    got = WAYS[way](policy, branches)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(plain_logps(POLICIES["llama"], branches).item(), rel=0.02)


def test_only_positions_that_predict_a_response_token_reach_the_head():
    policy, seen = POLICIES["llama"], []
    head = policy.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda _m, _inputs, out: seen.append(out.shape[-2]))
    for logps in WAYS.values():
        logps(policy, [Branch((1,) * 30, (2, 3)), Branch((1,) * 20, (2, 3, 4))])
    hook.remove()
    assert seen == [5, 5]


def test_a_models_own_attention_is_back_after_a_tree():
    policy = POLICIES["llama"]
    before = policy.model.config._attn_implementation
    tree_logps(policy, [Branch((1, 2), (3,))])
    assert policy.model.config._attn_implementation == before
    assert torch.isfinite(policy.model(input_ids=torch.tensor([[1, 2, 3]])).logits).all()


@pytest.mark.parametrize(
    ("architecture", "shape", "longest", "why"),
    [
        ("mistral", {"sliding_window": 16}, 17, "sliding window of 16"),
        ("mistral", {"sliding_window": 16}, 16, None),
        ("qwen2", {"sliding_window": 16, "use_sliding_window": True}, 17, "sliding window"),
        ("llama", {}, 10**6, None),
    ],
)
def test_layers_that_cannot_share_prompts_are_padded(architecture, shape, longest, why):
    found = why_padded(make_model(architecture, **shape), longest)
    assert (why in found) if why else found is None


def test_a_sliding_window_is_honoured_by_the_padded_way():
    policy = as_policy(make_model("mistral", sliding_window=4))
    assert not policy.shares_prompts
    branches = [Branch(tuple(range(1, 10)), (4, 5, 6)), Branch(tuple(range(1, 10)), (7, 8))]
    expected = [chain_rule(policy, branch) for branch in branches]
    assert batch_logps(policy, batch_of(branches)).tolist() == pytest.approx(expected, abs=1e-5)
    forced = replace(policy, padded_because=None)
    assert tree_logps(forced, branches).tolist() != pytest.approx(expected, abs=1e-3)


def test_a_head_with_more_than_a_matrix_is_padded():
    model = make_model("gpt2")
    model.lm_head = torch.nn.Linear(32, model.config.vocab_size, bias=True)
    assert "more than a matrix" in why_padded(model, 64)
    model.config.model_type = "mamba"
    assert "mamba" in why_padded(model, 64)
