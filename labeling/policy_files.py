"""A policy's folder on disk: is it safe to load, and which weights is it? Standard library only.

A model folder can run code on the machine that loads it: through pickled weights, through Python
files, through `auto_map` (vLLM CVE-2026-22807 ran it even with trust_remote_code off). It is
looked at here before any library sees it.
"""

import hashlib
import json
import os
from pathlib import Path

from jobs.run_dir import sha256_file

PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
SMALL_MODEL_BYTES = 200_000_000
VOCABULARIES = ("tokenizer.json", "vocab.json")  # their keys are tokens, not settings
DIGESTED = (".safetensors", ".json", ".jinja", ".model", ".txt")


class UnsafePolicy(Exception):
    """A folder that is not a policy, or that could run code when loaded."""


def check_policy_dir(path: Path) -> None:
    """UnsafePolicy unless the folder holds a model or an adapter as safetensors and no code."""
    if not path.is_dir():
        raise UnsafePolicy(f"{path} is not a folder")
    files = [file for file in path.rglob("*") if not file.is_dir()]
    for file in files:
        _check_file(file)
    names = {file.name for file in files if file.parent == path}
    if not names & {"config.json", "adapter_config.json"}:
        raise UnsafePolicy(f"{path} holds neither config.json nor adapter_config.json")
    if not any(name.endswith(".safetensors") for name in names):
        raise UnsafePolicy(f"{path} holds no .safetensors weights; other formats are refused")


def _check_file(file: Path) -> None:
    if file.suffix.lower() in PICKLED:
        raise UnsafePolicy(f"{file.name} is a pickled file, which can run code; safetensors only")
    if file.suffix.lower() == ".py":
        raise UnsafePolicy(f"{file.name} is Python code; models that bring code are refused")
    if file.suffix == ".json" and file.name not in VOCABULARIES and _asks_for_code(file):
        raise UnsafePolicy(f"{file.name} asks for remote code (auto_map); refused")


def _asks_for_code(file: Path) -> bool:
    """Parsed, not searched: JSON can spell a key in many ways."""
    try:
        values = [json.loads(file.read_bytes())]
    except (ValueError, RecursionError):
        raise UnsafePolicy(f"{file.name} is not JSON") from None
    while values:
        value = values.pop()
        if isinstance(value, dict):
            if "auto_map" in value:
                return True
            values += value.values()
        elif isinstance(value, list):
            values += value
    return False


def is_small(path: Path) -> bool:
    """Whether a model is a toy, for which single precision costs nothing that matters."""
    weights = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    return weights < SMALL_MODEL_BYTES


def policy_digest(path: Path) -> str:
    """Hex SHA-256 over the names and contents of the files that decide what the policy says.

    Subfolders are left out; so are README files and licences.
    """
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.is_file() and file.suffix in DIGESTED:
            digest.update(f"{file.name}\0{sha256_file(file)}\n".encode())
    return digest.hexdigest()


def folder_bytes(folder: Path) -> int:
    """Bytes of the files that lie in a folder itself, links not counted; 0 where there is none."""
    try:
        with os.scandir(folder) as entries:
            return sum(
                entry.stat(follow_symlinks=False).st_size
                for entry in entries
                if entry.is_file(follow_symlinks=False)
            )
    except OSError:
        return 0
