"""Verdicts on their way: cut lines, closed pages, ended sessions, leases that ran out, two tabs."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from django.conf import settings
from django.contrib.sessions.models import Session
from django.test import Client

from labeling.models import Judgment, Lease, Project, Rationale, Role, User
from tests.builders import PASSWORD, judge, make_comparison, make_project, make_user
from tests.e2e.conftest import sync_api
from tests.e2e.test_judging import JUDGE, press

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]
expect = sync_api.expect


@pytest.fixture
def project() -> Project:
    return make_project(slug="kitchen", name="Kitchen helper")


@pytest.fixture
def ada(project: Project) -> User:
    return make_user(role=Role.ANNOTATOR, project=project, username="ada")


def fetched_ahead(page: Any) -> None:
    """Wait until the page holds the comparison after the one that it shows."""
    with page.expect_response(re.compile("/next/")) as asked:
        page.reload()
    asked.value.finished()
    page.evaluate("new Promise((resolve) => setTimeout(resolve, 50))")


def sign_in(page: Any, user: User) -> None:
    """Another session for the page's browser."""
    client = Client()
    client.force_login(user)
    value = client.cookies[settings.SESSION_COOKIE_NAME].value
    page.context.add_cookies(
        [{"name": "sid", "value": value, "url": page.url.removesuffix("healthz")}]
    )


def test_a_cut_line_stops_nobody_and_every_verdict_arrives_once_and_in_order(
    project: Project, ada: User, open_page: Callable[..., Any]
) -> None:
    for _ in range(3):
        make_comparison(project=project)
    page = open_page(ada, JUDGE)
    fetched_ahead(page)
    page.context.set_offline(True)
    press(page, "1")  # the next one is there all the same
    expect(page.get_by_text("1 verdict waits for the network")).to_be_visible()
    page.keyboard.press("6")
    expect(page.get_by_text("2 verdicts wait for the network")).to_be_visible()
    expect(page.get_by_text("One moment")).to_be_visible()
    assert not Judgment.objects.exists()
    page.context.set_offline(False)
    expect(page.get_by_text("Saved: B better.")).to_be_visible()
    expect(page.get_by_text("for the network")).to_be_hidden()
    assert [one.strength for one in Judgment.objects.order_by("pk")] == [3, 2]

    answered: list[int] = []

    def lose_the_first_answer(route: Any) -> None:
        if route.request.method == "POST":
            answered.append(route.fetch().status)
        if len(answered) == 1:
            route.abort()
        else:
            route.continue_()

    page.route(f"**{JUDGE}", lose_the_first_answer)
    press(page, "4")
    expect(page.get_by_text("Saved: Tie.")).to_be_visible()
    assert answered[0] == 200
    assert Judgment.objects.count() == 3


def test_what_was_judged_offline_arrives_from_a_page_that_is_opened_later(
    project: Project, ada: User, open_page: Callable[..., Any]
) -> None:
    for _ in range(2):
        make_comparison(project=project, overlap=2)
    page = open_page(ada, "/healthz")
    closed = page.context.new_page()
    closed.goto(JUDGE)
    fetched_ahead(closed)
    page.context.set_offline(True)
    press(closed, "1")
    closed.close()
    page.context.set_offline(False)
    sign_in(page, make_user(role=Role.ANNOTATOR, project=project, username="bob"))
    page.goto(JUDGE)  # somebody else's: nothing of hers is sent
    expect(page.locator("#judge-counts")).to_have_text(re.compile("0 today"))
    assert not Judgment.objects.exists()
    page.goto("/healthz")
    sign_in(page, ada)
    page.goto(JUDGE)
    expect(page.locator("#judge-counts")).to_have_text(re.compile("1 today.*1 left"))
    expect(page.locator(".place")).to_have_count(2)
    assert Judgment.objects.get().annotator == ada
    assert page.evaluate("Object.keys(localStorage).filter((name) => /outbox/.test(name))") == []


def test_an_ended_session_keeps_the_verdict_until_its_owner_is_back(
    project: Project, ada: User, open_page: Callable[..., Any]
) -> None:
    for _ in range(2):
        make_comparison(project=project)
    page = open_page(ada, JUDGE)
    fetched_ahead(page)
    Session.objects.all().delete()
    press(page, "1")
    expect(page.get_by_text("You are signed out.")).to_be_visible()
    with page.expect_popup() as popup:
        page.get_by_role("link", name="Sign in in a new tab").click()
    elsewhere = popup.value
    elsewhere.get_by_label("Name").fill("ada")
    elsewhere.get_by_label("Password", exact=True).fill(PASSWORD)
    elsewhere.get_by_role("button", name="Sign in").click()
    expect(elsewhere.locator("#judge-counts")).to_have_text(re.compile("1 today"))
    elsewhere.close()
    expect(page.get_by_text("You are signed out.")).to_be_hidden(timeout=20_000)
    press(page, "7")  # with the token that signing in again made stale
    expect(page.get_by_text("Saved: B much.")).to_be_visible()
    assert Judgment.objects.count() == 2


def test_a_verdict_after_the_lease_ran_out_is_kept_and_told(
    project: Project, ada: User, open_page: Callable[..., Any]
) -> None:
    comparison = make_comparison(project=project)
    page = open_page(ada, JUDGE)
    fetched_ahead(page)
    Lease.objects.update(expires_at="2020-01-01T00:00Z")
    judge(comparison=comparison)
    page.keyboard.press("1")
    expect(page.get_by_text("Kept as surplus: A much.")).to_be_visible()
    assert Judgment.objects.get(annotator=ada).surplus


def test_a_double_press_the_back_button_and_a_second_tab_are_harmless(
    project: Project, ada: User, open_page: Callable[..., Any]
) -> None:
    for _ in range(4):
        make_comparison(project=project)
    page = open_page(ada, "/")
    page.goto(JUDGE)
    fetched_ahead(page)
    page.locator(".step").first.dblclick()
    expect(page.get_by_text("Saved: A much.")).to_be_visible()
    page.go_back()
    page.go_forward()
    counts = page.locator("#judge-counts")
    expect(counts).to_have_text(re.compile("1 today.*3 left"))
    assert Judgment.objects.count() == 1

    second = page.context.new_page()
    second.goto(JUDGE)
    same = page.locator("#comparison").get_attribute("data-lease")
    expect(second.locator("#comparison")).to_have_attribute("data-lease", same)
    press(page, "2")  # either tab may be the one that sends it
    expect(counts).to_have_text(re.compile("2 today.*2 left"))
    press(second, "7")
    expect(second.get_by_text("already dealt with")).to_be_visible()
    expect(second.locator("#judge-counts")).to_have_text(re.compile("2 today.*2 left"))
    second.close()
    assert [one.strength for one in Judgment.objects.order_by("pk")] == [3, 2]


def test_a_verdict_that_the_server_refuses_comes_back_as_it_was_sent(
    project: Project, ada: User, open_page: Callable[..., Any]
) -> None:
    for _ in range(2):
        make_comparison(project=project)
    page = open_page(ada, JUDGE)
    fetched_ahead(page)
    lease = page.locator("#comparison").get_attribute("data-lease")
    project.rationale = Rationale.REQUIRED  # a manager's change that the page knows nothing of
    project.save()
    page.keyboard.press("3")
    expect(page.get_by_role("alert").get_by_text("Write down why.")).to_be_visible()
    expect(page.locator("#comparison")).to_have_attribute("data-lease", lease)
    expect(page.get_by_role("button", name="A slightly")).to_have_attribute("aria-pressed", "true")
    assert not Judgment.objects.exists()
    page.keyboard.press("r")
    page.keyboard.type("It is shorter.")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_text("Saved: A slightly.")).to_be_visible()
    assert Judgment.objects.get().rationale == "It is shorter."


def test_what_is_filled_in_outlives_the_page(
    project: Project, ada: User, open_page: Callable[..., Any]
) -> None:
    project.rationale = Rationale.REQUIRED
    project.save()
    make_comparison(project=project)
    page = open_page(ada, JUDGE)
    page.keyboard.press("6")
    page.keyboard.press("r")
    page.keyboard.press("r")  # the second one is text
    page.wait_for_timeout(400)
    page.reload()  # before the draft is due: it goes along with the page
    expect(page.locator("[name=rationale]")).to_have_value("r")
    expect(page.get_by_role("button", name="B better")).to_have_attribute("aria-pressed", "true")
    page.locator("[name=rationale]").press("Control+Enter")
    expect(page.get_by_text("Saved: B better.")).to_be_visible()
    judgment = Judgment.objects.get()
    assert judgment.rationale == "r"
    assert judgment.active_ms >= 400
