"""What the worker promises, shown with real processes, kill -9 and frozen workers."""

import json
import os
import signal
import subprocess
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jobs import queue
from jobs.models import Job, JobState, Schedule, WorkerSeen
from jobs.run_dir import read_jsonl
from jobs.schedule import set_schedule
from tests.jobs.conftest import RunDir, Workers, alive, eventually, wait_for


def note(path: Path, **rest) -> Job:
    return queue.enqueue(kind="test.note", payload={"path": str(path)}, lane="light", **rest)


def test_among_many_workers_each_job_runs_once(workers: Workers, tmp_path: Path) -> None:
    jobs = [note(tmp_path / "notes.jsonl").pk for _ in range(200)]

    started = [workers.start("--until-idle") for _ in range(4)]

    assert [worker.wait(50) for worker in started] == [0, 0, 0, 0]
    runs = list(read_jsonl(tmp_path / "notes.jsonl"))
    assert Counter(run["job"] for run in runs) == Counter(jobs)
    assert len({run["pid"] for run in runs}) > 1
    assert set(Job.objects.values_list("state", "attempts")) == {(JobState.SUCCEEDED, 1)}


def test_once_runs_one_job_of_any_lane(workers: Workers, tmp_path: Path) -> None:
    first, second = note(tmp_path / "notes.jsonl"), note(tmp_path / "notes.jsonl")

    assert workers.start("--once").wait(20) == 0

    wait_for(first, JobState.SUCCEEDED)
    second.refresh_from_db()
    assert second.state == JobState.QUEUED


def test_a_worker_takes_only_jobs_of_its_lanes(
    workers: Workers, tmp_path: Path, run_dir: RunDir
) -> None:
    other_lane, light = run_dir.enqueue("forever"), note(tmp_path / "notes.jsonl")

    assert workers.start("--lanes", "light", "--until-idle").wait(20) == 0

    wait_for(light, JobState.SUCCEEDED)
    other_lane.refresh_from_db()
    assert other_lane.state == JobState.QUEUED


def test_after_kill_9_the_program_dies_and_the_job_is_taken_over(
    workers: Workers, run_dir: RunDir
) -> None:
    job = run_dir.enqueue("forever")
    first = workers.start()
    orphan = run_dir.started()

    first.kill()
    eventually(lambda: not alive(orphan), "the program without its worker ends")
    workers.start()
    successor = run_dir.started(2)
    run_dir.finish()

    wait_for(job, JobState.SUCCEEDED)
    assert job.attempts == 2
    assert not alive(successor)


def test_a_worker_that_froze_and_woke_cannot_write_and_its_program_is_gone(
    workers: Workers, run_dir: RunDir
) -> None:
    job = run_dir.enqueue("forever")
    frozen = workers.start()
    abandoned = run_dir.started()

    frozen.send_signal(signal.SIGSTOP)
    workers.start()
    successor = run_dir.started(2)
    assert not alive(abandoned), "two programs worked in one run directory"
    job.refresh_from_db()
    new_lease = job.lease
    frozen.send_signal(signal.SIGCONT)
    eventually(lambda: "belongs to another worker" in workers.log.read_text(), "it lets go")

    job.refresh_from_db()
    assert (job.state, job.lease, job.attempts) == (JobState.RUNNING, new_lease, 2)
    assert alive(successor)
    run_dir.finish()
    wait_for(job, JobState.SUCCEEDED)


def test_what_a_frozen_worker_writes_on_waking_is_refused(workers: Workers, tmp_path: Path) -> None:
    path, until = tmp_path / "late.jsonl", tmp_path / "until"
    payload = {"path": str(path), "until": str(until)}
    job = queue.enqueue(kind="test.late", payload=payload, lane="light")
    frozen = workers.start()
    eventually(path.exists, "the first worker begins")

    frozen.send_signal(signal.SIGSTOP)
    workers.start()
    eventually(lambda: len(list(read_jsonl(path))) == 2, "the second worker begins")
    until.touch()
    wait_for(job, JobState.SUCCEEDED)
    frozen.send_signal(signal.SIGCONT)
    eventually(lambda: "belongs to another worker" in workers.log.read_text(), "it lets go")

    assert [row for row in read_jsonl(path) if "wrote" in row] == [{"wrote": 2}]


def test_cancel_ends_every_process_of_the_program(
    workers: Workers, run_dir: RunDir, tmp_path: Path
) -> None:
    job = run_dir.enqueue("grandchild", ended=str(tmp_path / "ended.jsonl"))
    workers.start()
    program, [grandchild] = run_dir.started(), run_dir.pids("grandchild")

    queue.request_cancel(job.pk)

    wait_for(job, JobState.CANCELLED, seconds=10)
    assert not alive(program)
    eventually(lambda: not alive(grandchild), "the grandchild is reaped")
    assert [row["state"] for row in read_jsonl(tmp_path / "ended.jsonl")] == ["cancelled"]


def test_sigterm_requeues_without_losing_an_attempt_and_the_next_worker_goes_on(
    workers: Workers, run_dir: RunDir
) -> None:
    job = run_dir.enqueue("forever")
    worker = workers.start()
    program = run_dir.started()

    worker.terminate()

    assert worker.wait(15) == 0
    job.refresh_from_db()
    assert (job.state, job.attempts, job.lease) == (JobState.QUEUED, 0, None)
    assert run_dir.pids("stopped") == [program], "the program could not write its checkpoint"
    workers.start()
    run_dir.started(2)
    run_dir.finish()
    assert wait_for(job, JobState.SUCCEEDED).attempts == 1


def test_ctrl_c_to_the_whole_group_leaves_no_orphan(workers: Workers, run_dir: RunDir) -> None:
    job = run_dir.enqueue("grandchild")
    worker = workers.start()
    program, [grandchild] = run_dir.started(), run_dir.pids("grandchild")

    os.killpg(worker.pid, signal.SIGINT)
    os.killpg(worker.pid, signal.SIGTERM)  # whoever started the worker passes the signal on

    assert worker.wait(15) == 0
    assert not alive(program)
    eventually(lambda: not alive(grandchild), "the grandchild is reaped")
    job.refresh_from_db()
    assert (job.state, job.attempts) == (JobState.QUEUED, 0)


def test_a_stop_that_reaches_the_program_first_is_still_a_stop(
    workers: Workers, run_dir: RunDir
) -> None:
    """As systemd does it: SIGTERM to every process of the service."""
    job = run_dir.enqueue("forever")
    worker = workers.start()
    program = run_dir.started()

    os.kill(program, signal.SIGTERM)
    worker.terminate()

    assert worker.wait(15) == 0
    job.refresh_from_db()
    assert (job.state, job.attempts) == (JobState.QUEUED, 0)


def test_a_second_signal_kills_a_program_that_does_not_listen(
    workers: Workers, run_dir: RunDir
) -> None:
    job = run_dir.enqueue("deaf")
    worker = workers.start()
    program = run_dir.started()

    worker.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(1.5)
    worker.terminate()

    assert worker.wait(5) == 128 + signal.SIGTERM
    eventually(lambda: not alive(program), "the program is killed")
    job.refresh_from_db()
    assert job.state == JobState.RUNNING, "its lease, not the dying worker, gives it back"


def test_a_handler_that_works_in_the_worker_stops_too(workers: Workers, tmp_path: Path) -> None:
    path = tmp_path / "waits.jsonl"
    job = queue.enqueue(kind="test.wait", payload={"path": str(path)}, lane="light")
    worker = workers.start()
    eventually(path.exists, "the handler begins")

    worker.terminate()

    assert worker.wait(10) == 0
    job.refresh_from_db()
    assert (job.state, job.attempts) == (JobState.QUEUED, 0)


def test_the_program_sees_none_of_the_site_s_secrets(workers: Workers, run_dir: RunDir) -> None:
    job = run_dir.enqueue("environment")

    assert workers.start("--until-idle").wait(20) == 0

    wait_for(job, JobState.SUCCEEDED)
    seen = json.loads((run_dir.path / "environment.json").read_text())
    assert not [name for name, value in seen.items() if "canary" in value]
    assert not {name for name in seen if "SECRET" in name or "DATABASE" in name}
    assert seen["PREFLOOP_GIVEN"] == "by the caller"
    assert seen["HF_HUB_OFFLINE"] == "1"
    assert oct((run_dir.path / "program.log").stat().st_mode)[-3:] == "600"


def test_progress_of_the_program_reaches_the_row(workers: Workers, run_dir: RunDir) -> None:
    job = run_dir.enqueue("forever")
    workers.start()

    def moved() -> bool:
        job.refresh_from_db()
        return job.progress_done > 0 and job.progress_total == 10

    eventually(moved, "progress is written")


def test_the_site_can_tell_when_a_worker_was_last_seen(workers: Workers) -> None:
    assert queue.worker_seen() is None

    workers.start("--lanes", "light", "--until-idle").wait(20)

    assert queue.worker_seen() is not None
    assert WorkerSeen.objects.get().lanes == "light"


def test_several_workers_fire_a_due_schedule_once(workers: Workers, tmp_path: Path) -> None:
    made = set_schedule(
        name="every night",
        kind="test.note",
        payload={"path": str(tmp_path / "notes.jsonl")},
        lane="light",
        cron="30 2 * * *",
        time_zone="Europe/Berlin",
    )
    Schedule.objects.filter(pk=made.pk).update(next_run_at=datetime(2026, 1, 1, tzinfo=UTC))

    started = [workers.start("--until-idle") for _ in range(3)]

    assert [worker.wait(20) for worker in started] == [0, 0, 0]
    assert len(list(read_jsonl(tmp_path / "notes.jsonl"))) == 1
    made.refresh_from_db()
    assert made.last_job == Job.objects.get()
