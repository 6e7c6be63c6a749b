"""One step: what must not change a number, and what stops it before the update."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from jobs.run_dir import read_json
from tests.training.trainer.builders import (
    events_of,
    make_tokenizer,
    metrics_of,
    ranked_row,
    weights_of,
)
from training.trainer import loop
from training.trainer.__main__ import main
from training.trainer.batches import all_batches
from training.trainer.config import load_spec
from training.trainer.reference import Reference, ReferencePass
from training.trainer.step import accumulate, learning_rate


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
    ],
)
def test_trap_21_every_option_does_something(make_round, option, value):
    plain, changed = make_round("plain"), make_round("changed", **{option: value})
    assert run(plain) == run(changed) == 0
    assert weights_of(plain) != weights_of(changed)


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
