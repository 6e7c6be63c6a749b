"""What the worker does with a batch, as the sampler's program ends one way or another."""

import stat
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from django.db.models.functions import Now
from django.utils import timezone

from generation import plans
from generation.models import Batch, BatchState
from generation.plans import save_plan
from generation.services import SERVER_ATTEMPTS, resume_batch, start_batch
from jobs import queue
from jobs.models import Job
from jobs.worker import run_job
from labeling.models import Comparison, PolicyState, Project
from tests.builders import make_policy, make_project, make_prompt, write_output

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def project(settings, tmp_path: Path) -> Project:
    settings.RUNS_DIR = tmp_path / "runs"  # tests reuse the ids of batches
    settings.SAMPLER, settings.SERVER_URLS = "server", ["http://127.0.0.1:9"]
    settings.SERVER_UNPROVEN = True
    project = make_project()
    make_policy(project=project, state=PolicyState.SERVING)
    for _ in range(3):
        make_prompt(project=project)
    return project


def started(project: Project) -> Batch:
    return start_batch(project=project, policies={project.policies.get(): 1}, actor=None)


def program(settings, tmp_path: Path, text: str) -> None:
    """Let a shell script stand in for the sampler's interpreter; $4 is the run directory."""
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\n{text}\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    settings.SAMPLER_PYTHON = str(script)


def work(lane: str = "light") -> Job:
    job = queue.claim(lanes=[lane], worker="here")
    assert job is not None
    run_job(job, threading.Event())
    job.refresh_from_db()
    return job


def test_a_server_that_is_away_is_waited_for_longer_and_longer(
    project: Project, settings, tmp_path: Path
) -> None:
    away = '{"kind": "error", "message": "http://127.0.0.1:9 does not answer"}'
    program(settings, tmp_path, f"echo '{away}' >> $4/events.jsonl; exit 69")
    batch = started(project)
    waits = []
    for _ in range(7):
        job = work()
        assert (job.state, job.error) == ("queued", "http://127.0.0.1:9 does not answer")
        waits.append(round((job.run_after - timezone.now()).total_seconds() / 30))
        Job.objects.update(run_after=Now())
    assert waits == [1, 2, 4, 8, 16, 30, 30]
    batch.refresh_from_db()
    assert (batch.state, batch.sampler) == (BatchState.RUNNING, "server")
    for _ in range(3):
        job = work()
        Job.objects.update(run_after=Now())
    batch.refresh_from_db()
    assert batch.state == BatchState.FAILED
    assert "does not answer Given up after 10 attempts" in batch.error.replace(".", "")


def test_an_attempt_that_wrote_something_is_not_held_against_the_batch(
    project: Project, settings, tmp_path: Path
) -> None:
    program(settings, tmp_path, "exit 69")
    batch = started(project)
    for _ in range(SERVER_ATTEMPTS - 1):
        assert work().state == "queued"
        Job.objects.update(run_after=Now())
    program(settings, tmp_path, "echo '{}' >> $4/responses.jsonl; exit 69")
    job = work()
    assert (job.state, job.attempts) == ("queued", 0)
    assert round((job.run_after - timezone.now()).total_seconds() / 30) == 1
    program(settings, tmp_path, "exit 69")
    for attempt in range(1, SERVER_ATTEMPTS):
        Job.objects.update(run_after=Now())
        job = work()
        assert (job.state, job.attempts) == ("queued", attempt)
    Job.objects.update(run_after=Now())
    assert work().state == "failed"
    batch.refresh_from_db()
    assert batch.state == BatchState.FAILED


def test_a_batch_that_failed_goes_on_with_what_it_had_written(
    project: Project, settings, tmp_path: Path
) -> None:
    program(settings, tmp_path, "exit 4")
    batch = started(project)
    assert work().state == "failed"
    batch.refresh_from_db()
    assert "What was written is kept" in batch.error
    resume_batch(batch=batch, actor=None)
    write_output(batch)
    program(settings, tmp_path, "exit 0")
    assert work().state == "succeeded"
    batch.refresh_from_db()
    assert (batch.state, batch.error, batch.comparisons) == (BatchState.SUCCEEDED, "", 6)


def test_a_plan_that_a_failed_batch_stopped_goes_on_with_that_batch(
    project: Project, settings, tmp_path: Path
) -> None:
    weights = {"current": 1, "previous": 0, "base": 0}
    save_plan(project=project, actor=None, ready=8, weights=weights)
    batch = plans.top_up(project=project)
    assert batch is not None
    program(settings, tmp_path, "exit 3")
    assert work().state == "failed"
    assert plans.top_up(project=project) is None
    assert plans.plan_of(project).stopped.startswith("Batch 1 failed")
    batch.refresh_from_db()
    resume_batch(batch=batch, actor=None)
    write_output(batch)
    program(settings, tmp_path, "exit 0")
    assert work().state == "succeeded"
    assert plans.plan_of(project).stopped == ""
    assert project.batches.get(number=2).origin == Batch.Origin.TOP_UP


def test_a_batch_that_was_written_is_taken_in_and_topped_up(
    project: Project, settings, tmp_path: Path
) -> None:
    weights = {"current": 1, "previous": 0, "base": 0}
    save_plan(project=project, actor=None, ready=8, weights=weights)
    batch = start_batch(project=project, policies={project.policies.get(): 1}, actor=None, k=2)
    write_output(batch)
    program(settings, tmp_path, "exit 0")
    assert work().state == "succeeded"
    batch.refresh_from_db()
    assert (batch.state, batch.comparisons) == (BatchState.SUCCEEDED, 3)
    following = project.batches.get(number=2)
    assert (following.origin, following.total) == (Batch.Origin.TOP_UP, 3)


def test_output_that_is_not_sound_fails_the_batch_in_words(
    project: Project, settings, tmp_path: Path
) -> None:
    batch = started(project)
    write_output(batch)
    program(settings, tmp_path, "echo garbage >> $4/responses.jsonl; exit 0")
    assert work().state == "failed"
    batch.refresh_from_db()
    assert batch.state == BatchState.FAILED
    assert "Nothing was taken in" in batch.error
    assert not Comparison.objects.exists()


def test_a_stopped_program_is_tried_again_and_a_broken_one_is_not(
    project: Project, settings, tmp_path: Path
) -> None:
    batch = started(project)
    program(settings, tmp_path, "exit 75")
    assert work().state == "queued"
    Job.objects.update(run_after=Now() - timedelta(seconds=1))
    program(settings, tmp_path, "echo The disk is on fire; exit 3")
    assert work().state == "failed"
    batch.refresh_from_db()
    assert batch.state == BatchState.FAILED
    assert "The disk is on fire" in batch.error


def test_a_batch_that_was_cancelled_meanwhile_is_left_alone(project: Project) -> None:
    batch = started(project)
    Batch.objects.update(state=BatchState.CANCELLED)
    assert work().state == "succeeded"
    batch.refresh_from_db()
    assert (batch.state, batch.sampler) == (BatchState.CANCELLED, "")
    assert not Path(batch.run_dir).exists()
