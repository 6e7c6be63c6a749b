"""Servers with OpenAI's API, such as vLLM's, on this machine or others.

Each response is a request of its own, answered by whichever server has the fewest in flight. They
are kept busy while what was answered is written down.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path

from generation.samplers.background import Background
from generation.samplers.completions import (
    Json,
    Unproven,
    Unscored,
    draw_body,
    read_choice,
    read_response,
    read_scores,
    read_unproven,
    score_body,
)
from generation.samplers.http import Failed, Host, Limits, Refused
from generation.samplers.pool import Job, Pool
from generation.samplers.protocol import (
    Draw,
    PolicySpec,
    PromptFailure,
    PromptRequest,
    PromptResult,
    PromptSamples,
    SampledResponse,
    SamplerSpec,
    ScoreRequest,
    ServerAway,
    response_seed,
    too_long,
)
from generation.samplers.serving import Serving, find_out, refuse_host
from jobs.run_dir import RunDirError, read_json

Logps = tuple[float, ...]

DRAIN_S = 0.05
ONE_TOKEN = Draw(temperature=0.0, top_p=1.0, max_new_tokens=1, stop=[])


class ServerSampler:
    """A `Sampler`. Every server must serve every one of the policies.

    `prove` is given a server's address before that server is used, and again when it comes back:
    it raises RunDirError where the server holds something else, ServerAway or ValueError where it
    cannot be asked. Servers that are not fit are left out while another is.
    """

    def __init__(
        self,
        spec: SamplerSpec,
        policies: Sequence[PolicySpec],
        end_ids: Mapping[str, Sequence[int]],
        limits: Limits | None = None,
        prove: Callable[[str], None] | None = None,
    ) -> None:
        if spec.server is None:
            raise RunDirError("the spec names no server")
        self._seed, self._unproven = spec.seed, spec.server.unproven
        self._policies, self._end_ids = list(policies), end_ids
        self._vocabulary = {policy.id: _vocabulary(policy) for policy in policies}
        self._limits, self._prove = limits or Limits(), prove
        self._serving: dict[Host, Serving] = {}
        key = read_key(spec.server.key_file)
        hosts = [Host(url, key, self._limits) for url in dict.fromkeys(spec.server.urls)]
        self._pool = Pool(hosts, self._limits, self._check)
        self._background = Background()
        try:
            self._background.wait_for(self._pool.open())
        except BaseException:
            self.close()
            raise
        used = [host for host in hosts if not host.refusal]
        self.engine = "server " + ", ".join(map(self._engine_of, used))

    def close(self) -> None:
        """End all that is going on, and the thread."""
        self._background.close(self._pool.close)

    def sample(self, requests: Sequence[PromptRequest]) -> Iterator[list[PromptResult]]:
        """See `Sampler`. Empty groups come while nothing is ready, so that a run can be stopped.

        Where only some of a prompt's responses can be had, they come with a PromptFailure for
        the others. What was answered before ServerAway is yielded before it is raised.
        """
        failures: list[PromptResult] = []
        ready = []
        for request in requests:
            context = self._context(request.policy)
            reason = too_long(len(request.token_ids), request.draw.max_new_tokens, context)
            if reason:
                failures.append(_failure(request, request.indexes, reason))
            else:
                ready.append(request)
        if failures:
            yield failures
        yield from self._background.stream(
            partial(self._sample, ready), at_least_every_s=self._limits.tell_s
        )

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[Logps]:
        """See `Sampler`. Empty for a response that a server refuses to score, or is given up on.

        One at a time where there are adapters: vLLM 0.32 maps logits of prompts to adapters by
        the number of requests, and ends when that differs from the number of positions.
        """
        early: dict[int, Logps] = {}
        place = 0
        work = partial(self._score, requests)
        for group in self._background.stream(work, at_least_every_s=self._limits.tell_s):
            early.update(group)
            while place in early:
                yield early.pop(place)
                place += 1

    async def _sample(
        self, requests: Sequence[PromptRequest], out: Callable[[PromptResult], None]
    ) -> None:
        begun: list[_Tally] = []

        def jobs() -> Iterator[Job]:
            for request in requests:
                begun.append(_Tally(request, out))
                for index in request.indexes:
                    yield self._draw_job(begun[-1], index)

        try:
            await self._pool.run(jobs())
        finally:
            for tally in begun:
                tally.tell()

    def _draw_job(self, tally: "_Tally", index: int) -> Job:
        async def do(host: Host) -> Callable[[], None]:
            try:
                response = await self._draw(host, tally.request, index)
            except Refused as refused:
                if refused.status == 404:
                    raise Failed(f"it does not know the policy any more ({refused})") from None
                return partial(tally.fail, index, f"the server refused it: {refused}")
            return partial(tally.add, response)

        return Job(do=do, give_up=lambda reason: tally.fail(index, reason))

    async def _draw(
        self, host: Host, request: PromptRequest, index: int, seconds: float | None = None
    ) -> SampledResponse:
        serving, policy, draw = self._serving[host], request.policy, request.draw
        names, ends = serving.names[policy], self._end_ids[policy]
        seed = response_seed(self._seed, request.prompt_id, index)
        standard = self._unproven and not serving.vllm
        body = draw_body(names[0], request.token_ids, draw, seed, ends, standard=standard)
        choice = await self._ask(host, body, names, seconds)
        try:
            return read_response(
                choice,
                draw,
                index=index,
                seed=seed,
                ends=ends,
                vocabulary=self._vocabulary[policy],
            )
        except Unproven as reason:
            if self._unproven:
                return read_unproven(choice, draw, index=index, seed=seed)
            raise RunDirError(
                f"{host.url} cannot prove its responses: {reason}. To use it all the same, for "
                "responses without tokens and log-probabilities, set PREFLOOP_SERVER_UNPROVEN=true"
            ) from None

    async def _ask(
        self, host: Host, body: Json, names: Sequence[str], seconds: float | None = None
    ) -> Json:
        limits, most = self._limits, body["max_tokens"]
        seconds = seconds or limits.attempt_s + limits.token_s * most
        tokens = len(body["prompt"]) + most
        try:
            answer = await host.call("/v1/completions", body, seconds=seconds, tokens=tokens)
        except Refused as refused:
            refuse_host(host, refused)
            raise
        return read_choice(answer, names, body["prompt"])

    async def _score(
        self, requests: Sequence[ScoreRequest], out: Callable[[tuple[int, Logps]], None]
    ) -> None:
        def job(place: int, request: ScoreRequest) -> Job:
            async def do(host: Host) -> Callable[[], None]:
                return partial(out, (place, await self._logps(host, request)))

            return Job(do=do, give_up=lambda _reason: out((place, ())))

        at_once = 1 if any(policy.adapter for policy in self._policies) else None
        jobs = (job(place, request) for place, request in enumerate(requests))
        await self._pool.run(jobs, at_once)

    async def _logps(self, host: Host, request: ScoreRequest) -> Logps:
        serving = self._serving[host]
        names = serving.names[request.policy]
        whole = request.prompt + request.response
        body = score_body(names[0], whole, serving.contexts[request.policy])
        try:
            choice = await self._ask(host, body, names)
            return read_scores(choice, whole, len(body["prompt"]), len(request.response))
        except Refused as refused:
            if refused.status == 404:
                raise Failed(f"it does not know the policy any more ({refused})") from None
            return ()
        except Unscored:
            return ()
        except Unproven as reason:
            if self._unproven:
                return ()
            raise RunDirError(
                f"{host.url} cannot score responses: {reason}. To go on without what it cannot "
                "say, set PREFLOOP_SERVER_UNPROVEN=true"
            ) from None

    async def _check(self, host: Host) -> None:
        """Whether it is fit to be used; what is known of a server that is not is forgotten."""
        try:
            await self._ask_for_tokens(host)
            if self._prove:
                await self._prove_host(host, self._prove)
        except RunDirError:
            self._serving.pop(host, None)
            raise

    async def _prove_host(self, host: Host, prove: Callable[[str], None]) -> None:
        while host.in_flight:  # vLLM's scores go wrong beside other requests: see `score`
            host.failing_since = None  # it has answered, and our patience is for the others
            await asyncio.sleep(DRAIN_S)
        try:
            await _beside(partial(prove, host.url))
        except ServerAway as away:
            raise Failed(f"it could not be asked for a proof: {away}") from None
        except ValueError as error:
            raise RunDirError(f"{host.url} cannot be proven to be the policy: {error}") from None

    async def _ask_for_tokens(self, host: Host) -> None:
        """One of each policy: a server may list what it cannot answer with."""
        self._serving[host] = await find_out(host, self._policies, self._limits.check_s)
        for policy in self._policies:
            prompt = tuple(self._end_ids[policy.id][:1]) or (0,)
            request = PromptRequest(
                prompt_id="", policy=policy.id, token_ids=prompt, indexes=(0,), draw=ONE_TOKEN
            )
            try:
                await self._draw(host, request, 0, seconds=self._limits.check_s)
            except Refused as refused:
                raise RunDirError(f"{host.url} refuses to write a token: {refused}") from None

    def _context(self, policy: str) -> int | None:
        known = (serving.contexts[policy] for serving in self._serving.values())
        return min((context for context in known if context is not None), default=None)

    def _engine_of(self, host: Host) -> str:
        serving = self._serving.get(host)
        return f"{serving.vllm} at {host.url}" if serving and serving.vllm else f"at {host.url}"


class _Tally:
    """The responses of one request as they come, told together once none is outstanding."""

    def __init__(self, request: PromptRequest, out: Callable[[PromptResult], None]) -> None:
        self.request, self._out = request, out
        self._responses: list[SampledResponse] = []
        self._failed: list[int] = []
        self._reason = ""

    def add(self, response: SampledResponse) -> None:
        self._responses.append(response)
        self._tell_if_whole()

    def fail(self, index: int, reason: str) -> None:
        self._failed.append(index)
        self._reason = self._reason or reason
        self._tell_if_whole()

    def _tell_if_whole(self) -> None:
        if len(self._responses) + len(self._failed) == len(self.request.indexes):
            self.tell()

    def tell(self) -> None:
        """Hand out what has come and was not handed out yet."""
        responses = sorted(self._responses, key=lambda response: response.index)
        if responses:
            self._out(
                PromptSamples(
                    prompt_id=self.request.prompt_id,
                    policy=self.request.policy,
                    responses=tuple(responses),
                )
            )
        if self._failed:
            self._out(_failure(self.request, sorted(self._failed), self._reason))
        self._responses, self._failed = [], []


def _failure(request: PromptRequest, indexes: Sequence[int], reason: str) -> PromptFailure:
    return PromptFailure(prompt_id=request.prompt_id, indexes=tuple(indexes), reason=reason)


def _beside(work: Callable[[], None]) -> "asyncio.Future[None]":
    """The work in a thread that, unlike asyncio's, does not keep the process from ending."""
    done: Future[None] = Future()
    done.set_running_or_notify_cancel()

    def do() -> None:
        try:
            work()
        except BaseException as error:  # goes to whoever waits
            done.set_exception(error)
        else:
            done.set_result(None)

    threading.Thread(target=do, daemon=True).start()
    return asyncio.wrap_future(done)


def read_key(file: str | None) -> str | None:
    """The key in the file; RunDirError, which never shows it, where there is none."""
    if not file:
        return None
    try:
        key = Path(file).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        raise RunDirError(f"the key file {file} cannot be read, or holds no key") from None
    if not key.isprintable() or " " in key or not key:
        raise RunDirError(f"the key file {file} must hold one key, without spaces")
    return key


def _vocabulary(policy: PolicySpec) -> int | None:
    """How many tokens the policy has, None where its configuration does not say."""
    path = Path(policy.model) / "config.json"
    config = read_json(path) if path.is_file() else {}
    size = config.get("text_config", config).get("vocab_size")
    return size if isinstance(size, int) else None
