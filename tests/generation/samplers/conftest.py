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
from tests.generation.samplers.live import vllm_server  # noqa: E402, F401

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
        head_dim=32,  # the smallest that vLLM attends to on a CPU
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


def policy_spec(model: Path, adapter: Path | None = None, id: str = "p") -> dict[str, Any]:
    """A policy as a spec names it."""
    return {
        "id": id,
        "model": str(model),
        "adapter": str(adapter) if adapter else None,
        "digest": policy_digest(adapter or model),
        "base_digest": policy_digest(model) if adapter else None,
    }


DRAW = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 12, "stop": []}


def spec_for(policy: Path, adapter: Path | None = None, **changes: Any) -> dict[str, Any]:
    """A whole spec.json; `changes` may name keys of the draw too."""
    draw = DRAW | {name: changes.pop(name) for name in list(changes) if name in DRAW}
    return {
        "schema": 2,
        "sampler": "transformers",
        "policies": [policy_spec(policy, adapter)],
        "draw": draw,
        "seed": 7,
        "system": None,
        "score_under": [],
        "server": None,
        "batch_prompts": 4,
        "dtype": "float32",
        **changes,
    }


def save_adapter(base: Path, folder: Path, seed: int = 1, targets: Any = "all-linear") -> Path:
    """A LoRA adapter, on every linear layer, whose answers differ from the base model's."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    adapted = get_peft_model(
        model,
        LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=32, target_modules=targets),
    )
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    return folder


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def some_prompts(count: int = 6) -> list[dict[str, Any]]:
    """Prompts of different lengths."""
    words = WORDS.split()
    return [{"id": f"p{n}", "messages": user(" ".join(words[n : 2 * n + 1]))} for n in range(count)]


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def make_run(folder: Path, spec: dict[str, Any], prompts: list[dict[str, Any]], k: int = 3) -> Path:
    """A run directory; prompts that do not say who answers are answered k times by the first."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.json").write_text(json.dumps(spec))
    first = spec["policies"][0]["id"] if spec.get("policies") else "p"
    asked = [{"policies": [first] * k, **prompt} for prompt in prompts]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(p) + "\n" for p in asked))
    return folder


def start_program(
    run_dir: Path, python: str = sys.executable, **kwargs: Any
) -> subprocess.Popen[str]:
    """The real program, as a worker starts it."""
    return subprocess.Popen(  # noqa: S603
        [python, "-m", "generation.samplers", "run", str(run_dir)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )
