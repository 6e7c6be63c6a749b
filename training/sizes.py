"""How large a model on disk is, from its files' headers. Standard library only, no torch.

A safetensors file begins with the length of a header, as eight bytes, and the header: JSON that
tells each tensor's shape.
"""

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

MOST_HEADER_BYTES = 100_000_000  # safetensors' own limit


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """What time and memory depend on."""

    parameters: int
    layers: int
    width: int


def model_bytes(path: Path) -> int:
    """Bytes of the weights in a model's folder."""
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))


def model_size(path: Path) -> ModelSize | None:
    """A model's size; None where its folder cannot be read or is of a kind that is not known."""
    try:
        stamp = (path / "config.json").stat().st_mtime_ns
    except OSError:
        return None
    return _size(path, stamp)


@lru_cache(maxsize=64)
def _size(path: Path, _stamp: int) -> ModelSize | None:
    try:
        config = json.loads((path / "config.json").read_bytes())
        parameters = sum(_parameters(file) for file in path.glob("*.safetensors"))
        layers = _first(config, "num_hidden_layers", "n_layer")
        width = _first(config, "hidden_size", "n_embd")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not parameters or not layers or not width:
        return None
    return ModelSize(parameters=parameters, layers=layers, width=width)


def _parameters(file: Path) -> int:
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > MOST_HEADER_BYTES:
            raise ValueError(f"{file} has no header")
        header = json.loads(opened.read(length))
    tensors = [value for name, value in header.items() if name != "__metadata__"]
    return sum(math.prod(map(int, tensor["shape"])) for tensor in tensors)


def _first(config: dict[str, Any], *names: str) -> int:
    """The first of these settings, in a model's configuration or that of its text part."""
    for part in (config, config.get("text_config", {})):
        for name in names:
            if name in part:
                return int(part[name])
    return 0
