"""How often two annotators order two responses alike."""

import pytest
from django.test import Client
from django.urls import reverse

from labeling import agreement
from labeling.agreement import agreement_of, disagreement
from labeling.models import Project, Role, User
from tests.builders import judge, make_comparison, make_project, make_user

pytestmark = pytest.mark.django_db
Tiers = list[list[int]]
FIRST: Tiers = [[0], [1]]
SECOND: Tiers = [[1], [0]]
LEVEL: Tiers = [[0, 1]]


@pytest.fixture
def project() -> Project:
    return make_project(overlap=3)


@pytest.fixture
def people(project: Project) -> list[User]:
    return [make_user(role=Role.ANNOTATOR, project=project, username=name) for name in "ABC"]


@pytest.fixture(autouse=True)
def _few_are_enough(monkeypatch) -> None:
    monkeypatch.setattr(agreement, "LEAST", 1)


def couples_of(project: Project) -> dict[str, tuple[int, int, int]]:
    """Comparisons, pairs and pairs alike by the two names, in order."""
    return {
        one.first + one.second: (one.comparisons, one.pairs, one.alike)
        for one in agreement_of(project).couples
    }


def said(project: Project, people: list[User], *verdicts: Tiers, k: int = 2) -> None:
    comparison = make_comparison(project=project, k=k)
    for person, tiers in zip(people, verdicts, strict=False):
        judge(comparison=comparison, annotator=person, tiers=tiers)


def test_what_one_alone_judged_says_nothing(project: Project, people: list[User]) -> None:
    said(project, people, FIRST)
    assert couples_of(project) == {}
    assert agreement_of(project).share is None
    assert disagreement(project) is None


def test_alike_is_the_same_side_or_level_both_times(project: Project, people: list[User]) -> None:
    for verdicts in ((FIRST, FIRST), (FIRST, SECOND), (FIRST, LEVEL), (LEVEL, LEVEL)):
        said(project, people, *verdicts)
    assert couples_of(project) == {"AB": (4, 4, 2)}
    (couple,) = agreement_of(project).couples
    assert couple.interval == pytest.approx((0.15, 0.85), abs=0.005)


def test_rankings_are_compared_pair_by_pair(project: Project, people: list[User]) -> None:
    said(project, people, [[0], [1], [2]], [[1], [0], [2]], k=3)
    assert couples_of(project) == {"AB": (1, 3, 2)}


def test_of_three_every_two_are_compared_those_who_agree_least_first(
    project: Project, people: list[User]
) -> None:
    said(project, people, FIRST, FIRST, SECOND)
    said(project, people[1:], FIRST, FIRST)
    found = couples_of(project)
    assert found == {"AC": (1, 1, 0), "BC": (2, 2, 1), "AB": (1, 1, 1)}
    assert list(found) == ["AC", "BC", "AB"]
    assert agreement_of(project).share == 0.5


def test_other_projects_and_what_was_taken_back_do_not_count(
    project: Project, people: list[User]
) -> None:
    said(make_project(overlap=3), people, FIRST, SECOND)
    said(project, people, FIRST, SECOND)
    project.comparisons.get().judgments.filter(annotator=people[0]).update(surplus=True)
    assert couples_of(project) == {}


def test_only_the_newest_judgments_are_looked_at(
    project: Project, people: list[User], monkeypatch
) -> None:
    monkeypatch.setattr(agreement, "LOOKED_AT", 4)
    for verdicts in ((FIRST, SECOND), (FIRST, FIRST), (SECOND, SECOND)):
        said(project, people, *verdicts)
    assert couples_of(project) == {"AB": (2, 2, 2)}


def test_disagreement_needs_enough_comparisons(
    project: Project, people: list[User], monkeypatch
) -> None:
    monkeypatch.setattr(agreement, "LEAST", 3)
    for _ in range(2):
        said(project, people, FIRST, SECOND)
    assert disagreement(project) is None
    said(project, people, FIRST, FIRST)
    found = disagreement(project)
    assert found is not None
    assert (found.first, found.second, found.comparisons) == ("A", "B", 3)
    assert found.share == pytest.approx(1 / 3)
    for _ in range(3):
        said(project, people, FIRST, FIRST)
    assert disagreement(project) is None


def test_managers_see_it_among_the_people(
    project: Project, people: list[User], client: Client
) -> None:
    client.force_login(make_user(role=Role.MANAGER, project=project))
    address = reverse("labeling:people", args=[project.slug])
    assert "Ordered alike" not in client.get(address).content.decode()
    for verdicts in ((FIRST, FIRST), (FIRST, FIRST), (FIRST, FIRST), (FIRST, SECOND)):
        said(project, people, *verdicts)
    html = client.get(address).content.decode()
    assert "alike 75\u2009% of the time" in html
    assert "<bdi>A</bdi>, <bdi>B</bdi>" in html
