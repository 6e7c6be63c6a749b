"""Figures: exact where counting is quick, kept where it is slow, counted again by the worker."""

from collections.abc import Iterator
from datetime import timedelta
from threading import Barrier, Thread

import pytest
from django.db import connections
from django.utils import timezone

from jobs import queue
from jobs.models import Job, JobState, WorkerSeen
from jobs.worker import Until, Worker
from labeling import figures
from labeling.figures import figure
from labeling.models import Figure, Project
from tests.builders import make_project, make_prompt

NAME = "test.prompts"


@pytest.fixture(autouse=True)
def _counter(monkeypatch) -> Iterator[None]:
    figures.counted(NAME)(lambda project: project.prompts.count())
    yield
    figures._counts.pop(NAME)


@pytest.fixture
def _slow(monkeypatch) -> None:
    """Whatever is counted takes long."""
    monkeypatch.setattr(figures, "CHEAP_S", -1.0)


def grown_old(project: Project, age: timedelta = timedelta(seconds=30)) -> None:
    Figure.objects.filter(project=project).update(as_of=timezone.now() - age)


def value(project: Project) -> object:
    return figure(project, NAME).value


def work() -> None:
    """What is queued is done, as by a worker's light lane."""
    worker = Worker(lanes=["light"], until=Until.IDLE)
    worker._work(["light"])


@pytest.mark.django_db
def test_what_is_quickly_counted_is_exact_and_writes_nothing(django_assert_num_queries) -> None:
    project = make_project()
    for number in range(3):
        with django_assert_num_queries(2):
            assert value(project) == number
        make_prompt(project=project)
    assert not Figure.objects.exists()
    assert not Job.objects.exists()


@pytest.mark.django_db
@pytest.mark.usefixtures("_slow")
def test_what_is_slowly_counted_is_kept_and_told_with_its_age() -> None:
    project = make_project()
    assert value(project) == 0
    make_prompt(project=project)
    assert value(project) == 0
    assert not Job.objects.exists()  # it is fresh still
    assert not figure(project, NAME).old
    queue.saw_worker(name="here", lanes=["light"])
    grown_old(project)
    assert figure(project, NAME).old


@pytest.mark.django_db
@pytest.mark.usefixtures("_slow")
def test_an_old_value_is_served_and_one_job_is_queued() -> None:
    project, other = make_project(), make_project()
    for one in (project, other):
        figure(one, NAME)
    queue.saw_worker(name="here", lanes=["light"])
    grown_old(project)
    make_prompt(project=project)
    for _ in range(3):
        assert value(project) == 0
    (job,) = Job.objects.all()
    assert job.kind == "labeling.figures"
    assert job.payload == {"project": project.pk, "name": NAME}


@pytest.mark.django_db
@pytest.mark.usefixtures("_slow")
def test_what_takes_long_is_counted_less_often() -> None:
    project = make_project()
    figure(project, NAME)
    Figure.objects.update(took_ms=4000)
    queue.saw_worker(name="here", lanes=["light"])
    grown_old(project, timedelta(seconds=70))
    figure(project, NAME)
    assert not Job.objects.exists()
    grown_old(project, timedelta(seconds=90))
    figure(project, NAME)
    assert Job.objects.count() == 1


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("_slow")
def test_the_worker_counts_again_and_leaves_no_jobs_behind() -> None:
    project = make_project()
    figure(project, NAME)
    queue.saw_worker(name="here", lanes=["light"])
    for number in (1, 2, 3):
        make_prompt(project=project)
        grown_old(project)
        assert value(project) == number - 1
        work()
        assert value(project) == number
    assert Job.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_what_has_become_quick_is_not_kept_any_more(monkeypatch) -> None:
    project = make_project()
    with monkeypatch.context() as patch:
        patch.setattr(figures, "CHEAP_S", -1.0)
        figure(project, NAME)
    queue.saw_worker(name="here", lanes=["light"])
    grown_old(project)
    make_prompt(project=project)
    assert value(project) == 0
    work()
    assert not Figure.objects.exists()
    assert value(project) == 1


@pytest.mark.django_db
@pytest.mark.usefixtures("_slow")
def test_where_there_has_been_no_worker_for_ten_minutes_the_page_counts() -> None:
    project = make_project()
    figure(project, NAME)
    make_prompt(project=project)
    grown_old(project)
    assert value(project) == 1  # there has never been one
    make_prompt(project=project)
    grown_old(project)
    queue.saw_worker(name="here", lanes=["light"])
    for minutes, told in ((9, 1), (11, 2)):
        WorkerSeen.objects.update(seen_at=timezone.now() - timedelta(minutes=minutes))
        assert value(project) == told


@pytest.mark.django_db
@pytest.mark.usefixtures("_slow")
def test_kept_values_may_be_deleted_at_any_time() -> None:
    project = make_project()
    figure(project, NAME)
    make_prompt(project=project)
    Figure.objects.all().delete()
    assert value(project) == 1


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("_slow")
def test_two_that_ask_first_at_once_both_get_the_value() -> None:
    project, seen, both = make_project(), [], Barrier(2)

    def ask() -> None:
        try:
            both.wait(10)
            seen.append(value(project))
        finally:
            connections.close_all()

    threads = [Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert seen == [0, 0]
    assert Figure.objects.count() == 1


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("payload", [{"name": NAME}, {"project": 0}, {"name": "of.another.day"}])
def test_a_job_for_what_is_not_there_any_more_does_nothing(payload) -> None:
    whole = {"project": make_project().pk, "name": NAME} | payload
    job = queue.enqueue(kind=figures.KIND, payload=whole, lane="light")
    work()
    job.refresh_from_db()
    assert job.state == JobState.SUCCEEDED
    assert not Figure.objects.exists()


def test_a_name_is_given_once() -> None:
    with pytest.raises(ValueError, match="two counts"):
        figures.counted(NAME)(lambda project: 0)
