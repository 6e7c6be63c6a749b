"""Servers down, slow, hanging, lying or hostile: nothing is lost, doubled or waited on for ever."""

import math
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("httpx2")

from generation.samplers.http import Busy, Failed, Host  # noqa: E402
from generation.samplers.protocol import (  # noqa: E402
    PromptSamples,
    ScoreRequest,
    ServerAway,
    response_seed,
)
from jobs.run_dir import RunDirError  # noqa: E402
from tests.generation.samplers import stub_server as stubs  # noqa: E402
from tests.generation.samplers.served import (  # noqa: E402
    BASE_POLICY,
    HASTY,
    IMPATIENT,
    KEY,
    LIMITS,
    assert_all_answered,
    assert_answered,
    assert_raises,
    expected,
    put,
    put_logps,
    reasons,
    sample,
    sampler_of,
    some_requests,
    within,
)
from tests.generation.samplers.stub_server import END, Mode, Stub  # noqa: E402


@pytest.fixture
def stub() -> Iterator[Stub]:
    with Stub() as stub:
        yield stub


# Down, slow, hanging


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def test_down_is_away_and_says_so():
    with (
        within(8),
        pytest.raises(ServerAway, match="cannot be reached"),
        sampler_of(f"http://127.0.0.1:{free_port()}", limits=IMPATIENT),
    ):
        pass


def test_down_then_up_is_waited_for():
    port = free_port()
    up = threading.Event()

    def be_up() -> None:
        with Stub(port):
            up.wait(10)

    threading.Timer(0.3, be_up).start()
    with sampler_of(f"http://127.0.0.1:{port}") as sampler:
        assert_all_answered(sampler, some_requests(3))
    up.set()


def test_a_server_that_is_started_anew_goes_on_with_nothing_lost_or_doubled():
    requests = some_requests(40)
    first = Stub(mode=stubs.slow)
    done: list[Any] = []
    with first, sampler_of(first) as sampler:
        groups = sampler.sample(requests)
        while len(done) < 10:
            done += next(groups)
        first.stop()
        time.sleep(0.2)
        with Stub(first.port):
            for group in groups:
                done += group
    assert len(done) == len({result.prompt_id for result in done}) == 40
    for request in requests:
        assert_answered(request, next(r for r in done if r.prompt_id == request.prompt_id))


def test_what_was_answered_before_a_server_went_away_is_kept(stub):
    with within(8), sampler_of(stub, limits=IMPATIENT) as sampler:
        stub.mode = stubs.slow
        threading.Timer(0.5, stub.stop).start()
        done = assert_raises(sampler, ServerAway, "What was written is kept", some_requests(40))
    assert 5 <= len(done) < 40
    assert all(isinstance(result, PromptSamples) for result in done)


def test_half_of_a_prompt_s_responses_are_kept_too(stub):
    (request,) = some_requests(1, k=4)
    seeds = [response_seed(7, "p2", index) for index in range(4)]

    def half(handler: stubs.Handler, body: dict[str, Any]) -> None:
        (stubs.fine if body["seed"] in seeds[:2] else stubs.hang)(handler, body)

    with sampler_of(stub, limits=HASTY) as sampler:
        stub.mode = half
        (answer,) = assert_raises(sampler, ServerAway, "no whole answer", [request])
    assert answer.responses == (expected(request, 0), expected(request, 1))


def test_slow_but_fine_is_waited_for_beyond_the_patience_for_failures(stub):
    def slower(handler: stubs.Handler, body: dict[str, Any]) -> None:
        time.sleep(0.5)
        stubs.fine(handler, body)

    with sampler_of(stub, limits=replace(LIMITS, patience_s=0.2)) as sampler:
        stub.mode = slower
        assert_all_answered(sampler, some_requests(6))


ENDLESS = [stubs.hang, stubs.hang_mid_body, stubs.drip_body, stubs.drip_headers]


def test_a_server_without_end_is_away_in_bounded_time(stub):
    with within(8), sampler_of(stub, limits=HASTY) as sampler:
        stub.mode = stubs.in_turn(*ENDLESS)
        why = "no whole answer within|the connection broke"
        assert not assert_raises(sampler, ServerAway, why, some_requests(10))


def test_a_prompt_without_end_fails_alone(stub):
    told = reasons(stub, dict(enumerate(ENDLESS, start=2)), HASTY)
    assert all("(tried " in reason for reason in told.values())


def test_a_listener_that_accepts_and_says_nothing_is_away():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with (
            within(8),
            pytest.raises(ServerAway, match="no whole answer"),
            sampler_of(url, limits=HASTY),
        ):
            pass


def test_a_host_that_hangs_does_not_keep_the_other_from_working(stub):
    with Stub() as good, within(8), sampler_of(stub, good, limits=HASTY) as sampler:
        stub.mode = stubs.hang
        assert_all_answered(sampler, some_requests(30))


def test_a_host_that_is_down_is_done_without_and_joins_when_it_is_up():
    port = free_port()
    with Stub() as good, sampler_of(good, f"http://127.0.0.1:{port}") as sampler:
        assert_all_answered(sampler, some_requests(5))
        with Stub(port) as late:
            good.mode = late.mode = stubs.slow
            assert_all_answered(sampler, some_requests(40))
            assert late.hits["/v1/completions"] > 10


def test_a_host_that_only_seems_fit_fails_no_prompt_where_another_answers(stub):
    """What one host failed goes to another, not back to it."""
    bad = dict.fromkeys(range(2, 30), stubs.status(500))
    limits = replace(LIMITS, tries=2)
    with Stub(mode=stubs.slow) as good, sampler_of(stub, good, limits=limits) as sampler:
        stub.mode = stubs.by_prompt(bad)
        assert_all_answered(sampler, some_requests(20))


def test_a_server_that_was_away_may_be_asked_again(stub):
    with within(8), sampler_of(stub, limits=IMPATIENT) as sampler:
        stub.mode = stubs.html
        assert_raises(sampler, ServerAway, "not JSON", some_requests(2))
        stub.mode = None
        assert_all_answered(sampler, some_requests(2))


# Not fit


def other_policy(handler: stubs.Handler, body: dict[str, Any]) -> None:
    """Well, by all that can be seen: other tokens under the same name."""
    fooled = stubs.good_answer({**body, "seed": body["seed"] + 1})
    handler.send(fooled)


def prover(*wrong: int) -> tuple[Callable[[str], None], list[str]]:
    """What raises for servers at these ports, and whom it was asked about."""
    asked: list[str] = []

    def prove(url: str) -> None:
        asked.append(url)
        if int(url.rpartition(":")[2]) in wrong:
            raise RunDirError(f"this is not the policy you think: {url}")

    return prove, asked


def test_a_host_that_comes_back_as_another_policy_writes_nothing():
    requests = some_requests(40)
    first, wrong = Stub(mode=stubs.slow), list[int]()
    done: list[Any] = []

    def prove(url: str) -> None:
        if wrong and url.endswith(f":{wrong[0]}"):
            raise RunDirError("this is not the policy you think")

    with (
        within(8),
        first,
        Stub(mode=stubs.slow) as good,
        sampler_of(first, good, prove=prove) as sampler,
    ):
        groups = sampler.sample(requests)
        while len(done) < 10:
            done += next(groups)
        first.stop()
        wrong.append(first.port)
        with Stub(first.port, mode=other_policy) as second:
            for group in groups:
                done += group
            checked = len(second.bodies)
    assert checked >= 1  # it was asked for a token, by the name of the policy, and had one
    assert len(done) == len({result.prompt_id for result in done}) == 40
    for request in requests:
        assert_answered(request, next(r for r in done if r.prompt_id == request.prompt_id))


def test_what_a_host_in_doubt_answers_counts_only_once_it_is_fit_again(stub):
    """One request breaks, another is answered while nobody knows yet by whom."""
    prove, asked = prover()

    def doubtful(handler: stubs.Handler, body: dict[str, Any]) -> None:
        time.sleep(0.2)
        stubs.fine(handler, body)

    with within(8), sampler_of(stub, prove=prove) as sampler:
        stub.mode = stubs.by_prompt({2: stubs.at_first(stubs.reset, 1), 3: doubtful})
        assert_all_answered(sampler, some_requests(2, k=1))
        assert len(stub.bodies) == 5  # two checks, and prompt 3 was not asked again
    assert asked == [stub.url] * 2


def test_what_a_host_answered_before_it_was_found_unfit_is_asked_of_another(stub):
    turned: list[int] = []

    def prove(url: str) -> None:
        if turned and url == stub.url:
            raise RunDirError("this is not the policy you think")

    def turn(handler: stubs.Handler, body: dict[str, Any]) -> None:
        turned.append(1)
        stubs.reset(handler, body)

    def late(handler: stubs.Handler, body: dict[str, Any]) -> None:
        time.sleep(0.2)
        other_policy(handler, body)

    with within(8), Stub() as good, sampler_of(stub, good, prove=prove) as sampler:
        stub.mode = stubs.in_turn(turn, late, late, late)
        good.mode = stubs.slow
        assert_all_answered(sampler, some_requests(4))


def test_every_host_is_proven_before_it_is_used(stub):
    prove, asked = prover()
    with Stub() as other, sampler_of(stub, other, prove=prove) as sampler:
        assert sorted(asked) == sorted([stub.url, other.url])
        assert_all_answered(sampler, some_requests(4))
        assert len(asked) == 2


def test_a_host_that_cannot_be_asked_for_a_proof_is_away_or_refused(stub):
    def away(_url: str) -> None:
        raise ServerAway("nobody there")

    def cannot(_url: str) -> None:
        raise ValueError("no scores")

    with (
        pytest.raises(ServerAway, match="nobody there"),
        sampler_of(stub, prove=away, limits=IMPATIENT),
    ):
        pass
    with (
        pytest.raises(RunDirError, match="cannot be proven to be the policy: no scores"),
        sampler_of(stub, prove=cannot),
    ):
        pass


def test_a_proof_without_end_does_not_keep_a_batch_from_ending(stub):
    port, release = free_port(), threading.Event()

    def prove(url: str) -> None:
        if url != stub.url:
            release.wait(20)

    url = f"http://127.0.0.1:{port}"
    with within(5), sampler_of(stub, url, prove=prove) as sampler, Stub(port) as late:
        stub.mode = stubs.slow
        assert_all_answered(sampler, some_requests(20))
        assert late.hits["/v1/completions"] == 1
    release.set()


UNFIT: dict[str, Callable[[Stub], object]] = {
    "another model": lambda stub: stub.cards.__setitem__(0, {"id": "other"}),
    "no models": lambda stub: setattr(stub, "list_status", 404),
    "the key": lambda stub: setattr(stub, "mode", stubs.status(401)),
    "a redirect": lambda stub: setattr(stub, "mode", stubs.status(302, Location="/elsewhere")),
    "a refusal": lambda stub: setattr(stub, "mode", stubs.status(400)),
    "proves nothing": lambda stub: setattr(stub, "mode", stubs.lie(put(logprobs=None))),
}


@pytest.mark.parametrize("make_unfit", UNFIT.values(), ids=UNFIT)
def test_an_unfit_host_is_left_out_where_another_is_fit(stub, make_unfit):
    make_unfit(stub)
    with within(5), Stub() as good, sampler_of(stub, good) as sampler:
        assert sampler.engine == f"server vLLM 0.32.0 at {good.url}"
        assert_all_answered(sampler, some_requests(10))
    if make_unfit is not UNFIT["proves nothing"]:
        assert len(stub.bodies) <= 1


@pytest.mark.parametrize("make_unfit", UNFIT.values(), ids=UNFIT)
def test_only_unfit_hosts_are_refused_with_what_to_do(stub, make_unfit):
    with Stub() as other, within(2):
        make_unfit(stub)
        UNFIT["another model"](other)
        with pytest.raises(RunDirError, match=stub.url), sampler_of(stub, other):
            pass


def test_a_host_that_turns_unfit_in_mid_batch_is_done_without_until_it_is_mended(stub):
    with within(8), Stub(mode=stubs.slow) as good, sampler_of(stub, good) as sampler:
        stub.mode = stubs.status(401)
        assert_all_answered(sampler, some_requests(10))
        stub.mode = stubs.slow
        stub.bodies.clear()
        time.sleep(LIMITS.refused_rest_s)
        assert_all_answered(sampler, some_requests(40))
        assert len(stub.bodies) > 10


def test_a_host_with_few_positions_that_is_left_out_fails_no_prompt(stub):
    stub.cards[0]["max_model_len"] = 4
    prove, _ = prover(stub.port)
    with Stub() as good, sampler_of(stub, good, prove=prove) as sampler:
        assert_all_answered(sampler, some_requests(4))


def test_a_refused_host_beside_one_that_is_away_says_what_to_do_of_both(stub):
    UNFIT["another model"](stub)
    with (
        within(5),
        pytest.raises(RunDirError, match=r"Start it with: vllm serve.*cannot be reached"),
        sampler_of(f"http://127.0.0.1:{free_port()}", stub, limits=IMPATIENT),
    ):
        pass


def test_a_host_that_cannot_score_leaves_it_to_the_other(stub):
    requests = [
        ScoreRequest(policy="12", prompt=(number, 5), response=(3, 1)) for number in range(2, 12)
    ]
    with within(5), Stub() as good, sampler_of(stub, good) as sampler:
        stub.mode = stubs.lie(put(logprobs=None))
        scores = list(sampler.score(requests))
    for request, score in zip(requests, scores, strict=True):
        whole = stubs.score_of([*request.prompt, *request.response])
        assert score == tuple(whole[-2:])


# Errors


PASSING = {
    "500": stubs.status(500, "CUDA error"),
    "502": stubs.status(502),
    "503": stubs.status(503),
    "408": stubs.status(408),
    "reset": stubs.reset,
    "garbage": stubs.html,
    "429": stubs.status(429),
}


@pytest.mark.parametrize("mode", PASSING.values(), ids=PASSING)
def test_what_passes_is_tried_again(stub, mode):
    with sampler_of(stub) as sampler, within(8):
        stub.mode = stubs.at_first(mode, 10)
        assert_all_answered(sampler, some_requests(12))


def test_retry_after_is_honoured_and_capped(stub):
    with sampler_of(stub) as sampler:
        for header, least, most in (("1", 0.35, 1), ("9999", 0.35, 1), ("soon", 0, 0.3)):
            stub.mode = stubs.at_first(stubs.status(429, Retry_After=header), 1)
            began = time.monotonic()
            assert_all_answered(sampler, some_requests(1, k=1))
            assert least <= time.monotonic() - began < most


def test_a_server_busy_with_what_it_already_has_is_waited_for(stub):
    """Rather than away: it takes one request at a time, and each longer than the patience."""
    one = threading.Lock()

    def turn_away(handler: stubs.Handler, body: dict[str, Any]) -> None:
        if not one.acquire(blocking=False):
            stubs.status(429)(handler, body)
            return
        time.sleep(0.4)
        one.release()
        stubs.fine(handler, body)

    with within(8), sampler_of(stub, limits=replace(LIMITS, patience_s=0.2)) as sampler:
        stub.mode = turn_away
        assert_all_answered(sampler, some_requests(1, k=3))


@pytest.mark.parametrize("code", [429, 503])
def test_being_turned_away_is_never_a_prompt_s_fault(stub, code):
    with within(8), sampler_of(stub) as sampler:
        stub.mode = stubs.by_prompt({4: stubs.at_first(stubs.status(code), 3 * LIMITS.tries)})
        assert_all_answered(sampler, some_requests(12))


def test_a_host_that_turns_requests_away_gets_fewer_at_a_time_then_more_again():
    host = Host("http://127.0.0.1:1", None, LIMITS)
    host.bad(Busy("it answered 429", None), rest=True)
    assert host.allowed == 4
    for _ in range(10):
        host.good()
    assert host.allowed == LIMITS.in_flight


def test_garbage_now_and_then_is_not_a_server_away(stub):
    with within(8), sampler_of(stub, limits=replace(LIMITS, patience_s=0.2, tries=30)) as sampler:
        stub.mode = stubs.in_turn(*[stubs.slow] * 7, stubs.html)
        assert_all_answered(sampler, some_requests(20))


def test_requests_that_fail_together_make_a_host_rest_once():
    host = Host("http://127.0.0.1:1", None, LIMITS)
    for _ in range(64):
        host.bad(Failed("the connection broke"), rest=True)
    assert host.failures == 1
    assert host.rests_until - time.monotonic() <= LIMITS.first_pause_s


def test_a_server_that_is_always_busy_is_away_without_failing_a_prompt(stub):
    with within(8), sampler_of(stub, limits=IMPATIENT) as sampler:
        stub.mode = stubs.status(429)
        assert not assert_raises(sampler, ServerAway, "it answered 429", some_requests())


def test_a_server_that_answers_errors_only_is_away_without_failing_a_prompt(stub):
    with within(8), sampler_of(stub, limits=IMPATIENT) as sampler:
        stub.mode = stubs.status(500, "CUDA error")
        assert not assert_raises(sampler, ServerAway, "CUDA error", some_requests())


def test_a_prompt_that_breaks_the_server_fails_alone(stub):
    told = reasons(stub, {4: stubs.status(500, "index out of range"), 6: stubs.reset})
    assert told[4].startswith("it answered 500: index out of range (tried ")
    assert "the connection broke" in told[6]


def test_a_prompt_that_breaks_the_server_fails_even_when_it_is_the_last(stub):
    with within(8), sampler_of(stub) as sampler:
        stub.mode = stubs.by_prompt({2: stubs.status(500, "index out of range")})
        (failure,) = sample(sampler, some_requests(1)).values()
    assert "index out of range" in failure.reason


def test_a_prompt_that_the_server_refuses_fails_alone_and_is_asked_once(stub):
    codes = {4: 400, 5: 413, 6: 422}
    told = reasons(stub, {n: stubs.status(code, "Bad token 7") for n, code in codes.items()})
    for number, code in codes.items():
        assert told[number] == f"the server refused it: {code}: Bad token 7"
    asked = [body["prompt"][0] for body in stub.bodies]
    assert [asked.count(number) for number in codes] == [2, 2, 2]


def test_the_words_of_a_server_are_cut_and_cleaned(stub):
    noise = "\x1b[2J\n\r\t\u202e" + "long " * 1000
    with sampler_of(stub) as sampler:
        stub.mode = stubs.status(400, noise)
        (failure,) = sample(sampler, some_requests(1)).values()
    assert failure.reason.isprintable()
    assert len(failure.reason) < 300


@pytest.mark.parametrize("code", [401, 403])
def test_a_refused_key_refuses_the_batch_without_showing_it(stub, tmp_path, code):
    (tmp_path / "key").write_text(KEY)
    with sampler_of(stub, key_file=tmp_path / "key") as sampler:
        stub.mode = stubs.status(code, f"Invalid key: {KEY}")
        with pytest.raises(RunDirError, match="PREFLOOP_SERVER_KEY_FILE") as caught:
            sample(sampler, some_requests())
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("code", [301, 302, 307, 308])
def test_a_redirect_is_refused_and_not_followed(stub, code):
    with Stub() as other, sampler_of(stub) as sampler:
        stub.mode = stubs.status(code, Location=f"{other.url}/v1/completions")
        with pytest.raises(RunDirError, match="redirects"):
            sample(sampler, some_requests())
        assert not other.hits


def test_a_body_of_100_megabytes_is_not_read(stub):
    with sampler_of(stub) as sampler:
        stub.mode = stubs.by_prompt({4: stubs.hundred_megabytes})
        tracemalloc.start()
        try:
            answers = sample(sampler, some_requests())
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert "it sent more than" in answers["p4"].reason
    assert sum(isinstance(answer, PromptSamples) for answer in answers.values()) == 9
    assert peak < 8 * 2**20
    asked = sum(body["prompt"][0] == 4 for body in stub.bodies)
    assert stub.bytes_sent < asked * stubs.BODY_100_MB / 5  # what the sockets' buffers took


# Lies


LIES: dict[str, tuple[Any, str]] = {
    "no choice": (lambda a, _: a["choices"].clear(), "0 choices instead of 1"),
    "two choices": (lambda a, c: a["choices"].append(c), "2 choices instead of 1"),
    "an error in a 200": (lambda a, _: a.pop("choices"), "no choices instead of 1"),
    "another model": (lambda a, _: a.update(model="gpt"), "another model answered: 'gpt'"),
    "a model that is no name": (lambda a, _: a.update(model=["x"]), "another model answered"),
    "another prompt": (put(prompt_token_ids=[4, 4]), "other tokens than it was sent"),
    "ids out of range": (put(token_ids=[-1, END]), "-1 is no token"),
    "ids of another kind": (put(token_ids=[True, "7"]), "is no token"),
    "no ids": (put(token_ids=[]), "no list of numbers"),
    "too many ids": (put(token_ids=[5] * 9), "9 tokens where 8 were the most"),
    "too few ids": (put(token_ids=[END], finish_reason="stop"), "log-probabilities for 1 tokens"),
    "a logprob too many": (
        lambda _, c: c["logprobs"]["token_logprobs"].append(-1.0),
        "log-probabilities for",
    ),
    "NaN": (put_logps(math.nan), "nan is no log-probability"),
    "infinite": (put_logps(-math.inf), "-inf is no log-probability"),
    "above 0": (put_logps(0.5), "0.5 is no log-probability"),
    "a huge number": (put_logps(-(10**400)), "is no log-probability"),
    "null": (put_logps(None), "None is no log-probability"),
    "an end of its own": (put(finish_reason="content_filter"), "'content_filter'"),
    "a stop text of its own": (put(finish_reason="stop", stop_reason="?"), "'?'"),
    "an end without its token": (
        lambda _, c: (c.update(finish_reason="stop"), c["token_ids"].__setitem__(-1, 5)),
        "without an end token",
    ),
    "a stop reason that is a list": (
        lambda _, c: (
            c.update(finish_reason="stop", stop_reason=[1]),
            c["token_ids"].__setitem__(-1, 5),
        ),
        "without an end token",
    ),
}


def test_an_answer_that_cannot_be_true_is_asked_again_then_fails_alone(stub):
    told = reasons(
        stub, {n: stubs.lie(change) for n, (change, _) in enumerate(LIES.values(), start=2)}
    )
    wrong = {
        lie: told[n]
        for n, (lie, (_, reason)) in enumerate(LIES.items(), start=2)
        if reason not in told[n] or "(tried " not in told[n]
    }
    assert not wrong


NO_JSON: list[Mode] = [
    stubs.html,
    lambda handler, _: handler.raw(b'{"choices": [', 200),
    lambda handler, _: handler.raw(b"[" * 40_000, 200),
    lambda handler, _: handler.raw(b"[]", 200),
    lambda handler, _: handler.raw(b"\x1f\x8b\x08" * 9, 200, Content_Encoding="gzip"),
    lambda handler, _: handler.raw(b"", 200),
    stubs.hundred_megabytes,
]


def test_an_answer_that_is_none_is_asked_again_then_fails_alone(stub):
    told = reasons(stub, dict(enumerate(NO_JSON, start=2)))
    assert all("(tried " in reason for reason in told.values())


def test_a_token_beyond_the_policy_s_vocabulary_is_a_lie(stub, tmp_path):
    (tmp_path / "config.json").write_text('{"vocab_size": 300}')
    stub.cards[0]["root"] = str(tmp_path)
    policy = replace(BASE_POLICY, model=str(tmp_path))
    with sampler_of(stub, policies=(policy,)) as sampler:
        stub.mode = stubs.by_prompt({2: stubs.lie(put(token_ids=[300, END]))})
        (failure,) = sample(sampler, some_requests(1)).values()
    assert "300 is no token of the policy" in failure.reason


def test_a_server_that_only_lies_is_away_without_failing_a_prompt(stub):
    with within(8), sampler_of(stub, limits=IMPATIENT) as sampler:
        stub.mode = stubs.lie(lambda answer, _: answer.update(model="gpt"))
        assert not assert_raises(sampler, ServerAway, "another model", some_requests())
