"""Summed log-probabilities of responses under a policy: log π(y|x) = Σ_t log π(y_t | x, y_<t).

The sum runs over the response's tokens, its end token included, in fp32 whatever dtype the
model computes in. Only positions that predict a response token reach the language-model head.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

from training.trainer.batches import Branch
from training.trainer.model import Policy

FORWARD_TOKENS = 1024  # padded tokens in one forward pass


def response_logps(policy: Policy, branches: Sequence[Branch]) -> torch.Tensor:
    """(n,) fp32 log π(y|x) of each branch, in the order given; carries gradients.

    Branches of similar length share a forward pass, so that little of it is padding.
    """
    order = sorted(range(len(branches)), key=lambda at: _length(branches[at]))
    parts = [_forward(policy, [branches[at] for at in part]) for part in _runs(branches, order)]
    back = torch.empty(len(order), dtype=torch.long, device=policy.device)
    back[torch.tensor(order, device=policy.device)] = torch.arange(len(order), device=policy.device)
    return torch.cat(parts)[back]


def plain_logps(policy: Policy, branches: Sequence[Branch]) -> torch.Tensor:
    """The same, the plainest way: one response at a time, no padding, the whole logits matrix.

    What `response_logps` is checked against before a round starts.
    """
    sums = []
    for prompt, response in branches:
        ids = torch.tensor([prompt + response], device=policy.device)
        with policy.precision():
            logits = policy.model(input_ids=ids, use_cache=False).logits
        logps = functional.log_softmax(logits[0, :-1].float(), dim=-1)
        token_logps = logps.gather(1, ids[0, 1:, None])[:, 0]
        sums.append(token_logps[len(prompt) - 1 :].sum())
    return torch.stack(sums)


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


def _forward(policy: Policy, branches: Sequence[Branch]) -> torch.Tensor:
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
