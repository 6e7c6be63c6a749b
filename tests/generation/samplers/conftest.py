"""Tiny policies on disk, and run directories for them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from labeling.policy_files import policy_digest  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]
WORDS = (
    "how do i get the red wine out of a white shirt start with cold water and soap then wait "
    "can you help me run bake bread fix my old bike tell about tea"
)
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"]

MakeRun = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def make_tokenizer() -> Any:
    """Byte-level BPE over a few words, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([WORDS], trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=SPECIAL[2:],
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_model(kind: str, vocabulary: int, context: int = 96) -> Any:
    """A random model; its weights are large enough that its choices are not near ties."""
    torch.manual_seed(3)
    common = {"vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": 1}
    if kind == "gpt2":
        config = transformers.GPT2Config(
            n_embd=32, n_layer=2, n_head=2, n_positions=context, initializer_range=0.2, **common
        )
        return transformers.GPT2LMHeadModel(config)
    family = transformers.LlamaConfig
    if kind == "mistral":  # attends to its last 8 tokens only
        family, common["sliding_window"] = transformers.MistralConfig, 8
    config = family(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.3,
        **common,
    )
    return transformers.AutoModelForCausalLM.from_config(config)


def save_policy(folder: Path, kind: str) -> Path:
    tokenizer = make_tokenizer()
    make_model(kind, len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_policy(tmp_path_factory.mktemp("policies") / "llama", "llama")


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_policy(tmp_path_factory.mktemp("policies") / "gpt2", "gpt2")


@pytest.fixture(scope="session", params=["llama", "gpt2"])
def policy(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder


def spec_for(policy: Path, adapter: Path | None = None, **changes: Any) -> dict[str, Any]:
    """A whole spec.json."""
    return {
        "schema": 1,
        "sampler": "transformers",
        "policy": {
            "model": str(policy),
            "adapter": str(adapter) if adapter else None,
            "digest": policy_digest(adapter or policy),
        },
        "k": 3,
        "temperature": 1.0,
        "top_p": 1.0,
        "max_new_tokens": 12,
        "seed": 7,
        "batch_prompts": 4,
        "system": None,
        "dtype": "float32",
        **changes,
    }


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def some_prompts(count: int = 6) -> list[dict[str, Any]]:
    """Prompts of different lengths."""
    words = WORDS.split()
    return [{"id": f"p{n}", "messages": user(" ".join(words[n : 2 * n + 1]))} for n in range(count)]


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def make_run(folder: Path, spec: dict[str, Any], prompts: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.json").write_text(json.dumps(spec))
    (folder / "prompts.jsonl").write_text("".join(json.dumps(p) + "\n" for p in prompts))
    return folder


def start_program(run_dir: Path, **kwargs: Any) -> subprocess.Popen[str]:
    """The real program, as a worker starts it."""
    return subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "generation.samplers", "run", str(run_dir)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )
