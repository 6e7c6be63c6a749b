"""Merging an adapter: asked for on a page, done by the worker, registered as a new policy."""

import stat
import sys
import threading
from pathlib import Path

import pytest
from django.test import Client
from django.urls import reverse

from jobs import queue
from jobs.models import Job, JobState
from jobs.run_dir import read_json
from jobs.worker import run_job
from labeling.models import Policy, PolicyEvent, PolicyState, Project, Role
from labeling.policy_needs import needs
from labeling.services.deleting import CannotDelete, delete_files
from tests.builders import make_policy, make_project, make_user
from training.merging import CannotMerge, last_merge, merged_of, run_dir_of, start_merge

pytestmark = pytest.mark.django_db


@pytest.fixture
def project(settings, tmp_path: Path) -> Project:
    settings.RUNS_DIR, settings.MODELS_DIR = tmp_path / "runs", tmp_path / "models"
    project = make_project()
    make_policy(project=project, name="Starter", state=PolicyState.SERVING)
    return project


@pytest.fixture
def adapter(project: Project) -> Policy:
    base = project.policies.get()
    return make_policy(
        project=project,
        name="Round 1",
        parent=base,
        model_path=base.model_path,
        adapter_path="/nowhere/adapter",
    )


@pytest.fixture
def manager(project: Project, client: Client) -> Client:
    client.force_login(make_user(role=Role.MANAGER, project=project, username="dana"))
    return client


def page(policy: Policy) -> str:
    return reverse("training:merge_policy", args=[policy.project.slug, policy.pk])


def work() -> Job:
    job = queue.claim(lanes=["gpu"], worker="here")
    assert job is not None
    run_job(job, threading.Event())
    job.refresh_from_db()
    return job


def program(settings, tmp_path: Path, text: str) -> None:
    """Let a shell script stand in for the trainer's interpreter; $4 is the run directory."""
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\n{text}\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    settings.TRAINER_PYTHON = str(script)


WRITES = """
mkdir $4/policy && echo '{}' > $4/policy/config.json && echo weights > $4/policy/a.safetensors
echo '{"largest_difference": 0.0}' > $4/manifest.json
"""


def test_a_whole_model_has_nothing_to_merge(project: Project, manager: Client) -> None:
    whole = project.policies.get()
    with pytest.raises(CannotMerge, match="whole model"):
        start_merge(policy=whole, actor=None)
    html = manager.post(page(whole), follow=True).content.decode()
    assert "no adapter to merge" in html
    assert not Job.objects.exists()


def test_one_merging_at_a_time_and_none_without_files(adapter: Policy) -> None:
    start_merge(policy=adapter, actor=None)
    with pytest.raises(CannotMerge, match="already"):
        start_merge(policy=adapter, actor=None)
    Job.objects.all().delete()
    delete_files(policy=adapter, actor=None)
    with pytest.raises(CannotMerge, match="were deleted"):
        start_merge(policy=adapter, actor=None)


def test_what_is_being_merged_is_not_deleted(adapter: Policy) -> None:
    start_merge(policy=adapter, actor=None)
    assert [need.text for need in needs(adapter)] == ["The worker is busy with it."]
    with pytest.raises(CannotDelete):
        delete_files(policy=adapter, actor=None)


def test_cancelling_a_merging_that_waits(adapter: Policy, manager: Client) -> None:
    html = manager.post(page(adapter), follow=True).content.decode()
    assert "Waiting for the worker" in html
    assert 'hx-trigger="every 2s"' in html
    address = reverse("training:cancel_merge", args=[adapter.project.slug, adapter.pk])
    html = manager.post(address, follow=True).content.decode()
    assert "Nothing of it was kept" in html
    assert "Merge it again" in html
    job = last_merge(adapter)
    assert job is not None
    assert job.state == JobState.CANCELLED


def test_only_managers_merge(adapter: Policy, client: Client) -> None:
    for role in (Role.ANNOTATOR, Role.CONSUMER):
        client.force_login(make_user(role=role, project=adapter.project))
        assert client.get(page(adapter)).status_code == 404
        assert client.post(page(adapter)).status_code == 404
    foreign = make_policy(adapter_path="/nowhere/else")
    client.force_login(make_user(role=Role.MANAGER, project=adapter.project))
    address = reverse("training:merge_policy", args=[adapter.project.slug, foreign.pk])
    assert client.post(address).status_code == 404
    assert not Job.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_the_merged_policy_is_registered_once_as_a_child(
    adapter: Policy, manager: Client, settings, tmp_path: Path
) -> None:
    program(settings, tmp_path, WRITES)
    manager.post(page(adapter))
    job = work()
    assert job.state == JobState.SUCCEEDED, job.error
    merged = merged_of(adapter)
    assert merged is not None
    assert (merged.name, merged.parent, merged.state) == (
        "Round 1, merged",
        adapter,
        PolicyState.CANDIDATE,
    )
    assert merged.adapter_path == ""
    assert merged.size_bytes == len("{}\n") + len("weights\n")
    kinds = merged.events.order_by("id").values_list("kind", "actor__username")
    assert list(kinds) == [("registered", "dana"), ("merged", "dana")]
    assert "Round 1, merged" in manager.get(page(adapter)).content.decode()
    with pytest.raises(CannotMerge, match="Round 1, merged is Round 1"):
        start_merge(policy=adapter, actor=None)
    Job.objects.filter(pk=job.pk).update(state=JobState.QUEUED)  # as if it had been cut off here
    work()
    assert PolicyEvent.objects.filter(kind="merged").count() == 1


@pytest.mark.django_db(transaction=True)
def test_a_failure_is_told_and_leaves_nothing(
    adapter: Policy, manager: Client, settings, tmp_path: Path
) -> None:
    said = '{"kind": "error", "message": "The disk is full."}'
    program(settings, tmp_path, f"mkdir $4/.policy; echo '{said}' >> $4/events.jsonl; exit 5")
    job = start_merge(policy=adapter, actor=None)
    work()
    assert "The disk is full." in manager.get(page(adapter)).content.decode()
    assert not (run_dir_of(job.pk) / ".policy").exists()
    assert merged_of(adapter) is None


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_the_trainers_own_program_merges(project: Project, settings, tmp_path: Path) -> None:
    from tests.training.trainer.builders import write_policy
    from tests.training.trainer.test_merging import write_adapter

    settings.TRAINER_PYTHON = sys.executable
    base = write_policy(tmp_path / "base")
    folder = write_adapter(tmp_path / "adapter", base)
    policy = make_policy(project=project, model_path=str(base), adapter_path=str(folder))
    job = start_merge(policy=policy, actor=None)
    assert work().state == JobState.SUCCEEDED
    merged = merged_of(policy)
    assert merged is not None
    assert merged.digest == read_json(run_dir_of(job.pk) / "manifest.json")["policy_digest"]
