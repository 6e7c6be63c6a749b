"""The request that every view behind the sign-in gets, for type checkers."""

from django.http import HttpRequest
from django_htmx.middleware import HtmxDetails

from labeling.models import User


def number_in(text: str | None) -> int | None:
    """An id from an address or a form; None for what is none, or none that a database holds."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 16 else None


class PageRequest(HttpRequest):
    """A signed-in person's request. `htmx` is true where a fragment is wanted."""

    user: User
    htmx: HtmxDetails
