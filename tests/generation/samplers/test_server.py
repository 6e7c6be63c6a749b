"""What the server sampler asks for, of whom, and what it makes of good answers.

A stub speaks vLLM's API; test_server_live.py asks a real vLLM.
"""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("httpx2")

from generation.samplers.protocol import (  # noqa: E402
    ScoreRequest,
    ServerAway,
    response_seed,
    served_name,
)
from jobs.run_dir import RunDirError  # noqa: E402
from tests.generation.samplers import stub_server as stubs  # noqa: E402
from tests.generation.samplers.served import (  # noqa: E402
    ADAPTED,
    BASE_POLICY,
    DRAW,
    IMPATIENT,
    KEY,
    LIMITS,
    assert_all_answered,
    assert_raises,
    expected,
    prompt,
    put,
    sample,
    sampler_of,
    some_requests,
    within,
)
from tests.generation.samplers.stub_server import BASE, END, Stub  # noqa: E402


@pytest.fixture
def stub() -> Iterator[Stub]:
    with Stub() as stub:
        yield stub


# Well


def test_each_response_is_a_request_of_its_own_for_the_exact_tokens(stub):
    requests = some_requests(3)
    with sampler_of(stub) as sampler:
        stub.bodies.clear()
        assert_all_answered(sampler, requests)
        assert sampler.engine == f"server vLLM 0.32.0 at {stub.url}"
    asked = {(tuple(body["prompt"]), body["seed"]) for body in stub.bodies}
    assert len(stub.bodies) == 6
    assert asked == {
        (request.token_ids, response_seed(7, request.prompt_id, index))
        for request in requests
        for index in (0, 1)
    }
    for body in stub.bodies:
        assert body["stop_token_ids"] == [END]
        assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.9, 0.8, 8)
        assert (body["top_k"], body["repetition_penalty"]) == (0, 1.0)  # never the model's own
        assert body["n"] == 1
        assert not body["add_special_tokens"]


def test_only_the_indexes_asked_for_are_sampled(stub):
    (request,) = some_requests(1)
    with sampler_of(stub) as sampler:
        assert_all_answered(sampler, [replace(request, indexes=(1, 4))])


def test_a_host_is_never_given_more_requests_at_a_time_than_allowed(stub):
    with sampler_of(stub) as sampler:
        stub.mode = stubs.slow
        assert_all_answered(sampler, some_requests(12))
    assert 6 <= stub.most_in_flight <= LIMITS.in_flight


def test_results_come_while_others_are_still_being_written(stub):
    with sampler_of(stub) as sampler:
        stub.mode = stubs.by_prompt({2: stubs.slow})
        groups = [group for group in sampler.sample(some_requests(8)) if group]
    assert groups[-1][-1].prompt_id == "p2"
    assert len(groups) > 1


def test_empty_groups_come_while_nothing_is_ready(stub):
    with sampler_of(stub) as sampler:
        stub.mode = stubs.slow
        assert next(sampler.sample(some_requests(1))) == []


def test_leaving_early_ends_the_requests(stub):
    with sampler_of(stub) as sampler:
        stub.mode = stubs.hang
        groups = sampler.sample(some_requests())
        next(groups)
        with within(0.5):
            groups.close()  # type: ignore[attr-defined]
        stub.mode = None
        assert_all_answered(sampler, some_requests(2))


def test_closing_leaves_no_thread_behind(stub):
    before = threading.active_count()
    for _ in range(3):
        with sampler_of(stub) as sampler:
            sampler.close()
            sampler.close()
    stub.stop()
    deadline = time.monotonic() + 2
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert threading.active_count() <= before


def test_hosts_share_the_work_evenly():
    with Stub(mode=stubs.slow) as first, Stub(mode=stubs.slow) as second:
        with sampler_of(first, second.url + "/v1/") as sampler:
            assert_all_answered(sampler, some_requests(4))
            assert sampler.engine.count("vLLM 0.32.0 at") == 2
        checks = 1
        assert [stub.hits["/v1/completions"] - checks for stub in (first, second)] == [4, 4]


def test_a_prompt_that_does_not_fit_fails_without_being_sent(stub):
    long = replace(some_requests(1)[0], token_ids=tuple(range(200, 257)))
    with sampler_of(stub) as sampler:
        stub.bodies.clear()
        (failure,) = sample(sampler, [long]).values()
    assert failure.reason.startswith("too long: 57 prompt tokens and up to 8 new ones")
    assert stub.bodies == []


# Policies


def test_an_adapter_that_is_not_there_is_loaded_by_the_name_of_its_content(stub):
    with sampler_of(stub, policies=(BASE_POLICY, ADAPTED)) as sampler:
        both = [*some_requests(2), *some_requests(2, policy="13")]
        results = [result for group in sampler.sample(both) for result in group]
    assert sorted((r.prompt_id, r.policy) for r in results) == sorted(  # type: ignore[union-attr]
        (request.prompt_id, request.policy) for request in both
    )
    assert stub.loaded == [{"lora_name": served_name(ADAPTED), "lora_path": "/adapters/1"}]
    assert {body["model"] for body in stub.bodies} == {BASE, served_name(ADAPTED)}


def test_an_adapter_that_is_there_is_not_loaded_again(stub):
    stub.cards.append({"id": served_name(ADAPTED), "parent": BASE})
    with sampler_of(stub, policies=(ADAPTED,)) as sampler:
        assert_all_answered(sampler, some_requests(2, policy="13"))
    assert stub.loaded == []


def test_a_server_that_forgot_an_adapter_is_told_to_load_it_again(stub):
    with sampler_of(stub, policies=(ADAPTED,)) as sampler:
        stub.cards.pop()
        stub.mode = stubs.at_first(stubs.status(404, "The model does not exist"), 3)
        assert_all_answered(sampler, some_requests(4, policy="13"))
    assert len(stub.loaded) == 2


def test_a_model_is_known_by_its_hashed_name_whatever_its_folder(stub):
    name = served_name(BASE_POLICY)
    stub.cards = [{"id": name, "root": "/elsewhere", "max_model_len": 64, "owned_by": "vllm"}]
    with sampler_of(stub) as sampler:
        assert_all_answered(sampler, some_requests(2))
    assert {body["model"] for body in stub.bodies} == {name}


def test_a_model_of_several_names_may_answer_under_any_of_them(stub):
    """vLLM answers under the first, whichever was asked for."""
    asked = {"id": served_name(BASE_POLICY), "root": "/elsewhere"}
    stub.cards = [{"id": "first", "root": "/elsewhere"}, asked, {"id": "other", "root": "/other"}]
    stub.mode = stubs.lie(lambda answer, _: answer.update(model="first"))
    with sampler_of(stub) as sampler:
        assert_all_answered(sampler, some_requests(2))
    stub.mode = stubs.lie(lambda answer, _: answer.update(model="other"))
    with pytest.raises(ServerAway), sampler_of(stub, limits=IMPATIENT):
        pass


def test_a_name_relative_to_the_server_s_folder_is_not_ours(stub, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    stub.cards = [{"id": "tiny", "root": "tiny"}]
    policy = replace(BASE_POLICY, model=str(tmp_path / "tiny"))
    with pytest.raises(RunDirError, match="does not serve"), sampler_of(stub, policies=(policy,)):
        pass


def test_an_adapter_that_another_batch_loads_meanwhile_is_used(stub):
    stub.load_error, stub.load_status = "The lora adapter 'x' has already been loaded.", 400
    with sampler_of(stub, policies=(ADAPTED,)) as sampler:
        assert_all_answered(sampler, some_requests(2, policy="13"))


def test_a_server_that_has_another_model_is_refused_with_what_to_do(stub):
    stub.cards = [{"id": "other", "root": "/models/other"}]
    with pytest.raises(RunDirError) as caught, sampler_of(stub):
        pass
    assert "does not serve the model /models/tiny (it serves other)" in str(caught.value)
    assert f"vllm serve {BASE} --served-model-name {served_name(BASE_POLICY)}" in str(caught.value)


def test_a_server_that_may_load_no_adapter_is_refused_with_what_to_do(stub):
    stub.loads_adapters = False
    with (
        pytest.raises(RunDirError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
        sampler_of(stub, policies=(ADAPTED,)),
    ):
        pass


def test_why_an_adapter_does_not_load_is_passed_on(stub):
    stub.load_error = "LoRA rank 64 is greater than max_lora_rank 16."
    with (
        pytest.raises(RunDirError, match="rank 64 is greater"),
        sampler_of(stub, policies=(ADAPTED,)),
    ):
        pass


@pytest.mark.parametrize("left_out", ["token_ids", "logprobs"])
def test_a_server_that_proves_nothing_is_refused_unless_that_is_allowed(stub, left_out):
    stub.mode = stubs.lie(lambda _answer, choice: choice.pop(left_out))
    with pytest.raises(RunDirError, match="PREFLOOP_SERVER_UNPROVEN=true"), sampler_of(stub):
        pass
    (request,) = some_requests(1, k=1)
    with sampler_of(stub, unproven=True) as sampler:
        (answer,) = sample(sampler, [request]).values()
    (response,) = answer.responses
    ids = [*expected(request, 0).token_ids]  # type: ignore[misc]
    assert (response.token_ids, response.logp) == (None, None)
    assert response.text == f"text of {ids}"


def test_a_text_that_no_file_can_hold_is_mended(stub):
    stub.mode = stubs.lie(lambda _answer, choice: choice.update(token_ids=None, text="a\ud800b"))
    with sampler_of(stub, unproven=True) as sampler:
        (answer,) = sample(sampler, some_requests(1, k=1)).values()
    assert answer.responses[0].text == "a\ufffdb"


def test_an_unproven_server_that_is_no_vllm_gets_standard_questions_only(stub):
    stub.version, stub.cards[0]["owned_by"] = None, "somebody"
    stub.mode = stubs.lie(lambda _answer, choice: [choice.pop("token_ids"), choice.pop("logprobs")])
    with sampler_of(stub, unproven=True) as sampler:
        assert sampler.engine == f"server at {stub.url}"
        sample(sampler, some_requests(1))
    standard = {"model", "prompt", "n", "max_tokens", "temperature", "top_p", "seed"}
    assert all(body.keys() == standard for body in stub.bodies)


def test_a_response_that_ends_at_a_stop_text_brings_its_text(stub):
    def stop(_answer: Any, choice: dict[str, Any]) -> None:
        choice.update(finish_reason="stop", stop_reason="###", text="until there")

    (request,) = some_requests(1, k=1)
    request = replace(request, draw=replace(DRAW, stop=["###"]))
    with sampler_of(stub) as sampler:
        stub.mode = stubs.by_prompt({2: stubs.lie(stop)})
        (answer,) = sample(sampler, [request]).values()
    assert stub.bodies[-1]["stop"] == ["###"]
    assert answer.responses == (
        replace(expected(request, 0), finish_reason="stop_text", text="until there"),
    )


# Scores


def score_requests() -> list[ScoreRequest]:
    return [
        ScoreRequest(policy="12", prompt=prompt(number), response=(number, 3, 1))
        for number in range(2, 30)
    ]


def test_scores_are_of_the_response_s_tokens_and_in_order(stub):
    requests = score_requests()
    with sampler_of(stub) as sampler:
        stub.mode = stubs.by_prompt({2: stubs.slow, 7: stubs.slow})
        scores = list(sampler.score(requests))
        assert list(sampler.score([])) == []
    for request, score in zip(requests, scores, strict=True):
        whole = stubs.score_of([*request.prompt, *request.response])
        assert score == tuple(whole[-3:])


def test_scores_come_one_at_a_time_where_an_adapter_could_be_in_the_pass(stub):
    with sampler_of(stub, policies=(BASE_POLICY, ADAPTED)) as sampler:
        stub.most_in_flight = 0
        assert len(list(sampler.score(score_requests()))) == 28
    assert stub.most_in_flight == 1


def test_a_text_that_fills_the_context_is_scored_too(stub):
    request = ScoreRequest(policy="12", prompt=tuple(range(60)), response=(5, 6, 7, 1))
    with sampler_of(stub) as sampler:
        (score,) = sampler.score([request])
    assert len(stub.bodies[-1]["prompt"]) == 63  # 64 positions: room for one more token
    assert score == tuple(stubs.score_of([*range(60), 5, 6, 7, 1])[-4:])


def test_a_server_that_samples_another_last_token_cannot_score_such_a_text(stub):
    request = ScoreRequest(policy="12", prompt=tuple(range(60)), response=(5, 6, 7, 1))
    with sampler_of(stub) as sampler:
        stub.mode = stubs.lie(put(token_ids=[9]))
        assert list(sampler.score([request])) == [()]


def test_a_server_that_cannot_score_says_so_unless_it_may_be_unproven(stub):
    mode = stubs.lie(put(logprobs=None))
    with sampler_of(stub) as sampler:
        stub.mode = mode
        with pytest.raises(RunDirError, match=r"says no log-probabilities.*UNPROVEN=true"):
            list(sampler.score(score_requests()))
    stub.mode = None
    with sampler_of(stub, unproven=True) as sampler:
        stub.mode = mode
        assert list(sampler.score(score_requests())) == [()] * 28


def test_a_text_that_cannot_be_scored_costs_the_others_nothing(stub):
    requests = score_requests()
    with sampler_of(stub) as sampler:
        bad = {4: stubs.status(400, "Bad token"), 6: stubs.status(500), 8: stubs.html}
        stub.mode = stubs.by_prompt(bad)
        scores = list(sampler.score(requests))
    for request, score in zip(requests, scores, strict=True):
        whole = stubs.score_of([*request.prompt, *request.response])
        assert score == (() if request.prompt[0] in bad else tuple(whole[-3:]))


# The key


def test_the_key_goes_to_its_own_origin_only(stub, tmp_path, monkeypatch):
    (tmp_path / "key").write_text(f"  {KEY}\n")
    with Stub() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        with sampler_of(stub, key_file=tmp_path / "key") as sampler:
            assert_all_answered(sampler, some_requests(2))
        assert not proxy.hits
    assert stub.keys == {f"Bearer {KEY}"}


def test_an_error_that_echoes_the_key_is_shown_without_it(stub, tmp_path):
    (tmp_path / "key").write_text(KEY)
    lie = stubs.lie(lambda answer, _: answer.update(model=f"Bearer {KEY}"))
    with sampler_of(stub, key_file=tmp_path / "key", limits=IMPATIENT) as sampler:
        stub.mode = stubs.by_prompt({2: stubs.status(400, f"you sent Bearer {KEY}"), 3: lie})
        for failure in sample(sampler, some_requests(2)).values():
            assert "Bearer [key]" in failure.reason
        stub.mode = lie
        assert not assert_raises(sampler, ServerAway, r"Bearer \[key\]", some_requests(2))


@pytest.mark.parametrize("content", ["", " \n", "two words", "line\nline", "schl\u00fcssel"])
def test_a_key_file_without_one_key_is_refused_without_showing_it(stub, tmp_path, content):
    (tmp_path / "key").write_text(content)
    with (
        pytest.raises(RunDirError, match="key file") as caught,
        sampler_of(stub, key_file=tmp_path / "key"),
    ):
        pass
    assert not content.strip() or content.strip() not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://name:secret@127.0.0.1:1", "ftp://127.0.0.1", "127.0.0.1:8000", "http://"]
)
def test_an_address_that_is_none_is_refused_without_its_password(url):
    with pytest.raises(RunDirError) as caught, sampler_of(url):
        pass
    assert "secret" not in str(caught.value)


def test_a_run_leaves_no_key_in_its_directory(stub, llama, tmp_path, monkeypatch):
    from generation.samplers import run as runs
    from tests.generation.samplers.conftest import make_run, some_prompts, spec_for

    monkeypatch.setattr(runs, "check_probes", lambda *_: {})  # no stub can pass for the policy
    (tmp_path / "key").write_text(KEY)
    stub.cards[0]["root"] = str(llama)
    server = {"urls": [stub.url], "key_file": str(tmp_path / "key"), "unproven": False}
    spec = spec_for(llama, sampler="server", server=server)
    folder = make_run(tmp_path / "run", spec, some_prompts(4))
    assert runs.run(folder, lambda: False) == 0
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["counts"]["responses"] == 12
    assert manifest["engine"] == f"server vLLM 0.32.0 at {stub.url}"
    assert stub.keys == {f"Bearer {KEY}"}
    for path in folder.iterdir():
        assert KEY not in path.read_text()
