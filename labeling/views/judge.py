"""The judging page: one comparison at a time, blind, with its places shuffled on the server."""

import uuid
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.contrib import messages
from django.core.exceptions import ValidationError
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_http_methods, require_POST

from labeling.access import JUDGES, project_for
from labeling.forms import SCALE, HeldForm, VerdictForm, letter
from labeling.models import Comparison, Judgment, Lease, Project, Skip, User
from labeling.requests import PageRequest
from labeling.services import assigning, judging
from labeling.services.assigning import Assignment

ELSEWHERE = "That comparison was already dealt with, here or in another tab. Nothing was changed."


@dataclass(frozen=True, kw_only=True)
class Place:
    """A response as the page shows it: a letter and a text, nothing that tells its author."""

    letter: str
    text: str
    words: int


@require_http_methods(["GET", "POST"])
def judge(request: PageRequest, slug: str) -> HttpResponse:
    """Show the comparison to judge next; POST records a verdict first."""
    project = project_for(request.user, slug, JUDGES)
    if request.method == "POST":
        return _judge(request, project)
    asked = _lease(request.user, project, request.GET.get("lease"))
    shown = None
    if asked is not None and asked.comparison.state == Comparison.State.OPEN:
        shown = assigning.assignment_of(asked)
    return _page(request, project, shown)


@require_POST
def skip(request: PageRequest, slug: str) -> HttpResponse:
    """Pass a comparison over."""
    project = project_for(request.user, slug, JUDGES)
    lease = _lease(request.user, project, request.POST.get("lease"))
    if lease is None:
        messages.info(request, ELSEWHERE)
    else:
        judging.skip(lease=lease)
        messages.success(request, "Skipped.")
    return _next(request, project)


@require_POST
def undo(request: PageRequest, slug: str) -> HttpResponse:
    """Take the last verdict or skip back, and show its comparison again."""
    project = project_for(request.user, slug, JUDGES)
    last = judging.last_action(annotator=request.user, project=project.pk)
    if last is None:
        messages.info(request, "There is nothing to take back.")
        return _next(request, project)
    lease = _take_back(last)
    if lease is None:
        messages.info(request, "Taken back. Others have filled its place meanwhile.")
        return _next(request, project)
    messages.success(request, "Taken back. Here it is again.")
    return _next(request, project, lease)


@require_POST
def renew(request: PageRequest, slug: str) -> HttpResponse:
    """Hold the comparison for longer: 204; 410 where the lease has run out."""
    project_for(request.user, slug, JUDGES)
    form = HeldForm(request.POST)
    held = form.is_valid() and assigning.renew(
        annotator=request.user, token=form.cleaned_data["lease"]
    )
    return HttpResponse(status=204 if held else 410)


def _judge(request: PageRequest, project: Project) -> HttpResponse:
    lease = _lease(request.user, project, request.POST.get("lease"))
    if lease is None:
        _explain_missing(request)
        return _next(request, project)
    assignment = assigning.assignment_of(lease)
    form = VerdictForm(request.POST, places=len(assignment.slots))
    if not form.is_valid():
        return _page(request, project, assignment, form)
    try:
        judgment = judging.record_judgment(
            lease=lease,
            verdict=form.verdict(assignment.shown_order),
            key=form.cleaned_data["key"],
        )
    except (judging.Conflict, judging.NotHeld) as refusal:
        messages.warning(request, str(refusal))
        return _next(request, project)
    messages.success(request, _receipt(form, judgment))
    return _next(request, project)


def _receipt(form: VerdictForm, judgment: Judgment) -> str:
    if judgment.surplus:
        return f"Kept as surplus: {form.in_words()}. Others filled its places while you had it."
    return f"Saved: {form.in_words()}."


def _explain_missing(request: PageRequest) -> None:
    """A double click is silent; anything else that names no lease is told."""
    key = request.POST.get("key", "")
    if not Judgment.objects.filter(annotator=request.user, key=key).exists():
        messages.info(request, ELSEWHERE)


def _take_back(last: Judgment | Skip) -> Lease | None:
    if isinstance(last, Skip):
        return judging.undo_skip(skip=last)
    return judging.undo(judgment=last)


def _lease(user: User, project: Project, token: str | None) -> Lease | None:
    try:
        lease = assigning.held_lease(annotator=user, token=UUID(token or ""))
    except (ValueError, ValidationError):
        return None
    return lease if lease and lease.comparison.project_id == project.pk else None


def _next(request: PageRequest, project: Project, lease: Lease | None = None) -> HttpResponse:
    """The next comparison (or this one): as a fragment for htmx, by way of a redirect else."""
    if request.htmx:
        return _page(request, project, assigning.assignment_of(lease) if lease else None)
    address = reverse("labeling:judge", kwargs={"slug": project.slug})
    return redirect(f"{address}?lease={lease.token}" if lease else address)


def _page(
    request: PageRequest,
    project: Project,
    assignment: Assignment | None,
    form: VerdictForm | None = None,
) -> HttpResponse:
    if assignment is None:
        assignment = assigning.next_assignment(project=project, annotator=request.user)
    left = assigning.left_for(project=project, annotator=request.user)
    context: dict[str, Any] = {
        "project": project,
        "form": form,
        "scale": SCALE,
        "key": uuid.uuid4().hex,
        "today": _judged_today(project, request.user),
        "left": left + _held(project, request.user),
    }
    if assignment is not None:
        context |= {
            "lease": assignment.lease.token,
            "prompt": assignment.comparison.prompt,
            "places": _places(assignment),
        }
    template = "judge_card.html" if request.htmx else "judge.html"
    return render(request, f"labeling/{template}", context, status=422 if form else 200)


def _held(project: Project, user: User) -> int:
    """How many comparisons are leased to the user, which `left_for` leaves out."""
    open_here = {"comparison__project": project, "comparison__state": Comparison.State.OPEN}
    return Lease.objects.live().filter(annotator=user, **open_here).count()


def _places(assignment: Assignment) -> list[Place]:
    return [
        Place(letter=letter(place), text=slot.response.text, words=slot.response.words)
        for place, slot in enumerate(assignment.slots)
    ]


def _judged_today(project: Project, user: User) -> int:
    midnight = timezone.localtime().replace(hour=0, minute=0, second=0, microsecond=0)
    return (
        Judgment.objects.current()
        .filter(annotator=user, comparison__project=project, created_at__gte=midnight)
        .count()
    )
