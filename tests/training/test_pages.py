"""Rounds: readiness, starting one, watching it learn, what came of it."""

from pathlib import Path

import pytest
from django.test import Client
from django.urls import reverse

from jobs import queue
from jobs.models import Job
from jobs.run_dir import append_event
from labeling.models import Policy, Project, Role
from labeling.services.promoting import promote
from tests.builders import make_policy, make_user
from tests.training.rounds import (
    OPTIONS,
    RESULTS,
    log_steps,
    make_round,
    new_round,
    page_of,
)
from training.models import RoundState
from training.presets import default_options
from training.services import start_round


def test_what_is_in_the_way_of_a_round_is_listed_and_blocks_it(
    project: Project, manager: Client
) -> None:
    html = manager.get(new_round(project)).content.decode()
    assert "10 more decided pairs" in html
    assert "disabled" in html
    assert manager.post(new_round(project), OPTIONS).status_code == 409
    assert not project.rounds.exists()


def test_a_round_is_started_with_the_options_of_the_form(ready: Project, manager: Client) -> None:
    answer = manager.post(new_round(ready), OPTIONS)
    round_ = ready.rounds.get()
    assert answer["Location"] == page_of(round_)
    assert round_.options == {
        "method": "full",
        "beta": 0.2,
        "learning_rate": 3e-4,
        "epochs": 1,
        "batch_groups": 8,
        "max_length": 512,
        "labels": "votes",
        "dtype": "float32",
        "objective": "dpo",
    }
    assert Job.objects.get(pk=round_.job_id).kind == "training.round"


def test_the_form_begins_with_what_suits_the_policy(ready: Project, manager: Client) -> None:
    html = manager.get(new_round(ready)).content.decode()
    suits = default_options(Policy.objects.get(project=ready))
    assert f'name="learning_rate" value="{suits["learning_rate"]}"' in html
    assert "Nothing is in the way" not in html  # few pairs are worth a warning
    assert "expect a small change" in html


@pytest.mark.parametrize(("name", "value"), [("beta", "0"), ("epochs", "many"), ("method", "rl")])
def test_impossible_options_start_nothing_and_are_marked(
    ready: Project, manager: Client, name: str, value: str
) -> None:
    answer = manager.post(new_round(ready), OPTIONS | {name: value})
    assert answer.status_code == 422
    assert "errorlist" in answer.content.decode()
    assert not ready.rounds.exists()


def test_a_second_manager_at_the_same_moment_gets_a_clear_answer(
    ready: Project, manager: Client
) -> None:
    first = start_round(project=ready, actor=make_user(username="dana"))
    answer = manager.post(new_round(ready), OPTIONS)
    html = answer.content.decode()
    assert answer.status_code == 409
    assert "No round was started." in html
    assert "by dana" in html
    assert page_of(first) in html
    assert ready.rounds.count() == 1


def test_a_running_round_shows_progress_time_left_and_curves_and_polls(
    project: Project, manager: Client, tmp_path: Path
) -> None:
    queue.saw_worker(name="here", lanes=["gpu"])
    log_steps(tmp_path, 10, 40)
    append_event(tmp_path, "warning", message="no prompt is held out")
    round_ = make_round(project, RoundState.RUNNING, tmp_path)
    html = manager.get(page_of(round_), headers={"hx-request": "true"}).content.decode()
    assert html.startswith('<div class="stack" id="round-live" hx-get')
    assert 'hx-trigger="every 2s"' in html
    assert 'max="40" value="10"' in html
    assert "1 min 0 s left" in html
    assert html.count('class="chart"') == 10
    assert "<title>Step 10: train 0.600</title>" in html
    assert "No prompt is held out" in html


def test_before_the_first_step_the_page_says_what_the_trainer_does(
    project: Project, manager: Client, tmp_path: Path
) -> None:
    round_ = make_round(project, RoundState.RUNNING, tmp_path)
    assert "Freezing the preferences" in manager.get(page_of(round_)).content.decode()
    append_event(tmp_path, "start")
    assert "Reading the preferences" in manager.get(page_of(round_)).content.decode()
    append_event(tmp_path, "data_report", pairs={"train": 9, "held_out": 2}, dropped={"tied": 3})
    html = manager.get(page_of(round_)).content.decode()
    assert "scoring responses under the reference" in html
    append_event(tmp_path, "samples", when="before", metrics={}, texts=[])
    assert "Taking the first step" in manager.get(page_of(round_)).content.decode()


def test_polling_a_round_that_has_ended_reloads_the_page(project: Project, manager: Client) -> None:
    round_ = make_round(project, RoundState.SUCCEEDED)
    assert manager.get(page_of(round_), headers={"hx-request": "true"})["HX-Refresh"] == "true"
    assert "hx-trigger" not in manager.get(page_of(round_)).content.decode()


def test_a_finished_round_compares_held_out_figures_and_offers_promotion(
    project: Project, manager: Client
) -> None:
    policy = make_policy(project=project, name="Round 1", parent=project.policies.get())
    round_ = make_round(project, RoundState.SUCCEEDED, policy=policy, results=RESULTS)
    html = manager.get(page_of(round_)).content.decode()
    assert "0.65 to 0.90" in html
    assert "+0.30" in html
    assert "0.693147" in html
    assert f'action="{reverse("labeling:promote", args=[project.slug, policy.pk])}"' in html
    promote(policy=policy, actor=None)
    html = manager.get(page_of(round_)).content.decode()
    assert "Roll back" in html
    assert "Promote" not in html


def test_a_failed_round_says_why_what_was_kept_and_what_to_do(
    project: Project, manager: Client, tmp_path: Path
) -> None:
    log_steps(tmp_path, 23, 60)
    append_event(tmp_path, "checkpoint", step=20)
    round_ = make_round(
        project, RoundState.FAILED, tmp_path, error="the loss of step 24 is not <finite>"
    )
    html = manager.get(page_of(round_)).content.decode()
    assert "The loss of step 24 is not &lt;finite&gt;" in html
    assert "at step 23 of 60" in html
    assert "the checkpoint of step 20" in html
    assert new_round(project) in html


def test_a_queued_round_is_cancelled_at_once(ready: Project, manager: Client) -> None:
    round_ = start_round(project=ready, actor=None)
    address = reverse("training:cancel_round", args=[ready.slug, round_.number])
    manager.post(address)
    round_.refresh_from_db()
    assert round_.state == RoundState.CANCELLED
    assert "had ended already" in manager.post(address, follow=True).content.decode()


def test_a_silent_worker_is_said_on_a_waiting_round(project: Project, manager: Client) -> None:
    html = manager.get(page_of(make_round(project, RoundState.QUEUED))).content.decode()
    assert "No worker has ever run" in html


def test_only_managers_may_look_or_start(ready: Project, client: Client) -> None:
    round_ = make_round(ready, RoundState.RUNNING)
    cancel = reverse("training:cancel_round", args=[ready.slug, round_.number])
    for role in (Role.ANNOTATOR, Role.CONSUMER):
        client.force_login(make_user(role=role, project=ready))
        for address in (
            page_of(round_),
            new_round(ready),
            reverse("training:rounds", args=[ready.slug]),
        ):
            assert client.get(address).status_code == 404
        assert client.post(new_round(ready), OPTIONS).status_code == 404
        assert client.post(cancel).status_code == 404


def test_a_project_without_rounds_is_told_what_one_is(project: Project, manager: Client) -> None:
    html = manager.get(reverse("training:rounds", args=[project.slug])).content.decode()
    assert "No rounds yet" in html
    assert new_round(project) in html


def test_queries_do_not_grow_with_rounds(
    project: Project, manager: Client, django_assert_max_num_queries
) -> None:
    for _ in range(2):
        for _ in range(5):
            policy = make_policy(project=project)
            make_round(project, RoundState.SUCCEEDED, policy=policy, results=RESULTS)
        with django_assert_max_num_queries(10):
            manager.get(reverse("training:rounds", args=[project.slug]))
    with django_assert_max_num_queries(10):
        manager.get(page_of(make_round(project, RoundState.RUNNING)))
