"""What the worker does for a batch: write its run directory, run the sampler, take it in."""

from django.conf import settings

from generation import services
from generation.models import Batch, BatchState
from jobs.models import Job, JobState
from jobs.outcome import failure_words
from jobs.process import run_program
from jobs.registry import handler
from jobs.run_dir import EXIT_DONE, EXIT_STOPPED, last_line, read_jsonl
from jobs.running import JobFailed, RunningJob, TryAgain

SILENCE_S = 15 * 60.0
ADVICE = "Ask for fewer tokens, or free memory, and start a batch again; nothing was lost."


def _ended(job: Job, state: JobState, error: str) -> None:
    batch = Batch.objects.get(pk=job.payload["batch"])
    services.end_batch(batch=batch, state=BatchState(state), error=error)


@handler(services.KIND, ended=_ended)
def run_batch(job: RunningJob) -> None:
    """Idempotent: a rerun asks only for what the last one had not written."""
    batch = Batch.objects.select_related("policy", "project").get(pk=job.payload["batch"])
    if not batch.live:
        return
    run_dir = services.prepare(batch)
    total = sum(1 for _ in read_jsonl(run_dir / "prompts.jsonl"))

    def follow() -> None:
        done = int(last_line(run_dir / "metrics.jsonl").get("done", 0))
        job.progress(done, total, "writing responses")
        services.note_progress(batch=batch, done=done)

    code = run_program(
        job,
        [settings.SAMPLER_PYTHON, "-m", "generation.samplers", "run", str(run_dir)],
        cwd=settings.BASE_DIR,
        env={},
        on_tick=follow,
        log_path=run_dir / "program.log",
        silence_s=SILENCE_S,
    )
    if code == EXIT_STOPPED:
        raise TryAgain("The sampler was stopped from outside.")
    if code != EXIT_DONE:
        raise JobFailed(failure_words(run_dir, code, advice=ADVICE))
    with job.fenced():
        services.take_in(batch=batch)
