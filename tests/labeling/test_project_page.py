"""The loop: live counts, what to do next, where it is stuck."""

from datetime import timedelta

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from generation.models import BatchState
from jobs import queue
from jobs.models import WorkerSeen
from labeling import agreement, figures
from labeling.models import Comparison, Evaluation, Policy, PolicyState, Project, Role, Split
from labeling.overview import ROUND_PAIRS, Overview, overview
from tests.builders import (
    judge,
    make_batch,
    make_comparison,
    make_policy,
    make_project,
    make_prompt,
    make_responses,
    make_user,
)
from training.models import Round, RoundSchedule, RoundState

pytestmark = pytest.mark.django_db


def serving_project() -> Project:
    project = make_project()
    make_policy(project=project, name="Starter", state=PolicyState.SERVING)
    return project


def judged_pairs(project: Project, number: int) -> None:
    annotator = make_user(role=Role.ANNOTATOR, project=project)
    policy = project.policies.first()
    for _ in range(number):
        prompt = make_prompt(project=project, split=Split.TRAIN)
        judge(comparison=make_comparison(prompt=prompt, policy=policy), annotator=annotator)


def make_round(project: Project, state: RoundState = RoundState.RUNNING, **more) -> Round:
    policy = project.policies.first()
    return Round.objects.create(
        project=project, number=1, start=policy, reference=policy, state=state, **more
    )


def page(client: Client, project: Project, **headers: str) -> str:
    client.force_login(make_user(role=Role.MANAGER, project=project))
    answer = client.get(reverse("labeling:project", args=[project.slug]), headers=headers)
    assert answer.status_code == 200
    return answer.content.decode()


def station(loop: Overview, key: str):
    return next(one for one in loop.stations if one.key == key)


def test_the_first_thing_to_do_is_to_import_prompts() -> None:
    step = overview(make_project(slug="new")).step
    assert step.station == "prompts"
    assert step.command == "python3 manage.py import_prompts FILE --project new"


def test_without_a_policy_one_has_to_be_registered() -> None:
    project = make_project()
    make_prompt(project=project)
    assert overview(project).step.station == "policies"


def test_unanswered_prompts_ask_for_candidates() -> None:
    project = serving_project()
    answered = make_prompt(project=project)
    make_responses(prompt=answered, policy=project.policies.first())
    make_prompt(project=project)
    loop = overview(project)
    assert loop.step.text == "Generate candidates"
    assert station(loop, "prompts").note == "1 unanswered"


def test_open_comparisons_ask_for_judgments() -> None:
    project = serving_project()
    make_comparison(project=project, policy=project.policies.first(), overlap=3)
    loop = overview(project)
    assert loop.step.text == "Judge"
    assert "3 judgments wanted" in loop.step.why
    assert station(loop, "judgments").state == "next"


def test_enough_new_pairs_ask_for_a_round() -> None:
    project = serving_project()
    judged_pairs(project, ROUND_PAIRS - 1)
    assert overview(project).step.text == "Import more prompts"
    judged_pairs(project, 1)
    assert overview(project).step.text == "Start a round"


def test_pairs_that_a_round_trained_on_are_not_new_but_a_failed_round_uses_none_up() -> None:
    project = serving_project()
    judged_pairs(project, ROUND_PAIRS)
    round_ = make_round(project, RoundState.FAILED, error="Out of memory.\nTake fewer.")
    loop = overview(project)
    assert loop.step.text == "Start a round"
    assert loop.stuck == ["Round 1 failed: Out of memory."]
    Round.objects.filter(pk=round_.pk).update(state=RoundState.SUCCEEDED)
    assert overview(project).step.text == "Import more prompts"


def test_a_new_policy_asks_to_be_promoted() -> None:
    project = serving_project()
    make_prompt(project=project)
    make_round(project, RoundState.SUCCEEDED, policy=make_policy(project=project, name="Better"))
    step = overview(project).step
    assert step.station == "policies"
    assert "Better" in step.why


def test_a_running_round_is_shown_with_its_progress_and_polls(client: Client) -> None:
    project = serving_project()
    make_prompt(project=project)
    queue.saw_worker(name="here", lanes=["gpu"])
    make_round(project, started_at=timezone.now(), step=12, total_steps=60)
    html = page(client, project)
    assert 'hx-trigger="every 3s"' in html
    assert "Round 1: 12 of 60 steps" in html
    assert 'max="60" value="12"' in html
    assert "worker" not in html


def test_polling_answers_with_the_fragment_and_slows_down_with_the_work(client: Client) -> None:
    project = serving_project()
    round_ = make_round(project, started_at=timezone.now())
    html = page(client, project, hx_request="true")
    assert html.startswith('<div class="stack" id="loop" hx-get')
    assert "<html" not in html
    Round.objects.filter(pk=round_.pk).update(state=RoundState.CANCELLED)
    assert 'hx-trigger="every 30s"' in page(client, project, hx_request="true")


def test_a_silent_worker_is_said_where_work_waits() -> None:
    project = serving_project()
    make_prompt(project=project)
    assert overview(project).stuck == []
    make_batch(project=project, state=BatchState.QUEUED, total=1)
    assert "No worker has ever run" in overview(project).stuck[0]
    queue.saw_worker(name="here", lanes=["gpu"])
    assert overview(project).stuck == []
    WorkerSeen.objects.update(seen_at=timezone.now() - timedelta(minutes=3))
    loop = overview(project)
    assert "not been seen for 3 minutes" in loop.stuck[0]
    assert station(loop, "candidates").state == "stuck"


def test_a_failed_batch_marks_the_candidates() -> None:
    project = serving_project()
    make_batch(project=project, state=BatchState.FAILED, error="The policy's folder is gone.")
    loop = overview(project)
    assert loop.stuck == ["Batch 1 failed: The policy's folder is gone."]
    assert not loop.live


def test_annotators_and_consumers_are_sent_to_their_own_pages(client: Client) -> None:
    project = make_project()
    address = reverse("labeling:project", args=[project.slug])
    for role, route in (
        (Role.ANNOTATOR, "labeling:judge"),
        (Role.CONSUMER, "labeling:preferences"),
    ):
        client.force_login(make_user(role=role, project=project))
        assert client.get(address)["Location"] == reverse(route, args=[project.slug])
    client.force_login(make_user(role=Role.MANAGER, project=make_project()))
    assert client.get(address).status_code == 404


def test_the_page_takes_few_queries_however_much_there_is(
    client: Client, django_assert_max_num_queries
) -> None:
    project = serving_project()
    client.force_login(make_user(role=Role.MANAGER, project=project))
    address = reverse("labeling:project", args=[project.slug])
    make_round(project, RoundState.FAILED)
    for number in (3, 6):
        judged_pairs(project, number)
        with django_assert_max_num_queries(28):
            client.get(address)


def candidate(project: Project) -> Policy:
    """A policy that the last round made."""
    made = make_policy(project=project, name="Better")
    make_round(project, RoundState.SUCCEEDED, policy=made)
    return made


def evaluated(project: Project, policy: Policy, **more) -> Evaluation:
    serving = project.policies.get(state=PolicyState.SERVING)
    return Evaluation.objects.create(project=project, policy=policy, against=serving, **more)


def test_a_policy_that_passed_the_gate_is_to_be_promoted() -> None:
    project = serving_project()
    make_prompt(project=project)
    found = evaluated(
        project, candidate(project), state=Evaluation.State.ENDED, passed_at=timezone.now()
    )
    step = overview(project).step
    assert step.text == "Promote Better"
    assert step.why == "Better passed the gate: promote it."
    assert step.url.endswith(f"/evaluations/{found.pk}/")


def test_a_policy_that_did_not_pass_is_not_asked_about_again() -> None:
    project = serving_project()
    make_prompt(project=project)
    evaluated(project, candidate(project), state=Evaluation.State.ENDED)
    assert overview(project).step.text == "Generate candidates"


def test_an_evaluation_under_way_says_how_many_judgments_it_wants() -> None:
    project = serving_project()
    queue.saw_worker(name="here", lanes=["light"])
    found = evaluated(project, candidate(project), state=Evaluation.State.JUDGING)
    for _ in range(3):
        one = make_comparison(project=project, purpose=Comparison.Purpose.EVALUATION, overlap=1)
        Comparison.objects.filter(pk=one.pk).update(evaluation=found)
    judge(comparison=one)
    loop = overview(project)
    assert loop.step.why.startswith("The evaluation of Better wants 2 more judgments.")
    place = station(loop, "policies")
    assert place.state == "live"
    assert (place.activity.done, place.activity.total) == (1, 3)


def test_an_evaluation_without_responses_says_why() -> None:
    project = serving_project()
    make_prompt(project=project)
    queue.saw_worker(name="here", lanes=["light"])
    evaluated(project, candidate(project), problem="A batch is running.")
    loop = overview(project)
    assert loop.stuck == ["The evaluation of Better has no responses yet: A batch is running."]
    assert station(loop, "policies").state == "stuck"


def test_rounds_that_start_by_themselves_are_not_asked_for() -> None:
    project = serving_project()
    queue.saw_worker(name="here", lanes=["light"])
    judged_pairs(project, ROUND_PAIRS + 2)
    make_comparison(project=project, policy=project.policies.first())
    schedule = RoundSchedule.objects.create(project=project, every=30)
    step = overview(Project.objects.get()).step
    assert step.text == "Judge"
    assert "After 18 more decided pairs the next round may start by itself." in step.why
    RoundSchedule.objects.filter(pk=schedule.pk).update(held_up="The disk is full.\nFree some.")
    assert overview(Project.objects.get()).stuck == [
        "A round was due and did not start: The disk is full."
    ]
    RoundSchedule.objects.filter(pk=schedule.pk).update(paused=True)
    loop = overview(Project.objects.get())
    assert loop.stuck == []
    assert station(loop, "rounds").note == "the schedule is paused"
    assert "A round could start with 12 new pairs" in loop.step.why


def test_a_schedule_without_a_worker_is_stuck() -> None:
    project = serving_project()
    make_prompt(project=project)
    RoundSchedule.objects.create(project=project, every=30)
    loop = overview(Project.objects.get())
    assert "No worker has ever run" in loop.stuck[0]
    assert station(loop, "rounds").state == "stuck"


def test_two_who_disagree_are_named(monkeypatch) -> None:
    monkeypatch.setattr(agreement, "LEAST", 5)
    project = make_project(overlap=3)
    ada, ben, eve = (
        make_user(role=Role.ANNOTATOR, project=project, username=name)
        for name in ("Ada", "Ben", "Eve")
    )
    for number in range(5):
        comparison = make_comparison(project=project)
        judge(comparison=comparison, annotator=ada, tiers=[[0], [1]])
        judge(comparison=comparison, annotator=eve, tiers=[[0], [1]])
        judge(comparison=comparison, annotator=ben, tiers=[[0], [1]] if number < 2 else [[0, 1]])
    loop = overview(project)
    (reason,) = loop.stuck
    assert reason.startswith("Ada and Ben disagree on 60\u2009% of the pairs in 5 comparisons.")
    assert station(loop, "judgments").state == "warned"


def test_days_are_drawn_as_bars_and_told_in_words(client: Client) -> None:
    project = serving_project()
    judged_pairs(project, 3)
    first, *_ = project.comparisons.all()
    first.judgments.update(created_at=timezone.now() - timedelta(days=2))
    trend = station(overview(project), "judgments").trend
    assert trend is not None
    assert [(bar.x, bar.height) for bar in trend.bars] == [(11 * 6, 12), (13 * 6, 24)]
    assert trend.words == "The last 14 days: 2 on the busiest, 2 today"
    assert trend.words in page(client, project)
    assert station(overview(make_project()), "judgments").trend is None


def test_accuracies_and_win_rates_are_drawn_as_lines() -> None:
    project = serving_project()
    policy = project.policies.get()
    for number, share in enumerate((0.5, None, 0.6, 0.75), start=1):
        Round.objects.create(
            project=project,
            number=number,
            start=policy,
            reference=policy,
            state=RoundState.SUCCEEDED,
            results={"held_out_after": {"accuracy": share}} if share else {},
        )
        made = make_policy(project=project)
        result = {"rate": share} if share else {}
        evaluated(project, made, state=Evaluation.State.ENDED, result=result)
    loop = overview(project)
    for key in ("rounds", "policies"):
        trend = station(loop, key).trend
        assert trend is not None
        assert trend.words.endswith(": 50\u2009%, 60\u2009%, 75\u2009%")
        assert trend.points == "2.0,22.0 42.0,14.0 82.0,2.0"
        assert trend.guide == 22


def test_kept_counts_tell_their_age_and_a_round_uses_up_what_is_new(
    client: Client, monkeypatch
) -> None:
    project = serving_project()
    judged_pairs(project, ROUND_PAIRS)
    queue.saw_worker(name="here", lanes=["light"])
    monkeypatch.setattr(figures, "CHEAP_S", -1.0)
    assert "as of" not in page(client, project)
    assert station(overview(project), "preferences").note == "10 decided, 10 new"
    project.figures.update(as_of=timezone.now() - timedelta(minutes=3))
    judged_pairs(project, 1)
    html = page(client, project)
    assert html.count("as of <time") == 4
    assert "3 min ago" in html
    assert overview(project).step.text == "Start a round"
    make_round(project, RoundState.SUCCEEDED)
    assert station(overview(project), "preferences").note == "10 decided, 0 new"
