"""The embedded sampler: any causal language model that transformers loads, CPU or GPU.

Faster than the library's `generate`: each distinct prompt is encoded once for all its responses,
prompts of like length share a batch, the cache is written in place, finished responses leave
the batch.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import transformers
from torch import Tensor

from generation.samplers.cache import roomy_cache
from generation.samplers.drawing import draw_tokens, uniforms
from generation.samplers.policy import context_of, load_model
from generation.samplers.protocol import (
    Draw,
    FinishReason,
    PolicySpec,
    PromptFailure,
    PromptRequest,
    PromptResult,
    PromptSamples,
    SampledResponse,
    SamplerSpec,
    ScoreRequest,
    response_seed,
    too_long,
)
from labeling.chat import response_text

CROWDED = 0.75  # the batch is made smaller when at most this share of its rows still writes


@dataclass(frozen=True, kw_only=True)
class Row:
    """One response being written."""

    request: PromptRequest
    index: int
    seed: int


class TransformersSampler:
    """A `Sampler` of one policy; `end_ids` are the tokens that end a response."""

    def __init__(
        self, spec: SamplerSpec, policy: PolicySpec, end_ids: Sequence[int], tokenizer: Any
    ) -> None:
        self.engine = f"transformers {transformers.__version__} / torch {torch.__version__}"
        self.spec, self.policy, self.tokenizer = spec, policy, tokenizer
        self.model = load_model(policy, spec.dtype)
        self.end_ids = torch.tensor(sorted(end_ids), device=self.model.device)
        self.context = context_of(policy)
        self.vocabulary: int = self.model.get_input_embeddings().num_embeddings

    def close(self) -> None:
        """Let the model go."""
        del self.model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def sample(self, requests: Sequence[PromptRequest]) -> Iterator[list[PromptResult]]:
        """See `Sampler`. Longest prompts first, so that too little memory shows at once."""
        problems = {request.prompt_id: self._problem(request) for request in requests}
        failures: list[PromptResult] = [
            _failure(request, reason)
            for request in requests
            if (reason := problems[request.prompt_id])
        ]
        if failures:
            yield failures
        ready = [request for request in requests if not problems[request.prompt_id]]
        ready.sort(key=lambda request: (-len(request.token_ids), request.token_ids))
        for alike in _by_draw(ready):
            for start in range(0, len(alike), self.spec.batch_prompts):
                yield self._sample_batch(alike[start : start + self.spec.batch_prompts])

    def _problem(self, request: PromptRequest) -> str | None:
        if max(request.token_ids) >= self.vocabulary:
            return f"token {max(request.token_ids)} is not in the policy's vocabulary"
        return too_long(len(request.token_ids), request.draw.max_new_tokens, self.context)

    def _sample_batch(self, requests: list[PromptRequest]) -> list[PromptResult]:
        """Halves a batch that does not fit into memory; what it says does not change by that."""
        try:
            return self._sample_together(requests)
        except torch.OutOfMemoryError:
            if len(requests) == 1:
                reason = "out of memory, even alone; lower k, max_new_tokens or the prompt's length"
                return [_failure(requests[0], reason)]
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
        tokens, logps = self._decode(rows, requests[0].draw)
        responses: dict[str, list[SampledResponse]] = {}
        for row, row_tokens, row_logps in zip(rows, tokens.tolist(), logps, strict=True):
            response = self._response(row, row_tokens, row_logps)
            responses.setdefault(row.request.prompt_id, []).append(response)
        return [_result(request, responses[request.prompt_id]) for request in requests]

    def _response(self, row: Row, tokens: list[int], logps: Tensor) -> SampledResponse:
        """A decoded row, cut after its first end token or where a stop text is spelled."""
        ends = set(self.end_ids.tolist())
        length = next((at + 1 for at, token in enumerate(tokens) if token in ends), None)
        kept, reason, text = tokens[:length], "length" if length is None else "stop", None
        body = kept if length is None else kept[:-1]
        cut = cut_at_stop(self.tokenizer, body, row.request.draw.stop)
        if cut is not None:
            count, text = cut
            kept, reason = body[:count], "stop_text"
        return SampledResponse(
            index=row.index,
            token_ids=tuple(kept),
            logp=float(logps[: len(kept)].sum()),
            finish_reason=cast(FinishReason, reason),
            seed=row.seed,
            text=text,
        )

    @torch.inference_mode()
    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[tuple[float, ...]]:
        """See `Sampler`. One text at a time: it is for a few probes and responses."""
        for request in requests:
            ids = torch.tensor([request.prompt + request.response], device=self.model.device)
            logits = self.model(input_ids=ids, use_cache=False).logits[0].float()
            begin = len(request.prompt) - 1
            logps = logits[begin:-1].log_softmax(dim=-1)
            yield tuple(logps.gather(1, ids[0, begin + 1 :, None])[:, 0].tolist())

    @torch.inference_mode()
    def _decode(self, rows: list[Row], draw: Draw) -> tuple[Tensor, Tensor]:
        """Tokens and logps, both [rows, max_new_tokens]; what follows an end token is noise."""
        steps = draw.max_new_tokens
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


def _by_draw(requests: Sequence[PromptRequest]) -> list[list[PromptRequest]]:
    """Requests that are drawn alike, together, each in the order given."""
    alike: dict[str, list[PromptRequest]] = {}
    for request in requests:
        alike.setdefault(repr(request.draw), []).append(request)
    return list(alike.values())


def cut_at_stop(tokenizer: Any, ids: Sequence[int], stop: Sequence[str]) -> tuple[int, str] | None:
    """How many tokens it takes to spell the first stop text, and the text before it.

    None where none is spelled. The last of these tokens may spell more than the stop text.
    """
    text = response_text(tokenizer, ids)
    places = [place for place in (text.find(one) for one in stop) if place >= 0]
    if not places:
        return None

    def spelled(count: int) -> bool:
        part = response_text(tokenizer, ids[:count])
        return any(one in part for one in stop)

    count = bisect_left(range(len(ids)), True, key=spelled)
    return count, text[: min(places)]


def _failure(request: PromptRequest, reason: str) -> PromptFailure:
    return PromptFailure(prompt_id=request.prompt_id, indexes=request.indexes, reason=reason)


def _result(request: PromptRequest, responses: list[SampledResponse]) -> PromptResult:
    if not torch.tensor([response.logp for response in responses]).isfinite().all():
        return _failure(request, "the policy's logits are not finite")
    return PromptSamples(
        prompt_id=request.prompt_id, policy=request.policy, responses=tuple(responses)
    )
