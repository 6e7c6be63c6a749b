"""A policy's page, its download, and deleting its files."""

import io
import os
import tarfile
from datetime import timedelta
from pathlib import Path

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from generation.models import BatchState
from jobs import queue
from labeling import policy_download
from labeling.models import Evaluation, Policy, PolicyState, Project, Role
from labeling.policy_download import Archive, Changed, NotThere
from labeling.policy_needs import needs
from labeling.services.deleting import (
    CannotDelete,
    FilesDeleted,
    delete_files,
    ensure_files,
    finish_deletions,
    note_sizes,
)
from labeling.services.promoting import promote
from tests.builders import (
    make_batch,
    make_policy,
    make_project,
    make_prompt,
    make_responses,
    make_user,
)
from tests.training.rounds import make_round
from training.models import RoundState

pytestmark = pytest.mark.django_db
CARD = """---
license: mit
---
# Kitchen <script>alert(1)</script>

Made from **votes**. ![x](https://elsewhere.example/x.png) [go](javascript:alert(1))
"""


@pytest.fixture
def models(settings, tmp_path: Path) -> Path:
    settings.RUNS_DIR, settings.MODELS_DIR = tmp_path / "runs", tmp_path / "models"
    return tmp_path / "models"


def write_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (folder / "model.safetensors").write_bytes(b"weights" * 1000)
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    return folder


@pytest.fixture
def project() -> Project:
    project = make_project()
    make_policy(project=project, name="Starter", state=PolicyState.SERVING)
    return project


@pytest.fixture
def policy(project: Project, models: Path) -> Policy:
    folder = write_model(models / "mine")
    return make_policy(
        project=project, name='Ro"und / 1', parent=project.policies.get(), model_path=str(folder)
    )


@pytest.fixture
def manager(project: Project, client: Client) -> Client:
    client.force_login(make_user(role=Role.MANAGER, project=project, username="dana"))
    return client


def at(route: str, policy: Policy) -> str:
    return reverse(f"labeling:{route}", args=[policy.project.slug, policy.pk])


def test_the_page_tells_facts_and_shows_the_card_made_safe(policy: Policy, manager: Client) -> None:
    make_responses(prompt=make_prompt(project=policy.project), k=3, policy=policy)
    html = manager.get(at("policy", policy)).content.decode()
    assert policy.digest in html
    assert "LlamaForCausalLM" in html
    assert "<dd>3</dd>" in html
    assert "Made from <strong>votes</strong>" in html
    assert "license: mit" not in html
    assert "<script>alert" not in html
    assert "javascript:" not in html.replace("go](javascript:alert(1))", "")
    assert "<img" not in html


def test_a_card_that_is_a_link_or_no_file_is_not_read(
    policy: Policy, manager: Client, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("the key")
    card = Path(policy.model_path) / "README.md"
    for replace in (lambda: card.symlink_to(tmp_path / "secret"), lambda: os.mkfifo(card)):
        card.unlink()
        replace()
        html = manager.get(at("policy", policy)).content.decode()
        assert "the key" not in html
        assert "No model card" in html


def test_a_policy_whose_folder_is_away_is_told_so(project: Project, manager: Client) -> None:
    html = manager.get(at("policy", project.policies.get())).content.decode()
    assert "Nothing is in its folder" in html
    assert "Download" not in html


def test_a_long_line_of_descent_is_cut_in_its_middle(policy: Policy, manager: Client) -> None:
    last = policy
    for number in range(20):
        last = make_policy(project=policy.project, name=f"Child {number}", parent=last)
    html = manager.get(at("policy", last)).content.decode()
    assert ">Starter</a>" in html
    assert "12 more" in html
    assert ">Child 18</a>" in html
    assert ">Child 3</a>" not in html
    assert ">Child 0</a>" in manager.get(at("policy", policy)).content.decode()


def test_the_page_needs_no_more_queries_for_a_long_line(
    policy: Policy, manager: Client, django_assert_max_num_queries
) -> None:
    last = policy
    for number in range(30):
        last = make_policy(project=policy.project, name=f"Child {number}", parent=last)
    with django_assert_max_num_queries(22):
        manager.get(at("policy", last))


def test_the_download_is_a_tar_of_the_folders_own_files(
    policy: Policy, manager: Client, tmp_path: Path
) -> None:
    folder = Path(policy.model_path)
    (tmp_path / "secret.json").write_text("the key")
    (folder / "link.json").symlink_to(tmp_path / "secret.json")
    (folder / "LICENSE").write_text("MIT")
    (folder / ".hidden.json").write_text("{}")
    (folder / "notes.log").write_text("no")
    (folder / "sub").mkdir()
    (folder / "sub" / "config.json").write_text("{}")
    answer = manager.get(at("download_policy", policy))
    content = b"".join(answer.streaming_content)
    assert len(content) == int(answer["Content-Length"])
    name = f"{policy.project.slug}-round-1-{policy.digest[:10]}"
    assert answer["Content-Disposition"] == f'attachment; filename="{name}.tar"'
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        wanted = ("LICENSE", "README.md", "config.json", "model.safetensors")
        assert archive.getnames() == [f"{name}/{one}" for one in wanted]
        weights = archive.extractfile(f"{name}/model.safetensors")
        assert weights is not None
        assert weights.read() == b"weights" * 1000


def test_a_head_request_tells_the_size_only(policy: Policy, manager: Client) -> None:
    answer = manager.head(at("download_policy", policy))
    assert int(answer["Content-Length"]) > 7000
    assert b"".join(answer.streaming_content) == b""


def test_a_file_that_changes_meanwhile_tears_the_archive(
    policy: Policy, monkeypatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(policy_download, "CHUNK", 512)
    folder = Path(policy.model_path)
    archive = iter(Archive(folder, "it"))
    next(archive)
    weights = folder / "model.safetensors"
    weights.unlink()
    weights.symlink_to(tmp_path)
    with pytest.raises(Changed):
        list(archive)
    for away in (tmp_path / "away", folder / "config.json", tmp_path):
        with pytest.raises(NotThere):
            Archive(away, "it")


def test_only_managers_of_the_project_see_and_download(policy: Policy, client: Client) -> None:
    foreign = make_policy()
    for role in (Role.ANNOTATOR, Role.CONSUMER):
        client.force_login(make_user(role=role, project=policy.project))
        for route in ("policy", "download_policy", "delete_policy"):
            assert client.get(at(route, policy)).status_code == 404
        assert client.post(at("delete_policy", policy)).status_code == 404
    client.force_login(make_user(role=Role.MANAGER, project=policy.project))
    for route in ("policy", "download_policy", "delete_policy"):
        path = reverse(f"labeling:{route}", args=[policy.project.slug, foreign.pk])
        assert client.get(path).status_code == 404


def test_deleting_removes_the_files_and_keeps_the_record(
    policy: Policy, manager: Client, django_capture_on_commit_callbacks
) -> None:
    make_responses(prompt=make_prompt(project=policy.project), k=3, policy=policy)
    html = manager.get(at("delete_policy", policy)).content.decode()
    assert "3 responses that it wrote stay" in html
    assert policy.model_path in html
    with django_capture_on_commit_callbacks(execute=True):
        answer = manager.post(
            at("delete_policy", policy), {"reason": "No <i>room</i>"}, follow=True
        )
    html = answer.content.decode()
    assert "its record stays" in html
    assert "No &lt;i&gt;room" in html
    assert not Path(policy.model_path).exists()
    policy.refresh_from_db()
    assert policy.deleted_at is not None
    assert policy.size_bytes > 7000
    assert policy.responses.count() == 3
    event = policy.events.get()
    assert (event.kind, event.actor.username) == ("deleted", "dana")
    for route in ("policy", "delete_policy"):
        html = manager.get(at(route, policy), follow=True).content.decode()
        assert "Files deleted" in html
        assert "Download" not in html
    assert manager.get(at("download_policy", policy)).status_code == 404
    with pytest.raises(FilesDeleted):
        ensure_files(policy)
    with pytest.raises(CannotDelete, match="already"):
        delete_files(policy=policy, actor=None)


def test_only_files_that_lie_in_the_folder_go(
    policy: Policy, tmp_path: Path, django_capture_on_commit_callbacks
) -> None:
    outside = tmp_path / "outside"
    outside.write_text("keep")
    folder = Path(policy.model_path)
    (folder / "link").symlink_to(outside)
    (folder / "other").mkdir()
    (folder / "other" / "model.safetensors").write_text("keep")
    with django_capture_on_commit_callbacks(execute=True):
        delete_files(policy=policy, actor=None)
    assert outside.read_text() == "keep"
    assert [path.name for path in folder.iterdir()] == ["other"]


def test_folders_of_other_people_are_marked_only(
    project: Project, models: Path, tmp_path: Path, django_capture_on_commit_callbacks
) -> None:
    outside = write_model(tmp_path / "theirs")
    (models).mkdir()
    (models / "link").symlink_to(outside)
    for folder in (outside, models / "link", models / ".." / "theirs"):
        theirs = make_policy(project=project, model_path=str(folder))
        with django_capture_on_commit_callbacks(execute=True):
            assert not delete_files(policy=theirs, actor=None).removed
        assert (outside / "model.safetensors").exists()


def test_the_same_files_under_another_name_stay(
    policy: Policy, django_capture_on_commit_callbacks
) -> None:
    twin = make_policy(model_path=policy.model_path)
    with django_capture_on_commit_callbacks(execute=True):
        storage = delete_files(policy=policy, actor=None)
    assert storage.twin == twin
    assert Path(policy.model_path).exists()
    with django_capture_on_commit_callbacks(execute=True):
        assert delete_files(policy=twin, actor=None).removed
    assert not Path(policy.model_path).exists()


def test_what_needs_the_files_is_told_with_links(policy: Policy, manager: Client) -> None:
    project = policy.project
    starter = project.policies.get(name="Starter")
    adapter = make_policy(
        project=project, name="On it", model_path=policy.model_path, adapter_path="/nowhere/a"
    )
    make_policy(model_path=policy.model_path, adapter_path="/nowhere/b", name="Secret name")
    round_ = make_round(project, RoundState.RUNNING)
    round_.start = policy
    round_.save()
    batch = make_batch(project=project, policies={policy: 1}, state=BatchState.QUEUED)
    Evaluation.objects.create(project=project, policy=policy, against=starter)
    queue.enqueue(kind="training.merge", payload={"policy": policy.pk}, lane="gpu")
    html = manager.get(at("delete_policy", policy)).content.decode()
    for url in (
        at("policy", adapter),
        reverse("training:round", args=[project.slug, round_.number]),
        reverse("generation:batch", args=[project.slug, batch.number]),
    ):
        assert f'href="{url}"' in html
    assert "People are comparing" in html
    assert "The worker is busy" in html
    assert "A policy of another project" in html
    assert "Secret name" not in html
    assert "Delete the files</button>" not in html
    answer = manager.post(at("delete_policy", policy))
    assert answer.status_code == 409
    policy.refresh_from_db()
    assert policy.deleted_at is None
    assert Path(policy.model_path).exists()


def test_neither_the_serving_policy_nor_its_initial_one_is_deleted(policy: Policy) -> None:
    project = policy.project
    starter = project.policies.get(name="Starter")
    assert len(needs(starter)) == 1
    promote(policy=policy, actor=None)
    assert "serves" in needs(policy)[0].text
    starter.refresh_from_db()
    assert "initial policy" in needs(starter)[0].text
    other = make_policy(project=project, name="Other", parent=starter)
    assert needs(other) == []


def test_an_adapters_files_are_its_own(project: Project, models: Path) -> None:
    adapter = make_policy(
        project=project, model_path=str(models / "base"), adapter_path=str(models / "adapter")
    )
    make_policy(
        project=project,
        parent=adapter,
        model_path=str(models / "base"),
        adapter_path=str(models / "younger"),
    )
    assert needs(adapter) == []


def test_what_a_stopped_site_left_is_removed_later_and_sizes_are_noted(
    policy: Policy, models: Path
) -> None:
    other = make_policy(project=policy.project, model_path=str(write_model(models / "other")))
    Policy.objects.filter(pk=policy.pk).update(deleted_at=timezone.now())
    finish_deletions(policy.project)
    note_sizes(policy.project)
    assert not Path(policy.model_path).exists()
    other.refresh_from_db()
    assert other.size_bytes == sum(one.stat().st_size for one in (models / "other").iterdir())


def test_a_model_that_was_put_where_a_deleted_one_lay_is_left_alone(
    policy: Policy, models: Path
) -> None:
    before = timezone.now() - timedelta(hours=1)
    Policy.objects.filter(pk=policy.pk).update(deleted_at=before)
    finish_deletions(policy.project)
    assert any(Path(policy.model_path).iterdir())


def test_what_an_adapter_of_another_project_sits_on_stays(policy: Policy, models: Path) -> None:
    Policy.objects.filter(pk=policy.pk).update(deleted_at=timezone.now())
    make_policy(model_path=policy.model_path, adapter_path=str(models / "adapter"))
    finish_deletions(policy.project)
    assert any(Path(policy.model_path).iterdir())
