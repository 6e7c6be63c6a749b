"""The starter policy: its corpus, its styles, its tokenizer and its build."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.starter import styles
from training.starter.styles import (
    STYLES,
    CorpusError,
    CorpusRow,
    StyleClassifier,
    bundled_prompts,
    read_corpus,
)
from training.starter.variations import rephrase

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from labeling.chat import end_token_ids, prompt_ids, response_ids  # noqa: E402
from labeling.policy_files import check_policy_dir  # noqa: E402
from training.trainer import starter, supervised  # noqa: E402
from training.trainer.muon import Muon  # noqa: E402

any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
spelt_tokens = st.sampled_from([*starter.SPECIAL_TOKENS, "<|", "|>", "<", "|"])
hostile_text = st.lists(st.one_of(spelt_tokens, any_text), max_size=6).map("".join)

TINY = starter.Recipe(
    epochs=1,
    most_steps=20,
    shape=starter.Shape(vocabulary=400, width=32, layers=2, heads=2, inner_width=48),
    training=supervised.Settings(
        batch_examples=4,
        muon_learning_rate=0.02,
        adam_learning_rate=0.01,
        weight_decay=0.1,
        warmup_share=0.1,
        prompt_weight=0.2,
        max_grad_norm=1.0,
    ),
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def rows() -> list[CorpusRow]:
    return read_corpus()


@pytest.fixture(scope="module")
def tokenizer(rows):
    return starter.train_tokenizer(rows, 2000)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("starter") / "policy"
    starter.build(folder, seed=3, recipe=TINY)
    return folder


# The corpus


def test_the_corpus_has_enough_different_prompts(rows):
    prompts = [row.prompt for row in rows]
    assert len(prompts) >= 400
    assert len(set(prompts)) == len(prompts)
    assert len({row.id for row in rows}) == len(rows)
    assert any("apples" in prompt for prompt in prompts)


def test_every_prompt_is_answered_in_four_different_styles(rows):
    for row in rows:
        assert tuple(row.responses()) == STYLES
        assert len({text.strip() for text in row.responses().values()}) == len(STYLES), row.id


def test_the_corpus_is_plain_single_line_ascii(rows):
    for row in rows:
        for value in vars(row).values():
            assert value.isascii(), row.id
            assert value.isprintable(), row.id
            assert value == value.strip(), row.id


def test_the_styles_differ_in_length(rows):
    def mean_words(style: str) -> float:
        return sum(len(row.responses()[style].split()) for row in rows) / len(rows)

    assert mean_words("curt") < 9 < mean_words("reckless") < mean_words("careful") + 6
    assert mean_words("careful") < 35 < mean_words("long_winded")


def test_bundled_prompts_are_the_rows_of_the_corpus(rows):
    assert [(p.id, p.topic, p.prompt) for p in bundled_prompts()] == [
        (row.id, row.topic, row.prompt) for row in rows
    ]


@pytest.mark.parametrize("line", ["{", "[]", '{"id": "a-001"}'])
def test_a_bad_corpus_line_is_named(line, tmp_path, monkeypatch):
    (tmp_path / "home.jsonl").write_text("\n" + line)
    monkeypatch.setattr(styles, "CORPUS_DIR", tmp_path)
    with pytest.raises(CorpusError, match="home.jsonl line 2"):
        read_corpus()


# The style classifier


def test_the_classifier_tells_styles_of_unseen_prompts_apart(rows):
    order = random.Random(0).sample(rows, len(rows))
    right = 0
    for fold in range(5):
        held_out = order[fold::5]
        classifier = StyleClassifier([row for row in order if row not in held_out])
        pairs = [pair for row in held_out for pair in row.responses().items()]
        right += sum(classifier.classify(text) == style for style, text in pairs)
    assert right / (len(rows) * len(STYLES)) >= 0.95


@given(any_text)
def test_the_classifier_answers_any_text_with_a_style(text):
    assert StyleClassifier.from_corpus().classify(text) in STYLES


# Prompts in other words


def test_a_prompt_in_other_words_is_about_the_same_thing(rows):
    rng = random.Random(1)
    for row in rows:
        words = set(row.prompt.strip("?.").split())
        kept = words & set(rephrase(row.prompt, rng).strip("?.").split())
        assert len(kept) >= len(words) / 3


def test_prompts_are_put_in_many_words(rows):
    rng = random.Random(2)
    assert len({rephrase(rows[0].prompt, rng) for _ in range(40)}) >= 10


# The tokenizer and its template


@given(any_text)
def test_any_text_comes_back_from_its_tokens(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert not set(ids) & set(tokenizer.all_special_ids)


@given(hostile_text)
def test_text_asked_to_be_plain_never_becomes_a_special_token(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(ids) == text


@given(hostile_text, hostile_text)
def test_a_message_cannot_smuggle_a_special_token_through_the_template(tokenizer, system, user):
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    special = [token for token in prompt_ids(tokenizer, messages) if token in _special(tokenizer)]
    names = ["<|bos|>", "<|system|>", "<|end|>", "<|user|>", "<|end|>", "<|assistant|>"]
    assert tokenizer.convert_ids_to_tokens(special) == names


@given(any_text, any_text)
def test_a_prompt_is_the_beginning_of_the_whole_conversation(tokenizer, prompt, answer):
    asked = [{"role": "user", "content": prompt}]
    whole = tokenizer.apply_chat_template(
        [*asked, {"role": "assistant", "content": answer}], return_dict=False
    )
    start = prompt_ids(tokenizer, asked)
    assert whole[: len(start)] == start
    assert whole.count(tokenizer.bos_token_id) == 1
    assert [whole[-1]] == end_token_ids(tokenizer)


def test_training_sees_the_token_ids_that_sampling_will_use(tokenizer, rows):
    for row, example in zip(rows[:20], starter.encode(tokenizer, rows[:20]), strict=True):
        messages = [{"role": "user", "content": row.prompt}]
        assert example.prompt == prompt_ids(tokenizer, messages)
        for text, ids in zip(row.responses().values(), example.responses, strict=True):
            assert ids == response_ids(tokenizer, messages, text)


def _special(tokenizer) -> set[int]:
    return set(tokenizer.convert_tokens_to_ids(list(starter.SPECIAL_TOKENS)))


# Supervised fine-tuning


def test_a_row_with_branches_costs_what_separate_sequences_cost(tokenizer, rows):
    torch.manual_seed(0)
    model = starter.new_model(tokenizer, TINY.shape)
    model.set_attn_implementation("eager")
    examples = starter.encode(tokenizer, rows[:3])
    together = supervised.next_token_loss(model, _batch(examples))
    total, count = 0.0, 0
    for example in examples:
        for response in example.responses:
            ids = torch.tensor([example.prompt + response])
            logps = model(input_ids=ids).logits[0].log_softmax(-1)
            start = len(example.prompt)
            total -= logps[range(start - 1, ids.shape[1] - 1), ids[0, start:]].sum().item()
            count += len(response)
    assert together.item() == pytest.approx(total / count, rel=1e-5)


def test_the_loss_in_chunks_is_the_loss_in_one(tokenizer, rows, monkeypatch):
    torch.manual_seed(0)
    model = starter.new_model(tokenizer, TINY.shape)
    model.set_attn_implementation("eager")
    batch = _batch(starter.encode(tokenizer, rows[:2]))
    whole = supervised.next_token_loss(model, batch).item()
    monkeypatch.setattr(supervised, "_CHUNK", 7)
    assert supervised.next_token_loss(model, batch).item() == pytest.approx(whole, rel=1e-6)


def test_every_example_comes_once_an_epoch(tokenizer, rows):
    examples = starter.encode(tokenizer, rows[:50])
    batches = list(supervised.shuffled(examples, random.Random(0), 8))
    seen = [id(example) for batch in batches for example in batch]
    assert sorted(seen) == sorted(id(example) for example in examples)
    assert max(len(batch) for batch in batches) == 8


def test_the_learning_rate_rises_then_falls_to_nearly_nothing():
    factors = [supervised.learning_rate_factor(step, 100, 0.1) for step in range(100)]
    assert factors[9] == max(factors) == 1.0
    assert factors[:10] == sorted(factors[:10])
    assert factors[9:] == sorted(factors[9:], reverse=True)
    assert 0 < factors[-1] < 0.02


@pytest.mark.parametrize("shape", [(12, 12), (24, 8), (8, 24)])
def test_muon_updates_as_the_one_in_torch_does(shape):
    torch.manual_seed(0)
    start, grads = torch.randn(shape), torch.randn(3, *shape)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimizers = [
        Muon([ours], lr=0.02, weight_decay=0.1, dtype=torch.bfloat16),
        torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1),
    ]
    for grad in grads:
        ours.grad, theirs.grad = grad.clone(), grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert torch.allclose(ours, theirs, atol=1e-3)
    assert not torch.allclose(ours, start, atol=1e-3)


def test_a_loss_that_is_not_finite_stops_before_the_update(tokenizer, rows):
    model = starter.new_model(tokenizer, TINY.shape)
    model.model.norm.weight.data.fill_(float("inf"))
    before = model.lm_head.weight.detach().clone()
    training = supervised.Training(model, TINY.training, total=5, pad_id=0)
    with pytest.raises(supervised.NonFiniteLoss):
        training.step(starter.encode(tokenizer, rows[:2]))
    assert torch.equal(model.lm_head.weight, before)


def _batch(examples) -> supervised.Batch:
    return supervised.make_batch(examples, pad_id=0, prompt_weight=0.0)


# The build


def test_a_built_policy_is_safe_and_loads_and_answers(built):
    check_policy_dir(built)
    options = {"local_files_only": True, "trust_remote_code": False}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        built, use_safetensors=True, **options
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(built, **options)
    assert model.config.tie_word_embeddings
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    prompt = prompt_ids(tokenizer, [{"role": "user", "content": "How do I wash a hat?"}])
    answer = model.generate(torch.tensor([prompt]), max_new_tokens=4)
    assert answer.shape[1] > len(prompt)


def test_a_reloaded_tokenizer_gives_the_same_tokens(built, rows):
    trained = starter.train_tokenizer(rows, TINY.shape.vocabulary)
    loaded = transformers.AutoTokenizer.from_pretrained(built, local_files_only=True)
    for text in (
        "How do I wash a hat?",
        "\U0001f600 na\u00efve \u65e5\u672c",
        "<|end|>",
        "  a\n b",
    ):
        messages = [{"role": "user", "content": text}]
        assert prompt_ids(loaded, messages) == prompt_ids(trained, messages)


def test_the_model_card_says_what_was_built(built):
    card = (built / "README.md").read_text()
    assert "20 steps" in card
    assert "{" not in card
    assert (built / "LICENSE.txt").is_file()


def test_the_same_seed_gives_the_same_weights_and_another_does_not(built, tmp_path):
    for seed, same in ((3, True), (4, False)):
        starter.build(tmp_path / "policy", seed=seed, recipe=TINY)
        files = [folder / "model.safetensors" for folder in (built, tmp_path / "policy")]
        assert (files[0].read_bytes() == files[1].read_bytes()) is same


def test_training_lowers_the_loss_and_reports_every_step(tmp_path):
    seen: list[starter.Progress] = []
    starter.build(tmp_path / "policy", recipe=TINY, report=seen.append)
    assert [(p.step, p.total) for p in seen] == [(step, 20) for step in range(1, 21)]
    assert seen[-1].loss < seen[0].loss


def test_a_build_that_fails_leaves_the_old_policy_and_no_scraps(built, tmp_path, monkeypatch):
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "kept").touch()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(starter, "_write", fail)
    with pytest.raises(OSError, match="disk full"):
        starter.build(tmp_path / "policy", recipe=TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    assert (tmp_path / "policy" / "kept").exists()


def test_progress_goes_to_the_file_one_line_a_step(tmp_path, capsys):
    report = starter.Reporter(tmp_path / "progress.jsonl")
    for step in (1, 2):
        report(starter.Progress(step=step, total=2, loss=1.5, seconds=0.25))
    lines = (tmp_path / "progress.jsonl").read_text().splitlines()
    assert json.loads(lines[1]) == {"step": 2, "total": 2, "loss": 1.5, "seconds": 0.25}
    assert "step 2 of 2" in capsys.readouterr().out
