"""Trap 7, truncation that drops the signal: whole oldest turns go, nothing is lost uncounted."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from labeling.chat import Message, prompt_ids
from tests.training.trainer.builders import TEMPLATE, make_tokenizer, votes
from tests.training.trainer.test_data import END, TALK, TOKENIZER, only, prepared, row, text_of
from training.trainer.run_dir import BadInput
from training.trainer.shorten import shorter_histories


def test_trap_7_a_response_that_was_cut_when_sampled_gets_no_end_token():
    ids = TOKENIZER.encode("and so", add_special_tokens=False)
    cut = {"id": "r0", "text": "and so", "token_ids": ids}
    data = prepared(row("", "no") | {"responses": [cut, row("", "no")["responses"][1]]})
    assert only(data).responses[0] == tuple(ids)
    assert data.report["token_ids"] == {"cut": 1, "encoded": 1}


ROLES = st.lists(st.sampled_from(["user", "assistant"]), max_size=6)


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    """Prompts with or without a system message, turns in any order, the user's last."""
    roles = [*draw(ROLES), "user"]
    roles = ["system", *roles] if draw(st.booleans()) else roles
    lengths = draw(st.lists(st.integers(1, 20), min_size=len(roles), max_size=len(roles)))
    letters = "ABCDEFGH"  # each turn its own, and none that a response uses
    return [
        {"role": role, "content": letters[place] * length}  # type: ignore[typeddict-item]
        for place, (role, length) in enumerate(zip(roles, lengths, strict=True))
    ]


@given(messages=conversations())
def test_trap_7_shorter_histories_lose_whole_oldest_turns_and_start_with_the_user(messages):
    system = messages[:1] if messages[0]["role"] == "system" else []
    turns = messages[len(system) :]
    before = len(turns)
    for history in shorter_histories(messages):
        left = history[len(system) :]
        assert history[: len(system)] == system
        assert left == turns[-len(left) :]
        assert left[0]["role"] == "user"
        assert len(left) < before
        before = len(left)


def fate(chosen: int, rejected: int, room: int) -> str:
    """What becomes of a pair of responses of so many letters, each a token."""
    if not chosen or not rejected:
        return "empty"
    if chosen == rejected:
        return "identical"
    return "kept" if max(chosen, rejected) + 1 <= room else "too_long"


@settings(max_examples=150, deadline=None)
@given(
    messages=conversations(),
    lengths=st.lists(st.integers(0, 60), min_size=2, max_size=4),
    max_length=st.integers(2, 200),
    long_prompts=st.sampled_from(["shorten", "drop"]),
)
def test_trap_7_nothing_is_lost_without_a_count_and_no_response_is_ever_cut(
    messages, lengths, max_length, long_prompts
):
    texts = ["x" * length for length in lengths]
    every = [votes(a, b, 1, 0) for a in range(len(texts)) for b in range(a)]
    long = row(*texts, pairs=every, prompt=messages)
    anchor = row("y", "n", id="anchor", prompt=[{"role": "user", "content": "?"}])
    try:
        data = prepared(long, anchor, max_length=max_length, long_prompts=long_prompts)
    except BadInput as error:
        report, groups = error.details["data_report"], []
    else:
        report, groups = data.report, [group for group in data.train if group.id == "g"]
    prompts = [prompt_ids(TOKENIZER, messages)]
    if long_prompts == "shorten":
        prompts += [prompt_ids(TOKENIZER, history) for history in shorter_histories(messages)]
    room = max_length - min(map(len, prompts))
    fates = Counter(fate(lengths[p["chosen"]], lengths[p["rejected"]], room) for p in every)
    assert sum(len(group.pairs) for group in groups) == fates.pop("kept", 0)
    assert fates <= Counter(report["dropped"]) <= fates + Counter(too_long=1), "or the anchor's"
    assert sum(report["pairs"].values()) + sum(report["dropped"].values()) == len(every) + 1
    for group in groups:
        longest = max(map(len, group.responses))
        place = prompts.index(list(group.prompt))
        assert len(group.prompt) + longest <= max_length
        assert place == 0 or len(prompts[place - 1]) + longest > max_length, "just enough"
        assert all(text_of(ids) in texts and ids[-1] == END for ids in group.responses)
        assert len(set(group.responses)) == len(group.responses)
        assert all(pair.chosen != pair.rejected for pair in group.pairs)
        spelled = TOKENIZER.decode(group.prompt)
        assert messages[-1]["content"] in spelled
        assert messages[0]["role"] != "system" or messages[0]["content"] in spelled
        assert ("g" in report["shortened_examples"]) == (place > 0)


def test_trap_7_a_long_prompt_loses_just_enough_of_its_oldest_turns():
    whole = len(prompt_ids(TOKENIZER, TALK)) + 4  # "yes" and its end
    data = prepared(row("yes", "no", prompt=TALK), max_length=whole)
    assert "first" in TOKENIZER.decode(only(data).prompt)
    assert (data.report["shortened"], data.report["shortened_examples"]) == (0, [])
    data = prepared(row("yes", "no", prompt=TALK), max_length=whole - 1)
    assert list(only(data).prompt) == prompt_ids(TOKENIZER, [TALK[0], *TALK[3:]])
    assert (data.report["shortened"], data.report["shortened_examples"]) == (1, ["g"])
    assert data.report["dropped"] == {}
    with pytest.raises(BadInput) as error:
        prepared(row("yes", "no", prompt=TALK), max_length=whole - 1, long_prompts="drop")
    assert error.value.details["data_report"]["dropped"] == {"too_long": 1}


def test_trap_7_a_response_that_cannot_fit_shortens_no_prompt():
    pairs = [votes(0, 1, 1, 0), votes(0, 2, 1, 0)]
    long = row("yes", "no", "x" * 300, pairs=pairs, prompt=TALK)
    data = prepared(long, max_length=len(prompt_ids(TOKENIZER, TALK)) + 4)
    assert list(only(data).prompt) == prompt_ids(TOKENIZER, TALK)
    assert data.report["dropped"] == {"too_long": 1}


def test_trap_7_a_history_that_the_template_refuses_is_passed_over():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% if messages | length == 4 %}{{ raise_exception('no') }}{% endif %}" + TEMPLATE
    )
    room = len(prompt_ids(TOKENIZER, TALK)) + 3
    data = prepared(row("yes", "no", prompt=TALK), tokenizer=tokenizer, max_length=room)
    assert list(only(data).prompt) == prompt_ids(TOKENIZER, [TALK[0], TALK[-1]])


def test_trap_7_pairs_that_become_equal_or_empty_as_ids_are_dropped_and_counted():
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    pairs = [votes(0, 1, 1, 0), votes(0, 2, 1, 0), votes(0, 3, 1, 0)]
    data = prepared(row("a", "a\u200b", "\u200b", "b", pairs=pairs), tokenizer=tokenizer)
    assert data.report["dropped"] == {"identical": 1, "empty": 1}
    assert data.report["dropped_examples"] == {"identical": ["g: r0 > r1"], "empty": ["g: r0 > r2"]}
