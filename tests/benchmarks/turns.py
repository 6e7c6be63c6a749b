"""`python -m tests.benchmarks turns`: generation, a round, generation again, on one machine's GPU.

The three programs run one after the other as the worker starts them, each on its run directory:
vLLM answers, the trainer trains an adapter on preferences over the answers, vLLM answers with the
base model and the adapter. Memory is read before, at its highest, and after each: whatever a
program took must be back before the next one begins. With a GPU the model has a billion random
weights in bf16; on a CPU it is small, and memory is the machine's.
"""

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from config.environments import vllm_python
from jobs.machine import has_gpu
from jobs.run_dir import read_jsonl, write_json, write_jsonl
from labeling.policy_files import policy_digest
from tests.benchmarks.generation import prompts
from tests.benchmarks.models import ONE_BILLION, SMALL, write_model
from tests.benchmarks.probing import Named, finish, write_probes
from tests.benchmarks.report import Figure, Options, Report

K, NEW_TOKENS = 4, 64
SETTLE_S = 2.0  # until the driver has counted what an ended process gave back
POLL_S = 0.2


def measure(options: Options) -> Report:
    """Seconds and memory of each turn; `--data` gives prompts of your own."""
    gpu = has_gpu()
    shape, dtype = (ONE_BILLION, "bfloat16") if gpu else (SMALL, "float32")
    with tempfile.TemporaryDirectory(prefix="prefloop-turns-") as name:
        folder = Path(name)
        model = write_model(shape, folder / "model")
        asked = prompts(options.data)[: 8 if options.quick else None]
        before = memory_mb()
        first = generate(folder / "batch-1", asked, dtype, {"base": (model, None)})
        round_ = train(folder, model, folder / "batch-1", dtype)
        adapter = folder / "round" / "policy"
        both: Named = {"base": (model, None), "adapter": (model, adapter)}
        second = generate(folder / "batch-2", asked, dtype, both)
        proven = [
            row["proven"]
            for row in read_jsonl(folder / "batch-2" / "events.jsonl")
            if row["kind"] == "loaded"
        ][-1]
    turns = {"generation": first, "training": round_, "generation again": second}
    kept = max(turn["after_mb"] for turn in turns.values()) - before
    words = ", ".join(
        f"{name}: {turn['seconds']:.0f} s, {turn['highest_mb'] - before:.0f} MB"
        for name, turn in turns.items()
    )
    bound = "<=50" if gpu else ""  # a CPU's memory is everybody's
    figures = [
        Figure("memory_kept_between_turns_mb", max(0.0, kept), bound, words, "before: 0 MB"),
        Figure("worst_difference_per_token", max(proven.values()), "", "vLLM", "the trainer"),
    ]
    settings = {
        "memory": "GPU" if gpu else "machine",
        "before_mb": before,
        "dtype": dtype,
        "k": K,
        "new_tokens": NEW_TOKENS,
        "prompts": len(asked),
        "proven": proven,
    }
    runs = [{"turn": name, **turn} for name, turn in turns.items()]
    return Report(
        title="One GPU, taken in turns" if gpu else "One CPU, taken in turns",
        figures=figures,
        settings=settings,
        runs=runs,
    )


def policy(id: str, model: Path, adapter: Path | None) -> dict[str, Any]:
    """A policy as a spec names it."""
    return {
        "id": id,
        "model": str(model),
        "adapter": adapter and str(adapter),
        "digest": policy_digest(adapter or model),
        "base_digest": policy_digest(model) if adapter else None,
    }


def generate(
    run_dir: Path, asked: list[list[dict[str, str]]], dtype: str, named: Named
) -> dict[str, float]:
    """A batch by vLLM; the policies share each prompt's responses."""
    run_dir.mkdir()
    write_probes(run_dir, named, dtype)
    policies = [policy(id, *files) for id, files in named.items()]
    ids = [policies[index % len(policies)]["id"] for index in range(K)]
    rows = [{"id": str(n), "messages": each, "policies": ids} for n, each in enumerate(asked)]
    write_jsonl(run_dir / "prompts.jsonl", rows)
    draw = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": NEW_TOKENS, "stop": []}
    spec = {
        "schema": 2,
        "sampler": "vllm",
        "policies": policies,
        "draw": draw,
        "seed": 7,
        "system": None,
        "score_under": [],
        "server": None,
        "batch_prompts": 32,
        "dtype": dtype,
    }
    write_json(run_dir / "spec.json", spec)
    return turn([str(vllm_python()), "-m", "generation.samplers", "run", str(run_dir)])


def train(folder: Path, model: Path, batch: Path, dtype: str) -> dict[str, float]:
    """A round that prefers each prompt's shortest response to its longest."""
    answers: dict[str, list[str]] = {}
    for row in read_jsonl(batch / "responses.jsonl"):
        answers.setdefault(row["prompt_id"], []).append(row["text"])
    asked = {row["id"]: row["messages"] for row in read_jsonl(batch / "prompts.jsonl")}
    rows = [
        {"prompt": asked[id][-1]["content"], "chosen": texts[0], "rejected": texts[-1]}
        for id, found in answers.items()
        if len(texts := sorted(set(found), key=len)) > 1
    ]
    write_jsonl(folder / "preferences.jsonl", rows)
    settings = ["method=lora", f"dtype={dtype}", "learning_rate=0.001", "sample_prompts=0"]
    given = ["--policy", str(model), "--preferences", str(folder / "preferences.jsonl")]
    command = [sys.executable, "-m", "training.trainer"]
    finish([*command, "init", str(folder / "round"), *given, "--set", *settings])
    return turn([*command, "run", str(folder / "round")])


def turn(command: list[str]) -> dict[str, float]:
    """Run a program to its end: seconds, memory at its highest, memory when it has ended."""
    began = time.monotonic()
    highest = _watched(lambda: finish(command))
    seconds = time.monotonic() - began
    time.sleep(SETTLE_S)
    return {"seconds": seconds, "highest_mb": highest, "after_mb": memory_mb()}


def _watched(work: Callable[[], None]) -> float:
    """The most memory in use while `work` goes on."""
    seen, ended = [memory_mb()], threading.Event()

    def watch() -> None:
        while not ended.wait(POLL_S):
            seen.append(memory_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        ended.set()
        watcher.join()
    return max(seen)


def memory_mb() -> float:
    """In use: the first GPU's as its driver counts it, else the machine's."""
    if has_gpu():
        query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        told = subprocess.run(query, capture_output=True, text=True, check=True)
        return float(told.stdout.splitlines()[0])
    lines = Path("/proc/meminfo").read_text().splitlines()
    kib = {name: int(rest.split()[0]) for name, rest in (line.split(":") for line in lines)}
    return (kib["MemTotal"] - kib["MemAvailable"]) / 1024
