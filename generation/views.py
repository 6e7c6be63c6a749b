"""Batches: the list and what starts one, and one batch while it is written."""

from collections import deque
from pathlib import Path
from typing import Any

from django.contrib import messages
from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop, ngettext
from django.views.decorators.http import require_POST
from django_htmx.http import HttpResponseClientRefresh

from generation.batch_forms import BatchForms
from generation.choosing import choose
from generation.forms import PlanForm, in_one_line
from generation.models import LIVE_BATCH_STATES, Batch
from generation.plans import plan_of, ready_now, save_plan, top_up
from generation.selecting import NOT_ANSWERED, Selection, select_prompts
from generation.services import (
    CannotGenerate,
    cancel_batch,
    resumable,
    resume_batch,
    start_batch,
)
from jobs import queue
from jobs.models import Job
from jobs.run_dir import RunDirError, read_jsonl
from labeling.access import MANAGERS, project_for
from labeling.figures import counted, figure
from labeling.models import Policy, Project
from labeling.overview import worker_silence
from labeling.requests import PageRequest
from labeling.services.promoting import serving_policy

PAGE = 20
UNANSWERED = "batches.unanswered"
SHOWN_FAILURES = 20
PROOF_EVENTS = 1000  # of a batch; a run writes a handful
WRITING = gettext_noop("writing responses")
PACE_LINES = 20  # metrics lines, one a few dozen prompts, that the pace is measured over


def batches(request: PageRequest, slug: str) -> HttpResponse:
    """The project's batches, newest first, the form that starts one, and the plan."""
    project = project_for(request.user, slug, MANAGERS)
    forms = BatchForms(project, request.POST or None)
    refused = ""
    if request.method == "POST" and forms.is_valid():
        try:
            batch = start_batch(project=project, actor=request.user, **forms.options)
        except CannotGenerate as reason:
            refused = forms.refuse(reason)
        else:
            return redirect("generation:batch", slug=slug, number=batch.number)
    return _batches_page(request, project, forms=forms, refused=refused)


@require_POST
def plan(request: PageRequest, slug: str) -> HttpResponse:
    """Change how many comparisons are kept ready."""
    project = project_for(request.user, slug, MANAGERS)
    form = PlanForm(request.POST, instance=plan_of(project))
    if not form.is_valid():
        return _batches_page(request, project, plan_form=form)
    saved = save_plan(project=project, actor=request.user, **form.options)
    if saved.ready:
        top_up(project=project)
        messages.success(request, _kept_ready(saved.ready))
    else:
        messages.success(request, _("Nothing is kept ready from now on."))
    return redirect("generation:batches", slug=slug)


def _kept_ready(number: int) -> str:
    words = ngettext(
        "From now on %(number)s comparison is kept ready.",
        "From now on %(number)s comparisons are kept ready.",
        number,
    )
    return words % {"number": number}


def matching(request: PageRequest, slug: str) -> HttpResponse:
    """How many prompts the form that starts a batch selects as it stands; a line of text."""
    project = project_for(request.user, slug, MANAGERS)
    forms = BatchForms(project, request.GET)
    return render(request, "generation/batches_matching.html", _matching(project, forms))


def _batches_page(
    request: PageRequest,
    project: Project,
    *,
    forms: BatchForms | None = None,
    plan_form: PlanForm | None = None,
    refused: str = "",
) -> HttpResponse:
    forms = forms or BatchForms(project)
    found = (
        project.batches.select_related("leading", "started_by").defer("barren").order_by("-number")
    )
    kept = plan_of(project)
    context = {
        "project": project,
        "prompts": project.prompts.exists(),
        **_matching(project, forms),
        "live": found.filter(state__in=LIVE_BATCH_STATES).first(),
        "forms": forms,
        "refused": refused,
        "choice": choose(),
        "plan": kept,
        "plan_form": plan_form or PlanForm(instance=kept),
        "ready": ready_now(project),
        "silence": worker_silence(queue.worker_seen()),
        "page": Paginator(found.prefetch_related("shares__policy"), PAGE).get_page(
            request.GET.get("page")
        ),
    }
    status = 422 if request.method == "POST" else 200
    return render(request, "generation/batches.html", context, status=status)


def _matching(project: Project, forms: BatchForms) -> dict[str, Any]:
    """How many prompts the forms select; what is wrong in them is as if it were not there."""
    serving = serving_policy(project)
    forms.who.is_valid()
    forms.which.is_valid()
    selection = forms.which.selection
    found = {"serving": serving, "matching": 0, "untouched": selection == NOT_ANSWERED}
    if serving is not None:
        writers = forms.who.weights or {serving: 1}
        if selection == NOT_ANSWERED:
            found["matching"] = _untouched(project, serving)
        else:
            asked = select_prompts(project, selection, leading=serving, policies=writers.keys())
            found["matching"] = asked.count()
    return found


def _untouched(project: Project, serving: Policy) -> int:
    """Prompts that the serving policy has not answered; a number kept of another is none."""
    kept = figure(project, UNANSWERED).value
    return int((kept if kept["policy"] == serving.pk else _unanswered(project))["number"])


@counted(UNANSWERED)
def _unanswered(project: Project) -> dict[str, int | None]:
    serving = serving_policy(project)
    if serving is None:
        return {"policy": None, "number": 0}
    asked = select_prompts(project, NOT_ANSWERED, leading=serving, policies=[])
    return {"policy": serving.pk, "number": asked.count()}


def batch(request: PageRequest, slug: str, number: int) -> HttpResponse:
    """One batch. While it is live its progress is asked for every two seconds."""
    project = project_for(request.user, slug, MANAGERS)
    found = get_object_or_404(
        project.batches.select_related("leading", "started_by", "resumed_by").prefetch_related(
            "shares__policy"
        ),
        number=number,
    )
    if request.htmx and not found.live:
        return HttpResponseClientRefresh()  # it has just ended: the whole page says how
    context = {"project": project, "batch": found, **_progress(found), **_asked(found)}
    name = "generation/batch_progress.html" if request.htmx else "generation/batch.html"
    return render(request, name, context)


def _asked(batch: Batch) -> dict[str, Any]:
    """What a batch asks, beyond its row."""
    return {
        "asked": Selection.from_json(batch.selection).words(batch.leading.name),
        "stops": [in_one_line(text) for text in batch.stop],
        "choice": choose() if batch.live and not batch.sampler else None,
        "proof": proof(batch),
        "resumable": resumable(batch),
    }


def proof(batch: Batch) -> str:
    """How sure it is that the policies wrote this, "" where nothing was loaded yet."""
    events = _rows(Path(batch.run_dir) / "events.jsonl", PROOF_EVENTS)
    loaded = [row for row in events if row.get("kind") == "loaded"]
    if not loaded:
        return ""
    if batch.sampler == "transformers":
        return _("none: transformers loads the files itself")
    # A policy that was loaded again was proven again: its last difference counts.
    proven = {id: far for row in loaded for id, far in (row.get("proven") or {}).items()}
    if not proven:
        return _("unproven: nothing tells whether these servers have the policies")
    far = f"{max(proven.values()):.2g}"
    return _("within %(nats)s nats a token of the trainer") % {"nats": far}


@require_POST
def cancel(request: PageRequest, slug: str, number: int) -> HttpResponse:
    """Ask for a batch to stop."""
    project = project_for(request.user, slug, MANAGERS)
    found = get_object_or_404(project.batches, number=number)
    if found.live:
        cancel_batch(batch=found)
        words = _("Batch %(number)s was asked to stop. What it has written is kept.")
        messages.info(request, words % {"number": number})
    else:
        ended = {"number": number, "state": found.get_state_display().lower()}
        messages.warning(request, _("Batch %(number)s had ended already: %(state)s.") % ended)
    return redirect("generation:batch", slug=slug, number=number)


@require_POST
def resume(request: PageRequest, slug: str, number: int) -> HttpResponse:
    """Have a batch that ended too early go on."""
    project = project_for(request.user, slug, MANAGERS)
    found = get_object_or_404(project.batches, number=number)
    try:
        resume_batch(batch=found, actor=request.user)
    except CannotGenerate as reason:
        messages.warning(request, str(reason))
    return redirect("generation:batch", slug=slug, number=number)


def _progress(batch: Batch) -> dict[str, Any]:
    """What the run directory and the job say of a batch beyond its row."""
    run_dir = Path(batch.run_dir)
    job = Job.objects.filter(pk=batch.job_id).first() if batch.live and batch.job_id else None
    note = job.progress_note if job else ""
    metrics = _rows(run_dir / "metrics.jsonl", PACE_LINES)
    return {
        "job": job,
        "loading": _sentence(_(note) if note else _("loading the policies")),
        "writing": _sentence(_(str(metrics[-1].get("note") or WRITING)) if metrics else ""),
        "silence": worker_silence(queue.worker_seen()) if batch.live else "",
        "failed_prompts": [] if batch.live else _rows(run_dir / "failures.jsonl", SHOWN_FAILURES),
        **pace(metrics, batch.total),
    }


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


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
