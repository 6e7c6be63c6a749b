"""The starter policy: a tiny chat model, trained from scratch on the bundled corpus in minutes.

    python -m training.trainer.starter OUT_DIR [--seed 0] [--progress FILE]

It gives a fresh site a policy whose responses differ in style, so that ranking them means
something, without a download. It knows nothing but its corpus.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from jobs.run_dir import append_jsonl, replace_dir
from training.starter.styles import CorpusRow, read_corpus
from training.starter.variations import rephrase
from training.trainer.supervised import Example, Settings, Training, shuffled

BOS, PAD, END = "<|bos|>", "<|pad|>", "<|end|>"
ROLES = ("system", "user", "assistant")
SPECIAL_TOKENS = (PAD, BOS, END, *(f"<|{role}|>" for role in ROLES))
# "<|" in a message is written "< |": no text can pass itself off as a special token.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + (message['content'] | replace('<|', '< |')) + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
_MATERIAL = Path(__file__).resolve().parent.parent / "starter"
_SAMPLING_LIMIT = 160  # tokens; the longest response of the corpus has about 110


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Size of the network and of its vocabulary."""

    vocabulary: int = 4000
    width: int = 320
    layers: int = 2
    heads: int = 5
    inner_width: int = 832
    context: int = 1024


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the result, besides the seed and the corpus.

    sharpness: what the logits are multiplied by after training (it goes into the last norm), so
    that temperature 1 samples the trained policy at temperature 1 / sharpness. So small a model
    keeps too much probability on words that make no sense.
    """

    epochs: int = 10
    most_steps: int | None = None
    shape: Shape = field(default_factory=Shape)
    rephrased_share: float = 0.85
    sharpness: float = 1.25
    training: Settings = field(
        default_factory=lambda: Settings(
            batch_examples=16,
            muon_learning_rate=0.035,
            adam_learning_rate=0.008,
            weight_decay=0.1,
            warmup_share=0.05,
            prompt_weight=0.1,
            max_grad_norm=1.0,
        )
    )


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One training step: how far, its loss in nats a token, seconds since the start."""

    step: int
    total: int
    loss: float
    seconds: float


def train_tokenizer(rows: Sequence[CorpusRow], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of the corpus: every text has tokens, and comes back unchanged.

    Special tokens spelt out in a message are inert (see CHAT_TEMPLATE). Plain `encode` parses
    them, unless it is called with split_special_tokens=True.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_texts(rows), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=list(SPECIAL_TOKENS[3:]),
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _texts(rows: Sequence[CorpusRow]) -> Iterator[str]:
    for row in rows:
        yield row.prompt
        yield from row.responses().values()


def new_model(tokenizer: PreTrainedTokenizerFast, shape: Shape) -> LlamaForCausalLM:
    """A Llama of this shape with random weights, tied to the tokenizer's special tokens."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        intermediate_size=shape.inner_width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def encode(tokenizer: PreTrainedTokenizerFast, rows: Sequence[CorpusRow]) -> list[Example]:
    """Rows as token ids: those of labeling.chat (tested), without a template run for each."""
    texts = list(_texts(rows))
    ids = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    bos, user, assistant, end = tokenizer.convert_tokens_to_ids(
        [BOS, "<|user|>", "<|assistant|>", END]
    )
    per_row = len(texts) // len(rows)
    return [
        Example(
            prompt=[bos, user, *ids[i], end, assistant],
            responses=[[*response, end] for response in ids[i + 1 : i + per_row]],
        )
        for i in range(0, len(ids), per_row)
    ]


def build(
    out_dir: Path,
    *,
    seed: int = 0,
    recipe: Recipe | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> None:
    """Train the starter policy and write its folder: complete, or absent when this fails.

    The same seed gives the same weights on one machine. An `out_dir` that exists is replaced.
    """
    recipe = recipe or Recipe()
    out_dir = out_dir.resolve()
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    rows = read_corpus()
    tokenizer = train_tokenizer(rows, recipe.shape.vocabulary)
    model = new_model(tokenizer, recipe.shape)
    last = _train(model, tokenizer, rows, recipe, random.Random(seed), report)
    with torch.no_grad():
        model.model.norm.weight.mul_(recipe.sharpness)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}.", dir=out_dir.parent))
    try:
        _write(temporary, model, tokenizer, _card(model, rows, last, seed))
        replace_dir(temporary, out_dir)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[CorpusRow],
    recipe: Recipe,
    rng: random.Random,
    report: Callable[[Progress], None],
) -> Progress:
    started = time.monotonic()
    # Rows are short: plain attention takes a quarter less time a step than the fused kernel.
    model.set_attn_implementation("eager")
    batch_examples = recipe.training.batch_examples
    total = recipe.epochs * -(-len(rows) // batch_examples)
    total = min(total, recipe.most_steps or total)
    training = Training(model, recipe.training, total=total, pad_id=tokenizer.pad_token_id)
    batches = _batches(tokenizer, rows, recipe, rng)
    for step in range(1, total + 1):
        loss = training.step(next(batches))
        seconds = round(time.monotonic() - started, 3)
        progress = Progress(step=step, total=total, loss=round(loss, 4), seconds=seconds)
        report(progress)
    return progress


def _batches(
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[CorpusRow],
    recipe: Recipe,
    rng: random.Random,
) -> Iterator[list[Example]]:
    def varied(row: CorpusRow) -> CorpusRow:
        if rng.random() < recipe.rephrased_share:
            return replace(row, prompt=rephrase(row.prompt, rng))
        return row

    while True:
        examples = encode(tokenizer, [varied(row) for row in rows])
        yield from shuffled(examples, rng, recipe.training.batch_examples)


def _write(
    folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, card: str
) -> None:
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        max_new_tokens=_SAMPLING_LIMIT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")
    shutil.copyfile(_MATERIAL / "LICENSE-policy.txt", folder / "LICENSE.txt")


def _card(model: LlamaForCausalLM, rows: Sequence[CorpusRow], last: Progress, seed: int) -> str:
    template = (_MATERIAL / "model_card.md").read_text(encoding="utf-8")
    return template.format(
        parameters=f"{model.num_parameters():,}",
        vocabulary=f"{model.config.vocab_size:,}",
        layers=model.config.num_hidden_layers,
        width=model.config.hidden_size,
        prompts=len(rows),
        steps=last.total,
        loss=f"{last.loss:.2f}",
        seed=seed,
    )


class Reporter:
    """Appends each step to a file, and prints a line every ten steps."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def __call__(self, progress: Progress) -> None:
        """Report one step."""
        row: dict[str, Any] = vars(progress)
        if self._path:
            append_jsonl(self._path, row)
        if progress.step % 10 == 0 or progress.step == progress.total:
            done = f"step {progress.step} of {progress.total}"
            _say(f"{done}, loss {progress.loss:.3f}, {progress.seconds:.0f} s")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m training.trainer.starter", description=__doc__)
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--progress", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    build(options.out_dir, seed=options.seed, report=Reporter(options.progress))
    _say(f"The starter policy is in {options.out_dir}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
