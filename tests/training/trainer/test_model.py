"""Loading and writing policies: nothing unsafe, and LoRA's reference is the exact start."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from jobs.run_dir import read_json
from labeling.policy_files import UnsafePolicy, policy_digest
from tests.training.trainer.builders import events_of, make_tokenizer, metrics_of
from training.trainer.__main__ import main
from training.trainer.batches import Branch
from training.trainer.config import PolicySource, load_spec
from training.trainer.logps import plain_logps
from training.trainer.model import Policy, load_policy, load_reference
from training.trainer.run_dir import BadInput

BRANCHES = [Branch((5, 6, 7), (8, 9, 10, 0)), Branch((5, 6), (11, 0))]


@pytest.fixture(scope="module")
def adapter_dir(llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that says other things than its base."""
    folder = tmp_path_factory.mktemp("adapter")
    model = AutoModelForCausalLM.from_pretrained(llama_dir)
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def scores(policy: Policy) -> list[float]:
    with torch.no_grad():
        return plain_logps(policy, BRANCHES).tolist()


@pytest.mark.parametrize("method", ["full", "lora"])
def test_trap_12_an_adapter_policy_is_held_to_its_exact_start_not_to_its_base(
    make_round, llama_dir, adapter_dir, method
):
    run_dir = make_round(policy=llama_dir, adapter=adapter_dir, method=method, epochs=1)
    assert main(["run", str(run_dir)]) == 0
    manifest = read_json(run_dir / "manifest.json")
    assert manifest["results"]["loss_step0"] == pytest.approx(math.log(2), abs=1e-5)
    assert manifest["start_digest"] == manifest["reference_digest"] != policy_digest(llama_dir)


def test_trap_12_the_base_as_reference_is_another_reference(make_round, llama_dir, adapter_dir):
    reference = {"model": str(llama_dir), "adapter": None}
    run_dir = make_round(
        policy=llama_dir, adapter=adapter_dir, method="lora", reference=reference, epochs=1
    )
    assert main(["run", str(run_dir)]) == 0
    assert abs(read_json(run_dir / "manifest.json")["results"]["loss_step0"] - math.log(2)) > 1e-3


def test_lora_goes_on_in_the_adapter_the_policy_has(make_round, llama_dir, adapter_dir):
    run_dir = make_round(policy=llama_dir, adapter=adapter_dir, method="lora", epochs=1)
    spec = load_spec(run_dir / "spec.json")
    assert (spec.lora_rank, spec.lora_alpha) == (4, 8)
    assert scores(load_policy(spec)) == pytest.approx(scores(load_reference(spec)), abs=1e-5)
    assert main(["run", str(run_dir)]) == 0
    before, after = (
        load_file(folder / "adapter_model.safetensors")
        for folder in (adapter_dir, run_dir / "policy")
    )
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_full_training_of_an_adapter_policy_merges_it(make_round, llama_dir, adapter_dir):
    run_dir = make_round(policy=llama_dir, adapter=adapter_dir)
    spec = load_spec(run_dir / "spec.json")
    merged = load_policy(spec)
    assert not isinstance(merged.model, PeftModel)
    assert all(parameter.requires_grad for parameter in merged.model.parameters())
    assert scores(merged) == pytest.approx(scores(load_reference(spec)), abs=1e-4)


def test_lora_trains_every_linear_layer_and_nothing_else(make_round):
    policy = load_policy(load_spec(make_round(method="lora") / "spec.json"))
    names = set(policy.trainable())
    assert all("lora_" in name for name in names)
    assert len(names) == 2 * 7 * 2  # two layers of seven linear maps, A and B of each
    assert not any("lm_head" in name for name in names)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_written_policy_says_what_was_evaluated(make_round, llama_dir, method):
    run_dir = make_round(method=method, learning_rate=1e-2)
    assert main(["run", str(run_dir)]) == 0
    folder = run_dir / "policy"
    manifest = read_json(run_dir / "manifest.json")
    assert manifest["policy_digest"] == policy_digest(folder)
    adapter = str(folder) if method == "lora" else None
    again = {"model": str(llama_dir if adapter else folder), "adapter": adapter}
    next_dir = make_round(
        "next", policy=Path(again["model"]), adapter=adapter and folder, epochs=1, method=method
    )
    assert main(["run", str(next_dir)]) == 0
    after = manifest["results"]["held_out_after"]
    start = read_json(next_dir / "manifest.json")["results"]["held_out_before"]
    assert start["chosen_logp"] == pytest.approx(after["chosen_logp"], rel=1e-5)
    assert start["rejected_logp"] == pytest.approx(after["rejected_logp"], rel=1e-5)
    assert AutoTokenizer.from_pretrained(folder).chat_template == make_tokenizer().chat_template
    card = (folder / "README.md").read_text()
    assert manifest["start_digest"] in card
    assert "| accuracy | 0.5 |" in card


def tampered(policy: Path, target: Path, name: str, content: str) -> Path:
    shutil.copytree(policy, target)
    (target / name).write_text(content)
    return target


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pytorch_model.bin", "pickle"),
        ("optimizer.pt", "pickle"),
        ("modeling_evil.py", "print(1)"),
        ("tokenizer_config.json", json.dumps({"auto_map": {"AutoTokenizer": "evil.Tokenizer"}})),
    ],
)
def test_an_unsafe_policy_is_refused_by_init_and_by_run(
    make_round, llama_dir, tmp_path, capsys, name, content
):
    unsafe = tampered(llama_dir, tmp_path / "unsafe", name, content)
    arguments = ["--policy", str(unsafe), "--preferences", "absent.jsonl"]
    assert main(["init", str(tmp_path / "new"), *arguments]) == 2
    message = capsys.readouterr().err
    assert name in message
    assert "refused" in message or "safetensors only" in message
    assert not (tmp_path / "new").exists()
    run_dir = make_round()
    spec = read_json(run_dir / "spec.json")
    (run_dir / "spec.json").write_text(
        json.dumps(spec | {"policy": {"model": str(unsafe), "adapter": None}})
    )
    assert main(["run", str(run_dir)]) == 2
    assert events_of(run_dir, "error")


def test_an_unsafe_adapter_is_refused(make_round, llama_dir, adapter_dir, tmp_path):
    unsafe = tampered(adapter_dir, tmp_path / "unsafe", "adapter_model.bin", "pickle")
    run_dir = make_round()
    spec = load_spec(run_dir / "spec.json")
    source = PolicySource(model=str(llama_dir), adapter=str(unsafe))
    with pytest.raises(UnsafePolicy):
        load_policy(type(spec)(**(vars(spec) | {"policy": source})))


def test_weights_that_are_missing_are_refused_and_not_made_up(make_round, llama_dir, tmp_path):
    lacking = tmp_path / "lacking"
    shutil.copytree(llama_dir, lacking)
    weights = load_file(lacking / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, lacking / "model.safetensors", metadata={"format": "pt"})
    spec = load_spec(make_round(policy=lacking) / "spec.json")
    with pytest.raises(BadInput, match="lacks weights.*up_proj"):
        load_policy(spec)


def test_broken_weights_are_exit_2(make_round, llama_dir, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(llama_dir, broken)
    (broken / "model.safetensors").write_bytes(b"not safetensors at all")
    run_dir = make_round(policy=broken)
    assert main(["run", str(run_dir)]) == 2
    assert not (run_dir / "metrics.jsonl").exists() or metrics_of(run_dir) == []
