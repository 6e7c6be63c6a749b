"""Checkpoints: complete or absent, checked when loaded, without pickle.

A checkpoint is a folder with tensors as safetensors, the rest as JSON, and a manifest of their
hashes. It is written beside, fsynced and renamed. There is no random state in it: dropout is
off, and shuffles are functions of seed and epoch.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from jobs.run_dir import RunDirError, append_event, read_json, replace_dir, sha256_file, write_json

MANIFEST = "manifest.json"
STATE = "state.json"
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """All that a round needs to go on as if it had never stopped."""

    step: int
    weights: Tensors  # of the trainable parameters, by name
    optimizer: Tensors  # "<state>/<parameter>"
    reference: torch.Tensor  # (responses,) reference logps
    state: dict[str, Any]  # JSON: what the round was started from, results so far, seconds


def save(folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write a checkpoint and, once it is complete, delete all but the newest `keep`."""
    clean(folder)
    beside = folder / f".step-{checkpoint.step:08d}"
    beside.mkdir(parents=True)
    save_file(_plain(checkpoint.weights), beside / "weights.safetensors")
    save_file(_plain(checkpoint.optimizer), beside / "optimizer.safetensors")
    save_file({"logps": checkpoint.reference.contiguous()}, beside / "reference.safetensors")
    write_json(beside / STATE, {"step": checkpoint.step, **checkpoint.state})
    hashes = {path.name: sha256_file(path) for path in sorted(beside.iterdir())}
    write_json(beside / MANIFEST, {"files": hashes})
    target = folder / f"step-{checkpoint.step:08d}"
    replace_dir(beside, target)
    for old in _newest_first(folder)[keep:]:
        shutil.rmtree(old)
    return target


def clean(folder: Path) -> None:
    """Remove what a killed run left half written."""
    for path in folder.glob(".step-*"):
        shutil.rmtree(path)


def newest(run_dir: Path, folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint; broken ones are passed over with a warning event."""
    for path in _newest_first(folder):
        problems = list(_problems(path))
        if not problems:
            return load(path)
        append_event(
            run_dir,
            "warning",
            message=f"checkpoint {path.name} is broken and was passed over: {problems[0]}",
        )
    return None


def load(path: Path) -> Checkpoint:
    """Read a checkpoint that was found whole."""
    state = read_json(path / STATE)
    return Checkpoint(
        step=state.pop("step"),
        weights=load_file(path / "weights.safetensors"),
        optimizer=load_file(path / "optimizer.safetensors"),
        reference=load_file(path / "reference.safetensors")["logps"],
        state=state,
    )


def _problems(path: Path) -> Iterator[str]:
    try:
        files = read_json(path / MANIFEST)["files"]
        for name, digest in files.items():
            if sha256_file(path / name) != digest:
                yield f"{name} is not as it was written"
    except (RunDirError, OSError, KeyError, TypeError, AttributeError) as error:
        yield str(error)


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True)


def _plain(tensors: Tensors) -> Tensors:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


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
            parameter.copy_(checkpoint.weights[name])
    for label, tensor in checkpoint.optimizer.items():
        key, _, name = label.partition("/")
        place = torch.device("cpu") if key == "step" else parameters[name].device
        optimizer.state[parameters[name]][key] = tensor.to(place)
