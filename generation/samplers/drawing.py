"""From next-token logits to tokens: inverse-CDF sampling with one uniform number a token."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

LIKELY_TOKENS = 256  # tokens looked at before a whole row is sorted for top-p


def uniforms(seeds: Sequence[int], count: int) -> Tensor:
    """Numbers in [0, 1), float64 [len(seeds), count]; row i depends on seeds[i] only.

    SHAKE-256 of the seed rather than a torch generator: torch's CPU generator keeps 32 bits of
    a seed, and its stream is not promised to stay the same between versions.
    """
    data = bytearray()
    for seed in seeds:
        data += hashlib.shake_256(str(seed).encode()).digest(8 * count)
    words = torch.frombuffer(data, dtype=torch.int64).view(len(seeds), count)
    return (words & (2**53 - 1)).double() / 2**53


def draw_tokens(
    logits: Tensor, uniform: Tensor, *, temperature: float, top_p: float
) -> tuple[Tensor, Tensor]:
    """One token a row and its log-probability at temperature 1.

    logits: fp32 [rows, vocabulary]; uniform: float64 [rows]. Returns int64 [rows] and fp32
    [rows]. Temperature 0 takes the most probable token.
    """
    if temperature == 0:
        tokens = logits.argmax(dim=-1)
    else:
        weights = _weights(logits, temperature)
        tokens = _invert(_nucleus(weights, top_p) if top_p < 1 else weights, uniform)
    chosen = logits.gather(1, tokens[:, None]).squeeze(1)
    return tokens, chosen - logits.logsumexp(dim=-1)


def _weights(logits: Tensor, temperature: float) -> Tensor:
    """Probabilities up to a factor a row; the largest is 1, so nothing overflows."""
    return logits.sub(logits.amax(dim=-1, keepdim=True)).div_(temperature).exp_()


def _invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """The first token whose cumulative weight passes uniform * total; never one of weight 0."""
    cumulative = weights.cumsum(dim=-1, dtype=torch.float64)
    total = cumulative[:, -1]
    # uniform * total can round up to total, beyond every token
    target = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    tokens = torch.searchsorted(cumulative, target[:, None], right=True).squeeze(1)
    return tokens.clamp_(max=weights.shape[-1] - 1)  # non-finite logits only; their logp tells


def _nucleus(weights: Tensor, top_p: float) -> Tensor:
    """Weights with all but the smallest set of likely tokens that holds top_p set to 0.

    Holtzman et al. 2020, section 3.1. Tokens tied with the least likely one kept are kept.
    """
    needed = top_p * weights.sum(dim=-1, dtype=torch.float64)
    count = min(LIKELY_TOKENS, weights.shape[-1])
    likely = weights.topk(count, dim=-1).values
    held = likely.cumsum(dim=-1, dtype=torch.float64)
    if bool((held[:, -1] < needed).any()):
        likely = weights.sort(dim=-1, descending=True).values
        held = likely.cumsum(dim=-1, dtype=torch.float64)
    last = (held < needed[:, None]).sum(dim=-1, keepdim=True).clamp_(max=likely.shape[-1] - 1)
    return weights.masked_fill(weights < likely.gather(1, last), 0)
