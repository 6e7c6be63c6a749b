"""A server sampler in front of stubs, and what it must say."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httpx2")

from generation.samplers.http import Limits  # noqa: E402
from generation.samplers.protocol import (  # noqa: E402
    Draw,
    PolicySpec,
    PromptFailure,
    PromptRequest,
    PromptSamples,
    SampledResponse,
    SamplerSpec,
    ServerSpec,
    response_seed,
)
from generation.samplers.server import ServerSampler  # noqa: E402
from tests.generation.samplers import stub_server as stubs  # noqa: E402
from tests.generation.samplers.stub_server import BASE, END, Mode, Stub  # noqa: E402

DRAW = Draw(temperature=0.9, top_p=0.8, max_new_tokens=8, stop=[])
BASE_POLICY = PolicySpec(id="12", model=BASE, adapter=None, digest="b" * 64, base_digest=None)
ADAPTED = PolicySpec(
    id="13", model=BASE, adapter="/adapters/1", digest="a" * 64, base_digest="b" * 64
)
LIMITS = Limits(
    in_flight=8,
    connect_s=2,
    check_s=5,
    attempt_s=5,
    patience_s=10,
    tries=3,
    first_pause_s=0.02,
    longest_pause_s=0.1,
    longest_retry_after_s=0.4,
    refused_rest_s=0.4,
    body_bytes=50_000,
    tell_s=0.05,
)
IMPATIENT = replace(LIMITS, patience_s=0.8)
HASTY = replace(IMPATIENT, check_s=0.5, attempt_s=0.4, token_s=0)
KEY = "sk-f3a9-canary"


def make_spec(*urls: str, key_file: Path | None = None, unproven: bool = False) -> SamplerSpec:
    server = ServerSpec(
        urls=list(urls), key_file=str(key_file) if key_file else None, unproven=unproven
    )
    return SamplerSpec(
        schema=2,
        sampler="server",
        policies=[BASE_POLICY, ADAPTED],
        draw=DRAW,
        seed=7,
        system=None,
        score_under=[],
        server=server,
        batch_prompts=32,
        dtype="float32",
    )


@contextmanager
def sampler_of(
    *servers: Stub | str,
    policies: tuple[PolicySpec, ...] = (BASE_POLICY,),
    limits: Limits = LIMITS,
    prove: Callable[[str], None] | None = None,
    **spec: Any,
) -> Iterator[ServerSampler]:
    urls = [server if isinstance(server, str) else server.url for server in servers]
    ends = {policy.id: [END] for policy in policies}
    sampler = ServerSampler(make_spec(*urls, **spec), policies, ends, limits, prove)
    try:
        yield sampler
    finally:
        sampler.close()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


def prompt(number: int) -> tuple[int, ...]:
    """The first token tells prompts apart."""
    return (number, *range(5, 5 + number % 4))


def some_requests(count: int = 10, k: int = 2, policy: str = "12") -> list[PromptRequest]:
    return [
        PromptRequest(
            prompt_id=f"p{number}",
            policy=policy,
            token_ids=prompt(number),
            indexes=tuple(range(k)),
            draw=DRAW,
        )
        for number in range(2, 2 + count)
    ]


def expected(request: PromptRequest, index: int) -> SampledResponse:
    seed = response_seed(7, request.prompt_id, index)
    ids = stubs.sampled([*request.token_ids], seed, request.draw.max_new_tokens)
    return SampledResponse(
        index=index,
        token_ids=tuple(ids),
        logp=math.fsum(stubs.logps_of(ids)),
        finish_reason="stop" if ids[-1] == END else "length",
        seed=seed,
    )


def assert_answered(request: PromptRequest, answer: Any) -> None:
    assert isinstance(answer, PromptSamples), answer
    assert answer.policy == request.policy
    assert answer.responses == tuple(expected(request, index) for index in request.indexes)


def sample(sampler: ServerSampler, requests: list[PromptRequest]) -> dict[str, Any]:
    """By prompt; each is answered once."""
    results = [result for group in sampler.sample(requests) for result in group]
    assert len({result.prompt_id for result in results}) == len(results)
    return {result.prompt_id: result for result in results}


def assert_all_answered(sampler: ServerSampler, requests: list[PromptRequest]) -> None:
    answers = sample(sampler, requests)
    assert answers.keys() == {request.prompt_id for request in requests}
    for request in requests:
        assert_answered(request, answers[request.prompt_id])


def reasons(stub: Stub, modes: dict[int, Mode], limits: Limits = LIMITS) -> dict[int, str]:
    """Why the prompts failed that met a mode; all others, and no more, must have been answered."""
    requests = some_requests(len(modes) + 10)
    with within(8), sampler_of(stub, limits=limits) as sampler:
        stub.mode = stubs.by_prompt(modes)
        answers = sample(sampler, requests)
    for request in requests:
        if request.token_ids[0] not in modes:
            assert_answered(request, answers.pop(request.prompt_id))
    for failure in answers.values():
        assert isinstance(failure, PromptFailure)
        assert failure.indexes == (0, 1)
    return {number: answers[f"p{number}"].reason for number in modes}


def assert_raises(
    sampler: ServerSampler, error: type[Exception], match: str, requests: list[PromptRequest]
) -> list[Any]:
    """What came before the error."""
    done: list[Any] = []

    def take() -> None:
        for group in sampler.sample(requests):
            done.extend(group)

    with pytest.raises(error, match=match):
        take()
    return done


def put(**values: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda _answer, choice: choice.update(values)


def put_logps(*logps: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(_answer: Any, choice: dict[str, Any]) -> None:
        choice["logprobs"]["token_logprobs"][: len(logps)] = logps

    return change
