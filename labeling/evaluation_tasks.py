"""What the worker does each minute for a live evaluation: look how it stands."""

from jobs.registry import handler
from jobs.running import RunningJob
from labeling.models import Evaluation, Project
from labeling.services import evaluating
from labeling.services.gating import look


@handler(evaluating.KIND)
def look_at_evaluation(job: RunningJob) -> None:
    """Idempotent: looking changes nothing that has not changed."""
    live = Evaluation.objects.filter(project=job.payload["project"]).exclude(
        state=Evaluation.State.ENDED
    )
    for evaluation in live.select_related("project", "policy", "against"):
        look(evaluation)
    evaluating.sweep(project=Project.objects.get(pk=job.payload["project"]))
