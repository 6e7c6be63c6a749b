"""What a batch asks for, and what every sampler (engine) must offer.

No Django and no torch here: the run loop and the tests of other engines stand on this module.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

SCHEMA = 2
FinishReason = Literal["stop", "length", "stop_text"]
SamplerName = Literal["vllm", "server", "transformers"]
Ids = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class PolicySpec:
    """A policy on disk: the model's folder, or a LoRA adapter's folder on top of it.

    `id` is what prompts and responses call it. `digest` is `policy_digest` of the adapter's folder
    where there is one, else of the model's; `base_digest` that of an adapter's model, where known.
    """

    id: str
    model: str
    adapter: str | None
    digest: str
    base_digest: str | None = None

    @property
    def folder(self) -> str:
        """The folder whose digest names the policy."""
        return self.adapter or self.model


@dataclass(frozen=True, kw_only=True)
class Draw:
    """How tokens are drawn. Temperature 0 is greedy; top-p is applied after temperature.

    A response ends at one of the `stop` texts, which is then left out of its text.
    """

    temperature: float
    top_p: float
    max_new_tokens: int
    stop: list[str]

    def __post_init__(self) -> None:
        rules = [
            (0 <= self.temperature < math.inf, "temperature must be 0 (greedy) or more"),
            (0 < self.top_p <= 1, "top_p must be above 0 and at most 1"),
            (self.max_new_tokens >= 1, "max_new_tokens must be at least 1"),
            (all(self.stop), "a stop text must not be empty"),
        ]
        _raise_broken(rules)

    def but(self, overrides: dict[str, Any]) -> "Draw":
        """The same with one prompt's own values; ValueError names what cannot be."""
        unknown = overrides.keys() - {"temperature", "top_p", "max_new_tokens", "stop"}
        if unknown:
            raise ValueError(f"{', '.join(sorted(unknown))} cannot be set for a prompt")
        kinds = {"max_new_tokens": int, "stop": list}
        for name, value in overrides.items():
            if isinstance(value, bool) or not isinstance(value, kinds.get(name, (int, float))):
                raise ValueError(f"{name} of the prompt cannot be {value!r}")
        if not all(isinstance(text, str) for text in overrides.get("stop", [])):
            raise ValueError("stop of the prompt must be a list of texts")
        return replace(self, **overrides)


@dataclass(frozen=True, kw_only=True)
class ServerSpec:
    """OpenAI-compatible servers, each with the same models.

    `key_file` holds the key that they ask for; the key itself is in no run directory. Where
    `unproven`, servers that return no token ids or log-probabilities are used as they are.
    """

    urls: list[str]
    key_file: str | None
    unproven: bool

    def __post_init__(self) -> None:
        _raise_broken([(bool(self.urls), "server.urls must name a server")])


@dataclass(frozen=True, kw_only=True)
class SamplerSpec:
    """spec.json of a batch.

    `score_under` names policies under which every response is scored after it was sampled, into
    scores.jsonl. `batch_prompts` bounds how many prompts the transformers sampler takes at once.
    """

    schema: Literal[2]
    sampler: SamplerName
    policies: list[PolicySpec]
    draw: Draw
    seed: int
    system: str | None
    score_under: list[str]
    server: ServerSpec | None
    batch_prompts: int
    dtype: Literal["float32", "bfloat16"]

    def __post_init__(self) -> None:
        ids = [policy.id for policy in self.policies]
        rules = [
            (bool(ids), "policies must name a policy"),
            (len(set(ids)) == len(ids), "two policies have the same id"),
            (set(self.score_under) <= set(ids), "score_under names a policy that is not there"),
            ((self.server is None) == (self.sampler != "server"), "server goes with its sampler"),
            (self.batch_prompts >= 1, "batch_prompts must be at least 1"),
            (self.system is None or bool(self.system.strip()), "system must be null or text"),
        ]
        _raise_broken(rules)

    def policy(self, id: str) -> PolicySpec:
        """The policy of this id."""
        return next(policy for policy in self.policies if policy.id == id)


def _raise_broken(rules: Sequence[tuple[bool, str]]) -> None:
    problems = [message for holds, message in rules if not holds]
    if problems:
        raise ValueError("; ".join(problems))


@dataclass(frozen=True, kw_only=True)
class PromptRequest:
    """One prompt for one policy, and the indexes of the responses that it still lacks."""

    prompt_id: str
    policy: str
    token_ids: Ids
    indexes: Ids
    draw: Draw


@dataclass(frozen=True, kw_only=True)
class SampledResponse:
    """Exactly what was sampled.

    `token_ids` ends with the end token when `finish_reason` is "stop", and with the tokens that
    spell a stop text when it is "stop_text". `logp` is their summed log-probability under the
    policy at temperature 1 and top-p 1, computed in fp32. `text` is None where the tokenizer is
    to decode the tokens. Without `token_ids` and `logp` the response is unproven.
    """

    index: int
    token_ids: Ids | None
    logp: float | None
    finish_reason: FinishReason
    seed: int
    text: str | None = None


@dataclass(frozen=True, kw_only=True)
class PromptSamples:
    """The responses that a request asked for."""

    prompt_id: str
    policy: str
    responses: tuple[SampledResponse, ...]


@dataclass(frozen=True, kw_only=True)
class PromptFailure:
    """A request that cannot be answered, alone; `reason` is for a person."""

    prompt_id: str
    indexes: Ids
    reason: str


PromptResult = PromptSamples | PromptFailure


@dataclass(frozen=True, kw_only=True)
class ScoreRequest:
    """A response to score under a policy; both parts have at least one token."""

    policy: str
    prompt: Ids
    response: Ids


class Sampler(Protocol):
    """An engine that answers prompts, for some of the batch's policies.

    `engine` names it with its version. `sample` answers every request exactly once, in any
    order and in groups as they become ready; between two groups the run may stop, so a group is
    the most that a stop or a kill can lose. What a response is depends only on the policy, the
    prompt's token ids, how it is drawn and `response_seed`, not on the other requests (up to
    floating-point rounding).

    `score` gives the log-probability of each response token at temperature 1, request after
    request in their order, an empty tuple for a text that the engine cannot score. `close` gives
    memory back.
    """

    engine: str

    def sample(self, requests: Sequence[PromptRequest]) -> Iterator[list[PromptResult]]: ...

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[tuple[float, ...]]: ...

    def close(self) -> None: ...


class ServerAway(Exception):
    """No server answers, for too long to wait on; the message is for a person."""


def response_seed(seed: int, prompt_id: str, index: int) -> int:
    """A 63-bit seed of one response, so that a rerun or another batch draws the same numbers."""
    digest = hashlib.sha256(f"{seed}\0{prompt_id}\0{index}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


def served_name(policy: PolicySpec) -> str:
    """The name under which an engine knows an adapter: its content's hash.

    A name that was used again for other weights could go on serving the old ones.
    """
    return f"prefloop-{policy.digest}"


def too_long(prompt: int, wanted: int, context: int | None) -> str | None:
    """Why a prompt of so many tokens cannot be answered with so many more; None where it can."""
    if context is None or prompt + wanted <= context:
        return None
    return (
        f"too long: {prompt} prompt tokens and up to {wanted} new ones do not fit into the "
        f"policy's {context} positions"
    )
