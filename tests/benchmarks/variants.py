"""The settings of both trainers. What is not here is that trainer's default."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

MAX_LENGTH = 512
RANKED_MAX_LENGTH = 1024  # the default of both trainers: long answers are skewed like others
COMMON = {"learning_rate": 5e-5, "beta": 0.1, "max_grad_norm": 1.0, "weight_decay": 0.0}
OURS = COMMON | {
    "epochs": 1,
    "warmup_steps": 0,
    "max_length": MAX_LENGTH,
    "held_out_share": 0,
    "log_every": 1,
    "checkpoint_every": 10**6,
}
TRL = COMMON | {
    "num_train_epochs": 1,
    "warmup_steps": 0,
    "lr_scheduler_type": "linear",
    "max_length": MAX_LENGTH,
    "bf16": False,
    "train_sampling_strategy": "sequential",
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}
PRECOMPUTED = {"precompute_ref_log_probs": True, "gradient_checkpointing": False}
ONE_BY_ONE = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A way to train: ours with settings on top of OURS, or TRL's with arguments on top of TRL."""

    name: str
    words: str  # what a table says of it
    trl: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)
    grouped: bool = False  # trains on the length-grouped rows


PREFLOOP = Variant(name="ours", words="defaults", trl=False)
DEFAULT = Variant(name="trl default", words="TRL's defaults (checkpointing, reference each step)")
BEST = Variant(
    name="trl precomputed",
    words="TRL, precomputed reference, no checkpointing",
    settings=PRECOMPUTED,
)
ACCUMULATED = Variant(
    name="trl 1 x 8",
    words="TRL, the same with batch 1 x accumulation 8",
    settings=PRECOMPUTED | ONE_BY_ONE,
)
GROUPED = Variant(
    name="trl by length",
    words="TRL, the same with batches of alike length",
    settings=PRECOMPUTED,
    grouped=True,
)


def ranked(variant: Variant) -> Variant:
    """The variant as it trains on rankings of four."""
    return replace(variant, settings={**variant.settings, "max_length": RANKED_MAX_LENGTH})


def arguments(variant: Variant, *, groups: int, pairs: int) -> dict[str, Any]:
    """All that is set for batches of `groups` rankings of `pairs` pairs each."""
    if not variant.trl:
        return {**OURS, "batch_groups": groups, **variant.settings}
    return {**TRL, "per_device_train_batch_size": groups * pairs, **variant.settings}
