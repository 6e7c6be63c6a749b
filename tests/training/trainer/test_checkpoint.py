"""Checkpoints by themselves: what is kept, what is passed over, and a disk that is full."""

import ctypes
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.run_dir import EXIT_DISK_FULL, RunDirError
from tests.training.trainer.builders import events_of
from tests.training.trainer.killing import assert_same, in_child, run_in_child
from training.trainer import checkpoint
from training.trainer.__main__ import main
from training.trainer.checkpoint import (
    FILES,
    MANIFEST,
    Checkpoint,
    clean,
    newest,
    of_step,
    optimizer_tensors,
    restore,
    save,
)


def at(step: int) -> Checkpoint:
    """A small checkpoint whose numbers tell its step."""
    return Checkpoint(
        step=step,
        weights={"w": torch.full((3, 2), float(step)), "b": torch.tensor([0.1, -0.0])},
        optimizer={"exp_avg/w": torch.arange(6.0).view(3, 2), "step/w": torch.tensor(float(step))},
        reference=torch.tensor([-1.5, -2.5]),
        state={"origin": {"inputs": "x"}, "results": {"loss": 1e-300}},
    )


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def steps(*numbers: int) -> set[str]:
    return {f"step-{number:08d}" for number in numbers}


def same(ours: Checkpoint, theirs: Checkpoint) -> bool:
    """Equal bit for bit, the sign of zero included."""
    tensors = [
        {**each.weights, **each.optimizer, "reference": each.reference} for each in (ours, theirs)
    ]
    return (
        (ours.step, ours.state) == (theirs.step, theirs.state)
        and tensors[0].keys() == tensors[1].keys()
        and all(
            torch.equal(tensors[0][name], tensors[1][name])
            and torch.equal(tensors[0][name].signbit(), tensors[1][name].signbit())
            for name in tensors[0]
        )
    )


def test_what_was_saved_is_what_is_loaded(tmp_path):
    path = save(tmp_path / "checkpoints", at(7), keep=1)
    assert path.name == "step-00000007"
    loaded = newest(tmp_path, tmp_path / "checkpoints")
    assert loaded is not None
    assert same(loaded, at(7))
    assert same(of_step(tmp_path / "checkpoints", 7), at(7))


def test_without_any_checkpoint_there_is_none(tmp_path):
    assert newest(tmp_path, tmp_path / "checkpoints") is None


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [
        (1, None, (5,)),
        (2, None, (4, 5)),
        (2, 1, (1, 4, 5)),
        (2, 4, (4, 5)),
        (1, 5, (5,)),
        (9, 2, (1, 2, 3, 4, 5)),
    ],
)
def test_the_newest_stay_and_the_best_however_old_it_is(tmp_path, keep, best, left):
    for step in range(1, 6):
        save(tmp_path, at(step), keep=keep, best=None if best is None else min(best, step))
    assert names(tmp_path) == steps(*left)


def test_what_is_no_longer_the_best_goes(tmp_path):
    for step, best in ((1, 1), (2, 1), (3, 1), (4, 4), (5, 4), (6, 4)):
        save(tmp_path, at(step), keep=1, best=best)
    assert names(tmp_path) == steps(4, 6)


def test_the_same_step_saved_again_replaces_itself(tmp_path):
    save(tmp_path, at(3), keep=2)
    (tmp_path / "step-00000003" / MANIFEST).unlink()
    save(tmp_path, at(3), keep=2)
    assert names(tmp_path) == steps(3)
    assert same(of_step(tmp_path, 3), at(3))


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    half = len(data) // 2
    if how == "delete":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[:half])
    else:
        path.write_bytes(data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :])


@pytest.mark.parametrize("file", [*FILES, MANIFEST])
@pytest.mark.parametrize("how", ["flip", "cut", "delete"])
def test_a_broken_checkpoint_is_passed_over_and_set_aside(tmp_path, file, how):
    folder = tmp_path / "checkpoints"
    for step in (2, 4):
        save(folder, at(step), keep=2)
    damage(folder / "step-00000004" / file, how)
    with pytest.raises(RunDirError, match="step-00000004 cannot be used"):
        of_step(folder, 4)
    found = newest(tmp_path, folder)
    assert found is not None
    assert same(found, at(2))
    (event,) = events_of(tmp_path, "warning")
    assert "step-00000004 is broken and was passed over" in event["message"]
    assert names(folder) == steps(2) | {"broken-step-00000004"}


def test_a_broken_checkpoint_takes_the_place_of_no_whole_one(tmp_path):
    """A round that goes on from step 2 saves step 3 beside the broken step 4, and keeps both
    of its whole ones."""
    folder = tmp_path / "checkpoints"
    for step in (2, 4):
        save(folder, at(step), keep=2)
    damage(folder / "step-00000004" / "weights.safetensors", "cut")
    newest(tmp_path, folder)
    save(folder, at(3), keep=2)
    assert names(folder) == steps(2, 3)


def test_a_checkpoint_that_breaks_twice_is_set_aside_twice(tmp_path):
    folder = tmp_path / "checkpoints"
    for _ in range(2):
        if not (folder / "step-00000004").exists():
            shutil.copytree(save(tmp_path / "other", at(4), keep=1), folder / "step-00000004")
        damage(folder / "step-00000004" / "weights.safetensors", "cut")
        assert newest(tmp_path, folder) is None
    assert names(folder) == {"broken-step-00000004"}


def test_what_is_half_written_or_half_deleted_is_cleaned_up(tmp_path):
    save(tmp_path, at(2), keep=1)
    for name in (".step-00000004", ".old-step-00000001", ".old-broken-step-00000001"):
        shutil.copytree(tmp_path / "step-00000002", tmp_path / name)
    clean(tmp_path)
    assert names(tmp_path) == steps(2)


@pytest.mark.parametrize("fused", [False, True])
def test_an_optimizer_goes_on_as_if_it_had_never_stopped(tmp_path, fused):
    def fresh() -> tuple[torch.nn.Linear, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 3)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)

    def train(model: torch.nn.Linear, optimizer: torch.optim.Optimizer, first: int) -> None:
        for step in range(first, first + 3):
            optimizer.zero_grad()
            model(torch.full((2, 4), float(step))).square().sum().backward()
            optimizer.step()

    model, optimizer = fresh()
    train(model, optimizer, 0)
    parameters = dict(model.named_parameters())
    tensors = optimizer_tensors(optimizer, parameters)
    save(tmp_path, Checkpoint(3, dict(parameters), tensors, torch.zeros(1), {}), keep=1)
    train(model, optimizer, 3)
    again, resumed = fresh()
    restore(of_step(tmp_path, 3), resumed, dict(again.named_parameters()))
    shutil.rmtree(tmp_path / "step-00000003")  # nothing of it is still needed
    train(again, resumed, 3)
    for name, parameter in again.named_parameters():
        assert torch.equal(parameter, parameters[name])


# --- a full disk ----------------------------------------------------------------------------

SETTINGS: dict[str, Any] = {"epochs": 2, "checkpoint_every": 2, "learning_rate": 1e-3}
SETTINGS |= {"sample_tokens": 4}


def small_files_from(step: int, limit: int) -> Callable[[], None]:
    """A patch: from the checkpoint of this step on, the kernel lets no file grow past `limit`."""

    def patch() -> None:
        real = checkpoint.save

        def limited(folder: Path, saved: Checkpoint, **more: Any) -> Path:
            if saved.step >= step:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            return real(folder, saved, **more)

        checkpoint.save = limited  # type: ignore[assignment]

    return patch


@pytest.mark.parametrize("limit", [30_000, 100_000])
def test_a_disk_that_takes_no_more_is_exit_5_and_earlier_checkpoints_stay(make_round, limit):
    """The error is the kernel's own, met inside safetensors: weights, then optimizer state."""
    whole, full = make_round("whole", **SETTINGS), make_round("full", **SETTINGS)
    assert run_in_child(whole) == 0
    assert run_in_child(full, small_files_from(4, limit)) == EXIT_DISK_FULL
    (error,) = events_of(full, "error")
    assert error["exit"] == EXIT_DISK_FULL
    assert "Checkpoints that were complete are kept; free space and run again" in error["message"]
    assert names(full / "checkpoints") == steps(2)
    assert run_in_child(full) == 0
    assert [event["step"] for event in events_of(full, "resume")] == [2]
    assert_same(full, whole)


CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000  # linux/sched.h
MS_REC, MS_PRIVATE = 0x4000, 0x40000  # linux/mount.h
NO_MOUNT = 77


def mount_disk(folder: Path, size: int) -> bool:
    """A disk of `size` bytes for this process alone, gone when it ends; False if forbidden."""
    libc = ctypes.CDLL(None)
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(CLONE_NEWNS | (CLONE_NEWUSER if user else 0)):
        return False
    if user:  # in a world of its own, where it is root
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    if libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None):
        return False
    options = f"size={size}".encode()
    return not libc.mount(b"none", os.fsencode(folder), b"tmpfs", 0, options)


def run_on_small_disk(run_dir: Path, size: int) -> int:
    """Run on a disk with so much space; what is on it afterwards becomes `run_dir`."""
    disk = run_dir.with_name("disk")
    disk.mkdir(exist_ok=True)

    def work() -> int:
        if not mount_disk(disk, size):
            return NO_MOUNT
        there = shutil.copytree(run_dir, disk / "round")
        status = main(["run", str(there)])
        shutil.rmtree(run_dir)
        shutil.copytree(there, run_dir)
        return status

    return in_child(work)


def test_on_a_disk_that_fills_up_anywhere_a_round_stops_clearly_and_goes_on(make_round):
    """Disks from too small for a line of events to large enough for all: events, metrics,
    tensors and the policy meet the end of the disk in turn."""
    whole = make_round("whole", **SETTINGS)
    page = os.sysconf("SC_PAGE_SIZE")
    start = sum(-(-file.stat().st_size // page) * page for file in whole.iterdir())
    assert run_in_child(whole) == 0
    one = sum(file.stat().st_size for file in (whole / "checkpoints/step-00000006").iterdir())
    ended = []
    for size in (0, page, 2 * page, *(one * tenths // 10 for tenths in (5, 11, 18, 25, 31, 40))):
        full = make_round("full", **SETTINGS)
        ended.append(run_on_small_disk(full, start + size))
        if ended[-1] == NO_MOUNT:
            pytest.skip("this user may not mount a disk of its own")
        assert run_in_child(full) == 0
        assert_same(full, whole)
        shutil.rmtree(full)
    failed = ended.count(EXIT_DISK_FULL)
    assert 6 <= failed < len(ended)
    assert ended == [EXIT_DISK_FULL] * failed + [0] * (len(ended) - failed)
