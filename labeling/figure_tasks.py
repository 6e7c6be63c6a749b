"""What the worker does for labeling.figures: count again what a page found to be old."""

from importlib import import_module

from django.conf import settings

from jobs import queue
from jobs.models import Job, JobState
from jobs.registry import handler
from jobs.running import RunningJob
from labeling import figures
from labeling.models import Project


@handler(figures.KIND)
def count_again(job: RunningJob) -> None:
    """Idempotent. Projects that have been deleted, and names of another version, have no figure."""
    project = Project.objects.filter(pk=job.payload["project"]).first()
    name = job.payload["name"]
    if not figures.known(name):
        import_module(settings.ROOT_URLCONF)  # what counts lies beside the pages that show it
    if project is not None and figures.known(name):
        made = figures.measure(project, name)
        with job.fenced():
            figures.keep(made)
    for done in Job.objects.filter(kind=figures.KIND, state=JobState.SUCCEEDED):
        queue.forget(done.pk)  # one that comes with each look at a page would fill the table
