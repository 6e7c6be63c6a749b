"""What a batch asks for, and what every sampler (engine) must offer.

No Django and no torch here: the run loop and the tests of other engines stand on this module.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class PolicySpec:
    """A policy on disk: the model's folder, or a LoRA adapter's folder on top of it.

    `digest` is `policy_digest` of the adapter's folder where there is one, else of the model's.
    """

    model: str
    adapter: str | None
    digest: str


@dataclass(frozen=True, kw_only=True)
class SamplerSpec:
    """spec.json of a batch. `temperature` 0 means greedy; top-p is applied after temperature."""

    schema: Literal[1]
    sampler: Literal["transformers"]
    policy: PolicySpec
    k: int
    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int
    batch_prompts: int
    system: str | None
    dtype: Literal["float32", "bfloat16"]

    def __post_init__(self) -> None:
        rules = [
            (self.k >= 1, "k must be at least 1"),
            (0 <= self.temperature < math.inf, "temperature must be 0 (greedy) or more"),
            (0 < self.top_p <= 1, "top_p must be above 0 and at most 1"),
            (self.max_new_tokens >= 1, "max_new_tokens must be at least 1"),
            (self.batch_prompts >= 1, "batch_prompts must be at least 1"),
            (self.system is None or bool(self.system.strip()), "system must be null or text"),
        ]
        problems = [message for holds, message in rules if not holds]
        if problems:
            raise ValueError("; ".join(problems))


@dataclass(frozen=True, kw_only=True)
class PromptRequest:
    """One prompt and the indexes (0 to k - 1) of the responses that it still lacks."""

    prompt_id: str
    token_ids: tuple[int, ...]
    indexes: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class SampledResponse:
    """Exactly what was sampled.

    `token_ids` ends with the end token when `finish_reason` is "stop". `logp` is their summed
    log-probability under the policy at temperature 1 and top-p 1, computed in fp32.
    """

    index: int
    token_ids: tuple[int, ...]
    logp: float
    finish_reason: FinishReason
    seed: int


@dataclass(frozen=True, kw_only=True)
class PromptSamples:
    """The responses that a request asked for."""

    prompt_id: str
    responses: tuple[SampledResponse, ...]


@dataclass(frozen=True, kw_only=True)
class PromptFailure:
    """A prompt that cannot be answered, alone; `reason` is for a person."""

    prompt_id: str
    reason: str


PromptResult = PromptSamples | PromptFailure


class Sampler(Protocol):
    """An engine that answers prompts.

    `engine` names it with its version. `sample` answers every request exactly once, in any
    order and in groups as they become ready; between two groups the run may stop, so a group is
    the most that a stop or a kill can lose. What a response is depends only on the policy, the
    prompt's token ids, the sampling parameters and `response_seed`, not on the other requests
    (up to floating-point rounding).
    """

    engine: str

    def sample(self, requests: Sequence[PromptRequest]) -> Iterator[list[PromptResult]]: ...


def response_seed(seed: int, prompt_id: str, index: int) -> int:
    """A 63-bit seed of one response, so that a rerun or another batch draws the same numbers."""
    digest = hashlib.sha256(f"{seed}\0{prompt_id}\0{index}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 1
