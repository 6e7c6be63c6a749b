"""What the trainer is told of a round: the arguments of its program, and what they resolve to."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.run_dir import encode
from labeling.models import Policy
from training.disk import cache_file
from training.models import Round
from training.trainer.config import DEFAULTS, PolicySource, resolve_spec


def init_arguments(round_: Round, preferences: Path) -> list[str]:
    """Arguments of `python -m training.trainer` that make the round's run directory."""
    start = round_.start
    arguments = ["init", round_.run_dir, "--policy", start.model_path]
    if start.adapter_path:
        arguments += ["--adapter", start.adapter_path]
    return [*arguments, "--preferences", str(preferences), "--set", *_said(round_)]


def trainer_settings(round_: Round) -> dict[str, Any]:
    """The round's options, and what its manager does not choose, by the keys of the spec.

    An option without a value is left to the trainer's default.
    """
    chosen = {name: value for name, value in round_.options.items() if value is not None}
    chosen["reference_cache"] = str(cache_file(round_.project))
    if round_.reference != round_.start:
        chosen["reference"] = policy_folders(round_.reference)
    return chosen


def policy_folders(policy: Policy) -> dict[str, str | None]:
    """A policy as the programs name it."""
    return {"model": policy.model_path, "adapter": policy.adapter_path or None}


def resolved(round_: Round) -> dict[str, Any]:
    """The whole spec that the trainer would make of the round, which need not be saved.

    RunDirError where it would refuse it.
    """
    start = round_.start
    source = PolicySource(model=start.model_path, adapter=start.adapter_path or None)
    return resolve_spec(source, _said(round_))


def _said(round_: Round) -> list[str]:
    chosen = sorted(trainer_settings(round_).items())
    return [f"{name}={json.dumps(value)}" for name, value in chosen]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A key of the spec with its value as JSON, and whether the trainer has it so by itself."""

    key: str
    value: str
    default: bool


def in_lines(spec: Mapping[str, Any]) -> list[Setting]:
    """A spec for reading: first what was said, then what the trainer adds."""
    lines = [
        Setting(key=key, value=encode(value), default=key in DEFAULTS and DEFAULTS[key] == value)
        for key, value in spec.items()
    ]
    return sorted(lines, key=lambda line: line.default)
