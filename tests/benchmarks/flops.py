"""The least work that a step of DPO is: floating-point operations of its matrix products.

A prompt is run once however many responses it has, the head reads only positions that predict a
response token, and attention is causal. Backward costs twice forward, nothing is recomputed. A
multiplication and an addition are two operations.
"""

from collections.abc import Iterable, Sequence

from tests.benchmarks.models import Shape


def step_flops(shape: Shape, groups: Iterable[tuple[int, Sequence[int]]]) -> float:
    """Forward and backward over groups of (prompt tokens, tokens of each response)."""
    flops = 0
    for prompt, responses in groups:
        predicted = sum(responses)
        flops += 6 * layer_weights(shape) * shape.layers * (prompt + predicted)
        flops += 6 * shape.vocabulary * shape.width * predicted
        flops += 12 * shape.width * shape.layers * attended(prompt, responses)
    return float(flops)


def layer_weights(shape: Shape) -> int:
    """Weights in one layer's matrices: q and o, k and v, and the three of the MLP."""
    width = shape.width
    keys = width * shape.key_heads // shape.heads
    return 2 * width * width + 2 * width * keys + 3 * width * shape.inner_width


def attended(prompt: int, responses: Sequence[int]) -> int:
    """(query, key) pairs of causal attention over a prompt and its branches."""
    pairs = prompt * (prompt + 1) // 2
    return pairs + sum(prompt * size + size * (size + 1) // 2 for size in responses)


def pair_tokens(groups: Iterable[tuple[int, Sequence[int]]]) -> int:
    """Tokens of all pairs as separate sequences, 2P + C + R each: what a tokens/s here counts.

    k responses are in k - 1 pairs each.
    """
    return sum(
        (len(responses) - 1) * (len(responses) * prompt + sum(responses))
        for prompt, responses in groups
    )
