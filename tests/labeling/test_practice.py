"""Practice: who is sent to it, what is right, and that a first answer stands."""

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from labeling.access import JUDGES, project_for
from labeling.members import members_of
from labeling.models import Example, Judgment, Membership, PracticeAnswer, Project, Role, User
from labeling.services.configuring import configure
from labeling.services.examples import (
    NotShown,
    add_example,
    answer_example,
    is_right,
    must_practise,
    practice_run,
    practice_scores,
    remove_example,
)
from labeling.services.verdicts import Verdict
from labeling.votes import BadTiers
from tests.builders import judge, make_comparison, make_project, make_user

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


@pytest.fixture
def examples(project: Project, maya: User) -> list[Example]:
    """A pair and a ranking of three, in a project that wants practice."""
    made = [
        add_example(
            judgment=judge(comparison=make_comparison(project=project, k=k), annotator=maya),
            explanation=f"Reason {k}.",
            author=maya,
        )
        for k in (2, 3)
    ]
    configure(project=project, actor=maya, practice=True)
    project.refresh_from_db()
    return made


def right(example: Example) -> Verdict:
    return Verdict(tiers=example.comparison.gold_tiers or [])


def wrong(example: Example) -> Verdict:
    return Verdict(tiers=(example.comparison.gold_tiers or [])[::-1])


def answer(example: Example, user: User, verdict: Verdict, since: int = 0) -> PracticeAnswer:
    return answer_example(example=example, annotator=user, verdict=verdict, since=since)


def practised_at(user: User) -> object:
    return Membership.objects.get(user=user).practised_at


@pytest.mark.parametrize(
    ("tiers", "gold", "agree"),
    [
        ([[0], [1]], [[0], [1]], True),
        ([[1], [0]], [[0], [1]], False),
        ([[0, 1]], [[0], [1]], False),
        ([[0], [1]], [[0, 1]], False),
        ([[1, 0]], [[0, 1]], True),
        ([[2], [1], [0]], [[2], [0], [1]], True),
        ([[2], [0, 1]], [[2], [0], [1]], True),
        ([[0, 2], [1]], [[2], [0], [1]], False),
        ([[2, 0], [1]], [[0, 2], [1]], True),
        ([[2], [0], [1]], [[0, 2], [1]], False),
    ],
)
def test_right_is_who_puts_the_same_on_top(
    tiers: list[list[int]], gold: list[list[int]], agree: bool
) -> None:
    assert is_right(tiers, gold) is agree


def test_annotators_practise_once_where_the_project_wants_it(
    project: Project, maya: User, ada: User, examples: list[Example]
) -> None:
    def must(user: User) -> tuple[bool, int]:
        found = project_for(user, project.slug, JUDGES)
        with CaptureQueriesContext(connection) as captured:
            wanted = must_practise(found)
        return wanted, len(captured)

    assert must(ada) == (True, 1)
    assert must(maya) == (False, 0)
    answer(examples[0], ada, wrong(examples[0]))
    assert must(ada) == (True, 1)
    assert practised_at(ada) is None
    answer(examples[1], ada, right(examples[1]))
    assert practised_at(ada) is not None
    assert must(ada) == (False, 0)
    other = make_user(role=Role.ANNOTATOR, project=project)
    configure(project=project, actor=maya, practice=False)
    assert must(other) == (False, 0)
    configure(project=project, actor=maya, practice=True)
    for example in examples:
        remove_example(example=example)
    assert must(other) == (False, 1)


def test_in_a_run_the_first_answer_stands_and_another_run_changes_no_score(
    project: Project, ada: User, examples: list[Example]
) -> None:
    pair, three = examples
    first = answer(pair, ada, wrong(pair))
    assert answer(pair, ada, right(pair)) == first
    last = answer(three, ada, Verdict(tiers=[], all_bad=True))
    assert (first.right, last.right, last.tiers) == (False, False, [[0, 1, 2]])
    since = practised_at(ada)
    run = practice_run(project=project, annotator=ada)
    assert (run.next, run.right, run.last) == (None, set(), last.pk)

    again = practice_run(project=project, annotator=ada, since=run.last)
    assert again.next == pair
    assert answer(pair, ada, right(pair), since=run.last).right
    again = practice_run(project=project, annotator=ada, since=run.last)
    assert (again.next, again.right) == (three, {pair.pk})
    assert practised_at(ada) == since
    assert practice_scores(project) == {ada.pk: (0, 2)}
    assert PracticeAnswer.objects.count() == 3


def test_scores_are_of_the_examples_that_are_shown(
    project: Project, maya: User, ada: User, examples: list[Example]
) -> None:
    pair, three = examples
    answer(pair, ada, right(pair))
    answer(three, ada, wrong(three))
    answer(three, maya, right(three))
    assert practice_scores(project) == {ada.pk: (1, 2), maya.pk: (1, 1)}
    shown = {row.membership.user_id: row.practice for row in members_of(project).rows}
    assert shown == practice_scores(project), "managers see them"
    remove_example(example=three)
    assert practice_scores(project) == {ada.pk: (1, 1)}
    assert practice_run(project=project, annotator=ada).right == {pair.pk}
    assert practice_scores(make_project()) == {}


def test_what_is_no_answer_is_refused_and_nothing_is_written(
    ada: User, examples: list[Example]
) -> None:
    with pytest.raises(BadTiers):
        answer(examples[1], ada, Verdict(tiers=[[0], [1]]))
    remove_example(example=examples[0])
    with pytest.raises(NotShown):
        answer(examples[0], ada, right(examples[0]))
    assert not PracticeAnswer.objects.exists()


# The page


@pytest.fixture
def address(project: Project, ada: User, client: Client) -> str:
    client.force_login(ada)
    return reverse("labeling:practice", args=[project.slug])


def test_practice_comes_before_the_first_verdict_and_ends_with_the_score(
    project: Project, ada: User, examples: list[Example], client: Client, address: str
) -> None:
    make_comparison(project=project)
    pair, three = examples
    judging = reverse("labeling:judge", args=[project.slug])
    page = client.get(judging, follow=True).content.decode()
    assert "Practice: 1 of 2" in page
    assert "Before your first verdict" in page
    assert "Reason 2." not in page

    winner = (pair.comparison.gold_tiers or [])[0][0]
    given = {"example": pair.pk, "choice": "6" if winner else "2"}
    page = client.post(address, given, follow=True).content.decode()
    assert "Right" in page
    assert "Reason 2." in page
    assert page.count(f"{'AB'[winner]} is better") == 2
    page = client.get(address).content.decode()
    assert "Practice: 2 of 2" in page

    worst = {"example": three.pk, "choice": "ranking"}
    for place, tier in enumerate(reversed(three.comparison.gold_tiers or []), 1):
        worst[f"place_{'ABC'[tier[0]]}"] = str(place)
    page = client.post(address, worst, follow=True).content.decode()
    assert "The guide says otherwise" in page
    assert "Reason 3." in page
    page = client.get(address).content.decode()
    assert "1 of 2 right" in page
    assert client.get(judging).status_code == 200
    assert f"{address}?since={PracticeAnswer.objects.latest('pk').pk}" in page


def test_an_unreadable_answer_is_asked_again_with_what_was_filled_in(
    examples: list[Example], client: Client, address: str
) -> None:
    pair, three = examples
    answer = client.post(address, {"example": pair.pk})
    assert (answer.status_code, PracticeAnswer.objects.count()) == (422, 0)
    assert "Choose one of the answers" in answer.content.decode()
    assert client.post(address, {"example": three.pk, "choice": "1"}).status_code == 422
    part = {"example": three.pk, "choice": "ranking", "place_A": "1", "place_C": "2"}
    answer = client.post(address, part)
    assert "not complete" in answer.content.decode()
    assert '"place_C": "2"' in answer.content.decode()


def test_an_example_that_went_meanwhile_is_passed_over(
    examples: list[Example], client: Client, address: str
) -> None:
    remove_example(example=examples[0])
    page = client.post(address, {"example": examples[0].pk, "choice": "1"}, follow=True)
    assert "taken away" in page.content.decode()
    assert "Practice: 1 of 1" in page.content.decode()
    remove_example(example=examples[1])
    assert "Nothing to practise on" in client.get(address).content.decode()
    assert not PracticeAnswer.objects.exists()


def test_nobody_sees_feedback_on_anothers_answer(
    maya: User, ada: User, examples: list[Example], client: Client, address: str
) -> None:
    theirs = answer(examples[0], maya, right(examples[0]))
    page = client.get(address, {"answer": str(theirs.pk), "since": "nonsense"}).content.decode()
    assert "Practice: 1 of 2" in page
    assert "Reason 2." not in page


def test_practice_answers_are_no_verdicts(
    project: Project, ada: User, examples: list[Example]
) -> None:
    before = Judgment.objects.count()
    answer(examples[0], ada, right(examples[0]))
    assert Judgment.objects.count() == before
    assert PracticeAnswer.objects.get().at <= timezone.now()
