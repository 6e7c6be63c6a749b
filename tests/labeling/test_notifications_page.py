"""The page on which managers say who is told, and see what became of each message."""

from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from labeling.models import Delivery, Event, Project, Role, Subscription
from labeling.services.notifying import notify, send_test, subscribe
from labeling.views.notifications import PAGE
from tests.builders import make_project, make_user

pytestmark = pytest.mark.django_db


@pytest.fixture
def project() -> Project:
    return make_project(slug="kitchen")


@pytest.fixture
def manager(project: Project, client: Client) -> Client:
    client.force_login(make_user(role=Role.MANAGER, project=project))
    return client


def told(project: Project, target: str = "https://example.org/hook") -> Subscription:
    channel, events = Subscription.Channel.WEBHOOK, ["round_finished"]
    return subscribe(project=project, channel=channel, target=target, events=events, actor=None)[0]


def at(route: str, **parts: int) -> str:
    return reverse(f"labeling:{route}", kwargs={"slug": "kitchen", **parts})


def text_of(answer: Any) -> str:
    return str(answer.content.decode())


def page(manager: Client, query: str = "") -> str:
    return text_of(manager.get(at("notifications") + query))


def test_nothing_yet_says_what_to_do(manager) -> None:
    text = page(manager)
    assert "Nobody is told anything yet." in text
    assert "Nothing was sent yet." in text


def test_an_address_is_added_changed_paused_and_removed(project, manager) -> None:
    sent = {"channel": "webhook", "target": "https://example.org/hook", "events": ["promoted"]}
    text = text_of(manager.post(at("subscribe"), sent))
    subscription = Subscription.objects.get()
    assert subscription.secret in text
    assert subscription.created_by is not None
    assert subscription.secret not in page(manager)

    number = {"subscription": subscription.pk}
    manager.post(at("change_subscription", **number), {"events": ["queue_low", "round_failed"]})
    subscription.refresh_from_db()
    assert subscription.events == ["round_failed", "queue_low"]
    answer = manager.post(at("change_subscription", **number), {"events": []}, follow=True)
    assert "Nothing was changed" in text_of(answer)

    manager.post(at("pause_subscription", **number), {"paused": "yes"})
    assert "Paused" in page(manager)
    answer = manager.post(at("test_subscription", **number), follow=True)
    assert "resume it first" in text_of(answer)
    assert not Delivery.objects.exists()
    manager.post(at("pause_subscription", **number), {"paused": "no"})
    manager.post(at("test_subscription", **number))
    assert Delivery.objects.get().event == "test"
    assert "A test" in page(manager)
    manager.post(at("unsubscribe", **number))
    assert not Subscription.objects.exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target": "http://127.0.0.1/"}, "private address"),
        ({"target": "ftp://x/"}, "begins with https://"),
        ({"target": ""}, "required"),
        ({"channel": "email", "target": "a@b.org"}, "not configured"),
        ({"events": []}, "Choose at least one event."),
        ({"events": ["nonsense"]}, "not one of the available choices"),
    ],
)
def test_what_is_wrong_is_said_at_its_field(manager, changes, said) -> None:
    sent = {"channel": "webhook", "target": "https://example.org/", "events": ["promoted"]}
    answer = manager.post(at("subscribe"), sent | changes)
    assert answer.status_code == 422
    assert said in text_of(answer)
    assert not Subscription.objects.exists()


def test_the_log_tells_what_became_of_a_message_and_sends_it_again(project, manager) -> None:
    delivery = send_test(subscription=told(project))
    again = at("send_again", delivery=delivery.pk)
    assert "Waiting" in page(manager)
    assert "on its way already" in text_of(manager.post(again, follow=True))
    Delivery.objects.update(
        state="failed", status=503, took_ms=1234, attempts=5, problem="<b>It broke</b>"
    )
    text = page(manager)
    for words in ("Failed", "503", "1\u2009234 ms", "&lt;b&gt;It broke&lt;/b&gt;"):
        assert words in text
    manager.post(again)
    assert Delivery.objects.get().state == "waiting"


def test_another_project_s_subscriptions_and_messages_are_not_there(project, manager) -> None:
    other = told(make_project())
    delivery = send_test(subscription=other)
    assert "example.org/hook<" not in page(manager)
    for route in ("change_subscription", "pause_subscription", "unsubscribe", "test_subscription"):
        assert manager.post(at(route, subscription=other.pk)).status_code == 404
    assert manager.post(at("send_again", delivery=delivery.pk)).status_code == 404


def test_the_log_is_paged_and_costs_no_more_queries_for_more_of_it(project, manager) -> None:
    told(project)
    notify(project=project, event=Event.ROUND_FINISHED, facts={})

    def queries() -> int:
        with CaptureQueriesContext(
            connection,
        ) as made:
            page(manager)
        assert not any("secret" in one["sql"] for one in made.captured_queries)
        return len(made)

    few = queries()
    told(project, "https://example.org/second")
    for _ in range(PAGE):
        notify(project=project, event=Event.ROUND_FINISHED, facts={})
    assert queries() == few
    assert page(manager).count("Send again") == 0, "all wait"
    assert "Next" in page(manager)
    assert "Previous" in page(manager, "?page=2")


@pytest.mark.parametrize("role", [Role.ANNOTATOR, Role.CONSUMER])
def test_only_managers_open_it(project, client, role) -> None:
    client.force_login(make_user(role=role, project=project))
    assert client.get(at("notifications")).status_code == 404
