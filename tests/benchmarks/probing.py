"""Probes as the worker writes them: without them a batch by vLLM is refused."""

import subprocess
import sys
from pathlib import Path

from jobs.run_dir import read_jsonl, write_jsonl
from tests.benchmarks.environment import ROOT

Named = dict[str, tuple[Path, Path | None]]  # a policy's id, its model, its adapter


def write_probes(run_dir: Path, named: Named, dtype: str) -> None:
    """What the trainer's program says of the policies, into probes.jsonl."""
    rows = []
    for id, (model, adapter) in named.items():
        file = run_dir / f"probes-{id}.jsonl"
        given = ["--policy", str(model), "--dtype", dtype]
        given += ["--adapter", str(adapter)] if adapter else []
        finish([sys.executable, "-m", "training.trainer", "probe", str(file), *given])
        rows += [{"policy": id, **row} for row in read_jsonl(file)]
    write_jsonl(run_dir / "probes.jsonl", rows)


def finish(command: list[str]) -> None:
    """Run a program; its output ends the benchmark where it fails."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{done.stderr[-3000:]}\n{' '.join(command[1:4])} failed (its output is above)")
