"""A spec is read strictly, and everything that is wrong with it is told in one message."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from jobs.run_dir import RunDirError, check_spec


@dataclass(frozen=True, kw_only=True)
class Place:
    folder: str
    inner: str | None


@dataclass(frozen=True, kw_only=True)
class Plan:
    schema: Literal[1]
    place: Place
    steps: int
    rate: float | None
    kind: Literal["a", "b"] | None
    loud: bool

    @staticmethod
    def rules(given: Mapping[str, Any]) -> Iterator[str]:
        if given.get("steps", 1) < 1:
            yield "steps must be at least 1"
        if given.get("loud") and given.get("kind") == "b":
            yield "loud does nothing with kind=b"


GOOD: dict[str, Any] = {
    "schema": 1,
    "place": {"folder": "/m", "inner": None},
    "steps": 2,
    "rate": 1,
    "kind": None,
    "loud": False,
}


def complaints(spec: Any, **more: Any) -> list[str]:
    with pytest.raises(RunDirError) as error:
        check_spec(Plan, spec, **more)
    return str(error.value).removeprefix("the spec has problems: ").split("; ")


def test_a_good_spec_becomes_the_dataclass():
    plan = check_spec(Plan, GOOD)
    assert plan == Plan(
        schema=1, place=Place(folder="/m", inner=None), steps=2, rate=1.0, kind=None, loud=False
    )
    assert isinstance(plan.rate, float)


def test_everything_that_is_wrong_is_told_together():
    bad = GOOD | {"place": {"folder": 3, "outer": 1}, "steps": 0, "rate": "x", "more": 1}
    del bad["kind"]
    assert set(complaints(bad, problems=["set twice"])) == {
        "set twice",
        "unknown key more",
        "unknown key place.outer",
        "place.folder must be str, got 3",
        "missing key place.inner",
        "rate must be float or null, got 'x'",
        "missing key kind",
        "steps must be at least 1",
    }


def test_rules_see_only_keys_that_are_there_and_well_typed():
    assert complaints(GOOD | {"steps": "0", "loud": True, "kind": "c"}) == [
        "steps must be int, got '0'",
        "kind must be one of a, b or null, got 'c'",
    ]
    assert complaints(GOOD | {"loud": True, "kind": "b"}) == ["loud does nothing with kind=b"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"schema": True}, "schema must be one of 1, got True"),
        ({"schema": 1.0}, "schema must be one of 1, got 1.0"),
        ({"steps": True}, "steps must be int, got True"),
        ({"steps": 2.0}, "steps must be int, got 2.0"),
        ({"loud": 1}, "loud must be bool, got 1"),
        ({"rate": True}, "rate must be float or null, got True"),
        ({"rate": 10**400}, "rate is too large for a float"),
        ({"kind": ["a"]}, "kind must be one of a, b or null, got ['a']"),
        ({"place": "/m"}, "place: expected an object, got '/m'"),
    ],
)
def test_types_are_json_types(bad, message):
    assert complaints(GOOD | bad) == [message]


def test_a_callers_own_problems_are_enough_to_refuse():
    assert complaints(GOOD, problems=["set twice"]) == ["set twice"]


def test_a_spec_is_an_object():
    assert complaints([1]) == ["the spec: expected an object, got [1]"]
