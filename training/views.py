"""Rounds: the list, starting one, and one round while it learns and after."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.contrib import messages
from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
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
from training.forms import RoundForm, named_options
from training.heldout import comparison
from training.metrics import read_metrics, read_tail, seconds_left
from training.models import LIVE_ROUND_STATES, Round
from training.readiness import count_pairs, readiness
from training.services import NotReady, cancel_round, default_options, start_round

PAGE = 25
DROPPED = {
    "tied": "only tied votes",
    "empty": "an empty response",
    "identical": "identical responses",
    "too_long": "longer than the most tokens",
    "template": "the chat template failed",
}
PHASES = {
    "start": "Reading the preferences",
    "data_report": "Loading the policy and scoring responses under the reference",
    "resume": "Going on from the last checkpoint",
    "stopped": "Stopped; waiting to go on",
}


@dataclass(frozen=True, kw_only=True)
class Events:
    """What the trainer said of a round besides its metrics."""

    report: dict[str, Any]
    warnings: list[str]
    phase: str
    checkpoint: int | None

    def count(self, *path: str) -> int:
        """A count of the data report, 0 where it tells none."""
        value: Any = self.report
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return value if isinstance(value, int) else 0

    @property
    def facts(self) -> list[tuple[str, int, str]]:
        """The data report in words: what, how many, of what."""
        if not self.report:
            return []
        return [
            ("Trained on", self.count("pairs", "train"), "pairs"),
            ("Held out", self.count("pairs", "held_out"), "pairs"),
            ("Evenly split", self.count("evenly_split"), "of these pairs"),
            ("Longest", self.count("longest"), "tokens"),
        ]

    @property
    def dropped(self) -> list[tuple[str, int]]:
        """Pairs left out: the reason in words, and how many; most first."""
        reasons = self.report.get("dropped") or {}
        named = [(DROPPED.get(one, one), self.count("dropped", one)) for one in reasons]
        return sorted(named, key=lambda one: -one[1])


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
    form = RoundForm(request.POST or None, defaults=defaults)
    status = 200
    if request.method == "POST":
        status = 422
        if form.is_valid():
            try:
                return _started(request, project, form)
            except NotReady:
                status = 409  # the page below says what is in the way
    pairs = count_pairs(project)
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
        reference=Round.Reference(form.cleaned_data["reference"]),
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
        messages.info(request, f"Round {number} was asked to stop. Its last checkpoint is kept.")
    else:
        messages.warning(request, f"Round {number} had ended already: {found.state}.")
    return redirect("training:round", slug=slug, number=number)


def _learning(round_: Round) -> dict[str, Any]:
    """What the run directory and the job say of a round beyond its row."""
    run_dir = Path(round_.run_dir)
    metrics = read_metrics(run_dir)
    events = read_events(run_dir)
    job = Job.objects.filter(pk=round_.job_id).first() if round_.live and round_.job_id else None
    made = round_.policy
    return {
        "metrics": metrics,
        "charts": charts(metrics),
        "events": events,
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


def read_events(run_dir: Path) -> Events:
    """The newest data report, this run's warnings, and what the trainer is doing before step 1."""
    report: dict[str, Any] = {}
    warnings: dict[str, None] = {}  # in order, each once: a resumed run says them again
    phase = ""
    checkpoint = None
    for event in read_tail(run_dir / "events.jsonl"):
        kind = event.get("kind")
        if kind == "data_report":
            report = event
        elif kind == "warning":
            warnings[str(event.get("message", ""))] = None
        elif kind == "checkpoint":
            checkpoint = event.get("step")
        phase = PHASES.get(str(kind), phase)
    return Events(report=report, warnings=list(warnings), phase=phase, checkpoint=checkpoint)
