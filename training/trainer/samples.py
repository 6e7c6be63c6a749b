"""What the policy writes: held-out prompts answered before and after training.

Longer and more repetitive responses are what DPO is known for (SimPO's README; Park et al. 2024,
arXiv:2403.19159), and neither the loss nor reward accuracy shows them.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from labeling.chat import end_token_ids
from training.trainer.data import Group
from training.trainer.model import Policy
from training.trainer.parallel import world

ROWS = 16  # responses written together
SHOWN = 4  # responses whose text is shown
SHOWN_CHARACTERS = 2000
NGRAM = 4  # tokens in a row that make a repetition


@dataclass(frozen=True)
class SamplePrompt:
    """A prompt to answer: token ids, and the last user's turn to show beside the answer."""

    ids: tuple[int, ...]
    turn: str


@dataclass(frozen=True)
class Sample:
    """One response as it was drawn; `ended` by an end token, which it includes, or cut."""

    tokens: tuple[int, ...]
    ended: bool


@dataclass(frozen=True)
class SampleReport:
    """What the samples say: numbers for metrics.jsonl, and a few texts for an event."""

    metrics: dict[str, float]
    texts: list[dict[str, str]]  # {"prompt", "response"}


def sample_prompts(
    held_out: Sequence[Group], rows: Sequence[dict[str, Any]], count: int
) -> list[SamplePrompt]:
    """Up to `count` distinct held-out prompts, spread evenly over their order.

    `rows` are the ranked groups that `held_out` was made from.
    """
    turns = {row["id"]: row["prompt"][-1]["content"] for row in rows}
    distinct = [SamplePrompt(*pair) for pair in {g.prompt: turns[g.id] for g in held_out}.items()]
    count = min(count, len(distinct))
    return [distinct[at * len(distinct) // count] for at in range(count)]


def report_samples(
    policy: Policy,
    tokenizer: Any,
    prompts: Sequence[SamplePrompt],
    *,
    max_tokens: int,
    seed: int,
) -> SampleReport | None:
    """Let the policy answer all prompts; None where there are none."""
    if not prompts:
        return None
    ids = [prompt.ids for prompt in prompts]
    samples = sample_responses(policy, tokenizer, ids, max_tokens=max_tokens, seed=seed)
    texts = [
        {
            "prompt": _shown(prompt.turn),
            "response": _shown(tokenizer.decode(sample.tokens, skip_special_tokens=True)),
        }
        for prompt, sample in zip(prompts[:SHOWN], samples, strict=False)
    ]
    return SampleReport(summarise(samples), texts)


def summarise(samples: Sequence[Sample]) -> dict[str, float]:
    """Lengths in tokens, the end token included, and shares in [0, 1]; over at least one sample."""
    lengths = sorted(len(sample.tokens) for sample in samples)
    count = len(samples)
    return {
        "prompts": count,
        "tokens": sum(lengths) / count,
        "tokens_p95": lengths[math.ceil(0.95 * count) - 1],
        "ended": sum(sample.ended for sample in samples) / count,
        "repetition": sum(repetition(sample.tokens) for sample in samples) / count,
    }


def repetition(tokens: Sequence[int]) -> float:
    """Share of a response's 4-grams that occur earlier in it; 0 where it has none."""
    grams = [tuple(tokens[at : at + NGRAM]) for at in range(len(tokens) - NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def sample_responses(
    policy: Policy,
    tokenizer: Any,
    prompts: Sequence[tuple[int, ...]],
    *,
    max_tokens: int,
    seed: int,
) -> list[Sample]:
    """Responses to prompts (token ids), in their order, drawn at temperature 1 without filters.

    Each prompt has random numbers of its own, which the seed decides: two policies answer with
    the same luck, and (but for rounding) no answer depends on which prompts share a batch. A
    response has at most `max_tokens`, and fewer where the model's positions end. PyTorch's random
    state is not touched.
    """
    generator = torch.Generator().manual_seed(seed)
    uniforms = torch.rand(len(prompts), max_tokens, generator=generator, dtype=torch.float64)
    ends = _end_ids(policy.base, tokenizer)
    config = policy.base.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None) or math.inf

    def room(at: int) -> int:
        return int(min(max_tokens, positions - len(prompts[at])))

    samples: dict[int, Sample] = {}
    order = sorted(range(len(prompts)), key=lambda at: (room(at), len(prompts[at])))
    for limit, same in groupby(order, key=room):
        places = list(same)
        for start in range(0, len(places), ROWS):
            part = places[start : start + ROWS]
            rows = [prompts[at] for at in part]
            written = _generate(policy, rows, ends, uniforms[part], limit)
            samples |= dict(zip(part, written, strict=True))
    return [samples[at] for at in range(len(prompts))]


def _end_ids(model: Any, tokenizer: Any) -> list[int]:
    """What ends a response when the policy is served: the tokenizer's end and the model's own."""
    named = model.generation_config.eos_token_id
    own = [named] if isinstance(named, int) else list(named or [])
    return sorted({*end_token_ids(tokenizer), *own})


def _generate(
    policy: Policy,
    prompts: Sequence[tuple[int, ...]],
    ends: list[int],
    uniforms: torch.Tensor,
    limit: int,
) -> list[Sample]:
    """Responses of at most `limit` tokens; `uniforms` (prompts, ≥ limit) decide each token."""
    width = max(map(len, prompts))
    padded = torch.tensor([[ends[0]] * (width - len(ids)) + [*ids] for ids in prompts])
    lengths = torch.tensor([len(ids) for ids in prompts])
    mask = torch.arange(width) >= width - lengths[:, None]
    settings = GenerationConfig(
        do_sample=False,  # the processor has drawn: what is left is to take the only token
        max_new_tokens=limit,
        eos_token_id=ends,
        pad_token_id=ends[0],
    )
    drawing = Drawing(uniforms.to(policy.device), width)
    with policy.precision(), _own_settings_only(policy.base), _uncompiled(policy.base):
        # generate counts positions from the mask: after padding, and on where it stopped
        out = policy.base.generate(
            padded.to(policy.device),
            attention_mask=mask.long().to(policy.device),
            generation_config=settings,
            logits_processor=LogitsProcessorList([drawing]),
            synced_gpus=world() > 1,
        )
    return [_cut(row, set(ends)) for row in out[:, width:].tolist()]


@contextmanager
def _own_settings_only(model: Any) -> Iterator[None]:
    """Within, `generate` does not fill in the model's generation settings (such as a penalty)."""
    stock = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = stock


def _uncompiled(model: Any) -> AbstractContextManager[Any]:
    """Within, layers that were compiled for training run as they are: compiling them once more,
    for one token after a cache that grows, takes longer than the answers do."""
    compiled = any(module._compiled_call_impl is not None for module in model.modules())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


class Drawing(LogitsProcessor):
    """Draws a token for each row and leaves it as the only one that can be chosen."""

    def __init__(self, uniforms: torch.Tensor, width: int) -> None:
        self.uniforms = uniforms  # (rows, steps), in [0, 1)
        self.width = width  # tokens before the first step

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(rows, V) logits to (rows, V): 0 at the drawn token, −∞ elsewhere.

        The token is the first whose cumulated probability is above the row's uniform number.
        """
        uniform = self.uniforms[:, input_ids.shape[1] - self.width, None]
        cumulated = scores.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
        drawn = torch.searchsorted(cumulated, uniform * cumulated[:, -1:], right=True)
        drawn = drawn.clamp_(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -math.inf).scatter_(1, drawn, 0.0)


def _cut(row: list[int], ends: set[int]) -> Sample:
    """A row of generated ids up to its first end token; what follows is padding."""
    length = next((at for at, token in enumerate(row, start=1) if token in ends), None)
    return Sample(tuple(row[:length]), length is not None)


def _shown(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
