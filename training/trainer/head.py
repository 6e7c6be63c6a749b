"""The language-model head and the loss in one pass, the head differentiated by hand.

With z = W·h the logits at a response token t and p = softmax(z), log π(t) = z_t − log Σ e^z, and
    ∂L/∂z = c·(onehot(t) − p),   ∂L/∂h = Wᵀ·∂L/∂z,   ∂L/∂W = Σ ∂L/∂z·hᵀ,
where c = ∂L/∂log π(y|x) is one number for a whole response: the loss only sees responses' sums.
All pairs of a group lie in one chunk, so its c are known as soon as its logits are, and logits
turn into gradients where they lie: no second product, and only one chunk's logits ever exist.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from training.trainer.batches import Batch, packs
from training.trainer.data import Group

# Bytes of fp32 logits: of small groups together (on a CPU, what its caches hold), and of one group
# at most. A group that needs more is computed twice, part by part.
TOGETHER_BYTES = {"cpu": 8 * 2**20, "cuda": 2**28}
GROUP_BYTES = {"cpu": 128 * 2**20, "cuda": 2**30}

LossOf = Callable[[Batch, torch.Tensor], torch.Tensor]
"""The summed loss of a chunk's pairs, from its responses' logps (n,)."""


class Head:
    """The head's weight W (V, h), and how to multiply by it with sums in fp32.

    On a GPU, bfloat16 hidden states are multiplied as such and added up in fp32; a CPU, which
    would round the sums as well, multiplies in fp32.
    """

    def __init__(self, weight: torch.nn.Parameter, hidden: torch.Tensor) -> None:
        self.weight = weight
        self.half = hidden.is_cuda and hidden.dtype == torch.bfloat16
        self.matrix = weight.detach().to(torch.bfloat16 if self.half else torch.float32)
        row = 4 * weight.shape[0]  # bytes of one token's logits
        self.together_tokens = max(1, TOGETHER_BYTES[hidden.device.type] // row)
        self.group_tokens = max(1, GROUP_BYTES[hidden.device.type] // row)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(N, V) fp32 from (N, h)."""
        if self.half:
            return torch.mm(hidden, self.matrix.T, out_dtype=torch.float32)
        return hidden.float() @ self.matrix.T

    def back(self, gradient: torch.Tensor) -> torch.Tensor:
        """∂L/∂h (N, h) from ∂L/∂z (N, V)."""
        return gradient.to(self.matrix.dtype) @ self.matrix

    def learn(self, gradient: torch.Tensor, hidden: torch.Tensor) -> None:
        """weight.grad += ∂L/∂zᵀ·h, where W is trained; on a CPU without a second (V, h) buffer."""
        if not self.weight.requires_grad:
            return
        if self.weight.grad is None:
            self.weight.grad = torch.zeros_like(self.weight)
        if self.half:
            product = torch.mm(gradient.to(hidden.dtype).T, hidden, out_dtype=torch.float32)
            self.weight.grad.add_(product)
        else:
            self.weight.grad.addmm_(gradient.T, hidden.float())


class Softmax(NamedTuple):
    """A softmax before its division: exponentials e^(z − max z) where the logits lay."""

    exponentials: torch.Tensor  # (N, V) fp32
    total: torch.Tensor  # (N,) their sums
    token_logps: torch.Tensor  # (N,) log softmax at the targets

    def to_gradient(self, targets: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        """(N, V) c·(onehot(t) − softmax(z)), in place; `slope` (N,) is each token's c."""
        gradient = self.exponentials.mul_((-slope / self.total)[:, None])
        return gradient.scatter_add_(1, targets[:, None], slope[:, None])


def softmax(head: Head, hidden: torch.Tensor, targets: torch.Tensor) -> Softmax:
    """Of the logits at hidden states (N, h) that predict `targets` (N,)."""
    logits = head.logits(hidden)
    at_target = logits.gather(1, targets[:, None])[:, 0]
    top = logits.amax(dim=1)
    exponentials = logits.sub_(top[:, None]).exp_()
    total = exponentials.sum(dim=1)
    return Softmax(exponentials, total, at_target - top - total.log())


@torch.no_grad()
def head_logps(
    head: Head, hidden: torch.Tensor, targets: torch.Tensor, batch: Batch
) -> torch.Tensor:
    """(n,) fp32 log π(y|x) of a batch's responses, from N hidden states (N, h).

    In the chunks of `head_gradient`, so that both round alike.
    """
    parts = [
        _sums(_token_logps(head, hidden[at], targets[at]), chunk)
        for chunk, at in _chunks(head, batch)
    ]
    return torch.cat(parts)


@torch.no_grad()
def head_gradient(
    head: Head, hidden: torch.Tensor, targets: torch.Tensor, batch: Batch, loss_of: LossOf
) -> torch.Tensor:
    """∂L/∂h (N, h) of a batch's loss; ∂L/∂W goes into the weight's grad where W is trained.

    `hidden` (N, h) predicts `targets` (N,): the batch's response tokens, response after response.
    """
    gradient = torch.empty_like(hidden)
    for chunk, at in _chunks(head, batch):
        _chunk_gradient(head, hidden[at], targets[at], chunk, loss_of, gradient[at])
    return gradient


def response_tokens(group: Group) -> int:
    """Tokens of a group that the head reads."""
    return sum(map(len, group.responses))


def _chunks(head: Head, batch: Batch) -> Iterator[tuple[Batch, slice]]:
    """Whole groups whose logits are held at once, each with its place among the N tokens."""
    start = 0
    for chunk in packs(batch, head.together_tokens, cost=response_tokens):
        at = slice(start, start + sum(map(response_tokens, chunk.groups)))
        start = at.stop
        yield chunk, at


def _chunk_gradient(
    head: Head,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    chunk: Batch,
    loss_of: LossOf,
    gradient: torch.Tensor,
) -> None:
    """Fill `gradient` (N, h) for the N response tokens of whole groups."""
    held = softmax(head, hidden, targets) if len(hidden) <= head.group_tokens else None
    token_logps = held.token_logps if held else _token_logps(head, hidden, targets)
    slopes = _slopes(chunk, _sums(token_logps, chunk), loss_of)
    sizes = torch.tensor([len(response) for response in chunk.responses], device=slopes.device)
    slope = slopes.repeat_interleave(sizes)
    for part in _slices(len(hidden), len(hidden) if held else head.together_tokens):
        values = held or softmax(head, hidden[part], targets[part])
        by_logit = values.to_gradient(targets[part], slope[part])
        gradient[part] = head.back(by_logit)
        head.learn(by_logit, hidden[part])


def _slopes(chunk: Batch, logps: torch.Tensor, loss_of: LossOf) -> torch.Tensor:
    """(n,) ∂L/∂log π(y|x) of each response."""
    with torch.enable_grad():
        leaves = logps.requires_grad_()
        (slopes,) = torch.autograd.grad(loss_of(chunk, leaves), leaves)
    return slopes


def _token_logps(head: Head, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(N,) of a chunk; one that may not be held at once is looked at part by part."""
    size = len(hidden) if len(hidden) <= head.group_tokens else head.together_tokens
    parts = [
        softmax(head, hidden[at], targets[at]).token_logps for at in _slices(len(hidden), size)
    ]
    return torch.cat(parts)


def _sums(token_logps: torch.Tensor, chunk: Batch) -> torch.Tensor:
    """(n,) sums over each response's tokens."""
    sizes = [len(response) for response in chunk.responses]
    return torch.stack([part.sum() for part in token_logps.split(sizes)])


def _slices(total: int, size: int) -> Iterator[slice]:
    return (slice(at, min(at + size, total)) for at in range(0, total, size))
