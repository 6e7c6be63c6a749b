"""vLLM's offline engine: a base model with all its adapters, loaded once for the whole batch.

On a GPU the engine runs in processes of its own, which end with `close` and give its memory back to
the next round; on a CPU it runs in this one. docs/decisions/0008-vllm.md says which of its settings
are chosen here, and why.
"""

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from generation.samplers.policy import adapter_rank, context_of
from generation.samplers.protocol import (
    FinishReason,
    PolicySpec,
    PromptFailure,
    PromptRequest,
    PromptResult,
    PromptSamples,
    SampledResponse,
    SamplerSpec,
    ScoreRequest,
    response_seed,
    served_name,
    too_long,
)
from jobs.machine import has_gpu
from jobs.run_dir import RunDirError, read_json

AT_ONCE = 256  # requests that the engine computes in one pass (vLLM's own max_num_seqs)
IN_FLIGHT = 2 * AT_ONCE  # requests that it holds, so that it never waits for the next one
CONTEXT_STEP = 64  # the engine's context is rounded up to such steps
MOST_BATCHED_TOKENS = 4096  # of one pass on a CPU, where prompts are never cut into chunks
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM allows for max_lora_rank
CACHE_SHARE = 0.25  # of a CPU's free memory that the key-value cache may take
FREE_SHARE = 0.95  # of a GPU's free memory that the engine may take
ASK_S = 30  # for the driver's answer

os.environ.update(
    VLLM_NO_USAGE_STATS="1",
    DO_NOT_TRACK="1",
    HF_HUB_OFFLINE="1",
    VLLM_LOGGING_LEVEL="WARNING",
    VLLM_WORKER_MULTIPROC_METHOD="spawn",
)


class VllmSampler:
    """A `Sampler` of policies that share a base model.

    `longest` is the most positions that a text of this batch needs: it bounds the context, and
    with it the memory that the engine must have at least.
    """

    def __init__(
        self,
        spec: SamplerSpec,
        policies: Sequence[PolicySpec],
        end_ids: Mapping[str, Sequence[int]],
        longest: int,
    ) -> None:
        self.spec, self.end_ids = spec, end_ids
        self.context = context_of(policies[0])
        self._llm = _load(spec, policies, _fitting(longest, self.context))
        self._adapters = _adapter_requests(policies)
        self.engine = f"vllm {_version()}"
        self._serial = 0

    def close(self) -> None:
        """End the engine's processes; in this one, let go of what another engine will want."""
        self._llm.llm_engine.engine_core.shutdown()
        if not has_gpu():
            from vllm.distributed import cleanup_dist_env_and_memory

            del self._llm
            cleanup_dist_env_and_memory()

    def sample(self, requests: Sequence[PromptRequest]) -> Iterator[list[PromptResult]]:
        """See `Sampler`. The engine always has requests waiting, and finishes them in any order."""
        failures: list[PromptResult] = []
        ready = []
        for request in requests:
            reason = too_long(len(request.token_ids), request.draw.max_new_tokens, self.context)
            if reason:
                failures.append(_failure(request, reason))
            else:
                ready.append(request)
        if failures:
            yield failures
        yield from self._run(ready)

    def _run(self, requests: Sequence[PromptRequest]) -> Iterator[list[PromptResult]]:
        waiting = ((request, index) for request in requests for index in request.indexes)
        asked: dict[str, tuple[PromptRequest, int]] = {}
        made: dict[tuple[str, str], list[SampledResponse]] = {}
        refused: set[tuple[str, str]] = set()
        while True:
            results: list[PromptResult] = []
            for request, index in islice(waiting, IN_FLIGHT - len(asked)):
                if (request.prompt_id, request.policy) in refused:
                    continue  # with its first response, which says why
                problem = self._ask(asked, request, index)
                if problem:
                    refused.add((request.prompt_id, request.policy))
                    results.append(problem)
            if asked:
                for output in self._llm.llm_engine.step():
                    if output.finished:
                        request, index = asked.pop(output.request_id)
                        done = made.setdefault((request.prompt_id, request.policy), [])
                        done.append(self._response(output, request, index))
                        if len(done) == len(request.indexes):
                            results.append(_result(request, done))
            if results:
                yield results
            elif not asked:
                return

    def _ask(
        self, asked: dict[str, tuple[PromptRequest, int]], request: PromptRequest, index: int
    ) -> PromptFailure | None:
        from vllm import SamplingParams
        from vllm.exceptions import VLLMClientError
        from vllm.sampling_params import RequestOutputKind

        draw = request.draw
        try:
            params = SamplingParams(
                temperature=draw.temperature,
                top_p=draw.top_p,
                max_tokens=draw.max_new_tokens,
                stop=draw.stop or None,
                stop_token_ids=list(self.end_ids[request.policy]),
                seed=response_seed(self.spec.seed, request.prompt_id, index),
                logprobs=0,  # of the sampled token only
                flat_logprobs=True,
                detokenize=bool(draw.stop),
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            name = self._add(request.token_ids, params, request.policy)
        except (ValueError, VLLMClientError) as error:
            if index == request.indexes[0]:
                return _failure(request, f"the engine refused it: {error}")
            raise  # the same prompt was taken a moment ago
        asked[name] = (request, index)
        return None

    def _add(self, ids: Sequence[int], params: Any, policy: str) -> str:
        self._serial += 1
        name = str(self._serial)
        prompt = {"prompt_token_ids": list(ids)}
        adapter = self._adapters[policy]
        self._llm.llm_engine.add_request(name, prompt, params, lora_request=adapter)
        return name

    def _response(self, output: Any, request: PromptRequest, index: int) -> SampledResponse:
        (made,) = output.outputs
        ids = tuple(made.token_ids)
        told = made.logprobs  # flat: the drawn token of each place, and nothing else
        if told.token_ids[: len(ids)] != list(ids):
            raise RunDirError(f"{self.engine} gave log-probabilities of other tokens than it drew")
        return SampledResponse(
            index=index,
            token_ids=ids,
            logp=sum(told.logprobs[: len(ids)]),
            finish_reason=_finish_reason(made),
            seed=response_seed(self.spec.seed, request.prompt_id, index),
            text=made.text if isinstance(made.stop_reason, str) else None,
        )

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[tuple[float, ...]]:
        """See `Sampler`. The answers come in order, each window of requests together.

        One at a time where there are adapters: vLLM 0.32 maps logits of prompts to adapters by
        the number of requests, and ends when that differs from the number of positions.
        """
        rest = iter(requests)
        while window := list(islice(rest, 1 if any(self._adapters.values()) else IN_FLIGHT)):
            names = [self._ask_score(request) for request in window]
            answers: dict[str | None, Any] = {None: None}  # of a text that cannot be asked
            while len(answers) < len({None, *names}):
                for output in self._llm.llm_engine.step():
                    if output.finished:
                        answers[output.request_id] = output.prompt_logprobs
            for name, request in zip(names, window, strict=True):
                yield _logps(answers[name], request)

    def _ask_score(self, request: ScoreRequest) -> str | None:
        """The engine's name of the question; None where it refuses, as where a text fills the
        context: the engine wants room for one token more."""
        from vllm import SamplingParams
        from vllm.exceptions import VLLMClientError
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=0,
            max_tokens=1,
            prompt_logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        try:
            return self._add(request.prompt + request.response, params, request.policy)
        except (ValueError, VLLMClientError):
            return None


def _finish_reason(made: Any) -> FinishReason:
    """vLLM says "stop" of an end token (its id, or None for the model's own) and of a text."""
    if made.finish_reason == "length":
        return "length"
    return "stop_text" if isinstance(made.stop_reason, str) else "stop"


def _logps(prompt_logprobs: Any, request: ScoreRequest) -> tuple[float, ...]:
    if prompt_logprobs is None:
        return ()
    places = enumerate(request.response, start=len(request.prompt))
    return tuple(prompt_logprobs[place][token].logprob for place, token in places)


def _failure(request: PromptRequest, reason: str) -> PromptFailure:
    return PromptFailure(prompt_id=request.prompt_id, indexes=request.indexes, reason=reason)


def _result(request: PromptRequest, responses: list[SampledResponse]) -> PromptResult:
    logps = [response.logp for response in responses]
    if any(logp is None or not abs(logp) < float("inf") for logp in logps):
        return _failure(request, "the policy's logits are not finite")
    ordered = sorted(responses, key=lambda response: response.index)
    return PromptSamples(
        prompt_id=request.prompt_id, policy=request.policy, responses=tuple(ordered)
    )


def _adapter_requests(policies: Sequence[PolicySpec]) -> dict[str, Any]:
    """For each policy what tells the engine its adapter, None for the base model itself."""
    from vllm.lora.request import LoRARequest

    return {
        policy.id: policy.adapter and LoRARequest(served_name(policy), number, policy.adapter)
        for number, policy in enumerate(policies, start=1)
    }


def _fitting(longest: int, context: int | None) -> int:
    """The context to load with: what is needed, no more than the policy has."""
    rounded = -(-max(longest, 1) // CONTEXT_STEP) * CONTEXT_STEP
    return min(rounded, context) if context else rounded


def _version() -> str:
    import vllm

    return str(vllm.__version__)


def _load(spec: SamplerSpec, policies: Sequence[PolicySpec], context: int) -> Any:
    """The engine; RunDirError or MemoryError where it does not start."""
    adapters = [policy.adapter for policy in policies if policy.adapter]
    lora: dict[str, Any] = {}
    if adapters:
        rank = max(map(adapter_rank, adapters))
        fitting = next((most for most in RANKS if most >= rank), RANKS[-1])
        lora = {"enable_lora": True, "max_loras": len(adapters), "max_lora_rank": fitting}
    options = {
        "model": policies[0].model,
        "dtype": spec.dtype,
        "max_model_len": context,
        "generation_config": "vllm",  # how to sample is for the batch to say
        "trust_remote_code": False,
        "load_format": "safetensors",
        "disable_log_stats": True,
        "max_num_seqs": AT_ONCE,
        **lora,
    }
    options |= _on_gpu() if has_gpu() else _on_cpu(policies[0], context)
    if adapters and not has_gpu():
        # vLLM 0.32's code for CPUs takes "no adapter" for the last place: that must stay empty,
        # or the base model's answers are an adapter's.
        options["max_loras"] += 1
    from vllm import LLM

    try:
        return LLM(**options)
    except Exception as error:  # the engine raises of many kinds, and says why in its log
        words = f"vLLM could not load {policies[0].model}: {error}"
        if "memory" in str(error).lower():
            raise MemoryError(words) from error
        raise RunDirError(words) from error


def _on_cpu(policy: PolicySpec, context: int) -> dict[str, Any]:
    """A CPU's random generators cannot be wound back, which seeded requests need where a prompt
    is cut into chunks (vLLM 0.32 ends with "CPU Generator does not use offset")."""
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(_cache_gib(policy, context))
    os.environ["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"  # else a core waits beside the engine
    # In this process: it loads in seconds, and no process spins while it waits for another.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    return {
        "distributed_executor_backend": "uni",
        "enforce_eager": True,  # nothing is compiled: batches on a CPU are over before it pays
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(MOST_BATCHED_TOKENS, context),
    }


def _cache_gib(policy: PolicySpec, context: int) -> int:
    """GiB for keys and values: what a full pass needs, and no more than a share of what is free."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needed = AT_ONCE * context * _cached_bytes(read_json(Path(policy.model) / "config.json"))
    return max(1, min(-(-needed // 2**30), int(free * CACHE_SHARE) // 2**30))


def _cached_bytes(config: dict[str, Any]) -> int:
    """Bytes of one position's keys and values in fp32, by the names that most families use."""
    layers = config.get("num_hidden_layers", config.get("n_layer", 32))
    width = config.get("hidden_size", config.get("n_embd", 4096))
    heads = config.get("num_attention_heads", config.get("n_head", 32))
    size = config.get("head_dim") or width // heads
    return int(2 * 4 * layers * (config.get("num_key_value_heads") or heads) * size)


def _on_gpu() -> dict[str, Any]:
    """Of a GPU that others use too, only what is free now. Asked of the driver's own program:
    asking torch would keep half a gigabyte for the answer."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0"
    query = ["nvidia-smi", "-i", first, "--query-gpu=memory.free,memory.total"]
    query += ["--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=ASK_S)
        free, total = map(int, told.stdout.splitlines()[0].split(","))
    except (subprocess.TimeoutExpired, IndexError, ValueError):
        return {}
    return {"gpu_memory_utilization": round(min(0.92, FREE_SHARE * free / total), 3)}
