"""Our trainer over given rows, in a process of its own: `… ours JOB.json`.

A run directory made by the program's `init`, then the loop's own `start` and `train`, watched.
The job: `policy` (a folder), `preferences` (a file), `run_dir`, `settings` (of the spec),
`warmup` (steps), `gradient` (a file to write the first step's gradient to, or null), `result` (a
file). Matrix products are measured before and after.
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import save_file
from transformers.models.llama import modeling_llama  # noqa: F401 (imported before memory counts)

from jobs.run_dir import StopRequest, read_jsonl
from tests.benchmarks.encoding import make_run_dir
from tests.benchmarks.meters import Meter, matmul_peak
from training.trainer import loop, step
from training.trainer.__main__ import keep_freed_memory
from training.trainer.batches import Batch
from training.trainer.evaluate import Scored
from training.trainer.run_dir import RoundFiles, library_versions
from training.trainer.state import Round


def main(job: dict[str, Any]) -> None:
    """Do the job and write its result."""
    torch.set_num_threads(1)
    keep_freed_memory()  # as the program does
    meter = Meter()
    peaks = [measured_peak(job)]
    began = time.process_time()
    files = RoundFiles(Path(job["run_dir"]))
    make_run_dir(files.root, Path(job["policy"]), Path(job["preferences"]), job["settings"])
    stop = StopRequest()
    round_ = loop.start(files, stop)
    start_cpu_s = time.process_time() - began
    with watched(meter, job["gradient"] and Path(job["gradient"])):
        meter.start()
        loop.train(round_, stop)
    result = meter.result(job["warmup"])
    peaks += [measured_peak(job)]
    Path(job["result"]).write_text(
        json.dumps(
            result
            | {"start_cpu_s": start_cpu_s, "versions": library_versions(), "peaks": peaks}
            | {"losses": [row["loss"] for row in read_jsonl(files.metrics) if "loss" in row]}
        )
    )


def measured_peak(job: dict[str, Any]) -> float:
    """Operations a second of matrix products in the dtype that the job computes in."""
    return matmul_peak(getattr(torch, job["settings"].get("dtype", "float32")))


@contextmanager
def watched(meter: Meter, gradient: Path | None) -> Iterator[None]:
    """Within, the end of each step is marked and the first gradient kept; no step is changed."""

    def take_step(*arguments: Any) -> None:
        step.take_step(*arguments)
        meter.mark()

    def accumulate(round_: Round, batch: Batch) -> list[Scored]:
        scored = plain(round_, batch)
        if gradient and not gradient.exists():
            save_file(gradients(round_), gradient)
        return scored

    plain = step.accumulate
    with patch.object(loop, "take_step", take_step), patch.object(step, "accumulate", accumulate):
        yield


def gradients(round_: Round) -> dict[str, torch.Tensor]:
    """By the names of the model's parameters."""
    return {name: p.grad for name, p in round_.policy.trainable().items() if p.grad is not None}


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
