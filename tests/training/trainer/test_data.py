"""Rows to token ids: the traps of tokenization, the split and the report."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labeling.chat import prompt_ids
from tests.training.trainer.builders import TEMPLATE, make_tokenizer, ranked_row, votes
from training.trainer.config import DEFAULTS, PolicySource, Spec
from training.trainer.data import Dataset, Group, encode_response, is_held_out, prepare
from training.trainer.run_dir import BadInput

TOKENIZER = make_tokenizer()
END = TOKENIZER.eos_token_id
USER = [{"role": "user", "content": "hi"}]
SOURCE = PolicySource(model="/nowhere", adapter=None)


def spec(**settings: Any) -> Spec:
    return Spec(**(DEFAULTS | {"policy": SOURCE, "reference": SOURCE} | settings))


def row(*texts: str, pairs: list[dict[str, int]] | None = None, **changes: Any) -> dict[str, Any]:
    responses = [{"id": f"r{i}", "text": text, "token_ids": None} for i, text in enumerate(texts)]
    base = {"id": "g", "prompt": USER, "split": "train", "responses": responses}
    return base | {"pairs": pairs or [votes(0, 1, 1, 0)]} | changes


def prepared(*rows: dict[str, Any], tokenizer: Any = TOKENIZER, **settings: Any) -> Dataset:
    return prepare(tokenizer, list(rows), spec(**settings))


def only(dataset: Dataset) -> Group:
    (group,) = dataset.train
    return group


def text_of(ids: tuple[int, ...]) -> str:
    return TOKENIZER.decode(ids[:-1], skip_special_tokens=True)


# --- trap 3: BOS and EOS, double or missing -------------------------------------------------


@pytest.mark.parametrize("spelled", ["{{ bos_token }}", ""])
def test_trap_3_one_bos_at_most_and_the_end_token_once(spelled):
    tokenizer = make_tokenizer(bos_token="<|bos|>")
    tokenizer.chat_template = spelled + TEMPLATE
    group = only(prepared(row("yes", "no"), tokenizer=tokenizer))
    assert group.prompt.count(tokenizer.bos_token_id) == bool(spelled)
    for response in group.responses:
        assert tokenizer.bos_token_id not in response
        assert response.count(END) == 1
        assert response[-1] == END


# --- trap 4: joint and separate tokenization ------------------------------------------------


def test_trap_4_the_sampled_ids_are_trained_on_although_encoding_would_merge_them():
    apart = [*(TOKENIZER.convert_tokens_to_ids(c) for c in "the"), END]
    assert TOKENIZER.encode("the", add_special_tokens=False) != apart[:-1]
    ids, source = encode_response(TOKENIZER, USER, id="r", text="the", token_ids=apart)
    assert (list(ids), source) == (apart, "sampled")


@pytest.mark.parametrize("wrong", [[1, 2, 3], [10**6], [], [0, 0]])
def test_trap_4_ids_that_do_not_spell_the_text_are_not_believed(wrong):
    ids, source = encode_response(TOKENIZER, USER, id="r", text="the", token_ids=wrong)
    assert (text_of(ids), source) == ("the", "encoded")


@settings(max_examples=50, deadline=None)
@given(text=st.text(min_size=1, max_size=30))
def test_trap_4_every_text_keeps_its_letters(text):
    ids, _source = encode_response(TOKENIZER, USER, id="r", text=text, token_ids=None)
    if not any(special in text for special in ("<|end|>", "<|user|>")):
        assert text_of(ids) == text
        assert ids[-1] == END


# --- trap 5: the generation prompt ----------------------------------------------------------


def test_trap_5_the_prompt_ends_with_the_assistants_header_and_is_what_the_sampler_fed():
    group = only(prepared(row("yes", "no")))
    assert list(group.prompt) == prompt_ids(TOKENIZER, USER)
    assert group.prompt[-1] == TOKENIZER.convert_tokens_to_ids("<|assistant|>")


def test_trap_5_a_header_that_only_the_generation_prompt_has_stays_in_the_prompt():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE.replace("<|assistant|>{% endif", "<|assistant|>th{% endif")
    group = only(prepared(row("yes", "no"), tokenizer=tokenizer))
    assert tokenizer.decode(group.prompt).endswith("<|assistant|>th")
    assert sorted(map(text_of, group.responses)) == ["no", "yes"]


# --- trap 6: string surgery -----------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["\n\nyes\n", "  yes  ", "user: hi assistant:", "h\u00e9 \u4f60\u597d \U0001f642", "hi"]
)
def test_trap_6_a_response_is_trained_on_letter_for_letter(text):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE.replace("m['content']", "m['content'] | trim")
    for each in (TOKENIZER, tokenizer):
        group = only(prepared(row(text, "no"), tokenizer=each))
        assert text_of(group.responses[0]) == text


# --- trap 7: truncation ---------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=2, max_size=5, unique=True),
    max_length=st.integers(2, 70),
)
def test_trap_7_nothing_is_cut_and_what_is_too_long_is_counted(lengths, max_length):
    texts = ["x" * length for length in lengths]
    pairs = [votes(0, other, 1, 0) for other in range(1, len(texts))]
    start = len(prompt_ids(TOKENIZER, USER))
    fit = [start + max(lengths[0], other) + 1 <= max_length for other in lengths[1:]]
    anchor = row("yes", "no", id="anchor", prompt=[{"role": "user", "content": "q"}])
    report = None
    try:
        data = prepared(row(*texts, pairs=pairs), anchor, max_length=max_length)
    except BadInput as error:
        report = error.details["data_report"]
    else:
        report = data.report
        kept = [group for group in data.train if group.id == "g"]
        assert sum(len(group.pairs) for group in kept) == sum(fit)
        for group in kept:
            assert all(text_of(ids) in texts and ids[-1] == END for ids in group.responses)
    assert report["dropped"].get("too_long", 0) >= len(fit) - sum(fit)


def test_trap_7_a_response_that_was_cut_when_sampled_gets_no_end_token():
    ids = TOKENIZER.encode("and so", add_special_tokens=False)
    cut = {"id": "r0", "text": "and so", "token_ids": ids}
    data = prepared(row("", "no") | {"responses": [cut, row("", "no")["responses"][1]]})
    assert only(data).responses[0] == tuple(ids)
    assert data.report["token_ids"] == {"cut": 1, "encoded": 1}


# --- groups, labels, split, report ----------------------------------------------------------


def test_each_distinct_response_is_there_once_however_many_pairs_it_is_in():
    pairs = [votes(0, 1, 2, 0), votes(0, 2, 2, 1), votes(1, 3, 1, 0), votes(2, 3, 1, 0)]
    group = only(prepared(row("a", "b", "c", "b", pairs=[*pairs])))
    assert sorted(map(text_of, group.responses)) == ["a", "b", "c"]
    spelled = {
        (text_of(group.responses[p.chosen]), text_of(group.responses[p.rejected]))
        for p in group.pairs
    }
    assert spelled == {("a", "b"), ("a", "c"), ("c", "b")}


def test_chosen_is_the_response_with_more_votes():
    pair = only(prepared(row("a", "b", pairs=[votes(0, 1, 1, 3)]))).pairs[0]
    assert pair.id == "g: r1 > r0"
    assert pair.label == 0.75


def test_the_report_counts_every_dropped_pair_by_reason():
    rows = [
        row("a", "b", "a", " ", pairs=[votes(0, 1, 0, 0, 2), votes(0, 2, 1, 0), votes(0, 3, 1, 0)]),
        row("a", "x" * 200, id="long"),
        row("a", "b", id="fine"),
        row("a", "b", id="even", pairs=[votes(0, 1, 1, 1)]),
    ]
    report = prepared(*rows, max_length=100).report
    assert report["dropped"] == {"tied": 1, "identical": 1, "empty": 1, "too_long": 1}
    assert report["dropped_examples"]["too_long"] == ["long: r0 > r1"]
    assert report["pairs"] == {"train": 2, "held_out": 0}
    assert report["evenly_split"] == 1
    assert prepared(*rows, max_length=100, labels="majority").report["dropped"]["tied"] == 2


def test_nothing_left_to_train_on_is_an_error_with_the_report():
    with pytest.raises(BadInput, match="no pair is left") as error:
        prepared(row("a", "a"))
    assert error.value.details["data_report"]["dropped"] == {"identical": 1}


def test_a_prompt_that_the_template_refuses_is_dropped_and_counted():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + TEMPLATE
    )
    bad = row("a", "b", id="bad", prompt=[{"role": "system", "content": "s"}, *USER])
    data = prepared(row("a", "b"), bad, tokenizer=tokenizer)
    assert data.report["dropped"] == {"template": 1}
    assert "bad: the chat template failed" in data.report["template_errors"][0]


def test_the_split_is_a_stable_hash_of_the_prompt():
    prompts = [[{"role": "user", "content": str(n)}] for n in range(1000)]
    share = sum(is_held_out(prompt, 0.2) for prompt in prompts)
    assert 150 < share < 250
    assert is_held_out(prompts[7], 0.5) is is_held_out([dict(prompts[7][0])], 0.5)
    assert all(is_held_out(p, 0.5) for p in prompts if is_held_out(p, 0.2))


def test_rows_without_a_split_follow_their_prompts_named_side():
    rows = [ranked_row(4), ranked_row(4) | {"id": "again", "split": None}, ranked_row(1)]
    data = prepared(*rows, held_out_share=0.0)
    assert [group.id for group in data.held_out] == ["comparison-4", "again"]
