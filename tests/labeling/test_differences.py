"""Word differences: true to both texts, the same from either side, and quick."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labeling.differences import MOST_CHARACTERS, MOST_WORDS, Piece, differences

WORDS = st.lists(st.sampled_from(["a", "b", "the", "cat", "\n", "  ", ".", "don't", "猫", "x-y"]))


def marked(pieces: list[Piece]) -> str:
    """The text with [what differs] in brackets."""
    return "".join(f"[{piece.text}]" if piece.differs else piece.text for piece in pieces)


def both(first: str, second: str) -> tuple[str, str]:
    found = differences(first, second)
    assert found is not None
    return marked(found.first), marked(found.second)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("the cat sat", "the dog sat", ("the [cat] sat", "the [dog] sat")),
        ("the cat sat", "the cat", ("the cat [sat]", "the cat")),
        ("same\n\n  text", "same text", ("same\n\n  text", "same text")),
        ("I don't", "I do", ("I [don't]", "I [do]")),
        ("well-known fact", "well known fact", ("well[-]known fact", "well known fact")),
        ("我喜欢苹果。", "我喜欢香蕉。", ("我喜欢[苹果]。", "我喜欢[香蕉]。")),
        ("नमस्ते दुनिया", "नमस्ते विश्व", ("नमस्ते [दुनिया]", "नमस्ते [विश्व]")),
        ("مرحبا بالعالم", "مرحبا بكم", ("مرحبا [بالعالم]", "مرحبا [بكم]")),
        ("", "new", ("", "[new]")),
        ("", "", ("", "")),
    ],
)
def test_words_that_the_other_does_not_have_are_marked(
    first: str, second: str, expected: tuple[str, str]
) -> None:
    assert both(first, second) == expected


def test_a_word_both_have_by_chance_does_not_break_a_phrase() -> None:
    first, second = both(
        "keep two red apples in the dark cellar all winter", "throw old pears out to the birds now"
    )
    assert first == "[keep two red apples in the dark cellar all winter]"
    assert second == "[throw old pears out to the birds now]"


def test_a_phrase_both_have_between_small_differences_stays() -> None:
    assert both("cat sat on the mat", "dog sat on the rug") == (
        "[cat] sat on the [mat]",
        "[dog] sat on the [rug]",
    )


@given(WORDS, WORDS)
@settings(max_examples=200, deadline=None)
def test_pieces_are_the_texts_and_what_is_unmarked_is_the_same_in_both(
    first: list[str], second: list[str]
) -> None:
    texts = " ".join(first), " ".join(second)
    found = differences(*texts)
    assert found is not None
    for text, pieces in zip(texts, (found.first, found.second), strict=True):
        assert "".join(piece.text for piece in pieces) == text
        assert all(piece.text for piece in pieces)
    plain = [
        re.sub(r"\s", "", "".join(piece.text for piece in pieces if not piece.differs))
        for pieces in (found.first, found.second)
    ]
    assert plain[0] == plain[1]
    assert 0 <= found.shared <= 1
    assert (found.shared == 1) == (not any(p.differs for p in found.first + found.second))


def test_texts_that_are_too_long_are_not_compared() -> None:
    assert differences("x" * (MOST_CHARACTERS + 1), "x") is None
    assert differences("x", ". " * (MOST_WORDS + 1)) is None


def test_the_longest_texts_are_compared_quickly() -> None:
    first = " ".join(str(number % 7) for number in range(MOST_WORDS))
    second = " ".join(str(number % 5) for number in range(MOST_WORDS))
    began = time.thread_time()
    assert differences(first, second) is not None
    assert time.thread_time() - began < 4  # left to itself it takes far longer
