"""Batches: the list and what starts one, and one batch while it is written."""

from collections import deque
from pathlib import Path
from typing import Any

from django.contrib import messages
from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_POST
from django_htmx.http import HttpResponseClientRefresh

from generation.forms import BatchForm
from generation.models import LIVE_BATCH_STATES, Batch
from generation.services import CannotGenerate, cancel_batch, start_batch, unanswered
from jobs import queue
from jobs.models import Job
from jobs.run_dir import RunDirError, read_jsonl
from labeling.access import MANAGERS, project_for
from labeling.overview import worker_silence
from labeling.requests import PageRequest
from labeling.services.promoting import serving_policy

PAGE = 20
SHOWN_FAILURES = 20
PACE_LINES = 20  # metrics lines, one a few dozen prompts, that the pace is measured over


def batches(request: PageRequest, slug: str) -> HttpResponse:
    """The project's batches, newest first, and the form that starts one."""
    project = project_for(request.user, slug, MANAGERS)
    serving = serving_policy(project)
    form = BatchForm(request.POST or None)
    refused = ""
    if request.method == "POST" and serving and form.is_valid():
        try:
            batch = start_batch(policy=serving, actor=request.user, **form.options)
        except CannotGenerate as error:
            refused = str(error)
        else:
            return redirect("generation:batch", slug=slug, number=batch.number)
    found = project.batches.select_related("policy", "started_by").order_by("-number")
    page = Paginator(found, PAGE).get_page(request.GET.get("page"))
    context = {
        "project": project,
        "serving": serving,
        "unanswered": unanswered(serving).count() if serving else 0,
        "live": found.filter(state__in=LIVE_BATCH_STATES).first(),
        "form": form,
        "refused": refused,
        "page": page,
    }
    status = 422 if request.method == "POST" else 200
    return render(request, "generation/batches.html", context, status=status)


def batch(request: PageRequest, slug: str, number: int) -> HttpResponse:
    """One batch. While it is live its progress is asked for every two seconds."""
    project = project_for(request.user, slug, MANAGERS)
    found = get_object_or_404(project.batches.select_related("policy", "started_by"), number=number)
    if request.htmx and not found.live:
        return HttpResponseClientRefresh()  # it has just ended: the whole page says how
    context = {"project": project, "batch": found, **_progress(found)}
    name = "generation/batch_progress.html" if request.htmx else "generation/batch.html"
    return render(request, name, context)


@require_POST
def cancel(request: PageRequest, slug: str, number: int) -> HttpResponse:
    """Ask for a batch to stop."""
    project = project_for(request.user, slug, MANAGERS)
    found = get_object_or_404(project.batches, number=number)
    if found.live:
        cancel_batch(batch=found)
        messages.info(request, f"Batch {number} was asked to stop. What it has written is kept.")
    else:
        messages.warning(request, f"Batch {number} had ended already: {found.state}.")
    return redirect("generation:batch", slug=slug, number=number)


def _progress(batch: Batch) -> dict[str, Any]:
    """What the run directory and the job say of a batch beyond its row."""
    run_dir = Path(batch.run_dir)
    job = Job.objects.filter(pk=batch.job_id).first() if batch.live and batch.job_id else None
    return {
        "job": job,
        "silence": worker_silence(queue.worker_seen()) if batch.live else "",
        "failed_prompts": [] if batch.live else _rows(run_dir / "failures.jsonl", SHOWN_FAILURES),
        **pace(_rows(run_dir / "metrics.jsonl", PACE_LINES), batch.total),
    }


def pace(rows: list[dict[str, Any]], total: int) -> dict[str, Any]:
    """Prompts done, tokens a second and seconds left, from the last lines of the metrics.

    Lines of an earlier run of the same directory are left out: its clock was another one.
    """
    run: list[dict[str, Any]] = []
    for row in rows:
        if not all(isinstance(row.get(key), (int, float)) for key in ("done", "tokens", "seconds")):
            continue
        if run and row["seconds"] < run[-1]["seconds"]:
            run = []
        run.append(row)
    if not run:
        return {"done": None, "tokens_per_s": None, "seconds_left": None}
    first, last = run[0], run[-1]
    seconds, prompts = last["seconds"] - first["seconds"], last["done"] - first["done"]
    return {
        "done": last["done"],
        "tokens_per_s": (last["tokens"] - first["tokens"]) / seconds if seconds > 0 else None,
        "seconds_left": max(0, total - last["done"]) * seconds / prompts if prompts > 0 else None,
    }


def _rows(path: Path, most: int) -> list[dict[str, Any]]:
    """The last rows of a file of the run directory, [] where there is none yet."""
    try:
        return list(deque(read_jsonl(path), maxlen=most))
    except (RunDirError, OSError):
        return []
