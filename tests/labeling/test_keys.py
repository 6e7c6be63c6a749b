"""Keys of the judging page: what may be stored, and what a page gets."""

import pytest

from labeling import keys
from labeling.keys import ACTIONS, DEFAULTS, BadKeys, check, effective


def test_the_keys_as_they_are_made_are_usable_and_distinct() -> None:
    assert check(DEFAULTS) == {}
    assert len(set(DEFAULTS.values())) == len(ACTIONS)


def test_what_differs_is_kept_in_small_letters_and_the_rest_dropped() -> None:
    assert check({"skip": "X", "flag": " f ", "send": "Space", "help": "h"}) == {
        "skip": "x",
        "send": "space",
        "help": "h",
    }


def test_two_actions_may_swap_their_keys() -> None:
    swapped = check({"skip": "f", "flag": "s"})
    assert effective(swapped)["skip"] == "f"
    assert effective(swapped)["flag"] == "s"


@pytest.mark.parametrize("key", ["é", "ñ", "ж", "中", "ا", ";", "€", "9", "arrowleft", " "])
def test_keys_of_any_keyboard_may_be_chosen(key: str) -> None:
    assert set(check({"skip": key})) == {"skip"}


@pytest.mark.parametrize(
    "key",
    [
        "",
        "ab",
        "tab",
        "escape",
        "f5",
        "\u200b",
        "\u202e",
        "\n",
        "\x00",
        "\u0301",
        "İ",
        "</script>",
        7,
        None,
        ["x"],
    ],
)
def test_what_is_no_key_is_refused_by_name(key: object) -> None:
    with pytest.raises(BadKeys) as refused:
        check({"skip": key, "flag": "y"})
    assert set(refused.value.problems) == {"skip"}


@pytest.mark.parametrize("changed", [None, [], "skip", 3, {"</script><script>": "x"}, {3: "x"}])
def test_what_is_no_choice_of_keys_is_refused_as_a_whole(changed: object) -> None:
    with pytest.raises(BadKeys) as refused:
        check(changed)
    assert set(refused.value.problems) == {""}
    assert "<" not in str(refused.value).replace("</script><script>", "")


def test_two_actions_on_one_key_are_both_named() -> None:
    with pytest.raises(BadKeys) as refused:
        check({"skip": "f"})
    assert set(refused.value.problems) == {"skip", "flag"}
    assert "Flag" in refused.value.problems["skip"]


def test_digits_that_choose_answers_stand_for_nothing_else() -> None:
    assert check({"tie": "8"}) == {"tie": "8"}
    with pytest.raises(BadKeys):
        check({"a_much": "x", "skip": "1"})


@pytest.mark.parametrize("stored", [{"skip": "f"}, {"gone_action": "x"}, {"skip": "<b>"}, None, 3])
def test_a_page_never_gets_keys_that_cannot_be(stored: object) -> None:
    assert effective(stored) == DEFAULTS


def test_keys_are_shown_as_they_are_printed() -> None:
    assert [keys.shown(key) for key in ("a", "ß", "?", "backspace")] == ["A", "ß", "?", "Backspace"]
