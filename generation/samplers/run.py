"""One batch, from its run directory and back into it: gaps found, filled, and written down."""

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from generation.samplers.policy import (
    check_policy,
    context_of,
    end_ids,
    load_tokenizer,
    tokenizer_folder,
)
from generation.samplers.probes import check_probes, longest_probe, read_probes
from generation.samplers.protocol import (
    PolicySpec,
    PromptRequest,
    Sampler,
    SamplerSpec,
    too_long,
)
from generation.samplers.record import Record
from jobs.run_dir import (
    EXIT_DONE,
    EXIT_STOPPED,
    RunDirError,
    append_event,
    check_spec,
    read_json,
    read_jsonl,
    sha256_file,
)

INPUTS = ("spec.json", "prompts.jsonl")
PROBES = "probes.jsonl"

StopRequested = Callable[[], bool]
Prove = Callable[[str], None]


def run(run_dir: Path, stop_requested: StopRequested) -> int:
    """Fill the batch's gaps; returns an exit code.

    EXIT_DONE with manifest.json written; EXIT_STOPPED when `stop_requested`, or while another
    process holds the directory: run again to go on. Raises RunDirError, UnsafePolicy, ChatError,
    ServerAway or MemoryError when the batch cannot be run as it is.
    """
    with _held(run_dir) as held:
        if not held:
            append_event(run_dir, "warning", message="another process is at work on this batch")
            return EXIT_STOPPED
        spec = check_spec(SamplerSpec, read_json(run_dir / "spec.json"))
        inputs = _check_inputs(run_dir)
        if (run_dir / "manifest.json").exists():
            return EXIT_DONE
        for policy in spec.policies:
            check_policy(policy)
        return _fill(run_dir, spec, inputs, stop_requested)


@contextmanager
def _held(run_dir: Path) -> Iterator[bool]:
    """A lock on the folder that ends with the process, however it ends; true when it is ours."""
    descriptor = os.open(run_dir, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _check_inputs(run_dir: Path) -> dict[str, str]:
    """The inputs' digests; RunDirError when they changed since the batch was begun."""
    digests = {}
    for name in INPUTS:
        if not (run_dir / name).is_file():
            raise RunDirError(f"{run_dir / name} does not exist")
        digests[name] = sha256_file(run_dir / name)
    if _begun_with(run_dir / "events.jsonl") not in (None, digests):
        raise RunDirError(
            f"the spec or the prompts in {run_dir} changed after the batch had begun. What it "
            "wrote is kept; put them back, or start a new batch in a new directory"
        )
    append_event(run_dir, "start", inputs=digests)
    return digests


def _begun_with(events: Path) -> dict[str, str] | None:
    if events.exists():
        for row in read_jsonl(events):
            if row.get("kind") == "start":
                inputs: dict[str, str] = row["inputs"]
                return inputs
    return None


def _fill(
    run_dir: Path, spec: SamplerSpec, inputs: dict[str, str], stop_requested: StopRequested
) -> int:
    tokenizers = _tokenizers(spec)
    record = Record(run_dir, spec, tokenizers)
    requests = record.requests()
    engines = Engines(run_dir, spec, tokenizers, _longest(requests, record))
    try:
        write_responses(engines, record, requests, stop_requested)
        if record.done == len(record.prompts):
            _score(engines, record, stop_requested)
    except Exception:
        # An engine whose processes were told to stop together with us may have died of it.
        if not stop_requested():
            raise
    finally:
        engines.close()
    if record.done < len(record.prompts) or record.unscored():
        if not stop_requested():
            raise RunDirError("the engine left prompts unanswered; run this batch again")
        append_event(run_dir, "stopped", done=record.done, total=len(record.prompts))
        return EXIT_STOPPED
    record.close(inputs)
    return EXIT_DONE


def _tokenizers(spec: SamplerSpec) -> dict[str, Any]:
    """One a policy; policies with the same tokenizer folder share it."""
    loaded: dict[Path, Any] = {}
    found = {}
    for policy in spec.policies:
        folder = tokenizer_folder(policy)
        if folder not in loaded:
            loaded[folder] = load_tokenizer(policy)
        found[policy.id] = loaded[folder]
    return found


def write_responses(
    engines: "Engines",
    record: Record,
    requests: Sequence[PromptRequest],
    stop_requested: StopRequested,
) -> None:
    """Sample what was asked for, and write it down as it comes."""
    for group in together(engines.spec):
        ids = {policy.id for policy in group}
        mine = [request for request in requests if request.policy in ids]
        if not mine or stop_requested():
            continue
        sampler = engines.open(group)
        record.start_clock(sampler.engine)
        for results in sampler.sample(mine):
            record.write(results)
            if stop_requested():
                return


def _score(engines: "Engines", record: Record, stop_requested: StopRequested) -> None:
    unscored = record.unscored()
    groups = together(engines.spec)
    for group in sorted(groups, key=lambda group: group != engines.opened):
        ids = {policy.id for policy in group}
        mine = [(key, request) for key, request in unscored if request.policy in ids]
        if not mine or stop_requested():
            continue
        answers = engines.open(group).score([request for _, request in mine])
        for (key, _), logps in zip(mine, answers, strict=True):
            record.write_score(key, logps)
            if stop_requested():
                return


def together(spec: SamplerSpec) -> list[list[PolicySpec]]:
    """The policies that one engine holds at once.

    transformers holds one; vLLM a base model with all its adapters; servers hold all of them.
    """
    if spec.sampler == "server":
        return [list(spec.policies)]
    if spec.sampler == "transformers":
        return [[policy] for policy in spec.policies]
    by_model = sorted(spec.policies, key=lambda policy: policy.model)
    return [list(group) for _, group in groupby(by_model, key=lambda policy: policy.model)]


class Engines:
    """One engine at a time: opening another gives the memory of the last one back first."""

    def __init__(
        self,
        run_dir: Path,
        spec: SamplerSpec,
        tokenizers: Mapping[str, Any],
        longest: int,
    ) -> None:
        self.run_dir, self.spec, self.tokenizers = run_dir, spec, tokenizers
        self.probes = read_probes(run_dir / PROBES)
        self.longest = max(longest, longest_probe(self.probes) + 1)
        self.opened: list[PolicySpec] = []
        self._sampler: Sampler | None = None

    def open(self, group: list[PolicySpec]) -> Sampler:
        """The engine of these policies, loaded and proven to be them."""
        if self._sampler is None or group != self.opened:
            self.close()
            self._sampler = self._make(self.spec, group, self._prove_server(group))
            self.opened = group
            ids = [policy.id for policy in group]
            proven = self._proven(self._sampler, group)
            engine = self._sampler.engine
            append_event(self.run_dir, "loaded", engine=engine, policies=ids, proven=proven)
        return self._sampler

    def _make(self, spec: SamplerSpec, group: list[PolicySpec], prove: Prove | None) -> Sampler:
        return make_sampler(spec, group, self.tokenizers, self.longest, prove)

    def _proven(self, sampler: Sampler, group: list[PolicySpec]) -> dict[str, float]:
        """How far each policy is from what the trainer says of it; nothing where nobody asks: the
        transformers sampler loads the files itself, and some servers cannot tell."""
        unproven = self.spec.server is not None and self.spec.server.unproven
        if self.spec.sampler == "transformers" or unproven:
            return {}
        return check_probes(sampler, group, self.probes, self.spec.dtype)

    def _prove_server(self, group: list[PolicySpec]) -> Prove | None:
        """Proves one server by itself, whenever it comes or comes back: asked together with others,
        a right one could answer for a wrong one."""
        server = self.spec.server
        if server is None or server.unproven:
            return None

        def prove(url: str) -> None:
            alone = replace(self.spec, server=replace(server, urls=[url]))
            with closing(self._make(alone, group, None)) as sampler:
                self._proven(sampler, group)

        return prove

    def close(self) -> None:
        """Give the engine's memory back."""
        if self._sampler is not None:
            self._sampler.close()
            self._sampler = None


def _longest(requests: Sequence[PromptRequest], record: Record) -> int:
    """Positions that the longest text needs: sampled now, or sampled before and to be scored.

    What does not fit the policy at all fails alone, and asks nothing of the engine.
    """
    contexts = {policy.id: context_of(policy) for policy in record.spec.policies}
    needs = [
        len(request.token_ids) + request.draw.max_new_tokens
        for request in requests
        if not too_long(
            len(request.token_ids), request.draw.max_new_tokens, contexts[request.policy]
        )
    ]
    needs += [len(one.prompt) + len(one.response) + 1 for _, one in record.unscored()]
    return max(needs, default=0)


def make_sampler(
    spec: SamplerSpec,
    policies: list[PolicySpec],
    tokenizers: Mapping[str, Any],
    longest: int,
    prove: Prove | None = None,
) -> Sampler:
    """The engine that the spec names; its heavy libraries are imported only here.

    `prove` is asked about each server, by its address, before it is used.
    """
    ends = {policy.id: end_ids(policy, tokenizers[policy.id]) for policy in policies}
    if spec.sampler == "vllm":
        from generation.samplers.vllm import VllmSampler

        return VllmSampler(spec, policies, ends, longest)
    if spec.sampler == "server":
        from generation.samplers.server import ServerSampler

        return ServerSampler(spec, policies, ends, prove=prove)
    from generation.samplers.transformers import TransformersSampler

    (policy,) = policies
    return TransformersSampler(spec, policy, ends[policy.id], tokenizers[policy.id])
