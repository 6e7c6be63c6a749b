"""One try to bring a message to its address, by HTTP or by mail, and what is said of it."""

import hashlib
import hmac
import json
import smtplib
import time
from dataclasses import dataclass

from django.conf import settings
from django.core.mail import EmailMessage
from django.utils import translation
from django.utils.translation import gettext as _

from labeling import webhooks
from labeling.models import Delivery, Event, Subscription

TEST = "test"  # an event that nobody can subscribe to


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What became of one try; `problem` is "" where the message arrived."""

    problem: str
    status: int | None = None
    took_ms: int = 0
    for_good: bool = False


def email_configured() -> bool:
    """Whether the operator has told how mail is sent."""
    return bool(settings.EMAIL_HOST and settings.DEFAULT_FROM_EMAIL)


def event_name(event: str) -> str:
    """An event in words, the test's among them."""
    return _("A test") if event == TEST else str(Event(event).label)


def attempt(delivery: Delivery) -> Tried:
    """Send it now. Takes seconds: never to be called in a transaction."""
    subscription = delivery.subscription
    if subscription.paused:
        words = _("The subscription was paused. Resume it and send this again.")
        return Tried(problem=words, for_good=True)
    started = time.monotonic()
    if subscription.channel == Subscription.Channel.EMAIL:
        problem, status, for_good = _mail(delivery), None, False
    else:
        problem, status, for_good = _post(delivery)
    took = round(1000 * (time.monotonic() - started))
    return Tried(problem=problem[:500], status=status, took_ms=took, for_good=for_good)


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """What stands in Prefloop-Signature: HMAC-SHA256 over "timestamp.body"."""
    signed = hmac.new(secret.encode(), f"{timestamp}.".encode() + body, hashlib.sha256)
    return f"v1={signed.hexdigest()}"


def _post(delivery: Delivery) -> tuple[str, int | None, bool]:
    """The problem in words, "" without one; the status; whether trying again is no use."""
    body = json.dumps(delivery.payload, sort_keys=True, ensure_ascii=False).encode()
    timestamp = str(int(time.time()))
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "Prefloop",
        "Prefloop-Event": delivery.event,
        "Prefloop-Delivery": str(delivery.key),
        "Prefloop-Timestamp": timestamp,
        "Prefloop-Signature": signature(delivery.subscription.secret, timestamp, body),
    }
    try:
        answer = webhooks.post(
            delivery.subscription.target, body, headers, allow_private=settings.WEBHOOKS_PRIVATE
        )
    except webhooks.CannotSend as reason:
        return str(reason), None, reason.for_good
    if 200 <= answer.status < 300:
        return "", answer.status, False
    if 300 <= answer.status < 400:
        words = _("It points to another address, which is not followed: subscribe that one.")
        return words, answer.status, True
    words = _("It answered with an error: %(status)d %(text)s")
    said = {"status": answer.status, "text": " ".join(answer.text.split())}
    return (words % said).strip(), answer.status, False


def _mail(delivery: Delivery) -> str:
    """The problem in words, "" where the mail server took the message."""
    if not email_configured():
        return _("E-mail is not configured here: ask the operator.")
    with translation.override(settings.LANGUAGE_CODE):
        subject, text = _as_mail(delivery)
    mail = EmailMessage(
        subject=" ".join(subject.split()),
        body=text,
        to=[delivery.subscription.target],
        headers={"Message-ID": f"<{delivery.key}@prefloop>", "Auto-Submitted": "auto-generated"},
    )
    try:
        mail.send()
    except smtplib.SMTPRecipientsRefused:
        return _("The mail server does not take mail for this address.")
    except smtplib.SMTPAuthenticationError:
        return _("The mail server refused the site's own name or password: ask the operator.")
    except (OSError, ValueError):  # SMTPException is an OSError; its text may hold the password
        return _("The mail server could not be reached, or did not take the message.")
    return ""


def _as_mail(delivery: Delivery) -> tuple[str, str]:
    told = delivery.payload
    subject = f"{told['project']['name']}: {event_name(delivery.event)}"
    facts = [
        f"{key.replace('_', ' ').capitalize()}: {value}" for key, value in told["facts"].items()
    ]
    link = told["url"]
    if link.startswith("/"):
        link = _("On the site, under %(path)s") % {"path": link}
    why = _("You get this because a manager of the project entered this address.")
    return subject, "\n\n".join(filter(None, [subject, "\n".join(facts), link, why])) + "\n"
