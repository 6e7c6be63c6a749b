"""Examples: made of a manager's own verdict, shown in the guide, never judged or trained on."""

import re

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from labeling.models import (
    Comparison,
    Example,
    Judgment,
    PolicyState,
    Preference,
    Project,
    Role,
    User,
)
from labeling.services.assigning import next_assignment
from labeling.services.checking import breaches
from labeling.services.comparing import reopen_retired
from labeling.services.configuring import configure, publish_guidelines
from labeling.services.examples import CannotAdd, add_example, remove_example
from labeling.services.judging import undo
from tests.builders import (
    judge,
    make_comparison,
    make_policy,
    make_project,
    make_prompt,
    make_user,
)
from tests.labeling.hostile import HOSTILE

pytestmark = pytest.mark.django_db


@pytest.fixture
def project() -> Project:
    return make_project()


@pytest.fixture
def maya(project: Project) -> User:
    return make_user(role=Role.MANAGER, project=project, username="maya")


@pytest.fixture
def ada(project: Project) -> User:
    return make_user(role=Role.ANNOTATOR, project=project, username="ada")


def example_of(judgment: Judgment, explanation: str = "Because.") -> Example:
    return add_example(judgment=judgment, explanation=explanation, author=judgment.annotator)


def guide(client: Client, user: User, project: Project) -> str:
    client.force_login(user)
    answer = client.get(reverse("labeling:guide", args=[project.slug]))
    assert answer.status_code == 200
    return answer.content.decode()


@pytest.mark.parametrize("k", [2, 4])
def test_an_example_keeps_what_its_author_saw_and_said(
    project: Project, maya: User, k: int
) -> None:
    tiers = [[1], [0]] if k == 2 else [[2], [0, 3], [1]]
    verdict = judge(comparison=make_comparison(project=project, k=k), annotator=maya, tiers=tiers)
    example = example_of(verdict)
    copy = example.comparison
    responses = {slot.index: slot.response_id for slot in verdict.comparison.slots.all()}
    copied = {slot.index: slot.response_id for slot in copy.slots.all()}
    assert [copied[place] for place in range(k)] == [responses[i] for i in verdict.shown_order]
    assert copy.gold_tiers is not None
    assert [{copied[place] for place in tier} for tier in copy.gold_tiers] == [
        {responses[slot] for slot in tier} for tier in tiers
    ]


def test_an_example_is_nobodys_work_and_gives_no_preferences(
    project: Project, maya: User, ada: User
) -> None:
    policy = make_policy(project=project, state=PolicyState.SERVING)
    judged = make_comparison(project=project, policy=policy)
    before = Preference.objects.count()
    example_of(judge(comparison=judged, annotator=maya))
    assert Preference.objects.count() == before + 1  # the verdict's own
    assert next_assignment(project=project, annotator=ada) is None
    assert reopen_retired(policy=policy) == 0
    judged.refresh_from_db()
    assert (judged.state, judged.judged) == (Comparison.State.JUDGED, 1)
    assert list(breaches()) == []


def test_what_makes_no_example_is_refused_in_words(project: Project, maya: User, ada: User) -> None:
    mine = judge(comparison=make_comparison(project=project), annotator=maya)
    theirs = judge(comparison=make_comparison(project=project), annotator=ada)
    with pytest.raises(CannotAdd, match="not your verdict"):
        add_example(judgment=theirs, explanation="Because.", author=maya)
    with pytest.raises(CannotAdd, match="reasons"):
        add_example(judgment=mine, explanation=" \n", author=maya)
    first = example_of(mine)
    with pytest.raises(CannotAdd, match="already"):
        example_of(mine)
    remove_example(example=first)
    remove_example(example=first)
    second = example_of(mine)
    assert list(Example.objects.shown()) == [second]
    undo(judgment=mine)
    mine.refresh_from_db()
    remove_example(example=second)
    with pytest.raises(CannotAdd, match="not your verdict"):
        example_of(mine)
    assert Comparison.objects.filter(purpose=Comparison.Purpose.PRACTICE).count() == 2


def test_only_exactly_the_same_answers_are_the_same_example(project: Project, maya: User) -> None:
    prompt = make_prompt(project=project)
    three = make_comparison(prompt=prompt, texts=["one", "two", "three"])
    example_of(judge(comparison=three, annotator=maya))
    pair = Comparison.objects.create(project=project, prompt=prompt, overlap=1)
    for slot in list(three.slots.all())[:2]:
        pair.slots.create(index=slot.index, response=slot.response)
    example_of(judge(comparison=pair, annotator=maya))
    assert Example.objects.shown().count() == 2


# The pages


def test_the_guide_tells_what_holds_and_shows_examples_with_their_reasons(
    project: Project, maya: User, ada: User, client: Client
) -> None:
    page = guide(client, ada, project)
    assert "Nothing is written yet" in page
    assert "No examples yet" in page
    for text in ("Be kind.", "Be **brief**."):
        publish_guidelines(project=project, text=text, author=maya)
    wanted = [{"key": "", "name": "Safe", "help": "Could it hurt?"}]
    configure(project=project, actor=maya, criteria=wanted)
    soup = make_comparison(
        prompt=make_prompt(project=project, text="Soup?"), texts=["Hot.", "Cold."]
    )
    verdict = judge(comparison=soup, annotator=maya)
    example = example_of(verdict, "It is **winter**.")
    page = guide(client, ada, project)
    assert "Version 2" in page
    assert "<strong>brief</strong>" in page
    assert "Could it hurt?" in page
    winner = "AB"[verdict.shown_order.index(0)]
    shown = " ".join(re.sub(r"<[^>]+>", " ", page[page.index('id="example-') :]).split())
    assert "Example 1 User Soup? A" in shown
    assert f"{winner} better 1 word Hot." in shown
    assert f"{winner} is better It is winter ." in shown
    assert "Remove" not in page
    remove = reverse("labeling:remove_example", args=[project.slug, example.pk])
    assert client.post(remove).status_code == 404
    assert remove in guide(client, maya, project)
    assert "Soup?" not in client.post(remove, follow=True).content.decode()


def test_the_guide_takes_as_many_queries_for_many_examples_as_for_one(
    project: Project, maya: User, client: Client
) -> None:
    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            client.get(reverse("labeling:guide", args=[project.slug]))
        return len(captured)

    client.force_login(maya)
    example_of(judge(comparison=make_comparison(project=project), annotator=maya))
    one = queries()
    for k in (2, 3, 4):
        example_of(judge(comparison=make_comparison(project=project, k=k), annotator=maya))
    assert queries() == one


def test_a_verdict_becomes_an_example_on_its_page(
    project: Project, maya: User, ada: User, client: Client
) -> None:
    verdict = judge(
        comparison=make_comparison(project=project), annotator=maya, rationale="It is right."
    )
    address = reverse("labeling:add_example", args=[project.slug, verdict.pk])
    client.force_login(ada)
    assert client.get(address).status_code == 404
    client.force_login(maya)
    assert "It is right." in client.get(address).content.decode()
    assert client.post(address, {"explanation": "x" * 5001}).status_code == 422
    assert not Example.objects.exists()
    answer = client.post(address, {"explanation": "It is *right*."})
    example = Example.objects.get()
    assert answer["Location"].endswith(f"/guide/#example-{example.pk}")
    assert "already" in client.get(address, follow=True).content.decode()
    assert "already" in client.post(address, {"explanation": "Again"}, follow=True).content.decode()
    theirs = judge(comparison=make_comparison(project=project), annotator=ada)
    others = reverse("labeling:add_example", args=[project.slug, theirs.pk])
    assert client.get(others).status_code == 404


def test_hostile_texts_are_harmless_in_the_guide(
    project: Project, maya: User, client: Client
) -> None:
    texts = [text.replace("\x00", "") for text in HOSTILE]
    for number, text in enumerate(texts):
        prompt = make_prompt(project=project, text=f"{text} {number}")
        comparison = make_comparison(prompt=prompt, texts=[text, f"{text} again"])
        example_of(judge(comparison=comparison, annotator=maya), explanation=f"x {text}")
    publish_guidelines(project=project, text="\n\n".join(texts), author=maya)
    page = guide(client, maya, project)
    assert all("nonce=" in script for script in re.findall(r"<script[^>]*>", page))
    assert not re.search(r"<(iframe|object|embed|base|math|img|style)\b", page)
    assert not re.search(r"<[^>]*\son(error|load|mouseover)\s*=", page)
    assert not re.search(r'href="\s*(javascript|data|vbscript|file):', page, re.I)
