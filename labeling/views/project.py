"""The loop: a project's front page."""

from django.http import HttpResponse
from django.shortcuts import redirect, render

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
    template = "labeling/project_loop.html" if request.htmx else "labeling/project.html"
    return render(request, template, {"project": found, "loop": overview(found)})
