"""Preferences: skimming, filtering, paging and the export."""

import json

import pytest
from django.test import Client
from django.urls import reverse

from labeling.models import Policy, Preference, Project, Role, Split
from labeling.views import preferences
from labeling.views.preferences import PAGE
from tests.builders import (
    judge,
    make_comparison,
    make_policy,
    make_project,
    make_prompt,
    make_user,
)

pytestmark = pytest.mark.django_db


@pytest.fixture
def project() -> Project:
    return make_project(overlap=3)


@pytest.fixture
def member(project: Project, client: Client) -> Client:
    client.force_login(make_user(role=Role.CONSUMER, project=project))
    return client


def judged(
    project: Project,
    text: str,
    *verdicts: list[list[int]],
    split: Split = Split.TRAIN,
    policy: Policy | None = None,
) -> Preference:
    comparison = make_comparison(
        prompt=make_prompt(project=project, text=text, split=split),
        texts=[f"First to {text}", f"Second to {text}"],
        policy=policy,
    )
    for tiers in verdicts or [[[0], [1]]]:
        judge(comparison=comparison, tiers=tiers)
    return comparison.preferences.get()


def page(project: Project, client: Client, query: str = "", **headers: str) -> str:
    address = reverse("labeling:preferences", args=[project.slug])
    answer = client.get(f"{address}?{query}", headers=headers)
    assert answer.status_code == 200
    return answer.content.decode()


def test_rows_tell_chosen_from_rejected_with_their_votes(project: Project, member: Client) -> None:
    judged(project, "soup", [[1], [0]], [[1], [0]], [[0, 1]])
    html = page(project, member)
    assert html.index("Second to soup") < html.index("First to soup")
    assert "2 for, 0 against, 1 tied" in html


@pytest.mark.parametrize(
    ("query", "left"),
    [
        ("", {"soup", "bread", "even"}),
        ("split=held_out", {"bread"}),
        ("split=train&decided=yes", {"soup"}),
        ("decided=no", {"even"}),
        ("votes=2", {"even"}),
        ("votes=nonsense&split=nowhere&policy=x", {"soup", "bread", "even"}),
    ],
)
def test_filters_leave_what_they_say(
    project: Project, member: Client, query: str, left: set[str]
) -> None:
    judged(project, "soup")
    judged(project, "bread", split=Split.HELD_OUT)
    judged(project, "even", [[0], [1]], [[1], [0]])
    html = page(project, member, query)
    assert {name for name in ("soup", "bread", "even") if f"First to {name}" in html} == left


def test_a_policy_filter_finds_what_it_wrote(project: Project, member: Client) -> None:
    policy = make_policy(project=project)
    judged(project, "soup", policy=policy)
    judged(project, "bread")
    html = page(project, member, f"policy={policy.pk}")
    assert "First to soup" in html
    assert "First to bread" not in html


def test_pages_go_through_all_rows_once_and_back(project: Project, member: Client) -> None:
    number = PAGE + 3
    for index in range(number):
        judged(project, f"dish {index:03}")
    ids = list(project.preferences.order_by("-id").values_list("pk", flat=True))
    first = page(project, member, "votes=1")
    assert f"votes=1&amp;before={ids[PAGE - 1]}" in first
    assert "Newer" not in first
    second = page(project, member, f"before={ids[PAGE - 1]}")
    assert second.count('<details class="skim-item"') == 3
    assert f"after={ids[PAGE]}" in second
    assert "Older" not in second
    again = page(project, member, f"after={ids[PAGE]}")
    assert again.count('<details class="skim-item"') == PAGE
    assert "Newer" not in again


def test_filters_look_through_so_many_pairs_and_say_so(
    project: Project, member: Client, monkeypatch
) -> None:
    monkeypatch.setattr(preferences, "LOOKED_THROUGH", 3)
    for name in ("soup", "bread"):
        judged(project, name, split=Split.HELD_OUT)
    for index in range(5):
        judged(project, f"dish {index}")
    ids = list(project.preferences.order_by("-id").values_list("pk", flat=True))
    first = page(project, member, "split=held_out")
    assert "None of these 3 pairs is left with these filters." in first
    assert f"before={ids[2]}" in first
    assert "Newer" not in first
    second = page(project, member, f"split=held_out&before={ids[2]}")
    assert "First to bread" in second
    assert "3 pairs were looked through; there are more." in second
    assert f"before={ids[5]}" in second
    third = page(project, member, f"split=held_out&before={ids[5]}")
    assert "First to soup" in third
    assert "Older" not in third
    assert f"after={ids[6]}" in third
    back = page(project, member, f"split=held_out&after={ids[6]}")
    assert "First to bread" in back
    assert f"after={ids[3]}" in back
    further = page(project, member, f"split=held_out&after={ids[3]}")
    assert "None of these 3 pairs is left" not in further
    assert "of the newest 3 pairs" in page(project, member, "split=train")


def test_a_fragment_is_answered_with_the_table_and_history_with_the_page(
    project: Project, member: Client
) -> None:
    judged(project, "soup")
    assert page(project, member, hx_request="true").startswith("<section")
    whole = page(project, member, hx_request="true", hx_history_restore_request="true")
    assert "<html" in whole


def test_model_text_is_only_text(project: Project, member: Client) -> None:
    judged(project, "<script>alert(1)</script>")
    html = page(project, member)
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html


def test_annotators_are_never_named(project: Project, client: Client) -> None:
    annotator = make_user(role=Role.ANNOTATOR, project=project, username="secret-annotator")
    judge(comparison=make_comparison(project=project), annotator=annotator)
    client.force_login(make_user(role=Role.MANAGER, project=project))
    assert "secret-annotator" not in page(project, client)


def test_annotators_may_not_look(project: Project, client: Client) -> None:
    client.force_login(make_user(role=Role.ANNOTATOR, project=project))
    for route in ("labeling:preferences", "labeling:export_preferences"):
        assert client.get(reverse(route, args=[project.slug])).status_code == 404


def test_an_empty_table_says_what_belongs_there(project: Project, client: Client) -> None:
    client.force_login(make_user(role=Role.MANAGER, project=project))
    html = page(project, client)
    assert "No preferences yet" in html
    assert reverse("labeling:judge", args=[project.slug]) in html
    judged(project, "soup")
    assert "Nothing matches" in page(project, client, "split=held_out")


def test_queries_do_not_grow_with_rows(
    project: Project, member: Client, django_assert_max_num_queries
) -> None:
    for start in (0, 6):
        for index in range(start, start + 6):
            judged(project, f"dish {index}", policy=make_policy(project=project))
        with django_assert_max_num_queries(10):
            page(project, member)


def test_the_export_streams_decided_pairs_as_an_attachment(
    project: Project, member: Client
) -> None:
    judged(project, "soup")
    judged(project, "bread", split=Split.HELD_OUT)
    judged(project, "even", [[0], [1]], [[1], [0]])
    address = reverse("labeling:export_preferences", args=[project.slug])
    answer = member.get(address)
    assert answer.streaming
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert answer["Content-Disposition"] == (
        f'attachment; filename="{project.slug}-preferences.jsonl"'
    )
    rows = [json.loads(line) for line in answer.getvalue().decode().splitlines()]
    assert [row["prompt"][-1]["content"] for row in rows] == ["soup", "bread"]
    only = member.get(address, {"split": "held_out"})
    assert len(only.getvalue().decode().splitlines()) == 1
    assert "preferences-held_out.jsonl" in only["Content-Disposition"]
