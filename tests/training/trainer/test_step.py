"""One step: what must not change a number, and what stops it before the update."""

import math
from dataclasses import replace
from functools import partialmethod
from typing import Any

import pytest
import torch

from jobs.run_dir import read_json
from tests.training.trainer.builders import (
    batch_of,
    events_of,
    make_model,
    make_tokenizer,
    metrics_of,
    ranked_row,
    weights_of,
)
from training.trainer import loop
from training.trainer.__main__ import main
from training.trainer.batches import Branch, all_batches
from training.trainer.config import load_spec
from training.trainer.logps import add_gradients
from training.trainer.model import load_policy
from training.trainer.reference import Reference, ReferencePass
from training.trainer.step import accumulate, begin_sparse_gradient, learning_rate


def run(run_dir: Any) -> int:
    return main(["run", str(run_dir)])


def results(run_dir: Any) -> dict[str, Any]:
    return read_json(run_dir / "manifest.json")["results"]


def gradients(run_dir: Any, *, pack_tokens: int, padded: bool) -> Any:
    class Never:
        requested = False

    for name in ("events.jsonl", "metrics.jsonl"):
        (run_dir / name).unlink(missing_ok=True)
    round_ = loop.start(loop.RoundFiles(run_dir), Never())  # type: ignore[arg-type]
    (_, batch), *_rest = all_batches(
        round_.dataset.train, size=len(round_.dataset.train), seed=0, epochs=1, start=0
    )
    why = "the test asks for it" if padded else None
    round_.policy = replace(round_.policy, pack_tokens=pack_tokens, padded_because=why)
    accumulate(round_, batch)
    return {name: p.grad for name, p in round_.policy.trainable().items()}


def test_trap_13_packs_change_no_gradient_not_even_a_ragged_last_one(make_round, other_dir):
    """Groups with 1, 2 and 3 pairs, so that a mean of means would be another number."""
    rows = [ranked_row(n) | {"pairs": ranked_row(n)["pairs"][: 1 + n % 3]} for n in range(1, 8)]
    run_dir = make_round(
        rows=rows, reference={"model": str(other_dir), "adapter": None}, held_out_share=0.0
    )
    whole = gradients(run_dir, pack_tokens=10**6, padded=False)
    for tokens, padded in ((1, False), (60, False), (200, True), (10**6, True)):
        cut = gradients(run_dir, pack_tokens=tokens, padded=padded)
        for name, gradient in whole.items():
            assert (cut[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7


def test_trap_14_held_out_numbers_do_not_depend_on_the_batch_size(make_round, other_dir):
    reference = {"model": str(other_dir), "adapter": None}
    found = []
    for size in (1, 2, 7):
        run_dir = make_round(f"size-{size}", reference=reference, batch_groups=size, epochs=1)
        assert run(run_dir) == 0
        found.append(results(run_dir)["held_out_before"])
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert found[0] == pytest.approx(found[2], rel=1e-5)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(make_round):
    first, again, other = (
        make_round(name, seed=seed) for name, seed in (("first", 5), ("again", 5), ("other", 6))
    )
    assert [run(d) for d in (first, again, other)] == [0, 0, 0]
    assert weights_of(first) == weights_of(again) != weights_of(other)
    assert metrics_of(first) == metrics_of(again)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("beta", 0.5),
        ("labels", "majority"),
        ("learning_rate", 1e-3),
        ("warmup_steps", 3),
        ("epochs", 3),
        ("batch_groups", 2),
        ("max_grad_norm", 0.01),
        ("weight_decay", 0.5),
        ("max_length", 34),
        ("dtype", "bfloat16"),
        ("seed", 1),
        ("method", "lora"),
        ("objective", "hinge"),
        ("logratio", "mean"),
        ("length_penalty", 0.1),
        ("chosen_floor", 5.0),
        ("ties", "rao_kupper"),
    ],
)
def test_trap_21_every_option_does_something(make_round, other_dir, option, value):
    """Away from the reference, where some responses have fallen; every other row has a tie."""
    rows = [ranked_row(number) for number in range(12)]
    for row in rows[1::2]:
        row["pairs"][0]["votes_tied"] = 1
    common = {"rows": rows, "reference": {"model": str(other_dir), "adapter": None}}
    plain = make_round("plain", **common)
    changed = make_round("changed", **common, **{option: value})
    assert run(plain) == run(changed) == 0
    ours, theirs = (
        [row["loss"] for row in metrics_of(d) if "loss" in row] for d in (plain, changed)
    )
    assert ours != theirs


@pytest.mark.parametrize(
    ("architecture", "option"),
    [
        ("llama", "activation_checkpointing"),
        ("gpt2", "activation_checkpointing"),
        ("llama", "compile"),
    ],
)
def test_how_the_layers_are_run_changes_time_and_memory_only(
    make_round, request, monkeypatch, architecture, option
):
    """Compiled without code generation, which takes a minute: the layers are traced for real."""
    traced = partialmethod(torch.nn.Module.compile, backend="aot_eager")
    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    policy = request.getfixturevalue(f"{architecture}_dir")
    plain = make_round("plain", policy=policy, epochs=1)
    other = make_round("other", policy=policy, epochs=1, **{option: True})
    assert run(plain) == run(other) == 0
    for ours, theirs in zip(metrics_of(other), metrics_of(plain), strict=True):
        if "loss" in ours:
            assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)


def test_activation_checkpointing_runs_each_layer_again(make_round):
    """What is inside a layer is called twice: on the way there, and again on the way back."""
    calls = {False: 0, True: 0}
    for again in calls:
        spec = load_spec(make_round(f"{again}", activation_checkpointing=again) / "spec.json")
        policy = load_policy(spec)
        batch = batch_of([Branch((1, 2, 3), (4, 5)), Branch((1, 2, 3), (6,))])

        def count(*_: Any, again: bool = again) -> None:
            calls[again] += 1

        for layer in policy.model.model.layers:
            layer.self_attn.register_forward_hook(count)
        add_gradients(policy, batch, lambda _batch, logps: logps.sum())
    assert calls == {False: 2, True: 4}


def test_an_embedding_that_is_not_tied_to_the_head_is_trained_the_same_sparse_or_dense(
    make_round, tmp_path
):
    folder = tmp_path / "untied"
    make_model("llama", tie_word_embeddings=False).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    gradients = []
    for sparse in (True, False):
        policy = load_policy(load_spec(make_round(f"{sparse}", policy=folder) / "spec.json"))
        policy.model.get_input_embeddings().sparse = sparse
        begin_sparse_gradient(policy)
        batch = batch_of([Branch((1, 2, 3), (4, 4)), Branch((1, 2, 3), (6,)), Branch((1,), (2,))])
        for _ in range(2):
            add_gradients(policy, batch, lambda _batch, logps: logps.sum())
        gradients.append(policy.model.get_input_embeddings().weight.grad)
    assert not gradients[0].is_sparse
    assert torch.allclose(*gradients, atol=1e-6)


def test_the_learning_rate_warms_up_and_decays_linearly(make_round):
    spec = replace(load_spec(make_round() / "spec.json"), warmup_steps=2, learning_rate=1.0)
    assert [learning_rate(step, 6, spec) for step in range(1, 7)] == [0.5, 1, 1, 0.75, 0.5, 0.25]


def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_its_pairs(
    make_round, monkeypatch
):
    """After the reference pass, one digit that only one training group holds becomes NaN."""
    scored, digit = ReferencePass.of_start, make_tokenizer().encode("5")[0]

    def then_poison(self: ReferencePass, policy: Any) -> Reference:
        def hook(_module: Any, inputs: Any, hidden: torch.Tensor) -> torch.Tensor:
            return hidden.masked_fill((inputs[0] == digit)[..., None], math.nan)

        reference = scored(self, policy)
        policy.model.get_input_embeddings().register_forward_hook(hook)
        return reference

    monkeypatch.setattr(ReferencePass, "of_start", then_poison)
    run_dir = make_round()
    assert run(run_dir) == 3
    (error,) = events_of(run_dir, "error")
    assert f"the loss of step {error['step']} is not finite" in error["message"]
    assert len(error["pairs"]) == 3
    assert all(pair.startswith("comparison-5: ") for pair in error["pairs"])
    assert [line["step"] for line in metrics_of(run_dir)][-1] == error["step"] - 1


def test_a_learning_rate_that_diverges_stops_before_the_update(make_round):
    run_dir = make_round(learning_rate=1e30, max_grad_norm=1e30, checkpoint_every=1)
    assert run(run_dir) == 3
    (error,) = events_of(run_dir, "error")
    assert error["step"] == 2
    assert all("comparison-" in pair for pair in error["pairs"])
    assert "the step was not taken" in error["message"]
    assert [line["step"] for line in metrics_of(run_dir)][-1] == 1


def test_a_gradient_that_is_not_finite_stops_before_the_update(make_round, monkeypatch):
    load = loop.load_policy

    def poisoned(spec: Any) -> Any:
        policy = load(spec)
        policy.model.model.norm.weight.register_hook(lambda gradient: gradient * math.nan)
        return policy

    monkeypatch.setattr(loop, "load_policy", poisoned)
    run_dir = make_round()
    assert run(run_dir) == 3
    (error,) = events_of(run_dir, "error")
    assert (error["step"], len(error["pairs"])) == (1, 9)
    assert "the gradient of step 1 is not finite" in error["message"]
