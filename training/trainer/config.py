"""spec.json: the resolved configuration of a round. Every key is required, no other is allowed."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jobs.run_dir import RunDirError, check_spec, read_json

LORA_ONLY = ("lora_rank", "lora_alpha")
DEFAULTS: dict[str, Any] = {
    "schema": 1,
    "method": "full",
    "lora_rank": 16,
    "lora_alpha": 32,
    "beta": 0.1,
    "labels": "votes",
    "learning_rate": 5e-5,
    "warmup_steps": 5,
    "epochs": 2,
    "batch_groups": 8,
    "max_grad_norm": 1.0,
    "weight_decay": 0.0,
    "max_length": 1024,
    "dtype": "float32",
    "seed": 0,
    "held_out_share": 0.1,
    "log_every": 1,
    "eval_every": 20,
    "checkpoint_every": 50,
    "keep_checkpoints": 2,
}
POSITIVE = ("beta", "learning_rate", "max_grad_norm")
AT_LEAST_ONE = (
    "lora_rank",
    "lora_alpha",
    "epochs",
    "batch_groups",
    "log_every",
    "eval_every",
    "checkpoint_every",
    "keep_checkpoints",
)
NOT_NEGATIVE = ("warmup_steps", "weight_decay", "seed")


@dataclass(frozen=True, kw_only=True)
class PolicySource:
    """Where a policy's weights lie: a model's folder and, perhaps, a LoRA adapter's on top."""

    model: str
    adapter: str | None

    @property
    def folders(self) -> list[Path]:
        """The model's folder, then the adapter's."""
        return [Path(folder) for folder in (self.model, self.adapter) if folder is not None]


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One round of DPO. Lengths are in tokens; β, labels and the loss are in objectives.py."""

    schema: Literal[1]
    policy: PolicySource
    reference: PolicySource
    method: Literal["full", "lora"]
    lora_rank: int
    lora_alpha: int
    beta: float
    labels: Literal["votes", "majority"]
    learning_rate: float
    warmup_steps: int
    epochs: int
    batch_groups: int
    max_grad_norm: float
    weight_decay: float
    max_length: int
    dtype: Literal["float32", "bfloat16"]
    seed: int
    held_out_share: float
    log_every: int
    eval_every: int
    checkpoint_every: int
    keep_checkpoints: int

    def __post_init__(self) -> None:
        if problems := list(self._problems()):
            raise ValueError("; ".join(problems))

    def _problems(self) -> Iterator[str]:
        for name in POSITIVE:
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                yield f"{name} must be above 0, got {getattr(self, name)}"
        for name in AT_LEAST_ONE:
            if getattr(self, name) < 1:
                yield f"{name} must be at least 1, got {getattr(self, name)}"
        for name in NOT_NEGATIVE:
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                yield f"{name} must be at least 0, got {getattr(self, name)}"
        if not 0 <= self.held_out_share < 1:
            yield f"held_out_share must be in [0, 1), got {self.held_out_share}"
        if self.max_length < 2:
            yield f"max_length must be at least 2 tokens, got {self.max_length}"
        if self.method == "full":
            for name in LORA_ONLY:
                if getattr(self, name) != DEFAULTS[name]:
                    yield f"{name} does nothing with method=full: leave it at {DEFAULTS[name]}"

    @property
    def starts_as_reference(self) -> bool:
        """Whether the round is held to its own start, so that step 0's loss is ln 2."""
        return _real(self.policy) == _real(self.reference)


def _real(source: PolicySource) -> list[Path]:
    return [folder.resolve() for folder in source.folders]


def load_spec(path: Path) -> Spec:
    """The spec in a file; RunDirError names every key that is unknown, missing or wrong."""
    return check_spec(Spec, read_json(path))


def resolve_spec(policy: PolicySource, settings: list[str]) -> dict[str, Any]:
    """Defaults, the policy as its own reference, and `key=value` settings on top, checked.

    An adapter policy brings its own rank and alpha: LoRA training goes on in the same adapter.
    """
    given = dict(_parse_setting(setting) for setting in settings)
    start = {"model": policy.model, "adapter": policy.adapter}
    method = given.get("method", DEFAULTS["method"])
    idle = [name for name in LORA_ONLY if name in given and method != "lora"]
    if idle:
        raise RunDirError(f"{' and '.join(idle)} would do nothing with method={method}")
    own: dict[str, Any] = {}
    if method == "lora" and policy.adapter is not None:
        own = dict(zip(LORA_ONLY, adapter_shape(Path(policy.adapter)), strict=True))
    spec = DEFAULTS | {"policy": start, "reference": start} | own | given
    check_spec(Spec, spec)
    return spec


def adapter_shape(adapter: Path) -> tuple[int, int]:
    """Rank and alpha of a LoRA adapter on disk; RunDirError for any other kind of adapter."""
    config = read_json(adapter / "adapter_config.json")
    if config.get("peft_type") != "LORA":
        raise RunDirError(f"{adapter} is a {config.get('peft_type')} adapter; only LORA is known")
    return config["r"], config["lora_alpha"]


def _parse_setting(setting: str) -> tuple[str, Any]:
    """`beta=0.2`, `method=lora`, `reference={"model": "/m", "adapter": null}`."""
    key, sign, text = setting.partition("=")
    if not sign:
        raise RunDirError(f"--set {setting}: expected key=value")
    try:
        return key, json.loads(text)
    except json.JSONDecodeError:
        return key, text
