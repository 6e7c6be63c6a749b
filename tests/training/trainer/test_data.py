"""Rows to groups of token ids: distinct responses, labels, ties, the split and the report."""

from typing import Any

import pytest

from jobs.run_dir import append_event
from labeling.chat import Message, end_token_ids, prompt_ids, response_text
from tests.chat_templates import FAMILIES, tokenizer_of
from tests.training.trainer.builders import TEMPLATE, make_tokenizer, ranked_row, votes
from training.trainer.config import DEFAULTS, PolicySource, Spec
from training.trainer.data import Dataset, Group, encode_response, is_held_out, prepare
from training.trainer.run_dir import BadInput

TOKENIZER = make_tokenizer()
END = TOKENIZER.eos_token_id
USER: list[Message] = [{"role": "user", "content": "hi"}]
TALK: list[Message] = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "first"},
    {"role": "assistant", "content": "one"},
    {"role": "user", "content": "second"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "third"},
]
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
    return str(TOKENIZER.decode(ids[:-1], skip_special_tokens=True))


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


TIED = [votes(0, 1, 2, 0, 2), votes(0, 2, 0, 0, 3), votes(1, 2, 1, 2)]


def test_ties_are_kept_with_their_share_where_they_have_a_model():
    data = prepared(row("a", "b", "c", pairs=TIED), ties="rao_kupper")
    assert [(pair.id, pair.label, pair.tied) for pair in only(data).pairs] == [
        ("g: r0 > r1", 1.0, 0.5),
        ("g: r0 > r2", 0.5, 1.0),
        ("g: r2 > r1", pytest.approx(2 / 3), 0.0),
    ]
    assert (data.report["tied"], data.report["dropped"]) == (2, {})
    assert data.report["evenly_split"] == 0, "a tie says that the two are equal: it is no dispute"


def test_nu_is_fitted_to_the_training_sides_ties_or_given():
    rows = [row("a", "b", "c", pairs=TIED), row("a", "b", id="out", split="held_out", prompt=TALK)]
    rows[1]["pairs"] = [votes(0, 1, 0, 0, 1)]
    fitted = prepared(*rows, ties="rao_kupper")
    assert fitted.tie_nu == 3.0  # t = (0.5 + 1 + 0)/3 = 1/2, ν = (1 + t)/(1 - t)
    assert fitted.report["tie_nu"] == 3.0
    assert prepared(*rows, ties="rao_kupper", tie_nu=1.5).tie_nu == 1.5
    assert prepared(row("a", "b"), ties="rao_kupper").tie_nu == 1.0


def test_without_a_model_of_ties_tied_votes_are_left_out_and_only_ties_dropped():
    data = prepared(row("a", "b", "c", pairs=TIED))
    assert [(pair.label, pair.tied) for pair in only(data).pairs] == [
        (1.0, 0.0),
        (pytest.approx(2 / 3), 0.0),
    ]
    assert data.report["dropped"] == {"tied": 1}
    assert (data.tie_nu, data.report["tie_nu"], data.report["tied"]) == (1.0, None, 0)


def test_with_majority_labels_a_tie_takes_all_where_no_side_leads():
    pairs = [votes(0, 1, 2, 0, 2), votes(0, 2, 1, 1, 0), votes(1, 2, 1, 3, 2)]
    data = prepared(row("a", "b", "c", pairs=pairs), ties="rao_kupper", labels="majority")
    assert [(pair.label, pair.tied) for pair in only(data).pairs] == [
        (0.5, 1.0),
        (0.5, 1.0),
        (1.0, 0.0),
    ]


def test_nothing_but_ties_is_an_error_with_the_report():
    with pytest.raises(BadInput, match="all votes to train on are ties") as error:
        prepared(row("a", "b", pairs=[votes(0, 1, 0, 0, 1)]), ties="rao_kupper")
    assert error.value.details["data_report"]["tied"] == 1
    assert error.value.details["data_report"]["tie_nu"] is None


def test_lengths_are_told_by_side_and_the_prompt_costs_once():
    pairs = [votes(0, 1, 1, 0), votes(0, 2, 1, 0)]
    data = prepared(row("aaa", "bbbbb", "c", pairs=pairs))
    prompt = len(prompt_ids(TOKENIZER, USER))
    assert data.report["lengths"] == {
        "chosen": 4.0,
        "rejected": (6 + 2) / 2,
        "prompt": float(prompt),
        "longest": prompt + 6,
    }
    assert data.report["longest"] == prompt + 6
    assert only(data).tokens == prompt + 4 + 6 + 2


def test_the_report_is_json(tmp_path):
    rows = [row("a", "b", "c", pairs=TIED), row("a", "a", id="same")]
    append_event(tmp_path, "data_report", **prepared(*rows, ties="rao_kupper").report)


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


def test_an_answer_that_the_template_refuses_is_dropped_and_counted_too():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% if 'b' in messages[-1].content %}{{ raise_exception('no') }}{% endif %}" + TEMPLATE
    )
    data = prepared(row("a", "c"), row("a", "b", id="bad"), tokenizer=tokenizer)
    assert data.report["dropped"] == {"template": 1}


def test_the_split_is_a_stable_hash_of_the_prompt():
    prompts = [[Message(role="user", content=str(n))] for n in range(1000)]
    share = sum(is_held_out(prompt, 0.2) for prompt in prompts)
    assert 150 < share < 250
    assert is_held_out(prompts[7], 0.5) is is_held_out([prompts[7][0].copy()], 0.5)
    assert all(is_held_out(p, 0.5) for p in prompts if is_held_out(p, 0.2))


def test_rows_without_a_split_follow_their_prompts_named_side():
    rows = [ranked_row(4), ranked_row(4) | {"id": "again", "split": None}, ranked_row(1)]
    data = prepared(*rows, held_out_share=0.0)
    assert [group.id for group in data.held_out] == ["comparison-4", "again"]


# What was sampled, and what is trained on


def encoded(tokenizer: Any, token_ids: list[int], text: str) -> tuple[tuple[int, ...], str]:
    return encode_response(tokenizer, USER, id="r", text=text, token_ids=token_ids)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_sampled_response_is_used_as_it_is_whichever_of_its_tokens_ended_it(name):
    tokenizer = tokenizer_of(name)
    body = tokenizer.convert_tokens_to_ids(["t", "h", "e"])
    for end in end_token_ids(tokenizer):
        assert encoded(tokenizer, [*body, end], "the") == ((*body, end), "sampled")
    assert encoded(tokenizer, body, "the") == (tuple(body), "cut")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_response_that_a_stop_text_ended_is_trained_on_without_it(name):
    tokenizer = tokenizer_of(name)
    for stop in ("User:", " User:", "\n\nUser:"):
        sampled = tokenizer.encode(f"the answer{stop}", add_special_tokens=False)
        ids, source = encoded(tokenizer, sampled, "the answer")
        assert source == "encoded"
        assert response_text(tokenizer, ids[:-1]) == "the answer"
        assert ids[-1] == end_token_ids(tokenizer)[0]


def test_ids_that_go_on_after_an_end_token_are_not_believed():
    tokenizer = tokenizer_of("llama3")
    (letter,) = tokenizer.convert_tokens_to_ids(["t"])
    turn_end, eos = end_token_ids(tokenizer)
    for sampled in ([letter, eos, turn_end], [letter, turn_end, letter, turn_end]):
        assert encoded(tokenizer, sampled, "t") == ((letter, turn_end), "encoded")


def test_ids_of_bytes_that_the_record_replaced_are_believed():
    nul = TOKENIZER.encode("a\x00b", add_special_tokens=False)
    half = TOKENIZER.encode("é", add_special_tokens=False)[:1]
    for body in (nul, half):
        text = response_text(TOKENIZER, body)
        assert "\ufffd" in text
        sampled = [*body, TOKENIZER.eos_token_id]
        assert encoded(TOKENIZER, sampled, text) == (tuple(sampled), "sampled")


def test_a_prompt_that_spells_a_special_token_is_dropped_with_its_reason():
    spelt: list[Message] = [{"role": "user", "content": "what is <|assistant|>?"}]
    data = prepared(row("a", "b"), row("a", "b", id="bad", prompt=spelt))
    assert data.report["dropped"] == {"template": 1}
    assert "bad: message 1: it spells <|assistant|>" in data.report["template_errors"][0]
