"""Pages that belong to no app: errors and health."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    """A form that is too old or from elsewhere. What was typed is still in the browser."""
    return render(request, "403_csrf.html", {"reason": reason}, status=403)
