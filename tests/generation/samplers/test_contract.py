"""Each sampler, the same play, the same demands. What it says of tokens is held against a plain
forward pass of transformers over the policy's own files."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from generation.samplers.policy import load_model, load_tokenizer  # noqa: E402
from generation.samplers.protocol import PolicySpec, SamplerSpec, response_seed  # noqa: E402
from jobs.run_dir import check_spec  # noqa: E402
from labeling.chat import response_text  # noqa: E402
from tests.generation.samplers import contract  # noqa: E402
from tests.generation.samplers.conftest import (  # noqa: E402
    ROOT,
    policy_spec,
    save_adapter,
    spec_for,
)
from tests.generation.samplers.vllm_env import vllm_python  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("contract")]
TOLERANCE = 1e-3  # nats a token, fp32
VLLM_LIMIT_S = 300

Row = dict[str, Any]


@pytest.fixture(scope="module")
def spec(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> SamplerSpec:
    """A base model and two adapters on it."""
    folder = tmp_path_factory.mktemp("adapters")
    adapters = [save_adapter(llama, folder / str(seed), seed) for seed in (1, 2)]
    policies = [policy_spec(llama, id="base")]
    policies += [policy_spec(llama, adapter, id=adapter.name) for adapter in adapters]
    return check_spec(SamplerSpec, spec_for(llama, policies=policies))


@pytest.fixture(scope="module")
def plays() -> dict[str, contract.Answers]:
    """What was played already: in random order a module's parameters come and go."""
    return {}


@pytest.fixture(params=["transformers", "vllm", "server"])
def answers(
    request: pytest.FixtureRequest,
    spec: SamplerSpec,
    plays: dict[str, contract.Answers],
    tmp_path_factory: pytest.TempPathFactory,
) -> contract.Answers:
    """What a sampler answered in the play."""
    name = request.param
    if name not in plays:
        players = {"transformers": play_transformers, "vllm": play_vllm, "server": play_server}
        plays[name] = players[name](spec, tmp_path_factory.mktemp(name), request)
    return plays[name]


def play_transformers(spec: SamplerSpec, *_: object) -> contract.Answers:
    from generation.samplers.transformers import TransformersSampler

    made = {
        policy.id: TransformersSampler(spec, policy, contract.ENDS, load_tokenizer(policy))
        for policy in spec.policies
    }
    return contract.play(lambda policy: made[policy.id], spec.policies)


def play_vllm(spec: SamplerSpec, folder: Path, *_: object) -> contract.Answers:
    """In vLLM's own environment, as the worker runs it."""
    given, told = folder / "spec.json", folder / "answers.json"
    given.write_text(json.dumps(spec_for(Path(spec.policies[0].model), **_changes(spec))))
    command = [vllm_python(), "-m", "tests.generation.samplers.contract", str(given), str(told)]
    played = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=VLLM_LIMIT_S)
    assert played.returncode == 0, played.stderr[-3000:]
    answers: contract.Answers = json.loads(told.read_text())
    return answers


def _changes(spec: SamplerSpec) -> Row:
    return {"sampler": "vllm", "policies": [vars(policy) for policy in spec.policies]}


def play_server(
    spec: SamplerSpec, _folder: Path, request: pytest.FixtureRequest
) -> contract.Answers:
    from dataclasses import replace

    from generation.samplers.protocol import ServerSpec
    from generation.samplers.server import ServerSampler

    url = request.getfixturevalue("vllm_server")
    asked = replace(
        spec, sampler="server", server=ServerSpec(urls=[url], key_file=None, unproven=False)
    )
    ends = {policy.id: contract.ENDS for policy in spec.policies}
    sampler = ServerSampler(asked, spec.policies, ends)
    try:
        return contract.play(lambda _policy: sampler, spec.policies)
    finally:
        sampler.close()


@pytest.fixture(scope="module")
def logps(spec: SamplerSpec) -> Any:
    """Token log-probabilities of a response, by a plain forward pass."""
    models = {policy.id: load_model(policy, "float32") for policy in spec.policies}

    def plain(policy: str, prompt: tuple[int, ...], response: list[int]) -> Any:
        with torch.no_grad():
            logits = models[policy](input_ids=torch.tensor([[*prompt, *response]])).logits[0]
        places = logits[len(prompt) - 1 : -1].float().log_softmax(-1)
        return places.gather(1, torch.tensor(response)[:, None])[:, 0]

    return plain


def responses(answers: contract.Answers, *scenes: str) -> list[tuple[Row, Row]]:
    """(result, response) of the scenes."""
    return [
        (row, response)
        for scene in scenes
        for row in answers[scene]
        for response in row.get("responses", [])
    ]


def prompt_of(row: Row) -> tuple[int, ...]:
    return contract.prompt(int(row["prompt_id"].split()[-1]))


def key(row: Row) -> tuple[str, str]:
    return row["prompt_id"], row["policy"]


def test_every_request_is_answered_once(answers, spec):
    for scene in ("mixed", "gap", "greedy", "cool", "stop"):
        asked = contract.scenes([policy.id for policy in spec.policies])[scene]
        told = [key(row) for row in answers[scene]]
        assert sorted(told) == sorted((request.prompt_id, request.policy) for request in asked)
        for row in answers[scene]:
            indexes = next(r.indexes for r in asked if (r.prompt_id, r.policy) == key(row))
            assert [response["index"] for response in row["responses"]] == list(indexes)


def test_the_policy_that_was_asked_is_the_one_that_answers(answers, logps):
    """Whatever shares the pass: requests of three policies were given at once."""
    checked = responses(answers, "mixed", "cool", "greedy", "stop")
    assert len({row["policy"] for row, _ in checked}) == 3
    for row, response in checked:
        expected = logps(row["policy"], prompt_of(row), list(response["token_ids"])).sum()
        difference = abs(response["logp"] - float(expected)) / len(response["token_ids"])
        assert difference < TOLERANCE, (row["policy"], row["prompt_id"])


def test_a_score_is_the_plain_pass_s_token_by_token(answers, logps):
    assert len(answers["scores"]) == len(answers["texts"]) > 0
    for text, score in zip(answers["texts"], answers["scores"], strict=True):
        whole = len(text["prompt"]) + len(text["response"])
        if whole == contract.CONTEXT and not score:
            continue  # an engine may want room for one token more
        expected = logps(text["policy"], tuple(text["prompt"]), list(text["response"]))
        assert torch.tensor(score) == pytest.approx(expected, abs=TOLERANCE)


def test_a_gap_is_filled_with_what_it_had_held(answers):
    whole = {key(row): row["responses"][1] for row in answers["mixed"]}
    for row in answers["gap"]:
        (filled,) = row["responses"]
        assert filled["token_ids"] == whole[key(row)]["token_ids"]


def test_responses_end_at_the_first_end_token_or_at_their_length(answers):
    reasons = set()
    for _, response in responses(answers, "mixed", "cool", "greedy"):
        *before, last = response["token_ids"]
        assert not set(before) & set(contract.ENDS)
        assert (last in contract.ENDS) == (response["finish_reason"] == "stop")
        assert response["finish_reason"] == "stop" or len(response["token_ids"]) == 12
        reasons.add(response["finish_reason"])
    assert reasons == {"stop", "length"}


def test_a_stop_text_ends_a_response_and_is_not_in_its_text(answers, spec):
    tokenizer = load_tokenizer(spec.policies[0])
    stopped = [r for _, r in responses(answers, "stop") if r["finish_reason"] == "stop_text"]
    assert stopped
    for response in stopped:
        spelled = response_text(tokenizer, response["token_ids"])
        assert "e" in spelled or "t " in spelled
        assert response["text"] is not None
        assert "e" not in response["text"]
        assert "t " not in response["text"]
        assert spelled.startswith(response["text"])


def test_greedy_takes_the_likeliest_token(answers, spec):
    models = {policy.id: load_model(policy, "float32") for policy in spec.policies}
    for row, response in responses(answers, "greedy"):
        ids = torch.tensor([[*prompt_of(row), *response["token_ids"]]])
        with torch.no_grad():
            likeliest = models[row["policy"]](input_ids=ids).logits[0].argmax(-1)
        start = len(prompt_of(row)) - 1
        assert likeliest[start:-1].tolist() == list(response["token_ids"])


def test_responses_differ_and_carry_their_seeds(answers, spec):
    for row, response in responses(answers, "mixed"):
        assert response["seed"] == response_seed(spec.seed, row["prompt_id"], response["index"])
    texts = {(key(row), tuple(r["token_ids"])) for row, r in responses(answers, "mixed")}
    assert len(texts) == len(responses(answers, "mixed"))


def test_a_prompt_that_does_not_fit_fails_alone(answers):
    failed = [row for row in answers["long"] if "reason" in row]
    assert {row["prompt_id"] for row in failed} == {"too long 0"}
    assert all(row["reason"].startswith("too long: ") for row in failed)
    assert {row["prompt_id"] for row in answers["long"]} >= {"long 0", "long 1"}


def test_a_prompt_that_the_engine_refuses_fails_alone(answers):
    failed = {row["prompt_id"] for row in answers["beyond"] if "reason" in row}
    written = {row["prompt_id"] for row in answers["beyond"] if row.get("responses")}
    assert (failed, written) == ({"beyond 0"}, {"good 0"})


def test_the_engine_names_itself_and_its_version(answers):
    assert any(character.isdigit() for character in answers["engine"])


def test_a_policy_spec_names_its_folder():
    adapted = PolicySpec(id="1", model="/m", adapter="/a", digest="d", base_digest=None)
    assert adapted.folder == "/a"
