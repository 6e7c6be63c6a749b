"""The head and loss by hand, against autograd over the whole logits matrix."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.trainer.builders import ARCHITECTURES, as_policy, batch_of, make_model
from training.trainer import attention, head
from training.trainer.attention import _blocks
from training.trainer.batches import Batch, Branch, packs
from training.trainer.head import Head, head_gradient, head_logps
from training.trainer.logps import add_gradients, plain_logps
from training.trainer.tree import Tree

WORDS, WIDTH = 23, 6
SIZES = st.lists(
    st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=1, max_size=4
)  # response lengths by group


def made(sizes: list[list[int]]) -> tuple[Batch, torch.Tensor, torch.nn.Parameter, torch.Tensor]:
    """A batch of responses of these lengths, with hidden states, a head and targets."""
    torch.manual_seed(sum(map(sum, sizes)))
    branches = [
        Branch((number,), tuple(torch.randint(WORDS, (size,)).tolist()))
        for number, group in enumerate(sizes)
        for size in group
    ]
    targets = torch.tensor([token for branch in branches for token in branch.response])
    weight = torch.nn.Parameter(torch.randn(WORDS, WIDTH))
    return batch_of(branches), torch.randn(len(targets), WIDTH), weight, targets


def curved(batch: Batch, logps: torch.Tensor) -> torch.Tensor:
    """A loss in which every response's slope depends on the others of its group."""
    parts = logps.split([len(group.responses) for group in batch.groups])
    return sum(torch.logsumexp(part, 0) ** 2 for part in parts)


@settings(max_examples=30, deadline=None)
@given(sizes=SIZES, tokens=st.integers(1, 12), whole=st.integers(1, 12))
def test_gradients_by_hand_are_autograds_however_logits_are_chunked(sizes, tokens, whole):
    """From one token at a time, where every group is computed twice, to all groups at once."""
    batch, hidden, weight, targets = made(sizes)
    lengths = [size for group in sizes for size in group]
    ours = Head(weight, hidden)
    ours.together_tokens = tokens
    ours.group_tokens = whole
    logps = head_logps(ours, hidden, targets, batch)
    gradient = head_gradient(ours, hidden, targets, batch, curved)

    leaf, matrix = hidden.clone().requires_grad_(), weight.detach().clone().requires_grad_()
    all_logps = torch.log_softmax(leaf @ matrix.T, dim=-1).gather(1, targets[:, None])[:, 0]
    sums = torch.stack([part.sum() for part in all_logps.split(lengths)])
    curved(batch, sums).backward()
    assert torch.allclose(logps, sums.detach(), atol=1e-5)
    scale = gradient.abs().max()
    assert torch.allclose(gradient, leaf.grad, atol=1e-5 * float(scale))
    assert torch.allclose(weight.grad, matrix.grad, atol=1e-5 * float(matrix.grad.abs().max()))


def test_no_more_logits_exist_at_once_than_the_budget(monkeypatch):
    batch, hidden, weight, targets = made([[3, 2], [1, 1], [5, 5]])
    for limits in (head.TOGETHER_BYTES, head.GROUP_BYTES):
        monkeypatch.setitem(limits, "cpu", 4 * WORDS * 5)
    seen = []
    logits = Head.logits

    def watched(self, part):
        seen.append(len(part))
        return logits(self, part)

    monkeypatch.setattr(Head, "logits", watched)
    head_gradient(Head(weight, hidden), hidden, targets, batch, curved)
    # The first and second group are computed once each; the third has more tokens than fit.
    assert seen == [5, 2, 5, 5, 5, 5]


def test_a_frozen_head_learns_nothing():
    batch, hidden, weight, targets = made([[2, 3]])
    weight.requires_grad_(False)
    assert head_gradient(Head(weight, hidden), hidden, targets, batch, curved).abs().sum() > 0
    assert weight.grad is None


def test_trap_19_chunked_weight_gradients_are_not_biased():
    """Summed over many chunks in fp32 they keep the sign of their error even."""
    batch, hidden, weight, targets = made([[5, 5]] * 40)
    ours = Head(weight, hidden)
    ours.together_tokens = 10
    head_gradient(ours, hidden, targets, batch, curved)
    exact = weight.grad.clone()
    double = torch.nn.Parameter(weight.detach().double())
    leaf = hidden.double()
    logps = torch.log_softmax(leaf @ double.T, dim=-1).gather(1, targets[:, None])[:, 0]
    curved(batch, torch.stack([part.sum() for part in logps.split([5] * 80)])).backward()
    error = (exact.double() - double.grad) / double.grad.abs().mean()
    assert error.abs().max() < 1e-4
    assert error.mean().abs() < 1e-6


@pytest.mark.parametrize("tokens", [1, 25, 10**6])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("padded", [False, True])
def test_a_whole_models_gradients_are_those_of_plain_passes(architecture, tokens, padded):
    policy = as_policy(make_model(architecture), padded=padded)
    prompts = [(1, 2, 3), (9, 8), (20, 21, 22, 23, 24)]
    responses = [(4, 5), (6, 7, 8, 9), (10,), (11, 12, 13), (14, 15)]
    batch = batch_of(
        [
            Branch(p, r)
            for p, rs in zip(prompts, (responses[:2], responses, responses[3:]), strict=True)
            for r in rs
        ]
    )
    for pack in packs(batch, tokens):
        add_gradients(policy, pack, curved)
    ours = {name: p.grad.clone() for name, p in policy.model.named_parameters()}
    policy.model.zero_grad()
    curved(batch, plain_logps(policy, batch.branches)).backward()
    for name, parameter in policy.model.named_parameters():
        off = (ours[name] - parameter.grad).norm()
        assert off <= 1e-4 * parameter.grad.norm() + 1e-6, name


def test_both_ways_through_the_blocks_of_a_tree_agree():
    """The merged flash kernel, and one masked call for each response (for other devices)."""
    branches = [Branch((1,) * 7, (2,) * n) for n in (3, 5, 2)] + [Branch((1,), (2,))]
    tree = Tree(batch_of(branches), torch.device("cpu"))
    torch.manual_seed(0)
    shape = (1, 4, tree.ids.shape[1], 8)
    q, k, v = (torch.randn(shape, requires_grad=True) for _ in range(3))
    upstream = torch.randn(shape)
    merged = attention.MergedAttention.apply(q, k, v, tree, 0.3)
    blocks = _blocks(q, k, v, tree, 0.3)
    assert torch.allclose(merged, blocks, atol=1e-6)
    ours = torch.autograd.grad(merged, (q, k, v), upstream)
    theirs = torch.autograd.grad(blocks, (q, k, v), upstream)
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other, atol=1e-5)


def test_the_sequences_for_variable_length_kernels_are_the_trees_branches():
    """Causal attention aligned at the ends, over them, is attention over the tree."""
    branches = [Branch((1,) * 4, (2,) * n) for n in (3, 2)] + [Branch((1,), (2, 3))]
    tree = Tree(batch_of(branches), torch.device("cpu"))
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, tree.ids.shape[1], 8) for _ in range(3))
    rows, outs = tree.sequences, []
    for at in range(len(rows.query_ends) - 1):
        own = slice(rows.query_ends[at], rows.query_ends[at + 1])
        keys = rows.key_rows[rows.key_ends[at] : rows.key_ends[at + 1]]
        mask = torch.ones(own.stop - own.start, len(keys), dtype=torch.bool)
        mask = mask.tril(len(keys) - (own.stop - own.start))
        outs.append(
            torch.nn.functional.scaled_dot_product_attention(
                q[:, :, own], k[:, :, keys], v[:, :, keys], attn_mask=mask, scale=0.3
            )
        )
    expected = _blocks(q, k, v, tree, 0.3)
    assert torch.allclose(torch.cat(outs, dim=2), expected, atol=1e-6)
    assert (rows.longest_query, rows.longest_key) == (7, 7)
