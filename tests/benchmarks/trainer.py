"""`python -m tests.benchmarks trainer`: the DPO trainer against TRL's DPOTrainer.

On the CPU in fp32 with one thread; where there is a GPU, in bf16 on it as well. What is compared
and how stands in docs/benchmarks/README.md.
"""

import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.benchmarks import gpu, parity
from tests.benchmarks.children import ENVIRONMENT
from tests.benchmarks.environment import PINS, data_folder, trl_python
from tests.benchmarks.models import LARGE_VOCABULARY, SMALL
from tests.benchmarks.report import Figure, Options, Report
from tests.benchmarks.rows import (
    HH_LIKE,
    LONG_ANSWERS,
    LONG_PROMPTS,
    Lengths,
    Ranking,
    made_rankings,
    read_rankings,
    shortest,
)
from tests.benchmarks.suite import Measured, make_suite
from tests.benchmarks.variants import (
    ACCUMULATED,
    BEST,
    DEFAULT,
    GROUPED,
    MAX_LENGTH,
    PREFLOOP,
    RANKED_MAX_LENGTH,
    Variant,
    ranked,
)

POOL = 2000  # rankings; batches are samples of these


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is measured. A turn runs every variant once."""

    steps: int  # timed, of a run
    turns: int
    long_steps: int  # of the suites whose steps are long
    long_turns: int
    tuned: Sequence[Variant]  # TRL's tuned variants
    short: bool  # warm up, and compare losses, on the shortest rows


FULL = Effort(
    steps=6, turns=4, long_steps=2, long_turns=2, tuned=(ACCUMULATED, GROUPED), short=False
)
QUICK = Effort(steps=2, turns=1, long_steps=1, long_turns=1, tuned=(ACCUMULATED,), short=True)


def measure(options: Options) -> Report:
    """All figures; raises SystemExit with its output where a run fails."""
    effort = QUICK if options.quick else FULL
    pairs = read_rankings(options.data, max_length=MAX_LENGTH) if options.data else made(HH_LIKE)
    data_folder().mkdir(parents=True, exist_ok=True)
    trl_python()
    with tempfile.TemporaryDirectory(prefix="bench-", dir=data_folder()) as name:
        folder = Path(name)
        parts = [
            untimed(folder, pairs, effort),
            on_pairs(folder, pairs, effort),
            on_rankings(folder, "long_prompts", LONG_PROMPTS, ">=20", effort),
            on_rankings(folder, "long_answers", LONG_ANSWERS, ">=10", effort),
        ]
        if torch.cuda.is_available():
            parts.append(gpu.measured(folder, pairs))
    return Report(
        title="Our trainer against TRL's DPOTrainer",
        figures=[figure for part in parts for figure in part.figures],
        settings={
            "rows": str(options.data.name) if options.data else "generated",
            "quick": options.quick,
            "environment": ENVIRONMENT,
            "trl_environment": PINS,
            "suites": {name: made for part in parts for name, made in part.settings.items()},
        },
        runs=[run for part in parts for run in part.runs],
    )


def made(lengths: Lengths, *, max_length: int = MAX_LENGTH) -> list[Ranking]:
    """The generated rows."""
    return made_rankings(lengths, POOL, max_length=max_length)


def untimed(folder: Path, pairs: Sequence[Ranking], effort: Effort) -> Measured:
    """What no clock is read for, two processes at a time: equal numbers, and the memory of a
    large vocabulary, where logits are most of it."""
    one = parity.one_step(folder / "one-step", pairs)
    many = parity.many_steps(folder / "steps", shortest(pairs, 128) if effort.short else pairs)
    large = make_suite(
        "vocabulary 128k",
        folder / "vocabulary",
        pairs,
        size=4,
        steps=effort.long_steps,
        shape=LARGE_VOCABULARY,
        short_warmup=effort.short,
    )
    with ThreadPoolExecutor(2) as pool:
        variants = [PREFLOOP, DEFAULT]
        memory = pool.submit(large.run, variants, turns=1)
        differences = pool.submit(parity.step_differences, one)
        steps = pool.submit(parity.loss_difference, many)
    memory.result()
    loss, gradient = differences.result()
    away, fast = "8 pairs, policy is not reference", "4 pairs a step, learning rate 5e-4"
    several = f"{away}, median of {parity.BATCHES} batches"
    part = large.measured(
        variants,
        Figure("loss_diff_step", loss, "<=1e-6", several, "compute_loss, fp32"),
        Figure("grad_diff_rel", gradient, "<=1e-5", away, "its gradient, fp32"),
        Figure("loss_diff_32_steps", steps.result(), "<=5e-5", fast, "precomputed reference, fp32"),
        large.memory("memory_vs_trl_vocab128k", DEFAULT, "<=0.25"),
    )
    part.settings[one.name] = one.settings([parity.OURS_STILL, DEFAULT])
    part.settings[many.name] = many.settings([parity.OURS_FAST, parity.TRL_FAST])
    part.runs += one.runs + many.runs
    return part


def on_pairs(folder: Path, pairs: Sequence[Ranking], effort: Effort) -> Measured:
    """Speed, memory, and the share of what the machine can do."""
    variants = [PREFLOOP, DEFAULT, BEST, *effort.tuned]
    suite = make_suite(
        "pairs",
        folder / "pairs",
        pairs,
        size=8,
        steps=effort.steps,
        shape=SMALL,
        short_warmup=effort.short,
    )
    suite.run(variants, turns=effort.turns)
    fastest = max(effort.tuned, key=lambda each: suite.median(each, "tokens_per_s"))
    share = suite.median(PREFLOOP, "peak_share")
    return suite.measured(
        variants,
        suite.speed("speed_vs_trl_default", DEFAULT, ">=6"),
        suite.speed("speed_vs_trl_precomputed", BEST, ">=4"),
        suite.speed("speed_vs_trl_tuned", fastest, ">=2.1"),
        suite.memory("memory_vs_trl_default", DEFAULT, "<=0.35"),
        Figure("matmul_peak_share", share, ">=0.70", suite.what(PREFLOOP), "fp32 linear, best"),
    )


def on_rankings(folder: Path, name: str, lengths: Lengths, bound: str, effort: Effort) -> Measured:
    """4-way rankings, which TRL trains on as six pairs each."""
    rows = made(lengths, max_length=RANKED_MAX_LENGTH)
    ours, theirs = ranked(PREFLOOP), ranked(DEFAULT)
    suite = make_suite(
        name,
        folder / name,
        rows,
        size=4,
        steps=effort.long_steps,
        shape=SMALL,
        short_warmup=effort.short,
        ours=ours,
    )
    suite.run([ours, theirs], turns=effort.long_turns)
    figure = suite.speed(f"speed_vs_trl_4way_{name}", theirs, bound, ours=ours)
    return suite.measured([ours, theirs], figure)
