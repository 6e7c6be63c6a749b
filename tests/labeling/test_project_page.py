"""The loop: live counts, what to do next, where it is stuck."""

from datetime import timedelta

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from generation.models import BatchState
from jobs import queue
from jobs.models import WorkerSeen
from labeling.models import PolicyState, Project, Role, Split
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
from training.models import Round, RoundState

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


def test_polling_answers_with_the_fragment_and_ends_with_the_work(client: Client) -> None:
    project = serving_project()
    round_ = make_round(project, started_at=timezone.now())
    html = page(client, project, hx_request="true")
    assert html.startswith('<div class="stack" id="loop" hx-get')
    assert "<html" not in html
    Round.objects.filter(pk=round_.pk).update(state=RoundState.CANCELLED)
    assert "hx-trigger" not in page(client, project, hx_request="true")


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
        with django_assert_max_num_queries(17):
            client.get(address)
