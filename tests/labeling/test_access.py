"""Who may open what: missing and forbidden are the same 404."""

import pytest
from django.http import Http404
from django.test import Client
from django.urls import reverse

from labeling.access import EXPORTERS, JUDGES, MANAGERS, project_for
from labeling.models import Role
from tests.builders import make_project, make_user

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize(
    ("roles", "allowed"),
    [
        (JUDGES, {Role.ANNOTATOR, Role.MANAGER}),
        (MANAGERS, {Role.MANAGER}),
        (EXPORTERS, {Role.MANAGER, Role.CONSUMER}),
    ],
)
@pytest.mark.parametrize("role", list(Role))
def test_a_project_opens_to_the_roles_named(
    roles: tuple[Role, ...], allowed: set[Role], role: Role
) -> None:
    project = make_project()
    user = make_user(role=role, project=project)
    if role in allowed:
        assert project_for(user, project.slug, roles) == project
    else:
        with pytest.raises(Http404):
            project_for(user, project.slug, roles)


def test_another_projects_member_gets_what_a_missing_project_gives(client: Client) -> None:
    project = make_project()
    client.force_login(make_user(role=Role.MANAGER))
    forbidden = client.get(reverse("labeling:judge", kwargs={"slug": project.slug}))
    missing = client.get(reverse("labeling:judge", kwargs={"slug": "no-such-project"}))
    assert forbidden.status_code == missing.status_code == 404
    assert project.name not in forbidden.content.decode()


def test_a_superuser_without_membership_is_no_member(client: Client) -> None:
    project = make_project()
    user = make_user()
    user.is_superuser = user.is_staff = True
    user.save()
    client.force_login(user)
    url = reverse("labeling:judge", kwargs={"slug": project.slug})
    assert client.get(url).status_code == 404


@pytest.mark.parametrize("role", [Role.ANNOTATOR, Role.MANAGER, Role.CONSUMER])
def test_a_member_of_one_project_lands_in_it(role: Role, client: Client) -> None:
    project = make_project()
    client.force_login(make_user(role=role, project=project))
    answer = client.get("/")
    assert answer.status_code == 302
    assert answer["Location"].startswith(f"/p/{project.slug}/")


def test_home_lists_projects_and_says_what_to_do_where_there_is_none(client: Client) -> None:
    client.force_login(make_user())
    assert "You are in no project yet" in client.get("/").content.decode()
    user = make_user(role=Role.ANNOTATOR, project=make_project(name="First"))
    user.memberships.create(project=make_project(name="Second"), role=Role.MANAGER)
    client.force_login(user)
    html = client.get("/").content.decode()
    assert "First" in html
    assert "Second" in html


def test_home_needs_as_many_queries_for_ten_projects_as_for_two(
    client: Client, django_assert_max_num_queries
) -> None:
    user = make_user()
    for _ in range(10):
        user.memberships.create(project=make_project(), role=Role.ANNOTATOR)
    client.force_login(user)
    with django_assert_max_num_queries(6):
        client.get("/")
