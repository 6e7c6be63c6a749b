"""Batches over REST."""

from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from generation.models import Batch, BatchState
from generation.services import end_batch, prepare, start_batch, take_in
from jobs.models import Job
from labeling.models import PolicyState, Project, Role
from labeling.services.promoting import promote
from tests.builders import (
    make_batch,
    make_policy,
    make_project,
    make_prompt,
    make_user,
    write_output,
)

pytestmark = pytest.mark.django_db
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(autouse=True)
def _own_place(settings, tmp_path: Path) -> None:
    settings.RUNS_DIR = tmp_path / "runs"  # tests reuse the ids of batches
    settings.SAMPLER = "transformers"


@pytest.fixture
def project() -> Project:
    project = make_project()
    make_policy(project=project, name="Starter", state=PolicyState.SERVING)
    make_prompt(project=project)
    return project


@pytest.fixture
def manager(project: Project, client: Client) -> Client:
    client.force_login(make_user(role=Role.MANAGER, project=project, username="dana"))
    return client


def address(project: Project) -> str:
    return reverse("api:batches", args=[project.slug])


def one(batch: Batch, route: str = "batch") -> str:
    return reverse(f"api:{route}", args=[batch.project.slug, batch.number])


def post(client: Client, project: Project, body: Any) -> Any:
    return client.post(address(project), body, content_type="application/json")


def test_a_batch_is_started_and_its_address_told(project: Project, manager: Client) -> None:
    answer = post(manager, project, {})
    batch = project.batches.get()
    assert answer.status_code == 201
    assert answer["Location"] == one(batch) == f"/api/v1/projects/{project.slug}/batches/1/"
    shown = answer.json()
    assert shown == manager.get(answer["Location"]).json()
    assert shown["state"] == "queued"
    assert shown["origin"] == "api"
    assert shown["started_by"] == "dana"
    assert shown["policies"] == [
        {"policy": "Starter", "weight": 1, "digest": batch.leading.digest, "leads": True}
    ]
    assert (shown["total"], shown["done"], shown["comparisons"]) == (1, 0, None)
    assert Job.objects.get(pk=batch.job_id).state == "queued"


def test_everything_can_be_asked(project: Project, manager: Client) -> None:
    better = make_policy(project=project, name="Better")
    promote(policy=better, actor=None)
    prompt = make_prompt(project=project, text="Was kostet Käse?")
    asked = {
        "k": 6,
        "temperature": 0.5,
        "top_p": 0.9,
        "max_new_tokens": 64,
        "stop": [" ", "\n\n"],
        "system": HOSTILE,
        "seed": 12,
        "pairing": "across",
        "random_percent": 50,
        "selection": {
            "split": prompt.split,
            "ids": [prompt.pk],
            "search": "käse",
            "fewer_than": 3,
            "limit": 10,
        },
    }
    shares = [{"policy": "current", "weight": 3}, {"policy": "Starter"}]
    answer = post(manager, project, {**asked, "policies": shares})
    assert answer.status_code == 201, answer.json()
    shown = answer.json()
    assert {name: shown[name] for name in asked} == asked
    assert [(share["policy"], share["weight"]) for share in shown["policies"]] == [
        ("Better", 3),
        ("Starter", 1),
    ]
    assert answer["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    ("body", "at"),
    [
        ({"kk": 4}, "kk"),
        ({"k": 1}, "k"),
        ({"k": 4.5}, "k"),
        ({"k": True}, "k"),
        ({"k": 10**400}, "k"),
        ({"temperature": "nan"}, "temperature"),
        ({"temperature": "Infinity"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_new_tokens": None}, "max_new_tokens"),
        ({"stop": "END"}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 5}, "stop"),
        ({"system": "half \ud800"}, "system"),
        ({"system": "nul \x00"}, "system"),
        ({"system": ["a"]}, "system"),
        ({"seed": -1}, "seed"),
        ({"pairing": "astrology"}, "pairing"),
        ({"random_percent": 0}, "random_percent"),
        ({"policies": []}, "policies"),
        ({"policies": ["Starter"]}, "policies"),
        ({"policies": [{"policy": "Nobody"}]}, "policies"),
        ({"policies": [{"policy": "Starter", "weight": 0}]}, "policies"),
        ({"policies": [{"policy": "Starter"}, {"policy": "Starter"}]}, "policies"),
        ({"policies": [{"policy": "Starter", "wait": 1}]}, "policies"),
        ({"selection": {"split": "both"}}, "selection.split"),
        ({"selection": {"ids": [10**30]}}, "selection.ids"),
        ({"selection": {"ids": ["x"]}}, "selection.ids"),
        ({"selection": {"ids": [987654]}}, "selection.ids"),
        ({"selection": {"search": "x" * 300}}, "selection.search"),
        ({"selection": {"limit": 0}}, "selection.limit"),
        ({"selection": {"where": "here"}}, "selection.where"),
        ({"selection": []}, "selection"),
        ({"selection": {"search": "nowhere"}}, "detail"),
        ([], "non_field_errors"),
    ],
)
def test_what_cannot_be_is_refused_at_its_name(
    project: Project, manager: Client, body: Any, at: str
) -> None:
    answer = post(manager, project, body)
    assert answer.status_code == 400, answer.content
    found = answer.json()
    for name in at.split("."):
        assert list(found) == [name]
        found = found[name]
    assert found
    assert not project.batches.exists()


def test_what_is_no_json_is_refused(project: Project, manager: Client) -> None:
    for body in (b"{", b'{"temperature": NaN}', b"\xff"):
        assert post(manager, project, body).status_code == 400
    answer = manager.post(address(project), {"k": 4})
    assert answer.status_code == 415, "forms are for the pages"
    assert not project.batches.exists()


def test_a_second_batch_is_a_conflict(project: Project, manager: Client) -> None:
    assert post(manager, project, {}).status_code == 201
    answer = post(manager, project, {})
    assert answer.status_code == 409
    assert "waiting or running" in answer.json()["detail"]
    assert project.batches.count() == 1


def test_nothing_left_to_ask_is_said(project: Project, manager: Client) -> None:
    project.prompts.all().delete()
    answer = post(manager, project, {})
    assert answer.status_code == 400
    assert answer.json() == {"detail": ["Starter has answered every prompt; import more prompts."]}


def test_batches_are_listed_newest_first_in_pages(project: Project, manager: Client) -> None:
    for _ in range(5):
        make_batch(project=project)
    shown = manager.get(address(project), {"page_size": 2, "page": 2}).json()
    assert shown["count"] == 5
    assert [batch["number"] for batch in shown["results"]] == [3, 2]
    assert "page=3" in shown["next"]
    assert manager.get(address(project), {"page": 99}).status_code == 404
    assert len(manager.get(address(project), {"page_size": 10**6}).json()["results"]) == 5


def test_queries_do_not_grow_with_batches(project: Project, manager: Client) -> None:
    counts = []
    for _ in range(2):
        for _ in range(5):
            policies = {make_policy(project=project): 1, make_policy(project=project): 1}
            make_batch(project=project, policies=policies, started_by=make_user())
        with CaptureQueriesContext(connection) as queries:
            manager.get(address(project))
        counts.append(len(queries))
    assert counts[0] == counts[1] <= 8


def test_a_batch_that_has_ended_shows_what_came_of_it(project: Project, manager: Client) -> None:
    batch = start_batch(project=project, policies={project.policies.get(): 1}, actor=None)
    write_output(batch)
    take_in(batch=batch)
    shown = manager.get(one(batch)).json()
    assert (shown["state"], shown["sampler"], shown["engine"]) == (
        "succeeded",
        "transformers",
        "pen and paper 1.0",
    )
    assert (shown["done"], shown["comparisons"], shown["error"]) == (1, 2, "")


def test_a_batch_is_cancelled_once(project: Project, manager: Client) -> None:
    post(manager, project, {})
    batch = project.batches.get()
    answer = manager.generic("POST", one(batch, "cancel_batch"))
    assert (answer.status_code, answer.json()["state"]) == (202, "cancelled")
    again = manager.post(one(batch, "cancel_batch"), {}, content_type="application/json")
    assert again.status_code == 409
    assert "had ended already: cancelled" in again.json()["detail"]


def test_a_batch_that_ended_too_early_goes_on_once(project: Project, manager: Client) -> None:
    batch = start_batch(project=project, policies={project.policies.get(): 1}, actor=None)
    prepare(batch)
    end_batch(batch=batch, state=BatchState.FAILED, error="No such folder.")
    answer = manager.generic("POST", one(batch, "resume_batch"))
    assert (answer.status_code, answer.json()["state"]) == (202, "queued")
    assert (answer.json()["error"], bool(answer.json()["resumed_by"])) == ("", True)
    again = manager.post(one(batch, "resume_batch"), {}, content_type="application/json")
    assert (again.status_code, "waiting or running" in again.json()["detail"]) == (409, True)
    whole = make_batch(project=project)
    refused = manager.generic("POST", one(whole, "resume_batch"))
    assert refused.status_code == 409


def test_a_cancellation_takes_no_options(project: Project, manager: Client) -> None:
    batch = make_batch(project=project, state=BatchState.RUNNING)
    answer = manager.post(
        one(batch, "cancel_batch"), {"now": True}, content_type="application/json"
    )
    assert (answer.status_code, answer.json()) == (400, {"now": ["Unknown field."]})


def test_what_is_not_there_is_not_found(project: Project, manager: Client) -> None:
    batch = make_batch(project=project)
    for route, method in (("batch", "GET"), ("cancel_batch", "POST"), ("resume_batch", "POST")):
        missing = reverse(f"api:{route}", args=[project.slug, 99])
        assert manager.generic(method, missing).status_code == 404
    other = make_batch()
    assert manager.get(one(other)).status_code == 404
    assert manager.delete(one(batch)).status_code == 405


def test_only_managers_are_answered(project: Project, client: Client) -> None:
    batch = make_batch(project=project)

    def statuses() -> set[int]:
        return {
            client.get(address(project)).status_code,
            post(client, project, {"nonsense": 1}).status_code,
            client.get(one(batch)).status_code,
            client.post(one(batch, "cancel_batch")).status_code,
            client.post(one(batch, "resume_batch")).status_code,
        }

    assert statuses() == {403}
    for role in (Role.ANNOTATOR, Role.CONSUMER):
        client.force_login(make_user(role=role, project=project))
        assert statuses() == {404}
    client.force_login(make_user(role=Role.MANAGER, project=make_project()))
    assert statuses() == {404}


def test_hostile_names_are_data(project: Project, manager: Client) -> None:
    project.policies.update(name=HOSTILE)
    answer = post(manager, project, {"policies": [{"policy": HOSTILE}]})
    assert answer.status_code == 201
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert answer.json()["policies"][0]["policy"] == HOSTILE
