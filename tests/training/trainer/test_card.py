"""The model card, and the folder it lies in: what other programs make of them."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from jobs.run_dir import read_json
from labeling.policy_files import check_policy_dir
from tests.training.trainer.builders import make_tokenizer, ranked_row, read_rows, votes
from tests.training.trainer.conftest import MakeRound
from training.trainer.__main__ import main
from training.trainer.card import model_card
from training.trainer.config import Spec, load_spec

MESSAGES = [{"role": "user", "content": "question 3?"}]
ORIGIN = {
    "inputs": {"spec.json": "0" * 64, "preferences.jsonl": "1" * 64},
    "start_digest": "2" * 64,
    "reference_digest": "3" * 64,
}


@pytest.fixture
def spec(make_round) -> Spec:
    return load_spec(make_round() / "spec.json")


def report(**more: Any) -> dict[str, Any]:
    sides = {"train": 9, "held_out": 3}
    counts = {"groups": sides, "pairs": sides, "responses": sides}
    return counts | {"dropped": {}, "shortened": 0, "tied": 0} | more


def results(**more: Any) -> dict[str, Any]:
    held_out = {"pairs": 9, "loss": 0.69, "accuracy": 0.5, "kl": 0.0}
    samples = {"prompts": 3, "tokens": 12.5, "tokens_p95": 20, "ended": 1.0, "repetition": 0.1}
    found: dict[str, Any] = {"steps": 6, "loss_step0": 0.693147}
    found |= {"held_out_before": held_out, "held_out_after": held_out | {"accuracy": 0.875}}
    found |= {"samples_before": samples, "samples_after": samples | {"tokens": 31.25}}
    return found | more


def card(spec: Spec, **more: Any) -> str:
    what = {"report": report(), "results": results()} | more
    return model_card(spec, ORIGIN, **what)


def rows_of(card: str, heading: str) -> list[list[str]]:
    """Cells of the table under a heading, without the line below its head."""
    section = card.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[:1] + lines[2:]]


@pytest.mark.parametrize(
    ("given", "library"),
    [
        ({}, "transformers"),
        ({"method": "lora"}, "peft"),
        ({"method": "lora", "lora_export": "merged"}, "transformers"),
    ],
)
def test_the_front_matter_is_the_hubs(make_round, given, library):
    text = card(load_spec(make_round(**given) / "spec.json"))
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["library_name"] == library
    assert front["tags"] == ["dpo", "prefloop"]
    assert ModelCard(text).data.to_dict() == front


def test_every_key_of_the_configuration_is_there_but_paths(spec):
    shown = dict(rows_of(card(spec), "Configuration")[1:])
    paths = {"policy", "reference", "reference_cache"}
    assert shown.keys() == {field.name for field in fields(Spec)} - paths
    for key, value in shown.items():
        assert json.loads(value.strip("`")) == getattr(spec, key)


def test_the_sources_and_what_became_of_the_pairs_are_there(spec):
    counts = report(dropped={"too_long": 4, "tied": 2}, shortened=7, tied=5)
    shown = dict(rows_of(card(spec, report=counts), "Made from"))
    for digit in "123":
        assert f"`{digit * 64}`" in shown.values()
    assert shown["pairs (trained on / held out)"] == "9 / 3"
    assert shown["pairs dropped: too_long"] == "4"
    assert shown["pairs dropped: tied"] == "2"
    assert shown["prompts without their oldest turns"] == "7"
    assert shown["pairs with tied votes"] == "5"
    assert dict(rows_of(card(spec), "Made from"))["pairs dropped"] == "0"


def test_figures_before_and_after_are_there(spec):
    text = card(spec)
    held_out = rows_of(text, "Held-out prompts, before and after training")
    assert ["accuracy", "0.5", "0.875"] in held_out
    assert ["chosen_fell", "–", "–"] in held_out
    samples = rows_of(text, "What it writes, before and after training")
    assert ["tokens", "12.5", "31.25"] in samples
    assert ["repetition", "0.1", "0.1"] in samples


def test_without_held_out_prompts_the_card_says_so(spec):
    nothing = {"held_out_before": None, "held_out_after": None, "samples_before": None}
    text = card(spec, results=results(**nothing, samples_after=None))
    assert "nothing was held out" in text
    assert "no responses were drawn" in text


def curve_of(spec: Spec, lines: list[dict[str, Any]]) -> list[list[str]]:
    return rows_of(card(spec, metrics=lines), "Training")


def test_the_curve_is_about_ten_steps_with_the_first_and_the_last(spec):
    lines: list[dict[str, Any]] = [
        {"step": 0, "held_out": {"loss": 1.0}},
        {"step": 0, "samples": {}},
    ]
    lines += [{"step": step, "loss": 1 / step, "chosen_tokens": 10.0} for step in range(1, 501)]
    head, *rows = curve_of(spec, lines)
    assert head[:5] == ["step", "loss", "accuracy", "margin", "kl"]
    assert [row[0] for row in (rows[0], rows[-1])] == ["1", "500"]
    assert len(rows) == 10
    gaps = [int(after[0]) - int(before[0]) for before, after in zip(rows, rows[1:], strict=False)]
    assert max(gaps) - min(gaps) <= 1
    assert rows[-1][1:3] == ["0.002", "–"]


@pytest.mark.parametrize("count", [0, 1, 2, 9, 10, 11])
def test_a_short_curve_is_whole(spec, count):
    lines = [{"step": step, "loss": 0.5} for step in range(1, count + 1)]
    steps = [int(row[0]) for row in curve_of(spec, lines)[1:]]
    assert len(steps) == len(set(steps)) == min(count, 10)


def test_warnings_are_there_once_and_without_the_machines_folders(spec):
    broken = "checkpoint step-4 is broken: /home/ada/runs/round 7/x.json does not exist, 3 MB/s"
    events = [
        {"kind": "warning", "message": broken},
        {"kind": "start", "message": "not this"},
        {"kind": "warning", "message": broken},
        {"kind": "warning", "message": "another"},
    ]
    section = card(spec, events=events).split("## Warnings\n")[1]
    assert section.strip().splitlines() == [
        "- checkpoint step-4 is broken: round 7/x.json does not exist, 3 MB/s",
        "- another",
    ]
    assert card(spec).split("## Warnings\n")[1].strip() == "None."


def test_a_round_that_ended_otherwise_says_so(spec):
    text = card(spec, results=results(stopped_early=True, best_step=4))
    assert "for 6 steps. It stopped early: held-out accuracy rose no more." in text
    assert "Its weights are those of step 4, where held-out accuracy was highest." in text
    assert "stopped early" not in card(spec, results=results(stopped_early=False))


@pytest.mark.parametrize("objective", ["dpo", "ipo", "hinge", "robust", "simpo"])
def test_every_objective_is_named_with_its_paper(make_round, objective):
    needs: dict[str, dict[str, Any]] = {
        "ipo": {"logratio": "sum"},
        "robust": {"label_noise": 0.1},
        "simpo": {"target_margin": 0.5},
    }
    run_dir = make_round(objective=objective, **needs.get(objective, {}))
    text = card(load_spec(run_dir / "spec.json"))
    assert "arXiv:" in text
    assert yaml.safe_load(text.split("---\n")[1])["tags"][0] == objective


# --- the whole folder -----------------------------------------------------------------------


def trained(make_round: MakeRound, **settings: Any) -> Path:
    rows = [ranked_row(number) for number in range(12)]
    rows[1]["pairs"] = [votes(0, 1, 0, 0, 3), votes(0, 2, 1, 0)]
    small = {} if settings.get("sample_prompts") == 0 else {"sample_tokens": 4}
    run_dir = make_round(**{"rows": rows, "learning_rate": 1e-2, **small, **settings})
    assert main(["run", str(run_dir)]) == 0
    return run_dir


def test_the_card_of_a_round_tells_the_round(make_round, tmp_path, llama_dir):
    run_dir = trained(make_round)
    text = (run_dir / "policy" / "README.md").read_text()
    shown = dict(rows_of(text, "Made from"))
    inputs = read_json(run_dir / "manifest.json")["inputs"]
    assert shown["preferences, SHA-256"] == f"`{inputs['preferences.jsonl']}`"
    assert shown["pairs dropped: tied"] == "1"
    after = read_json(run_dir / "manifest.json")["results"]["held_out_after"]
    held_out = rows_of(text, "Held-out prompts, before and after training")
    assert ["accuracy", "0.5", f"{after['accuracy']:.4g}"] in held_out
    assert "–" not in text.split("## Training")[1].split("## Warnings")[0].split("|", 1)[1]
    losses = [line["loss"] for line in read_rows(run_dir / "metrics.jsonl") if "loss" in line]
    curve = rows_of(text, "Training")
    assert [row[1] for row in curve[1:]] == [f"{loss:.4g}" for loss in losses]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_no_path_and_no_text_of_the_data_is_in_the_card(make_round, tmp_path, llama_dir, method):
    text = (trained(make_round, method=method) / "policy" / "README.md").read_text()
    for private in (str(tmp_path), str(llama_dir), llama_dir.name, "question", "maybe", "/tmp"):
        assert private not in text


def test_a_round_without_samples_has_a_card_without_them(make_round):
    text = (trained(make_round, sample_prompts=0) / "policy/README.md").read_text()
    assert "no responses were drawn" in text


def next_tokens(model: Any, tokenizer: Any) -> torch.Tensor:
    """(V,) logits after a prompt in the tokenizer's own chat template."""
    ids = tokenizer.apply_chat_template(
        MESSAGES, add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    with torch.no_grad():
        logits: torch.Tensor = model(ids).logits[0, -1]
    return logits


def open_folder(folder: Path, loader: Any) -> torch.Tensor:
    """What the folder says through stock loaders, its tokenizer and chat template included."""
    check_policy_dir(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == make_tokenizer().chat_template
    assert tokenizer.get_vocab() == make_tokenizer().get_vocab()
    return next_tokens(loader.from_pretrained(folder), tokenizer)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_full_weights_load_unchanged(make_round, request, architecture, dtype):
    start = request.getfixturevalue(f"{architecture}_dir")
    folder = trained(make_round, policy=start, dtype=dtype) / "policy"
    assert read_json(folder / "config.json")["dtype"] == dtype
    logits = open_folder(folder, AutoModelForCausalLM)
    before = next_tokens(AutoModelForCausalLM.from_pretrained(start), make_tokenizer())
    assert not torch.allclose(logits.float(), before, atol=0.01)


def test_an_adapter_loads_with_peft_and_merged_weights_say_the_same(make_round, llama_dir):
    adapter = trained(make_round, name="adapter", method="lora") / "policy"
    merged = trained(make_round, name="merged", method="lora", lora_export="merged") / "policy"
    assert (adapter / "adapter_model.safetensors").exists()
    assert not (merged / "adapter_config.json").exists()
    logits = open_folder(adapter, AutoPeftModelForCausalLM)
    base = AutoModelForCausalLM.from_pretrained(llama_dir)
    torch.testing.assert_close(
        next_tokens(PeftModel.from_pretrained(base, adapter), make_tokenizer()), logits
    )
    torch.testing.assert_close(
        open_folder(merged, AutoModelForCausalLM), logits, rtol=1e-4, atol=1e-4
    )
    before = next_tokens(AutoModelForCausalLM.from_pretrained(llama_dir), make_tokenizer())
    assert not torch.allclose(logits, before, atol=0.01)
