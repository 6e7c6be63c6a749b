"""A round that was killed or stopped ends with the very bytes of one that was not."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.run_dir import read_json
from tests.training.trainer.builders import events_of, metrics_of, weights_of
from training.trainer import checkpoint, loop
from training.trainer.__main__ import main

SETTINGS: dict[str, Any] = {"epochs": 3, "checkpoint_every": 2, "learning_rate": 1e-3}  # 9 steps


def kill_on(target: Any, name: str, when: Callable[..., bool]) -> Callable[[], None]:
    """A patch that kills the process with SIGKILL as soon as `when` is true of the arguments."""

    def patch() -> None:
        real = getattr(target, name)

        def lethal(*args: Any, **kwargs: Any) -> Any:
            if when(*args, **kwargs):
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        setattr(target, name, lethal)

    return patch


def run_in_child(run_dir: Path, patch: Callable[[], None] = lambda: None) -> int:
    """The exit status of a run in a process of its own; −9 when it was killed."""
    child = os.fork()
    if child == 0:
        patch()
        os._exit(main(["run", str(run_dir)]))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def at_step(step: int) -> Callable[[], None]:
    return kill_on(loop, "take_step", lambda _round, at, _batch: at == step)


@pytest.fixture
def whole(make_round) -> Path:
    """The round that nothing happened to."""
    run_dir = make_round("whole", **SETTINGS)
    assert run_in_child(run_dir) == 0
    return run_dir


def assert_same(run_dir: Path, whole: Path) -> None:
    assert weights_of(run_dir) == weights_of(whole)
    assert metrics_of(run_dir) == metrics_of(whole)
    ours, theirs = (read_json(d / "manifest.json") for d in (run_dir, whole))
    for results in (ours["results"], theirs["results"]):
        results.pop("seconds")
    assert ours["results"] == theirs["results"]
    assert ours["policy_digest"] == theirs["policy_digest"]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_killed_at_several_steps_it_resumes_bit_for_bit(make_round, method):
    whole = make_round("whole", **SETTINGS, method=method)
    killed = make_round("killed", **SETTINGS, method=method)
    assert run_in_child(whole) == 0
    for step in (1, 2, 4, 6, 9):
        assert run_in_child(killed, at_step(step)) == -9
    assert run_in_child(killed) == 0
    assert [event["step"] for event in events_of(killed, "resume")] == [2, 4, 8]
    assert_same(killed, whole)


@pytest.mark.parametrize(
    ("name", "nth"),
    [("save_file", 1), ("save_file", 3), ("write_json", 1), ("write_json", 2), ("replace_dir", 1)],
)
def test_killed_in_the_middle_of_a_checkpoint_it_uses_the_one_before(make_round, whole, name, nth):
    killed = make_round("killed", **SETTINGS)
    calls = {"save_file": 3, "write_json": 2, "replace_dir": 1}[name]
    seen: list[int] = []

    def second_checkpoint(*_: Any, **__: Any) -> bool:
        seen.append(1)
        return len(seen) == calls + nth

    assert run_in_child(killed, kill_on(checkpoint, name, second_checkpoint)) == -9
    assert [p.name for p in (killed / "checkpoints").glob("step-*")] == ["step-00000002"]
    assert run_in_child(killed) == 0
    assert [event["step"] for event in events_of(killed, "resume")] == [2]
    assert not list((killed / "checkpoints").glob(".step-*"))
    assert_same(killed, whole)


@pytest.mark.parametrize("name", ["export", "replace_dir", "write_manifest"])
def test_killed_while_the_policy_is_written_it_writes_it_again(make_round, whole, name):
    killed = make_round("killed", **SETTINGS)
    assert run_in_child(killed, kill_on(loop, name, lambda *_, **__: True)) == -9
    assert run_in_child(killed) == 0
    assert_same(killed, whole)


@pytest.mark.parametrize(
    "file",
    [
        "weights.safetensors",
        "optimizer.safetensors",
        "reference.safetensors",
        "state.json",
        "manifest.json",
    ],
)
@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_a_broken_checkpoint_is_passed_over_with_a_warning(make_round, whole, file, damage):
    killed = make_round("killed", **SETTINGS)
    assert run_in_child(killed, at_step(5)) == -9
    path = killed / "checkpoints" / "step-00000004" / file
    data = path.read_bytes()
    if damage == "delete":
        path.unlink()
    else:
        half = len(data) // 2
        path.write_bytes(
            data[:half] + (bytes([data[half] ^ 1]) + data[half + 1 :]) * (damage == "flip")
        )
    assert run_in_child(killed) == 0
    assert [event["step"] for event in events_of(killed, "resume")] == [2]
    assert "step-00000004 is broken" in events_of(killed, "warning")[0]["message"]
    assert_same(killed, whole)


def test_a_resumed_round_never_asks_a_model_for_its_reference_again(make_round, monkeypatch):
    """The trap: a reference taken from the resumed policy would be the trained one."""
    killed = make_round("killed", **SETTINGS)
    assert run_in_child(killed, at_step(5)) == -9

    def never(*_: Any) -> None:
        raise AssertionError("the reference was computed again")

    monkeypatch.setattr(loop, "reference_of_start", never)
    monkeypatch.setattr(loop, "frozen_reference", never)
    assert main(["run", str(killed)]) == 0


def test_a_checkpoint_of_other_inputs_is_refused(make_round):
    killed = make_round("killed", **SETTINGS)
    assert run_in_child(killed, at_step(5)) == -9
    spec = read_json(killed / "spec.json") | {"beta": 0.5}
    (killed / "spec.json").write_text(json.dumps(spec))
    assert run_in_child(killed) == 2
    assert (
        "inputs changed since the checkpoint of step 4" in events_of(killed, "error")[0]["message"]
    )


def test_only_the_newest_checkpoints_are_kept(whole):
    names = sorted(path.name for path in (whole / "checkpoints").iterdir())
    assert names == ["step-00000008", "step-00000009"]


def test_nothing_in_a_run_directory_is_pickled(whole):
    kinds = {path.suffix for path in whole.rglob("*") if path.is_file()}
    assert kinds <= {".json", ".jsonl", ".safetensors", ".md", ".jinja"}
