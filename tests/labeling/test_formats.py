"""What a file may hold, and what is said about everything else."""

import io
import json
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from labeling import json_rows
from labeling.chat import Message
from labeling.formats import (
    TURN,
    Parsed,
    parse_file,
    plain_row,
    preference_row,
    prompt_row,
    trl_row,
)
from labeling.json_rows import MAX_ROW_BYTES, BadFile
from tests.builders import real_data

# What a text may hold: anything but NUL and halves of surrogate pairs, and not only space.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1)
texts = texts.filter(lambda text: bool(text.strip()))
Q, A, B = "How do I boil an egg?", "Eight minutes.", "Just guess."
USER = Message(role="user", content=Q)


def assistant(text: str) -> Message:
    return Message(role="assistant", content=text)


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def parse(data: bytes, row_of=preference_row) -> Parsed:
    return parse_file(io.BytesIO(data), row_of)


def problems(data: bytes, row_of=preference_row) -> list[str]:
    return [str(problem) for problem in parse(data, row_of).problems]


def transcript(*turns: tuple[str, str]) -> str:
    return "".join(f"\n\n{speaker}: {text}" for speaker, text in turns)


GOOD = {"prompt": Q, "chosen": A, "rejected": B}


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"prompt": Q}, [USER]),
        ({"instruction": Q, "input": ""}, [USER]),
        ({"text": Q}, [USER]),
        ({"messages": [USER]}, [USER]),
        ({"prompt": [USER, assistant(A), USER]}, [USER, assistant(A), USER]),
        ({"question_id": 81, "turns": [Q, "And an ostrich's?"]}, [USER]),
    ],
)
def test_prompt_shapes(row, messages):
    assert prompt_row(row).messages == messages


def test_a_question_keeps_its_id_its_category_and_its_later_turns():
    row = prompt_row(
        {"question_id": 81, "category": "food", "turns": [Q, "And?"], "reference": ["x"]}
    )
    assert (row.external_id, row.metadata) == ("81", {"category": "food", "turns": ["And?"]})
    assert row.unread == {"reference"}


def test_a_prompt_keeps_how_it_wants_to_be_sampled():
    row = prompt_row({"prompt": Q, "sampling": {"max_new_tokens": 400}, "system": "Be brief."})
    assert row.metadata == {"sampling": {"max_new_tokens": 400}, "system": "Be brief."}
    assert row.unread == frozenset()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "no prompt: expected one of the keys"),
        ({"prompt": " \n"}, "the prompt is empty"),
        ({"prompt": 5}, "prompt: a prompt is a non-empty list of messages"),
        ({"prompt": []}, "prompt: a prompt is a non-empty list of messages"),
        ({"messages": [USER, assistant(A)]}, "the last message must be the user's"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "role must be one of"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "role must be one of"),
        ({"turns": []}, "turns must be a non-empty list of texts"),
        ({"turns": [Q, 3]}, "turn 2 must be text"),
        ({"instruction": "Translate", "input": "egg"}, "an instruction with an input"),
        ({"prompt": Q, "id": 1.5}, "id must be text or a whole number"),
        ({"prompt": Q, "id": True}, "id must be text or a whole number"),
        ({"prompt": Q, "id": "x" * 201}, "id is longer than 200 characters"),
    ],
)
def test_rows_that_are_no_prompts(row, reason):
    (problem,) = problems(lines(row), prompt_row)
    assert problem.startswith("line 1: ")
    assert reason in problem


EARLIER = [("Human", "Hello"), ("Assistant", "Hi."), ("Human", Q)]


@pytest.mark.parametrize(
    "row",
    [
        GOOD,
        {"prompt": [USER], "chosen": A, "rejected": B},
        {"prompt": [USER], "chosen": [assistant(A)], "rejected": [assistant(B)]},
        {"prompt": Q, "chosen": [assistant(A)], "rejected": [assistant(B)]},
        {"chosen": [USER, assistant(A)], "rejected": [USER, assistant(B)]},
        {"prompt": Q, "chosen": [USER, assistant(A)], "rejected": [USER, assistant(B)]},
        {"prompt": [USER], "chosen": [USER, assistant(A)], "rejected": [USER, assistant(B)]},
        {
            "chosen": transcript(("Human", Q), ("Assistant", A)),
            "rejected": transcript(("Human", Q), ("Assistant", B)),
        },
    ],
)
def test_preference_shapes(row):
    found = preference_row(row)
    assert (found.messages, found.chosen, found.rejected) == ([USER], A, B)


def test_a_transcript_becomes_turns():
    row = preference_row(
        {
            "chosen": transcript(*EARLIER, ("Assistant", A)),
            "rejected": transcript(*EARLIER, ("Assistant", B)),
        }
    )
    assert [message["role"] for message in row.messages] == ["user", "assistant", "user"]
    assert [message["content"] for message in row.messages] == ["Hello", "Hi.", Q]


def test_a_marker_counts_only_where_a_turn_begins():
    said = "He said Human: and\nAssistant: in one line\n\nHumans: all of them"
    row = preference_row(
        {
            "chosen": transcript(("Human", said), ("Assistant", A + "\n")),
            "rejected": transcript(("Human", said), ("Assistant", B)),
        }
    )
    assert row.messages == [{"role": "user", "content": said}]
    assert row.chosen == A + "\n"


def test_turns_of_one_speaker_in_a_row_stay_separate_turns():
    said = (("Human", "Wait."), ("Human", Q))
    row = preference_row(
        {
            "chosen": transcript(*said, ("Assistant", A)),
            "rejected": transcript(*said, ("Assistant", B)),
        }
    )
    assert [message["content"] for message in row.messages] == ["Wait.", Q]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": Q, "chosen": A}, "no rejected"),
        ({"prompt": Q}, "no chosen and no rejected"),
        ({**GOOD, "rejected": A}, "chosen and rejected are the same text"),
        ({**GOOD, "rejected": " "}, "rejected is empty"),
        ({**GOOD, "rejected": 3}, "must both be texts or both be lists"),
        ({**GOOD, "rejected": [assistant(B)]}, "must both be texts or both be lists"),
        ({**GOOD, "prompt": ""}, "the prompt is empty"),
        ({"chosen": A, "rejected": B}, "neither messages nor a Human/Assistant transcript"),
        ({"chosen": [assistant(A)], "rejected": [assistant(B)]}, "a prompt is a non-empty list"),
        ({"chosen": [], "rejected": []}, "chosen is empty"),
        ({**GOOD, "chosen": [USER], "rejected": [USER]}, "does not end with an assistant's turn"),
        ({"chosen": ["x"], "rejected": ["y"]}, "chosen: message 1 must be an object"),
        (
            {"prompt": "Else", "chosen": [USER, assistant(A)], "rejected": [USER, assistant(B)]},
            "not about the prompt given",
        ),
        (
            {
                "chosen": [USER, assistant(A), USER, assistant(B)],
                "rejected": [USER, assistant(B), USER, assistant(B)],
            },
            "not one prompt: the conversations differ from turn 2 on",
        ),
        (
            {
                "chosen": transcript(("Human", Q), ("Assistant", "")),
                "rejected": transcript(("Human", Q), ("Assistant", B)),
            },
            "chosen's last turn is empty",
        ),
        (
            {
                "chosen": transcript(("Human", Q), ("Assistant", A)),
                "rejected": transcript(("Human", Q), ("Assistant", A), ("Human", "Why?")),
            },
            "rejected does not end with an assistant's turn",
        ),
        (
            {
                "chosen": transcript(("Human", Q), ("Assistant", A), ("Assistant", "More.")),
                "rejected": transcript(("Human", Q), ("Assistant", B)),
            },
            "not one prompt: the conversations differ from turn 2 on, and have 3 and 2 turns",
        ),
        (
            dict.fromkeys(("chosen", "rejected"), transcript(("Human", Q), ("Assistant", A))),
            "chosen and rejected are the same text",
        ),
    ],
)
def test_rows_that_are_no_preferences(row, reason):
    (problem,) = problems(lines(row))
    assert reason in problem


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"prompt": "x"', "not JSON: "),
        (b'{"prompt": "x"} {}', "more text after the object"),
        (b'"a text"', "not an object"),
        (b"17", "not an object"),
        (b'{"prompt": "x", "prompt": "y"}', "the key 'prompt' occurs twice"),
        (b'{"a": {"b": 1, "b": 1}, "prompt": "x"}', "the key 'b' occurs twice"),
        (b'{"prompt": "x", "score": NaN}', "NaN is not JSON"),
        (b'{"prompt": "x", "score": -Infinity}', "-Infinity is not JSON"),
        (b'{"prompt": "x", "score": 1e999}', "the number 1e999 is too large"),
        (b'{"prompt": "x", "score": ' + b"9" * 5000 + b"}", "a number is too long"),
        (b'{"prompt": "x\\u0000"}', "holds a NUL character"),
        (b'{"prompt": "x", "other": ["\\u0000"]}', "holds a NUL character"),
        (b'{"prompt": "\\ud83d"}', "half of a surrogate pair"),
        (b'{"prompt": "x", "\\udc00": 1}', "half of a surrogate pair"),
        (b'{"prompt": "\xff"}', "not UTF-8 (byte 13)"),
        (b'{"prompt": "x", "a": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "nested too deeply"),
        (b'{"prompt": "' + b"x" * MAX_ROW_BYTES + b'"}', "longer than 8 MiB"),
        (b" " * (MAX_ROW_BYTES + 5) + b'{"prompt": "x"}', "longer than 8 MiB"),
    ],
)
def test_a_bad_line_is_named_and_the_lines_around_it_are_read(line, reason):
    parsed = parse(
        lines({"prompt": "1"}) + b"\n" + line + b"\n" + lines({"prompt": "4"}), prompt_row
    )
    assert [row.messages[0]["content"] for row in parsed.rows] == ["1", "4"]
    (problem,) = parsed.problems
    assert problem.line == 3
    assert reason in problem.reason
    assert len(problem.reason) < 200


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "holds no rows"),
        (b"\n  \n", "holds no rows"),
        (b"[]", "holds no rows"),
        ('{"prompt": "x"}'.encode("utf-16"), "save it as UTF-8"),
        ('{"prompt": "x"}'.encode("utf-16-le"), "save it as UTF-8"),
        ('{"prompt": "x"}'.encode("utf-32"), "save it as UTF-8"),
        (b'[{"prompt": "x"}', "line 1: not JSON: expected a comma or the end"),
        (b'[{"prompt": "x"},\n]', "line 2: not JSON: "),
        (b'[{"prompt": "x"},\n\n{"pro', "line 3: not JSON: "),
        (b'[{"prompt": "x"}] []', "more text after the end of the list"),
        (b"[" * 10_000, "nested too deeply"),
        (b'[{"prompt": "\xff"}]', "not UTF-8 (byte 14)"),
        (b"[" + b" " * json_rows.MAX_LIST_BYTES + b"]", "write it as JSON lines"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_whole(data, reason):
    with pytest.raises(BadFile, match=".") as refusal:
        parse(data, prompt_row)
    assert reason in str(refusal.value)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_byte_order_mark_and_either_line_end_are_read_over(mark, end):
    rows = [{"prompt": "a\u2028b"}, {"prompt": "c"}]
    data = end.join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
    parsed = parse(mark + data, prompt_row)
    assert [row.messages[0]["content"] for row in parsed.rows] == ["a\u2028b", "c"]


def test_a_list_is_read_with_the_lines_its_objects_begin_on():
    data = json.dumps([GOOD, {}, {**GOOD, "a": {"b": []}}, 5], indent=1).encode()
    parsed = parse(b"\xef\xbb\xbf\n" + data.replace(b'"b": []', b'"b": 1, "b": 2'))
    assert [row.chosen for row in parsed.rows] == [A]
    assert [str(problem) for problem in parsed.problems] == [
        "line 8: no chosen and no rejected",
        "line 9: the key 'b' occurs twice in one object",
        "line 17: not an object: expected {...}",
    ]


@given(texts, texts, texts)
def test_any_texts_survive_being_written_and_read(prompt, chosen, rejected):
    assume(chosen != rejected)
    row = trl_row(prompt=[Message(role="user", content=prompt)], chosen=chosen, rejected=rejected)
    for ascii_only in (True, False):
        data = b"\n".join(
            json.dumps(shape, ensure_ascii=ascii_only).encode() for shape in (row, plain_row(row))
        )
        for found in parse(data).rows:
            assert found.messages == [{"role": "user", "content": prompt}]
            assert (found.chosen, found.rejected) == (chosen, rejected)
        assert len(parse(data).rows) == 2


@given(st.lists(texts.filter(lambda text: not TURN.search(f"x{text}\n\n")), min_size=3, max_size=6))
def test_any_texts_survive_being_a_transcript(said):
    *turns, chosen, rejected = said
    assume(chosen != rejected)
    shared = [("Human", text) for text in turns]
    row = preference_row(
        {
            "chosen": transcript(*shared, ("Assistant", chosen)),
            "rejected": transcript(*shared, ("Assistant", rejected)),
        }
    )
    assert [message["content"] for message in row.messages] == turns
    assert (row.chosen, row.rejected) == (chosen, rejected)


def test_only_a_prompt_of_one_turn_can_be_plain_text():
    several = [USER, assistant(A), USER]
    assert plain_row(trl_row(prompt=several, chosen=A, rejected=B)) is None


SAMPLES = [
    lines(GOOD, {"prompt": [USER], "chosen": [assistant(A)], "rejected": [assistant(B)]}),
    json.dumps([GOOD, {"question_id": 1, "turns": [Q, "é\ud83d\ude00"]}]).encode(),
    lines({"chosen": transcript(*EARLIER, ("Assistant", A)), "rejected": transcript(*EARLIER)}),
]
SPLICES = [
    b'"',
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b"\xff",
    b"{",
    b"[",
    b"]",
    b",",
    b"\n",
    b"NaN",
    b"1e999",
]


@st.composite
def broken(draw) -> bytes:
    data = bytearray(draw(st.sampled_from(SAMPLES)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 6))
        data[start : start + length] = draw(st.sampled_from(SPLICES) | st.binary(max_size=4))
    return bytes(data)


@given(broken() | st.binary(), st.sampled_from([prompt_row, preference_row]))
def test_any_bytes_give_rows_and_reasons_or_a_refusal(data, row_of):
    try:
        parsed = parse(data, row_of)
    except BadFile:
        return
    assert all(problem.reason and problem.line > 0 for problem in parsed.problems)
    for row in parsed.rows:
        kept = str(row)
        assert "\\x00" not in kept.replace("\\\\", "")
        json.dumps(row.messages, ensure_ascii=False, allow_nan=False).encode()


def test_real_preferences_are_all_rows_or_problems():
    with real_data("hh_rlhf_harmless.jsonl").open("rb") as file:
        parsed = parse_file(file, preference_row)
    assert (len(parsed.rows), len(parsed.problems)) == (1149, 7)


@pytest.mark.parametrize(
    ("name", "rows"), [("mt_bench_questions.jsonl", 80), ("alpaca_eval_responses.jsonl", 403)]
)
def test_real_prompts_are_read(name, rows):
    with real_data(name).open("rb") as file:
        parsed = parse_file(file, prompt_row)
    assert (len(parsed.rows), parsed.problems) == (rows, [])
    assert all(row.external_id for row in parsed.rows)
