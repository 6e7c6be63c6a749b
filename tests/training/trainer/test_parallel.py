"""The same program under torchrun: two processes give what one gives."""

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from jobs.run_dir import read_json
from tests.training.trainer.builders import as_policy, events_of, make_model, metrics_of, ranked_row
from tests.training.trainer.killing import at_step, run_in_child
from training.trainer import loop, parallel
from training.trainer.__main__ import main
from training.trainer.config import load_spec
from training.trainer.run_dir import BadInput

LIMIT_S = 120


def torchrun(run_dir: Path, *, processes: int = 2, limit_s: int = LIMIT_S) -> int:
    """The exit status of the trainer in so many processes that talk over loopback (gloo)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    command += [f"--master-port={port}", "-m", "training.trainer", "run", str(run_dir)]
    done = subprocess.run(command, timeout=limit_s, capture_output=True, check=False)
    print(done.stdout.decode()[-3000:], done.stderr.decode()[-6000:])
    return done.returncode


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    (file,) = (run_dir / "policy").glob("*.safetensors")
    return load_file(file)


def assert_same(ours: Any, theirs: Any) -> None:
    """Nested numbers that are equal but for the order in which floats were added."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_same(ours[key], theirs[key])
    else:
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)


def settings_of(other_dir: Path) -> dict[str, Any]:
    """Seven groups in steps of three: the last step has one group, and one process has none."""
    return {
        "rows": [ranked_row(number) for number in range(1, 11)],
        "reference": {"model": str(other_dir), "adapter": None},
        "learning_rate": 1e-3,
        "pack_tokens": 60,
        "keep": "best",
        "epochs": 1,
        "checkpoint_every": 1,
    }


def assert_same_round(two: Path, one: Path) -> None:
    for ours, theirs in zip(metrics_of(two), metrics_of(one), strict=True):
        assert_same(ours, theirs)
    for name, tensor in weights(one).items():
        assert torch.allclose(weights(two)[name], tensor, rtol=1e-4, atol=2e-5), name


def test_two_processes_give_the_losses_and_weights_of_one(make_round, other_dir):
    settings = settings_of(other_dir)
    one, two = make_round("one", **settings), make_round("two", **settings)
    assert main(["run", str(one)]) == 0
    assert torchrun(two) == 0
    assert_same_round(two, one)
    assert [event["processes"] for event in events_of(two, "start")] == [2]
    configs = [read_json(run_dir / "policy" / "config.json") for run_dir in (one, two)]
    assert configs[0] == configs[1]


def test_a_round_that_one_process_began_goes_on_in_two(make_round, other_dir):
    settings = settings_of(other_dir) | {"method": "lora", "activation_checkpointing": True}
    one, two = make_round("one", **settings), make_round("two", **settings)
    assert main(["run", str(one)]) == 0
    assert run_in_child(two, at_step(2)) == -9
    assert torchrun(two) == 0
    assert_same_round(two, one)
    assert [event["processes"] for event in events_of(two, "start")] == [1, 2]
    configs = [read_json(run_dir / "policy" / "adapter_config.json") for run_dir in (one, two)]
    assert configs[0] == configs[1]


def test_a_model_that_must_be_padded_is_refused_by_several_processes(make_round, monkeypatch):
    """Its passes are cut by length, so processes would wait for each other for ever."""
    monkeypatch.setattr(parallel, "world", lambda: 2)
    policy = as_policy(make_model("llama"), padded=True)
    with pytest.raises(BadInput, match="several processes cannot train this model"):
        loop.check_runs(load_spec(make_round() / "spec.json"), policy)


def test_turns_are_dealt_out_and_gathered_in_order(monkeypatch):
    """Three processes, seven items: all take three turns, and the order comes back."""
    everyone: list[list[list[str]]] = []
    monkeypatch.setattr(parallel, "world", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        turns = list(parallel.shared("abcdefg"))
        assert len(turns) == 3
        everyone.append([[item, item.upper()] for item, mine in turns if mine])

    def gather(held: list[Any], _mine: Any) -> None:
        held[:] = everyone

    monkeypatch.setattr(parallel.distributed, "all_gather_object", gather)
    assert "".join(parallel.gathered(everyone[0])) == "aAbBcCdDeEfFgG"
