"""The disk: what is told of it, and which checkpoints a clean-up deletes."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from django.test import Client
from django.urls import reverse

from jobs import queue
from jobs.models import Job, JobState
from jobs.run_dir import read_jsonl
from jobs.worker import run_job
from labeling.models import PolicyState, Project, Role
from tests.builders import make_policy, make_project, make_user
from tests.training.rounds import make_round
from training import cleaning, disk
from training.cleaning import GONE, ask_to_clean, clean, last_cleaning
from training.disk import GB, Room, disk_warning, next_round_bytes, tree_bytes, usage_of
from training.models import Round, RoundState, Snapshot

pytestmark = pytest.mark.django_db
SIZE = 10_000
MakeOne = Callable[..., Round]
SUCCEEDED, FAILED = RoundState.SUCCEEDED, RoundState.FAILED
CANCELLED, RUNNING = RoundState.CANCELLED, RoundState.RUNNING


@pytest.fixture
def project(settings, tmp_path: Path) -> Project:
    settings.RUNS_DIR, settings.MODELS_DIR = tmp_path / "runs", tmp_path / "models"
    settings.DISK_LIMIT_GB = 0
    project = make_project()
    make_policy(project=project, name="Starter", state=PolicyState.SERVING)
    return project


@pytest.fixture
def make(settings) -> MakeOne:
    """A round with a checkpoint of SIZE bytes, and the policy that it made where it succeeded."""

    def make_one(project: Project, state: RoundState) -> Round:
        round_ = make_round(project, state)
        run_dir = settings.RUNS_DIR / f"round-{round_.pk:06d}"
        (run_dir / "checkpoints" / "step-00000010").mkdir(parents=True)
        (run_dir / "checkpoints" / "step-00000010" / "weights.safetensors").write_bytes(b"0" * SIZE)
        (run_dir / "metrics.jsonl").write_text("{}\n")
        round_.run_dir = str(run_dir)
        if state == SUCCEEDED:
            (run_dir / "policy").mkdir()
            (run_dir / "policy" / "model.safetensors").write_bytes(b"0" * 500)
            round_.policy = make_policy(project=project, model_path=str(run_dir / "policy"))
        round_.save()
        return round_

    return make_one


def has_checkpoints(round_: Round) -> bool:
    return (Path(round_.run_dir) / "checkpoints").exists()


def test_checkpoints_of_rounds_that_succeeded_go_and_all_others_stay(
    project: Project, make: MakeOne
) -> None:
    done, failed, newest, live = (make(project, s) for s in (SUCCEEDED, FAILED, CANCELLED, RUNNING))
    elsewhere = make(make_project_with_policy(), SUCCEEDED)
    freed = clean(project=project, stopped=False)
    assert (freed.rounds, freed.bytes) == (1, SIZE)
    kept = [has_checkpoints(one) for one in (done, failed, newest, live, elsewhere)]
    assert kept == [False, True, True, True, True]
    assert (Path(done.run_dir) / "policy" / "model.safetensors").exists()
    assert (Path(done.run_dir) / "metrics.jsonl").exists()
    (event,) = read_jsonl(Path(done.run_dir) / "events.jsonl")
    assert (event["kind"], event["bytes"]) == ("cleaned", SIZE)
    assert clean(project=project, stopped=False).bytes == 0


def make_project_with_policy() -> Project:
    project = make_project()
    make_policy(project=project, state=PolicyState.SERVING)
    return project


def test_what_failed_goes_on_request_but_the_newest_that_can_go_on(
    project: Project, make: MakeOne
) -> None:
    rounds = [make(project, state) for state in (FAILED, CANCELLED, FAILED, RUNNING)]
    freed = clean(project=project, stopped=True)
    assert (freed.rounds, freed.bytes) == (2, 2 * SIZE)
    assert [has_checkpoints(one) for one in rounds] == [False, False, True, True]


def test_beyond_the_limit_the_oldest_go_first_in_all_projects(
    project: Project, make: MakeOne, monkeypatch
) -> None:
    other = make_project_with_policy()
    rounds = [make(one, FAILED) for one in (project, other, project, other, project)]
    total = 5 * (SIZE + 3)
    for limit, left in ((total, 5), (total - 1, 4), (total - SIZE - 1, 3), (1, 2)):
        monkeypatch.setattr(cleaning, "limit_bytes", lambda limit=limit: limit)
        clean(project=project, stopped=False)
        assert sum(has_checkpoints(one) for one in rounds) == left
    assert [has_checkpoints(one) for one in rounds] == [False, False, False, True, True]


def test_a_round_that_goes_on_meanwhile_keeps_its_checkpoints(
    project: Project, make: MakeOne
) -> None:
    first, _newest = make(project, FAILED), make(project, FAILED)

    def resume() -> None:
        Round.objects.filter(pk=first.pk).update(state=RoundState.QUEUED)

    clean(project=project, stopped=True, check=resume)
    assert has_checkpoints(first)


def test_a_round_whose_policy_was_lost_keeps_its_checkpoints(
    project: Project, make: MakeOne
) -> None:
    round_ = make(project, SUCCEEDED)
    (Path(round_.run_dir) / "policy" / "model.safetensors").unlink()
    assert clean(project=project, stopped=True).bytes == 0
    assert has_checkpoints(round_)


def test_nothing_is_deleted_outside_the_sites_own_folder(
    project: Project, make: MakeOne, tmp_path: Path
) -> None:
    round_, linked = make(project, SUCCEEDED), make(project, SUCCEEDED)
    outside = tmp_path / "outside"
    Path(round_.run_dir).rename(outside)
    Round.objects.filter(pk=round_.pk).update(run_dir=str(outside))
    theirs = Path(linked.run_dir) / "checkpoints"
    theirs.rename(tmp_path / "theirs")
    theirs.symlink_to(tmp_path / "theirs")
    assert clean(project=project, stopped=True).bytes == 0
    assert tree_bytes(outside / "checkpoints") == tree_bytes(tmp_path / "theirs") == SIZE


def test_a_clean_up_that_was_killed_is_finished(project: Project, make: MakeOne) -> None:
    round_ = make(project, SUCCEEDED)
    folder = Path(round_.run_dir) / "checkpoints"
    folder.rename(folder.with_name(GONE))
    assert clean(project=project, stopped=False).bytes == SIZE
    assert not folder.with_name(GONE).exists()


def test_the_figure_counts_every_byte_once(project: Project, make: MakeOne, tmp_path: Path) -> None:
    make(project, SUCCEEDED)
    make(project, FAILED)
    make(make_project_with_policy(), FAILED)
    (tmp_path / "runs" / "link").symlink_to(tmp_path)
    snapshot = tmp_path / "runs" / "snapshot.jsonl"
    snapshot.write_text("12345")
    for _ in range(2):
        Snapshot.objects.create(
            project=project, path=str(snapshot), groups=1, pairs=1, held_out_pairs=0
        )
    usage = usage_of(project).value
    assert usage["checkpoints"] == 2 * SIZE
    assert usage["done"] == SIZE
    assert usage["runs"] == 6
    assert usage["policies"] == 500
    assert usage["snapshots"] == 5
    assert usage["cache"] == 0
    assert usage["site"] == 3 * (SIZE + 3) + 500 + 5
    assert [tuple(one) for one in usage["rounds"]] == [(1, SUCCEEDED, SIZE), (2, FAILED, SIZE)]


def test_a_nearly_full_disk_is_warned_of(project: Project, monkeypatch, tmp_path: Path) -> None:
    policy = project.policies.get()
    policy.model_path = str(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"0" * 1000)
    assert next_round_bytes(policy) == 10_000
    for free, warned in ((60 * GB, False), (40 * GB, True), (5_000, True)):
        monkeypatch.setattr(disk, "room", lambda free=free: Room(free=free, total=1000 * GB))
        assert bool(disk_warning(policy)) == warned
    monkeypatch.setattr(disk, "room", lambda: Room(free=5_000, total=5_001))
    assert "nearly full" in disk_warning(policy)


@pytest.fixture
def manager(project: Project, client: Client) -> Client:
    client.force_login(make_user(role=Role.MANAGER, project=project))
    return client


def page(project: Project) -> str:
    return reverse("training:disk", args=[project.slug])


@pytest.mark.django_db(transaction=True)
def test_the_page_has_the_worker_clean_up_and_tells_what_it_freed(
    project: Project, make: MakeOne, manager: Client, settings
) -> None:
    settings.DISK_LIMIT_GB = 500
    done, failed = make(project, SUCCEEDED), make(project, FAILED)
    make(project, FAILED)
    html = manager.get(page(project)).content.decode()
    assert "29.3\xa0KB" in html
    assert "the limit here is 500.0\xa0GB" in html
    address = reverse("training:clean_disk", args=[project.slug])
    html = manager.post(address, {"stopped": "on"}, follow=True).content.decode()
    assert "The worker is cleaning up" in html
    job = queue.claim(lanes=["light"], worker="here")
    assert job is not None
    run_job(job, threading.Event())
    job.refresh_from_db()
    assert job.state == JobState.SUCCEEDED, job.error
    assert not has_checkpoints(done)
    assert not has_checkpoints(failed)
    html = manager.get(page(project)).content.decode()
    assert "19.5\xa0KB freed" in html
    assert "the checkpoints of 2 rounds" in html
    made = done.policy
    assert made is not None
    made.refresh_from_db()
    assert made.size_bytes == 500


def test_two_asks_are_one_clean_up(project: Project) -> None:
    first, second = ask_to_clean(project=project), ask_to_clean(project=project)
    assert first == second == last_cleaning(project)
    assert Job.objects.count() == 1


def test_only_managers_see_the_disk(project: Project, client: Client) -> None:
    for role in (Role.ANNOTATOR, Role.CONSUMER):
        client.force_login(make_user(role=role, project=project))
        assert client.get(page(project)).status_code == 404
        assert client.post(f"{page(project)}clean/").status_code == 404
    assert not Job.objects.exists()
