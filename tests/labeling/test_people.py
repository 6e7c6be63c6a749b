"""The people page: who is in a project, what they did, and what a manager does there."""

import re
import threading

import pytest
from django.db import connections
from django.test import Client
from django.urls import reverse

from labeling.members import members_of
from labeling.models import Judgment, Lease, Membership, Project, Role, User
from labeling.services import inviting, judging, staffing
from labeling.services.assigning import next_assignment
from labeling.services.verdicts import FlagGiven
from tests.builders import judge, make_comparison, make_project, make_user

pytestmark = pytest.mark.django_db


@pytest.fixture
def project() -> Project:
    return make_project(overlap=3)


@pytest.fixture
def manager(project: Project, client: Client) -> User:
    user = make_user(role=Role.MANAGER, project=project, username="dana")
    client.force_login(user)
    return user


def page(client: Client, project: Project) -> str:
    answer = client.get(reverse("labeling:people", args=[project.slug]))
    assert answer.status_code == 200
    return answer.content.decode()


def act(client: Client, project: Project, route: str, *args: int, **data: object) -> str:
    answer = client.post(
        reverse(f"labeling:{route}", args=[project.slug, *args]), data, follow=True
    )
    assert answer.status_code == 200
    return answer.content.decode()


def membership(user: User) -> Membership:
    return user.memberships.get()


def test_members_are_shown_with_what_they_did(project: Project, manager: User) -> None:
    ada = make_user(role=Role.ANNOTATOR, project=project, username="ada")
    boris = make_user(role=Role.ANNOTATOR, project=project, username="Boris")
    for active_ms in (2000, 4000, 90_000):
        judge(
            comparison=make_comparison(project=project),
            annotator=ada,
            active_ms=active_ms,
        )
    old = judge(comparison=make_comparison(project=project), annotator=ada, active_ms=0)
    Judgment.objects.filter(pk=old.pk).update(created_at="2020-01-01T00:00Z")
    judging.undo(judgment=judge(comparison=make_comparison(project=project), annotator=boris))
    taken = next_assignment(project=project, annotator=boris)
    assert taken is not None
    judging.skip(
        project=project,
        annotator=boris,
        token=taken.lease.token,
        flags=[FlagGiven(reason="broken")],
    )
    rows = members_of(project).rows
    assert [row.membership.user for row in rows] == [manager, ada, boris]
    assert [(row.today, row.total, row.flags, row.seconds) for row in rows] == [
        (0, 0, 0, None),
        (3, 4, 0, 4.0),
        (0, 0, 1, 4.0),
    ]


def test_queries_do_not_grow_with_members(
    project: Project, manager: User, client: Client, django_assert_max_num_queries
) -> None:
    for _ in range(2):
        for _ in range(6):
            annotator = make_user(role=Role.ANNOTATOR, project=project)
            judge(comparison=make_comparison(project=project), annotator=annotator)
            inviting.create(
                project=project, role=Role.ANNOTATOR, note="", days=1, invited_by=annotator
            )
        with django_assert_max_num_queries(12):
            page(client, project)


def test_a_daily_limit_is_set_and_lifted(project: Project, manager: User, client: Client) -> None:
    ada = membership(make_user(role=Role.ANNOTATOR, project=project))
    for sent, kept in (("25", 25), ("0", 25), ("many", 25), ("", None)):
        act(client, project, "change_member", ada.pk, daily_limit=sent)
        ada.refresh_from_db()
        assert ada.daily_limit == kept


def test_whoever_is_removed_loses_what_they_hold_and_their_verdicts_stay(
    project: Project, manager: User, client: Client
) -> None:
    ada = make_user(role=Role.ANNOTATOR, project=project)
    for _ in range(2):
        make_comparison(project=project)
    elsewhere = make_comparison()
    Membership.objects.create(user=ada, project=elsewhere.project, role=Role.ANNOTATOR)
    judge(comparison=make_comparison(project=project), annotator=ada)
    assert next_assignment(project=project, annotator=ada)
    assert next_assignment(project=elsewhere.project, annotator=ada)
    html = act(client, project, "remove_member", ada.memberships.get(project=project).pk)
    assert "no longer in" in html
    assert "there is 1 verdict of somebody" in html
    assert Lease.objects.get().comparison == elsewhere
    assert Judgment.objects.counted().count() == 1
    client.force_login(ada)
    assert client.get(reverse("labeling:judge", args=[project.slug])).status_code == 404


def test_the_last_manager_stays_and_of_two_one_may_leave(
    project: Project, manager: User, client: Client
) -> None:
    make_user(role=Role.ANNOTATOR, project=project)
    assert "A project needs a manager" in act(
        client, project, "remove_member", membership(manager).pk
    )
    make_user(role=Role.MANAGER, project=project)
    assert "You have left" in act(client, project, "remove_member", membership(manager).pk)
    assert not manager.memberships.exists()


@pytest.mark.django_db(transaction=True)
def test_two_managers_who_remove_each_other_leave_one() -> None:
    project = make_project()
    both = [membership(make_user(role=Role.MANAGER, project=project)) for _ in range(2)]
    barrier = threading.Barrier(2)

    def remove(one: Membership) -> None:
        try:
            barrier.wait()
            staffing.remove(membership=one)
        except staffing.LastManager:
            pass
        finally:
            connections.close_all()

    threads = [threading.Thread(target=remove, args=(one,)) for one in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert project.memberships.count() == 1


def test_a_link_is_shown_once_works_and_can_be_revoked(
    project: Project, manager: User, client: Client
) -> None:
    html = act(client, project, "invite", role="annotator", note="Zoë <b>", days="3")
    (token,) = re.findall(r'value="http://testserver/invite/([\w-]{43})/"', html)
    invitation = inviting.find(token)
    assert (invitation.role, invitation.note) == (Role.ANNOTATOR, "Zoë <b>")
    again = page(client, project)
    assert token not in again
    assert "Zoë &lt;b&gt;" in again
    assert "no longer works" in act(client, project, "revoke_invitation", invitation.pk)
    assert "closed already" in act(client, project, "revoke_invitation", invitation.pk)
    with pytest.raises(inviting.NoLongerWorks):
        inviting.find(token)


@pytest.mark.parametrize(
    "wrong", [{"role": "owner"}, {"days": "31"}, {"days": ""}, {"note": "x" * 121}]
)
def test_an_invitation_that_cannot_be_is_not_made(
    wrong: dict[str, str], project: Project, manager: User, client: Client
) -> None:
    sent = {"role": "manager", "note": "", "days": "7"} | wrong
    answer = client.post(reverse("labeling:invite", args=[project.slug]), sent)
    assert answer.status_code == 422
    assert 'class="errorlist"' in answer.content.decode()
    assert not project.invitations.exists()


def test_nothing_of_another_project_can_be_touched(
    project: Project, manager: User, client: Client
) -> None:
    other = membership(make_user(role=Role.ANNOTATOR))
    invitation, _ = inviting.create(
        project=other.project, role=Role.ANNOTATOR, note="", days=7, invited_by=other.user
    )
    for route, pk in (
        ("change_member", other.pk),
        ("remove_member", other.pk),
        ("revoke_invitation", invitation.pk),
    ):
        answer = client.post(
            reverse(f"labeling:{route}", args=[project.slug, pk]), {"daily_limit": "1"}
        )
        assert answer.status_code == 404
    other.refresh_from_db()
    assert other.daily_limit is None


@pytest.mark.parametrize("role", [Role.ANNOTATOR, Role.CONSUMER])
def test_only_managers_see_people(role: Role, project: Project, client: Client) -> None:
    client.force_login(make_user(role=role, project=project))
    for route in ("people", "invite"):
        answer = client.get(reverse(f"labeling:{route}", args=[project.slug]))
        assert answer.status_code == 404
