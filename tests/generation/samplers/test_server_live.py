"""The server sampler against a real vLLM: what it says of tokens is what transformers computes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("httpx2")

from generation.samplers.http import Limits  # noqa: E402
from generation.samplers.policy import load_model  # noqa: E402
from generation.samplers.protocol import (  # noqa: E402
    Draw,
    PolicySpec,
    PromptFailure,
    PromptRequest,
    PromptSamples,
    SamplerSpec,
    ScoreRequest,
    served_name,
)
from generation.samplers.server import ServerSampler  # noqa: E402
from jobs.run_dir import RunDirError, check_spec  # noqa: E402
from tests.generation.samplers.conftest import (  # noqa: E402
    make_tokenizer,
    policy_spec,
    save_adapter,
    spec_for,
)
from tests.generation.samplers.live import CONTEXT  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("contract")]

END = 1
DRAW = Draw(temperature=1.0, top_p=1.0, max_new_tokens=12, stop=[])
TOLERANCE = 1e-3  # nats a token


@pytest.fixture(scope="module")
def base(llama: Path) -> PolicySpec:
    return PolicySpec(**policy_spec(llama, id="base"))


@pytest.fixture(scope="module")
def adapted(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> PolicySpec:
    adapter = save_adapter(llama, tmp_path_factory.mktemp("adapters") / "one", seed=5)
    return PolicySpec(**policy_spec(llama, adapter, id="adapted"))


@pytest.fixture
def sampler(vllm_server: str, base: PolicySpec, adapted: PolicySpec) -> Iterator[ServerSampler]:
    """The adapter is loaded while the server runs: it was started without one."""
    with sampler_of(vllm_server, base, adapted) as sampler:
        yield sampler


@contextmanager
def sampler_of(url: str, *policies: PolicySpec) -> Iterator[ServerSampler]:
    server = {"urls": [url], "key_file": None, "unproven": False}
    spec = spec_for(Path(policies[0].model), sampler="server", server=server)
    spec["policies"] = [vars(policy) for policy in policies]
    ends = {policy.id: [END] for policy in policies}
    sampler = ServerSampler(check_spec(SamplerSpec, spec), policies, ends, Limits(patience_s=20))
    try:
        yield sampler
    finally:
        sampler.close()


@pytest.fixture(scope="module")
def logps(base: PolicySpec, adapted: PolicySpec) -> Any:
    """The response tokens' log-probabilities by a plain forward pass."""
    models = {policy.id: load_model(policy, "float32") for policy in (base, adapted)}

    def plain(policy: str, prompt: tuple[int, ...], response: tuple[int, ...]) -> Any:
        with torch.no_grad():
            logits = models[policy](input_ids=torch.tensor([[*prompt, *response]])).logits[0]
        places = logits[len(prompt) - 1 : -1].log_softmax(-1)
        return places.gather(1, torch.tensor(response)[:, None])[:, 0]

    return plain


def prompt(number: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(number)
    return tuple(torch.randint(5, 300, (3 + 4 * number,), generator=generator).tolist())


def requests(policy: str, count: int = 4, k: int = 3) -> list[PromptRequest]:
    return [
        PromptRequest(
            prompt_id=f"p{number}",
            policy=policy,
            token_ids=prompt(number),
            indexes=tuple(range(k)),
            draw=DRAW,
        )
        for number in range(count)
    ]


def sample(sampler: ServerSampler, asked: list[PromptRequest]) -> dict[tuple[str, str], Any]:
    results = [result for group in sampler.sample(asked) for result in group]
    assert len(results) == len(asked)
    assert all(isinstance(result, PromptSamples) for result in results), results
    return {(result.prompt_id, result.policy): result.responses for result in results}  # type: ignore[union-attr]


def test_two_policies_answer_in_one_call_each_with_its_own_probabilities(sampler, logps):
    asked = [*requests("base"), *requests("adapted")]
    answers = sample(sampler, asked)
    assert sampler.engine.startswith("server vLLM 0.")
    texts: dict[str, set[Any]] = {"base": set(), "adapted": set()}
    for request in asked:
        responses = answers[request.prompt_id, request.policy]
        assert [response.index for response in responses] == [0, 1, 2]
        for response in responses:
            texts[request.policy].add(response.token_ids)
            expected = float(logps(request.policy, request.token_ids, response.token_ids).sum())
            assert abs(response.logp - expected) < TOLERANCE * len(response.token_ids)
            ended = response.token_ids[-1] == END
            assert response.finish_reason == ("stop" if ended else "length")
            assert ended or len(response.token_ids) == 12
    assert len(texts["base"]) == len(texts["adapted"]) == 12  # the server's top_k 1 is overruled
    assert not texts["base"] & texts["adapted"]


def test_the_same_seed_gives_the_same_response_whatever_else_is_asked(sampler):
    whole = sample(sampler, requests("base"))
    gap = replace(requests("base")[2], indexes=(1,))
    (response,) = sample(sampler, [gap])["p2", "base"]
    assert response.token_ids == whole["p2", "base"][1].token_ids


def test_scores_are_what_transformers_computes(sampler, logps):
    asked = [
        ScoreRequest(policy=policy, prompt=prompt(number), response=(*range(7, 7 + number), END))
        for number in range(6)
        for policy in ("base", "adapted")
    ]
    scores = list(sampler.score(asked))
    for request, score in zip(asked, scores, strict=True):
        expected = logps(request.policy, request.prompt, request.response)
        assert torch.tensor(score) == pytest.approx(expected, abs=TOLERANCE)
    assert scores[0] != scores[1]


def test_a_text_that_fills_the_context_is_scored_too(sampler, logps):
    whole = tuple(5 + at % 300 for at in range(CONTEXT))
    request = ScoreRequest(policy="adapted", prompt=whole[:40], response=whole[40:])
    (score,) = sampler.score([request])
    assert torch.tensor(score) == pytest.approx(
        logps("adapted", request.prompt, request.response), abs=TOLERANCE
    )


def test_greedy_takes_the_likeliest_tokens(sampler, base):
    model = load_model(base, "float32")
    greedy = replace(requests("base", k=1)[1], draw=replace(DRAW, temperature=0.0))
    (response,) = sample(sampler, [greedy])["p1", "base"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*greedy.token_ids, *response.token_ids]])).logits[0]
    likeliest = logits.argmax(-1)[len(greedy.token_ids) - 1 : -1]
    assert tuple(likeliest.tolist()) == response.token_ids


def test_a_stop_text_ends_a_response_and_is_not_in_its_text(sampler, logps):
    asked = [
        replace(request, draw=replace(DRAW, stop=["e", "a"], max_new_tokens=40))
        for request in requests("base")
    ]
    responses = [r for made in sample(sampler, asked).values() for r in made]
    stopped = [r for r in responses if r.finish_reason == "stop_text"]
    assert stopped
    tokenizer = make_tokenizer()
    for response in stopped:
        spelled = tokenizer.decode(response.token_ids, skip_special_tokens=True)
        assert "e" in spelled or "a" in spelled
        assert not {"e", "a"} & set(response.text)
    assert all(r.text is None for r in responses if r.finish_reason != "stop_text")


def test_a_prompt_that_the_server_refuses_fails_alone(sampler):
    bad = replace(requests("base")[0], prompt_id="bad", token_ids=(5, 100_000))
    long = replace(requests("base")[0], prompt_id="long", token_ids=(5,) * (CONTEXT - 11))
    results = [r for group in sampler.sample([bad, long, *requests("base")]) for r in group]
    failed = {r.prompt_id: r.reason for r in results if isinstance(r, PromptFailure)}
    assert failed.keys() == {"bad", "long"}
    assert "100000 is out of vocabulary" in failed["bad"]
    assert failed["long"].startswith("too long: 85 prompt tokens")


def test_an_adapter_that_does_not_fit_the_server_is_refused_with_its_reason(
    vllm_server,
    llama,
    tmp_path,
):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    wide = LoraConfig(r=32, target_modules=["q_proj"])
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(llama), wide)
    model.save_pretrained(tmp_path / "wide")
    policy = PolicySpec(**policy_spec(llama, tmp_path / "wide", id="wide"))
    with (
        pytest.raises(RunDirError, match=r"did not load it .*rank"),
        sampler_of(vllm_server, policy),
    ):
        pass


def test_another_model_s_folder_is_not_served(vllm_server, gpt2):
    policy = PolicySpec(**policy_spec(gpt2, id="other"))
    with pytest.raises(RunDirError) as caught, sampler_of(vllm_server, policy):
        pass
    assert f"--served-model-name {served_name(policy)}" in str(caught.value)
