"""`python -m training.trainer merge`: the merged policy says what the adapter said, or is none."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from jobs.run_dir import read_json, read_jsonl
from labeling.policy_files import check_policy_dir, policy_digest
from tests.training.trainer.builders import events_of, make_tokenizer
from training.trainer import merging
from training.trainer.__main__ import main
from training.trainer.config import PolicySource
from training.trainer.probes import logps, text_ids


def write_adapter(folder: Path, model_dir: Path, **config) -> Path:
    """An adapter that says other things than its base."""
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    targets = {"target_modules": "all-linear"} | config
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, **targets))
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter_dir(llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_adapter(tmp_path_factory.mktemp("adapter"), llama_dir)
    card = "---\nlibrary_name: peft\n---\n# My adapter\n\nKinder.\n"
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def merge(run_dir: Path, model: Path, adapter: Path) -> int:
    return main(["merge", str(run_dir), "--policy", str(model), "--adapter", str(adapter)])


def test_the_merged_policy_says_the_same_and_is_whole(tmp_path, llama_dir, adapter_dir):
    assert merge(tmp_path, llama_dir, adapter_dir) == 0
    folder = tmp_path / "policy"
    check_policy_dir(folder)
    assert not (folder / "adapter_config.json").exists()
    texts = text_ids(make_tokenizer())
    before = logps(PolicySource(model=str(llama_dir), adapter=str(adapter_dir)), "float32", texts)
    after = logps(PolicySource(model=str(folder), adapter=None), "float32", texts)
    assert after == pytest.approx(before, abs=1e-3)
    base = logps(PolicySource(model=str(llama_dir), adapter=None), "float32", texts)
    assert base != pytest.approx(before, abs=1e-1)
    manifest = read_json(tmp_path / "manifest.json")
    assert manifest["policy_digest"] == policy_digest(folder)
    assert 0 <= manifest["largest_difference"] < merging.EXACT
    assert [row["note"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == list(merging.PHASES)
    assert not (tmp_path / ".policy").exists()


def test_the_card_says_what_it_was_made_from(tmp_path, llama_dir, adapter_dir):
    assert merge(tmp_path, llama_dir, adapter_dir) == 0
    card = (tmp_path / "policy" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "LlamaForCausalLM" in card
    assert policy_digest(adapter_dir) in card
    assert "# My adapter\n\nKinder." in card
    assert "peft" not in card
    assert str(llama_dir) not in card


def test_merging_again_does_nothing(tmp_path, llama_dir, adapter_dir):
    assert merge(tmp_path, llama_dir, adapter_dir) == 0
    before = (tmp_path / "manifest.json").stat().st_mtime_ns
    assert merge(tmp_path, llama_dir, adapter_dir) == 0
    assert (tmp_path / "manifest.json").stat().st_mtime_ns == before


def test_half_precision_stays_half_precision(tmp_path, llama_dir):
    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(llama_dir, dtype=torch.bfloat16).save_pretrained(half)
    make_tokenizer().save_pretrained(half)
    adapter = write_adapter(tmp_path / "adapter", half)
    assert merge(tmp_path / "run", half, adapter) == 0
    (weights,) = (tmp_path / "run" / "policy").glob("*.safetensors")
    assert {tensor.dtype for tensor in load_file(weights).values()} == {torch.bfloat16}
    assert read_json(tmp_path / "run" / "manifest.json")["largest_difference"] < merging.ROUNDED


def test_a_policy_that_says_something_else_is_refused(
    tmp_path, llama_dir, adapter_dir, monkeypatch
):
    monkeypatch.setattr(merging, "largest_difference", lambda *_: float("nan"))
    assert merge(tmp_path, llama_dir, adapter_dir) == 3
    assert not (tmp_path / "policy").exists()
    assert not (tmp_path / ".policy").exists()
    assert not (tmp_path / "manifest.json").exists()
    assert "does not say what the adapter said" in events_of(tmp_path, "error")[-1]["message"]


def test_a_whole_model_has_nothing_to_merge(tmp_path, llama_dir):
    assert main(["merge", str(tmp_path), "--policy", str(llama_dir)]) == 2


def test_a_card_that_is_a_link_is_left_where_it_is(tmp_path, llama_dir, adapter_dir):
    secret = tmp_path / "secret.md"
    secret.write_text("the key", encoding="utf-8")
    folder = tmp_path / "linked"
    folder.mkdir()
    for file in adapter_dir.iterdir():
        if file.name != "README.md":
            (folder / file.name).write_bytes(file.read_bytes())
    (folder / "README.md").symlink_to(secret)
    assert merge(tmp_path / "run", llama_dir, folder) == 0
    assert "the key" not in (tmp_path / "run" / "policy" / "README.md").read_text(encoding="utf-8")
