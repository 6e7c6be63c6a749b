"""Step 0: what the loss must be before any update, and what is refused because it is not."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from jobs.run_dir import read_json
from labeling.chat import prompt_ids
from tests.training.trainer.builders import (
    events_of,
    make_tokenizer,
    metrics_of,
    ranked_row,
    write_policy,
)
from training.trainer import reference, step
from training.trainer.__main__ import main
from training.trainer.reference import Reference, ReferencePass, check_first_loss
from training.trainer.run_dir import Refused


def run(run_dir: Any) -> int:
    return main(["run", str(run_dir)])


def results(run_dir: Any) -> dict[str, Any]:
    return read_json(run_dir / "manifest.json")["results"]


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_policy_that_is_its_own_reference_starts_at_ln_2(
    make_round, request, architecture, method, dtype
):
    policy = request.getfixturevalue(f"{architecture}_dir")
    run_dir = make_round(policy=policy, method=method, dtype=dtype, epochs=1)
    assert run(run_dir) == 0
    assert results(run_dir)["loss_step0"] == pytest.approx(math.log(2), abs=1e-5)
    before = results(run_dir)["held_out_before"]
    assert before["accuracy"] == 0.5
    assert before["margin"] == before["kl"] == 0
    first = metrics_of(run_dir)[1]
    assert (first["step"], first["margin"], first["accuracy"]) == (1, 0.0, 0.5)


def plain_loss(policy: Path, reference: Path, rows: list[dict[str, Any]], beta: float) -> float:
    """The mean loss written out: one text at a time, straight through transformers."""
    tokenizer = make_tokenizer()
    models = [LlamaForCausalLM.from_pretrained(folder).eval() for folder in (policy, reference)]

    def logratio(row: dict[str, Any], index: int) -> float:
        start = prompt_ids(tokenizer, row["prompt"])
        rest = tokenizer.encode(row["responses"][index]["text"]) + [tokenizer.eos_token_id]
        with torch.no_grad():
            logits = [model(torch.tensor([start + rest])).logits[0] for model in models]
        ours, theirs = (torch.log_softmax(each.double(), -1) for each in logits)
        places = range(len(start) - 1, len(start) + len(rest) - 1)
        return sum(float(ours[at, t] - theirs[at, t]) for at, t in zip(places, rest, strict=True))

    losses = []
    for row in rows:
        for pair in row["pairs"]:
            margin = beta * (logratio(row, pair["chosen"]) - logratio(row, pair["rejected"]))
            share = pair["votes_for"] / (pair["votes_for"] + pair["votes_against"])
            losses.append(
                share * math.log1p(math.exp(-margin)) + (1 - share) * math.log1p(math.exp(margin))
            )
    return sum(losses) / len(losses)


def test_another_reference_starts_at_the_loss_of_two_plain_forward_passes(
    make_round, llama_dir, other_dir
):
    rows = [ranked_row(number) for number in range(1, 4)]
    reference = {"model": str(other_dir), "adapter": None}
    run_dir = make_round(rows=rows, reference=reference, beta=0.5, epochs=1)
    assert run(run_dir) == 0
    expected = plain_loss(llama_dir, other_dir, rows, 0.5)
    assert abs(expected - math.log(2)) > 0.01
    assert results(run_dir)["loss_step0"] == pytest.approx(expected, abs=1e-4)
    manifest = read_json(run_dir / "manifest.json")
    assert manifest["reference_digest"] != manifest["start_digest"]


def test_trap_9_a_policy_with_dropout_on_is_refused_before_any_update(
    make_round, gpt2_dir, monkeypatch
):
    scored = ReferencePass.of_start

    def then_train_mode(self: ReferencePass, policy: Any) -> Reference:
        reference = scored(self, policy)
        policy.model.train()
        return reference

    monkeypatch.setattr(ReferencePass, "of_start", then_train_mode)
    run_dir = make_round(policy=gpt2_dir)
    assert run(run_dir) == 3
    (error,) = events_of(run_dir, "error")
    assert "it must be 0.693147" in error["message"]
    assert not (run_dir / "policy").exists()
    assert [line["step"] for line in metrics_of(run_dir)] == [0]


def test_trap_9_a_reference_from_other_weights_is_refused(make_round, llama_dir, monkeypatch):
    """The reference pass saw weights that the policy then does not have."""
    scored = ReferencePass.of_start

    def then_disturb(self: ReferencePass, policy: Any) -> Reference:
        reference = scored(self, policy)
        with torch.no_grad():
            for parameter in policy.model.parameters():
                parameter.mul_(1.001)
        return reference

    monkeypatch.setattr(ReferencePass, "of_start", then_disturb)
    assert run(make_round()) == 3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("held_to", ["start", "other"])
@pytest.mark.parametrize(
    "options",
    [
        {"objective": "ipo", "logratio": "sum", "beta": 0.003},
        {"objective": "ipo", "logratio": "mean", "beta": 0.1},
        {"objective": "hinge", "beta": 2.0},
        {"objective": "robust", "label_noise": 0.2},
        {"objective": "simpo", "target_margin": 1.0, "beta": 2.0},
        {"length_penalty": 0.05},
        {"chosen_floor": 50.0, "beta": 1.0},
        {"ties": "rao_kupper", "tie_nu": 2.0},
    ],
)
def test_every_objective_starts_where_it_must(make_round, other_dir, options, held_to, dtype):
    """Also where a loss in the thousands, or a steep one, makes much of the last digit."""
    given = dict(options, dtype=dtype, epochs=1, sample_prompts=0)
    if held_to == "other":
        given["reference"] = {"model": str(other_dir), "adapter": None}
    assert run(make_round(**given)) == 0


def test_step_0_tolerates_rounding_and_nothing_else():
    reference = Reference(torch.zeros(1), math.log(2), 1e-5)
    check_first_loss(math.log(2) + 9e-6, reference)
    for wrong in (math.log(2) + 2e-5, math.nan):
        with pytest.raises(Refused):
            check_first_loss(wrong, reference)


def test_a_model_whose_batches_differ_from_plain_passes_is_refused(make_round, monkeypatch):
    """As one that ignored the attention mask, or scored after its head in another way, would."""
    monkeypatch.setattr(step, "check_first_loss", lambda *_: None)
    honest = reference.batch_logps
    monkeypatch.setattr(reference, "batch_logps", lambda *given: honest(*given) * 1.01)
    run_dir = make_round()
    assert run(run_dir) == 3
    assert "batched logps differ from plain" in events_of(run_dir, "error")[0]["message"]


def test_a_reference_with_another_vocabulary_is_refused(make_round, tmp_path):
    other = write_policy(tmp_path / "renamed")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["!"], vocabulary["?"] = vocabulary["?"], vocabulary["!"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    run_dir = make_round(reference={"model": str(other), "adapter": None})
    assert run(run_dir) == 2
    assert "another vocabulary" in events_of(run_dir, "error")[0]["message"]
