"""Invitations: who gets in by a link, once, and what a link that lets nobody in tells."""

import hashlib
import logging
import threading
from datetime import timedelta

import pytest
from django.db import connection, connections
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from config.logs import LineFormatter
from labeling.models import Invitation, Membership, Project, Role, User
from labeling.services import inviting
from labeling.services.inviting import AlreadyMember, NameTaken, NoLongerWorks
from tests.builders import PASSWORD, make_project, make_user

pytestmark = pytest.mark.django_db
ACCOUNT = {"username": "grace", "password1": PASSWORD, "password2": PASSWORD}


def invited(
    *, project: Project | None = None, role: Role = Role.ANNOTATOR, days: int = 7
) -> tuple[Invitation, str]:
    project = project or make_project()
    manager = make_user(role=Role.MANAGER, project=project)
    return inviting.create(project=project, role=role, note="", days=days, invited_by=manager)


def address(token: str) -> str:
    return reverse("join", args=[token])


def closed(how: str) -> str:
    """A token that no longer works."""
    invitation, token = invited()
    if how == "used":
        inviting.accept(token=token, user=make_user())
    elif how == "revoked":
        inviting.revoke(invitation=invitation)
    elif how == "expired":
        Invitation.objects.update(expires_at=timezone.now())
    return token if how != "unknown" else "A" * 43


CLOSED = ("used", "revoked", "expired", "unknown")


def test_only_the_digest_of_a_long_random_token_is_stored() -> None:
    invitation, token = invited()
    _, other = invited()
    assert len(token) == 43
    assert token != other
    assert invitation.digest == hashlib.sha256(token.encode()).hexdigest()
    assert token not in str(Invitation.objects.values().get(pk=invitation.pk))


@pytest.mark.parametrize("days", [0, 31, -1])
def test_an_invitation_is_open_for_a_day_to_a_month(days: int) -> None:
    with pytest.raises(ValueError, match="1 to 30 days"):
        invited(days=days)
    invitation, _ = invited(days=30)
    assert timedelta(days=29) < invitation.expires_at - timezone.now() < timedelta(days=31)


def test_accepting_makes_a_member_of_the_role_and_uses_the_invitation_up() -> None:
    invitation, token = invited(role=Role.CONSUMER)
    user = make_user()
    membership = inviting.accept(token=token, user=user)
    assert (membership.role, membership.project) == (Role.CONSUMER, invitation.project)
    invitation.refresh_from_db()
    assert invitation.used_by == user
    with pytest.raises(NoLongerWorks):
        inviting.accept(token=token, user=make_user())


@pytest.mark.parametrize("how", CLOSED)
def test_no_closed_invitation_lets_anybody_in(how: str) -> None:
    token = closed(how)
    members = Membership.objects.count()
    with pytest.raises(NoLongerWorks):
        inviting.accept(token=token, user=make_user())
    with pytest.raises(NoLongerWorks):
        inviting.accept_as_new(token=token, username="grace", password=PASSWORD)
    assert Membership.objects.count() == members
    assert not User.objects.filter(username="grace").exists()


def test_a_member_stays_what_they_are_and_the_invitation_stays_open() -> None:
    invitation, token = invited(role=Role.ANNOTATOR)
    manager = make_user(role=Role.MANAGER, project=invitation.project)
    with pytest.raises(AlreadyMember):
        inviting.accept(token=token, user=manager)
    assert manager.memberships.get().role == Role.MANAGER
    assert inviting.accept(token=token, user=make_user())


def test_a_name_that_was_taken_meanwhile_leaves_the_invitation_open() -> None:
    _, token = invited()
    make_user(username="grace")
    with pytest.raises(NameTaken):
        inviting.accept_as_new(token=token, username="grace", password=PASSWORD)
    assert inviting.accept_as_new(token=token, username="hopper", password=PASSWORD)


def test_revoking_twice_or_after_use_changes_nothing() -> None:
    invitation, token = invited()
    inviting.accept(token=token, user=make_user())
    assert not inviting.revoke(invitation=invitation)
    invitation, _ = invited()
    assert inviting.revoke(invitation=invitation)
    assert not inviting.revoke(invitation=invitation)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("attempt", range(3))
def test_of_many_who_open_one_link_at_once_one_gets_in(attempt: int) -> None:
    _, token = invited()
    before = Membership.objects.count()
    people = [make_user() for _ in range(5)]
    strangers = [f"stranger-{number}" for number in range(5)]
    barrier = threading.Barrier(len(people) + len(strangers))
    got: list[Membership] = []
    lost: list[str] = []

    def open_link(who: User | str) -> None:
        try:
            barrier.wait()
            if isinstance(who, User):
                got.append(inviting.accept(token=token, user=who))
            else:
                got.append(inviting.accept_as_new(token=token, username=who, password=PASSWORD))
        except NoLongerWorks:
            lost.append(str(who))
        finally:
            connections.close_all()

    threads = [threading.Thread(target=open_link, args=(who,)) for who in (*people, *strangers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(lost)) == (1, 9), connection.vendor
    assert Membership.objects.count() == before + 1
    made = User.objects.filter(username__startswith="stranger-")
    assert list(made) == [one.user for one in got if str(one.user).startswith("stranger-")]


def test_a_stranger_makes_an_account_and_is_in(client: Client) -> None:
    invitation, token = invited()
    page = client.get(address(token)).content.decode()
    assert str(invitation.project) in page
    assert "Annotator" in page
    answer = client.post(address(token), ACCOUNT)
    assert answer["Location"] == reverse("labeling:judge", args=[invitation.project.slug])
    grace = User.objects.get(username="grace")
    assert client.session["_auth_user_id"] == str(grace.pk)
    assert grace.check_password(PASSWORD)
    assert grace.memberships.get().role == Role.ANNOTATOR


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"password1": "short", "password2": "short"}, "at least 12 characters"),
        ({"password2": "another one altogether"}, "two password fields"),
        ({"password1": "qwerty123456", "password2": "qwerty123456"}, "too common"),
        ({"username": ""}, "This field is required"),
        ({"username": "Taken"}, "already exists"),
        ({"username": "with spaces"}, "valid username"),
    ],
)
def test_an_account_that_cannot_be_is_told_why_and_nothing_is_made(
    changed: dict[str, str], said: str, client: Client
) -> None:
    invitation, token = invited()
    make_user(username="taken")
    people = User.objects.count()
    answer = client.post(address(token), ACCOUNT | changed)
    assert answer.status_code == 422
    assert said in answer.content.decode()
    assert PASSWORD not in answer.content.decode()
    assert User.objects.count() == people
    assert Invitation.objects.open().filter(pk=invitation.pk).exists()


def test_a_signed_in_person_joins_with_one_button(client: Client) -> None:
    invitation, token = invited()
    user = make_user()
    client.force_login(user)
    assert "password" not in client.get(address(token)).content.decode()
    client.post(address(token))
    assert user.memberships.get().project == invitation.project


def test_a_member_is_told_so_and_takes_nothing_from_others(client: Client) -> None:
    invitation, token = invited()
    client.force_login(make_user(role=Role.MANAGER, project=invitation.project))
    for answer in (client.get(address(token)), client.post(address(token))):
        assert answer.status_code == 200
        assert "You are in this project already" in answer.content.decode()
    assert inviting.find(token) == invitation


@pytest.mark.parametrize("method", ["get", "post"])
def test_closed_and_unknown_links_cannot_be_told_apart(method: str, client: Client) -> None:
    answers = [getattr(client, method)(address(closed(how)), ACCOUNT) for how in CLOSED]
    assert [answer.status_code for answer in answers] == [404] * 4
    plain = {answer.content.replace(_nonce(answer), b"") for answer in answers}
    assert len(plain) == 1
    assert b"This link no longer works" in plain.pop()


def _nonce(answer: object) -> bytes:
    """The nonce of the page's scripts: the one thing that differs from page to page."""
    policy = answer["Content-Security-Policy"]  # type: ignore[index]
    return policy.split("'nonce-")[1].split("'")[0].encode()


def test_the_join_form_is_protected_against_other_sites() -> None:
    _, token = invited()
    assert Client(enforce_csrf_checks=True).post(address(token), ACCOUNT).status_code == 403


def test_the_address_goes_to_no_other_page_and_into_no_log(
    client: Client, capfd: pytest.CaptureFixture[str]
) -> None:
    _, token = invited()
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter("%(message)s"))
    logger = logging.getLogger("django")
    logger.addHandler(handler)
    try:
        answer = client.post(address(token), {"username": "x"})
        Client(enforce_csrf_checks=True).post(address(token), ACCOUNT)
        client.get(f"{address(token)}nothing/")
        logger.warning("GET /sign-in/?next=%%2Finvite%%2F%s%%2F", token)
    finally:
        logger.removeHandler(handler)
    assert answer["Referrer-Policy"] == "strict-origin"
    assert client.get(reverse("login"))["Referrer-Policy"] == "strict-origin"
    logged = capfd.readouterr().err
    assert logged.count("invite/***") + logged.count("invite%2F***") == 4
    assert token not in logged


def test_no_record_of_who_signed_in_where_holds_a_token(client: Client) -> None:
    _, token = invited()
    make_user(username="ada")
    query = {"next": address(token)}
    wrong = {"username": "ada", "password": "wrong", **query}
    client.post(reverse("login", query=query), wrong)
    client.post(address(token), ACCOUNT)
    for table, path in (("axes_accessattempt", "/sign-in/"), ("axes_accesslog", "/invite/-/")):
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT * FROM {table}")  # noqa: S608
            rows = str(cursor.fetchall())
        assert path in rows
        assert token not in rows
