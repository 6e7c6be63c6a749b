"""How long a round will take and how much memory it needs, as ranges, and on what that stands.

From the sizes in the model's files, the lengths of the newest pairs, and the speed and memory that
the project's last round of the same kind had. Without such a round the range is wide, for then only
the machine's number of processors, or that it has a GPU, is known.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from jobs.machine import has_gpu
from labeling.models import Policy, Project
from training.events import Events, at, read_events
from training.material import PairCounts, Sample
from training.metrics import Metrics, read_metrics
from training.models import Round
from training.sizes import ModelSize, model_size
from training.trainer.config import DEFAULTS

CHARACTERS_A_TOKEN = 4.0  # of English; a round of the project tells the truth
ROUNDS_LOOKED_AT = 5
FEW_STEPS = 3
GIB = 2**30
# Floating-point operations a second that training reaches: a processor core, a GPU.
CORE, GPU = (4e9, 4e10), (2e13, 3e14)
# Operations a parameter and token: forward and backward; an adapter needs no gradient of the rest.
WORK = {"full": 6.0, "lora": 4.0}
FORWARD = 2.0
PACK = {False: 1024, True: 16384}  # tokens of a pass on a CPU, on a GPU (training.trainer.model)
# Numbers a token, layer and unit of width that a pass keeps for its gradients.
KEPT = 24.0
FIXED = (0.4 * GIB, 1.0 * GIB)  # libraries, the vocabulary's part of a pass
STARTING_S = (5.0, 60.0)  # loading, sampling before and after, writing the policy


class Range(NamedTuple):
    """From, to."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """`like` is the round whose speed it stands on; None where it is a guess from the sizes."""

    parameters: int
    steps: int
    tokens: int  # to train on, of all epochs
    seconds: Range
    memory: Range  # bytes
    like: Round | None
    gpu: bool
    cores: int
    tokens_known: bool  # whether a round's own tokens were counted, or characters divided


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """A round of the same method on a model of the same size, as it ran."""

    round: Round
    tokens_per_s: float
    memory: float | None


def estimate(
    project: Project,
    policy: Policy,
    options: Mapping[str, Any],
    *,
    pairs: PairCounts,
    sample: Sample,
) -> Estimate | None:
    """What a round with these options would take; None where there is nothing to tell it from."""
    size = model_size(Path(policy.model_path))
    if size is None or not sample.train or not pairs.train:
        return None
    chosen = DEFAULTS | {name: value for name, value in options.items() if value is not None}
    rounds = _rounds(project)
    characters, known = _characters_a_token(rounds, sample)
    groups = math.ceil(pairs.train * sample.comparisons / sample.train)
    a_group = _tokens_a_group(sample, characters, int(chosen["max_length"]))
    epochs, per_step = int(chosen["epochs"]), int(chosen["batch_groups"])
    steps = math.ceil(groups / per_step) * epochs
    tokens = groups * a_group * epochs
    held_out = a_group * groups * pairs.held_out / pairs.train
    looks = 1 + steps / int(chosen["eval_every"])
    # Scoring under the reference, and looking at held-out pairs, are forward passes alone.
    forward = groups * a_group + held_out * (1 + looks)
    method = str(chosen["method"])
    seen = _seen(rounds, method, size)
    work = tokens + forward * FORWARD / WORK[method]
    return Estimate(
        parameters=size.parameters,
        steps=steps,
        tokens=round(tokens),
        seconds=_seconds(work, seen, WORK[method] * size.parameters),
        memory=_memory(chosen, size, seen),
        like=seen.round if seen else None,
        gpu=has_gpu(),
        cores=os.cpu_count() or 1,
        tokens_known=known,
    )


def _rounds(project: Project) -> list[tuple[Round, Metrics, Events]]:
    """The project's last rounds that took a few steps, as they ran."""
    last = project.rounds.select_related("start").order_by("-number")[:ROUNDS_LOOKED_AT]
    read = [
        (one, read_metrics(Path(one.run_dir)), read_events(Path(one.run_dir)))
        for one in last
        if one.run_dir
    ]
    return [(one, metrics, events) for one, metrics, events in read if len(metrics.steps) > 1]


def _characters_a_token(
    rounds: list[tuple[Round, Metrics, Events]], sample: Sample
) -> tuple[float, bool]:
    """How many characters a token has in this project, and whether a round has told."""
    for _round, _metrics, events in rounds:
        lengths = [at(events.report, "lengths", name) for name in ("chosen", "rejected")]
        told = [length for length in lengths if isinstance(length, (int, float))]
        characters = (sample.chosen_length or 0) + (sample.rejected_length or 0)
        if len(told) == 2 and sum(told) > 0 and characters:
            return characters / sum(told), True
    return CHARACTERS_A_TOKEN, False


def _tokens_a_group(sample: Sample, characters: float, most: int) -> float:
    """A prompt, once, and its responses."""
    prompt = (sample.prompt_length or 0) / characters
    response = ((sample.chosen_length or 0) + (sample.rejected_length or 0)) / 2 / characters
    responses = sample.responses / max(1, sample.comparisons)
    return min(prompt, most) + responses * max(1.0, min(response, most))


def _seen(
    rounds: list[tuple[Round, Metrics, Events]], method: str, size: ModelSize
) -> _Seen | None:
    for one, metrics, _events in rounds:
        if one.options.get("method") != method or model_size(Path(one.start.model_path)) != size:
            continue
        speeds = [row["tokens_per_s"] for row in metrics.steps if row.get("tokens_per_s", 0) > 0]
        if len(speeds) < FEW_STEPS:
            continue
        memory = [row["memory_mb"] for row in metrics.steps if "memory_mb" in row]
        used = max(memory) * 2**20 if memory else None
        return _Seen(round=one, tokens_per_s=median(speeds), memory=used)
    return None


def _seconds(work: float, seen: _Seen | None, operations: float) -> Range:
    if seen is not None:
        expected = work / seen.tokens_per_s
        return Range(0.8 * expected + STARTING_S[0], 1.4 * expected + STARTING_S[1])
    slow, fast = GPU if has_gpu() else (speed * (os.cpu_count() or 1) for speed in CORE)
    needed = work * operations
    return Range(needed / fast + STARTING_S[0], needed / slow + STARTING_S[1])


def _memory(options: Mapping[str, Any], size: ModelSize, seen: _Seen | None) -> Range:
    if seen is not None and seen.memory is not None:
        return Range(0.9 * seen.memory, 1.3 * seen.memory)
    number = 2 if options["dtype"] == "bfloat16" else 4
    if options["method"] == "full":
        weights = 16.0 * size.parameters  # single precision: weights, gradients, Adam's two
    else:
        weights = 1.05 * number * size.parameters
    layers = 2 if options["activation_checkpointing"] else size.layers
    tokens = options["pack_tokens"] or PACK[has_gpu()]
    kept = KEPT * number * tokens * layers * size.width
    return Range(FIXED[0] + weights + 0.5 * kept, FIXED[1] + 1.2 * weights + 1.5 * kept)
