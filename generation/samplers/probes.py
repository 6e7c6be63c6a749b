"""Is the engine's model the policy? Its log-probabilities must be those of the trainer's code.

The trainer's program scored a few texts from the policy's own files (probes.jsonl). An engine
that loaded other weights, an adapter that was not applied, or one served stale under its name,
gives other numbers, however right its names look.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

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
# Below this, a difference between two policies is lost in the rounding of bf16.
NOISE = {"float32": 1e-5, "bfloat16": 0.02}
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
    differences = {}
    drawn = []
    for policy in policies:
        own = [probe for probe in probes if probe.policy == policy.id]
        if not own:
            raise RunDirError(f"nothing proves {policy.folder}: the batch has no probes of it")
        answers = list(sampler.score([probe.request for probe in own]))
        if not all(answers):
            raise RunDirError(f"{sampler.engine} did not score what proves {policy.folder}")
        scores = [sum(logps) for logps in answers]
        differences[policy.id] = _difference(policy, own, scores, dtype, sampler.engine)
        _check_nearest(policy, own, scores, _rivals(policy, own, probes), dtype, sampler.engine)
        drawn += own
    _check_drawn(sampler, policies, drawn, TOLERANCE[dtype])
    return differences


def _check_drawn(
    sampler: Sampler, policies: Sequence[PolicySpec], probes: Sequence[Probe], tolerance: float
) -> None:
    """RunDirError where what an engine says of a text that it has drawn is not what it says of
    that text alone."""
    # Not as the model has it, so that logps of tempered probabilities are found too.
    draw = Draw(temperature=0.7, top_p=0.9, max_new_tokens=DRAWN_TOKENS, stop=[])
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
    if len(drawn) < len(probes):
        raise RunDirError(f"nothing proves what {sampler.engine} draws: it drew no probe")
    for (policy, _, response), logps in zip(drawn, sampler.score(texts), strict=True):
        difference = abs(sum(logps) - (response.logp or 0)) / max(1, len(logps))
        if not (logps and difference <= tolerance):
            folder = next(one.folder for one in policies if one.id == policy)
            raise RunDirError(
                f"this is not the policy you think: when policies answer at once, {sampler.engine} "
                f"draws for {folder} from another one ({difference:.4g} nats a token off). "
                "Nothing was generated with it; docs/operators.md says more"
            )


def _difference(
    policy: PolicySpec, probes: Sequence[Probe], scores: Sequence[float], dtype: str, engine: str
) -> float:
    worst = max(_per_token(probes, [probe.logp for probe in probes], scores))
    if not worst <= TOLERANCE[dtype]:  # NaN is no agreement either
        raise RunDirError(
            f"this is not the policy you think: {engine} scores {policy.folder} up to "
            f"{worst:.4g} nats a token away from what its files give in the trainer "
            f"(rounding explains {TOLERANCE[dtype]:g}). Nothing was generated with it"
        )
    return worst


def _rivals(
    policy: PolicySpec, own: Sequence[Probe], probes: Sequence[Probe]
) -> dict[str, list[float]]:
    """What the policies that it could be taken for would score: its base, the batch's others."""
    found: dict[str, list[float]] = {}
    if all(probe.base_logp is not None for probe in own):
        found["its base model"] = [probe.base_logp or 0.0 for probe in own]
    texts = [(probe.prompt, probe.response) for probe in own]
    others = dict.fromkeys(probe.policy for probe in probes if probe.policy != policy.id)
    for other in others:
        theirs = [probe for probe in probes if probe.policy == other]
        if [(probe.prompt, probe.response) for probe in theirs] == texts:
            found[f"policy {other}"] = [probe.logp for probe in theirs]
    return found


def _check_nearest(
    policy: PolicySpec,
    probes: Sequence[Probe],
    scores: Sequence[float],
    rivals: dict[str, list[float]],
    dtype: str,
    engine: str,
) -> None:
    """Coarse rounding can hide a small change in the tolerance: every other policy must be further
    off, unless it is too like to be told apart."""
    expected = [probe.logp for probe in probes]
    own = fmean(_per_token(probes, expected, scores))
    for rival, theirs in rivals.items():
        apart = fmean(_per_token(probes, expected, theirs))
        if apart > NOISE[dtype] and fmean(_per_token(probes, theirs, scores)) < own:
            raise RunDirError(
                f"this is not the policy you think: {engine} scores {policy.folder} like {rival}, "
                "as if its own weights were not applied. Nothing was generated with it"
            )


def _per_token(
    probes: Sequence[Probe], one: Sequence[float], other: Sequence[float]
) -> list[float]:
    """Differences of summed logps, a response token."""
    both = zip(probes, one, other, strict=True)
    return [abs(first - second) / len(probe.response) for probe, first, second in both]


def longest_probe(probes: Sequence[Probe]) -> int:
    """Positions that probing needs, 0 without any."""
    longest = (len(probe.prompt) + max(len(probe.response), DRAWN_TOKENS) for probe in probes)
    return max(longest, default=0)
