"""Supervised fine-tuning: next-token loss on responses, each prompt encoded once.

One row of a batch is a prompt with all its responses. The responses branch off the prompt: every
token sees the prompt and its own response only, and positions go on from the prompt's end, so the
numbers are those of separate sequences (tested) at the cost of one.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from training.trainer.muon import Muon

_PROMPT, _PADDING = 0, -1  # segments of a row; its responses are 1, 2, ...
_SORTED_BATCHES = 4  # batches whose rows are sorted by length together, so that padding is small
_CHUNK = 1024  # predictions whose logits are made at once: larger blocks are slow to allocate


class NonFiniteLoss(Exception):
    """The loss is NaN or infinite; nothing was written."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """Token ids of one prompt and of its responses, each response with its end token."""

    prompt: list[int]
    responses: list[list[int]]

    def tokens(self) -> int:
        """Input tokens of this example's row: an end token predicts nothing, so is no input."""
        return len(self.prompt) + sum(len(response) - 1 for response in self.responses)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of tokens, and which of them predict what.

    input_ids, position_ids: [rows, length] int64. mask: [rows, 1, length, length] fp32, added to
    attention scores: 0 where a query (third axis) sees a key, else the lowest number. sources,
    targets, weights: [predictions]; the token at flat place `sources[i]` of the rows predicts the
    token id `targets[i]`.
    """

    input_ids: Tensor
    position_ids: Tensor
    mask: Tensor
    sources: Tensor
    targets: Tensor
    weights: Tensor


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to train. Learning rates are peaks: they rise over the warm-up, then fall to zero."""

    batch_examples: int
    muon_learning_rate: float
    adam_learning_rate: float
    weight_decay: float
    warmup_share: float
    prompt_weight: float
    max_grad_norm: float


def make_batch(examples: Sequence[Example], *, pad_id: int, prompt_weight: float) -> Batch:
    """Lay examples out as rows of one length; prompt tokens count `prompt_weight` in the loss."""
    length = max(example.tokens() for example in examples)
    rows = [_Row(example, prompt_weight) for example in examples]
    segments = torch.tensor([row.padded(row.segments, length, _PADDING) for row in rows])
    return Batch(
        input_ids=torch.tensor([row.padded(row.ids, length, pad_id) for row in rows]),
        position_ids=torch.tensor([row.padded(row.positions, length, 0) for row in rows]),
        mask=_branch_mask(segments),
        sources=torch.tensor([i * length + s for i, row in enumerate(rows) for s in row.sources]),
        targets=torch.tensor([target for row in rows for target in row.targets]),
        weights=torch.tensor([weight for row in rows for weight in row.weights]),
    )


class _Row:
    def __init__(self, example: Example, prompt_weight: float) -> None:
        prompt = example.prompt
        self.ids = list(prompt)
        self.positions = list(range(len(prompt)))
        self.segments = [_PROMPT] * len(prompt)
        self.sources = list(range(len(prompt) - 1)) if prompt_weight else []
        self.targets = prompt[1:] if prompt_weight else []
        self.weights = [prompt_weight] * len(self.sources)
        for segment, response in enumerate(example.responses, start=1):
            self._branch(segment, response, len(prompt))

    def _branch(self, segment: int, response: list[int], prompt_length: int) -> None:
        inputs, start = response[:-1], len(self.ids)
        self.ids += inputs
        self.positions += range(prompt_length, prompt_length + len(inputs))
        self.segments += [segment] * len(inputs)
        self.sources += [prompt_length - 1, *range(start, start + len(inputs))]
        self.targets += response
        self.weights += [1.0] * len(response)

    @staticmethod
    def padded(values: list[int], length: int, filler: int) -> list[int]:
        return values + [filler] * (length - len(values))


def _branch_mask(segments: Tensor) -> Tensor:
    """What is added to attention scores: 0 for the prompt's and the own branch's earlier tokens."""
    query, key = segments[:, :, None], segments[:, None, :]
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    visible = ((query == key) | (key == _PROMPT)) & causal
    return torch.where(visible, 0.0, torch.finfo(torch.float32).min)[:, None]


def next_token_loss(model: Any, batch: Batch) -> Tensor:
    """Weighted mean of -log p(target | what its source sees), in nats, fp32."""
    hidden = model.model(
        input_ids=batch.input_ids,
        attention_mask=batch.mask,
        position_ids=batch.position_ids,
        use_cache=False,
    ).last_hidden_state
    predicting = hidden.flatten(0, 1)[batch.sources]
    parts = zip(*(t.split(_CHUNK) for t in (predicting, batch.targets, batch.weights)), strict=True)
    total = sum(_weighted_loss(model.lm_head(h), targets, w) for h, targets, w in parts)
    return total / batch.weights.sum()


def _weighted_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    return (nn.functional.cross_entropy(logits.float(), targets, reduction="none") * weights).sum()


def shuffled(
    examples: Sequence[Example], rng: random.Random, batch_examples: int
) -> Iterator[list[Example]]:
    """One epoch in random order, in batches of examples of about one length."""
    order = list(examples)
    rng.shuffle(order)
    stretch = batch_examples * _SORTED_BATCHES
    batches = []
    for start in range(0, len(order), stretch):
        near = sorted(order[start : start + stretch], key=Example.tokens)
        batches += [near[i : i + batch_examples] for i in range(0, len(near), batch_examples)]
    rng.shuffle(batches)
    yield from batches


def learning_rate_factor(step: int, total: int, warmup_share: float) -> float:
    """Share of the peak learning rate at `step` of `total`: linear up, then linear to zero."""
    warmup = max(1, round(total * warmup_share))
    return min((step + 1) / warmup, (total - step) / max(1, total - warmup))


def optimizers(model: nn.Module, settings: Settings) -> list[Optimizer]:
    """Muon for the matrices between embedding and head, AdamW for the rest."""
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    for name, parameter in model.named_parameters():
        inner = parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
        (matrices if inner else others).append(parameter)
    decay = settings.weight_decay
    return [
        Muon(matrices, lr=settings.muon_learning_rate, weight_decay=decay, dtype=fastest_dtype()),
        AdamW(others, lr=settings.adam_learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def fastest_dtype() -> torch.dtype:
    """bfloat16 where this CPU multiplies it in hardware (3 times as fast as float32), else float32.

    Without the hardware bfloat16 is not merely no faster: it is up to 40 times slower.
    """
    has = torch.cpu.get_capabilities()
    hardware = has.get("avx512_bf16") or has.get("amx_bf16")
    return torch.bfloat16 if hardware else torch.float32


class Training:
    """Trains a causal language model in place, one `step` at a time, over `total` steps."""

    def __init__(self, model: Any, settings: Settings, *, total: int, pad_id: int) -> None:
        self._model, self._settings = model, settings
        self._total, self._pad_id = total, pad_id
        self._optimizers = optimizers(model, settings)
        self._peaks = [group["lr"] for o in self._optimizers for group in o.param_groups]
        self._mixed = fastest_dtype() == torch.bfloat16
        self._done = 0

    def step(self, examples: Sequence[Example]) -> float:
        """One update on one batch; returns its loss, raises NonFiniteLoss before the update."""
        weight = self._settings.prompt_weight
        batch = make_batch(examples, pad_id=self._pad_id, prompt_weight=weight)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._mixed):
            loss = next_token_loss(self._model, batch)
        value = loss.item()
        if not math.isfinite(value):
            raise NonFiniteLoss(f"the loss is {value} at step {self._done + 1}")
        loss.backward()
        nn.utils.clip_grad_norm_(self._model.parameters(), self._settings.max_grad_norm)
        self._update()
        return value

    def _update(self) -> None:
        factor = learning_rate_factor(self._done, self._total, self._settings.warmup_share)
        groups = [group for o in self._optimizers for group in o.param_groups]
        for group, peak in zip(groups, self._peaks, strict=True):
            group["lr"] = peak * factor
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self._done += 1
