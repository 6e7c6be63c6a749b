"""Options that suit a policy's size and how much there is to learn from. Each says why.

Small models take a large learning rate and full fine-tuning (above 1e-4 the starter policy loses
its grammar: docs/lab-log.md); large ones repeat themselves above about 1e-6 in full (SimPO's
notes), so they get an adapter.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop

from labeling.models import Policy
from labeling.policy_files import SMALL_MODEL_BYTES
from training.sizes import model_bytes

LARGE_MODEL_BYTES = 8_000_000_000  # about four billion parameters in half precision
SOME_PAIRS, MANY_PAIRS = 2_000, 20_000


class _Part(NamedTuple):
    """A size of the policy, or an amount of data: its name, why, and what it sets."""

    name: str
    why: str
    options: dict[str, Any]


BASE = {"beta": 0.1, "max_length": 1024}
ADAPTER = {"method": "lora", "learning_rate": 1e-5, "dtype": "bfloat16"}
SIZES = {
    "small": _Part(
        gettext_noop("Small model"),
        gettext_noop(
            "All weights learn, with a large step and in single precision: for a model of this "
            "size that costs little."
        ),
        {"method": "full", "learning_rate": 8e-5, "dtype": "float32", "epochs": 2},
    ),
    "middle": _Part(
        gettext_noop("Model of some billion parameters"),
        gettext_noop(
            "An adapter learns, in a fraction of the memory; in full, models of this size repeat "
            "themselves easily."
        ),
        {**ADAPTER, "epochs": 1},
    ),
    "large": _Part(
        gettext_noop("Large model"),
        gettext_noop(
            "An adapter learns with half the usual step, and activations are computed twice: "
            "slower, in the least memory."
        ),
        {**ADAPTER, "learning_rate": 5e-6, "epochs": 1, "activation_checkpointing": True},
    ),
}
AMOUNTS = {
    "few": _Part(
        gettext_noop("up to two thousand pairs"),
        gettext_noop("Few comparisons a step, so that little data still makes many steps."),
        {"batch_groups": 8},
    ),
    "some": _Part(
        gettext_noop("some thousand pairs"),
        gettext_noop("More comparisons a step: steadier, and there are enough of them."),
        {"batch_groups": 16},
    ),
    "many": _Part(
        gettext_noop("twenty thousand pairs and more"),
        gettext_noop("Each pair is seen once: with so many, another pass adds little."),
        {"batch_groups": 32, "epochs": 1},
    ),
}


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Options under a name; `key` is how an address or a form names it."""

    key: str
    name: str
    why: str
    options: dict[str, Any]


def presets() -> list[Preset]:
    """All of them, by size and then by amount."""
    return [_preset(size, amount) for size in SIZES for amount in AMOUNTS]


def preset(key: str) -> Preset | None:
    """The one of this key; None where there is none."""
    return next((one for one in presets() if one.key == key), None)


def suiting(policy: Policy, pairs: int = 0) -> Preset:
    """What suits this policy's size on disk and so many pairs to train on."""
    weights = model_bytes(Path(policy.model_path))
    size = "small" if weights < SMALL_MODEL_BYTES else "middle"
    size = "large" if weights >= LARGE_MODEL_BYTES else size
    amount = "few" if pairs < SOME_PAIRS else "some"
    return _preset(size, "many" if pairs >= MANY_PAIRS else amount)


def default_options(policy: Policy, pairs: int = 0) -> dict[str, Any]:
    """Trainer options that suit the policy and so many pairs; a manager may change each."""
    return suiting(policy, pairs).options


def _preset(size: str, amount: str) -> Preset:
    of_size, of_amount = SIZES[size], AMOUNTS[amount]
    return Preset(
        key=f"{size}-{amount}",
        name=f"{_(of_size.name)}, {_(of_amount.name)}",
        why=f"{_(of_size.why)} {_(of_amount.why)}",
        options=BASE | of_size.options | of_amount.options,
    )
