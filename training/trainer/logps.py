"""Summed log-probabilities of responses under a policy: log π(y|x) = Σ_t log π(y_t | x, y_<t).

The sum runs over the response's tokens, its end token included, in fp32 whatever dtype the
model computes in. Only positions that predict a response token reach the language-model head.

Three ways to the same numbers: as a tree (the fast one), padded (for models whose layers cannot
attend to a tree), and plain, against which the other two are checked before a round starts.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

from training.trainer.attention import tree_attention
from training.trainer.batches import Batch, Branch, packs
from training.trainer.head import Head, LossOf, head_gradient, head_logps
from training.trainer.model import Policy
from training.trainer.tree import Tree

FORWARD_TOKENS = 1024  # padded tokens in one forward pass


def passes(policy: Policy, batch: Batch) -> list[Batch]:
    """A batch in packs of whole groups, each for one forward and backward pass.

    Padded rows hold each prompt again for each response, and all their logits: fewer fit.
    """
    if policy.shares_prompts:
        return packs(batch, policy.pack_tokens)
    tokens = min(policy.pack_tokens, FORWARD_TOKENS)
    return packs(batch, tokens, cost=lambda g: sum(len(g.prompt) + len(r) for r in g.responses))


@torch.no_grad()
def batch_logps(policy: Policy, batch: Batch) -> torch.Tensor:
    """(n,) fp32 log π(y|x) of a batch's responses; carries no gradients."""
    if not policy.shares_prompts:
        return padded_logps(policy, batch.branches)
    tree = Tree(batch, policy.device)
    hidden = _hidden_states(policy, tree).to(policy.head_dtype)
    return head_logps(Head(policy.head_weight, hidden), hidden, tree.targets, batch)


def add_gradients(policy: Policy, batch: Batch, loss_of: LossOf) -> None:
    """One forward and backward pass over a batch, adding to the parameters' gradients.

    `loss_of` is called with the batch, or with parts of it that are whole groups, in order.
    """
    if not policy.shares_prompts:
        loss_of(batch, padded_logps(policy, batch.branches)).backward()
        return
    tree = Tree(batch, policy.device)
    with tree_attention(policy.base):
        hidden = _hidden_states(policy, tree)
        states = hidden.detach().to(policy.head_dtype)
        head = Head(policy.head_weight, states)
        gradient = head_gradient(head, states, tree.targets, batch, loss_of)
        hidden.backward(gradient.to(hidden.dtype))


def _hidden_states(policy: Policy, tree: Tree) -> torch.Tensor:
    """(N, h) last hidden states at the positions that predict a response token."""
    with tree_attention(policy.base), policy.precision(), headless(policy.model):
        states = policy.model(
            input_ids=tree.ids,
            position_ids=tree.positions,
            logits_to_keep=tree.predicting,
            use_cache=False,
            tree=tree,
        ).logits
    hidden: torch.Tensor = states[0]
    return hidden


@contextmanager
def headless(model: Any) -> Iterator[None]:
    """Within, the model's head gives back what it is given: its "logits" are hidden states."""
    head = model.get_output_embeddings()
    head.forward = lambda hidden: hidden
    try:
        yield
    finally:
        del head.forward


def plain_logps(policy: Policy, branches: Sequence[Branch]) -> torch.Tensor:
    """The plainest way: one response at a time, no padding, the whole logits matrix."""
    sums = []
    for prompt, response in branches:
        ids = torch.tensor([prompt + response], device=policy.device)
        with policy.precision():
            logits = policy.model(input_ids=ids, use_cache=False).logits
        logps = functional.log_softmax(logits[0, :-1].float(), dim=-1)
        token_logps = logps.gather(1, ids[0, 1:, None])[:, 0]
        sums.append(token_logps[len(prompt) - 1 :].sum())
    return torch.stack(sums)


def padded_logps(policy: Policy, branches: Sequence[Branch]) -> torch.Tensor:
    """(n,) by stock attention over padded rows; carries gradients.

    Branches of similar length share a forward pass, so that little of it is padding.
    """
    order = sorted(range(len(branches)), key=lambda at: _length(branches[at]))
    parts = [_padded(policy, [branches[at] for at in part]) for part in _runs(branches, order)]
    back = torch.empty(len(order), dtype=torch.long, device=policy.device)
    back[torch.tensor(order, device=policy.device)] = torch.arange(len(order), device=policy.device)
    return torch.cat(parts)[back]


def _length(branch: Branch) -> int:
    return len(branch.prompt) + len(branch.response)


def _runs(branches: Sequence[Branch], order: list[int]) -> Iterator[list[int]]:
    """`order` (shortest first) cut so that no padded forward pass exceeds FORWARD_TOKENS."""
    run: list[int] = []
    for at in order:
        if run and (len(run) + 1) * _length(branches[at]) > FORWARD_TOKENS:
            yield run
            run = []
        run.append(at)
    yield run


def _padded(policy: Policy, branches: Sequence[Branch]) -> torch.Tensor:
    """(b,) log π(y|x) of b branches in one right-padded forward pass."""
    width = max(map(_length, branches))
    ids = torch.zeros(len(branches), width, dtype=torch.long)
    attends = torch.zeros(len(branches), width, dtype=torch.long)
    predicts = torch.zeros(len(branches), width, dtype=torch.bool)  # next token is a response's
    for row, (prompt, response) in enumerate(branches):
        end = len(prompt) + len(response)
        ids[row, :end] = torch.tensor(prompt + response)
        attends[row, :end] = 1
        predicts[row, len(prompt) - 1 : end - 1] = True
    ids, attends, predicts = (t.to(policy.device) for t in (ids, attends, predicts))
    with policy.precision(), head_only_at(policy.model, predicts):
        logits = policy.model(input_ids=ids, attention_mask=attends, use_cache=False).logits
    targets = ids[:, 1:][predicts[:, :-1]]  # (N,) response tokens, branch after branch
    token_logps = -functional.cross_entropy(logits.float(), targets, reduction="none")
    return torch.stack([part.sum() for part in token_logps.split([len(b[1]) for b in branches])])


@contextmanager
def head_only_at(model: Any, positions: torch.Tensor) -> Iterator[None]:
    """Within, the model's head sees only hidden states at `positions` (b, t): logits are (N, V).

    The model's own forward still runs whole, so what some do to logits after the head (scaling,
    soft-capping) is done here too.
    """

    def select(_head: Any, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return inputs[0][positions]

    hook = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        hook.remove()
