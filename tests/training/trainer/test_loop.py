"""A round from start to end in this process, and how it ends when it cannot go on."""

import json
import math
from typing import Any

import pytest
import torch

from jobs.run_dir import read_json
from tests.training.trainer.builders import events_of, ranked_row, votes
from training.trainer import loop
from training.trainer.__main__ import main
from training.trainer.stopping import Best


def run(run_dir: Any) -> int:
    return main(["run", str(run_dir)])


def results(run_dir: Any) -> dict[str, Any]:
    return read_json(run_dir / "manifest.json")["results"]


@pytest.mark.parametrize(
    ("error", "code", "advice"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), 4, "method=lora"),
        (MemoryError(), 4, "max_length"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 4, "max_length"),
        (OSError(28, "No space left on device"), 5, "free space"),
    ],
)
def test_no_memory_and_no_disk_end_with_advice(make_round, monkeypatch, error, code, advice):
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(loop, "take_step", fail)
    run_dir = make_round()
    assert run(run_dir) == code
    (event,) = events_of(run_dir, "error")
    assert advice in event["message"]
    assert event["exit"] == code


def test_a_policy_that_diverges_is_refused_when_it_is_looked_at(make_round, monkeypatch):
    """Its last step was finite, and what came of it is not."""
    evaluate = loop.evaluate

    def diverged(policy: Any, *given: Any) -> Any:
        held_out = evaluate(policy, *given)
        return held_out | ({"loss": math.nan} if list(run_dir.glob("metrics.jsonl")) else {})

    monkeypatch.setattr(loop, "evaluate", diverged)
    run_dir = make_round(eval_every=1)
    assert run(run_dir) == 3
    (error,) = events_of(run_dir, "error")
    assert "after step 1 is not finite" in error["message"]


def test_settings_that_this_data_leaves_without_effect_are_said(make_round):
    run_dir = make_round(ties="rao_kupper", early_stopping=9, epochs=1)
    assert run(run_dir) == 0
    said = " ".join(event["message"] for event in events_of(run_dir, "warning"))
    assert "no vote to train on is a tie" in said
    assert "early_stopping 9 is never reached in 1 evaluations" in said


def test_a_best_checkpoint_that_was_lost_leaves_the_last_step(make_round, monkeypatch):
    monkeypatch.setattr(Best, "after", lambda self, step, accuracy: Best(self.step or step, 1.0))
    run_dir = make_round(keep="best", checkpoint_every=1, keep_checkpoints=1, eval_every=1)
    finish = loop.finish

    def after_a_loss(round_: Any) -> None:
        (run_dir / "checkpoints" / "step-00000001" / "weights.safetensors").write_bytes(b"rot")
        finish(round_)

    monkeypatch.setattr(loop, "finish", after_a_loss)
    assert run(run_dir) == 0
    assert "the last step is kept" in events_of(run_dir, "warning")[0]["message"]
    assert results(run_dir).get("best_step") is None


def test_a_spec_that_was_edited_wrongly_is_exit_2(make_round):
    run_dir = make_round()
    spec = read_json(run_dir / "spec.json") | {"betta": 1}
    (run_dir / "spec.json").write_text(json.dumps(spec))
    assert run(run_dir) == 2
    assert "unknown key betta" in events_of(run_dir, "error")[0]["message"]


def test_data_longer_than_the_models_positions_is_exit_2(make_round):
    rows = [ranked_row(n) for n in range(1, 4)]
    rows[0]["responses"][0]["text"] = "x" * 300
    run_dir = make_round(rows=rows, max_length=1024, held_out_share=0.0)
    assert run(run_dir) == 2
    assert "the model knows 256 positions" in events_of(run_dir, "error")[0]["message"]


def test_the_data_report_is_written_before_the_first_step(make_round):
    rows = [ranked_row(n) for n in range(8)]
    rows[1]["pairs"] = [votes(0, 1, 0, 0, 3), votes(0, 2, 1, 0)]
    run_dir = make_round(rows=rows, epochs=1)
    assert run(run_dir) == 0
    (report,) = events_of(run_dir, "data_report")
    assert report["dropped"] == {"tied": 1}
    assert report["pairs"] == {"train": 6 * 3 - 2, "held_out": 2 * 3}


def test_a_round_without_held_out_prompts_says_so(make_round):
    rows = [ranked_row(n) for n in (1, 2, 3)]
    run_dir = make_round(rows=rows, epochs=1, held_out_share=0.0)
    assert run(run_dir) == 0
    assert "no prompt is held out" in events_of(run_dir, "warning")[0]["message"]
    assert results(run_dir)["held_out_after"] is None
    assert "nothing was held out" in (run_dir / "policy" / "README.md").read_text()


def test_a_round_that_is_done_is_left_alone(make_round):
    run_dir = make_round(epochs=1)
    assert run(run_dir) == 0
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    assert run(run_dir) == 0
    assert before == {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
