"""The job table's own rules: leases, fences, once_key, ends."""

import threading
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from django.db import IntegrityError, connections, transaction
from django.db.models.functions import Now
from django.utils import timezone

from jobs import queue
from jobs.models import Job, JobState
from jobs.queue import AlreadyQueued, LeaseLost
from jobs.run_dir import read_jsonl
from tests.jobs import handlers  # noqa: F401

pytestmark = pytest.mark.django_db

WORKER_WRITES = [
    queue.heartbeat,
    queue.finish,
    queue.cancel,
    queue.requeue,
    queue.cancel_requested,
    lambda job: queue.fail(job, "words"),
    lambda job: queue.set_progress(job, done=1, total=2),
]


def enqueue(**rest) -> Job:
    return queue.enqueue(**{"kind": "test.note", "payload": {}, "lane": "light"} | rest)


def claim() -> Job:
    job = queue.claim(lanes=["light", "gpu"], worker="a worker")
    assert job is not None, "no job is due"
    return job


def none_is_due() -> bool:
    return queue.claim(lanes=["light", "gpu"], worker="a worker") is None


def let_lease_run_out(job: Job) -> None:
    Job.objects.filter(pk=job.pk).update(lease_expires_at=Now() - timedelta(seconds=1))


def test_the_oldest_due_job_comes_first() -> None:
    later = enqueue(run_after=timezone.now() + timedelta(hours=1))
    first, second = enqueue(), enqueue()

    assert [claim(), claim()] == [first, second]
    assert none_is_due()
    later.refresh_from_db()
    assert later.state == JobState.QUEUED


def test_a_leased_job_cannot_be_claimed_and_an_abandoned_one_can() -> None:
    enqueue()
    mine = claim()
    assert none_is_due()

    let_lease_run_out(mine)
    theirs = claim()

    assert theirs == mine
    assert theirs.lease != mine.lease
    assert (mine.attempts, theirs.attempts) == (1, 2)


@pytest.mark.parametrize("write", WORKER_WRITES)
def test_no_write_gets_through_after_the_job_was_taken_over(write) -> None:
    enqueue()
    mine = claim()
    let_lease_run_out(mine)
    theirs = claim()

    with pytest.raises(LeaseLost):
        write(mine)

    now = Job.objects.get()
    assert (now.state, now.lease, now.progress_done) == (JobState.RUNNING, theirs.lease, 0)


@pytest.mark.parametrize("write", WORKER_WRITES)
def test_no_write_gets_through_after_the_job_has_ended(write) -> None:
    enqueue()
    mine = claim()
    queue.finish(Job.objects.get())

    with pytest.raises(LeaseLost):
        write(mine)

    assert Job.objects.get().state == JobState.SUCCEEDED


def test_a_late_worker_keeps_the_job_while_nobody_took_it_over() -> None:
    enqueue()
    mine = claim()
    let_lease_run_out(mine)

    queue.heartbeat(mine)

    assert none_is_due()
    queue.finish(mine)


def test_a_running_job_has_a_lease_and_no_other_has() -> None:
    job = enqueue()
    with pytest.raises(IntegrityError), transaction.atomic():
        Job.objects.filter(pk=job.pk).update(state=JobState.RUNNING)
    with pytest.raises(IntegrityError), transaction.atomic():
        Job.objects.filter(pk=job.pk).update(lease=uuid4(), lease_expires_at=Now())


def test_once_key_admits_one_live_job() -> None:
    first = enqueue(once_key="round:7")
    with pytest.raises(AlreadyQueued) as raised:
        enqueue(once_key="round:7")
    assert raised.value.job == first
    enqueue(once_key="round:8")

    queue.finish(claim())

    assert enqueue(once_key="round:7") != first


def test_a_fault_other_than_a_live_twin_is_not_taken_for_one() -> None:
    enqueue(once_key="round:7")
    queue.finish(claim())
    with pytest.raises(IntegrityError), transaction.atomic():
        enqueue(once_key="round:7", lane="no such lane")


@pytest.mark.django_db(transaction=True)
def test_twenty_presses_at_once_make_one_job() -> None:
    made: list[Job | None] = []
    barrier = threading.Barrier(20)

    def press() -> None:
        barrier.wait()
        try:
            made.append(enqueue(once_key="round:7"))
        except AlreadyQueued:
            made.append(None)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=press) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(made) == 20
    assert [job for job in made if job] == [Job.objects.get()]


@pytest.mark.django_db(transaction=True)
def test_a_job_is_queued_only_if_the_caller_s_transaction_commits() -> None:
    with transaction.atomic():
        enqueue()
        transaction.set_rollback(True)
    assert none_is_due()


def test_the_attempts_of_a_job_that_kills_its_workers_run_out(tmp_path: Path) -> None:
    ended = tmp_path / "ended.jsonl"
    job = enqueue(max_attempts=2, payload={"ended": str(ended)})
    healthy = enqueue()
    for _ in range(2):
        let_lease_run_out(claim())

    assert claim() == healthy

    job.refresh_from_db()
    assert job.state == JobState.FAILED
    assert job.error.startswith("Given up after 2 attempts")
    assert [row["state"] for row in read_jsonl(ended)] == ["failed"]


def test_handing_back_uncounted_can_go_on_for_ever() -> None:
    job = enqueue(max_attempts=1)
    for _ in range(5):
        queue.requeue(claim(), count_attempt=False)
    job.refresh_from_db()
    assert (job.state, job.attempts) == (JobState.QUEUED, 0)


def test_an_attempt_that_got_further_makes_attempts_count_anew() -> None:
    job = enqueue(max_attempts=2)
    for progressed in (False, True, False):
        queue.requeue(claim(), reason="Away.", progressed=progressed)
    job.refresh_from_db()
    assert (job.state, job.attempts) == (JobState.QUEUED, 1)
    queue.requeue(claim(), reason="Away.")
    job.refresh_from_db()
    assert (job.state, job.error) == (JobState.FAILED, "Away. Given up after 2 attempts.")


def test_a_job_handed_back_for_later_waits_and_says_why() -> None:
    enqueue()
    queue.requeue(claim(), delay=timedelta(minutes=1), reason="The server was busy.")
    assert none_is_due()
    assert Job.objects.get().error == "The server was busy."


def test_a_queued_job_is_cancelled_at_once_and_its_handler_told(tmp_path: Path) -> None:
    ended = tmp_path / "ended.jsonl"
    job = queue.request_cancel(enqueue(payload={"ended": str(ended)}).pk)
    assert job.state == JobState.CANCELLED
    assert job.finished_at is not None
    assert list(read_jsonl(ended)) == [{"job": job.pk, "state": "cancelled", "error": ""}]


def test_a_running_job_is_asked_to_stop() -> None:
    enqueue()
    mine = claim()
    assert not queue.cancel_requested(mine)
    assert queue.request_cancel(mine.pk).state == JobState.RUNNING
    assert queue.cancel_requested(mine)


@pytest.mark.parametrize("count", [True, False])
def test_a_job_that_is_handed_back_while_being_cancelled_is_cancelled(count: bool) -> None:
    enqueue()
    mine = claim()
    queue.request_cancel(mine.pk)
    queue.requeue(mine, count_attempt=count)
    assert Job.objects.get().state == JobState.CANCELLED


def test_an_abandoned_job_is_cancelled_though_no_worker_is_left() -> None:
    enqueue()
    mine = claim()
    let_lease_run_out(mine)
    assert queue.request_cancel(mine.pk).state == JobState.CANCELLED


def test_an_abandoned_job_that_was_to_be_cancelled_is_not_run_again() -> None:
    enqueue()
    mine = claim()
    queue.request_cancel(mine.pk)
    let_lease_run_out(mine)
    assert none_is_due()
    assert Job.objects.get().state == JobState.CANCELLED


def test_a_finished_job_cannot_be_cancelled() -> None:
    enqueue()
    queue.finish(claim())
    assert queue.request_cancel(Job.objects.get().pk).state == JobState.SUCCEEDED


def test_a_job_ends_though_its_handler_cannot_take_that_in(tmp_path: Path, caplog) -> None:
    job = enqueue(payload={"ended": str(tmp_path / "no such folder" / "ended.jsonl")})
    assert queue.request_cancel(job.pk).state == JobState.CANCELLED
    assert "could not take that in" in caplog.text


def test_an_idle_look_takes_one_query(django_assert_num_queries) -> None:
    with django_assert_num_queries(1):
        assert none_is_due()
