"""A round's options: what the form takes the trainer takes; what it refuses, it names."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from hypothesis import given
from hypothesis import strategies as st

from jobs.run_dir import RunDirError, check_spec
from labeling.models import Project
from tests.builders import make_policy
from tests.training.rounds import OPTIONS, make_round, new_round, page_of
from training.disk import cache_file
from training.forms import IDLE, RoundForm
from training.models import RoundState
from training.options import CONDITIONS, FURTHER, MAIN, OptionFields, named_options
from training.services import start_round
from training.spec import init_arguments, trainer_settings
from training.trainer.config import DEFAULTS, PolicySource, Spec, resolve_spec

POLICY = PolicySource(model="/m", adapter=None)
VALUES: dict[str, list[str]] = {
    "method": ["full", "lora"],
    "beta": ["0.1", "2"],
    "labels": ["votes", "majority"],
    "objective": ["", "dpo", "ipo", "hinge", "robust", "simpo"],
    "logratio": ["", "sum", "mean"],
    "label_noise": ["", "0", "0.1", "0.49", "0.5", "nan", "-1"],
    "target_margin": ["", "0", "1", "inf"],
    "length_penalty": ["", "0.01", "0", "1e-9"],
    "chosen_floor": ["", "5", "0"],
    "ties": ["", "drop", "rao_kupper"],
    "long_prompts": ["", "shorten", "drop"],
    "activation_checkpointing": ["", "on"],
    "early_stopping": ["", "3", "0", "2.5"],
    "keep": ["", "last", "best"],
    "lora_export": ["", "adapter", "merged"],
    "seed": ["", "0", "7", "-1", "99999999999"],
}
NEEDS = {
    "robust": {"label_noise": "0.1"},
    "simpo": {"target_margin": "1"},
    "ipo": {"logratio": "sum"},
}
OBJECTIVES = ("dpo", "ipo", "hinge", "robust", "simpo")


@st.composite
def sent(draw: st.DrawFn) -> dict[str, str]:
    """An objective with what it needs, and a few other options as somebody may give them."""
    objective = draw(st.sampled_from(OBJECTIVES))
    names = draw(st.lists(st.sampled_from(list(VALUES)), max_size=4, unique=True))
    said = {name: draw(st.sampled_from(VALUES[name])) for name in names}
    return OPTIONS | {"objective": objective} | NEEDS.get(objective, {}) | said


def settings(options: dict[str, Any]) -> list[str]:
    return [f"{name}={json.dumps(value)}" for name, value in options.items()]


def meant(raw: dict[str, str]) -> dict[str, Any]:
    """The values as a person means them, without those by which an option is not in use."""
    said = {name: value for name, value in raw.items() if value not in IDLE}
    text = ("method", "labels", "dtype", "objective", "logratio", "ties", "long_prompts", "keep")
    found = {
        name: value if name in (*text, "lora_export") else json.loads(value.replace("on", "true"))
        for name, value in said.items()
        if value not in ("nan", "inf") and name != "reference"
    }
    if raw.get("long_prompts") == "drop":
        found["long_prompts"] = "drop"
    return found


@given(sent())
def test_every_round_the_form_accepts_the_trainer_accepts_with_all_that_was_said(
    raw: dict[str, str],
) -> None:
    form = RoundForm(raw, held_out=9)
    if not form.is_valid():
        return
    spec = resolve_spec(POLICY, settings(form.options))
    check_spec(Spec, spec)
    for name, value in meant(raw).items():
        assert spec[name] == value, f"{name} was dropped in silence"


@given(sent())
def test_whatever_the_trainer_would_refuse_is_an_error_of_the_form(raw: dict[str, str]) -> None:
    try:
        resolve_spec(POLICY, settings(meant(raw)))
    except RunDirError:
        assert not RoundForm(raw, held_out=9).is_valid()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_objective_can_be_started(objective: str) -> None:
    form = RoundForm(OPTIONS | {"objective": objective} | NEEDS.get(objective, {}))
    assert form.is_valid(), form.errors
    assert form.options["objective"] == objective
    for name in ("label_noise", "target_margin", "logratio"):
        assert (name in form.options) == (name in NEEDS.get(objective, {}))


@pytest.mark.parametrize(
    ("given_", "field", "words"),
    [
        ({"label_noise": "0.1"}, "label_noise", "Only for Robust DPO"),
        ({"target_margin": "0"}, "target_margin", "Only for SimPO"),
        ({"objective": "hinge", "length_penalty": "0.01"}, "length_penalty", "Only for DPO"),
        ({"objective": "hinge", "chosen_floor": "5"}, "chosen_floor", "Only for DPO"),
        ({"objective": "hinge", "ties": "rao_kupper"}, "ties", "Only for DPO"),
        (
            {"objective": "simpo", "target_margin": "1", "logratio": "sum"},
            "logratio",
            "Only for DPO, IPO, Hinge and Robust DPO",
        ),
        ({"lora_export": "merged"}, "lora_export", "Only for LoRA"),
        ({"objective": "ipo"}, "logratio", "IPO needs this: sum"),
        ({"objective": "robust"}, "label_noise", "Robust DPO needs this"),
        ({"objective": "simpo"}, "target_margin", "SimPO needs this"),
        ({"keep": "best"}, "keep", "Needs held-out pairs"),
        ({"early_stopping": "3"}, "early_stopping", "Needs held-out pairs"),
        ({"objective": "ppo"}, "objective", "not one of the available choices"),
        ({"seed": "nan"}, "seed", "whole number"),
    ],
)
def test_what_has_no_effect_or_is_missing_is_named_at_its_field_alone(
    given_: dict[str, str], field: str, words: str
) -> None:
    form = RoundForm(OPTIONS | given_)
    assert list(form.errors) == [field]
    assert words in form.errors[field][0]


def test_every_field_is_in_one_place_of_the_form_and_a_key_of_the_spec() -> None:
    placed = [*MAIN, *(name for names in FURTHER.values() for name in names)]
    assert sorted(placed) == sorted(OptionFields.base_fields)
    for name, field in OptionFields.base_fields.items():
        assert name == "reference" or name in DEFAULTS
        assert 40 < len(str(field.help_text)) < 200, name


def test_options_read_in_the_forms_words() -> None:
    options = {"lora_rank": 4, "ties": "rao_kupper", "method": "lora", "beta": 0.1, "seed": 0}
    assert named_options(options | {"activation_checkpointing": True}) == [
        ("Method", "LoRA"),
        ("β", "0.1"),
        ("Ties", "Model ties (Rao-Kupper)"),
        ("Compute activations twice", "yes"),
        ("Seed", "0"),
        ("lora_rank", "4"),
    ]


def test_further_options_are_folded_say_whom_they_are_for_and_never_promise_not_to_cut(
    ready: Project, manager: Client
) -> None:
    html = manager.get(new_round(ready)).content.decode()
    assert '<details class="more">' in html
    assert 'data-only="objective=robust"' in html
    assert "Only for DPO, IPO, Hinge and Robust DPO." in html
    assert "never cut" not in html
    assert "loses its oldest turns" in html
    for name in OptionFields.base_fields:
        assert f'id="id_{name}_helptext"' in html


def test_what_the_page_holds_can_be_sent_as_it_is(held_out: Project, manager: Client) -> None:
    form = RoundForm(held_out=1, defaults={"method": "lora", "beta": 0.1})
    held = {name: form[name].initial for name in form.fields}
    filled = OPTIONS | {name: str(v) for name, v in held.items() if v not in (None, False)}
    answer = manager.post(new_round(held_out), filled)
    assert answer.status_code == 302
    assert held_out.rounds.get().options["ties"] == "drop"


def test_errors_unfold_the_options_and_start_nothing(ready: Project, manager: Client) -> None:
    answer = manager.post(new_round(ready), OPTIONS | {"objective": "ipo", "keep": "best"})
    html = answer.content.decode()
    assert answer.status_code == 422
    assert '<details class="more" open>' in html
    assert "IPO needs this" in html
    assert "Needs held-out pairs" in html
    assert not ready.rounds.exists()


def test_held_out_pairs_allow_to_keep_the_best(held_out: Project, manager: Client) -> None:
    wanted = {"keep": "best", "early_stopping": "3"}
    assert manager.post(new_round(held_out), OPTIONS | wanted).status_code == 302
    round_ = held_out.rounds.get()
    assert (round_.options["keep"], round_.options["early_stopping"]) == ("best", 3)
    html = manager.get(page_of(round_)).content.decode()
    assert "The best held-out accuracy" in html


def test_the_script_knows_the_form_by_what_the_page_says(ready: Project, manager: Client) -> None:
    html = manager.get(new_round(ready)).content.decode()
    for condition in re.findall(r'data-only="([^"]+)"', html):
        name, _, values = condition.partition("=")
        assert f'<select name="{name}"' in html
        assert all(f'<option value="{value}"' in html for value in values.split())
    assert "data-round-options" in html


def test_the_trainer_is_told_json_without_what_is_not_said(ready: Project) -> None:
    round_ = start_round(
        project=ready,
        actor=None,
        options={"early_stopping": None, "objective": "hinge", "activation_checkpointing": True},
    )
    arguments = init_arguments(round_, Path("/preferences.jsonl"))
    told = arguments[arguments.index("--set") + 1 :]
    assert "activation_checkpointing=true" in told
    assert 'objective="hinge"' in told
    assert not any(one.startswith("early_stopping") for one in told)
    spec = resolve_spec(PolicySource(model=round_.start.model_path, adapter=None), told)
    assert spec["objective"] == "hinge"
    assert spec["reference_cache"] == str(cache_file(ready))


def test_a_round_held_to_another_policy_names_its_folders(project: Project) -> None:
    round_ = make_round(project, RoundState.QUEUED)
    assert "reference" not in trainer_settings(round_)
    round_.reference = make_policy(project=project)
    round_.reference.adapter_path = "/nowhere/adapter"
    folders = {"model": round_.reference.model_path, "adapter": "/nowhere/adapter"}
    assert trainer_settings(round_)["reference"] == folders


def test_all_rounds_of_a_project_share_one_cache_and_no_other_projects_do(
    project: Project, settings
) -> None:
    first, second = (make_round(project, RoundState.CANCELLED) for _ in range(2))
    other = make_policy().project
    assert trainer_settings(first)["reference_cache"] == trainer_settings(second)["reference_cache"]
    assert cache_file(project) != cache_file(other)
    assert cache_file(project).is_relative_to(settings.RUNS_DIR)


def test_what_an_option_hangs_on_is_an_option_too() -> None:
    for name in OptionFields.base_fields:
        if name in CONDITIONS:
            other, values = CONDITIONS[name]
            assert values
            assert set(values) <= {value for value, _ in OptionFields.base_fields[other].choices}  # type: ignore[attr-defined]
