"""spec.json: the resolved configuration of a round. Every key is required, no other is allowed.

What a key may hold, and with which objective or method it means anything, stands in tables. One
message names all keys that are unknown, missing, of a wrong type, out of range or without effect.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jobs.run_dir import RunDirError, check_spec, read_json

ObjectiveName = Literal["dpo", "ipo", "hinge", "robust", "simpo"]
LogratioKind = Literal["sum", "mean"]

DEFAULTS: dict[str, Any] = {
    "schema": 1,
    "method": "full",
    "lora_rank": 16,
    "lora_alpha": 32,
    "lora_export": None,
    "objective": "dpo",
    "beta": 0.1,
    "logratio": None,
    "label_noise": None,
    "target_margin": None,
    "length_penalty": None,
    "chosen_floor": None,
    "labels": "votes",
    "ties": "drop",
    "tie_nu": None,
    "learning_rate": 5e-5,
    "warmup_steps": 5,
    "epochs": 2,
    "batch_groups": 8,
    "max_grad_norm": 1.0,
    "weight_decay": 0.0,
    "max_length": 1024,
    "long_prompts": "shorten",
    "dtype": "float32",
    "activation_checkpointing": False,
    "compile": False,
    "pack_tokens": None,
    "reference_cache": None,
    "seed": 0,
    "held_out_share": 0.1,
    "log_every": 1,
    "eval_every": 20,
    "sample_prompts": 16,
    "sample_tokens": 128,
    "early_stopping": None,
    "keep": "last",
    "checkpoint_every": 50,
    "keep_checkpoints": 2,
}


class Range(NamedTuple):
    """The numbers from `low` on (without it where `above`), up to but without `below`."""

    low: float
    above: bool = False
    below: float = math.inf

    def holds(self, value: float) -> bool:
        """Whether the value is in the range; NaN and infinity never are."""
        return (value > self.low or (value == self.low and not self.above)) and value < self.below

    def __str__(self) -> str:
        low = f"{'above' if self.above else 'at least'} {self.low:g}"
        return low if self.below == math.inf else f"{low} and below {self.below:g}"


ABOVE_0 = Range(0, above=True)
AT_LEAST_0 = Range(0)
AT_LEAST_1 = Range(1)
RANGES = {
    "beta": ABOVE_0,
    "learning_rate": ABOVE_0,
    "max_grad_norm": ABOVE_0,
    "length_penalty": ABOVE_0,
    "chosen_floor": ABOVE_0,
    "target_margin": AT_LEAST_0,
    "warmup_steps": AT_LEAST_0,
    "weight_decay": AT_LEAST_0,
    "seed": Range(0, below=2**63),
    "sample_prompts": AT_LEAST_0,
    "lora_rank": AT_LEAST_1,
    "lora_alpha": AT_LEAST_1,
    "epochs": AT_LEAST_1,
    "batch_groups": AT_LEAST_1,
    "pack_tokens": AT_LEAST_1,
    "log_every": AT_LEAST_1,
    "eval_every": AT_LEAST_1,
    "sample_tokens": AT_LEAST_1,
    "early_stopping": AT_LEAST_1,
    "checkpoint_every": AT_LEAST_1,
    "keep_checkpoints": AT_LEAST_1,
    "max_length": Range(2),  # a token of the prompt and one of the response
    "tie_nu": Range(1, above=True),  # ν = 1 is no model of ties
    "label_noise": Range(0, below=0.5),
    "held_out_share": Range(0, below=1),
}
# Keys that do nothing unless another has one of these values; they stay at their default then.
ONLY_WITH: dict[str, tuple[str, tuple[str, ...]]] = {
    "lora_rank": ("method", ("lora",)),
    "lora_alpha": ("method", ("lora",)),
    "lora_export": ("method", ("lora",)),
    "label_noise": ("objective", ("robust",)),
    "target_margin": ("objective", ("simpo",)),
    "length_penalty": ("objective", ("dpo",)),
    "chosen_floor": ("objective", ("dpo",)),
    "ties": ("objective", ("dpo",)),
    "tie_nu": ("ties", ("rao_kupper",)),
}
# What an objective cannot do without, and what to give.
NEEDED: dict[str, tuple[str, str]] = {
    "robust": ("label_noise", "the share of votes that are wrong, at least 0 and below 0.5"),
    "simpo": ("target_margin", "γ, in the units of the reward margin; half of beta is usual"),
    "ipo": ("logratio", "sum, as in the paper, or mean, over tokens; beta differs with it"),
}
SHAPE = ("lora_rank", "lora_alpha")
OFF = (None, "drop")  # values by which a key says that it is not in use


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
    """One round. Lengths are in tokens; the objective's numbers are those of objectives.py."""

    schema: Literal[1]
    policy: PolicySource
    reference: PolicySource
    method: Literal["full", "lora"]
    lora_rank: int
    lora_alpha: int
    lora_export: Literal["adapter", "merged"] | None  # null is adapter
    objective: ObjectiveName
    beta: float
    logratio: LogratioKind | None  # null is the objective's own; ipo has none
    label_noise: float | None
    target_margin: float | None
    length_penalty: float | None
    chosen_floor: float | None
    labels: Literal["votes", "majority"]
    ties: Literal["drop", "rao_kupper"]
    tie_nu: float | None  # null is fitted to the votes
    learning_rate: float
    warmup_steps: int
    epochs: int
    batch_groups: int
    max_grad_norm: float
    weight_decay: float
    max_length: int
    long_prompts: Literal["shorten", "drop"]
    dtype: Literal["float32", "bfloat16"]
    activation_checkpointing: bool
    compile: bool
    pack_tokens: int | None  # of one forward and backward pass; null suits the device
    reference_cache: str | None
    seed: int
    held_out_share: float
    log_every: int
    eval_every: int
    sample_prompts: int
    sample_tokens: int
    early_stopping: int | None  # evaluations without a better held-out accuracy
    keep: Literal["last", "best"]
    checkpoint_every: int
    keep_checkpoints: int

    def __post_init__(self) -> None:
        if problems := list(self.rules(vars(self))):
            raise ValueError("; ".join(problems))

    @staticmethod
    def rules(given: Mapping[str, Any]) -> Iterator[str]:
        """What is wrong with the values of well-typed keys; not all keys need be there."""
        yield from _out_of_range(given)
        yield from _without_effect(given)
        yield from _lacking(given)

    @property
    def starts_as_reference(self) -> bool:
        """Whether the round is held to its own start, so that every margin of step 0 is 0."""
        return _real(self.policy) == _real(self.reference)


def _out_of_range(given: Mapping[str, Any]) -> Iterator[str]:
    for name, numbers in RANGES.items():
        value = given.get(name)
        if value is not None and not numbers.holds(value):
            yield f"{name} must be {numbers}, got {value}"
    if given.get("reference_cache") == "":
        yield "reference_cache must be null or the path of a file"


def _without_effect(given: Mapping[str, Any]) -> Iterator[str]:
    for name in given:
        if given[name] != DEFAULTS.get(name) and (why := _idle(name, given)):
            yield f"{name} does nothing with {why}: leave it at {json.dumps(DEFAULTS[name])}"
    if given.get("objective") == "simpo" and given.get("logratio") == "sum":
        yield "logratio=sum is not simpo, whose reward is the mean over tokens: leave it at null"


def _idle(name: str, given: Mapping[str, Any]) -> str | None:
    """The setting with which a key does nothing; None where it counts, or nobody can tell."""
    if name == "sample_tokens" and given.get("sample_prompts") == 0:
        return "sample_prompts=0"
    other, values = ONLY_WITH.get(name, ("", ()))
    return f"{other}={given[other]}" if other in given and given[other] not in values else None


def _lacking(given: Mapping[str, Any]) -> Iterator[str]:
    name, what = NEEDED.get(given.get("objective", ""), ("", ""))
    if name in given and given[name] is None:
        yield f"objective={given['objective']} needs {name}: {what}"


def _real(source: PolicySource) -> list[Path]:
    return [folder.resolve() for folder in source.folders]


def load_spec(path: Path) -> Spec:
    """The spec in a file; RunDirError names every key that is unknown, missing or wrong."""
    return check_spec(Spec, read_json(path))


def resolve_spec(policy: PolicySource, settings: list[str]) -> dict[str, Any]:
    """Defaults, the policy as its own reference, and `key=value` settings on top, checked.

    An adapter policy brings its own rank and alpha: LoRA training goes on in the same adapter.
    """
    given, problems = _parse_settings(settings)
    start = {"model": policy.model, "adapter": policy.adapter}
    own: dict[str, Any] = {}
    if given.get("method", DEFAULTS["method"]) == "lora" and policy.adapter is not None:
        own = dict(zip(SHAPE, adapter_shape(Path(policy.adapter)), strict=True))
    spec = DEFAULTS | {"policy": start, "reference": start} | own | given
    check_spec(Spec, spec, problems=[*problems, *_said_in_vain(given, spec)])
    return spec


def _parse_settings(settings: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Values by key, and what is wrong: `beta=0.2`, `reference={"model": "/m", "adapter": null}`.

    What is not JSON is text: `method=lora`.
    """
    given: dict[str, Any] = {}
    problems = []
    for setting in settings:
        key, sign, text = setting.partition("=")
        if not sign:
            problems.append(f"--set {setting}: expected key=value")
            continue
        if key in given:
            problems.append(f"{key} is set twice")
        try:
            given[key] = json.loads(text)
        except ValueError:
            given[key] = text
    return given, problems


def _said_in_vain(given: Mapping[str, Any], spec: Mapping[str, Any]) -> Iterator[str]:
    """Settings without effect that repeat a default, for a person expects something of them."""
    for name, value in given.items():
        default = DEFAULTS.get(name)
        if default not in OFF and value == default and (why := _idle(name, spec)):
            yield f"{name} does nothing with {why}: leave it out"


def adapter_shape(adapter: Path) -> tuple[int, int]:
    """Rank and alpha of a LoRA adapter on disk; RunDirError for any other kind of adapter."""
    config = read_json(adapter / "adapter_config.json")
    if config.get("peft_type") != "LORA":
        raise RunDirError(f"{adapter} is a {config.get('peft_type')} adapter; only LORA is known")
    return config["r"], config["lora_alpha"]
