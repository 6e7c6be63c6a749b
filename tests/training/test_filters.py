"""Which pairs a round trains on: counted again, left out for a reason, frozen with its filters."""

import json
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from jobs.run_dir import read_jsonl
from labeling.models import Comparison, Judgment, Policy, Project, Role, Split, User
from labeling.services.exporting import ranked_groups
from tests.builders import judge, make_comparison, make_policy, make_prompt, make_user
from tests.training.rounds import OPTIONS, new_round
from training.filters import NO_POLICY, REASONS, BadFilters, Filters, Sieve, agreement
from training.material import count_pairs, look
from training.services import NotReady, begin, start_round
from training.snapshots import freeze

TODAY = date.today()
days = st.none() | st.dates(date(2020, 1, 1), date(2030, 1, 1))
some = st.lists(st.integers(0, 9), max_size=3, unique=True).map(tuple)
any_filters = st.builds(
    Filters,
    agreement=st.integers(0, 100),
    annotators=some,
    policies=some,
    since=days,
    until=days,
    ratings=st.dictionaries(st.sampled_from(["care", "style"]), st.integers(1, 5)),
)


@pytest.fixture
def people(project: Project) -> list[User]:
    return [make_user(role=Role.ANNOTATOR, project=project) for _ in range(3)]


@pytest.fixture
def judged(project: Project, people: list[User]) -> Comparison:
    """A over B twice, B over A once, by the last."""
    prompt = make_prompt(project=project, split=Split.TRAIN)
    comparison = make_comparison(prompt=prompt, overlap=3)
    for person, tiers in zip(people, ([[0], [1]], [[0], [1]], [[1], [0]]), strict=True):
        judge(comparison=comparison, annotator=person, tiers=tiers)
    return comparison


def sifted(project: Project, filters: Filters) -> tuple[list[dict[str, Any]], dict[str, int]]:
    sieve = Sieve(filters)
    rows = list(sieve.rows(ranked_groups(project)))
    return [pair for row in rows for pair in row["pairs"]], dict(sieve.left_out)


@given(any_filters)
def test_filters_are_stored_and_read_back_as_they_were(filters: Filters) -> None:
    stored = json.loads(json.dumps(filters.as_json()))
    assert Filters.from_json(stored) == filters
    assert (stored == {}) == (filters == Filters())


@pytest.mark.parametrize("stored", [{"colour": 1}, {"since": "soon"}, {"ratings": 3}])
def test_stored_filters_that_make_no_sense_are_refused(stored: dict[str, Any]) -> None:
    with pytest.raises(BadFilters):
        Filters.from_json(stored)


def test_votes_are_counted_again_from_those_that_stay(
    project: Project, judged: Comparison, people: list[User]
) -> None:
    [pair], _none = sifted(project, Filters(annotators=(people[2].pk,)))
    assert (pair["chosen"], pair["votes_for"], pair["votes_against"]) == (1, 1, 0)
    [pair], _none = sifted(project, Filters(annotators=(people[0].pk, people[2].pk)))
    assert (pair["votes_for"], pair["votes_against"]) == (1, 1)
    stranger = make_user()
    assert sifted(project, Filters(annotators=(stranger.pk,))) == ([], {"annotator": 1})


def test_days_are_whole_ones_of_the_site(project: Project, judged: Comparison) -> None:
    late = timezone.localtime().replace(hour=23, minute=59) - timedelta(days=2)
    Judgment.objects.update(created_at=late)
    day = late.date()
    for filters in (Filters(since=day), Filters(until=day), Filters(since=day, until=day)):
        assert sifted(project, filters)[1] == {}
    one = timedelta(days=1)
    for filters in (Filters(since=day + one), Filters(until=day - one)):
        assert sifted(project, filters) == ([], {"date": 1})


def test_policies_are_those_of_both_responses(project: Project) -> None:
    [policy] = Policy.objects.filter(project=project)
    other = make_policy(project=project)
    for author in (policy, other, None):
        prompt = make_prompt(project=project, split=Split.TRAIN)
        judge(comparison=make_comparison(prompt=prompt, policy=author))
    assert sifted(project, Filters(policies=(policy.pk,)))[1] == {"policy": 2}
    assert sifted(project, Filters(policies=(policy.pk, NO_POLICY)))[1] == {"policy": 1}


def test_agreement_is_the_share_that_says_the_same(project: Project, judged: Comparison) -> None:
    [pair], _none = sifted(project, Filters(agreement=66))
    assert agreement(pair) == pytest.approx(2 / 3)
    assert sifted(project, Filters(agreement=67)) == ([], {"agreement": 1})


def test_the_chosen_response_is_rated_high_enough_on_average(
    project: Project, judged: Comparison, people: list[User]
) -> None:
    for person, rating in zip(people, (5, 2, 1), strict=True):
        mine = Judgment.objects.filter(annotator=person)
        mine.update(ratings={"care": {"0": rating, "1": 5}})
    assert sifted(project, Filters(ratings={"care": 2}))[1] == {}
    assert sifted(project, Filters(ratings={"care": 3}))[1] == {"rating": 1}
    assert sifted(project, Filters(ratings={"style": 1}))[1] == {"rating": 1}
    only = Filters(ratings={"care": 3}, annotators=(people[0].pk, people[1].pk))
    assert sifted(project, only)[1] == {}, "those whose votes count rate"


def test_every_pair_is_kept_or_counted_once_and_held_out_ones_are_never_touched(
    project: Project, judged: Comparison
) -> None:
    held_out = make_comparison(prompt=make_prompt(project=project, split=Split.HELD_OUT), k=3)
    judge(comparison=held_out)
    for filters in (
        Filters(agreement=100),
        Filters(annotators=(0,)),
        Filters(policies=(0,)),
        Filters(until=TODAY - timedelta(days=9)),
        Filters(ratings={"care": 5}),
    ):
        pairs, left_out = sifted(project, filters)
        assert len(pairs) + sum(left_out.values()) == 4
        assert len(pairs) >= 3
        assert left_out.keys() <= REASONS.keys()


def test_a_round_freezes_its_filters_with_what_they_left_out(
    ready: Project, judged: Comparison, tmp_path: Path
) -> None:
    tie = make_comparison(prompt=make_prompt(project=ready, split=Split.TRAIN))
    judge(comparison=tie, tiers=[[0, 1]])
    whole = freeze(project=ready, path=tmp_path / "whole.jsonl")
    filters = Filters(agreement=90)
    round_ = start_round(project=ready, actor=None, filters=filters)
    made = begin(round_)
    assert made.filters == round_.filters == {"agreement": 90}
    assert made.left_out == {"tied": 1, "agreement": 1}
    assert (made.pairs, made.groups) == (whole.pairs - 1, whole.groups - 1)
    assert made.digest != whole.digest
    rows = list(read_jsonl(Path(made.path)))
    assert f"comparison-{judged.pk}" not in {row["id"] for row in rows}


def test_what_is_looked_at_beforehand_is_what_is_frozen(
    ready: Project, judged: Comparison, tmp_path: Path
) -> None:
    for filters in (Filters(), Filters(agreement=90), Filters(policies=(NO_POLICY,))):
        path = tmp_path / f"{len(filters.as_json())}.jsonl"
        frozen, sample = freeze(project=ready, path=path, filters=filters), look(ready, filters)
        assert sample.whole
        assert (sample.train, sample.held_out) == (frozen.pairs, frozen.held_out_pairs)
        assert count_pairs(ready, filters).train == frozen.pairs


def test_filters_that_leave_too_little_are_in_the_way(ready: Project, manager: Client) -> None:
    with pytest.raises(NotReady, match="more decided pairs"):
        start_round(project=ready, actor=None, filters=Filters(annotators=(0,)))
    sent = OPTIONS | {"until": "2001-01-01"}
    answer = manager.post(new_round(ready), sent)
    assert answer.status_code == 409
    html = answer.content.decode()
    assert "judged on other days" in html
    assert "some of the pairs" in html
    assert not ready.rounds.exists()


def test_the_form_hands_its_filters_on(ready: Project, manager: Client) -> None:
    ready.criteria = [{"key": "care", "name": "Care", "help": ""}]
    ready.save()
    Judgment.objects.update(ratings={"care": {"0": 4, "1": 1}})
    person = ready.memberships.filter(role=Role.ANNOTATOR)[0].user
    sent = OPTIONS | {
        "agreement": "67",
        "since": "2001-01-01",
        "annotators": [str(person.pk)],
        "policies": ["0"],
        "rating_care": "3",
        "after": "evaluate",
    }
    answer = manager.post(new_round(ready), sent)
    assert answer.status_code == 302
    round_ = ready.rounds.get()
    assert round_.after == "evaluate"
    assert round_.filters == {
        "agreement": 67,
        "annotators": [person.pk],
        "policies": [0],
        "since": "2001-01-01",
        "ratings": {"care": 3},
    }
    html = manager.get(answer["Location"]).content.decode()
    assert "Rated: Care" in html
    assert "Put it before people" in html


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ({"since": "2026-02-02", "until": "2026-02-01"}, "before the first day"),
        ({"agreement": "101"}, "less than or equal to 100"),
        ({"annotators": "999999"}, "not one of the available choices"),
    ],
)
def test_filters_that_cannot_be_are_marked(
    ready: Project, manager: Client, sent: dict[str, str], words: str
) -> None:
    answer = manager.post(new_round(ready), OPTIONS | sent)
    assert answer.status_code == 422
    assert words in answer.content.decode()
    assert not ready.rounds.exists()
