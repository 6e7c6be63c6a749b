"""What the worker does for schedules: look, every minute."""

from jobs.registry import handler
from jobs.running import RunningJob
from labeling.models import Project
from training import schedules


@handler(schedules.KIND)
def look(job: RunningJob) -> None:
    """Idempotent: what is not due any more starts nothing."""
    project = Project.objects.filter(pk=job.payload["project"]).first()
    if project is not None:
        schedules.look(project=project, fenced=job.fenced)
