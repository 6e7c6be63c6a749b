"""How a job ends in a worker's hands: the handler's words, silence, a database out of reach."""

import os
import sys
import threading
from pathlib import Path

import pytest
from django.db import OperationalError

from jobs import process, queue
from jobs.models import Job, JobState
from jobs.queue import LeaseLost
from jobs.run_dir import read_jsonl
from jobs.running import RunningJob
from jobs.worker import run_job
from tests.jobs.conftest import RunDir, alive, eventually


def work_until_idle() -> None:
    """What a worker's lane does, in this process."""
    while job := queue.claim(lanes=["gpu", "light"], worker="this test"):
        run_job(job, threading.Event())


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("test.fail", "Only 3 pairs are decided; 10 are needed. Judge more comparisons first."),
        ("test.crash", "Stopped by an unexpected error (KeyError)."),
        ("test.exit", "Stopped by an unexpected error (SystemExit)."),
        ("test.again", "The server was busy. Given up after 2 attempts."),
        ("test.no_such", "This worker does not know jobs of kind test.no_such"),
    ],
)
def test_how_a_job_failed_reaches_the_row_and_the_handler(
    transactional_db, tmp_path: Path, kind: str, words: str
) -> None:
    ended = tmp_path / "ended.jsonl"
    payload = {"ended": str(ended)}
    job = queue.enqueue(kind=kind, payload=payload, lane="light", max_attempts=2)

    work_until_idle()

    job.refresh_from_db()
    assert job.state == JobState.FAILED
    assert job.error.startswith(words)
    assert "secret detail" not in job.error
    if kind != "test.no_such":
        assert list(read_jsonl(ended)) == [{"job": job.pk, "state": "failed", "error": job.error}]


def test_a_silent_program_is_stopped_and_said_so(transactional_db, run_dir: RunDir) -> None:
    job = run_dir.enqueue("silent", silence_s=1)

    work_until_idle()

    job.refresh_from_db()
    assert job.state == JobState.FAILED
    assert "wrote nothing for 1 min and was stopped" in job.error
    assert not alive(run_dir.started())


def test_a_program_that_cannot_be_started_fails_in_words(
    transactional_db, run_dir: RunDir, monkeypatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    job = run_dir.enqueue("forever")

    work_until_idle()

    job.refresh_from_db()
    assert job.error.startswith("/no/such/python could not be started: No such file or directory")


def test_what_a_finished_program_left_running_is_killed(transactional_db, run_dir: RunDir) -> None:
    run_dir.finish()
    run_dir.enqueue("grandchild")

    work_until_idle()

    eventually(lambda: not alive(run_dir.pids("grandchild")[0]), "the grandchild is killed")


def test_a_database_that_is_away_for_a_moment_does_not_end_the_program(
    transactional_db, run_dir: RunDir, monkeypatch
) -> None:
    job = run_dir.enqueue("forever")
    refused = []

    def refuse(*args, **kwargs) -> None:
        refused.append(1)
        run_dir.finish()
        raise OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(queue, "set_progress", refuse)

    work_until_idle()

    job.refresh_from_db()
    assert refused
    assert job.state == JobState.SUCCEEDED


def test_a_worker_that_cannot_renew_for_a_whole_lease_stops_its_work(
    transactional_db, settings, monkeypatch
) -> None:
    settings.JOB_LEASE_SECONDS = 0.6
    queue.enqueue(kind="test.note", payload={}, lane="light")
    claimed = queue.claim(lanes=["light"], worker="cut off")
    assert claimed is not None

    def refuse(job: Job) -> None:
        raise OperationalError("could not connect")

    monkeypatch.setattr(queue, "heartbeat", refuse)
    running = RunningJob(claimed, threading.Event())
    with running.kept():
        running.check()
        eventually(lambda: running.lost, "it stops by itself", seconds=5)
    with pytest.raises(LeaseLost):
        running.check()


def test_progress_is_written_at_most_once_a_second(
    transactional_db, django_assert_num_queries
) -> None:
    queue.enqueue(kind="test.note", payload={}, lane="light")
    claimed = queue.claim(lanes=["light"], worker="w")
    assert claimed is not None
    running = RunningJob(claimed, threading.Event())

    with django_assert_num_queries(2):  # the first, and the last
        for done in range(1, 101):
            running.progress(done, 100)


@pytest.mark.parametrize("name", ["DATABASE_URL", "HF_TOKEN", "API_SECRET", "db_password"])
def test_a_caller_cannot_hand_a_secret_to_a_program(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        process.program_environment({name: "x"})


def test_a_program_inherits_only_what_is_listed(monkeypatch) -> None:
    monkeypatch.setattr(
        os,
        "environ",
        {
            "PATH": "/bin",
            "LC_ALL": "C",
            "CUDA_VISIBLE_DEVICES": "0",
            "CUDA_TOKEN": "x",
            "PREFLOOP_DATABASE_URL": "x",
            "TOKENIZERS_PARALLELISM": "x",
        },
    )
    assert process.program_environment({"TOKENIZERS_PARALLELISM": "false"}) == {
        "GOMP_SPINCOUNT": "2000",
        "PATH": "/bin",
        "LC_ALL": "C",
        "CUDA_VISIBLE_DEVICES": "0",
        "HF_HUB_OFFLINE": "1",
        "PREFLOOP_WATCH_STDIN": "1",
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
