"""An engine must score texts as the trainer does, also when it serves several policies at once."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from generation.samplers.policy import end_ids, load_tokenizer  # noqa: E402
from generation.samplers.probes import Probe, check_probes, longest_probe, read_probes  # noqa: E402
from generation.samplers.protocol import PolicySpec, SamplerSpec  # noqa: E402
from generation.samplers.run import run  # noqa: E402
from generation.samplers.transformers import TransformersSampler  # noqa: E402
from jobs.run_dir import RunDirError, check_spec  # noqa: E402
from tests.generation.samplers.conftest import (  # noqa: E402
    make_run,
    policy_spec,
    save_adapter,
    some_prompts,
    spec_for,
)
from training.trainer.config import PolicySource  # noqa: E402
from training.trainer.probes import probes as probes_of  # noqa: E402


@pytest.fixture(scope="module")
def adapter(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(llama, tmp_path_factory.mktemp("adapter") / "one")


def sampler_of(policy: PolicySpec) -> TransformersSampler:
    spec = check_spec(SamplerSpec, spec_for(Path(policy.model), policies=[vars(policy)]))
    tokenizer = load_tokenizer(policy)
    return TransformersSampler(spec, policy, end_ids(policy, tokenizer), tokenizer)


def spec_of(llama: Path, adapter: Path | None, id: str = "p") -> PolicySpec:
    return PolicySpec(**policy_spec(llama, adapter, id=id))


def trainer_s(llama: Path, adapter: Path | None, id: str = "p") -> list[dict[str, Any]]:
    source = PolicySource(model=str(llama), adapter=adapter and str(adapter))
    return [{"policy": id, **row} for row in probes_of(source, "float32")]


def as_probes(found: list[dict[str, Any]]) -> list[Probe]:
    return [check_spec(Probe, row) for row in found]


def test_the_policy_itself_is_proven_to_rounding(llama, adapter):
    for one in (None, adapter):
        policy = spec_of(llama, one)
        told = check_probes(
            sampler_of(policy), [policy], as_probes(trainer_s(llama, one)), "float32"
        )
        assert told["p"] < 1e-5


def test_another_adapter_is_refused(llama, adapter, tmp_path):
    other = save_adapter(llama, tmp_path / "other", seed=2)
    policy = spec_of(llama, other)
    with pytest.raises(RunDirError, match=r"not the policy you think.*nats a token away"):
        check_probes(sampler_of(policy), [policy], as_probes(trainer_s(llama, adapter)), "float32")


def test_an_adapter_that_was_not_applied_is_refused(llama, adapter):
    """Also where coarse rounding would let it pass: it scores like its base."""
    policy = spec_of(llama, None)
    near = [
        row | {"logp": row["base_logp"] + 0.05 * len(row["response"])}
        for row in trainer_s(llama, adapter)
    ]
    with pytest.raises(RunDirError, match="like its base model"):
        check_probes(sampler_of(policy), [policy], as_probes(near), "bfloat16")


def test_a_neighbouring_round_s_policy_is_refused_in_coarse_rounding_too(llama):
    """Two policies of a batch that were swapped, closer to each other than rounding may be off."""
    policy = spec_of(llama, None, "current")
    true = trainer_s(llama, None, "previous")
    shifted = [
        row | {"policy": "current", "logp": row["logp"] - 0.05 * len(row["response"])}
        for row in true
    ]
    with pytest.raises(RunDirError, match="like policy previous"):
        check_probes(sampler_of(policy), [policy], as_probes(true + shifted), "bfloat16")


def test_policies_too_like_to_be_told_apart_are_let_in(llama):
    """A lightly trained adapter, below what bf16 can show."""
    policy = spec_of(llama, None)
    light = [row | {"base_logp": row["logp"] + 0.01} for row in trainer_s(llama, None)]
    assert check_probes(sampler_of(policy), [policy], as_probes(light), "bfloat16")["p"] < 1e-5


def test_a_policy_without_probes_is_not_proven(llama):
    policy = spec_of(llama, None)
    with pytest.raises(RunDirError, match="nothing proves"):
        check_probes(sampler_of(policy), [policy], [], "float32")


def test_logps_of_tempered_probabilities_are_refused(llama):
    """As a server gives them with --logprobs-mode processed_logprobs."""
    policy = spec_of(llama, None)
    sampler = sampler_of(policy)

    class Tempered:
        engine, score, close = sampler.engine, sampler.score, sampler.close

        def sample(self, requests):
            for group in sampler.sample(requests):
                yield [replace(one, responses=tuple(map(tempered, one.responses))) for one in group]

    def tempered(response):
        return replace(response, logp=response.logp / requests_temperature)

    requests_temperature = 0.7
    with pytest.raises(RunDirError, match="draws for"):
        check_probes(Tempered(), [policy], as_probes(trainer_s(llama, None)), "float32")


def test_an_engine_that_mixes_policies_up_is_refused(llama, adapter):
    """It scores each text alone rightly, and draws for one policy from another."""

    class MixedUp:
        engine = "an engine 1.0"

        def __init__(self) -> None:
            self.base = sampler_of(spec_of(llama, None, "base"))
            self.adapted = sampler_of(spec_of(llama, adapter, "adapted"))

        def score(self, requests):
            for request in requests:
                right = self.base if request.policy == "base" else self.adapted
                yield from right.score([request])

        def sample(self, requests):
            return self.adapted.sample(requests)

        def close(self) -> None:
            pass

    policies = [spec_of(llama, None, "base"), spec_of(llama, adapter, "adapted")]
    probes = as_probes(trainer_s(llama, None, "base") + trainer_s(llama, adapter, "adapted"))
    with pytest.raises(RunDirError, match="when policies answer at once"):
        check_probes(MixedUp(), policies, probes, "float32")


def test_an_adapter_on_a_base_that_was_replaced_is_refused(llama, adapter, tmp_path):
    spec = spec_for(llama, adapter)
    spec["policies"][0]["base_digest"] = "0" * 64
    run_dir = make_run(tmp_path, spec, some_prompts())
    with pytest.raises(RunDirError, match="is not the policy that was asked for"):
        run(run_dir, lambda: False)


def test_a_run_directory_without_probes_has_none(tmp_path):
    assert read_probes(tmp_path / "probes.jsonl") == []
    assert longest_probe([]) == 0
