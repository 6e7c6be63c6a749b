"""What the worker does for labeling.services.notifying: deliver, and watch what has no moment."""

from jobs.models import Job, JobState
from jobs.registry import handler
from jobs.running import RunningJob, TryAgain
from labeling import watching
from labeling.delivering import attempt
from labeling.models import Delivery, Project
from labeling.services import notifying


def _ended(job: Job, _state: JobState, error: str) -> None:
    notifying.give_up(delivery_id=job.payload["delivery"], reason=error)


@handler(notifying.KIND, ended=_ended)
def deliver(job: RunningJob) -> None:
    """Sends at least once: a worker that dies between sending and noting it sends again."""
    waiting = Delivery.objects.filter(state=Delivery.State.WAITING)
    found = waiting.select_related("subscription__project").filter(pk=job.payload["delivery"])
    delivery = found.first()
    if delivery is None:
        return
    tried = attempt(delivery)
    last = job.attempt >= notifying.TRIES
    with job.fenced():
        notifying.note(delivery=delivery, tried=tried, last=last)
    if tried.problem and not tried.for_good and not last:
        raise TryAgain("The receiver did not take it.", delay=notifying.PAUSES[job.attempt - 1])


@handler(notifying.WATCH_KIND)
def watch(job: RunningJob) -> None:
    """Look whether the queue is low or people disagree; mostly nothing has changed."""
    project = Project.objects.filter(pk=job.payload["project"]).first()
    if project is not None:
        crossed = watching.look(project)
        with job.fenced():
            watching.tell(project, crossed)
