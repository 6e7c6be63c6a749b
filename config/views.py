"""Pages that belong to no app: errors and health."""

from django.contrib.auth.decorators import login_not_required
from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render


@login_not_required
def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    """A form that is too old or from elsewhere. What was typed is still in the browser."""
    return render(request, "403_csrf.html", {"reason": reason}, status=403)


@login_not_required
def healthz(request: HttpRequest) -> HttpResponse:
    """The word "ok" while the database answers; an error (500) otherwise."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return HttpResponse("ok\n", content_type="text/plain")
