"""The same comparison on a GPU: bf16, a model of a billion parameters, torch.compile.

Never run where there is no GPU; docs/benchmarks/README.md says whether it has been run at all.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from tests.benchmarks.models import ONE_BILLION, SMALL
from tests.benchmarks.parity import differences
from tests.benchmarks.report import Figure
from tests.benchmarks.rows import Ranking
from tests.benchmarks.suite import Measured, Suite, make_suite
from tests.benchmarks.variants import ACCUMULATED, BEST, DEFAULT, GROUPED, PREFLOOP, Variant

WARMUP = 4  # steps; compiling and choosing kernels take more than one
STEPS = 8
TURNS = 4
# Dense bf16 tensor-core operations a second, by the vendors' data sheets.
NOMINAL = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12}

HALF = {"dtype": "bfloat16"}
BF16 = replace(PREFLOOP, words="bf16", settings=HALF)
COMPILED = replace(
    BF16, name="ours compiled", words="bf16, compile", settings=HALF | {"compile": True}
)
TRL_DEFAULT, TRL_BEST, TRL_ACCUMULATED, TRL_GROUPED = (
    replace(variant, settings={**variant.settings, "bf16": True})
    for variant in (DEFAULT, BEST, ACCUMULATED, GROUPED)
)


def measured(folder: Path, pairs: Sequence[Ranking]) -> Measured:
    """Speed, memory, model FLOPs utilisation, the gain from compiling, and bf16's error."""
    variants = [BF16, COMPILED, TRL_DEFAULT, TRL_BEST, TRL_ACCUMULATED, TRL_GROUPED]
    suite = make_suite(
        "gpu",
        folder / "gpu",
        pairs,
        size=8,
        steps=STEPS,
        shape=ONE_BILLION,
        warmup=WARMUP,
        gpu=True,
    )
    suite.run(variants, turns=TURNS)
    best = max((BF16, COMPILED), key=lambda each: suite.median(each, "flops"))
    tuned = max(variants[3:], key=lambda each: suite.median(each, "tokens_per_s"))
    return suite.measured(
        variants,
        suite.speed("gpu_speed_vs_trl_default", TRL_DEFAULT, ">=3.5", ours=best),
        suite.speed("gpu_speed_vs_trl_tuned", tuned, ">=1.5", ours=best),
        suite.memory("gpu_memory_vs_trl_default", TRL_DEFAULT, ""),
        suite.speed("gpu_compile_speedup", BF16, "", ours=COMPILED),
        *utilisation(suite, best),
        deviation(folder / "bf16", pairs),
    )


def utilisation(suite: Suite, ours: Variant) -> list[Figure]:
    """Useful model FLOPs over what a large bf16 product reaches, and over the nominal peak."""
    name = torch.cuda.get_device_name()
    share = suite.median(ours, "peak_share")
    figures = [Figure("gpu_mfu_of_measured_peak", share, "", ours.name, "bf16 linear, best")]
    nominal = next((peak for key, peak in NOMINAL.items() if key in name), None)
    if nominal:
        value = suite.median(ours, "flops") / nominal
        figures.append(Figure("gpu_mfu", value, ">=0.35", ours.name, f"{name}, nominal"))
    return figures


def deviation(folder: Path, pairs: Sequence[Ranking]) -> Figure:
    """How far our bf16 losses are from our fp32 ones, against how far TRL's bf16 losses are."""
    suite = make_suite(
        "bf16",
        folder,
        pairs,
        size=8,
        steps=STEPS,
        shape=SMALL,
        other_reference=True,
        gpu=True,
    )
    exact = suite.result(PREFLOOP)["losses"]
    ours, theirs = (
        max(differences(suite.result(variant)["losses"], exact)) for variant in (BF16, TRL_DEFAULT)
    )
    return Figure("gpu_bf16_deviation_vs_trl", ours / theirs, "<=1", "bf16, fp32 logps", "bf16")
