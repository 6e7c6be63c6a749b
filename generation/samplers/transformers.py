"""The embedded sampler: any causal language model that transformers loads, CPU or GPU.

Faster than the library's `generate`: each distinct prompt is encoded once for all its responses,
prompts of like length share a batch, the cache is written in place, finished responses leave
the batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from generation.samplers.cache import roomy_cache
from generation.samplers.drawing import draw_tokens, uniforms
from generation.samplers.policy import load_model
from generation.samplers.protocol import (
    PromptFailure,
    PromptRequest,
    PromptResult,
    PromptSamples,
    SampledResponse,
    SamplerSpec,
    response_seed,
)

CROWDED = 0.75  # the batch is made smaller when at most this share of its rows still writes


@dataclass(frozen=True, kw_only=True)
class Row:
    """One response being written."""

    request: PromptRequest
    index: int
    seed: int


class TransformersSampler:
    """A `Sampler`; `end_ids` are the tokens that end a response (the model may name more)."""

    def __init__(self, spec: SamplerSpec, end_ids: Sequence[int]) -> None:
        self.engine = f"transformers {transformers.__version__} / torch {torch.__version__}"
        self.spec = spec
        self.model = load_model(spec.policy, spec.dtype)
        self.end_ids = self._tensor(sorted({*end_ids, *_model_end_ids(self.model)}))
        config = self.model.config.get_text_config()
        self.context: int | None = getattr(config, "max_position_embeddings", None)
        self.vocabulary: int = self.model.get_input_embeddings().num_embeddings

    def sample(self, requests: Sequence[PromptRequest]) -> Iterator[list[PromptResult]]:
        """See `Sampler`. Longest prompts first, so that too little memory shows at once."""
        problems = {request.prompt_id: self._problem(request) for request in requests}
        failures: list[PromptResult] = [
            PromptFailure(prompt_id=prompt_id, reason=reason)
            for prompt_id, reason in problems.items()
            if reason
        ]
        if failures:
            yield failures
        ready = [request for request in requests if not problems[request.prompt_id]]
        ready.sort(key=lambda request: (-len(request.token_ids), request.token_ids))
        for start in range(0, len(ready), self.spec.batch_prompts):
            yield self._sample_batch(ready[start : start + self.spec.batch_prompts])

    def _problem(self, request: PromptRequest) -> str | None:
        length, wanted = len(request.token_ids), self.spec.max_new_tokens
        if self.context is not None and length + wanted > self.context:
            return (
                f"too long: {length} prompt tokens and up to {wanted} new ones do not fit into "
                f"the policy's {self.context} positions"
            )
        if max(request.token_ids) >= self.vocabulary:
            return f"token {max(request.token_ids)} is not in the policy's vocabulary"
        return None

    def _sample_batch(self, requests: list[PromptRequest]) -> list[PromptResult]:
        """Halves a batch that does not fit into memory; what it says does not change by that."""
        try:
            return self._sample_together(requests)
        except torch.OutOfMemoryError:
            if len(requests) == 1:
                reason = "out of memory, even alone; lower k, max_new_tokens or the prompt's length"
                return [PromptFailure(prompt_id=requests[0].prompt_id, reason=reason)]
        torch.cuda.empty_cache()
        middle = len(requests) // 2
        return self._sample_batch(requests[:middle]) + self._sample_batch(requests[middle:])

    def _sample_together(self, requests: list[PromptRequest]) -> list[PromptResult]:
        rows = [
            Row(
                request=request,
                index=index,
                seed=response_seed(self.spec.seed, request.prompt_id, index),
            )
            for request in requests
            for index in request.indexes
        ]
        tokens, logps = self._decode(rows)
        ends = frozenset(self.end_ids.tolist())
        responses: dict[str, list[SampledResponse]] = {}
        for row, row_tokens, row_logps in zip(rows, tokens.tolist(), logps, strict=True):
            response = _response(row, row_tokens, row_logps, ends)
            responses.setdefault(row.request.prompt_id, []).append(response)
        return [_result(prompt_id, made) for prompt_id, made in responses.items()]

    @torch.inference_mode()
    def _decode(self, rows: list[Row]) -> tuple[Tensor, Tensor]:
        """Tokens and logps, both [rows, max_new_tokens]; what follows an end token is noise."""
        draw, steps = self.spec, self.spec.max_new_tokens
        batch = _Batch(self.model, rows, steps)
        tokens = torch.zeros((len(rows), steps), dtype=torch.int64, device=self.model.device)
        logps = torch.zeros((len(rows), steps), dtype=torch.float32, device=self.model.device)
        uniform = uniforms([row.seed for row in rows], steps).to(self.model.device)
        for step in range(steps):
            drawn, logp = draw_tokens(
                batch.logits,
                uniform[batch.rows, step],
                temperature=draw.temperature,
                top_p=draw.top_p,
            )
            tokens[batch.rows, step], logps[batch.rows, step] = drawn, logp
            batch.writing &= ~torch.isin(drawn, self.end_ids)
            count = int(batch.writing.sum())
            if count == 0 or step == steps - 1:
                break
            if count <= CROWDED * len(drawn):
                drawn = drawn[batch.keep_writing()]
            batch.advance(drawn)
        return tokens.cpu(), logps.cpu()

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.model.device)


class _Batch:
    """Responses being written together: their cache, positions and next-token logits.

    `rows` [n] are their places in the batch as it began, `writing` [n] tells which have not
    ended, `logits` fp32 [n, vocabulary] is what the next tokens are drawn from.
    """

    def __init__(self, model: Any, rows: list[Row], new_tokens: int) -> None:
        self.model = model
        self.rows = torch.arange(len(rows), device=model.device)
        self.writing = torch.ones(len(rows), dtype=torch.bool, device=model.device)
        self._encode(rows, new_tokens)

    def _encode(self, rows: list[Row], new_tokens: int) -> None:
        """Run each distinct prompt once, then repeat its cache and logits for its rows."""
        prompts = list(dict.fromkeys(row.request.token_ids for row in rows))
        ids, mask = _pad_left(prompts, self.model.device)
        width = ids.shape[1]
        self.cache = roomy_cache(self.model.config, width + new_tokens)
        positions = (mask.cumsum(dim=1) - 1).clamp_(min=0)
        logits = self._forward(ids, positions, None if bool(mask.all()) else mask)
        place = {prompt: at for at, prompt in enumerate(prompts)}
        repeat = torch.tensor([place[row.request.token_ids] for row in rows], device=ids.device)
        self.cache.reorder_cache(repeat)
        self.logits = logits[repeat]
        self.positions = positions[repeat, -1:]
        self.mask: Tensor | None = None
        if not bool(mask.all()):
            self.mask = torch.ones((len(rows), width + new_tokens), dtype=torch.bool)
            self.mask = self.mask.to(ids.device)
            self.mask[:, :width] = mask[repeat]

    def advance(self, tokens: Tensor) -> None:
        """Feed the tokens [n] just drawn."""
        self.positions = self.positions + 1
        length = self.cache.get_seq_length() + 1
        mask = None if self.mask is None else self.mask[:, :length]
        self.logits = self._forward(tokens[:, None], self.positions, mask)

    def keep_writing(self) -> Tensor:
        """Let the ended rows leave; returns which places [m] stay."""
        kept = self.writing.nonzero().squeeze(1)
        self.rows, self.writing = self.rows[kept], self.writing[kept]
        self.positions = self.positions[kept]
        self.mask = None if self.mask is None else self.mask[kept]
        self.cache.reorder_cache(kept)
        return kept

    def _forward(self, ids: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        answer = self.model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = answer.logits[:, -1].float()
        return logits


def _pad_left(prompts: list[tuple[int, ...]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask (true at real tokens), both [prompts, longest]."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + [*prompt] for prompt in prompts])
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    mask = torch.arange(width) >= width - lengths[:, None]
    return ids.to(device), mask.to(device)


def _model_end_ids(model: Any) -> list[int]:
    """End tokens that the model's own generation settings name (Llama 3 has several)."""
    named = getattr(model.generation_config, "eos_token_id", None)
    return [named] if isinstance(named, int) else list(named or [])


def _response(row: Row, tokens: list[int], logps: Tensor, ends: frozenset[int]) -> SampledResponse:
    """A decoded row, cut after its first end token."""
    length = next((at + 1 for at, token in enumerate(tokens) if token in ends), None)
    kept = tokens[:length]
    return SampledResponse(
        index=row.index,
        token_ids=tuple(kept),
        logp=float(logps[: len(kept)].sum()),
        finish_reason="length" if length is None else "stop",
        seed=row.seed,
    )


def _result(prompt_id: str, responses: list[SampledResponse]) -> PromptResult:
    if not torch.tensor([response.logp for response in responses]).isfinite().all():
        return PromptFailure(prompt_id=prompt_id, reason="the policy's logits are not finite")
    return PromptSamples(prompt_id=prompt_id, responses=tuple(responses))
