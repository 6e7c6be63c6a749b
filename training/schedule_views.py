"""The page on which rounds are made to start by themselves."""

from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST

from jobs import queue
from jobs.cron import CronError
from labeling.access import MANAGERS, project_for
from labeling.figures import Kept
from labeling.models import Project
from labeling.overview import worker_silence
from labeling.requests import PageRequest
from training import schedules
from training.models import LIVE_ROUND_STATES, Round, RoundSchedule
from training.new_pairs import new_pairs
from training.options import named_options
from training.schedule_form import ScheduleForm

LONGEST_CRON = 100


def schedule(request: PageRequest, slug: str) -> HttpResponse:
    """When rounds start, how far it is to the next, and the form to change that."""
    project = project_for(request.user, slug, MANAGERS)
    found = RoundSchedule.objects.filter(project=project).select_related("saved_by").first()
    form = ScheduleForm(project, found, request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            schedules.save_schedule(project=project, actor=request.user, **form.wanted)
        except schedules.CannotSchedule as reason:
            form.add_error(reason.field, str(reason))
        else:
            messages.success(request, _("The schedule is saved."))
            return redirect("training:schedule", slug=slug)
    context = {
        "project": project,
        "form": form,
        "schedule": found,
        "silence": worker_silence(queue.worker_seen()),
        **(_standing(project, found) if found else {}),
        **_preview(form["cron"].value() or "", form["time_zone"].value() or "UTC"),
    }
    status = 422 if request.method == "POST" else 200
    return render(request, "training/schedule.html", context, status=status)


def preview(request: PageRequest, slug: str) -> HttpResponse:
    """The next times of what is being written into the form."""
    project_for(request.user, slug, MANAGERS)
    cron = request.GET.get("cron", "")[:LONGEST_CRON]
    times = _preview(cron, request.GET.get("time_zone", "UTC"))
    return render(request, "training/schedule_coming.html", times)


@require_POST
def pause(request: PageRequest, slug: str) -> HttpResponse:
    """Pause what goes on, resume what is paused."""
    project = project_for(request.user, slug, MANAGERS)
    if request.POST.get("paused") == "yes":
        schedules.pause(project=project)
        messages.success(request, _("Paused: no round starts by itself until you resume."))
    else:
        schedules.resume(project=project)
        messages.success(request, _("Rounds start by themselves again."))
    return redirect("training:schedule", slug=slug)


def _standing(project: Project, found: RoundSchedule) -> dict[str, Any]:
    """How far it is to the next round, and what the last one came to."""
    new = new_pairs(project)
    own = project.rounds.filter(origin=Round.Origin.SCHEDULE)
    return {
        "new": new,
        "counted": Kept(value=new.number, as_of=new.as_of),
        "missing": schedules.missing(found, new),
        "next_at": schedules.due_in_words(found),
        "live": project.rounds.filter(state__in=LIVE_ROUND_STATES).first(),
        "last": own.order_by("-number").first(),
        "options": named_options(found.options),
    }


def _preview(cron: str, time_zone: str) -> dict[str, Any]:
    """The next times in words, or why there are none."""
    if not cron.strip():
        return {"coming": [], "not_coming": ""}
    try:
        coming = schedules.coming(cron, time_zone)
    except CronError as error:
        return {"coming": [], "not_coming": str(error)}
    return {"coming": [schedules.in_words(moment) for moment in coming], "not_coming": ""}
