"""The spec is strict both ways, and an option that would do nothing is an error."""

import json
from typing import Any

import pytest

from jobs.run_dir import RunDirError, check_spec
from training.trainer.config import DEFAULTS, PolicySource, Spec, resolve_spec

SOURCE = {"model": "/m", "adapter": None}
GOOD: dict[str, Any] = DEFAULTS | {"policy": SOURCE, "reference": SOURCE}
BASE = PolicySource(model="/m", adapter=None)


def test_every_key_is_required_and_no_other_allowed_in_one_message():
    bad = {k: v for k, v in GOOD.items() if k not in ("beta", "seed")} | {"betta": 1, "epochs": "2"}
    with pytest.raises(RunDirError) as error:
        check_spec(Spec, bad)
    for part in ("unknown key betta", "missing key beta", "missing key seed", "epochs must be int"):
        assert part in str(error.value)


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
    with pytest.raises(RunDirError, match="would do nothing with method=full"):
        resolve_spec(BASE, [setting])
    assert resolve_spec(BASE, [setting, "method=lora"])["method"] == "lora"


def test_a_lora_option_that_does_nothing_is_an_error_in_the_file_too():
    with pytest.raises(RunDirError, match="lora_rank does nothing with method=full"):
        check_spec(Spec, GOOD | {"lora_rank": 8})


def test_settings_are_json_or_text():
    spec = resolve_spec(
        BASE, ["beta=0.2", "labels=majority", 'reference={"model":"/r","adapter":null}']
    )
    assert (spec["beta"], spec["labels"], spec["reference"]["model"]) == (0.2, "majority", "/r")
    with pytest.raises(RunDirError, match="unknown key betta"):
        resolve_spec(BASE, ["betta=1"])
    with pytest.raises(RunDirError, match="expected key=value"):
        resolve_spec(BASE, ["beta"])


def test_an_adapters_own_rank_is_the_default_when_training_goes_on_in_it(tmp_path):
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 12}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    source = PolicySource(model="/m", adapter=str(tmp_path))
    spec = resolve_spec(source, ["method=lora"])
    assert (spec["lora_rank"], spec["lora_alpha"]) == (4, 12)
    assert spec["reference"] == {"model": "/m", "adapter": str(tmp_path)}
    full = resolve_spec(source, [])
    assert full["lora_rank"] == DEFAULTS["lora_rank"]
