"""Tiny random policies with a byte-level tokenizer, and preferences that they can learn."""

import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

torch.set_num_threads(1)

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIALS = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|bos|>"]
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


def make_model(architecture: str, *, seed: int = 0) -> torch.nn.Module:
    """Two small layers with weights large enough that every number is its own."""
    torch.manual_seed(seed)
    words = len(make_tokenizer())
    if architecture == "llama":
        shape = LlamaConfig(
            vocab_size=words,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            initializer_range=0.1,
        )
        return LlamaForCausalLM(shape).eval()
    gpt2 = GPT2Config(
        vocab_size=words, n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.1
    )
    return GPT2LMHeadModel(gpt2).eval()


def write_policy(folder: Path, architecture: str = "llama", *, seed: int = 0) -> Path:
    """A policy's folder."""
    make_model(architecture, seed=seed).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


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
