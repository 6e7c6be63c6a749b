"""What the embedded sampler says about a response is true, whatever else is in the batch."""

import json
import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from generation.samplers.policy import (  # noqa: E402
    check_policy,
    end_ids,
    load_model,
    load_tokenizer,
)
from generation.samplers.protocol import (  # noqa: E402
    Draw,
    PromptFailure,
    PromptRequest,
    PromptSamples,
    SamplerSpec,
    response_seed,
)
from generation.samplers.transformers import TransformersSampler  # noqa: E402
from jobs.run_dir import RunDirError, check_spec  # noqa: E402
from labeling.policy_files import UnsafePolicy, policy_digest  # noqa: E402
from tests.generation.samplers.conftest import (  # noqa: E402
    DRAW,
    make_model,
    save_adapter,
    save_policy,
    spec_for,
)

LENGTHS = (3, 9, 4, 4, 21, 14, 1)


def make_sampler(policy: Path, *, adapter=None, end_ids=(1,), **changes) -> TransformersSampler:
    spec = check_spec(SamplerSpec, spec_for(policy, adapter, **changes))
    (one,) = spec.policies
    return TransformersSampler(spec, one, end_ids, load_tokenizer(one))


def make_requests(k=3, lengths=LENGTHS, **draw) -> list[PromptRequest]:
    generator = torch.Generator().manual_seed(5)
    return [
        asked(f"p{n}", torch.randint(5, 300, (length,), generator=generator).tolist(), k, **draw)
        for n, length in enumerate(lengths)
    ]


def asked(prompt_id, token_ids, k, **draw) -> PromptRequest:
    indexes = tuple(range(k)) if isinstance(k, int) else k
    return PromptRequest(
        prompt_id=prompt_id,
        policy="p",
        token_ids=tuple(token_ids),
        indexes=indexes,
        draw=Draw(**(DRAW | draw)),
    )


def answers(sampler, requests) -> dict[str, PromptSamples | PromptFailure]:
    results = [result for group in sampler.sample(requests) for result in group]
    assert len({result.prompt_id for result in results}) == len(results) == len(requests)
    return {result.prompt_id: result for result in results}


def ids(answer: PromptSamples) -> list[tuple[int, ...]]:
    return [response.token_ids for response in answer.responses]


def ends_often(sampler) -> TransformersSampler:
    """With a quarter of the vocabulary as end tokens, rows leave the batch all the time."""
    sampler.end_ids = torch.arange(0, 320, 4)
    return sampler


def plain_logp(model, request, response) -> float:
    """The response's summed logp by one forward pass over prompt and response alone."""
    whole = torch.tensor([[*request.token_ids, *response.token_ids]])
    with torch.no_grad():
        logps = model(input_ids=whole).logits[0].float().log_softmax(-1)
    start = len(request.token_ids)
    return float(logps[start - 1 : -1].gather(1, whole[0, start:, None]).sum())


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logp_is_the_plain_forward_pass_s_at_temperature_one(policy, temperature):
    sampler = ends_often(make_sampler(policy))
    requests = make_requests(temperature=temperature, top_p=0.9)
    made = answers(sampler, requests)
    for request in requests:
        for response in made[request.prompt_id].responses:
            expected = plain_logp(sampler.model, request, response)
            assert response.logp == pytest.approx(expected, abs=1e-4)


def test_a_model_with_a_sliding_window_keeps_it(tmp_path):
    sampler = make_sampler(save_policy(tmp_path / "mistral", "mistral"))
    requests = make_requests(max_new_tokens=20)
    for prompt_id, answer in answers(sampler, requests).items():
        request = next(r for r in requests if r.prompt_id == prompt_id)
        for response in answer.responses:
            expected = plain_logp(sampler.model, request, response)
            assert response.logp == pytest.approx(expected, abs=1e-4)


def test_a_policy_in_bfloat16_still_sums_its_logps_in_fp32(llama):
    sampler = make_sampler(llama, dtype="bfloat16")
    assert sampler.model.dtype == torch.bfloat16
    request = make_requests(lengths=(9,))[0]
    (answer,) = answers(sampler, [request]).values()
    for response in answer.responses:
        assert response.logp == pytest.approx(plain_logp(sampler.model, request, response), abs=1)
        assert float(torch.tensor(response.logp).bfloat16()) != response.logp


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_response_does_not_depend_on_its_batch(policy, temperature):
    sampler = ends_often(make_sampler(policy, batch_prompts=7))
    requests = make_requests(temperature=temperature)
    together = answers(sampler, requests)
    for request in requests:
        alone = answers(sampler, [request])[request.prompt_id]
        assert ids(alone) == ids(together[request.prompt_id])
    lengths = {len(row) for answer in together.values() for row in ids(answer)}
    assert len(lengths) > 3  # else no row had left the batch early


def test_greedy_equals_the_library_s_generate(policy):
    sampler = make_sampler(policy)
    requests = make_requests(k=1, temperature=0)
    made = answers(sampler, requests)
    for request in requests:
        whole = sampler.model.generate(
            input_ids=torch.tensor([request.token_ids]),
            attention_mask=torch.ones(1, len(request.token_ids), dtype=torch.long),
            do_sample=False,
            max_new_tokens=12,
            pad_token_id=0,
        )
        assert whole[0, len(request.token_ids) :].tolist() == [*ids(made[request.prompt_id])[0]]


def test_only_the_indexes_asked_for_come_and_are_the_same(llama):
    sampler = make_sampler(llama)
    (request,) = make_requests(k=5, lengths=(6,))
    whole = ids(answers(sampler, [request])["p0"])
    gap = asked("p0", request.token_ids, (1, 4))
    (answer,) = answers(sampler, [gap]).values()
    assert [response.index for response in answer.responses] == [1, 4]
    assert ids(answer) == [whole[1], whole[4]]


def test_responses_of_one_prompt_differ_and_carry_their_seeds(llama):
    (answer,) = answers(make_sampler(llama), make_requests(k=8, lengths=(6,))).values()
    assert len(set(ids(answer))) == 8
    seeds = [response.seed for response in answer.responses]
    assert seeds == [response_seed(7, "p0", index) for index in range(8)]
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_another_seed_writes_other_responses(llama):
    requests = make_requests(lengths=(6,))
    first, second = (answers(make_sampler(llama, seed=seed), requests)["p0"] for seed in (7, 8))
    assert ids(first) != ids(second)


def test_equal_prompts_share_a_pass_but_not_their_responses(llama):
    sampler = make_sampler(llama)
    first = make_requests(lengths=(6,))[0]
    second = asked("twin", first.token_ids, first.indexes)
    widths = []
    handle = sampler.model.register_forward_pre_hook(
        lambda _module, _args, kwargs: widths.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    made = answers(sampler, [first, second])
    handle.remove()
    assert widths[0] == (1, 6)
    assert set(ids(made["p0"])).isdisjoint(ids(made["twin"]))


def test_the_first_token_follows_the_policy_s_distribution(llama):
    k = 4000
    sampler = make_sampler(llama)
    (request,) = make_requests(k=k, lengths=(5,), max_new_tokens=1)
    (answer,) = answers(sampler, [request]).values()
    drawn = torch.bincount(torch.tensor(ids(answer)).flatten(), minlength=sampler.vocabulary)
    with torch.no_grad():
        logits = sampler.model(input_ids=torch.tensor([request.token_ids])).logits[0, -1]
    expected = logits.double().softmax(-1) * k
    common = expected >= 5
    statistic = float(((drawn - expected) ** 2 / expected)[common].sum())
    freedom = int(common.sum())
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5


def test_an_end_token_ends_a_response_and_counts(llama):
    sampler = ends_often(make_sampler(llama))
    ends = set(sampler.end_ids.tolist())
    for answer in answers(sampler, make_requests(max_new_tokens=30)).values():
        for response in answer.responses:
            *before, last = response.token_ids
            assert ends.isdisjoint(before)
            assert (last in ends) == (response.finish_reason == "stop")
            assert response.finish_reason == "stop" or len(response.token_ids) == 30


def test_end_tokens_of_the_model_s_own_settings_count_too(llama, tmp_path):
    folder = shutil.copytree(llama, tmp_path / "policy")
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": [1, 9]}))
    (policy,) = check_spec(SamplerSpec, spec_for(folder)).policies
    assert end_ids(policy, load_tokenizer(policy)) == (1, 9)


def test_a_response_that_never_ends_stops_at_its_length(policy):
    sampler = make_sampler(policy)
    sampler.end_ids = torch.tensor([10_000])
    for answer in answers(sampler, make_requests(max_new_tokens=5)).values():
        assert {(r.finish_reason, len(r.token_ids)) for r in answer.responses} == {("length", 5)}


def test_a_prompt_that_does_not_fit_fails_alone(policy):
    sampler = make_sampler(policy)
    made = answers(sampler, make_requests(lengths=(4, 85, 84)))
    assert isinstance(made["p1"], PromptFailure)
    assert made["p1"].reason.startswith("too long: 85 prompt tokens and up to 12 new ones")
    assert isinstance(made["p0"], PromptSamples)
    assert isinstance(made["p2"], PromptSamples)  # 84 + 12 is exactly the context


def test_a_token_outside_the_vocabulary_fails_its_prompt_alone(llama):
    good = make_requests(lengths=(4,))[0]
    bad = asked("bad", (5, 10_000), 1)
    made = answers(make_sampler(llama), [good, bad])
    assert made["bad"] == PromptFailure(
        prompt_id="bad", indexes=(0,), reason="token 10000 is not in the policy's vocabulary"
    )
    assert isinstance(made["p0"], PromptSamples)


def test_logits_that_are_not_finite_fail_the_prompt(llama):
    sampler = make_sampler(llama)
    with torch.no_grad():
        sampler.model.lm_head.weight[40] = float("nan")
    (answer,) = answers(sampler, make_requests(lengths=(4,))).values()
    assert answer == PromptFailure(
        prompt_id="p0", indexes=(0, 1, 2), reason="the policy's logits are not finite"
    )


def test_a_batch_that_does_not_fit_into_memory_is_halved(llama):
    sampler = make_sampler(llama, batch_prompts=7)
    requests = make_requests()
    expected = answers(sampler, requests)

    def too_small(_module, _args, kwargs) -> None:
        if kwargs["input_ids"].shape[0] > 4 or kwargs["input_ids"].shape[1] == 21:
            raise torch.OutOfMemoryError("no room")

    sampler.model.register_forward_pre_hook(too_small, with_kwargs=True)
    made = answers(sampler, requests)
    failed = made.pop("p4")
    assert isinstance(failed, PromptFailure)
    assert "out of memory" in failed.reason
    assert {p: ids(answer) for p, answer in made.items()} == {p: ids(expected[p]) for p in made}


def test_an_adapter_s_responses_are_the_adapted_model_s(llama, tmp_path):
    from peft import PeftModel

    adapter = save_adapter(llama, tmp_path / "adapter")
    sampler = make_sampler(llama, adapter=adapter)
    check_policy(sampler.policy)
    base = make_sampler(llama)
    adapted = PeftModel.from_pretrained(base.model, adapter)
    requests = make_requests()
    made = answers(sampler, requests)
    for request in requests:
        for response in made[request.prompt_id].responses:
            expected = plain_logp(adapted, request, response)
            assert response.logp == pytest.approx(expected, abs=1e-3)
    with adapted.disable_adapter():
        assert {p: ids(a) for p, a in answers(base, requests).items()} != {
            p: ids(a) for p, a in made.items()
        }
    assert load_tokenizer(sampler.policy).chat_template  # the base model's


def test_an_adapter_of_another_model_is_refused(llama, tmp_path):
    adapter = save_adapter(llama, tmp_path / "adapter", targets=["q_proj", "v_proj"])
    other = tmp_path / "other"
    model = make_model("llama", 320)
    model.model.layers.append(type(model.model.layers[0])(model.config, 2))
    model.config.num_hidden_layers = 3
    model.config.layer_types = None
    model.save_pretrained(other)
    with pytest.raises(RunDirError, match="missing adapter keys"):
        load_model(
            check_spec(SamplerSpec, spec_for(other, adapter)).policies[0],
            "float32",
        )


def test_weights_that_are_not_all_there_are_refused(llama, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(llama, tmp_path / "policy")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunDirError, match=r"incomplete: model\.layers\.1\.mlp\.up_proj"):
        make_sampler(folder)


@pytest.mark.parametrize("name", ["modeling.py", "pytorch_model.bin"])
def test_a_folder_that_could_run_code_is_refused(llama, tmp_path, name):
    folder = shutil.copytree(llama, tmp_path / "policy")
    (folder / name).write_text("raise SystemExit")
    with pytest.raises(UnsafePolicy):
        check_policy(check_spec(SamplerSpec, spec_for(folder)).policies[0])


def test_an_adapter_in_the_model_s_place_is_refused(llama, tmp_path):
    folder = shutil.copytree(llama, tmp_path / "policy")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/elsewhere"}')
    with pytest.raises(UnsafePolicy, match="must be a model's folder"):
        check_policy(check_spec(SamplerSpec, spec_for(folder)).policies[0])


def test_an_adapter_that_is_not_lora_is_refused(llama, tmp_path):
    adapter = save_adapter(llama, tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "ADALORA"}))
    with pytest.raises(UnsafePolicy, match="not a LoRA adapter"):
        check_policy(check_spec(SamplerSpec, spec_for(llama, adapter)).policies[0])


def test_a_policy_with_another_digest_is_refused(llama):
    spec = spec_for(llama)
    spec["policies"][0]["digest"] = "0" * 64
    with pytest.raises(RunDirError, match=policy_digest(llama)):
        check_policy(check_spec(SamplerSpec, spec).policies[0])
