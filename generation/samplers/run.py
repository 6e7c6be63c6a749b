"""One batch, from its run directory and back into it: gaps found, filled, and written down."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from generation.samplers.policy import check_policy, load_tokenizer
from generation.samplers.protocol import Sampler, SamplerSpec
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
from labeling.chat import end_token_ids

INPUTS = ("spec.json", "prompts.jsonl")


def run(run_dir: Path, stop_requested: Callable[[], bool]) -> int:
    """Fill the batch's gaps; returns an exit code.

    EXIT_DONE with manifest.json written; EXIT_STOPPED when `stop_requested`, or while another
    process holds the directory: run again to go on. Raises RunDirError, UnsafePolicy, ChatError
    or MemoryError when the batch cannot be run as it is.
    """
    with _held(run_dir) as held:
        if not held:
            append_event(run_dir, "warning", message="another process is at work on this batch")
            return EXIT_STOPPED
        spec = check_spec(SamplerSpec, read_json(run_dir / "spec.json"))
        inputs = _check_inputs(run_dir)
        if (run_dir / "manifest.json").exists():
            return EXIT_DONE
        check_policy(spec.policy)
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
    run_dir: Path, spec: SamplerSpec, inputs: dict[str, str], stop_requested: Callable[[], bool]
) -> int:
    tokenizer = load_tokenizer(spec.policy)
    record = Record(run_dir, spec, tokenizer)
    requests = record.requests()
    if requests and not stop_requested():
        sampler = make_sampler(spec, end_token_ids(tokenizer))
        append_event(run_dir, "loaded", engine=sampler.engine, prompts=len(requests))
        for group in sampler.sample(requests):
            record.write(group)
            if stop_requested():
                break
    if record.done < len(record.prompts):
        append_event(run_dir, "stopped", done=record.done, total=len(record.prompts))
        return EXIT_STOPPED
    record.close(inputs)
    return EXIT_DONE


def make_sampler(spec: SamplerSpec, end_ids: list[int]) -> Sampler:
    """The engine that the spec names; its heavy libraries are imported only here."""
    from generation.samplers.transformers import TransformersSampler

    return TransformersSampler(spec, end_ids)
