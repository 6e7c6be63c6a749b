"""A project's settings: what is refused, what stays, and which version of the guidelines holds."""

from html.parser import HTMLParser
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.test import Client
from django.urls import reverse

from labeling.models import Project, Rationale, Role, User
from labeling.services.configuring import (
    MAX_CRITERIA,
    MAX_GUIDELINES,
    configure,
    publish_guidelines,
)
from labeling.services.examples import add_example
from tests.builders import judge, make_comparison, make_project, make_prompt, make_user

pytestmark = pytest.mark.django_db


@pytest.fixture
def project() -> Project:
    return make_project()


@pytest.fixture
def manager(project: Project) -> User:
    return make_user(role=Role.MANAGER, project=project)


def criteria(*names: str) -> list[dict[str, str]]:
    return [{"key": "", "name": name, "help": ""} for name in names]


def keys(project: Project) -> list[str]:
    project.refresh_from_db()
    return [one["key"] for one in project.criteria]


def test_only_what_is_named_changes(project: Project, manager: User) -> None:
    before = Project.objects.values().get()
    configure(project=project, actor=manager, overlap=5, rationale=Rationale.REQUIRED)
    assert Project.objects.values().get() == {**before, "overlap": 5, "rationale": "required"}


@pytest.mark.parametrize(
    ("changed", "at"),
    [
        ({"name": "  "}, "name"),
        ({"name": "x" * 121}, "name"),
        ({"overlap": 0}, "overlap"),
        ({"overlap": 51}, "overlap"),
        ({"comparison_size": 1}, "comparison_size"),
        ({"comparison_size": 9}, "comparison_size"),
        ({"rejudge_hours": 721}, "rejudge_hours"),
        ({"rejudge_hours": -1}, "rejudge_hours"),
        ({"rationale": "sometimes"}, "rationale"),
        ({"held_out_percent": 91}, "held_out_percent"),
        ({"guidelines": "x" * (MAX_GUIDELINES + 1)}, "guidelines"),
        ({"practice": True}, "practice"),
        ({"criteria": criteria("")}, "criteria"),
        ({"criteria": criteria("Clear", "clear")}, "criteria"),
        ({"criteria": criteria("x" * 41)}, "criteria"),
        ({"criteria": criteria(*(f"Number {n}" for n in range(MAX_CRITERIA + 1)))}, "criteria"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_name_and_nothing_is_written(
    project: Project, manager: User, changed: dict[str, Any], at: str
) -> None:
    before = Project.objects.values().get()
    with pytest.raises(ValidationError) as refused:
        configure(
            project=project,
            actor=manager,
            **{"name": "Another", "guidelines": "Other.", **changed},
        )
    assert set(refused.value.message_dict) == {at}
    assert Project.objects.values().get() == before
    assert not project.versions.exists()


def test_a_key_is_made_once_from_the_name_and_outlives_it(project: Project, manager: User) -> None:
    def save(*wanted: dict[str, str]) -> list[str]:
        configure(project=project, actor=manager, criteria=wanted)
        return keys(project)

    assert save(*criteria("Is it true?", "清楚", "明白")) == [
        "is-it-true",
        "criterion",
        "criterion-2",
    ]
    true, clear, _other = project.criteria
    assert save(clear, {**true, "name": "Truth"}) == ["criterion", "is-it-true"]
    assert save(*criteria("Is it true?"), {**true, "name": "Truth"})[0] == "is-it-true-2"
    assert save(*criteria("Truth")) == ["truth"]
    assert save({"key": "../x", "name": "Made up", "help": ""}) == ["made-up"]


def test_held_out_prompts_are_a_setting_until_there_are_prompts(
    project: Project, manager: User
) -> None:
    configure(project=project, actor=manager, held_out_percent=30)
    make_prompt(project=project)
    configure(project=project, actor=manager, held_out_percent=30)
    with pytest.raises(ValidationError, match="already"):
        configure(project=project, actor=manager, held_out_percent=31)


def test_practice_needs_an_example_only_to_begin(project: Project, manager: User) -> None:
    verdict = judge(comparison=make_comparison(project=project), annotator=manager)
    example = add_example(judgment=verdict, explanation="Because.", author=manager)
    configure(project=project, actor=manager, practice=True)
    example.removed_at = example.created_at
    example.save()
    configure(project=project, actor=manager, practice=True, name="Still saves")
    configure(project=project, actor=manager, practice=False)
    with pytest.raises(ValidationError, match="practise"):
        configure(project=project, actor=manager, practice=True)


def test_a_changed_text_is_a_new_version_and_the_same_text_is_none(
    project: Project, manager: User
) -> None:
    for text in ("One.", "Two.", " Two.\r\n", "Two.", "One."):
        project = configure(project=project, actor=manager, guidelines=text)
    versions = project.versions.order_by("number").values_list("number", "text", "author")
    assert list(versions) == [
        (1, "One.", manager.pk),
        (2, "Two.", manager.pk),
        (3, "One.", manager.pk),
    ]
    project.refresh_from_db()
    assert project.guidelines is not None
    assert project.guidelines.number == 3


# The page


class _Reader(HTMLParser):
    """Collects what a browser would send of the form with this id."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.inside, self.area = form, False, ""
        self.values: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.inside = given.get("id") == self.form
        if not self.inside or "disabled" in given:
            return
        if tag == "textarea":
            self.area = given["name"]
            self.values[self.area] = ""
        if tag == "input" and ("checked" in given or given["type"] not in ("checkbox", "radio")):
            self.values[given["name"]] = given.get("value", "")

    def handle_endtag(self, tag: str) -> None:
        if self.area and tag == "textarea":
            self.values[self.area] = self.values[self.area].removeprefix("\n")  # as browsers do
            self.area = ""

    def handle_data(self, data: str) -> None:
        if self.area:
            self.values[self.area] += data


def fields(page: str) -> dict[str, str]:
    """What the settings form would send, unchanged."""
    reader = _Reader("settings")
    reader.feed(page)
    return reader.values


@pytest.fixture
def address(project: Project, manager: User, client: Client) -> str:
    client.force_login(manager)
    return reverse("labeling:project_settings", args=[project.slug])


def test_the_page_saves_what_it_shows_and_says_so(
    project: Project, manager: User, client: Client, address: str
) -> None:
    configure(project=project, actor=manager, criteria=criteria("Clear", "Safe"))
    publish_guidelines(project=project, text="Be kind.\n", author=manager)
    before = Project.objects.values().get()
    shown = fields(client.get(address).content.decode())
    assert client.post(address, shown)["Location"] == address
    assert Project.objects.values().get() == before

    changed = shown | {
        "guidelines": "Be kind.\r\nBe brief.",
        "overlap": "3",
        "criterion-0-remove": "on",
        "criterion-1-help": "Could it hurt?",
        "criterion-2-name": "True",
    }
    page = client.post(address, changed, follow=True).content.decode()
    assert "Version 2 of the guidelines is in force" in page
    project.refresh_from_db()
    assert project.guidelines is not None
    assert (project.guidelines.text, project.overlap) == ("Be kind.\nBe brief.", 3)
    assert project.criteria == [
        {"key": "safe", "name": "Safe", "help": "Could it hurt?"},
        {"key": "true", "name": "True", "help": ""},
    ]


def test_an_error_is_told_at_its_field_and_nothing_filled_in_is_lost(
    project: Project, client: Client, address: str
) -> None:
    given = fields(client.get(address).content.decode()) | {
        "name": "Kitchen <b>",
        "guidelines": "Long thoughts",
        "overlap": "99",
        "practice": "on",
        "criterion-0-help": "A help without a name",
    }
    answer = client.post(address, given)
    page = answer.content.decode()
    assert answer.status_code == 422
    assert "Nothing was saved." in page
    assert 'id="id_overlap_error"' in page
    assert 'id="id_criterion-0-name_error"' in page
    assert fields(page).items() >= {"name": "Kitchen <b>", "guidelines": "Long thoughts"}.items()
    answer = client.post(address, given | {"overlap": "9", "criterion-0-help": ""})
    assert "There is nothing to practise on yet" in answer.content.decode()
    project.refresh_from_db()
    assert project.name != "Kitchen <b>"
    assert project.guidelines is None


def test_nobody_replaces_a_version_they_have_not_seen(
    project: Project, manager: User, client: Client, address: str
) -> None:
    mine = fields(client.get(address).content.decode()) | {"guidelines": "Mine."}
    other = make_user(role=Role.MANAGER, project=project, username="ben")
    publish_guidelines(project=project, text="Theirs.", author=other)
    answer = client.post(address, mine)
    page = answer.content.decode()
    assert answer.status_code == 422
    assert "Version 1 by ben came in between" in page
    client.post(address, fields(page))
    project.refresh_from_db()
    assert project.guidelines is not None
    assert (project.guidelines.text, project.guidelines.number) == ("Mine.", 2)


def test_versions_tell_who_when_what_and_under_which_people_judged(
    project: Project,
    manager: User,
    client: Client,
    address: str,
) -> None:
    publish_guidelines(project=project, text="Be kind.", author=manager)
    for _number in range(2):
        judge(comparison=make_comparison(project=project))
    publish_guidelines(project=project, text="Be <b>brief.", author=manager)
    page = client.get(address).content.decode()
    assert "2 verdicts under it" in page
    assert "0 verdicts under it" in page
    asked = client.get(address, {"version": "2"}, headers={"HX-Request": "true"}).content.decode()
    assert "<del>kind</del>" in asked
    assert "<ins>&lt;b&gt;brief</ins>" in asked
    assert "<html" not in asked
    assert "&lt;b&gt;brief" in client.get(address, {"version": "2"}).content.decode()
    page = client.post(address, {"restore": "1"}, follow=True).content.decode()
    assert "Version 3 of the guidelines is in force" in page
    project.refresh_from_db()
    assert project.guidelines is not None
    assert project.guidelines.text == "Be kind."
    assert client.post(address, {"restore": "99"}).status_code == 404


def test_the_preview_shows_the_text_and_saves_nothing(
    project: Project, client: Client, address: str
) -> None:
    given = {"preview": "1", "guidelines": "**Bold** <script>"}
    part = client.post(address, given, headers={"HX-Request": "true"}).content.decode()
    assert "<strong>Bold</strong>" in part
    assert "<script" not in part
    whole = fields(client.get(address).content.decode()) | given
    answer = client.post(address, whole)
    assert answer.status_code == 200
    assert "<strong>Bold</strong>" in answer.content.decode()
    assert not project.versions.exists()


def test_only_managers_see_the_settings(project: Project, client: Client) -> None:
    client.force_login(make_user(role=Role.ANNOTATOR, project=project))
    address = reverse("labeling:project_settings", args=[project.slug])
    assert client.get(address).status_code == 404
    assert client.post(address, {"name": "Mine"}).status_code == 404
