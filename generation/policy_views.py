"""The page on which a manager brings a model of their own."""

from django.conf import settings
from django.http import HttpResponse
from django.shortcuts import redirect, render

from generation import adding
from generation.forms import PolicyForm
from jobs import queue
from labeling.access import MANAGERS, project_for
from labeling.overview import worker_silence
from labeling.requests import PageRequest


def add_policy(request: PageRequest, slug: str) -> HttpResponse:
    """The form, what is allowed here, and what became of earlier ones; polled while one is live."""
    project = project_for(request.user, slug, MANAGERS)
    form = PolicyForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            adding.add_policy(project=project, actor=request.user, **form.cleaned_data)
        except adding.CannotAdd as error:
            form.add_error(None, str(error))
        else:
            return redirect("generation:add_policy", slug=slug)
    jobs = adding.recent_jobs(project)
    live = any(job.live for job in jobs)
    context = {
        "project": project,
        "form": form,
        "jobs": jobs,
        "live": live,
        "silence": worker_silence(queue.worker_seen()) if live else "",
        "roots": adding.roots(),
        "hub": settings.HUB,
    }
    name = "add_policy_jobs.html" if request.htmx else "add_policy.html"
    return render(request, f"generation/{name}", context, status=422 if form.errors else 200)
