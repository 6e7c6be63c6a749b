"""Batches: starting one, watching it, cancelling it."""

from pathlib import Path

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from generation.models import Batch, BatchState
from generation.services import start_batch
from generation.views import pace
from jobs.models import Job
from jobs.run_dir import append_jsonl
from labeling.models import PolicyState, Project, Role
from tests.builders import make_policy, make_project, make_prompt, make_responses, make_user

OPTIONS = {"k": 4, "temperature": "0.9", "top_p": "1", "max_new_tokens": 120}


@pytest.fixture
def project(db) -> Project:
    project = make_project()
    make_policy(project=project, name="Starter", state=PolicyState.SERVING)
    make_prompt(project=project)
    return project


@pytest.fixture
def manager(project: Project, client: Client) -> Client:
    client.force_login(make_user(role=Role.MANAGER, project=project))
    return client


def batches(project: Project) -> str:
    return reverse("generation:batches", args=[project.slug])


def begun(project: Project, **more) -> Batch:
    policy = project.policies.get()
    batch = start_batch(policy=policy, actor=None)
    for name, value in more.items():
        setattr(batch, name, value)
    batch.save()
    return batch


def page_of(batch: Batch) -> str:
    return reverse("generation:batch", args=[batch.project.slug, batch.number])


def test_a_batch_is_started_with_the_options_of_the_form(project: Project, manager: Client) -> None:
    answer = manager.post(batches(project), OPTIONS)
    batch = project.batches.get()
    assert answer["Location"] == page_of(batch)
    assert (batch.k, batch.temperature, batch.max_new_tokens) == (4, 0.9, 120)
    assert batch.started_by is not None
    assert Job.objects.get(pk=batch.job_id).kind == "generation.batch"


@pytest.mark.parametrize(("name", "value"), [("k", "1"), ("top_p", "0"), ("max_new_tokens", "")])
def test_impossible_options_start_nothing_and_are_marked(
    project: Project, manager: Client, name: str, value: str
) -> None:
    answer = manager.post(batches(project), OPTIONS | {name: value})
    assert answer.status_code == 422
    assert "errorlist" in answer.content.decode()
    assert not project.batches.exists()


def test_a_second_batch_is_refused_in_words(project: Project, manager: Client) -> None:
    begun(project)
    answer = manager.post(batches(project), OPTIONS)
    assert answer.status_code == 422
    assert "waiting or running" in answer.content.decode()
    assert project.batches.count() == 1


def test_the_form_gives_way_to_a_reason_where_no_batch_can_start(
    project: Project, manager: Client
) -> None:
    assert "Generate candidates" in manager.get(batches(project)).content.decode()
    make_responses(prompt=project.prompts.get(), policy=project.policies.get())
    html = manager.get(batches(project)).content.decode()
    assert "has answered every prompt" in html
    assert "Generate candidates" not in html


def test_a_running_batch_tells_how_far_it_is_and_polls(
    project: Project, manager: Client, tmp_path: Path
) -> None:
    batch = begun(
        project,
        state=BatchState.RUNNING,
        started_at=timezone.now(),
        total=96,
        run_dir=str(tmp_path),
    )
    for done in (0, 24):
        row = {"done": done, "total": 96, "tokens": done * 100, "seconds": done * 0.5}
        append_jsonl(tmp_path / "metrics.jsonl", row)
    html = manager.get(page_of(batch), headers={"hx-request": "true"}).content.decode()
    assert html.startswith('<section class="card stack" id="batch-progress"')
    assert 'hx-trigger="every 2s"' in html
    assert 'max="96" value="24"' in html
    assert "36 s left" in html
    assert "200 tokens a second" in html


def test_polling_a_batch_that_has_ended_reloads_the_page(project: Project, manager: Client) -> None:
    batch = begun(project, state=BatchState.SUCCEEDED, finished_at=timezone.now())
    assert manager.get(page_of(batch), headers={"hx-request": "true"})["HX-Refresh"] == "true"
    assert "hx-trigger" not in manager.get(page_of(batch)).content.decode()


def test_a_queued_batch_is_cancelled_at_once(project: Project, manager: Client) -> None:
    batch = begun(project)
    address = reverse("generation:cancel_batch", args=[project.slug, batch.number])
    html = manager.post(address, follow=True).content.decode()
    batch.refresh_from_db()
    assert batch.state == BatchState.CANCELLED
    assert "Cancelled" in html
    again = manager.post(address, follow=True).content.decode()
    assert "had ended already" in again


def test_a_running_batch_is_asked_to_stop(project: Project, manager: Client) -> None:
    batch = begun(project, state=BatchState.RUNNING, started_at=timezone.now())
    later = timezone.now() + timezone.timedelta(hours=1)
    job = Job.objects.filter(pk=batch.job_id)
    job.update(state="running", lease="0" * 32, lease_expires_at=later)
    address = reverse("generation:cancel_batch", args=[project.slug, batch.number])
    html = manager.post(address, follow=True).content.decode()
    assert "Stopping after the prompts in hand" in html
    assert "Cancel this batch?" not in html
    assert job.get().cancel_requested_at is not None


def test_a_failed_batch_says_why_what_was_kept_and_what_to_do(
    project: Project, manager: Client
) -> None:
    batch = begun(
        project,
        state=BatchState.FAILED,
        error="It ran <b>out</b> of memory.",
        done=3,
        total=9,
        finished_at=timezone.now(),
    )
    html = manager.get(page_of(batch)).content.decode()
    assert "It ran &lt;b&gt;out&lt;/b&gt; of memory." in html
    assert "3 of 9 prompts" in html
    assert "Start another batch" in html


def test_prompts_that_failed_alone_are_listed(
    project: Project, manager: Client, tmp_path: Path
) -> None:
    append_jsonl(tmp_path / "failures.jsonl", {"prompt_id": "7", "reason": "it is too long"})
    batch = begun(
        project, state=BatchState.SUCCEEDED, failures=1, run_dir=str(tmp_path), done=1, total=2
    )
    html = manager.get(page_of(batch)).content.decode()
    assert "Prompt 7" in html
    assert "it is too long" in html


def test_only_managers_may_look_or_start(project: Project, client: Client) -> None:
    batch = begun(project)
    for role in (Role.ANNOTATOR, Role.CONSUMER):
        client.force_login(make_user(role=role, project=project))
        assert client.get(batches(project)).status_code == 404
        assert client.post(batches(project), OPTIONS).status_code == 404
        assert client.get(page_of(batch)).status_code == 404
        cancel = reverse("generation:cancel_batch", args=[project.slug, batch.number])
        assert client.post(cancel).status_code == 404


def test_queries_do_not_grow_with_batches(
    project: Project, manager: Client, django_assert_max_num_queries
) -> None:
    for start in (0, 6):
        for number in range(start + 1, start + 7):
            Batch.objects.create(
                project=project,
                number=number,
                policy=make_policy(project=project),
                state=BatchState.SUCCEEDED,
                started_by=make_user(),
            )
        with django_assert_max_num_queries(10):
            manager.get(batches(project))
    with django_assert_max_num_queries(10):
        manager.get(page_of(project.batches.get(number=1)))


def test_the_pace_is_that_of_the_run_at_hand() -> None:
    rows = [
        {"done": 0, "tokens": 0, "seconds": 0.0},
        {"done": 40, "tokens": 4000, "seconds": 90.0},
        {"done": 40, "tokens": 0, "seconds": 1.0},  # started again
        {"done": 50, "tokens": 1000, "seconds": 6.0},
    ]
    assert pace(rows, 100) == {"done": 50, "tokens_per_s": 200.0, "seconds_left": 25.0}


@pytest.mark.parametrize(
    "rows", [[], [{"done": "x"}], [{"done": 3, "tokens": 1, "seconds": 2.0}], [{}]]
)
def test_the_pace_is_unknown_at_first(rows: list[dict]) -> None:
    assert pace(rows, 10)["seconds_left"] is None
