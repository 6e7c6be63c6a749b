"""Merging an adapter, and what is on the disk: pages of policies that need the trainer."""

from typing import Any

from django.conf import settings
from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST

from jobs import queue
from jobs.models import Job, JobState
from labeling.access import MANAGERS, project_for
from labeling.models import Policy, Project
from labeling.overview import worker_silence
from labeling.requests import PageRequest
from training import cleaning, merging
from training.disk import limit_bytes, room, usage_of


def merge_policy(request: PageRequest, slug: str, policy: int) -> HttpResponse:
    """What merging does, how far it is, and what came of it; polled while it is under way."""
    project = project_for(request.user, slug, MANAGERS)
    wanted = _policy(project, policy)
    if request.method == "POST":
        try:
            merging.start_merge(policy=wanted, actor=request.user)
        except merging.CannotMerge as error:
            messages.warning(request, str(error))
        return redirect("training:merge_policy", slug=slug, policy=policy)
    job = merging.last_merge(wanted)
    live = job is not None and job.live
    context = {
        "project": project,
        "policy": wanted,
        "job": job,
        "live": live,
        "merged": merging.merged_of(wanted),
        "silence": worker_silence(queue.worker_seen()) if live else "",
    }
    name = "merge_state.html" if request.htmx else "merge.html"
    return render(request, f"training/{name}", context)


@require_POST
def cancel_merge(request: PageRequest, slug: str, policy: int) -> HttpResponse:
    """Stop merging; nothing of it is kept."""
    project = project_for(request.user, slug, MANAGERS)
    merging.cancel_merge(policy=_policy(project, policy))
    return redirect("training:merge_policy", slug=slug, policy=policy)


def disk(request: PageRequest, slug: str) -> HttpResponse:
    """What the project takes on the disk, what is left there, and what a clean-up freed."""
    project = project_for(request.user, slug, MANAGERS)
    job = cleaning.last_cleaning(project)
    live = job is not None and job.live
    kept = usage_of(project)
    usage = kept.value
    limit = limit_bytes()
    context = {
        "project": project,
        "usage": usage,
        "parts": _parts(usage),
        "as_of": kept,
        "room": room(),
        "limit": limit,
        "over": max(0, usage["site"] - limit) if limit else 0,
        "names": _names(project, usage),
        "job": job,
        "live": live,
        "freed": _freed(job),
        "silence": worker_silence(queue.worker_seen()) if live else "",
        "runs": settings.RUNS_DIR,
    }
    name = "disk_state.html" if request.htmx else "disk.html"
    return render(request, f"training/{name}", context)


@require_POST
def clean_disk(request: PageRequest, slug: str) -> HttpResponse:
    """Have the worker delete checkpoints that nobody will go on from."""
    project = project_for(request.user, slug, MANAGERS)
    cleaning.ask_to_clean(project=project, stopped=request.POST.get("stopped") == "on")
    return redirect("training:disk", slug=slug)


def _parts(usage: dict[str, Any]) -> list[dict[str, Any]]:
    """What takes the space, the largest first, each with its share of the largest."""
    words = {
        "policies": (_("Policies"), _("Weights, tokenizers and cards, while they have files.")),
        "checkpoints": (
            _("Checkpoints"),
            _("What a round goes on from. Of rounds that succeeded nobody needs them."),
        ),
        "runs": (
            _("Run directories"),
            _("Figures, events and the preferences of each round, besides the two above."),
        ),
        "snapshots": (_("Snapshots"), _("The frozen preferences that rounds trained on.")),
        "cache": (
            _("Reference log-probabilities"),
            _("A cache: rounds begin sooner with it, and fill it again where it is gone."),
        ),
    }
    largest = max(1, *(usage[key] for key in words))
    found = [
        {"title": title, "what": what, "bytes": usage[key], "share": 100 * usage[key] / largest}
        for key, (title, what) in words.items()
    ]
    return sorted(found, key=lambda part: -part["bytes"])


def _names(project: Project, usage: dict[str, Any]) -> list[dict[str, Any]]:
    """The rounds whose checkpoints take most."""
    numbers = [number for number, *_rest in usage["rounds"]]
    rounds = {one.number: one for one in project.rounds.filter(number__in=numbers)}
    return [
        {"round": rounds[number], "bytes": size}
        for number, _state, size in usage["rounds"]
        if number in rounds
    ]


def _freed(job: Job | None) -> int:
    """Bytes that a finished clean-up told in its note."""
    done = job is not None and job.state == JobState.SUCCEEDED and job.progress_note.isdecimal()
    return int(job.progress_note) if job is not None and done else 0


def _policy(project: Project, key: int) -> Policy:
    return get_object_or_404(project.policies, pk=key)
