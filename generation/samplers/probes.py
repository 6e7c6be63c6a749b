"""Is the engine's model the policy? Its log-probabilities must be those of the trainer's code.

The trainer's program scored a few texts from the policy's own files (probes.jsonl). An engine
that loaded other weights, an adapter that was not applied, or one served stale under its name,
gives other numbers, however right its names look.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from generation.samplers.protocol import (
    Draw,
    PolicySpec,
    PromptRequest,
    PromptSamples,
    Sampler,
    ScoreRequest,
)
from jobs.run_dir import RunDirError, check_spec, read_jsonl

# Largest difference that rounding explains, in nats a token, by the dtype that both compute in.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}
DRAWN_TOKENS = 8


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A row of probes.jsonl: logps by the trainer's code, summed over the response.

    `base_logp` is the adapter's base model's, None where the policy has no adapter.
    """

    policy: str
    prompt: list[int]
    response: list[int]
    logp: float
    base_logp: float | None

    @property
    def request(self) -> ScoreRequest:
        """The question to the engine."""
        prompt, response = tuple(self.prompt), tuple(self.response)
        return ScoreRequest(policy=self.policy, prompt=prompt, response=response)


def read_probes(path: Path) -> list[Probe]:
    """The probes of a run directory, [] where none were made."""
    if not path.exists():
        return []
    return [check_spec(Probe, row) for row in read_jsonl(path, torn=False)]


def check_probes(
    sampler: Sampler, policies: Sequence[PolicySpec], probes: Sequence[Probe], dtype: str
) -> dict[str, float]:
    """The largest difference of each policy, in nats a token; RunDirError where it is too large.

    Twice: texts are scored, then a few are drawn, by all policies at once, and scored again alone.
    The second finds an engine that mixes up policies when they share a pass.
    """
    asked = [probe for probe in probes if probe.policy in {policy.id for policy in policies}]
    if not asked:
        return {}
    answers = sampler.score([probe.request for probe in asked])
    expected = [(probe, sum(logps)) for probe, logps in zip(asked, answers, strict=True)]
    differences = {}
    for policy in policies:
        scored = [(probe, logp) for probe, logp in expected if probe.policy == policy.id]
        differences[policy.id] = _difference(policy, scored, TOLERANCE[dtype], sampler.engine)
    _check_drawn(sampler, policies, asked, TOLERANCE[dtype])
    return differences


def _check_drawn(
    sampler: Sampler, policies: Sequence[PolicySpec], probes: Sequence[Probe], tolerance: float
) -> None:
    """RunDirError where what an engine says of a text that it has drawn is not what it says of
    that text alone."""
    draw = Draw(temperature=1.0, top_p=1.0, max_new_tokens=DRAWN_TOKENS, stop=[])
    requests = [
        PromptRequest(
            prompt_id=f"probe {number}",
            policy=probe.policy,
            token_ids=tuple(probe.prompt),
            indexes=(0, 1),
            draw=draw,
        )
        for number, probe in enumerate(probes)
    ]
    prompts = {request.prompt_id: request.token_ids for request in requests}
    drawn = [
        (result.policy, prompts[result.prompt_id], response)
        for results in sampler.sample(requests)
        for result in results
        if isinstance(result, PromptSamples)
        for response in result.responses
    ]
    texts = [
        ScoreRequest(policy=policy, prompt=prompt, response=response.token_ids or ())
        for policy, prompt, response in drawn
    ]
    for (policy, _, response), logps in zip(drawn, sampler.score(texts), strict=True):
        difference = abs(sum(logps) - (response.logp or 0)) / len(logps)
        if not difference <= tolerance:
            folder = next(one.folder for one in policies if one.id == policy)
            raise RunDirError(
                f"this is not the policy you think: when policies answer at once, {sampler.engine} "
                f"draws for {folder} from another one ({difference:.4g} nats a token off). "
                "Nothing was generated with it; docs/operators.md says more"
            )


def _difference(
    policy: PolicySpec, scored: list[tuple[Probe, float]], tolerance: float, engine: str
) -> float:
    own = [abs(logp - probe.logp) / len(probe.response) for probe, logp in scored]
    worst = max(own)
    if not worst <= tolerance:  # NaN is no agreement either
        raise RunDirError(
            f"this is not the policy you think: {engine} scores {policy.folder} up to "
            f"{worst:.4g} nats a token away from what its files give in the trainer "
            f"(rounding explains {tolerance:g}). Nothing was generated with it"
        )
    if _nearer_to_base(scored, sum(own)):
        raise RunDirError(
            f"this is not the policy you think: {engine} scores like the base model, as if the "
            f"adapter {policy.adapter} were not applied. Nothing was generated with it"
        )
    return worst


def _nearer_to_base(scored: list[tuple[Probe, float]], own: float) -> bool:
    """Coarse rounding can hide a small adapter in the tolerance: its base must be further off."""
    if any(probe.base_logp is None for probe, _ in scored):
        return False
    base = sum(abs(logp - (probe.base_logp or 0)) / len(probe.response) for probe, logp in scored)
    return base < own


def longest_probe(probes: Sequence[Probe]) -> int:
    """Positions that probing needs, 0 without any."""
    longest = (len(probe.prompt) + max(len(probe.response), DRAWN_TOKENS) for probe in probes)
    return max(longest, default=0)
