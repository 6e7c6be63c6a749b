"""The page on which several rounds are compared."""

from django.http import HttpResponse
from django.shortcuts import render

from labeling.access import MANAGERS, project_for
from labeling.requests import PageRequest, number_in
from training.comparing import MOST_ROUNDS, compare_rounds


def compare(request: PageRequest, slug: str) -> HttpResponse:
    """The rounds that the address names, oldest first; numbers that are none are passed over."""
    project = project_for(request.user, slug, MANAGERS)
    given = map(number_in, request.GET.getlist("rounds")[:100])
    wanted = {number for number in given if number is not None}
    rounds = (
        project.rounds.filter(number__in=wanted)
        .select_related("project", "start", "reference", "policy", "snapshot")
        .order_by("number")
    )
    found = list(rounds[: MOST_ROUNDS + 1])
    context = {
        "project": project,
        "compared": compare_rounds(found) if len(found) > 1 else None,
        "most": MOST_ROUNDS,
        "too_many": len(found) > MOST_ROUNDS,
    }
    return render(request, "training/compare.html", context)
