"""Rounds that start by themselves: when, when not, and what is said of it."""

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connections
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from jobs.models import Job, Schedule
from labeling.models import Delivery, PolicyState, Project, Role, Split, Subscription
from labeling.overview import ROUND_PAIRS
from labeling.services.notifying import subscribe
from tests.builders import judge, make_comparison, make_policy, make_prompt, make_user
from tests.training.rounds import RESULTS, make_round
from training import schedules
from training.filters import Filters
from training.models import AfterSuccess, Reference, Round, RoundSchedule, RoundState, Snapshot
from training.new_pairs import NAME, new_pairs
from training.schedules import (
    CannotSchedule,
    coming,
    in_words,
    look,
    pause,
    resume,
    save_schedule,
)
from training.services import cancel_round, end_round
from training.telling import tell_finished

pytestmark = pytest.mark.django_db
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)
NIGHTLY = "30 2 * * *"


def prefer(project: Project, number: int, *, split: Split = Split.TRAIN) -> None:
    annotator = make_user(role=Role.ANNOTATOR, project=project)
    for _ in range(number):
        prompt = make_prompt(project=project, split=split)
        judge(comparison=make_comparison(prompt=prompt), annotator=annotator)


def saved(project: Project, **values: Any) -> RoundSchedule:
    return save_schedule(project=project, actor=None, **values)


def due(project: Project) -> None:
    RoundSchedule.objects.filter(project=project).update(next_at=LONG_AGO)


def held_up(project: Project) -> str:
    return RoundSchedule.objects.get(project=project).held_up


def succeed(round_: Round) -> None:
    """As the worker would: what it trained on was frozen now."""
    snapshot = Snapshot.objects.create(
        project=round_.project, path="/nowhere", digest="", groups=0, pairs=0, held_out_pairs=0
    )
    Round.objects.filter(pk=round_.pk).update(state=RoundState.SUCCEEDED, snapshot=snapshot)


def started(project: Project) -> Round:
    round_ = look(project=project)
    assert round_ is not None, held_up(project)
    return round_


# Every so many


def test_a_round_starts_with_the_nth_new_preference_and_then_after_as_many_again(ready) -> None:
    saved(ready, every=ROUND_PAIRS + 2)
    assert look(project=ready) is None
    prefer(ready, 1)
    prefer(ready, 3, split=Split.HELD_OUT)
    assert look(project=ready) is None
    assert held_up(ready) == ""
    prefer(ready, 1)

    first = started(ready)

    assert (first.origin, first.state) == (Round.Origin.SCHEDULE, RoundState.QUEUED)
    assert look(project=ready) is None, "one is under way"
    succeed(first)
    assert new_pairs(ready).number == 0
    assert look(project=ready) is None
    prefer(ready, ROUND_PAIRS + 1)
    assert look(project=ready) is None
    assert schedules.missing(RoundSchedule.objects.get(), new_pairs(ready)) == 1
    prefer(ready, 1)
    assert started(ready).number == 2


def test_only_what_training_would_take_counts(ready) -> None:
    prompts = [make_prompt(project=ready, split=Split.TRAIN) for _ in range(3)]
    tied, gold, retired = (make_comparison(prompt=prompt) for prompt in prompts)
    judge(comparison=tied, tiers=[[0, 1]])
    for comparison, change in ((gold, {"purpose": "gold"}), (retired, {"state": "retired"})):
        judge(comparison=comparison)
        type(comparison).objects.filter(pk=comparison.pk).update(**change)
    assert new_pairs(ready).number == ROUND_PAIRS


def test_a_round_is_as_the_schedule_says(ready) -> None:
    manager = make_user(role=Role.MANAGER, project=ready)
    save_schedule(
        project=ready,
        actor=manager,
        every=5,
        after=AfterSuccess.PROMOTE,
        options={"beta": 0.3},
        filters=Filters(agreement=60),
        reference=Reference.START,
    )
    round_ = started(ready)
    assert (round_.after, round_.options["beta"]) == ("promote", 0.3)
    assert (round_.filters, round_.started_by) == ({"agreement": 60}, manager)
    assert round_.reference == round_.start


def test_a_schedule_whose_round_failed_or_was_cancelled_waits_for_people(ready) -> None:
    saved(ready, every=5)
    failed = started(ready)
    end_round(round_=failed, state=RoundState.FAILED, error="Out of memory.")
    assert look(project=ready) is None
    assert "Round 1, which this schedule started, ended as: failed" in held_up(ready)

    resume(project=ready)
    assert held_up(ready) == ""
    cancel_round(round_=started(ready))
    assert look(project=ready) is None
    assert "ended as: cancelled" in held_up(ready)

    end_round(round_=make_round(ready, RoundState.RUNNING), state=RoundState.FAILED, error="No.")
    assert look(project=ready) is None, "a person's round that failed too changes nothing"

    succeed(make_round(ready, RoundState.RUNNING))
    prefer(ready, 5)
    assert started(ready).number == 5
    assert held_up(ready) == ""


def test_what_stands_in_a_round_s_way_is_said(ready) -> None:
    saved(ready, every=5)
    ready.policies.update(state=PolicyState.RETIRED)
    assert look(project=ready) is None
    assert held_up(ready) == "No policy serves yet; register one first."
    make_policy(project=ready, state=PolicyState.SERVING)
    assert started(ready)


# By the clock


def test_a_due_time_starts_a_round_once_however_many_were_missed(ready) -> None:
    saved(ready, cron=NIGHTLY, time_zone="Europe/Berlin")
    assert look(project=ready) is None, "not yet"
    due(ready)
    succeed(started(ready))
    assert RoundSchedule.objects.get().next_at > timezone.now()
    prefer(ready, 1)
    assert look(project=ready) is None


def test_a_due_time_without_anything_new_or_with_a_live_round_says_so(ready) -> None:
    saved(ready, cron=NIGHTLY, time_zone="Europe/Berlin")
    live = make_round(ready, RoundState.RUNNING)
    due(ready)
    assert look(project=ready) is None
    due_words = "Due Thursday 1 January 2026, 01:00 (CET): "
    assert held_up(ready) == f"{due_words}Round 1 was not done yet."
    succeed(live)
    due(ready)
    assert look(project=ready) is None
    assert held_up(ready) == f"{due_words}There were no new preferences since the last round."


def test_with_both_a_round_needs_the_time_and_the_number(ready) -> None:
    saved(ready, cron=NIGHTLY, every=ROUND_PAIRS + 1)
    due(ready)
    assert look(project=ready) is None
    assert "There were 10 new preferences since the last round; 11 are asked" in held_up(ready)
    prefer(ready, 1)
    assert look(project=ready) is None, "the next night"
    due(ready)
    assert started(ready)
    assert held_up(ready) == ""


def test_a_failed_night_is_tried_again_the_next(ready) -> None:
    saved(ready, cron=NIGHTLY)
    due(ready)
    end_round(round_=started(ready), state=RoundState.FAILED, error="No.")
    due(ready)
    assert started(ready).number == 2


@pytest.mark.parametrize(
    ("due_at", "next_at"),
    [
        ("2026-03-29T01:00Z", "2026-03-30T00:30Z"),  # 02:30 is skipped: it comes at 03:00
        ("2026-10-25T00:30Z", "2026-10-26T01:30Z"),  # 02:30 comes twice that night
    ],
)
def test_a_change_of_the_clocks_fires_once(ready, due_at: str, next_at: str) -> None:
    schedule = saved(ready, cron=NIGHTLY, time_zone="Europe/Berlin")
    schedule.next_at = datetime.fromisoformat(due_at)
    assert schedules._fire(schedule, new_pairs(ready), schedule.next_at) is not None
    assert RoundSchedule.objects.get().next_at == datetime.fromisoformat(next_at)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("when", [{"every": 5}, {"cron": NIGHTLY}])
def test_of_many_workers_one_starts_the_round(ready, when) -> None:
    saved(ready, **when)
    if "cron" in when:
        due(ready)
    begin, found, errors = threading.Barrier(4), [], []

    def worker() -> None:
        try:
            begin.wait(10)
            found.append(look(project=ready))
        except Exception as error:
            errors.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=worker) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len([one for one in found if one is not None]) == 1
    assert Round.objects.count() == Job.objects.filter(kind="training.round").count() == 1


def test_a_look_that_was_overtaken_starts_nothing(ready, monkeypatch) -> None:
    saved(ready, every=5)
    stale = new_pairs(ready)
    succeed(make_round(ready, RoundState.RUNNING))
    monkeypatch.setattr(schedules, "new_pairs", lambda _project: stale)
    monkeypatch.setattr(schedules, "count_now", lambda _project: stale)
    assert look(project=ready) is None


def test_a_figure_that_is_old_neither_starts_a_round_nor_hides_one(ready, monkeypatch) -> None:
    monkeypatch.setattr("labeling.figures.CHEAP_S", -1.0)  # as in a large project
    saved(ready, every=ROUND_PAIRS)
    first = started(ready)
    succeed(first)
    prefer(ready, 1)
    assert new_pairs(ready).number == 1, "the kept figure is of before the round"
    assert look(project=ready) is None
    ready.figures.filter(name=NAME).update(value={"number": 99, "since": first.pk})
    assert look(project=ready) is None


# Pausing, saving


def test_a_paused_schedule_starts_nothing_and_makes_up_for_no_time(ready) -> None:
    saved(ready, cron=NIGHTLY)
    pause(project=ready)
    due(ready)
    assert look(project=ready) is None
    assert Schedule.objects.get().paused
    saved(ready, cron=NIGHTLY, every=3)
    assert RoundSchedule.objects.get().paused, "saving is not resuming"
    resume(project=ready)
    assert not Schedule.objects.get().paused
    assert look(project=ready) is None
    due(ready)
    assert started(ready)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({}, "every"),
        ({"cron": "nonsense"}, "cron"),
        ({"cron": "61 2 * * *"}, "cron"),
        ({"cron": "0 0 30 2 *"}, "cron"),
        ({"cron": NIGHTLY, "time_zone": "Mars/Olympus"}, "time_zone"),
        ({"every": 5, "time_zone": "../etc/passwd"}, "time_zone"),
    ],
)
def test_what_cannot_be_meant_is_refused(project, values, field) -> None:
    with pytest.raises(CannotSchedule) as refusal:
        saved(project, **values)
    assert refusal.value.field == field
    assert not RoundSchedule.objects.exists()


def test_the_next_times_are_in_the_words_of_their_zone() -> None:
    times = coming("0 6 * * 1", "Europe/Berlin")
    assert len(times) == 5
    assert all(moment.strftime("%A %H:%M") == "Monday 06:00" for moment in times)
    assert times[1].date() - times[0].date() == timedelta(days=7)
    assert in_words(times[0]).startswith("Monday ")
    assert in_words(times[0])[-5:] in ("(CET)", "CEST)")


# The page


@pytest.fixture
def page(project) -> str:
    return reverse("training:schedule", args=[project.slug])


def form(**changes: Any) -> dict[str, Any]:
    usual = {"every": "40", "cron": "", "time_zone": "UTC", "like": "", "after": "evaluate"}
    return usual | changes


def text_of(manager: Client, page: str) -> str:
    return manager.get(page).content.decode()


def test_the_page_saves_says_how_far_it_is_and_pauses(ready, manager, page) -> None:
    assert "Nothing is scheduled" in text_of(manager, page)
    sent = form(cron="0 6 * * 1", time_zone="Europe/Berlin", after="promote")
    assert manager.post(page, sent).status_code == 302
    schedule = RoundSchedule.objects.get()
    assert (schedule.every, schedule.cron, schedule.after) == (40, "0 6 * * 1", "promote")
    assert schedule.saved_by is not None
    text = text_of(manager, page)
    assert "30 more preferences until the next round." in text
    assert text.count("Monday") >= 6, "five times, and when it is due"
    RoundSchedule.objects.update(held_up="Due then: Round 9 was not done yet.")
    assert "Round 9 was not done yet." in text_of(manager, page)

    manager.post(reverse("training:pause_schedule", args=[ready.slug]), {"paused": "yes"})
    assert "Paused: no round starts" in text_of(manager, page)
    manager.post(reverse("training:pause_schedule", args=[ready.slug]), {"paused": "no"})
    assert not RoundSchedule.objects.get().paused


def test_rounds_can_be_like_one_that_succeeded(ready, manager, page) -> None:
    options, filters = {"beta": 0.7}, {"agreement": 60}
    succeed(make_round(ready, RoundState.RUNNING, options=options, filters=filters))
    manager.post(page, form(like="1"))
    schedule = RoundSchedule.objects.get()
    assert (schedule.options, schedule.filters) == (options, filters)
    assert schedule.reference == Reference.INITIAL
    manager.post(page, form(like="as-is", every="50"))
    schedule.refresh_from_db()
    assert (schedule.every, schedule.options) == (50, options)
    manager.post(page, form(like=""))
    schedule.refresh_from_db()
    assert (schedule.options, schedule.filters) == ({}, {})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"every": ""}, "Say after how many new preferences"),
        ({"every": "0"}, "greater than or equal to 1"),
        ({"cron": "* * * * * *"}, "five fields"),
        ({"cron": "<b>"}, "&lt;b&gt;"),
        ({"time_zone": "Mars/Olympus"}, "not one of the available choices"),
        ({"like": "99"}, "not one of the available choices"),
    ],
)
def test_what_is_wrong_is_said_at_its_field(project, manager, page, changes, said) -> None:
    answer = manager.post(page, form(**changes))
    assert answer.status_code == 422
    assert said in answer.content.decode()
    assert not RoundSchedule.objects.exists()


def test_the_times_ahead_are_shown_while_one_writes(project, manager) -> None:
    address = reverse("training:preview_schedule", args=[project.slug])
    times = manager.get(address, {"cron": "0 6 * * 1", "time_zone": "Asia/Tokyo"}).content.decode()
    assert times.count("06:00 (JST)") == 5
    for cron, said in (("", "No times"), ("0 0 30 2 *", "Bad day"), ("<i>", "&lt;i&gt;")):
        assert said in manager.get(address, {"cron": cron}).content.decode()
    assert manager.get(address, {"cron": "* * * * *", "time_zone": "\0"}).status_code == 200


def test_a_schedule_of_a_gone_time_zone_is_paused_and_says_why(ready, manager, page) -> None:
    saved(ready, cron=NIGHTLY)
    RoundSchedule.objects.update(time_zone="Mars/Olympus")
    due(ready)
    assert look(project=ready) is None
    schedule = RoundSchedule.objects.get()
    assert schedule.paused
    assert "Mars/Olympus" in schedule.held_up
    assert manager.get(page).status_code == 200


# What others are told


def test_who_subscribed_is_told_of_a_round_s_end(ready) -> None:
    subscribe(
        project=ready,
        channel=Subscription.Channel.WEBHOOK,
        target="https://example.org/",
        events=["round_finished", "round_failed"],
        actor=None,
    )
    saved(ready, every=5)
    failed = started(ready)
    for _ in range(2):  # a second end is none
        end_round(round_=failed, state=RoundState.FAILED, error="Out of memory.\nStack")
    [message] = Delivery.objects.values_list("payload", flat=True)
    assert message["event"] == "round_failed"
    assert message["facts"] == {"round": 1, "reason": "Out of memory.", "origin": "schedule"}
    assert message["url"].endswith(f"/p/{ready.slug}/rounds/1/")

    end_round(round_=make_round(ready, RoundState.RUNNING), state=RoundState.CANCELLED)
    assert Delivery.objects.count() == 1
    tell_finished(make_round(ready, RoundState.SUCCEEDED, results=RESULTS))
    facts = Delivery.objects.latest("pk").payload["facts"]
    assert (facts["held_out_accuracy_before"], facts["held_out_accuracy_after"]) == (0.5, 0.8)
