"""`python -m training.trainer probe`: what a policy's files say of a few texts."""

import json
from pathlib import Path

import pytest

from tests.training.trainer.builders import write_policy
from training.trainer.__main__ import main
from training.trainer.config import PolicySource
from training.trainer.probes import PROMPT_TOKENS, RESPONSE_TOKENS, TEXTS, probes


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_policy(tmp_path_factory.mktemp("policy") / "llama")


def test_the_program_writes_what_the_library_computes(policy, tmp_path):
    file = tmp_path / "probes.jsonl"
    assert main(["probe", str(file), "--policy", str(policy)]) == 0
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert rows == probes(PolicySource(model=str(policy), adapter=None), "float32")
    assert len(rows) == len(TEXTS) == 8
    for row in rows:
        assert 0 < len(row["prompt"]) <= PROMPT_TOKENS
        assert 0 < len(row["response"]) <= RESPONSE_TOKENS
        assert row["logp"] < 0
        assert row["base_logp"] is None


def test_a_folder_that_is_no_policy_exits_2_and_writes_nothing(tmp_path, capsys):
    file = tmp_path / "probes.jsonl"
    assert main(["probe", str(file), "--policy", str(tmp_path)]) == 2
    assert "config.json" in capsys.readouterr().err
    assert not file.exists()
