"""Probes of a batch's policies: who scores them, where, and when they are scored again."""

import shutil
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from generation import probing
from generation.probing import write_probes
from jobs import queue
from jobs.run_dir import read_jsonl, write_json
from jobs.running import JobFailed, RunningJob

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _trainer(settings, tmp_path: Path, monkeypatch) -> None:
    """A shell script stands in for the trainer's interpreter; it notes the GPUs that it sees."""
    settings.RUNS_DIR = tmp_path / "runs"
    script = tmp_path / "python"
    lines = [
        "#!/bin/sh",
        f'echo "GPUs:$CUDA_VISIBLE_DEVICES" >> {tmp_path}/calls',
        """echo '{"prompt": [1], "response": [2], "logp": -1.5, "base_logp": null}' > $4""",
    ]
    script.write_text("\n".join(lines) + "\n")
    script.chmod(stat.S_IRWXU)
    settings.TRAINER_PYTHON = str(script)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")


@pytest.fixture
def job() -> RunningJob:
    queue.enqueue(kind="test.probing", payload={}, lane="light")
    claimed = queue.claim(lanes=["light"], worker="here")
    assert claimed is not None
    return RunningJob(claimed, threading.Event())


def calls(tmp_path: Path) -> list[str]:
    path = tmp_path / "calls"
    return path.read_text().splitlines() if path.exists() else []


def begun(tmp_path: Path, name: str, *, sampler: str = "vllm", adapter: str | None = None) -> Path:
    """A run directory whose policy's model is in `tmp_path`."""
    run_dir, model = tmp_path / name, tmp_path / "model"
    run_dir.mkdir()
    if not model.exists():
        model.mkdir()
        (model / "model.safetensors").write_bytes(b"first weights")
    policy = {"id": "7", "model": str(model), "adapter": adapter, "digest": "d" * 64}
    server: dict[str, Any] | None = None
    if sampler == "server":
        server = {"urls": ["http://127.0.0.1:9"], "key_file": None, "unproven": False}
    spec = {"sampler": sampler, "policies": [policy], "dtype": "float32", "server": server}
    write_json(run_dir / "spec.json", spec)
    return run_dir


@pytest.mark.parametrize(("sampler", "gpus"), [("vllm", "GPUs:0"), ("server", "GPUs:")])
def test_where_servers_write_probing_takes_no_gpu_from_a_round(
    tmp_path: Path, job: RunningJob, sampler: str, gpus: str
) -> None:
    run_dir = begun(tmp_path, "one", sampler=sampler)
    write_probes(job, run_dir)
    assert calls(tmp_path) == [gpus]
    (row,) = read_jsonl(run_dir / "probes.jsonl")
    assert (row["policy"], row["logp"]) == ("7", -1.5)


def test_a_policy_is_scored_once_and_again_when_its_base_is_another(
    tmp_path: Path, job: RunningJob, monkeypatch
) -> None:
    for name in ("one", "two"):
        write_probes(job, begun(tmp_path, name, adapter="/nowhere"))
    assert len(calls(tmp_path)) == 1
    (tmp_path / "model" / "model.safetensors").write_bytes(b"other weights")
    write_probes(job, begun(tmp_path, "three", adapter="/nowhere"))
    assert len(calls(tmp_path)) == 2
    monkeypatch.setattr(probing, "PROBES_VERSION", probing.PROBES_VERSION + 1)
    write_probes(job, begun(tmp_path, "four", adapter="/nowhere"))
    assert len(calls(tmp_path)) == 3


def test_a_base_that_is_gone_is_named(tmp_path: Path, job: RunningJob) -> None:
    run_dir = begun(tmp_path, "one", adapter="/nowhere")
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(JobFailed, match="model cannot be read: No such file"):
        write_probes(job, run_dir)


def test_the_transformers_sampler_needs_no_probes(tmp_path: Path, job: RunningJob) -> None:
    run_dir = begun(tmp_path, "one", sampler="transformers")
    write_probes(job, run_dir)
    assert (calls(tmp_path), (run_dir / "probes.jsonl").exists()) == ([], False)
