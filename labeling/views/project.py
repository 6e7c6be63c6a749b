"""The loop: a project's front page."""

from django.http import HttpResponse
from django.shortcuts import redirect, render

from labeling import pairing_worth
from labeling.access import EVERYONE, project_for
from labeling.models import Role
from labeling.overview import overview
from labeling.requests import PageRequest

ELSEWHERE = {Role.ANNOTATOR: "labeling:judge", Role.CONSUMER: "labeling:preferences"}


def project(request: PageRequest, slug: str) -> HttpResponse:
    """The loop with live counts, for managers; others go to their own front page."""
    found = project_for(request.user, slug, EVERYONE)
    role: Role = found.role  # type: ignore[attr-defined]
    if role in ELSEWHERE:
        return redirect(ELSEWHERE[role], slug=slug)
    context: dict[str, object] = {"project": found, "loop": overview(found)}
    if request.htmx:
        return render(request, "labeling/project_loop.html", context)
    return render(
        request, "labeling/project.html", context | {"worth": pairing_worth.report(found)}
    )
