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
from jobs.run_dir import RunDirError, read_json
from labeling.access import MANAGERS, project_for
from labeling.evaluation_standing import Standing, standing_of
from labeling.models import PolicyState
from labeling.overview import worker_silence
from labeling.requests import PageRequest
from training.curves import charts
from training.datareport import data_report
from training.events import Events, read_events
from training.filter_form import filters_in_words
from training.filters import REASONS
from training.guides import aim_of
from training.heldout import comparison
from training.metrics import read_metrics, seconds_left
from training.models import Round
from training.options import named_options
from training.programlog import log_tail
from training.services import cancel_round, resumable
from training.spec import Setting, in_lines
from training.writing import writing

PAGE = 25


def rounds(request: PageRequest, slug: str) -> HttpResponse:
    """The project's rounds, newest first."""
    project = project_for(request.user, slug, MANAGERS)
    found = project.rounds.select_related("start", "policy", "snapshot", "started_by")
    page = Paginator(found.order_by("-number"), PAGE).get_page(request.GET.get("page"))
    return render(request, "training/rounds.html", {"project": project, "page": page})


def round_page(request: PageRequest, slug: str, number: int) -> HttpResponse:
    """One round. While it is live its progress and curves are asked for every two seconds."""
    project = project_for(request.user, slug, MANAGERS)
    found = get_object_or_404(
        project.rounds.select_related(
            "start", "reference", "policy", "snapshot", "started_by", "resumed_by", "like"
        ),
        number=number,
    )
    if request.htmx and not found.live:
        return HttpResponseClientRefresh()  # it has just ended: the whole page says how
    context = {"project": project, "round": found, **_learning(found)}
    if request.htmx:
        return render(request, "training/round_live.html", context)
    return render(request, "training/round.html", context | _beside(found, context["events"]))


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
        "left_out": _left_out(round_, events),
        "job": job,
        "silence": worker_silence(queue.worker_seen()) if round_.live else "",
        "seconds_left": seconds_left(metrics) if round_.live else None,
        "took": _took(round_),
        "promotable": made is not None and made.state != PolicyState.SERVING,
        "serves": made is not None and made.state == PolicyState.SERVING,
    }


def _left_out(round_: Round, events: Events) -> list[tuple[int, str]]:
    """Pairs that are not trained on, with the reason; the trainer's report tells of tied ones."""
    counted = round_.snapshot.left_out if round_.snapshot else {}
    return [
        (number, _(REASONS.get(why, why)))
        for why, number in counted.items()
        if number and not (why == "tied" and events.report)
    ]


def _beside(round_: Round, events: Events) -> dict[str, Any]:
    """What the whole page tells besides, which does not change every two seconds."""
    return {
        "writing": writing(round_.results, events),
        "options": named_options(round_.options),
        "narrowed": filters_in_words(round_.project, round_.filters),
        "settings": _settings(Path(round_.run_dir)),
        "held_out": comparison(round_.results),
        "log": log_tail(Path(round_.run_dir)),
        "resumable": resumable(round_),
        "standing": _standing(round_),
    }


def _standing(round_: Round) -> Standing | None:
    """What people say of the policy, from its newest evaluation."""
    if round_.policy is None:
        return None
    found = round_.policy.evaluations.select_related("project", "policy", "against")
    newest = found.order_by("-id").first()
    return standing_of(newest) if newest else None


def _settings(run_dir: Path) -> list[Setting]:
    """The spec in the run directory; nothing where there is none that can be read."""
    try:
        spec = read_json(run_dir / "spec.json")
    except (OSError, RunDirError):
        return []
    return in_lines(spec) if isinstance(spec, dict) else []


def _took(round_: Round) -> float | None:
    if round_.started_at is None or round_.finished_at is None:
        return None
    return (round_.finished_at - round_.started_at).total_seconds()
