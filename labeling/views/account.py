"""Signing in and out."""

from typing import Any

from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.views import LoginView, LogoutView
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.decorators import method_decorator
from django_htmx.http import HttpResponseClientRedirect
from django_htmx.middleware import HtmxDetails

from labeling.views.joining import REFERRER_POLICY


@method_decorator(login_not_required, name="dispatch")
class SignIn(LoginView):
    """The sign-in page. A fragment request that was sent here reloads the whole page instead."""

    redirect_authenticated_user = True

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        htmx = HtmxDetails(request)
        if htmx:
            return HttpResponseClientRedirect(htmx.current_url_abs_path or "/")
        response = super().dispatch(request, *args, **kwargs)
        response["Referrer-Policy"] = REFERRER_POLICY  # `next` may name an invitation
        return response


@method_decorator(login_not_required, name="dispatch")
class SignOut(LogoutView):
    """Ends the session; POST only. Harmless where it has ended already."""
