"""Putting a round together and starting it; going on with one that ended too early."""

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST

from labeling.access import MANAGERS, project_for
from labeling.models import Project
from labeling.requests import PageRequest
from training.models import LIVE_ROUND_STATES, Reference
from training.presets import presets
from training.services import NotReady, resume_round, start_round
from training.starting import Asked, asked, outlook


def new_round(request: PageRequest, slug: str) -> HttpResponse:
    """What stands in the way of a round, its data, its options, and its start."""
    project = project_for(request.user, slug, MANAGERS)
    if request.method != "POST":
        return _page(request, asked(project, request.GET))
    wanted = asked(project, request.GET, request.POST)
    if not wanted.valid:
        return _page(request, wanted, status=422)
    try:
        round_ = start_round(
            project=project,
            actor=request.user,
            options=wanted.chosen,
            reference=Reference(wanted.options.cleaned_data["reference"]),
            filters=wanted.wanted,
            after=wanted.success,
            like=wanted.like,
        )
    except NotReady:
        return _page(request, wanted, status=409)  # the page says what is in the way
    return redirect("training:round", slug=slug, number=round_.number)


@require_POST
def preview_round(request: PageRequest, slug: str) -> HttpResponse:
    """What a round as it is filled in would come to. Nothing is started."""
    project = project_for(request.user, slug, MANAGERS)
    wanted = asked(project, request.GET, request.POST)
    if not request.htmx:
        return _page(request, wanted, status=200 if wanted.valid else 422)
    context = {"project": project, "asked": wanted, "outlook": outlook(wanted)}
    return render(request, "training/new_round_outlook.html", context | _live(project))


@require_POST
def resume(request: PageRequest, slug: str, number: int) -> HttpResponse:
    """Have a round that failed or was cancelled go on."""
    project = project_for(request.user, slug, MANAGERS)
    found = get_object_or_404(project.rounds, number=number)
    try:
        resume_round(round_=found, actor=request.user)
    except NotReady as reason:
        messages.warning(request, str(reason))
    else:
        words = _("Round %(number)s goes on where it stopped.")
        messages.info(request, words % {"number": number})
    return redirect("training:round", slug=slug, number=number)


def _page(request: PageRequest, wanted: Asked, status: int = 200) -> HttpResponse:
    context = {
        "project": wanted.project,
        "asked": wanted,
        "presets": presets(),
        "outlook": outlook(wanted),
        "refused": status == 409,
    }
    context |= _live(wanted.project)
    return render(request, "training/new_round.html", context, status=status)


def _live(project: Project) -> dict[str, object]:
    return {"live": project.rounds.filter(state__in=LIVE_ROUND_STATES).first()}
