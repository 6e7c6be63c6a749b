"""Where a person lands after signing in."""

from typing import Any

from django.db.models import Count
from django.http import HttpResponse
from django.shortcuts import redirect, render

from labeling.access import memberships_of
from labeling.models import Comparison, Judgment, Membership, Prompt
from labeling.requests import PageRequest
from labeling.templatetags.prefloop import project_home


def home(request: PageRequest) -> HttpResponse:
    """The user's projects; whoever has only one goes straight to it."""
    memberships = memberships_of(request.user)
    if len(memberships) == 1 and (front := project_home(memberships[0])) != request.path:
        return redirect(front)
    return render(request, "labeling/home.html", {"rows": _rows(memberships)})


def _rows(memberships: list[Membership]) -> list[dict[str, Any]]:
    """Each membership with the counts of its project, in three queries for all of them."""
    projects = [membership.project_id for membership in memberships]
    current = Judgment.objects.current().filter(comparison__project__in=projects)
    open_ones = Comparison.objects.filter(project__in=projects, state=Comparison.State.OPEN)
    prompts = Prompt.objects.filter(project__in=projects)
    counts = {
        "judgments": dict(current.values_list("comparison__project").annotate(Count("pk"))),
        "open": dict(open_ones.values_list("project").annotate(Count("pk"))),
        "prompts": dict(prompts.values_list("project").annotate(Count("pk"))),
    }
    return [
        {"membership": one} | {name: by.get(one.project_id, 0) for name, by in counts.items()}
        for one in memberships
    ]
