"""The whole loop with vLLM's real engine, by the command that a stranger types."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.config.test_demo import ROOT, free_port
from tests.generation.samplers.vllm_env import vllm_python

LIMIT_S = 30 * 60


@pytest.mark.slow
def test_the_loop_closes_with_vllm(tmp_path: Path) -> None:
    vllm_python()  # skips where there is none
    from training.trainer.starter import Recipe, Shape, build

    # The demo builds its own where there is none, in two minutes; tests/training has that.
    shape = Shape(vocabulary=1000, width=64, layers=2, heads=2, inner_width=128)
    build(tmp_path / "data" / "models" / "starter", recipe=Recipe(epochs=2, shape=shape))
    table = tmp_path / "table.json"
    command = ["demo", "--headless", "--sampler", "vllm", "--no-bootstrap"]
    # Too small and too few to tell whether the policy became better: that takes minutes more.
    command += ["--rounds", "1", "--prompts", "96"]
    command += ["--port", str(free_port()), "--data", str(tmp_path / "data"), "--json", str(table)]
    done = subprocess.run(
        [sys.executable, "manage.py", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert table.exists(), f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    before, after = json.loads(table.read_text())["rounds"]
    better = after["preferred_share"] > before["preferred_share"]
    assert done.returncode == (0 if better else 1), done.stderr[-2000:]
    assert 0 < after["reward_accuracy"] <= 1
    assert after["loss_step0"] == pytest.approx(0.693147, abs=1e-5)
    runs = tmp_path / "data" / "runs"
    for run_dir in sorted(runs.glob("batch-*")):
        manifest = json.loads((run_dir / "manifest.json").read_text())
        assert manifest["engine"].startswith("vllm ")
        events = [json.loads(line) for line in (run_dir / "events.jsonl").read_bytes().splitlines()]
        (loaded,) = [event for event in events if event["kind"] == "loaded"]
        assert all(difference < 1e-3 for difference in loaded["proven"].values())
        assert loaded["proven"]
    assert len(list(runs.glob("batch-*"))) == 2
