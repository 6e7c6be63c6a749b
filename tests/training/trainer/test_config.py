"""The spec is strict both ways, and an option that would do nothing is an error."""

import dataclasses
import json
from typing import Any

import pytest

from jobs.run_dir import RunDirError, check_spec
from training.trainer.config import (
    DEFAULTS,
    NEEDED,
    ONLY_WITH,
    RANGES,
    PolicySource,
    Spec,
    resolve_spec,
)

SOURCE = {"model": "/m", "adapter": None}
GOOD: dict[str, Any] = DEFAULTS | {"policy": SOURCE, "reference": SOURCE}
BASE = PolicySource(model="/m", adapter=None)


def complaint(**changes: Any) -> str:
    """What the spec says about changed values; "" when it takes them."""
    try:
        check_spec(Spec, GOOD | changes)
    except RunDirError as error:
        return str(error)
    return ""


def test_every_key_is_required_and_no_other_allowed_in_one_message():
    """Unknown, missing, wrongly typed, out of range, without effect and lacking: all at once."""
    bad = {k: v for k, v in GOOD.items() if k not in ("beta", "seed")} | {
        "betta": 1,
        "epochs": "2",
        "policy": {"model": 3},
        "batch_groups": 0,
        "objective": "robust",
        "chosen_floor": 5.0,
        "lora_rank": 8,
    }
    with pytest.raises(RunDirError) as error:
        check_spec(Spec, bad)
    for part in (
        "unknown key betta",
        "missing key beta",
        "missing key seed",
        "epochs must be int, got '2'",
        "policy.model must be str, got 3",
        "missing key policy.adapter",
        "batch_groups must be at least 1, got 0",
        "chosen_floor does nothing with objective=robust: leave it at null",
        "lora_rank does nothing with method=full: leave it at 16",
        "objective=robust needs label_noise",
    ):
        assert part in str(error.value)


def test_a_rule_about_a_key_that_is_not_there_stays_silent():
    bad = {k: v for k, v in GOOD.items() if k != "objective"} | {"chosen_floor": 5.0}
    with pytest.raises(RunDirError) as error:
        check_spec(Spec, bad)
    assert str(error.value) == "the spec has problems: missing key objective"
    assert "does nothing" not in complaint(objective="dpo2", chosen_floor=5.0)


@pytest.mark.parametrize("key", sorted(GOOD))
def test_no_key_may_be_left_out(key):
    with pytest.raises(RunDirError, match=f"missing key {key}"):
        check_spec(Spec, {k: v for k, v in GOOD.items() if k != key})


@pytest.mark.parametrize(
    "bad",
    [
        {"beta": 0},
        {"beta": float("nan")},
        {"learning_rate": -1e-5},
        {"learning_rate": float("inf")},
        {"epochs": 0},
        {"epochs": True},
        {"batch_groups": 0},
        {"held_out_share": 1.0},
        {"held_out_share": -0.1},
        {"weight_decay": -1},
        {"warmup_steps": -1},
        {"max_length": 1},
        {"method": "qlora"},
        {"labels": "soft"},
        {"dtype": "float16"},
        {"schema": 2},
        {"keep_checkpoints": 0},
        {"policy": {"model": "/m"}},
        {"policy": "/m"},
        {"schema": True},
        {"beta": 10**400},
        {"seed": 2**63},
        {"objective": "kto"},
        {"objective": ["dpo"]},
        {"logratio": "max"},
        {"label_noise": 0.5},
        {"label_noise": -0.1},
        {"target_margin": -1},
        {"length_penalty": 0},
        {"chosen_floor": 0},
        {"ties": "davidson"},
        {"tie_nu": 1},
        {"long_prompts": "cut"},
        {"activation_checkpointing": 1},
        {"compile": None},
        {"reference_cache": ""},
        {"sample_prompts": -1},
        {"sample_tokens": 0},
        {"early_stopping": 0},
        {"keep": "first"},
        {"lora_export": "both"},
    ],
)
def test_values_out_of_range_are_named(bad):
    with pytest.raises(RunDirError, match=next(iter(bad))):
        check_spec(Spec, GOOD | bad)


def test_all_values_out_of_range_are_named_at_once():
    with pytest.raises(RunDirError, match="beta must be above 0.*epochs must be at least 1"):
        check_spec(Spec, GOOD | {"beta": 0, "epochs": 0})


@pytest.mark.parametrize("setting", ["lora_rank=16", "lora_alpha=8"])
def test_a_lora_option_with_full_training_is_an_error(setting):
    with pytest.raises(RunDirError, match="does nothing with method=full"):
        resolve_spec(BASE, [setting])
    assert resolve_spec(BASE, [setting, "method=lora"])["method"] == "lora"


def test_a_lora_option_that_does_nothing_is_an_error_in_the_file_too():
    with pytest.raises(RunDirError, match="lora_rank does nothing with method=full"):
        check_spec(Spec, GOOD | {"lora_rank": 8})


@pytest.mark.parametrize(
    "good",
    [
        {"objective": "ipo", "logratio": "sum"},
        {"objective": "ipo", "logratio": "mean"},
        {"objective": "hinge", "logratio": "mean"},
        {"objective": "robust", "label_noise": 0},
        {"objective": "simpo", "target_margin": 0},
        {"objective": "simpo", "target_margin": 0.5, "logratio": "mean"},
        {"length_penalty": 0.01, "chosen_floor": 50, "logratio": "mean"},
        {"ties": "rao_kupper"},
        {"ties": "rao_kupper", "tie_nu": 1.5},
        {"method": "lora", "lora_rank": 8, "lora_export": "merged"},
        {"sample_prompts": 0},
        {"early_stopping": 3, "keep": "best"},
        {"reference_cache": "cache.sqlite3"},
    ],
)
def test_what_belongs_together_is_taken(good):
    assert complaint(**good) == ""


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"objective": "ipo"}, "objective=ipo needs logratio: sum, as in the paper, or mean"),
        ({"objective": "robust"}, "objective=robust needs label_noise"),
        ({"objective": "simpo"}, "objective=simpo needs target_margin"),
        (
            {"objective": "simpo", "target_margin": 1, "logratio": "sum"},
            "logratio=sum is not simpo",
        ),
        ({"label_noise": 0.1}, "label_noise does nothing with objective=dpo: leave it at null"),
        ({"target_margin": 0.1}, "target_margin does nothing with objective=dpo"),
        (
            {"objective": "hinge", "length_penalty": 0.1},
            "length_penalty does nothing with objective=hinge",
        ),
        (
            {"objective": "hinge", "chosen_floor": 0.1},
            "chosen_floor does nothing with objective=hinge",
        ),
        (
            {"objective": "hinge", "ties": "rao_kupper"},
            'ties does nothing with objective=hinge: leave it at "drop"',
        ),
        ({"tie_nu": 2}, "tie_nu does nothing with ties=drop"),
        ({"lora_alpha": 8}, "lora_alpha does nothing with method=full: leave it at 32"),
        ({"lora_export": "merged"}, "lora_export does nothing with method=full"),
        (
            {"sample_prompts": 0, "sample_tokens": 9},
            "sample_tokens does nothing with sample_prompts=0",
        ),
    ],
)
def test_what_does_not_belong_together_is_an_error(bad, message):
    assert message in complaint(**bad)


def test_a_spec_made_in_code_obeys_the_same_rules():
    values = DEFAULTS | {"policy": BASE, "reference": BASE, "objective": "ipo"}
    with pytest.raises(ValueError, match="needs logratio"):
        Spec(**values)


def test_every_key_of_the_tables_is_a_key_of_the_spec():
    keys = {field.name for field in dataclasses.fields(Spec)}
    tables = {*RANGES, *ONLY_WITH, *(name for name, _ in NEEDED.values())}
    assert tables <= keys
    assert DEFAULTS.keys() | {"policy", "reference"} == keys
    assert {other for other, _ in ONLY_WITH.values()} <= keys


def test_settings_are_json_or_text():
    spec = resolve_spec(
        BASE, ["beta=0.2", "labels=majority", 'reference={"model":"/r","adapter":null}']
    )
    assert (spec["beta"], spec["labels"], spec["reference"]["model"]) == (0.2, "majority", "/r")
    with pytest.raises(RunDirError, match="unknown key betta"):
        resolve_spec(BASE, ["betta=1"])
    with pytest.raises(RunDirError, match="expected key=value"):
        resolve_spec(BASE, ["beta"])
    with pytest.raises(RunDirError, match="beta is set twice"):
        resolve_spec(BASE, ["beta=1", "beta=2"])
    with pytest.raises(RunDirError, match="seed must be int"):
        resolve_spec(BASE, ["seed=" + "9" * 5000])


def test_the_command_line_too_names_everything_at_once():
    settings = ["objective=ipo", "betta=1", "beta=0", "lora_rank=16", "epochs", "seed=x"]
    with pytest.raises(RunDirError) as error:
        resolve_spec(BASE, settings)
    for part in (
        "unknown key betta",
        "beta must be above 0",
        "lora_rank does nothing with method=full",
        "--set epochs: expected key=value",
        "seed must be int",
        "objective=ipo needs logratio",
    ):
        assert part in str(error.value)


def test_an_adapters_own_rank_is_the_default_when_training_goes_on_in_it(tmp_path):
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 12}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    source = PolicySource(model="/m", adapter=str(tmp_path))
    spec = resolve_spec(source, ["method=lora"])
    assert (spec["lora_rank"], spec["lora_alpha"]) == (4, 12)
    assert spec["reference"] == {"model": "/m", "adapter": str(tmp_path)}
    full = resolve_spec(source, [])
    assert full["lora_rank"] == DEFAULTS["lora_rank"]
