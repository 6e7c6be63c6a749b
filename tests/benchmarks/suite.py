"""A suite: one model and one set of rows, trained on by us and by TRL's variants in turns."""

import itertools
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks import encoding
from tests.benchmarks.children import run_ours, run_trl
from tests.benchmarks.flops import pair_tokens, step_flops
from tests.benchmarks.models import Shape, write_model
from tests.benchmarks.report import Figure
from tests.benchmarks.rows import Ranking, by_length, fair_sample, shortest
from tests.benchmarks.variants import PREFLOOP, Variant, arguments

GROUPED = {False: "shuffled", True: "grouped"}  # the names of the rows' files


@dataclass(kw_only=True)
class Measured:
    """A part of a report: figures, the settings of its suites by name, and their runs."""

    figures: list[Figure]
    settings: dict[str, Any] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)


@dataclass(kw_only=True)
class Suite:
    """Batches of `size` rankings over a model; `runs` holds what was measured."""

    name: str
    folder: Path
    shape: Shape
    size: int
    batches: dict[bool, encoding.Batches]  # True: the length-grouped rows
    warmup: int  # steps before the clock starts
    other_reference: bool
    gpu: bool
    runs: list[dict[str, Any]] = field(default_factory=list)

    def run(self, variants: Sequence[Variant], *, turns: int) -> None:
        """Every variant once a turn, forward and backward by turns (ABBA)."""
        for turn in range(turns):
            for variant in variants[:: -1 if turn % 2 else 1]:
                run = self.measure(variant)
                numbers = f"{run['tokens_per_s']:.0f} tokens/s, {run['memory_mb']:.0f} MiB"
                print(f"  {self.name}, {variant.name}: {numbers}", flush=True)

    def measure(self, variant: Variant) -> dict[str, Any]:
        """One run of one variant, recorded with what follows from its rows and its time."""
        result = self.result(variant)
        timed = encoding.lengths(
            list(itertools.chain(*self.batches[variant.grouped][self.warmup :]))
        )
        seconds = result["wall_s" if self.gpu else "cpu_s"]
        flops = step_flops(self.shape, timed) / seconds
        speed = {"tokens_per_s": pair_tokens(timed) / seconds, "flops": flops}
        share = {"peak_share": flops / max(result["peaks"])} if "peaks" in result else {}
        self.runs.append({"suite": self.name, "variant": variant.name} | speed | share | result)
        return self.runs[-1]

    def result(self, variant: Variant, *, gradient: Path | None = None) -> dict[str, Any]:
        """What a variant's process answers; with `gradient` TRL computes that alone."""
        settings = self.arguments(variant)
        rows = self.folder / GROUPED[variant.grouped]
        job: dict[str, Any] = {"warmup": self.warmup, "gradient": gradient and str(gradient)}
        model, other = (str(self.folder / name) for name in ("model", "reference"))
        reference = other if self.other_reference else None
        if variant.trl:
            job |= {"model": model, "reference": reference, "rows": f"{rows}.trl.jsonl"}
            job |= {"config": settings | {"output_dir": str(self.folder / "trl")}}
            return run_trl(job, self.folder, gpu=self.gpu)
        if reference:
            settings |= {"reference": {"model": reference, "adapter": None}}
        run_dir = self.folder / "run"
        shutil.rmtree(run_dir, ignore_errors=True)
        job |= {"policy": model, "preferences": f"{rows}.preferences.jsonl"}
        job |= {"run_dir": str(run_dir), "settings": settings}
        return run_ours(job, self.folder, gpu=self.gpu)

    def arguments(self, variant: Variant) -> dict[str, Any]:
        """All that is set for a variant here."""
        pairs = len(self.batches[False][0][0].pairs)
        return arguments(variant, groups=self.size, pairs=pairs)

    def settings(self, variants: Sequence[Variant]) -> dict[str, Any]:
        """What the suite is made of, and all that is set for each variant."""
        groups = list(itertools.chain(*self.batches[False][self.warmup :]))
        prompts, responses = zip(*encoding.lengths(groups), strict=True)
        return {
            "model": asdict(self.shape),
            "rankings_a_step": self.size,
            "responses_a_ranking": len(groups[0].responses),
            "steps": len(self.batches[False]) - self.warmup,
            "warmup_steps": self.warmup,
            "reference": "other random weights" if self.other_reference else "the policy's start",
            "mean_prompt_tokens": round(statistics.mean(prompts)),
            "mean_response_tokens": round(statistics.mean(itertools.chain(*responses))),
            "variants": {variant.name: self.arguments(variant) for variant in variants},
        }

    def speed(self, name: str, theirs: Variant, bound: str, *, ours: Variant = PREFLOOP) -> Figure:
        """Our tokens/s over theirs."""
        value = self.ratio(ours, theirs, "tokens_per_s")
        return Figure(name, value, bound, self.what(ours), self.what(theirs))

    def memory(self, name: str, theirs: Variant, bound: str) -> Figure:
        """Our peak memory in training over theirs."""
        value = self.ratio(PREFLOOP, theirs, "memory_mb")
        return Figure(name, value, bound, self.what(PREFLOOP), self.what(theirs))

    def what(self, variant: Variant) -> str:
        """A variant in a few words; `settings` has all of it."""
        pairs = len(self.batches[False][0][0].pairs)
        rows = f"{self.size} pairs" if pairs == 1 else f"{self.size} x {pairs} pairs"
        return f"{rows} a step, {variant.words}"

    def measured(self, variants: Sequence[Variant], *figures: Figure) -> Measured:
        """The suite's part of the report."""
        return Measured(
            figures=list(figures), settings={self.name: self.settings(variants)}, runs=self.runs
        )

    def median(self, variant: Variant, key: str) -> float:
        """Over the runs of a variant."""
        values = [run[key] for run in self.runs if run["variant"] == variant.name]
        return float(statistics.median(values))

    def ratio(self, a: Variant, b: Variant, key: str) -> float:
        """Of two variants' medians."""
        return self.median(a, key) / self.median(b, key)


def make_suite(
    name: str,
    folder: Path,
    pool: Sequence[Ranking],
    *,
    size: int,
    steps: int,
    shape: Shape,
    warmup: int = 1,
    short_warmup: bool = False,
    other_reference: bool = False,
    gpu: bool = False,
    ours: Variant = PREFLOOP,
) -> Suite:
    """`steps` batches that stand for a pool, written for both sides, after `warmup` others.

    A short warm-up, on the shortest rows, leaves the first timed step to ask for most memory. The
    reference is the policy as it starts, or a model of the same shape with other weights.
    """
    if len(pool) < size * (warmup + steps):
        raise SystemExit(f"{len(pool)} rows are too few for {warmup + steps} batches of {size}")
    folder.mkdir()
    write_model(shape, folder / "model")
    if short_warmup:
        first = shortest(pool, size * warmup)
    else:
        first = fair_sample(pool, size=size, count=warmup)
    rows = {
        False: first + fair_sample(pool, size=size, count=steps),
        True: first + by_length(pool, size=size, count=steps),
    }
    settings = arguments(ours, groups=size, pairs=1)
    batches = {
        grouped: encoding.write_rows(folder, name, rows[grouped], settings)
        for grouped, name in GROUPED.items()
    }
    if other_reference:
        write_model(shape, folder / "reference", seed=1)
    return Suite(
        name=name,
        folder=folder,
        shape=shape,
        size=size,
        batches=batches,
        warmup=warmup,
        other_reference=other_reference,
        gpu=gpu,
    )
