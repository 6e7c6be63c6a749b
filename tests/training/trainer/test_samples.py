"""Sampled responses: drawn exactly, the same each time, and measured as their docstrings say."""

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import GenerationConfig, LogitsProcessorList

from tests.training.trainer.builders import as_policy, make_model, make_tokenizer, ranked_row
from training.trainer.config import load_spec
from training.trainer.data import Group
from training.trainer.model import Policy, lora_config
from training.trainer.samples import (
    Drawing,
    Sample,
    SamplePrompt,
    repetition,
    report_samples,
    sample_prompts,
    sample_responses,
    summarise,
)

PROMPTS = [(7, 8, 9), (10, 11, 12, 13, 14, 15, 16), (20,), (30, 31, 32, 33)]


def policy_of(architecture: str, *, dtype: str = "float32") -> Policy:
    return as_policy(make_model(architecture), dtype=dtype)


def answers(policy: Policy, prompts: Any = PROMPTS, **more: Any) -> list[Sample]:
    settings = {"max_tokens": 12, "seed": 3} | more
    return sample_responses(policy, make_tokenizer(), prompts, **settings)


@torch.no_grad()
def drawn_plainly(
    policy: Policy, prompts: list[tuple[int, ...]], uniforms: torch.Tensor, end: int
) -> list[tuple[int, ...]]:
    """One prompt at a time, without padding, a cache or `generate`: the definition, written out."""
    found = []
    for prompt, numbers in zip(prompts, uniforms.tolist(), strict=True):
        ids = list(prompt)
        for number in numbers:
            logits = policy.model(input_ids=torch.tensor([ids])).logits[0, -1]
            cumulated = logits.double().softmax(-1).cumsum(-1)
            ids.append(int((cumulated <= number * cumulated[-1]).sum()))
            if ids[-1] == end:
                break
        found.append(tuple(ids[len(prompt) :]))
    return found


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_padded_batch_draws_what_each_prompt_draws_alone(architecture):
    """Rotary and learned positions (trap 8): padding on the left moves no position."""
    policy = policy_of(architecture)
    uniforms = torch.rand(4, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = drawn_plainly(policy, PROMPTS, uniforms, end=make_tokenizer().eos_token_id)
    found = answers(policy)
    assert [sample.tokens for sample in found] == expected
    assert len(set(expected)) == 4


def test_samples_depend_on_the_seed_and_on_nothing_else():
    policy = policy_of("llama")
    first = answers(policy)
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    assert answers(policy) == first
    assert torch.equal(torch.random.get_rng_state(), state)
    assert answers(policy, seed=4) != first


def test_no_gradient_is_left_and_the_models_settings_are_as_they_were():
    policy = policy_of("llama")
    stock = policy.model.generation_config
    answers(policy)
    assert policy.model.generation_config is stock
    assert all(p.grad is None for p in policy.model.parameters())


def test_the_models_own_generation_settings_change_no_answer():
    """Such as a repetition penalty, which would hide what is to be measured."""
    policy = policy_of("llama")
    plain = answers(policy)
    policy.model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.1, top_k=1, repetition_penalty=5.0, no_repeat_ngram_size=2
    )
    assert answers(policy) == plain


def test_the_draws_have_the_policys_probabilities():
    logits = torch.tensor([2.0, 0.0, -math.inf, 1.0])
    count = 4000
    uniforms = torch.rand(count, 1, generator=torch.Generator().manual_seed(0)).double()
    left = Drawing(uniforms, 5)(torch.zeros(count, 5), logits.repeat(count, 1))
    seen = Counter(left.argmax(dim=-1).tolist())
    for token, share in enumerate(logits.softmax(-1).tolist()):
        assert seen[token] / count == pytest.approx(share, abs=0.02)
    assert seen[2] == 0
    assert (left > -math.inf).sum(dim=-1).eq(1).all()


def test_a_uniform_number_at_either_end_draws_a_token_that_is_possible():
    logits = torch.tensor([[-math.inf, 1.0, 1.0, -math.inf]]).repeat(2, 1)
    uniforms = torch.tensor([[0.0], [math.nextafter(1.0, 0.0)]], dtype=torch.float64)
    left = Drawing(uniforms, 0)(torch.zeros(2, 0), logits)
    assert left.argmax(dim=-1).tolist() == [1, 2]
    assert LogitsProcessorList([Drawing(uniforms, 0)])  # what `generate` takes


def ends_at_once(policy: Policy, token: int) -> None:
    """The model's own settings name this token, which it always draws, as one of its ends."""
    head = policy.model.get_output_embeddings()
    head.register_forward_hook(
        lambda _head, _inputs, logits: torch.full_like(logits, -100.0).index_fill(
            -1, torch.tensor([token]), 0.0
        )
    )


def test_a_response_ends_at_an_end_token_which_it_keeps():
    policy = policy_of("llama")
    ends_at_once(policy, make_tokenizer().eos_token_id)
    assert answers(policy) == [Sample((make_tokenizer().eos_token_id,), True)] * 4


def test_a_response_ends_at_the_models_own_end_token_too():
    policy = policy_of("llama")
    ends_at_once(policy, 42)
    assert {sample.ended for sample in answers(policy)} == {False}
    policy.model.generation_config.eos_token_id = [41, 42]
    assert answers(policy) == [Sample((42,), True)] * 4


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_no_response_goes_past_the_models_positions(architecture):
    policy = policy_of(architecture)
    ends_at_once(policy, 42)  # which ends nothing here
    prompts = [(7,) * 250, (8,) * 3, (7,) * 255, (9,) * 250]
    found = answers(policy, prompts)
    assert [len(sample.tokens) for sample in found] == [6, 12, 1, 6]
    assert not any(sample.ended for sample in found)


def test_more_prompts_than_one_batch_holds_come_back_in_order(monkeypatch):
    policy = policy_of("llama")
    whole = answers(policy)
    monkeypatch.setattr("training.trainer.samples.ROWS", 1)
    assert answers(policy) == whole


def test_an_adapter_answers_and_another_adapter_answers_otherwise(make_round):
    spec = replace(load_spec(make_round() / "spec.json"), method="lora")
    model = get_peft_model(make_model("llama"), lora_config(spec))
    policy = as_policy(model.eval())
    assert answers(policy) == answers(policy_of("llama"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.3)
    assert answers(policy) != answers(policy_of("llama"))


def test_layers_compiled_for_training_are_not_compiled_again_for_this():
    def backend(*_: Any) -> None:
        raise AssertionError("a layer was compiled")

    policy = policy_of("llama")
    for layer in policy.model.model.layers:
        layer.compile(backend=backend)
    assert answers(policy) == answers(policy_of("llama"))


def test_bfloat16_answers_are_the_same_each_time():
    assert answers(policy_of("llama", dtype="bfloat16")) == answers(
        policy_of("llama", dtype="bfloat16")
    )


# --- what is measured -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "share"),
    [
        ((), 0.0),
        ((1, 2, 3), 0.0),
        ((1, 2, 3, 4), 0.0),
        ((1, 2, 3, 4, 1, 2, 3, 4), 1 / 5),
        ((1,) * 8, 4 / 5),
        (tuple(range(50)), 0.0),
    ],
)
def test_repetition_is_the_share_of_4_grams_seen_before(tokens, share):
    assert repetition(tokens) == pytest.approx(share)


def test_the_summary_counts_lengths_ends_and_repetition():
    samples = [Sample(tuple(range(n)), n % 2 == 0) for n in range(1, 20)]
    samples.append(Sample((1,) * 100, False))
    assert summarise(samples) == pytest.approx(
        {
            "prompts": 20,
            "tokens": (19 * 20 / 2 + 100) / 20,
            "tokens_p95": 19,
            "ended": 9 / 20,
            "repetition": (1 - 1 / 97) / 20,
        }
    )
    assert summarise([Sample((1, 2), True)])["tokens_p95"] == 2


def group(number: int, prompt: tuple[int, ...]) -> Group:
    return Group(f"comparison-{number}", prompt, ((1,), (2,)), (), 0)


def test_prompts_are_distinct_and_spread_over_the_held_out_ones():
    rows = [ranked_row(number) for number in range(9)]
    held_out = [group(n, (n % 6,)) for n in range(9)]  # the last three repeat the first
    found = sample_prompts(held_out, rows, 3)
    assert [prompt.ids for prompt in found] == [(0,), (2,), (4,)]
    assert found[1].turn == "question 8?"  # of the last group with this prompt
    assert [prompt.ids for prompt in sample_prompts(held_out, rows, 50)] == [(n,) for n in range(6)]
    assert sample_prompts([], rows, 4) == sample_prompts(held_out, rows, 0) == []


def test_the_report_has_numbers_of_all_samples_and_texts_of_a_few():
    prompts = [SamplePrompt((7 + n,), f"turn {n}" + "x" * 5000 * (n == 1)) for n in range(6)]
    report = report_samples(policy_of("llama"), make_tokenizer(), prompts, max_tokens=12, seed=3)
    assert report is not None
    assert report.metrics["prompts"] == 6
    assert [text["prompt"][:6] for text in report.texts] == [f"turn {n}" for n in range(4)]
    assert len(report.texts[1]["prompt"]) == 2001
    first = answers(policy_of("llama"), [prompt.ids for prompt in prompts])[0]
    shown = make_tokenizer().decode(first.tokens, skip_special_tokens=True)
    assert report.texts[0]["response"] == shown
    assert "<|end|>" not in "".join(text["response"] for text in report.texts)


def test_without_prompts_there_is_no_report():
    assert report_samples(policy_of("llama"), make_tokenizer(), [], max_tokens=4, seed=0) is None
