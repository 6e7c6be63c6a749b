"""Checkpoints: complete or absent, checked when loaded, without pickle.

A checkpoint is a folder with tensors as safetensors, the rest as JSON, and a manifest of their
hashes. It is written beside, fsynced and renamed; it is renamed before it is deleted. There is no
random state in it: dropout is off, and shuffles and samples are functions of the seed.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from jobs.run_dir import (
    RunDirError,
    append_event,
    fsync_folder,
    read_json,
    replace_dir,
    sha256_file,
    write_json,
)
from training.trainer.parallel import laid_out_as, leads, whole

MANIFEST = "manifest.json"
STATE = "state.json"
WEIGHTS, OPTIMIZER, REFERENCE = (
    f"{part}.safetensors" for part in ("weights", "optimizer", "reference")
)
FILES = (WEIGHTS, OPTIMIZER, REFERENCE, STATE)  # the manifest holds their hashes
BROKEN = "broken-"  # before the name of a checkpoint that was found broken
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """All that a round needs to go on as if it had never stopped."""

    step: int
    weights: Tensors  # of the trainable parameters, by name, on the CPU
    optimizer: Tensors  # "<state>/<parameter>", on the CPU
    reference: torch.Tensor  # (responses,) reference logps
    state: dict[str, Any]  # JSON: what the round was started from, results so far, seconds


def save(folder: Path, checkpoint: Checkpoint, *, keep: int, best: int | None = None) -> Path:
    """Write a checkpoint and, once it is complete, delete those that it makes needless.

    The newest `keep` stay, and the one of step `best` however old it is. Where the disk is full
    (OSError, or SafetensorError with "os error 28" in its text) earlier ones stay as they are.
    """
    clean(folder)
    beside = folder / f".{_name(checkpoint.step)}"
    beside.mkdir(parents=True)
    fsync_folder(folder.parent)
    target = folder / _name(checkpoint.step)
    try:
        _write(beside, checkpoint)
        replace_dir(beside, target)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)  # its space is needed to record the error
        raise
    held = folder / _name(best) if best is not None else None
    for old in _newest_first(folder)[keep:]:
        if old != held:
            _discard(old)
    for broken in folder.glob(f"{BROKEN}*"):
        _discard(broken)
    return target


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    save_file(_plain(checkpoint.weights), folder / WEIGHTS)
    save_file(_plain(checkpoint.optimizer), folder / OPTIMIZER)
    save_file({"logps": checkpoint.reference.contiguous()}, folder / REFERENCE)
    write_json(folder / STATE, {"step": checkpoint.step, **checkpoint.state})
    hashes = {name: sha256_file(folder / name) for name in FILES}
    write_json(folder / MANIFEST, {"files": hashes})


def clean(folder: Path) -> None:
    """Remove what a killed run left half written or half deleted."""
    for path in folder.glob(".*step-*"):
        shutil.rmtree(path)


def _discard(path: Path) -> None:
    """Delete a checkpoint; in one instant it is no checkpoint any more."""
    gone = path.with_name(f".old-{path.name}")
    path.rename(gone)
    shutil.rmtree(gone)


def newest(run_dir: Path, folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint; broken ones are passed over with a warning event.

    A broken one is set aside under another name, so that it does not count among those that
    `save` keeps, and is deleted when the next checkpoint is complete. Of several processes on
    one run directory, only one may call this.
    """
    for path in _newest_first(folder):
        problem = _problem(path)
        if problem is None:
            return load(path)
        append_event(
            run_dir,
            "warning",
            message=f"checkpoint {path.name} is broken and was passed over: {problem}",
        )
        aside = path.with_name(BROKEN + path.name)
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
    return None


def of_step(folder: Path, step: int) -> Checkpoint:
    """The checkpoint of one step; RunDirError where it is absent or broken."""
    path = folder / _name(step)
    problem = _problem(path)
    if problem is not None:
        raise RunDirError(f"checkpoint {path.name} cannot be used: {problem}")
    return load(path)


def load(path: Path) -> Checkpoint:
    """Read a checkpoint that was found whole."""
    state = read_json(path / STATE)
    return Checkpoint(
        step=state.pop("step"),
        weights=load_file(path / WEIGHTS),
        optimizer=load_file(path / OPTIMIZER),
        reference=load_file(path / REFERENCE)["logps"].clone(),  # no open mapping
        state=state,
    )


def _problem(path: Path) -> str | None:
    """What is wrong with a checkpoint's files, if anything."""
    try:
        hashes = read_json(path / MANIFEST)["files"]
        changed = [name for name in FILES if sha256_file(path / name) != hashes[name]]
    except (RunDirError, OSError, KeyError, TypeError) as error:
        return str(error)
    return f"{changed[0]} is not as it was written" if changed else None


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True)


def _plain(tensors: Tensors) -> Tensors:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def in_one_piece(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Whole copies on the CPU, in the process that writes; the others take part and get nothing.

    One tensor at a time is whole on the device, where it may be sharded.
    """
    there: Tensors = {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        if leads():
            there[name] = full.cpu()
    return there


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: dict[str, Any]) -> Tensors:
    """The optimizer's state as named tensors."""
    return {
        f"{key}/{name}": value
        for name, parameter in names.items()
        for key, value in optimizer.state[parameter].items()
    }


def restore(
    checkpoint: Checkpoint, optimizer: torch.optim.Optimizer, parameters: dict[str, Any]
) -> None:
    """Put a checkpoint's weights and optimizer state into freshly built ones."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(laid_out_as(parameter, checkpoint.weights[name]))
    for label, tensor in checkpoint.optimizer.items():
        key, _, name = label.partition("/")
        parameter = parameters[name]
        if key == "step":  # a number, which fused kernels count on the device
            optimizer.state[parameter][key] = tensor.to(parameter.device, copy=True)
        else:
            optimizer.state[parameter][key] = laid_out_as(parameter, tensor)
