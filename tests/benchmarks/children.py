"""One measured run, in a process of its own, with the same threads and allocator on both sides."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.benchmarks.environment import ROOT, trl_python

# One thread, and the C library's allocator as it comes but with one arena: what freed blocks it
# keeps then depends on what was asked of it, not on which helper thread asked.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
_numbers = itertools.count(1)


def run_ours(job: dict[str, Any], folder: Path, *, gpu: bool = False) -> dict[str, Any]:
    """A job for ours.py, done by the Python that runs this."""
    return _run(sys.executable, "ours", job, folder, gpu=gpu)


def run_trl(job: dict[str, Any], folder: Path, *, gpu: bool = False) -> dict[str, Any]:
    """A job for trl_child.py, done in TRL's environment."""
    return _run(str(trl_python()), "trl_child", job, folder, gpu=gpu)


def _run(
    python: str, module: str, job: dict[str, Any], folder: Path, *, gpu: bool
) -> dict[str, Any]:
    name = f"{next(_numbers):03}-{module}"
    files = {kind: folder / f"{name}.{kind}" for kind in ("job", "result", "log")}
    files["job"].write_text(json.dumps(job | {"result": str(files["result"])}))
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    environment = (
        inherited | ENVIRONMENT | {"HF_HOME": str(folder / "hf")} | ({} if gpu else NO_GPU)
    )
    command = [python, "-m", f"tests.benchmarks.{module}", str(files["job"])]
    with files["log"].open("w") as log:
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    if done.returncode:
        tail = files["log"].read_text()[-3000:]
        sys.exit(f"{tail}\n{name} failed (its output is above)")
    result: dict[str, Any] = json.loads(files["result"].read_text())
    return result
