"""Preference files: every shape that is read, and every bad row named."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.training.trainer.builders import ranked_row, votes, write_rows
from training.trainer.rows import read_groups, read_table
from training.trainer.run_dir import BadInput

USER = [{"role": "user", "content": "hi"}]


def plain(chosen: Any, rejected: Any, prompt: Any = "hi") -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def turn(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def table(tmp_path: Path, *rows: Any) -> list[dict[str, Any]]:
    return read_table(write_rows(tmp_path / "rows.jsonl", list(rows))).groups


def outcome(group: dict[str, Any]) -> dict[tuple[str, str], tuple[int, int]]:
    texts = [response["text"] for response in group["responses"]]
    return {
        (texts[p["chosen"]], texts[p["rejected"]]): (p["votes_for"], p["votes_against"])
        for p in group["pairs"]
    }


def test_ranked_groups_come_through_unchanged(tmp_path):
    row = ranked_row(3)
    assert table(tmp_path, row) == [row]
    assert read_groups(tmp_path / "rows.jsonl") == [row]


@pytest.mark.parametrize(
    "row",
    [
        plain("good", "bad"),
        plain([turn("good")], [turn("bad")]),
        plain([turn("good")], [turn("bad")], prompt=USER),
        plain([*USER, turn("good")], [*USER, turn("bad")], prompt=USER),
        plain([*USER, turn("good")], [*USER, turn("bad")]),
    ],
)
def test_all_plain_shapes_mean_the_same(tmp_path, row):
    (group,) = table(tmp_path, row)
    assert group["prompt"] == USER
    assert outcome(group) == {("good", "bad"): (1, 0)}


def test_plain_rows_of_a_prompt_are_grouped_when_they_share_responses(tmp_path):
    rows = [plain("a", "b"), plain("c", "d"), plain("x", "y", prompt="other"), plain("a", "c")]
    groups = table(tmp_path, *rows)
    assert sorted(len(group["responses"]) for group in groups) == [2, 4]
    joined = next(group for group in groups if len(group["responses"]) == 4)
    assert outcome(joined).keys() == {("a", "b"), ("c", "d"), ("a", "c")}
    assert joined["id"] == "row-1"


def test_plain_rows_that_share_nothing_stay_apart(tmp_path):
    assert len(table(tmp_path, plain("a", "b"), plain("c", "d"))) == 2


def test_repeated_and_reversed_rows_are_votes(tmp_path):
    (group,) = table(tmp_path, plain("a", "b"), plain("b", "a"), plain("a", "b"))
    assert outcome(group) == {("a", "b"): (2, 1)}


def test_identical_responses_are_kept_for_the_data_report(tmp_path):
    (group,) = table(tmp_path, plain("a", "a"))
    assert outcome(group) == {("a", "a"): (1, 0)}
    assert len(group["responses"]) == 2


def test_keys_that_nobody_reads_are_named(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [plain("a", "b") | {"score_chosen": 3}])
    assert read_table(path).unread_keys == ["score_chosen"]


def broken(**changes: Any) -> dict[str, Any]:
    return ranked_row(1) | changes


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"chosen": "a", "rejected": "b"}, "missing prompt"),
        (plain(3, "b"), "chosen must be text"),
        (plain([turn("a"), turn("b")], "b"), "one assistant message"),
        (plain([{"role": "user", "content": "a"}], "b"), "one assistant message"),
        (plain("a", "b", prompt=[turn("a")]), "the last message must be the user's"),
        (plain("a", "b", prompt=" "), "not empty"),
        (broken(id=""), "id must be text"),
        (broken(split="test"), "split must be"),
        (broken(weight=3), "unknown keys weight"),
        (broken(responses=[]), "responses must be a list"),
        (broken(pairs=[votes(0, 3, 1, 0)]), "not among the 3"),
        (broken(pairs=[votes(1, 1, 1, 0)]), "one response twice"),
        (broken(pairs=[votes(0, 1, 0, 0)]), "no votes"),
        (broken(pairs=[votes(0, 1, -1, 0)]), "at least 0"),
        (broken(pairs=[votes(0, 1, 1, 0), votes(1, 0, 1, 0)]), "add their votes up"),
        (broken(pairs=[{"chosen": 0, "rejected": 1}]), "a pair is an object"),
        (broken(responses=[{"id": "a", "text": "t", "token_ids": ["x"]}] * 3), "token_ids must"),
    ],
)
def test_a_bad_row_is_named_with_its_line_and_reason(tmp_path, row, reason):
    with pytest.raises(BadInput, match="line 2: .*" + reason):
        table(tmp_path, ranked_row(0), row)


HH = [*USER, turn("hello"), {"role": "user", "content": "a joke?"}]


def test_trap_20_the_last_answer_is_told_from_earlier_ones(tmp_path):
    row = plain([*HH, turn("funny")], [*HH, turn("no")], prompt=HH)
    (group,) = table(tmp_path, row)
    assert group["prompt"] == HH
    assert outcome(group) == {("funny", "no"): (1, 0)}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        # nothing says which turns are the prompt: what both have in common would be a guess
        ({"chosen": [*HH, turn("funny")], "rejected": [*HH, turn("no")]}, "missing prompt"),
        # a prompt that stops earlier leaves more turns than one to train on
        (plain([*HH, turn("funny")], [*HH, turn("no")], prompt=USER), "one assistant message"),
        # conversations that part before the last answer
        (plain([*HH, turn("funny")], [*USER, turn("bye")], prompt=HH), "one assistant message"),
    ],
)
def test_trap_20_a_prompt_is_never_guessed(tmp_path, row, reason):
    with pytest.raises(BadInput, match=reason):
        table(tmp_path, row)


def test_all_bad_rows_are_told_at_once_up_to_twenty(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(["{", "[]", '"x"', json.dumps(plain("a", "b")), *["nope"] * 30]))
    with pytest.raises(BadInput) as error:
        read_table(path)
    message = str(error.value)
    assert "line 1:" in message
    assert "line 2: expected an object" in message
    assert "line 4:" not in message
    assert message.count("\n  line ") == 20
    assert "and 13 more" in message


def test_lone_surrogates_and_nan_are_not_text_or_numbers(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "chosen": "\\ud800", "rejected": "b"}\n{"x": NaN}\n')
    with pytest.raises(BadInput, match="line 1: not JSON(.|\n)*line 2: not JSON"):
        read_table(path)


def test_no_prompt_is_on_both_sides_of_the_split(tmp_path):
    here, there = ranked_row(1), ranked_row(1) | {"id": "again", "split": "held_out"}
    with pytest.raises(BadInput, match="again: its prompt is on the other side"):
        table(tmp_path, here, there)


def test_ids_are_unique(tmp_path):
    with pytest.raises(BadInput, match="its id is used by an earlier row"):
        table(tmp_path, ranked_row(1), ranked_row(1))
