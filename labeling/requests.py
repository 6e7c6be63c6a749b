"""The request that every view behind the sign-in gets, for type checkers."""

from django.http import HttpRequest
from django_htmx.middleware import HtmxDetails

from labeling.models import User


class PageRequest(HttpRequest):
    """A signed-in person's request. `htmx` is true where a fragment is wanted."""

    user: User
    htmx: HtmxDetails
