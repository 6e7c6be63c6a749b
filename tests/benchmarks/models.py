"""Models with random weights, and the word tokenizer that makes texts and token ids one thing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.benchmarks.rows import WORDS

END, PAD, UNKNOWN = "<|end|>", "<|pad|>", "<|unknown|>"
SPECIAL_TOKENS = (PAD, END, UNKNOWN, "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|> ' + message['content'] + ' ' }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A Llama with a tied head."""

    vocabulary: int = 4000
    width: int = 256
    layers: int = 4
    heads: int = 4
    key_heads: int = 4
    inner_width: int = 1024


SMALL = Shape()
LARGE_VOCABULARY = Shape(vocabulary=128_256)
ONE_BILLION = Shape(
    vocabulary=128_256, width=2048, layers=16, heads=32, key_heads=8, inner_width=8192
)


def write_model(shape: Shape, folder: Path, *, seed: int = 0) -> Path:
    """A policy's folder: random weights of a seed, the tokenizer, nothing else."""
    transformers.utils.logging.disable_progress_bar()
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner_width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=SPECIAL_TOKENS.index(END),
        pad_token_id=SPECIAL_TOKENS.index(PAD),
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def word_tokenizer() -> Any:
    """Words "w0" … parted by spaces, one token each; decoding gives the text back."""
    names = [*SPECIAL_TOKENS, *(f"w{word}" for word in range(WORDS))]
    vocabulary = {name: place for place, name in enumerate(names)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=UNKNOWN,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=list(SPECIAL_TOKENS[3:]),
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
