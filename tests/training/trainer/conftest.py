"""Fixtures: policies on disk, and run directories made by `init`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from tests.training.trainer.builders import make_tokenizer, ranked_row, write_policy, write_rows
from training.trainer.__main__ import main


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session")
def llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_policy(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def gpt2_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_policy(tmp_path_factory.mktemp("gpt2"), "gpt2")


@pytest.fixture(scope="session")
def other_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_policy(tmp_path_factory.mktemp("other"), seed=1)


MakeRound = Callable[..., Path]


@pytest.fixture
def make_round(tmp_path: Path, llama_dir: Path) -> MakeRound:
    """Makes a run directory by `init`: 12 learnable groups, 9 of them to train on."""

    def make(
        name: str = "round",
        *,
        policy: Path = llama_dir,
        adapter: Path | None = None,
        rows: list[dict[str, Any]] | None = None,
        **settings: Any,
    ) -> Path:
        rows = [ranked_row(number) for number in range(12)] if rows is None else rows
        source = write_rows(tmp_path / f"{name}.jsonl", rows)
        small = {"batch_groups": 3, "warmup_steps": 1, "max_length": 128, "eval_every": 3}
        if settings.get("sample_prompts") != 0:
            small["sample_tokens"] = 4
        values = [f"{key}={json.dumps(value)}" for key, value in (small | settings).items()]
        arguments = ["init", str(tmp_path / name), "--policy", str(policy)]
        arguments += ["--adapter", str(adapter)] if adapter else []
        assert main([*arguments, "--preferences", str(source), "--set", *values]) == 0
        return tmp_path / name

    return make
