"""Models that people bring."""

import subprocess
import sys
from pathlib import Path

import pytest
from django.test import Client
from django.urls import reverse

from generation import adding
from generation.samplers import fetch
from jobs.models import Job, JobState
from labeling.models import Policy, Project, Role
from tests.builders import make_policy, make_project, make_user

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def model(tmp_path: Path, settings) -> Path:
    """Looks like a model, in a folder where managers may name one."""
    settings.MODEL_ROOTS = [tmp_path / "allowed"]
    folder = tmp_path / "allowed" / "base"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def add(project: Project, source: object, **given: str) -> Job:
    return adding.add_policy(
        project=project, **{"name": "Mine", "source": str(source), "actor": None, **given}
    )


@pytest.mark.django_db
@pytest.mark.parametrize(
    "source",
    [
        "../secret",
        "/etc",
        "{root}/../outside",
        "{root}/link",
        "{root}/absent",
        "{root}/base\x00",
        "owner/name",
        "$(id)",
        "--flag",
    ],
)
def test_only_models_in_allowed_folders_can_be_named(model: Path, source: str) -> None:
    root = model.parent
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "config.json").write_text("{}")
    (root / "link").symlink_to(outside)
    with pytest.raises(adding.CannotAdd):
        add(make_project(), source.format(root=root))
    assert not Job.objects.exists()


@pytest.mark.django_db
def test_hub_ids_only_where_the_operator_allows_them(settings) -> None:
    settings.HUB = True
    assert add(make_project(), "owner/name", revision="a" * 40).live
    with pytest.raises(adding.CannotAdd, match="40 hex"):
        add(make_project(), "owner/name", revision="main")
    with pytest.raises(adding.CannotAdd):
        add(make_project(), "owner/name; touch /tmp/x")


@pytest.mark.django_db
def test_a_taken_name_is_refused(model: Path) -> None:
    project = make_project()
    make_policy(project=project, name="Mine")
    with pytest.raises(adding.CannotAdd, match="already"):
        add(project, model)


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_the_worker_registers_what_is_whole_and_says_why_the_rest_is_not(
    model: Path, site_env: dict[str, str]
) -> None:
    project = make_project()
    bad = model.parent / "bad"
    bad.mkdir()
    (bad / "config.json").write_text("{}")
    (bad / "pytorch_model.bin").write_bytes(b"\x80")
    good_job, bad_job = add(project, model), add(project, bad, name="Bad")
    subprocess.run(
        [sys.executable, "manage.py", "worker", "--until-idle"],
        cwd=ROOT,
        env=site_env | {"PREFLOOP_MODEL_ROOTS": str(model.parent)},
        check=True,
        timeout=120,
    )
    good_job.refresh_from_db()
    bad_job.refresh_from_db()
    assert (good_job.state, good_job.error) == (JobState.SUCCEEDED, "")
    assert Policy.objects.get(project=project).model_path == str(model)
    assert bad_job.state == JobState.FAILED
    assert "pickled" in bad_job.error


@pytest.mark.django_db
def test_the_page_takes_a_model_and_shows_what_becomes_of_it(model: Path, client: Client) -> None:
    project = make_project()
    client.force_login(make_user(role=Role.MANAGER, project=project))
    path = reverse("generation:add_policy", args=[project.slug])
    assert "Nothing was added yet" in client.get(path).content.decode()
    refused = client.post(path, {"name": "Mine", "source": "/etc"})
    assert refused.status_code == 422
    assert "must lie in" in refused.content.decode()
    assert client.post(path, {"name": "Mine", "source": str(model)}).status_code == 302
    page = client.get(path).content.decode()
    assert "Waiting for the worker" in page
    assert "every 2s" in page


@pytest.mark.parametrize(
    ("repo", "revision"), [("../x", ""), ("owner", ""), ("a--b/c", ""), ("owner/name", "main")]
)
def test_what_is_no_hub_id_never_reaches_the_hub(tmp_path: Path, repo: str, revision: str) -> None:
    with pytest.raises(fetch.CannotFetch):
        fetch.fetch(repo=repo, revision=revision, folder=tmp_path, run_dir=tmp_path)


def test_a_hub_that_cannot_be_reached_is_said_and_nothing_is_kept(tmp_path: Path) -> None:
    run_dir, models = tmp_path / "run", tmp_path / "models"
    run_dir.mkdir()
    command = [sys.executable, "-m", "generation.samplers.fetch", "--run-dir", str(run_dir)]
    done = subprocess.run(
        [*command, "--revision", "a" * 40, "owner/name", str(models)],
        cwd=ROOT,
        env={"PATH": "/usr/bin", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert "hub" in done.stderr
    assert "Traceback" not in done.stderr
    assert not [path for path in models.glob("*") if not path.name.startswith(".")]
