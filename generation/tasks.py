"""What the worker does: write a batch with the sampler, and take in a policy that people bring."""

from datetime import timedelta
from pathlib import Path

from django.conf import settings
from django.db import IntegrityError
from django.utils.translation import gettext_noop

from generation import adding, plans, services
from generation.choosing import python_for
from generation.models import Batch, BatchState
from generation.probing import SILENCE_S, write_probes
from jobs.models import Job, JobState
from jobs.outcome import failure_words
from jobs.process import run_program
from jobs.registry import handler
from jobs.run_dir import (
    EXIT_DONE,
    EXIT_STOPPED,
    EXIT_UNAVAILABLE,
    RunDirError,
    last_line,
    read_json,
)
from jobs.running import JobFailed, RunningJob, TryAgain
from labeling.models import Project, User
from labeling.policy_files import UnsafePolicy
from labeling.services.promoting import register_policy

WAIT = timedelta(seconds=30)  # for a server that is away; doubled each time
LONGEST_WAIT = timedelta(minutes=15)
ADVICE = (
    "What was written is kept: free memory, then let the batch go on; or start one that asks for "
    "fewer tokens."
)
MB = 10**6  # bytes


def _ended(job: Job, state: JobState, error: str) -> None:
    batch = Batch.objects.get(pk=job.payload["batch"])
    services.end_batch(batch=batch, state=BatchState(state), error=error)
    plans.follow_up(batch=batch)


@handler(services.KIND, ended=_ended)
def run_batch(job: RunningJob) -> None:
    """Idempotent: a rerun asks only for what the last one had not written."""
    batch = Batch.objects.select_related("leading", "project").get(pk=job.payload["batch"])
    if not batch.live:
        return
    run_dir = services.prepare(batch)
    write_probes(job, run_dir)
    _sample(job, batch, run_dir)
    try:
        services.take_in(batch=batch, fenced=job.fenced, ended=plans.carry_on)
    except RunDirError as error:
        raise JobFailed(str(error)) from None


def _sample(job: RunningJob, batch: Batch, run_dir: Path) -> None:
    """Run the sampler; raises unless it wrote all that it was asked."""

    def follow() -> None:
        line = last_line(run_dir / "metrics.jsonl")
        done = int(line.get("done", 0))
        note = str(line.get("note") or "writing responses") if line else "loading the policies"
        job.progress(done, batch.total, note)
        services.note_progress(batch=batch, done=done)

    before = _written(run_dir)
    code = run_program(
        job,
        [python_for(batch.sampler), "-m", "generation.samplers", "run", str(run_dir)],
        cwd=settings.BASE_DIR,
        env={},
        on_tick=follow,
        log_path=run_dir / "program.log",
        silence_s=SILENCE_S,
    )
    if code == EXIT_STOPPED:
        raise TryAgain("The sampler was stopped from outside.")
    if code == EXIT_UNAVAILABLE:
        progressed = _written(run_dir) > before
        wait = WAIT if progressed else min(WAIT * 2 ** (job.attempt - 1), LONGEST_WAIT)
        words = failure_words(run_dir, code, advice=ADVICE)
        raise TryAgain(words, delay=wait, progressed=progressed)
    if code != EXIT_DONE:
        raise JobFailed(failure_words(run_dir, code, advice=ADVICE))


def _written(run_dir: Path) -> int:
    """How many bytes of answers there are."""
    files = (run_dir / name for name in ("responses.jsonl", "scores.jsonl"))
    return sum(file.stat().st_size for file in files if file.exists())


@handler(plans.KIND)
def top_up(job: RunningJob) -> None:
    """Look whether the project's plan wants more comparisons; mostly it does not."""
    project = Project.objects.filter(pk=job.payload["project"]).first()
    if project is not None:
        with job.fenced():
            plans.top_up(project=project)


@handler(adding.KIND)
def add_policy(job: RunningJob) -> None:
    """Idempotent: what was fetched is not fetched again, what is registered stays as it is."""
    wanted = job.payload
    name, source, revision = wanted["name"], wanted["source"], wanted["revision"]
    try:
        folder = adding.check_source(source, revision) or _fetch(job, source, revision)
        job.progress(0, 0, gettext_noop("Checking and hashing the files"))
        job.check()
        register_policy(
            project=Project.objects.get(pk=wanted["project"]),
            name=name,
            model_path=folder,
            actor=User.objects.filter(pk=wanted["actor"]).first(),
        )
    except (adding.CannotAdd, UnsafePolicy) as error:
        raise JobFailed(f"{str(error).rstrip('.')}. Nothing was registered.") from None
    except IntegrityError:
        raise JobFailed(
            f"Another policy took the name {name} meanwhile. Add this one under a new name."
        ) from None
    except PermissionError as error:
        raise JobFailed(
            f"The worker may not read {error.filename}. Nothing was registered; give the user "
            "that it runs as the right to read, and add the policy again."
        ) from None


def _fetch(job: RunningJob, repo: str, revision: str) -> Path:
    """The folder of a model from the hub."""
    run_dir: Path = settings.RUNS_DIR / f"policy-{job.id:06d}"
    run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)

    def follow() -> None:
        line = last_line(run_dir / "metrics.jsonl")
        done, total = line.get("done", 0), line.get("total", 0)
        job.progress(done // MB, total // MB, gettext_noop("Fetching from the hub"))

    code = run_program(
        job,
        adding.fetch_command(repo=repo, revision=revision, run_dir=run_dir),
        cwd=settings.BASE_DIR,
        env=adding.fetch_environment(),
        on_tick=follow,
        log_path=run_dir / "program.log",
        silence_s=SILENCE_S,
    )
    if code == EXIT_STOPPED:
        raise TryAgain("The download was stopped from outside; it goes on where it was.")
    if code != EXIT_DONE:
        raise JobFailed(failure_words(run_dir, code, advice="Free memory and add it again."))
    return Path(read_json(run_dir / "manifest.json")["folder"])
