"""Tiny random policies with a byte-level tokenizer, and preferences that they can learn."""

import json
import os
from itertools import groupby
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from training.trainer.attention import why_padded
from training.trainer.batches import Batch, Branch
from training.trainer.data import Group, Pair
from training.trainer.model import Policy

torch.set_num_threads(1)

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIALS = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|bos|>"]
ENDS = {"bos_token_id": 4, "eos_token_id": 0, "pad_token_id": 0}
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("a", "n")]


def make_tokenizer(**settings: Any) -> PreTrainedTokenizerFast:
    """A byte-level BPE with a few merges, so that one text has several spellings."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = SPECIALS + alphabet + ["".join(merge) for merge in MERGES]
    vocabulary = {word: index for index, word in enumerate(words)}
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=MERGES))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|end|>",
        additional_special_tokens=SPECIALS[1:],
        **settings,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


ROTARY = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "gemma": (GemmaConfig, GemmaForCausalLM),
}
ARCHITECTURES = ("gpt2", *ROTARY)


def make_model(architecture: str, *, seed: int = 0, **shape: Any) -> Any:
    """Two small layers with weights large enough that every number is its own."""
    torch.manual_seed(seed)
    words = len(make_tokenizer())
    if architecture == "gpt2":
        gpt2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256} | shape
        config = GPT2Config(vocab_size=words, initializer_range=0.1, **ENDS, **gpt2)
        return GPT2LMHeadModel(config).eval()
    config_class, model_class = ROTARY[architecture]
    rotary = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "initializer_range": 0.1,
    }
    return model_class(config_class(vocab_size=words, **ENDS, **(rotary | shape))).eval()


def as_policy(model: Any, *, dtype: str = "float32", padded: bool = False) -> Policy:
    """A model as the trainer holds it, made to pad its rows where `padded`."""
    why = "the test asks for it" if padded else why_padded(model, 256)
    return Policy(model, torch.device("cpu"), dtype, padded_because=why, pack_tokens=4096)


def write_policy(folder: Path, architecture: str = "llama", *, seed: int = 0) -> Path:
    """A policy's folder."""
    make_model(architecture, seed=seed).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def batch_of(branches: list[Branch]) -> Batch:
    """Branches as groups, those of one prompt together only where they are neighbours."""
    groups: list[Group] = []
    offset = 0
    for prompt, same in groupby(branches, key=lambda branch: branch.prompt):
        responses = tuple(branch.response for branch in same)
        pairs = tuple(Pair(f"{n}", 0, n, 1.0) for n in range(1, len(responses)))
        groups.append(Group(f"group-{offset}", prompt, responses, pairs, offset))
        offset += len(responses)
    return Batch(tuple(groups))


def ranked_row(number: int) -> dict[str, Any]:
    """A prompt whose polite response won 3 : 0 and 2 : 1, and whose middle one won 2 : 0."""
    texts = [f"yes the {number}", f"no {number}", f"well maybe {number} or not"]
    return {
        "id": f"comparison-{number}",
        "prompt": [{"role": "user", "content": f"question {number}?"}],
        "split": "held_out" if number % 4 == 0 else "train",
        "responses": [
            {"id": f"response-{number}-{index}", "text": text, "token_ids": None}
            for index, text in enumerate(texts)
        ],
        "pairs": [votes(0, 1, 3, 0), votes(0, 2, 2, 1), votes(2, 1, 2, 0)],
    }


def votes(chosen: int, rejected: int, for_: int, against: int, tied: int = 0) -> dict[str, int]:
    return {
        "chosen": chosen,
        "rejected": rejected,
        "votes_for": for_,
        "votes_against": against,
        "votes_tied": tied,
    }


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def metrics_of(run_dir: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl without what depends on the clock and the machine."""
    timed = ("seconds", "tokens_per_s", "memory_mb")
    lines = read_rows(run_dir / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key not in timed} for line in lines]


def events_of(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_rows(run_dir / "events.jsonl") if event["kind"] == kind]


def weights_of(run_dir: Path) -> bytes:
    """The trained policy's weights, byte for byte."""
    (file,) = (run_dir / "policy").glob("*.safetensors")
    return file.read_bytes()
