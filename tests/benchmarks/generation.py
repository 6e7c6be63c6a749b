"""`python -m tests.benchmarks generation`: the batch path, vLLM's bare engine, transformers.

64 prompts of 8 to 200 words, 2 responses of 64 tokens each, one small model with random weights,
fp32. Everything is loaded before; what is timed goes from messages to files in a run directory (the
batch path), from token ids to token ids (the others). The engine is one and the same for the batch
path and for the bare calls, its prefix cache emptied before each. Runs alternate; medians are
compared.
"""

import json
import random
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from config.environments import vllm_python
from tests.benchmarks.environment import ROOT
from tests.benchmarks.models import Shape, write_model
from tests.benchmarks.probing import write_probes
from tests.benchmarks.report import Figure, Options, Report
from tests.benchmarks.rows import WORDS

PROMPTS, K, NEW_TOKENS = 64, 2, 64
REPEATS, QUICK_REPEATS = 9, 3
SHAPE = Shape(width=384, layers=6, heads=6, key_heads=6, inner_width=1024)
SHORTEST, LONGEST = 8, 200  # words of a prompt: nine in ten of hh-rlhf's are between these
BATCH_SIZES = (8, 16, 32, 64)  # of prompts: generate's best is looked for among these


def measure(options: Options) -> Report:
    """Medians of interleaved runs; `--data` gives prompts with `turns` or `prompt` of your own."""
    repeats = QUICK_REPEATS if options.quick else REPEATS
    with tempfile.TemporaryDirectory(prefix="prefloop-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        model = write_model(SHAPE, folder / "model")
        write_probes(folder, {"p": (model, None)}, "float32")
        (folder / "prompts.json").write_text(json.dumps(prompts(options.data)))
        vllm = stack.enter_context(Child(str(vllm_python()), "vllm", folder))
        peer = stack.enter_context(Child(sys.executable, "transformers", folder))
        best = max(BATCH_SIZES, key=lambda size: peer.speed("generate", size))
        for what in ("bare", "bare_plain", "batch"):
            vllm.speed(what)  # warm
        runs = [one_round(vllm, peer, best) for _ in range(repeats)]
    middle = {what: statistics.median(run[what] for run in runs) for what in runs[0]}
    settings = {
        "prompts": PROMPTS,
        "k": K,
        "new_tokens": NEW_TOKENS,
        "model": asdict(SHAPE),
        "generate_batch": best,
        "repeats": repeats,
        "vllm": vllm.engine,
        "transformers": peer.engine,
        "tokens_per_s": middle,
    }
    title = f"Generation, {PROMPTS} prompts x {K} x {NEW_TOKENS} tokens, tokens a second"
    return Report(title=title, figures=figures(middle, best), settings=settings, runs=runs)


def figures(speed: dict[str, float], best: int) -> list[Figure]:
    """Ratios of tokens a second, with what each side was given."""
    ours = f"{speed['batch']:.0f} tokens/s"
    return [
        Figure(
            "speed_vs_bare_engine",
            speed["batch"] / speed["bare"],
            ">=0.95",
            ours,
            f"LLM.generate with seeds and logprobs, as a batch needs: {speed['bare']:.0f}",
        ),
        Figure(
            "speed_vs_bare_engine_plain",
            speed["batch"] / speed["bare_plain"],
            "",
            ours,
            f"LLM.generate without either: {speed['bare_plain']:.0f}",
        ),
        Figure(
            "speed_vs_transformers",
            speed["batch"] / speed["generate"],
            ">=2.5",
            ours,
            f"generate, {best} prompts at once: {speed['generate']:.0f}",
        ),
    ]


def one_round(vllm: "Child", peer: "Child", best: int) -> dict[str, float]:
    """Each once, in an order of its own, so that no one always comes after the same other."""
    turns = ["bare", "bare_plain", "batch", "generate"]
    random.shuffle(turns)
    return {
        what: peer.speed(what, best) if what == "generate" else vllm.speed(what) for what in turns
    }


class Child:
    """A process with an engine loaded, which runs what it is told and waits in between."""

    def __init__(self, python: str, engine: str, folder: Path) -> None:
        command = [python, "-m", "tests.benchmarks.generation_child", engine, str(folder)]
        self._log = (folder / f"{engine}.log").open("w+")
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.engine: str = self._answer()["engine"]

    def __enter__(self) -> "Child":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate()

    def speed(self, what: str, size: int = 0) -> float:
        """Tokens a second of one run."""
        if self._process.stdin is None:
            raise RuntimeError("the child has no input")
        self._process.stdin.write(json.dumps({"what": what, "size": size}) + "\n")
        self._process.stdin.flush()
        told = self._answer()
        return float(told["tokens"] / told["seconds"])

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            self._log.seek(0)
            sys.exit(f"{self._log.read()[-3000:]}\nthe engine ended (its output is above)")
        answer: dict[str, Any] = json.loads(line)
        return answer


def prompts(data: Path | None) -> list[list[dict[str, str]]]:
    """Conversations of one turn; the same ones in every run."""
    if data is not None:
        found = [json.loads(line) for line in data.read_text().splitlines()]
        texts = [row["turns"][0] if "turns" in row else row["prompt"] for row in found][:PROMPTS]
    else:
        draw = random.Random(0)
        texts = [_words(draw, _length(draw)) for _ in range(PROMPTS)]
    return [[{"role": "user", "content": text}] for text in texts]


def _words(draw: random.Random, count: int) -> str:
    return " ".join(f"w{draw.randrange(WORDS)}" for _ in range(count))


def _length(draw: random.Random) -> int:
    """Short prompts are the more common ones."""
    return int(SHORTEST * (LONGEST / SHORTEST) ** draw.random())
