"""Who is told: real HTTP to a receiver that checks signatures by itself, and what may go wrong."""

import logging
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from django.core import mail
from django.db import transaction
from django.db.models import F
from django.urls import reverse
from django.utils import timezone

from jobs import queue, worker
from jobs.models import Job, JobState, Schedule
from jobs.running import RunningJob
from labeling import watching, webhooks
from labeling.models import (
    Delivery,
    Event,
    Figure,
    PolicyState,
    Preference,
    Project,
    Role,
    Subscription,
)
from labeling.services import notifying
from labeling.services.notifying import (
    CannotSubscribe,
    change_events,
    notify,
    send_again,
    send_test,
    set_paused,
    subscribe,
    unsubscribe,
)
from tests.builders import ROOT, judge, make_comparison, make_policy, make_project, make_user
from tests.labeling.receiver import Receiver, receiving, taking_mail

pytestmark = pytest.mark.django_db
WEBHOOK, EMAIL = Subscription.Channel.WEBHOOK, Subscription.Channel.EMAIL
WAITING, DELIVERED, FAILED = Delivery.State.WAITING, Delivery.State.DELIVERED, Delivery.State.FAILED


@pytest.fixture(autouse=True)
def _private(settings) -> None:
    settings.WEBHOOKS_PRIVATE = True  # the receiver is on this machine


@pytest.fixture(scope="module")
def server() -> Iterator[Receiver]:
    with receiving() as server:
        yield server


@pytest.fixture
def receiver(server: Receiver) -> Receiver:
    server.taken, server.answers, server.says, server.headers = [], [], b"", {}
    return server


@pytest.fixture
def project() -> Project:
    return make_project(slug="kitchen", name="Kitchen")


def told(project: Project, target: str, *events: str) -> tuple[Subscription, str]:
    wanted = events or ("round_finished",)
    return subscribe(project=project, channel=WEBHOOK, target=target, events=wanted, actor=None)


def finished(project: Project, **facts: Any) -> int:
    return notify(
        project=project, event=Event.ROUND_FINISHED, facts=facts or {"round": 3}, url="/p/x/"
    )


def run(job: Job) -> None:
    """What a worker does, on the one connection, and in the one transaction, of this test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "close_old_connections", lambda: None)
        worker._execute(job, RunningJob(job, threading.Event()))


def work() -> None:
    """All there is to do, however long a worker would have to wait."""
    while True:
        Job.objects.live().update(run_after=timezone.now() - timedelta(hours=2))
        job = queue.claim(lanes=["light"], worker="here")
        if job is None:
            return
        run(job)


def work_once() -> Job:
    job = queue.claim(lanes=["light"], worker="here")
    assert job is not None
    run(job)
    job.refresh_from_db()
    return job


# Delivery


def test_a_message_arrives_signed_so_that_a_stranger_can_verify_it(
    project, receiver, settings
) -> None:
    settings.SITE_URL = "https://prefloop.example"
    subscription, secret = told(project, receiver.url)

    assert finished(project, round=3, policy="Round 3 – süß") == 1
    work()

    assert receiver.genuine(secret)
    assert not receiver.genuine(secret + "x")
    [message] = receiver.messages
    assert message["event"] == "round_finished"
    assert message["project"] == {"slug": "kitchen", "name": "Kitchen"}
    assert message["facts"] == {"round": 3, "policy": "Round 3 – süß"}
    assert message["url"] == "https://prefloop.example/p/x/"
    [(headers, _)] = receiver.taken
    delivery = Delivery.objects.get()
    assert headers["Prefloop-Event"] == "round_finished"
    assert headers["Prefloop-Delivery"] == str(delivery.key)
    assert abs(int(headers["Prefloop-Timestamp"]) - timezone.now().timestamp()) < 60
    assert (delivery.state, delivery.status, delivery.attempts) == (DELIVERED, 204, 1)
    assert delivery.took_ms is not None
    assert delivery.subscription == subscription


def test_only_who_asked_for_the_event_is_told_and_nobody_while_paused(project, receiver) -> None:
    told(project, receiver.url)
    told(project, receiver.url + "&other", "promoted")
    paused, _ = told(project, receiver.url + "&paused", "round_finished", "promoted")
    told(make_project(), receiver.url)
    set_paused(subscription=paused, paused=True)

    assert finished(project) == 1
    assert notify(project=project, event=Event.PROMOTED, facts={}) == 1
    set_paused(subscription=paused, paused=False)
    assert finished(project) == 2


def test_an_event_that_is_rolled_back_is_told_to_nobody(project, receiver) -> None:
    told(project, receiver.url)
    with transaction.atomic():
        finished(project)
        transaction.set_rollback(True)
    work()
    assert not receiver.taken
    assert not Delivery.objects.exists()


def test_it_is_tried_again_under_the_same_key_after_longer_and_longer_pauses(
    project, receiver
) -> None:
    _, secret = told(project, receiver.url)
    receiver.answers, receiver.says = [503, 500, 429], b"<b>busy</b>\n now"
    finished(project)

    job = work_once()
    delivery = Delivery.objects.get()
    assert job.state == JobState.QUEUED
    assert timedelta(seconds=25) < job.run_after - timezone.now() <= timedelta(seconds=30)
    assert (delivery.state, delivery.status, delivery.attempts) == (WAITING, 503, 1)
    assert delivery.problem == "It answered with an error: 503 <b>busy</b> now"
    work()

    delivery.refresh_from_db()
    assert (delivery.state, delivery.status, delivery.attempts) == (DELIVERED, 204, 4)
    assert delivery.problem == ""
    assert len(receiver.taken) == 4
    assert set(receiver.keys) == {str(delivery.key)}
    assert len({body for _, body in receiver.taken}) == 1
    assert receiver.genuine(secret)
    assert [pause.total_seconds() for pause in notifying.PAUSES] == [30, 120, 600, 3600]


def test_after_five_tries_it_has_failed_and_can_be_sent_again(project, receiver) -> None:
    told(project, receiver.url)
    receiver.answers, receiver.says = [500] * 5, b"x" * 5000
    finished(project)
    work()

    delivery = Delivery.objects.get()
    assert (delivery.state, delivery.attempts, len(receiver.taken)) == (FAILED, 5, 5)
    assert delivery.problem.startswith("It answered with an error: 500 xxx")
    assert len(delivery.problem) < 260, "no more of an answer than 200 characters is kept"

    assert send_again(delivery=delivery)
    assert not send_again(delivery=delivery), "it is on its way already"
    work()
    delivery.refresh_from_db()
    assert (delivery.state, delivery.attempts, len(set(receiver.keys))) == (DELIVERED, 6, 1)


def test_a_redirect_is_not_followed(project, receiver) -> None:
    told(project, receiver.url)
    receiver.answers, receiver.headers = [307], {"Location": receiver.url + "&elsewhere"}
    finished(project)
    work()

    delivery = Delivery.objects.get()
    assert (delivery.state, delivery.status, len(receiver.taken)) == (FAILED, 307, 1)
    assert "points to another address" in delivery.problem


def test_nobody_there_is_said_in_words(project) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # not listening
        told(project, f"http://127.0.0.1:{taken.getsockname()[1]}/")
        finished(project)
        work()
    delivery = Delivery.objects.get()
    assert (delivery.state, delivery.attempts, delivery.status) == (FAILED, 5, None)
    assert "Nothing answers there" in delivery.problem


def test_who_answers_byte_by_byte_does_not_hold_the_worker(monkeypatch, project) -> None:
    monkeypatch.setattr(webhooks, "WHOLE_S", 0.3)
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as slow:

        def drip() -> None:
            caller, _ = slow.accept()
            with caller:
                while not stop.wait(0.05):
                    try:
                        caller.sendall(b"H")
                    except OSError:
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            port = slow.getsockname()[1]
            with pytest.raises(webhooks.CannotSend, match="longer than"):
                webhooks.post(f"http://127.0.0.1:{port}/", b"{}", {}, allow_private=True)
        finally:
            stop.set()
            thread.join()


# Where messages may not go


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "192.168.0.1",
        "172.16.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",  # noqa: S104
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fec0::1",
        "fd00:ec2::254",
        "::ffff:127.0.0.1",
        "::ffff:a00:1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
    ],
)
def test_addresses_that_are_not_the_internet_s(address: str) -> None:
    assert not webhooks.is_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    ["93.184.215.14", "2606:2800:21f:cb07::1", "::ffff:8.8.8.8", "64:ff9b::808:808"],
)
def test_addresses_of_the_internet(address: str) -> None:
    assert webhooks.is_public(ip_address(address))


def test_a_private_address_is_refused_when_it_is_entered_and_when_it_is_connected_to(
    project, receiver, settings, monkeypatch
) -> None:
    told(project, receiver.url)
    settings.WEBHOOKS_PRIVATE = False
    for target in (receiver.url, "http://localhost:1/", "http://[::1]/", "http://a.localhost./"):
        with pytest.raises(CannotSubscribe, match="private"):
            told(project, target)
    finished(project)
    work()
    assert (Delivery.objects.get().state, receiver.taken) == (FAILED, [])

    port = receiver.server_address[1]
    row = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
    public = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.215.14", port))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_named: [public, row])
    told(project, f"http://inside.example:{port}/", "promoted")
    notify(project=project, event=Event.PROMOTED, facts={})
    work()
    delivery = Delivery.objects.latest("pk")
    assert (delivery.state, delivery.attempts, receiver.taken) == (FAILED, 1, [])
    assert "inside.example is a private address" in delivery.problem


def test_the_connection_goes_to_the_address_that_was_looked_at(monkeypatch, receiver) -> None:
    port = receiver.server_address[1]
    row = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
    asked = []

    def resolve(host: Any, *_args: Any, **_named: Any) -> list[Any]:
        asked.append(host)
        return [(*row[:4], (host, port))] if host == "127.0.0.1" else [row]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    answer = webhooks.post(f"http://name.example:{port}/", b"{}", {}, allow_private=True)
    assert answer.status == 204
    assert asked == ["name.example", "127.0.0.1"], "the name is asked for once"
    assert receiver.taken[0][0]["Host"] == f"name.example:{port}"


def test_https_is_checked_against_the_name(monkeypatch) -> None:
    row = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))
    resolve = socket.getaddrinfo

    def local(host: Any, *rest: Any, **named: Any) -> list[Any]:
        return [row] if host.endswith(".test") else resolve(host, *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", local)
    certificate = Path(__file__).with_name("hook_test.pem")  # made for tests, until 2120
    with receiving() as receiver:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        receiver.socket = context.wrap_socket(receiver.socket, server_side=True)
        port = receiver.server_address[1]
        with pytest.raises(webhooks.CannotSend, match="certificate cannot be trusted"):
            webhooks.post(f"https://hook.test:{port}/", b"{}", {}, allow_private=True)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        answer = webhooks.post(f"https://hook.test:{port}/a", b"{}", {}, allow_private=True)
        assert answer.status == 204
        assert receiver.taken[0][0]["Host"] == f"hook.test:{port}"
        with pytest.raises(webhooks.CannotSend, match="certificate cannot be trusted"):
            webhooks.post(f"https://other.test:{port}/", b"{}", {}, allow_private=True)
    assert len(receiver.taken) == 1


@pytest.mark.parametrize(
    "target",
    [
        "ftp://example.org/",
        "example.org/hook",
        "http://",
        "https://ada:pw@example.org/",
        "http://example.org:no/",
        "http://exa mple.org/",
        "http://example.org/\r\nX-Evil: 1",
        "file:///etc/passwd",
        "http://[::1/",
    ],
)
def test_what_is_no_address_is_refused(project, target) -> None:
    with pytest.raises(CannotSubscribe) as refusal:
        told(project, target)
    assert "pw" not in str(refusal.value)


def test_an_address_is_told_once_and_a_project_has_so_many(project, monkeypatch) -> None:
    told(project, "https://example.org/")
    with pytest.raises(CannotSubscribe, match="already"):
        told(project, "https://example.org/")
    monkeypatch.setattr(notifying, "MOST", 1)
    with pytest.raises(CannotSubscribe, match="at most 1"):
        told(project, "https://example.com/")


# The secret


def test_the_secret_is_shown_once_and_is_in_no_page_log_or_job(
    project, receiver, client, caplog
) -> None:
    caplog.set_level(logging.DEBUG)
    client.force_login(make_user(role=Role.MANAGER, project=project))
    address = reverse("labeling:notifications", args=["kitchen"])
    sent = {"channel": "webhook", "target": receiver.url, "events": ["round_finished"]}
    answer = client.post(reverse("labeling:subscribe", args=["kitchen"]), sent)
    secret = Subscription.objects.get().secret
    assert secret in answer.content.decode()

    receiver.answers = [500] * 5
    finished(project)
    work()
    assert secret not in client.get(address).content.decode()
    assert secret not in caplog.text
    assert secret not in str(list(Job.objects.values()))
    assert secret not in str(list(Delivery.objects.values()))
    assert secret not in repr(Subscription.objects.get())


# E-mail


@pytest.fixture
def _mail_server(settings) -> None:
    settings.EMAIL_HOST, settings.DEFAULT_FROM_EMAIL = "mail.example", "prefloop@example.org"


def by_mail(project: Project, target: str = "dana@example.org") -> Subscription:
    events = ["round_failed"]
    return subscribe(project=project, channel=EMAIL, target=target, events=events, actor=None)[0]


def test_without_a_mail_server_nobody_subscribes_by_mail(project, client) -> None:
    with pytest.raises(CannotSubscribe, match="not configured"):
        by_mail(project)
    client.force_login(make_user(role=Role.MANAGER, project=project))
    page = client.get(reverse("labeling:notifications", args=["kitchen"])).content.decode()
    assert "E-mail is not configured here" in page


@pytest.mark.usefixtures("_mail_server")
def test_a_mail_is_plain_text_with_a_link(project, settings) -> None:
    settings.SITE_URL = "https://prefloop.example"
    project.name = "Kitchen\nBcc: all@example.org"
    project.save()
    by_mail(project)
    notify(project=project, event=Event.ROUND_FAILED, facts={"round": 4}, url="/p/kitchen/")
    work()
    [message] = mail.outbox
    assert message.to == ["dana@example.org"]
    assert message.subject == "Kitchen Bcc: all@example.org: A round failed"
    assert "Round: 4" in message.body
    assert "https://prefloop.example/p/kitchen/" in message.body
    assert Delivery.objects.get().state == DELIVERED


@pytest.mark.usefixtures("_mail_server")
def test_a_mail_server_that_is_away_is_said_in_words(project, settings) -> None:
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", 1
    with pytest.raises(CannotSubscribe, match="e-mail address"):
        by_mail(project, "nobody")
    by_mail(project)
    notify(project=project, event=Event.ROUND_FAILED, facts={})
    work()
    assert Delivery.objects.get().attempts == 5
    assert "could not be reached" in Delivery.objects.get().problem


@pytest.mark.usefixtures("_mail_server")
def test_a_mail_goes_through_a_real_mail_server(project, settings) -> None:
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    with taking_mail() as (address, said):
        settings.EMAIL_HOST, settings.EMAIL_PORT = address
        by_mail(project)
        notify(project=project, event=Event.ROUND_FAILED, facts={"round": 4})
        work()
    delivery = Delivery.objects.get()
    assert (delivery.state, delivery.problem) == (DELIVERED, "")
    assert "rcpt TO:<dana@example.org>" in said
    assert "Subject: Kitchen: A round failed" in said
    assert f"Message-ID: <{delivery.key}@prefloop>" in said


# Workers


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_two_workers_deliver_each_message_once(project, receiver, site_env) -> None:
    _, secret = told(project, receiver.url)
    for number in range(12):
        finished(project, round=number)
    env = site_env | {"PREFLOOP_WEBHOOKS_PRIVATE": "true"}
    command = [sys.executable, "manage.py", "worker", "--until-idle", "--lanes", "light"]
    both = [
        subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [one.communicate(timeout=60)[1] for one in both]
    assert [one.returncode for one in both] == [0, 0], said
    assert sorted(message["facts"]["round"] for message in receiver.messages) == list(range(12))
    assert len(set(receiver.keys)) == 12
    assert set(Delivery.objects.values_list("state", "attempts")) == {(DELIVERED, 1)}
    assert receiver.genuine(secret)
    assert secret not in "".join(said)


def test_a_worker_that_died_before_it_noted_the_answer_sends_the_same_key_again(
    project, receiver, monkeypatch
) -> None:
    told(project, receiver.url)
    finished(project)

    class Died(BaseException):
        """As kill -9: nothing is caught, nothing is written."""

    def die(**_named: Any) -> None:
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(notifying, "note", die)
        with pytest.raises(Died):
            work_once()
    Job.objects.update(lease_expires_at=timezone.now() - timedelta(seconds=1))
    work()
    assert len(receiver.taken) == 2
    assert len(set(receiver.keys)) == 1
    assert Delivery.objects.get().state == DELIVERED


def test_a_message_whose_worker_dies_each_time_has_failed(project, receiver) -> None:
    told(project, receiver.url)
    finished(project)
    gone = timezone.now() - timedelta(seconds=1)
    job = queue.claim(lanes=["light"], worker="here")
    assert job is not None
    Job.objects.filter(pk=job.pk).update(attempts=F("max_attempts"), lease_expires_at=gone)
    assert queue.claim(lanes=["light"], worker="here") is None
    assert Delivery.objects.get().state == FAILED
    assert "Given up" in Delivery.objects.get().problem


def test_a_pause_stops_what_waits_and_what_is_gone_is_not_sent(project, receiver) -> None:
    subscription, _ = told(project, receiver.url)
    finished(project)
    set_paused(subscription=subscription, paused=True)
    work()
    assert (Delivery.objects.get().state, receiver.taken) == (FAILED, [])
    assert "paused" in Delivery.objects.get().problem
    set_paused(subscription=subscription, paused=False)
    send_test(subscription=subscription)
    unsubscribe(subscription=subscription)
    work()
    assert not receiver.taken
    assert not Job.objects.live().exists()


# What is watched


def low(project: Project) -> list[Event]:
    return watching.tell(project, watching.look(project))


def test_a_queue_that_runs_low_is_told_once_per_crossing(project, receiver, monkeypatch) -> None:
    monkeypatch.setattr(watching, "FEW_COMPARISONS", 3)
    told(project, receiver.url, "queue_low")
    make_comparison(project=project)
    assert low(project) == [], "no policy serves: nobody waits for verdicts"
    make_policy(project=project, state=PolicyState.SERVING)
    assert low(project) == [Event.QUEUE_LOW]
    assert low(project) == []
    more = [make_comparison(project=project) for _ in range(2)]
    assert low(project) == []
    judge(comparison=more[0])
    assert low(project) == [Event.QUEUE_LOW]
    work()
    assert receiver.messages[0]["facts"] == {"open_comparisons": 1, "threshold": 3}


def test_annotators_who_disagree_are_told_of_once_per_crossing(project, receiver) -> None:
    told(project, receiver.url, "agreement_low")
    for number in range(watching.LEAST_PAIRS):
        assert low(project) == []
        comparison = make_comparison(project=project, overlap=2)
        judge(comparison=comparison, tiers=[[0], [1]])
        judge(comparison=comparison, tiers=[[0], [1]] if number < 10 else [[1], [0]])
    assert low(project) == [Event.AGREEMENT_LOW]
    assert low(project) == []
    Preference.objects.filter(votes_for=1).update(votes_for=2, votes_against=0)
    assert low(project) == []
    Preference.objects.update(votes_for=1, votes_against=1)
    assert low(project) == [Event.AGREEMENT_LOW]
    assert Figure.objects.get(name="watch.agreement_low").value is True


def test_the_worker_watches_for_as_long_as_somebody_wants_to_know(project, receiver) -> None:
    subscription, _ = told(project, receiver.url)
    assert not Schedule.objects.exists()
    change_events(subscription=subscription, events=["queue_low", "nonsense"])
    assert subscription.events == ["queue_low"]
    assert not Schedule.objects.get().paused
    set_paused(subscription=subscription, paused=True)
    assert Schedule.objects.get().paused
    set_paused(subscription=subscription, paused=False)
    make_policy(project=project, state=PolicyState.SERVING)
    payload = Schedule.objects.get().payload
    queue.enqueue(kind=notifying.WATCH_KIND, payload=payload, lane="light")
    work()
    assert [message["event"] for message in receiver.messages] == ["queue_low"]
    unsubscribe(subscription=subscription)
    assert Schedule.objects.get().paused
