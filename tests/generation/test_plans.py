"""Comparisons are kept ready, and a promotion sets off the next ones."""

import threading
from pathlib import Path
from typing import Any

import pytest
from django.db import transaction
from django.utils import timezone

from generation import plans
from generation.models import Batch, BatchState, Plan
from generation.plans import plan_of, ready_now, save_plan, top_up
from generation.selecting import Selection
from generation.services import CannotGenerate, end_batch, start_batch, take_in
from jobs import queue
from jobs.models import Job, Schedule
from jobs.schedule import tick
from jobs.worker import run_job
from labeling.models import Comparison, Policy, PolicyState, Project
from labeling.services.promoting import promote, roll_back
from tests.builders import (
    judge,
    make_batch,
    make_comparison,
    make_policy,
    make_project,
    make_prompt,
    make_responses,
    write_output,
)

pytestmark = pytest.mark.django_db
WEIGHTS = {"current": 1, "previous": 0, "base": 0}


@pytest.fixture(autouse=True)
def _own_place(settings, tmp_path: Path) -> None:
    settings.RUNS_DIR = tmp_path / "runs"  # tests reuse the ids of batches
    settings.SAMPLER = "transformers"


@pytest.fixture
def project() -> Project:
    project = make_project()
    make_policy(project=project, name="Starter", state=PolicyState.SERVING)
    for _ in range(10):
        make_prompt(project=project)
    return project


def keep(project: Project, ready: int, **more: Any) -> Plan:
    weights = WEIGHTS | {word: more.pop(word) for word in WEIGHTS if word in more}
    return save_plan(project=project, actor=None, ready=ready, weights=weights, **more)


def topped_up(project: Project) -> Batch:
    batch = top_up(project=project)
    assert batch is not None
    return batch


def run(batch: Batch, **output: Any) -> Batch:
    """What the worker does, without the sampler."""
    write_output(batch, **output)
    take_in(batch=batch, ended=plans.carry_on)
    batch.refresh_from_db()
    return batch


def asked(batch: Batch) -> list[int]:
    return list(Selection.from_json(batch.selection).ids)


def stopped(project: Project) -> str:
    return Plan.objects.get(project=project).stopped


# Keeping ready


def test_as_many_prompts_are_asked_as_are_needed(project: Project) -> None:
    keep(project, 5)
    batch = topped_up(project)
    assert (batch.origin, batch.total, batch.started_by) == (Batch.Origin.TOP_UP, 3, None)
    assert asked(batch) == list(project.prompts.order_by("pk").values_list("pk", flat=True)[:3])
    run(batch)
    assert ready_now(project) == 6
    assert top_up(project=project) is None
    assert not project.batches.filter(state__in=("queued", "running")).exists()


def test_the_plan_says_how_its_batches_sample(project: Project) -> None:
    sampling = {"k": 6, "temperature": 0.5, "stop": ["END"], "system": "Be brief."}
    keep(project, 4, **sampling, pairing="best_of_n", random_percent=30)
    batch = topped_up(project)
    assert batch.sampling == {
        **Plan.objects.get().sampling,
        **sampling,
        "pairing": "best_of_n",
        "random_percent": 30,
    }
    assert batch.total == 4, "best of n makes one comparison a prompt"


def test_it_goes_on_as_people_judge(project: Project) -> None:
    keep(project, 2)
    run(topped_up(project))
    assert top_up(project=project) is None
    first = project.comparisons.order_by("pk")[0]
    judge(comparison=first)
    batch = topped_up(project)
    assert batch.total == 1
    assert asked(batch) == [project.prompts.order_by("pk")[1].pk], "the next unanswered prompt"


def test_a_batch_that_brought_too_little_is_followed_by_another(project: Project) -> None:
    keep(project, 4)
    texts = {0: "one", 1: "two", 2: "two", 3: "one"}
    run(topped_up(project), say=lambda row, index: texts[index])
    assert ready_now(project) == 2
    following = project.batches.order_by("-number")[0]
    assert (following.number, following.state, following.total) == (2, BatchState.QUEUED, 1)


def test_only_standard_comparisons_that_still_want_judgments_are_ready(project: Project) -> None:
    make_comparison(project=project)
    make_comparison(project=project, purpose=Comparison.Purpose.GOLD)
    make_comparison(project=project, purpose=Comparison.Purpose.EVALUATION)
    judge(comparison=make_comparison(project=project))
    half = make_comparison(project=project, overlap=2)
    judge(comparison=half)
    assert ready_now(project) == 2


def test_prompts_with_the_fewest_responses_are_asked_where_all_are_answered(
    project: Project,
) -> None:
    policy = project.policies.get()
    prompts = list(project.prompts.order_by("pk"))
    for prompt in prompts:
        make_responses(prompt=prompt, k=1 if prompt == prompts[7] else 3, policy=policy)
    keep(project, 4)
    assert asked(topped_up(project)) == [prompts[7].pk, prompts[0].pk]


def test_weights_go_to_the_policies_of_the_moment(project: Project) -> None:
    base = project.policies.get()
    first = make_policy(project=project, name="Round 1", parent=base)
    second = make_policy(project=project, name="Round 2", parent=first)
    promote(policy=first, actor=None)
    promote(policy=second, actor=None)
    keep(project, 2, current=2, previous=1, base=1)
    batch = topped_up(project)
    assert {share.policy: share.weight for share in batch.shares.all()} == {
        second: 2,
        first: 1,
        base: 1,
    }


def test_nothing_is_started_where_nothing_is_kept_ready_or_a_batch_is_live(
    project: Project, django_assert_max_num_queries
) -> None:
    assert top_up(project=project) is None
    plan = keep(project, 5)
    make_batch(project=project, state=BatchState.RUNNING)
    with django_assert_max_num_queries(4):
        assert top_up(project=project) is None
    Batch.objects.all().delete()
    Policy.objects.update(state=PolicyState.RETIRED)
    assert top_up(project=project) is None
    Policy.objects.update(state=PolicyState.SERVING)
    Plan.objects.filter(pk=plan.pk).update(ready=0)
    assert top_up(project=project) is None


# Stopping where nothing comes of it


def test_it_stops_after_three_batches_that_bring_nothing(project: Project) -> None:
    keep(project, 2)
    topped_up(project)
    for number in range(1, 6):
        batch = project.batches.filter(number=number, state=BatchState.QUEUED).first()
        if batch is None:
            break
        run(batch, say=lambda row, index: "Always the same.")
    assert project.batches.count() == 3
    assert top_up(project=project) is None
    assert "nothing new" in stopped(project)


def test_prompts_that_brought_nothing_are_not_asked_again(project: Project) -> None:
    keep(project, 2)
    first = topped_up(project)
    run(first, say=lambda row, index: None)
    second = project.batches.get(number=2)
    assert set(asked(first)).isdisjoint(asked(second))
    run(second)
    assert ready_now(project) == 2


def test_it_stops_where_every_prompt_brought_nothing(project: Project) -> None:
    keep(project, 40)
    run(topped_up(project), say=lambda row, index: None)
    assert project.batches.count() == 1
    assert "No prompt is left" in stopped(project)


def test_it_stops_when_a_batch_failed_and_says_why(project: Project) -> None:
    keep(project, 2)
    batch = topped_up(project)
    end_batch(batch=batch, state=BatchState.FAILED, error="No such folder.\nMore.")
    assert top_up(project=project) is None
    assert stopped(project) == "Batch 1 failed: No such folder."


def test_a_cancelled_batch_is_not_started_again_at_once(project: Project) -> None:
    keep(project, 2)
    end_batch(batch=topped_up(project), state=BatchState.CANCELLED)
    assert top_up(project=project) is None
    assert stopped(project) == "Batch 1 was cancelled."


def test_a_batch_of_somebody_s_own_that_failed_stops_nothing(project: Project) -> None:
    keep(project, 2)
    make_batch(project=project, state=BatchState.FAILED)
    assert topped_up(project).number == 2


@pytest.mark.parametrize("change", ["prompt", "policy", "batch", "save"])
def test_it_goes_on_when_something_has_changed(project: Project, change: str) -> None:
    keep(project, 2)
    end_batch(batch=topped_up(project), state=BatchState.FAILED, error="?")
    for _ in range(3):
        assert top_up(project=project) is None
    if change == "prompt":
        make_prompt(project=project)
    elif change == "policy":
        promote(policy=make_policy(project=project), actor=None)
    elif change == "batch":
        make_batch(project=project)
    else:
        keep(project, 2)
    assert topped_up(project).number > 1
    assert stopped(project) == ""


def test_where_it_stopped_looking_again_stays_cheap(
    project: Project, django_assert_max_num_queries
) -> None:
    keep(project, 2)
    end_batch(batch=topped_up(project), state=BatchState.FAILED, error="?")
    top_up(project=project)
    with django_assert_max_num_queries(6):
        assert top_up(project=project) is None


# The schedule


def test_saving_a_plan_makes_a_schedule_that_turning_it_off_pauses(project: Project) -> None:
    keep(project, 0)
    assert not Schedule.objects.exists(), "what was never on needs none"
    keep(project, 5)
    schedule = Schedule.objects.get()
    assert (schedule.cron, schedule.lane, schedule.paused) == ("* * * * *", "light", False)
    keep(project, 0)
    schedule.refresh_from_db()
    assert schedule.paused
    keep(project, 7)
    schedule.refresh_from_db()
    assert not schedule.paused
    assert Schedule.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_the_worker_tops_up_when_the_schedule_is_due(project: Project) -> None:
    keep(project, 2)
    Schedule.objects.update(next_run_at=timezone.now() - timezone.timedelta(seconds=1))
    assert tick() == 1
    work()
    assert project.batches.get().origin == Batch.Origin.TOP_UP


@pytest.mark.django_db(transaction=True)
def test_a_plan_whose_project_is_gone_disturbs_nobody(project: Project) -> None:
    job = queue.enqueue(kind=plans.KIND, payload={"project": 10**6}, lane="light")
    work()
    job.refresh_from_db()
    assert (job.state, job.error) == ("succeeded", "")


def work() -> None:
    """One light job, in this thread."""
    job = queue.claim(lanes=["light"], worker="here")
    assert job is not None
    run_job(job, threading.Event())


@pytest.mark.parametrize(
    ("name", "value"),
    [("ready", 10**6), ("ready", -1), ("current", 0), ("base", 101), ("k", 1), ("stop", "x")],
)
def test_an_impossible_plan_is_refused_by_name(project: Project, name: str, value: Any) -> None:
    with pytest.raises(CannotGenerate) as refusal:
        keep(project, **{"ready": 5, name: value})
    assert list(refusal.value.errors) == [name]
    assert not Plan.objects.exists()


def test_a_plan_that_nobody_saved_samples_as_the_last_batch_did(project: Project) -> None:
    assert plan_of(project).ready == 0
    make_batch(project=project, temperature=0.3, k=3)
    plan = plan_of(project)
    assert (plan.temperature, plan.k, plan.pk) == (0.3, 3, None)


# Promotions


@pytest.fixture
def _as_committed(monkeypatch) -> None:
    monkeypatch.setattr(transaction, "on_commit", lambda run, **_: run())


@pytest.mark.usefixtures("_as_committed")
def test_a_promotion_fills_up_what_is_kept_ready(project: Project) -> None:
    keep(project, 4, base=1)
    run(topped_up(project))
    better = make_policy(project=project, name="Better", parent=project.policies.get())
    promote(policy=better, actor=None)
    assert ready_now(project) == 0, "what the other one wrote was retired"
    batch = project.batches.order_by("-number")[0]
    assert (batch.origin, batch.leading, batch.total) == (Batch.Origin.PROMOTION, better, 2)
    assert {share.policy.name for share in batch.shares.all()} == {"Better", "Starter"}
    run(batch)
    assert ready_now(project) == 4


@pytest.mark.usefixtures("_as_committed")
def test_without_a_plan_the_promoted_policy_answers_everything_as_the_last_batch_did(
    project: Project,
) -> None:
    make_batch(project=project, temperature=0.3)
    better = make_policy(project=project)
    promote(policy=better, actor=None)
    batch = project.batches.order_by("-number")[0]
    assert (batch.total, batch.temperature, batch.leading) == (10, 0.3, better)
    assert {share.policy: share.weight for share in batch.shares.all()} == {better: 1}


@pytest.mark.usefixtures("_as_committed")
def test_a_batch_that_a_promotion_cancels_makes_way(project: Project) -> None:
    waiting = start_batch(project=project, policies={project.policies.get(): 1}, actor=None)
    better = make_policy(project=project)
    promote(policy=better, actor=None)
    waiting.refresh_from_db()
    assert waiting.state == BatchState.CANCELLED
    assert project.batches.get(state=BatchState.QUEUED).leading == better


@pytest.mark.usefixtures("_as_committed")
def test_a_running_batch_is_asked_to_stop_and_its_end_starts_the_next(project: Project) -> None:
    running = start_batch(project=project, policies={project.policies.get(): 1}, actor=None)
    job = queue.claim(lanes=["gpu"], worker="here")
    assert job is not None
    better = make_policy(project=project)
    promote(policy=better, actor=None)
    assert queue.cancel_requested(job)
    assert project.batches.count() == 1
    queue.cancel(job)
    running.refresh_from_db()
    assert running.state == BatchState.CANCELLED
    following = project.batches.get(number=2)
    assert (following.leading, following.origin) == (better, Batch.Origin.PROMOTION)
    assert Job.objects.get(pk=following.job_id).state == "queued"


@pytest.mark.usefixtures("_as_committed")
def test_what_a_promotion_cancelled_does_not_stop_the_plan_after_rolling_back(
    project: Project,
) -> None:
    keep(project, 2)
    cancelled = topped_up(project)
    promote(policy=make_policy(project=project), actor=None)
    end_batch(batch=project.batches.get(number=2), state=BatchState.CANCELLED)
    roll_back(project=project, actor=None)
    batch = project.batches.get(number=3)
    assert (batch.leading, batch.state) == (cancelled.leading, BatchState.QUEUED)
    assert stopped(project) == ""


@pytest.mark.usefixtures("_as_committed")
def test_rolling_back_counts_what_is_open_again(project: Project) -> None:
    keep(project, 2)
    run(topped_up(project))
    promote(policy=make_policy(project=project), actor=None)
    run(project.batches.get(number=2))
    roll_back(project=project, actor=None)
    assert ready_now(project) == 2
    assert project.batches.count() == 2, "its own comparisons came back"
