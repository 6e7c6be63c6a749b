"""The program as its users and the worker start it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.run_dir import read_json
from tests.training.trainer.builders import (
    events_of,
    metrics_of,
    ranked_row,
    read_rows,
    weights_of,
    write_rows,
)
from training.trainer.__main__ import main

ROOT = Path(__file__).resolve().parents[3]
METRICS = {"step", "total", "loss", "margin", "accuracy", "chosen_reward", "rejected_reward"}
METRICS |= {
    "chosen_logp",
    "rejected_logp",
    "kl",
    "chosen_tokens",
    "chosen_fell",
    "chosen_logratio",
    "rejected_logratio",
    "rejected_tokens",
    "grad_norm",
}
METRICS |= {"chosen_fell", "chosen_logratio", "rejected_logratio"}
METRICS |= {"learning_rate", "tokens_per_s", "memory_mb", "seconds"}
MANIFEST = {"schema", "policy_digest", "reference_digest", "start_digest", "seed", "versions"}
MANIFEST |= {"inputs", "outputs", "results"}


def program(*arguments: Any, **more: Any) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | more.pop("env", {})
    return subprocess.Popen(
        [sys.executable, "-m", "training.trainer", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **more,
    )


def test_init_and_run_raise_held_out_accuracy_on_a_learnable_preference(tmp_path, llama_dir):
    rows = write_rows(tmp_path / "rows.jsonl", [ranked_row(number) for number in range(16)])
    run_dir = tmp_path / "round"
    settings = ["learning_rate=0.005", "max_length=128", "batch_groups=4", "epochs=4"]
    made = program(
        "init", run_dir, "--policy", llama_dir, "--preferences", rows, "--set", *settings
    )
    out, err = made.communicate()
    assert (made.returncode, err) == (0, "")
    assert "16 ranked groups" in out
    trained = program("run", run_dir)
    assert (trained.communicate()[1], trained.returncode) == ("", 0)
    results = read_json(run_dir / "manifest.json")["results"]
    assert results["held_out_before"]["accuracy"] == 0.5
    assert results["held_out_after"]["accuracy"] > 0.9
    assert results["held_out_after"]["loss"] < results["held_out_before"]["loss"]
    assert results["steps"] == 12


def test_the_run_directory_is_the_contracts(make_round):
    run_dir = make_round()
    assert {path.name for path in run_dir.iterdir()} == {"spec.json", "preferences.jsonl"}
    assert main(["run", str(run_dir)]) == 0
    names = {"spec.json", "preferences.jsonl", "metrics.jsonl", "events.jsonl", "checkpoints"}
    assert {path.name for path in run_dir.iterdir()} == names | {"policy", "manifest.json"}
    steps = [row for row in read_rows(run_dir / "metrics.jsonl") if "held_out" not in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]
    assert all(row.keys() == METRICS and row["total"] == 6 for row in steps)
    evaluations = [row for row in metrics_of(run_dir) if "held_out" in row]
    assert [row["step"] for row in evaluations] == [0, 3, 6]
    manifest = read_json(run_dir / "manifest.json")
    assert manifest.keys() == MANIFEST
    assert manifest["inputs"].keys() == {"spec.json", "preferences.jsonl"}
    assert "policy/model.safetensors" in manifest["outputs"]
    kinds = [event["kind"] for event in read_rows(run_dir / "events.jsonl")]
    assert kinds == ["start", "data_report", "samples", "checkpoint", "samples", "done"]


def test_sigterm_saves_and_a_rerun_finishes_with_the_same_bytes(make_round):
    settings = {"epochs": 40, "checkpoint_every": 1000, "eval_every": 1000, "learning_rate": 1e-3}
    whole, stopped = make_round("whole", **settings), make_round("stopped", **settings)
    process = program("run", stopped)
    while not (stopped / "metrics.jsonl").exists() or len(metrics_of(stopped)) < 3:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 75
    process.communicate()
    (event,) = events_of(stopped, "stopped")
    assert "run it again to go on" in event["message"]
    assert len(list((stopped / "checkpoints").glob("step-*"))) == 1
    assert main(["run", str(stopped)]) == main(["run", str(whole)]) == 0
    assert weights_of(stopped) == weights_of(whole)
    assert metrics_of(stopped) == metrics_of(whole)


def test_a_program_whose_worker_is_gone_stops(make_round):
    process = program("run", make_round(), stdin=subprocess.PIPE, env={"PREFLOOP_WATCH_STDIN": "1"})
    process.communicate(input="", timeout=60)
    assert process.returncode == 75


def init(tmp_path: Path, policy: Path, rows: Path, *settings: str) -> int:
    arguments = ["--policy", str(policy), "--preferences", str(rows)]
    more = ["--set", *settings] if settings else []
    return main(["init", str(tmp_path / "round"), *arguments, *more])


def test_init_refuses_a_run_directory_that_exists(tmp_path, llama_dir, capsys):
    rows = write_rows(tmp_path / "rows.jsonl", [ranked_row(1)])
    (tmp_path / "round").mkdir()
    assert init(tmp_path, llama_dir, rows) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("setting", ["betta=1", "lora_rank=8", "beta=-1", "epochs=1.5"])
def test_init_writes_nothing_when_a_setting_is_wrong(tmp_path, llama_dir, setting, capsys):
    rows = write_rows(tmp_path / "rows.jsonl", [ranked_row(1)])
    assert init(tmp_path, llama_dir, rows, setting) == 2
    assert setting.partition("=")[0] in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl"}


def test_init_writes_nothing_when_a_row_is_bad(tmp_path, llama_dir, capsys):
    rows = write_rows(tmp_path / "rows.jsonl", [ranked_row(1), {"prompt": "x"}])
    assert init(tmp_path, llama_dir, rows) == 2
    assert "line 2: missing chosen, rejected" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl"}


def test_init_needs_no_torch(tmp_path, llama_dir):
    rows = write_rows(tmp_path / "rows.jsonl", [ranked_row(1)])
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None; "
        "from training.trainer.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["init", str(tmp_path / "round"), "--policy", str(llama_dir)]
    process = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--preferences", str(rows)], cwd=ROOT, check=False
    )
    assert process.returncode == 0


def test_run_without_a_run_directory_is_exit_2(tmp_path, capsys):
    assert main(["run", str(tmp_path / "absent")]) == 2
    assert "spec.json does not exist" in capsys.readouterr().err
