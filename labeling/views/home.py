"""Where a person lands after signing in."""

from typing import Any

from django.db.models import Count
from django.http import HttpResponse
from django.shortcuts import redirect, render

from labeling.access import memberships_of
from labeling.models import Comparison, Membership, Prompt, Role
from labeling.overview.lines import at_rest, lines_of
from labeling.requests import PageRequest
from labeling.templatetags.prefloop import project_home


def home(request: PageRequest) -> HttpResponse:
    """The user's projects; whoever has only one goes straight to it."""
    memberships = memberships_of(request.user)
    if len(memberships) == 1 and (front := project_home(memberships[0])) != request.path:
        return redirect(front)
    return render(request, "labeling/home.html", {"rows": _rows(memberships)})


def _rows(memberships: list[Membership]) -> list[dict[str, Any]]:
    """Each membership with what its project holds, and how it stands for who manages it.

    As many queries for all projects as for one; none reads more than an index of what it counts.
    """
    projects = [membership.project_id for membership in memberships]
    open_ones = Comparison.objects.filter(project__in=projects, state=Comparison.State.OPEN)
    prompts = Prompt.objects.filter(project__in=projects)
    opened = dict(open_ones.order_by().values_list("project").annotate(Count("pk")))
    asked = dict(prompts.order_by().values_list("project").annotate(Count("pk")))
    managed = [one.project_id for one in memberships if one.role == Role.MANAGER]
    lines = lines_of(managed)
    rows = []
    for one in memberships:
        counts = {
            "prompts": asked.get(one.project_id, 0),
            "open_ones": opened.get(one.project_id, 0),
        }
        line = lines.get(one.project_id) or at_rest(**counts)
        rows.append(
            {"membership": one, "line": line if one.role == Role.MANAGER else None} | counts
        )
    return rows
