"""A round that was killed or stopped ends with the very bytes of one that was not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from jobs.run_dir import read_json
from tests.training.trainer.builders import events_of, make_model, make_tokenizer, ranked_row
from tests.training.trainer.conftest import MakeRound
from tests.training.trainer.killing import (
    assert_same,
    at_step,
    before_operation,
    kill_on,
    kill_points,
    operations_of,
    run_in_child,
)
from training.trainer import loop
from training.trainer.__main__ import main
from training.trainer.checkpoint import of_step
from training.trainer.reference import ReferencePass

SETTINGS: dict[str, Any] = {"epochs": 3, "checkpoint_every": 2, "learning_rate": 1e-3}  # 9 steps
SETTINGS |= {"sample_tokens": 4}
# 4 steps; every kind of file operation: old checkpoints go, the best one stays.
SHORT = SETTINGS | {"epochs": 2, "batch_groups": 5, "keep_checkpoints": 1}
SHORT |= {"eval_every": 1, "keep": "best"}


@pytest.fixture
def whole(make_round: MakeRound) -> Path:
    """The round that nothing happened to."""
    run_dir = make_round("whole", **SETTINGS)
    assert run_in_child(run_dir) == 0
    return run_dir


@pytest.mark.parametrize("method", ["full", "lora"])
def test_killed_at_every_step_it_resumes_bit_for_bit(make_round, method):
    whole = make_round("whole", **SETTINGS, method=method)
    killed = make_round("killed", **SETTINGS, method=method)
    assert run_in_child(whole) == 0
    for step in range(1, 10):
        assert run_in_child(killed, at_step(step)) == -9
    assert run_in_child(killed) == 0
    assert [event["step"] for event in events_of(killed, "resume")] == [2, 2, 4, 4, 6, 6, 8]
    assert_same(killed, whole)


PARTS = 4  # of the test below, so that several processes share its minute


@pytest.mark.parametrize("part", range(PARTS))
def test_killed_in_any_file_operation_it_resumes_bit_for_bit(make_round, part):
    """From the first event to the last, the checkpoints' and the policy's included."""
    whole, fresh = make_round("whole", **SHORT), make_round("fresh", **SHORT)
    points = kill_points(operations_of(whole))
    assert len(points) > 50
    for number in points[part::PARTS]:
        killed = shutil.copytree(fresh, fresh.with_name("killed"))
        assert run_in_child(killed, before_operation(killed, number)) == -9
        assert run_in_child(killed) == 0
        assert_same(killed, whole)
        assert_tidy(killed)
        shutil.rmtree(killed)


def assert_tidy(run_dir: Path) -> None:
    """No checkpoint is half there; the newest and the best one are."""
    names = {path.name for path in (run_dir / "checkpoints").iterdir()}
    best = read_json(run_dir / "manifest.json")["results"]["best_step"]
    assert names >= {"step-00000004", f"step-{best:08d}"}
    assert not {name for name in names if not name.startswith("step-")}


def test_killed_while_it_resumes_it_resumes_bit_for_bit(make_round):
    """A half-written checkpoint lies there and metrics run ahead: both are dealt with twice."""
    whole, first = make_round("whole", **SETTINGS), make_round("first", **SETTINGS)
    operations = operations_of(whole)
    at = operations.index("os.rename checkpoints/.step-00000004")
    assert run_in_child(first, before_operation(first, at)) == -9
    assert (first / "checkpoints" / ".step-00000004" / "manifest.json").exists()
    resuming = operations_of(shutil.copytree(first, first.with_name("again")))
    resuming = resuming[: next(n for n, what in enumerate(resuming) if "save_file" in what)]
    assert "os.rmdir checkpoints/.step-00000004" in resuming
    for number in kill_points(resuming):
        killed = shutil.copytree(first, first.with_name("killed"))
        assert run_in_child(killed, before_operation(killed, number)) == -9
        assert run_in_child(killed) == 0
        assert_same(killed, whole)
        shutil.rmtree(killed)


def test_killed_after_it_stopped_early_it_takes_no_further_step(make_round):
    settings = SETTINGS | {"eval_every": 1, "early_stopping": 1, "learning_rate": 1e-7}
    whole, killed = make_round("whole", **settings), make_round("killed", **settings)
    assert run_in_child(whole) == 0
    results = read_json(whole / "manifest.json")["results"]
    assert results["stopped_early"]
    assert results["steps"] < 9
    assert run_in_child(killed, kill_on(loop, "export", lambda *_: True)) == -9
    assert run_in_child(killed, at_step(results["steps"] + 1)) == 0
    assert_same(killed, whole)


def test_a_broken_checkpoint_is_passed_over_with_a_warning(make_round, whole):
    killed = make_round("killed", **SETTINGS)
    assert run_in_child(killed, at_step(5)) == -9
    weights = killed / "checkpoints" / "step-00000004" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert run_in_child(killed) == 0
    assert [event["step"] for event in events_of(killed, "resume")] == [2]
    assert "step-00000004 is broken" in events_of(killed, "warning")[0]["message"]
    assert_same(killed, whole)


def test_the_samples_after_training_are_the_same_texts(make_round, whole):
    killed = make_round("killed", **SETTINGS)
    assert run_in_child(killed, at_step(7)) == -9
    assert run_in_child(killed) == 0
    before, after = (
        [event["texts"] for event in events_of(run_dir, "samples")] for run_dir in (whole, killed)
    )
    assert before == after
    assert before[0] != before[1]


# --- the frozen reference -------------------------------------------------------------------


def logps_in(run_dir: Path, step: int) -> torch.Tensor:
    """The reference logps in a checkpoint."""
    return of_step(run_dir / "checkpoints", step).reference


def logps_of(model: Any, rows: list[dict[str, Any]]) -> torch.Tensor:
    """log π(y|x) of all responses, one text at a time, straight through the model."""
    tokenizer = make_tokenizer()
    found = []
    for row in rows:
        prompt = tokenizer.apply_chat_template(
            row["prompt"], add_generation_prompt=True, return_dict=False
        )
        for response in row["responses"]:
            rest = [*tokenizer.encode(response["text"]), tokenizer.eos_token_id]
            with torch.no_grad():
                logits = model(torch.tensor([prompt + rest])).logits[0, len(prompt) - 1 : -1]
            found.append(logits.log_softmax(-1)[range(len(rest)), rest].sum())
    return torch.stack(found)


@pytest.mark.parametrize("other", [False, True])
def test_the_reference_is_the_models_it_was_before_the_round_was_killed(
    make_round, llama_dir, other_dir, other
):
    """Not the policy's own later weights, whether it is its own reference or not."""
    folder = other_dir if other else llama_dir
    rows = [ranked_row(number) for number in range(12)]
    settings = SETTINGS | {"reference": {"model": str(folder), "adapter": None}}
    killed = make_round("killed", rows=rows, **settings, keep_checkpoints=9)
    assert run_in_child(killed, at_step(6)) == -9
    assert run_in_child(killed) == 0
    expected = logps_of(make_model("llama", seed=int(other)), rows)
    torch.testing.assert_close(logps_in(killed, 4), expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(logps_in(killed, 9), logps_in(killed, 4))


def test_a_resumed_round_never_asks_a_model_for_its_reference_again(make_round, monkeypatch):
    """The trap: a reference taken from the resumed policy would be the trained one."""
    killed = make_round("killed", **SETTINGS)
    assert run_in_child(killed, at_step(5)) == -9

    def never(*_: Any) -> None:
        raise AssertionError("the reference was computed again")

    monkeypatch.setattr(ReferencePass, "score_all", never)
    assert main(["run", str(killed)]) == 0


def assert_refused(run_dir: Path, change: Callable[[], Any], message: str) -> None:
    """A round that was killed does not go on when its inputs changed since."""
    assert run_in_child(run_dir, at_step(5)) == -9
    change()
    assert run_in_child(run_dir) == 2
    assert message in events_of(run_dir, "error")[0]["message"]


def test_a_checkpoint_of_other_inputs_is_refused(make_round):
    killed = make_round("killed", **SETTINGS)
    spec = read_json(killed / "spec.json") | {"beta": 0.5}
    assert_refused(
        killed,
        lambda: (killed / "spec.json").write_text(json.dumps(spec)),
        "inputs changed since the checkpoint of step 4",
    )


def test_a_reference_whose_weights_were_replaced_is_refused(make_round, other_dir, tmp_path):
    reference = shutil.copytree(other_dir, tmp_path / "reference")
    settings = SETTINGS | {"reference": {"model": str(reference), "adapter": None}}
    file = reference / "model.safetensors"
    weights = {name: tensor * 1.01 for name, tensor in load_file(file).items()}
    killed = make_round("killed", **settings)
    assert_refused(
        killed,
        lambda: save_file(weights, file, metadata={"format": "pt"}),
        "reference_digest changed since the checkpoint of step 4",
    )


# --- what is kept ---------------------------------------------------------------------------


def test_only_the_newest_checkpoints_are_kept(whole):
    names = sorted(path.name for path in (whole / "checkpoints").iterdir())
    assert names == ["step-00000008", "step-00000009"]


def test_nothing_in_a_run_directory_is_pickled(whole):
    kinds = {path.suffix for path in whole.rglob("*") if path.is_file()}
    assert kinds <= {".json", ".jsonl", ".safetensors", ".md", ".jinja"}
