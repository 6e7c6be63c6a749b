"""A round from start to end in this process: what it refuses, and what must not change a number."""

import json
import math
from dataclasses import replace
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
    votes,
    weights_of,
    write_policy,
)
from training.trainer import batches, logps, loop
from training.trainer.__main__ import main
from training.trainer.batches import Batch, all_batches, epoch_batches, micro_batches
from training.trainer.config import load_spec
from training.trainer.data import Group, Pair
from training.trainer.evaluate import kl_estimate, reward_accuracy
from training.trainer.loop import learning_rate
from training.trainer.reference import Reference, check_first_loss
from training.trainer.run_dir import Refused


def run(run_dir: Any) -> int:
    return main(["run", str(run_dir)])


def results(run_dir: Any) -> dict[str, Any]:
    return read_json(run_dir / "manifest.json")["results"]


# --- step 0 ---------------------------------------------------------------------------------


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
    scored = loop.reference_of_start

    def then_train_mode(spec: Any, dataset: Any, policy: Any, stop: Any) -> Reference:
        reference = scored(spec, dataset, policy, stop)
        policy.model.train()
        return reference

    monkeypatch.setattr(loop, "reference_of_start", then_train_mode)
    run_dir = make_round(policy=gpt2_dir)
    assert run(run_dir) == 3
    (error,) = events_of(run_dir, "error")
    assert "it must be 0.693147" in error["message"]
    assert not (run_dir / "policy").exists()
    assert [line["step"] for line in metrics_of(run_dir)] == [0]


def test_trap_9_a_reference_from_other_weights_is_refused(make_round, llama_dir, monkeypatch):
    """The reference pass saw weights that the policy then does not have."""
    scored = loop.reference_of_start

    def then_disturb(spec: Any, dataset: Any, policy: Any, stop: Any) -> Reference:
        reference = scored(spec, dataset, policy, stop)
        with torch.no_grad():
            for parameter in policy.model.parameters():
                parameter.mul_(1.001)
        return reference

    monkeypatch.setattr(loop, "reference_of_start", then_disturb)
    assert run(make_round()) == 3


def test_step_0_tolerates_rounding_and_nothing_else():
    reference = Reference(torch.zeros(1), math.log(2), 1e-5)
    check_first_loss(math.log(2) + 9e-6, reference)
    for wrong in (math.log(2) + 2e-5, math.nan):
        with pytest.raises(Refused):
            check_first_loss(wrong, reference)


def test_a_model_whose_batches_differ_from_plain_passes_is_refused(make_round, monkeypatch):
    """As one that ignored the attention mask, or scored after its head in another way, would."""
    monkeypatch.setattr(loop, "check_first_loss", lambda *_: None)
    honest = logps._forward
    monkeypatch.setattr(logps, "_forward", lambda *given: honest(*given) * 1.01)
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


# --- what must not change a number ----------------------------------------------------------


def gradients(run_dir: Any, *, micro_tokens: int, forward_tokens: int, monkeypatch: Any) -> Any:
    monkeypatch.setattr(batches, "MICRO_TOKENS", micro_tokens)
    monkeypatch.setattr(logps, "FORWARD_TOKENS", forward_tokens)

    class Never:
        requested = False

    for name in ("events.jsonl", "metrics.jsonl"):
        (run_dir / name).unlink(missing_ok=True)
    round_ = loop.start(loop.RoundFiles(run_dir), Never())  # type: ignore[arg-type]
    (_, batch), *_rest = all_batches(
        round_.dataset.train, size=len(round_.dataset.train), seed=0, epochs=1, start=0
    )
    loop.accumulate(round_, batch)
    return {name: p.grad for name, p in round_.policy.trainable().items()}


def test_trap_13_micro_batches_change_no_gradient_not_even_a_ragged_last_one(
    make_round, other_dir, monkeypatch
):
    """Groups with 1, 2 and 3 pairs, so that a mean of means would be another number."""
    rows = [ranked_row(n) | {"pairs": ranked_row(n)["pairs"][: 1 + n % 3]} for n in range(1, 8)]
    run_dir = make_round(
        rows=rows, reference={"model": str(other_dir), "adapter": None}, held_out_share=0.0
    )
    whole = gradients(run_dir, micro_tokens=10**6, forward_tokens=10**6, monkeypatch=monkeypatch)
    for micro, forward in ((1, 10**6), (200, 100), (10**6, 1)):
        cut = gradients(
            run_dir, micro_tokens=micro, forward_tokens=forward, monkeypatch=monkeypatch
        )
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


def test_batches_are_whole_groups_and_an_epoch_is_every_group_once():
    groups = [
        Group(str(n), (1, 2), ((3,), (4,)), (Pair("p", 0, 1, 1.0),), 2 * n) for n in range(10)
    ]
    epoch = epoch_batches(groups, size=4, seed=1, epoch=0)
    assert [len(batch.groups) for batch in epoch] == [4, 4, 2]
    assert sorted(g.offset for batch in epoch for g in batch.groups) == [2 * n for n in range(10)]
    assert epoch != epoch_batches(groups, size=4, seed=1, epoch=1)
    steps = list(all_batches(groups, size=4, seed=1, epochs=3, start=0))
    assert [step for step, _ in steps] == list(range(1, 10))
    assert list(all_batches(groups, size=4, seed=1, epochs=3, start=5)) == steps[5:]


def test_pairs_point_at_their_own_groups_responses():
    one = Group("a", (1,), ((2,), (3,)), (Pair("p", 1, 0, 1.0),), 0)
    two = Group("b", (1,), ((4,), (5,), (6,)), (Pair("q", 2, 0, 0.75), Pair("r", 1, 0, 1.0)), 7)
    batch = Batch((two, one))
    assert [batch.branches[at].response for at in batch.chosen] == [(6,), (5,), (3,)]
    assert [batch.branches[at].response for at in batch.rejected] == [(4,), (4,), (2,)]
    assert batch.rows.tolist() == [7, 8, 9, 0, 1]
    assert batch.labels.tolist() == [0.75, 1.0, 1.0]
    assert [g.id for micro in micro_batches(batch) for g in micro.groups] == ["b", "a"]


def test_the_learning_rate_warms_up_and_decays_linearly(make_round):
    spec = replace(load_spec(make_round() / "spec.json"), warmup_steps=2, learning_rate=1.0)
    assert [learning_rate(step, 6, spec) for step in range(1, 7)] == [0.5, 1, 1, 0.75, 0.5, 0.25]


def test_reward_accuracy_counts_zero_and_even_votes_half():
    margin = torch.tensor([1.0, -1.0, 0.0, 3.0])
    label = torch.tensor([1.0, 1.0, 1.0, 0.5])
    assert reward_accuracy(margin, label).tolist() == [1.0, 0.0, 0.5, 0.5]


def test_the_kl_estimate_is_zero_at_the_reference_and_never_negative():
    values = kl_estimate(torch.tensor([0.0, 1e-4, -1e-4, 2.0, -1e4, 1e4]))
    assert values[0] == 0
    assert (values >= 0).all()
    assert values[3].item() == pytest.approx(math.exp(-2) - 1 + 2)
    assert values[4] == values[5] == 100


def test_the_kl_estimate_is_the_kl_in_the_mean_over_the_policys_own_samples():
    """Σ_y π(y)·k3(y) = KL(π ‖ π_ref) exactly, on a distribution small enough to enumerate."""
    policy, reference = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.5, 0.3])
    ratio = (policy / reference).log()
    exact = (policy * ratio).sum()
    assert (policy * kl_estimate(ratio)).sum().item() == pytest.approx(exact.item(), abs=1e-6)


# --- endings --------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_its_pairs(
    make_round, monkeypatch
):
    """After the reference pass, one digit that only one training group holds becomes NaN."""
    scored, digit = loop.reference_of_start, make_tokenizer().encode("5")[0]

    def then_poison(spec: Any, dataset: Any, policy: Any, stop: Any) -> Reference:
        def hook(_module: Any, inputs: Any, hidden: torch.Tensor) -> torch.Tensor:
            return hidden.masked_fill((inputs[0] == digit)[..., None], math.nan)

        reference = scored(spec, dataset, policy, stop)
        policy.model.get_input_embeddings().register_forward_hook(hook)
        return reference

    monkeypatch.setattr(loop, "reference_of_start", then_poison)
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


@pytest.mark.parametrize(
    ("error", "code", "advice"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), 4, "method=lora"),
        (MemoryError(), 4, "max_length"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 4, "max_length"),
        (OSError(28, "No space left on device"), 5, "free space"),
    ],
)
def test_no_memory_and_no_disk_end_with_advice(make_round, monkeypatch, error, code, advice):
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(loop, "take_step", fail)
    run_dir = make_round()
    assert run(run_dir) == code
    (event,) = events_of(run_dir, "error")
    assert advice in event["message"]
    assert event["exit"] == code


def test_a_spec_that_was_edited_wrongly_is_exit_2(make_round):
    run_dir = make_round()
    spec = read_json(run_dir / "spec.json") | {"betta": 1}
    (run_dir / "spec.json").write_text(json.dumps(spec))
    assert run(run_dir) == 2
    assert "unknown key betta" in events_of(run_dir, "error")[0]["message"]


def test_data_longer_than_the_models_positions_is_exit_2(make_round):
    rows = [ranked_row(n) for n in range(1, 4)]
    rows[0]["responses"][0]["text"] = "x" * 300
    run_dir = make_round(rows=rows, max_length=1024, held_out_share=0.0)
    assert run(run_dir) == 2
    assert "the model knows 256 positions" in events_of(run_dir, "error")[0]["message"]


def test_the_data_report_is_written_before_the_first_step(make_round):
    rows = [ranked_row(n) for n in range(8)]
    rows[1]["pairs"] = [votes(0, 1, 0, 0, 3), votes(0, 2, 1, 0)]
    run_dir = make_round(rows=rows, epochs=1)
    assert run(run_dir) == 0
    (report,) = events_of(run_dir, "data_report")
    assert report["dropped"] == {"tied": 1}
    assert report["pairs"] == {"train": 6 * 3 - 2, "held_out": 2 * 3}


def test_a_round_without_held_out_prompts_says_so(make_round):
    rows = [ranked_row(n) for n in (1, 2, 3)]
    run_dir = make_round(rows=rows, epochs=1, held_out_share=0.0)
    assert run(run_dir) == 0
    assert "no prompt is held out" in events_of(run_dir, "warning")[0]["message"]
    assert results(run_dir)["held_out_after"] is None
    assert "nothing was held out" in (run_dir / "policy" / "README.md").read_text()


def test_a_round_that_is_done_is_left_alone(make_round):
    run_dir = make_round(epochs=1)
    assert run(run_dir) == 0
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    assert run(run_dir) == 0
    assert before == {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
