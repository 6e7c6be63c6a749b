"""What holds for every response and Django has no setting for: its headers, its language."""

from collections.abc import Callable

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.utils import translation
from django.utils.cache import patch_vary_headers

PERMISSIONS = "camera=(), geolocation=(), microphone=(), payment=(), usb=()"

Handler = Callable[[HttpRequest], HttpResponse]


class ResponseHeadersMiddleware:
    """Pages of signed-in people are never stored by a browser or a proxy."""

    def __init__(self, get_response: Handler) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        response.setdefault("Cache-Control", "no-store")
        response.setdefault("Permissions-Policy", PERMISSIONS)
        response.setdefault("Cross-Origin-Resource-Policy", "same-origin")
        patch_vary_headers(response, ["HX-Request", "Cookie"])
        return response


class LanguageMiddleware:
    """The page's language: the person's own, else what a stranger chose, else the browser's.

    A stranger chooses with `?language=`, and the choice is kept in a cookie. A person's own is
    kept with them (labeling.views.own_settings) and goes wherever they sign in.
    """

    def __init__(self, get_response: Handler) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        chosen = _chosen_now(request)
        with translation.override(chosen or _language_of(request)):
            response = self.get_response(request)
            response.setdefault("Content-Language", translation.get_language())
        patch_vary_headers(response, ["Accept-Language"])
        if chosen:
            response.set_cookie(
                settings.LANGUAGE_COOKIE_NAME,
                chosen,
                max_age=settings.LANGUAGE_COOKIE_AGE,
                secure=settings.LANGUAGE_COOKIE_SECURE,
                httponly=settings.LANGUAGE_COOKIE_HTTPONLY,
                samesite="Lax",
            )
        return response


def _chosen_now(request: HttpRequest) -> str | None:
    chosen = request.GET.get("language")
    known = chosen in dict(settings.LANGUAGES)
    return chosen if known and not request.user.is_authenticated else None


def _language_of(request: HttpRequest) -> str:
    own = getattr(request.user, "language", "")
    if own in dict(settings.LANGUAGES):
        return str(own)
    return translation.get_language_from_request(request)
