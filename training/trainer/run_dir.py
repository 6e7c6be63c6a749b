"""The files of a DPO round, and the errors that end one with an exit code of their own."""

import hashlib
import platform
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jobs.run_dir import (
    EXIT_BAD_INPUT,
    EXIT_REFUSED,
    EXIT_STOPPED,
    read_jsonl,
    sha256_file,
    write_json,
    write_jsonl,
)

SCHEMA = 1
LIBRARIES = ("torch", "transformers", "peft", "safetensors", "tokenizers")


class TrainerError(Exception):
    """Ends the run. The message is for the user; `details` go into the error event."""

    exit_code = EXIT_BAD_INPUT

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.details = details


class BadInput(TrainerError):
    """The spec, the preferences or a policy's folder cannot be used."""


class Refused(TrainerError):
    """A number that must hold does not: training on would give a policy nobody can trust."""

    exit_code = EXIT_REFUSED


class Stopped(TrainerError):
    """A stop was asked for; the same run directory goes on when it is run again."""

    exit_code = EXIT_STOPPED


@dataclass(frozen=True)
class RoundFiles:
    """Paths in a round's run directory."""

    root: Path

    @property
    def spec(self) -> Path:
        return self.root / "spec.json"

    @property
    def preferences(self) -> Path:
        return self.root / "preferences.jsonl"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def policy(self) -> Path:
        return self.root / "policy"

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.json"


def input_digests(files: RoundFiles) -> dict[str, str]:
    """SHA-256 of what the round was given, by file name."""
    return {path.name: sha256_file(path) for path in (files.spec, files.preferences)}


@cache
def library_versions() -> dict[str, str]:
    """Versions of everything that decides the numbers."""
    return {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}


def combined_digest(model: str, adapter: str | None) -> str:
    """One digest for weights that lie in a base folder and, perhaps, an adapter's folder."""
    if adapter is None:
        return model
    return hashlib.sha256(f"{model}\n{adapter}\n".encode()).hexdigest()


def drop_metrics_after(files: RoundFiles, step: int) -> None:
    """Forget lines that a killed run logged past the checkpoint: those steps are run again."""
    if files.metrics.exists():
        write_jsonl(
            files.metrics, [row for row in read_jsonl(files.metrics) if row["step"] <= step]
        )


def write_manifest(files: RoundFiles, **fields: Any) -> None:
    """Write manifest.json, whose presence says that the round is done."""
    outputs = {
        str(path.relative_to(files.root)): sha256_file(path)
        for path in [*sorted(files.policy.iterdir()), files.metrics]
        if path.is_file()
    }
    manifest = {"schema": SCHEMA, **fields, "versions": library_versions()}
    write_json(files.manifest, manifest | {"inputs": input_digests(files), "outputs": outputs})
