"""Do both trainers compute the same? One gradient, and the losses of many steps.

Away from initialisation, where a mistake shows: the reference is another model than the policy,
so rewards and margins are not zero.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import load_file

from tests.benchmarks.models import SMALL
from tests.benchmarks.rows import Ranking
from tests.benchmarks.suite import Suite, make_suite
from tests.benchmarks.variants import BEST, DEFAULT, PRECOMPUTED, PREFLOOP

STEPS = 32
BATCHES = 8
FAST = {"learning_rate": 5e-4}  # far in 32 steps
STILL = {"learning_rate": 1e-30}  # below what fp32 weights can follow
OURS_STILL = replace(PREFLOOP, settings=STILL)
OURS_FAST = replace(PREFLOOP, settings=FAST)
TRL_FAST = replace(BEST, settings=PRECOMPUTED | FAST)


def one_step(folder: Path, pool: Sequence[Ranking]) -> Suite:
    """Batches of 8 pairs."""
    return _suite("one step", folder, pool, size=8, steps=BATCHES)


def many_steps(folder: Path, pool: Sequence[Ranking]) -> Suite:
    """32 batches of 4 pairs."""
    return _suite("32 steps", folder, pool, size=4, steps=STEPS)


def _suite(name: str, folder: Path, pool: Sequence[Ranking], *, size: int, steps: int) -> Suite:
    return make_suite(
        name,
        folder,
        pool,
        size=size,
        steps=steps,
        warmup=0,
        shape=SMALL,
        other_reference=True,
    )


def step_differences(suite: Suite) -> tuple[float, float]:
    """|loss difference|, the median of all batches; relative L2 difference of one's gradients.

    A loss is rounded like the logps it is made of, which are sums of hundreds in fp32: batch by
    batch either trainer is up to 2e-6 from the exact value, so one batch alone says little.
    """
    ours, theirs = suite.folder / "ours.safetensors", suite.folder / "trl.safetensors"
    losses = suite.result(OURS_STILL, gradient=ours)["losses"]
    trl_losses = suite.result(DEFAULT, gradient=theirs)["losses"]
    gradient = relative_difference(load_file(ours), load_file(theirs))
    return median(recorded(suite, losses, trl_losses)), gradient


def loss_difference(suite: Suite) -> float:
    """The largest |loss difference| of all steps."""
    losses = suite.result(OURS_FAST)["losses"]
    trl_losses = suite.result(TRL_FAST)["losses"]
    return max(recorded(suite, losses, trl_losses))


def recorded(suite: Suite, ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """The differences of all steps, which the report keeps."""
    apart = differences(ours, theirs)
    suite.runs.append({"suite": suite.name, "losses": list(ours), "loss_differences": apart})
    return apart


def differences(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Step by step, without sign."""
    return [abs(a - b) for a, b in zip(ours, theirs, strict=True)]


def relative_difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """‖ours − theirs‖ / ‖theirs‖ over all parameters together; both must name the same ones."""
    if ours.keys() != theirs.keys():
        raise SystemExit(f"not the same parameters: {sorted(ours.keys() ^ theirs.keys())}")
    apart = sum(float((ours[name].double() - theirs[name]).pow(2).sum()) for name in ours)
    return math.sqrt(apart / sum(float(value.double().pow(2).sum()) for value in theirs.values()))
