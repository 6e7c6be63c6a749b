"""Schedules and the cron expressions they are written in."""

import threading
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from django.db import connections
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from jobs import queue
from jobs.cron import CronError, next_time
from jobs.models import Job, JobState, Schedule
from jobs.schedule import set_paused, set_schedule, tick

BERLIN = ZoneInfo("Europe/Berlin")
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


def make_schedule(*, due: bool = True, name: str = "nightly round") -> Schedule:
    made = set_schedule(
        name=name,
        kind="test.note",
        payload={"n": 1},
        lane="light",
        cron="30 2 * * *",
        time_zone="Europe/Berlin",
    )
    if due:
        Schedule.objects.filter(pk=made.pk).update(next_run_at=LONG_AGO)
        made.refresh_from_db()
    return made


def times(cron: str, zone: str, after: datetime, count: int) -> list[datetime]:
    found = []
    for _ in range(count):
        after = next_time(cron, zone, after)
        found.append(after)
    return found


def test_clocks_put_forward_over_the_due_time_still_fire_once_that_night() -> None:
    local = [
        moment.astimezone(BERLIN).strftime("%d %H:%M")
        for moment in times("30 2 * * *", "Europe/Berlin", datetime(2026, 3, 28, 12, tzinfo=UTC), 2)
    ]
    assert local == ["29 03:00", "30 02:30"]


def test_clocks_put_back_over_the_due_time_fire_once_that_night() -> None:
    local = [
        moment.astimezone(BERLIN).strftime("%d %H:%M")
        for moment in times(
            "30 2 * * *", "Europe/Berlin", datetime(2026, 10, 24, 12, tzinfo=UTC), 2
        )
    ]
    assert local == ["25 02:30", "26 02:30"]


@given(
    after=st.datetimes(datetime(2020, 1, 1), datetime(2035, 1, 1), timezones=st.just(UTC)),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]),
    minute=st.integers(0, 59),
    hour=st.integers(0, 23),
)
def test_a_daily_schedule_fires_once_on_every_local_day(
    after: datetime, zone: str, minute: int, hour: int
) -> None:
    found = times(f"{minute} {hour} * * *", zone, after, 4)
    assert after < found[0]
    days = [moment.astimezone(ZoneInfo(zone)).date() for moment in found]
    assert days == [days[0] + timedelta(days=n) for n in range(4)]


@pytest.mark.parametrize(
    ("cron", "zone"),
    [
        ("", "UTC"),
        ("30 2 * *", "UTC"),
        ("0 30 2 * * *", "UTC"),
        ("61 2 * * *", "UTC"),
        ("30 2 * * noday", "UTC"),
        ("0 0 30 2 *", "UTC"),
        ("30 2 * * *", "Mars/Olympus"),
        ("30 2 * * *", ""),
        ("30 2 * * *", "../../etc/passwd"),
    ],
)
def test_a_schedule_that_cannot_be_meant_is_refused_in_words(cron: str, zone: str) -> None:
    with pytest.raises(CronError) as raised:
        next_time(cron, zone, timezone.now())
    assert len(str(raised.value)) > 20


@pytest.mark.django_db
def test_missed_times_make_one_job() -> None:
    made = make_schedule()

    assert (tick(), tick()) == (1, 0)

    made.refresh_from_db()
    assert made.last_job == Job.objects.get()
    assert made.last_job.payload == {"n": 1}
    assert made.next_run_at > timezone.now()


@pytest.mark.django_db
def test_a_schedule_leaves_one_job_that_succeeded_and_all_that_failed() -> None:
    made = make_schedule()
    for state in (JobState.SUCCEEDED, JobState.FAILED, JobState.SUCCEEDED, JobState.SUCCEEDED):
        assert tick() == 1
        made.refresh_from_db()
        Job.objects.filter(pk=made.last_job_id).update(state=state)
        Schedule.objects.filter(pk=made.pk).update(next_run_at=LONG_AGO)

    assert [job.state for job in Job.objects.order_by("pk")] == ["failed", "succeeded"]


@pytest.mark.django_db
def test_a_schedule_whose_job_is_live_is_left_out() -> None:
    made = make_schedule()
    tick()
    Schedule.objects.filter(pk=made.pk).update(next_run_at=LONG_AGO)

    assert tick() == 0

    assert Job.objects.count() == 1
    job = queue.claim(lanes=["light"], worker="w")
    assert job is not None
    queue.finish(job)
    Schedule.objects.filter(pk=made.pk).update(next_run_at=LONG_AGO)
    assert tick() == 1


@pytest.mark.django_db
def test_a_paused_schedule_does_not_fire_and_makes_nothing_up_later() -> None:
    made = make_schedule(due=False)
    set_paused(made, paused=True)
    Schedule.objects.filter(pk=made.pk).update(next_run_at=LONG_AGO)
    assert tick() == 0

    set_paused(made, paused=False)

    assert tick() == 0
    assert made.next_run_at > timezone.now()


@pytest.mark.django_db
def test_setting_a_schedule_again_changes_it() -> None:
    first = make_schedule()
    again = make_schedule(due=False)
    assert first.pk == again.pk
    assert again.next_run_at > timezone.now()


@pytest.mark.django_db
def test_a_schedule_that_can_no_longer_be_meant_is_paused_and_the_others_fire(caplog) -> None:
    broken = make_schedule(name="broken")
    Schedule.objects.filter(pk=broken.pk).update(time_zone="Mars/Olympus")
    make_schedule(name="sound")

    assert tick() == 1

    broken.refresh_from_db()
    assert broken.paused
    assert "is paused" in caplog.text


@pytest.mark.django_db(transaction=True)
def test_ticks_at_the_same_moment_fire_a_due_time_once() -> None:
    made = make_schedule()
    fired = set()
    for _ in range(5):
        barrier, counts = threading.Barrier(6), list[int]()

        def tick_together(barrier=barrier, counts=counts) -> None:
            barrier.wait()
            counts.append(tick())
            connections.close_all()

        threads = [threading.Thread(target=tick_together) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert sum(counts) == 1
        fired.add(Job.objects.get().pk)
        Job.objects.update(state=JobState.SUCCEEDED)
        Schedule.objects.filter(pk=made.pk).update(next_run_at=LONG_AGO)
    assert len(fired) == 5
