"""Rounds: the list, starting one, and one round while it learns and after."""

from pathlib import Path
from typing import Any

from django.contrib import messages
from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST
from django_htmx.http import HttpResponseClientRefresh

from jobs import queue
from jobs.models import Job
from labeling.access import MANAGERS, project_for
from labeling.models import PolicyState, Project
from labeling.overview import worker_silence
from labeling.requests import PageRequest
from labeling.services.promoting import serving_policy
from training.curves import charts
from training.datareport import data_report
from training.events import read_events
from training.forms import RoundForm
from training.guides import aim_of
from training.heldout import comparison
from training.metrics import read_metrics, seconds_left
from training.models import LIVE_ROUND_STATES, Reference, Round
from training.options import named_options
from training.readiness import count_pairs, readiness
from training.services import NotReady, cancel_round, default_options, start_round
from training.writing import writing

PAGE = 25


def rounds(request: PageRequest, slug: str) -> HttpResponse:
    """The project's rounds, newest first."""
    project = project_for(request.user, slug, MANAGERS)
    found = project.rounds.select_related("start", "policy", "snapshot", "started_by")
    page = Paginator(found.order_by("-number"), PAGE).get_page(request.GET.get("page"))
    return render(request, "training/rounds.html", {"project": project, "page": page})


def new_round(request: PageRequest, slug: str) -> HttpResponse:
    """What stands in the way of a round, its options, and its start."""
    project = project_for(request.user, slug, MANAGERS)
    serving = serving_policy(project)
    defaults = default_options(serving) if serving else {}
    pairs = count_pairs(project)
    form = RoundForm(request.POST or None, defaults=defaults, held_out=pairs.held_out)
    status = 200
    if request.method == "POST":
        status = 422
        if form.is_valid():
            try:
                return _started(request, project, form)
            except NotReady:
                status = 409  # the page below says what is in the way
    problems = readiness(project, pairs)
    context = {
        "project": project,
        "form": form,
        "pairs": pairs,
        "problems": problems,
        "blocked": any(problem.blocks for problem in problems),
        "serving": serving,
        "live": project.rounds.filter(state__in=LIVE_ROUND_STATES).first(),
        "refused": status == 409,
    }
    return render(request, "training/new_round.html", context, status=status)


def _started(request: PageRequest, project: Project, form: RoundForm) -> HttpResponse:
    round_ = start_round(
        project=project,
        actor=request.user,
        options=form.options,
        reference=Reference(form.cleaned_data["reference"]),
    )
    return redirect("training:round", slug=project.slug, number=round_.number)


def round_page(request: PageRequest, slug: str, number: int) -> HttpResponse:
    """One round. While it is live its progress and curves are asked for every two seconds."""
    project = project_for(request.user, slug, MANAGERS)
    found = get_object_or_404(
        project.rounds.select_related("start", "reference", "policy", "snapshot", "started_by"),
        number=number,
    )
    if request.htmx and not found.live:
        return HttpResponseClientRefresh()  # it has just ended: the whole page says how
    context = {"project": project, "round": found, **_learning(found)}
    name = "training/round_live.html" if request.htmx else "training/round.html"
    return render(request, name, context)


@require_POST
def cancel(request: PageRequest, slug: str, number: int) -> HttpResponse:
    """Ask for a round to stop."""
    project = project_for(request.user, slug, MANAGERS)
    found = get_object_or_404(project.rounds, number=number)
    if found.live:
        cancel_round(round_=found)
        words = _("Round %(number)s was asked to stop. Its last checkpoint is kept.")
        messages.info(request, words % {"number": number})
    else:
        ended = {"number": number, "state": found.get_state_display().lower()}
        messages.warning(request, _("Round %(number)s had ended already: %(state)s.") % ended)
    return redirect("training:round", slug=slug, number=number)


def _learning(round_: Round) -> dict[str, Any]:
    """What the run directory and the job say of a round beyond its row."""
    run_dir = Path(round_.run_dir)
    metrics = read_metrics(run_dir)
    events = read_events(run_dir)
    aim = aim_of(round_.options)
    job = Job.objects.filter(pk=round_.job_id).first() if round_.live and round_.job_id else None
    made = round_.policy
    return {
        "metrics": metrics,
        "charts": charts(metrics, aim),
        "events": events,
        "data": data_report(events, round_.project),
        "writing": writing(round_.results, events),
        "job": job,
        "silence": worker_silence(queue.worker_seen()) if round_.live else "",
        "seconds_left": seconds_left(metrics) if round_.live else None,
        "options": named_options(round_.options),
        "took": _took(round_),
        "held_out": comparison(round_.results),
        "promotable": made is not None and made.state != PolicyState.SERVING,
        "serves": made is not None and made.state == PolicyState.SERVING,
    }


def _took(round_: Round) -> float | None:
    if round_.started_at is None or round_.finished_at is None:
        return None
    return (round_.finished_at - round_.started_at).total_seconds()
