"""Who is told what happens. The only writer of subscriptions and deliveries.

An event's deliveries are written in the event's own transaction: they are there when, and only
when, what they tell of is true. The worker delivers them (labeling.delivery_tasks), each at least
once, under a key by which a receiver knows a message that it has had already.
"""

import secrets
import uuid
from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.core.validators import EmailValidator
from django.db import IntegrityError, transaction
from django.db.models import F
from django.utils import timezone
from django.utils.translation import gettext as _

from jobs import queue
from jobs.models import Schedule
from jobs.schedule import set_paused as pause_schedule
from jobs.schedule import set_schedule
from labeling import webhooks
from labeling.delivering import TEST, Tried, email_configured
from labeling.models import Delivery, Event, Project, Subscription, User

KIND = "labeling.deliver"
WATCH_KIND = "labeling.watch"
WATCH_EVERY = "*/10 * * * *"
WATCHED = (Event.QUEUE_LOW, Event.AGREEMENT_LOW)  # nothing happens when these become true
# Before the second try, the third, and so on; the first comes at once.
PAUSES = (
    timedelta(seconds=30),
    timedelta(minutes=2),
    timedelta(minutes=10),
    timedelta(hours=1),
)
TRIES = len(PAUSES) + 1
SECRET_BYTES = 32
MOST = 20  # subscriptions of a project: each makes a job of every event


class CannotSubscribe(Exception):
    """The address will not do; the message is for the user."""


def subscribe(
    *,
    project: Project,
    channel: Subscription.Channel,
    target: str,
    events: Collection[str],
    actor: User | None,
) -> tuple[Subscription, str]:
    """A subscription, and the secret that signs its messages ("" for e-mail).

    The secret is given away here and never again. CannotSubscribe says what is wrong.
    """
    _check_target(channel, target)
    secret = ""
    if channel == Subscription.Channel.WEBHOOK:
        secret = f"whsec_{secrets.token_urlsafe(SECRET_BYTES)}"
    with transaction.atomic():
        Project.objects.select_for_update(no_key=True).get(pk=project.pk)
        if project.subscriptions.count() >= MOST:
            words = _("A project has at most %(most)d subscriptions: remove one first.")
            raise CannotSubscribe(words % {"most": MOST})
        try:
            with transaction.atomic():
                made = Subscription.objects.create(
                    project=project,
                    channel=channel,
                    target=target,
                    secret=secret,
                    events=_known(events),
                    created_by=actor,
                )
        except IntegrityError:
            raise CannotSubscribe(_("This address is told already: change it below.")) from None
        _watch(project)
    return made, secret


@transaction.atomic
def change_events(*, subscription: Subscription, events: Collection[str]) -> None:
    """What the address is told from now on."""
    subscription.events = _known(events)
    subscription.save(update_fields=["events"])
    _watch(subscription.project)


@transaction.atomic
def set_paused(*, subscription: Subscription, paused: bool) -> None:
    """Pause or resume. What happens during a pause is not told later."""
    subscription.paused = paused
    subscription.save(update_fields=["paused"])
    _watch(subscription.project)


@transaction.atomic
def unsubscribe(*, subscription: Subscription) -> None:
    """Forget the address, its secret and its log."""
    project = subscription.project
    subscription.delete()
    _watch(project)


@transaction.atomic
def notify(*, project: Project, event: Event, facts: Mapping[str, Any], url: str = "") -> int:
    """Tell everybody who wants to know; returns how many. `url` is a path of this site.

    Belongs into the transaction that makes the event true.
    """
    wanting = [one for one in project.subscriptions.filter(paused=False) if event in one.events]
    if wanting:
        message = _message(project, event, facts, url)
        for subscription in wanting:
            _enqueue(_delivery(subscription, event, message))
    return len(wanting)


@transaction.atomic
def send_test(*, subscription: Subscription) -> Delivery:
    """A message that says nothing, to see whether it arrives."""
    words = _("This is a test: somebody asked for it on the project's notifications page.")
    made = _delivery(subscription, TEST, _message(subscription.project, TEST, {"note": words}, ""))
    _enqueue(made)
    return made


@transaction.atomic
def send_again(*, delivery: Delivery) -> bool:
    """The same message once more, under the same key; False where it is on its way already."""
    ended = Delivery.objects.filter(pk=delivery.pk).exclude(state=Delivery.State.WAITING)
    if not ended.update(state=Delivery.State.WAITING, problem=""):
        return False
    _enqueue(delivery)
    return True


def note(*, delivery: Delivery, tried: Tried, last: bool) -> None:
    """Write down what became of a try; `last` where no other follows."""
    state = Delivery.State.DELIVERED
    if tried.problem:
        state = Delivery.State.FAILED if last or tried.for_good else Delivery.State.WAITING
    Delivery.objects.filter(pk=delivery.pk).update(
        state=state,
        attempts=F("attempts") + 1,
        status=tried.status,
        problem=tried.problem,
        took_ms=tried.took_ms,
        tried_at=timezone.now(),
    )


def give_up(*, delivery_id: int, reason: str) -> None:
    """The job came to an end that was none of the message's."""
    waiting = Delivery.objects.filter(pk=delivery_id, state=Delivery.State.WAITING)
    waiting.update(state=Delivery.State.FAILED, problem=reason[:500])


def _check_target(channel: Subscription.Channel, target: str) -> None:
    if channel == Subscription.Channel.WEBHOOK:
        try:
            webhooks.check_url(target, allow_private=settings.WEBHOOKS_PRIVATE)
        except webhooks.CannotSend as reason:
            raise CannotSubscribe(str(reason)) from None
        return
    if not email_configured():
        raise CannotSubscribe(_("E-mail is not configured here: ask the operator."))
    try:
        EmailValidator()(target)
    except Exception:
        raise CannotSubscribe(_("Enter an e-mail address.")) from None


def _known(events: Collection[str]) -> list[str]:
    """In the order in which they are told of on the page."""
    return [event.value for event in Event if event.value in events]


def _watch(project: Project) -> None:
    """Have the worker look every ten minutes, for as long as somebody wants to know."""
    watched = set(WATCHED)
    subscriptions = project.subscriptions.filter(paused=False)
    wanted = any(watched.intersection(one.events) for one in subscriptions)
    name = f"{WATCH_KIND}:{project.pk}"
    existing = Schedule.objects.filter(name=name).first()
    if existing is None and wanted:
        set_schedule(
            name=name,
            kind=WATCH_KIND,
            payload={"project": project.pk},
            lane="light",
            cron=WATCH_EVERY,
            time_zone="UTC",
        )
    elif existing is not None and existing.paused == wanted:
        pause_schedule(existing, paused=not wanted)


def _message(project: Project, event: str, facts: Mapping[str, Any], url: str) -> dict[str, Any]:
    return {
        "event": str(event),
        "project": {"slug": project.slug, "name": project.name},
        "at": timezone.now().isoformat(timespec="seconds"),
        "facts": dict(facts),
        "url": f"{settings.SITE_URL}{url}" if url else "",
    }


def _delivery(subscription: Subscription, event: str, message: dict[str, Any]) -> Delivery:
    return Delivery.objects.create(
        subscription=subscription, key=uuid.uuid4(), event=event, payload=message
    )


def _enqueue(delivery: Delivery) -> None:
    queue.enqueue(kind=KIND, payload={"delivery": delivery.pk}, lane="light", max_attempts=TRIES)
