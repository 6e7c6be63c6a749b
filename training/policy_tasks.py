"""What the worker does with policies' files: merge adapters, clean up after rounds."""

import shutil
from pathlib import Path

from django.conf import settings
from django.utils.translation import gettext_noop

from jobs.models import Job, JobState
from jobs.outcome import failure_words
from jobs.process import run_program
from jobs.registry import handler
from jobs.run_dir import EXIT_DONE, EXIT_STOPPED, last_line
from jobs.running import JobFailed, RunningJob, TryAgain
from labeling.figures import keep, measure
from labeling.models import Policy, Project, User
from labeling.policy_files import UnsafePolicy
from labeling.services.deleting import FilesDeleted, ensure_files, finish_deletions, note_sizes
from training import cleaning, merging
from training.disk import DISK

SILENCE_S = 30 * 60.0
ADVICE = "Free memory and merge it again; nothing was changed."
PHASES = {
    "loading": gettext_noop("Loading the model"),
    "merging": gettext_noop("Merging the adapter"),
    "writing": gettext_noop("Writing the policy"),
    "comparing": gettext_noop("Comparing what both say"),
}


def _merge_ended(job: Job, state: JobState, error: str) -> None:
    """The program has ended; what it had half written goes."""
    shutil.rmtree(merging.run_dir_of(job.pk) / ".policy", ignore_errors=True)


@handler(merging.KIND, ended=_merge_ended)
def merge_adapter(job: RunningJob) -> None:
    """Idempotent: what is written whole is not written again, what is registered stays."""
    policy = Policy.objects.select_related("project").get(pk=job.payload["policy"])
    if merging.merged_of(policy) is not None:
        return
    run_dir = merging.run_dir_of(job.id)
    run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        ensure_files(policy)
        _merge(job, policy, run_dir)
        job.check()
        actor = User.objects.filter(pk=job.payload["actor"]).first()
        merging.take_in(policy=policy, run_dir=run_dir, actor=actor, fenced=job.fenced)
    except (FilesDeleted, UnsafePolicy) as error:
        raise JobFailed(str(error)) from None


def _merge(job: RunningJob, policy: Policy, run_dir: Path) -> None:
    def follow() -> None:
        line = last_line(run_dir / "metrics.jsonl")
        note = PHASES.get(str(line.get("note")), "")
        job.progress(int(line.get("done", 0)), len(PHASES), note)

    code = run_program(
        job,
        merging.command(policy, run_dir),
        cwd=settings.BASE_DIR,
        env={"CUDA_VISIBLE_DEVICES": ""},  # sums are the same everywhere, and memory is larger
        on_tick=follow,
        log_path=run_dir / "program.log",
        silence_s=SILENCE_S,
    )
    if code == EXIT_STOPPED:
        raise TryAgain("Merging was stopped from outside.")
    if code != EXIT_DONE:
        raise JobFailed(failure_words(run_dir, code, advice=ADVICE))


@handler(cleaning.KIND)
def clean(job: RunningJob) -> None:
    """Idempotent: what is gone is not there to be deleted."""
    project = Project.objects.filter(pk=job.payload["project"]).first()
    if project is None:
        return
    finish_deletions(project)
    note_sizes(project)
    freed = cleaning.clean(project=project, stopped=job.payload["stopped"], check=job.check)
    # The numbers are the page's to put into words: rounds as the progress, bytes as its note.
    job.progress(freed.rounds, freed.rounds, str(freed.bytes))
    usage = measure(project, DISK)
    with job.fenced():
        keep(usage)
