"""Models that people bring."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from generation import adding
from generation.samplers import fetch
from jobs.models import Job, JobState
from labeling.models import Policy, Project, Role
from tests.builders import make_policy, make_project, make_user
from tests.generation.hub import REVISION, Hub, hub

ROOT = Path(__file__).resolve().parents[2]
WHOLE = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"weights" * 1000,
    "tokenizer.json": b"{}",
    "merges.txt": b"a b",
}
UNWANTED = {"modeling.py": b"1/0", "pytorch_model.bin": b"\x80", "onnx/model.json": b"{}"}


@pytest.fixture
def model(tmp_path: Path, settings) -> Path:
    """Looks like a model, in a folder where managers may name one."""
    settings.MODEL_ROOTS = [tmp_path / "allowed"]
    folder = tmp_path / "allowed" / "base"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def models_from() -> Callable[..., Any]:
    """Run the real program against a hub on this machine."""

    def fetch_from(hub: Hub, repo: str, folder: Path, revision: str = REVISION) -> Any:
        options = ["--revision", revision, "--run-dir", str(folder / "run")]
        return subprocess.run(
            [sys.executable, "-m", "generation.samplers.fetch", *options, repo, str(folder)],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "HF_TOKEN": "hf_canary", **hub.environment},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return fetch_from


def add(project: Project, source: object, *, name: str = "Mine", revision: str = "") -> Job:
    return adding.add_policy(
        project=project, name=name, source=str(source), revision=revision, actor=None
    )


def folders_in(path: Path) -> list[str]:
    return sorted(one.name for one in path.iterdir() if one.is_dir() and one.name != "run")


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
    model: Path, site_env: dict[str, str], settings
) -> None:
    settings.HUB = True
    project = make_project()
    bad = model.parent / "bad"
    bad.mkdir()
    (bad / "config.json").write_text("{}")
    (bad / "pytorch_model.bin").write_bytes(b"\x80")
    odd = model.rename(model.parent / "a model; touch $(id) --flag")
    with hub({"owner/name": WHOLE | UNWANTED}) as here:
        jobs = [add(project, odd), add(project, bad, name="Bad")]
        jobs += [add(project, "owner/name", name="From the hub")]
        jobs += [add(project, "owner/absent", name="Absent")]
        allowed = {"PREFLOOP_MODEL_ROOTS": str(odd.parent), "PREFLOOP_HUB": "true"}
        subprocess.run(
            [sys.executable, "manage.py", "worker", "--until-idle"],
            cwd=ROOT,
            env=site_env | here.environment | allowed,
            check=True,
            timeout=120,
        )
    for job in jobs:
        job.refresh_from_db()
    assert [(job.state, job.error) for job in jobs[::2]] == [(JobState.SUCCEEDED, "")] * 2
    assert [job.state for job in jobs[1::2]] == [JobState.FAILED] * 2
    assert "pickled" in jobs[1].error
    assert "no public model owner/absent" in jobs[3].error
    paths = dict(Policy.objects.filter(project=project).values_list("name", "model_path"))
    fetched = settings.MODELS_DIR / "hub" / f"owner--name-{REVISION}"
    assert paths == {"Mine": str(odd), "From the hub": str(fetched)}
    assert not (fetched / "modeling.py").exists()


def test_only_weights_configuration_and_tokenizer_are_fetched_and_only_once(
    tmp_path: Path, models_from
) -> None:
    with hub({"owner/name": WHOLE | UNWANTED}) as here:
        newest = models_from(here, "owner/name", tmp_path, revision="")
        again = models_from(here, "owner/name", tmp_path)
    assert (newest.returncode, again.returncode) == (0, 0), newest.stderr
    assert sorted(here.served) == sorted(WHOLE)
    assert here.tokens == [], "no access token leaves this machine"
    assert folders_in(tmp_path) == [f"owner--name-{REVISION}"]
    fetched = tmp_path / f"owner--name-{REVISION}"
    assert {path.name for path in fetched.rglob("*")} == {*WHOLE, "SOURCE.md"}
    assert (fetched / "model.safetensors").read_bytes() == WHOLE["model.safetensors"]


@pytest.mark.parametrize(
    ("files", "revision", "code", "words"),
    [
        (WHOLE | {"config.json": b'{"auto_map": {}}'}, REVISION, 3, "auto_map"),
        ({"config.json": b"{}", "pytorch_model.bin": b"\x80"}, REVISION, 3, "no .safetensors"),
        (WHOLE | {"breaks.safetensors": b"w" * 4000}, REVISION, 2, "could not reach the hub"),
        (WHOLE, "a" * 40, 2, "no such revision"),
    ],
    ids=["auto_map", "pickled", "broken off", "unknown revision"],
)
def test_what_is_refused_or_breaks_off_leaves_nothing(
    files: dict[str, bytes], revision: str, code: int, words: str, tmp_path: Path, models_from
) -> None:
    with hub({"owner/name": files}, broken={"breaks.safetensors"}) as here:
        done = models_from(here, "owner/name", tmp_path, revision=revision)
    assert done.returncode == code, done.stderr
    said = done.stderr.strip().splitlines()[-1]
    assert words in said
    assert "nothing was kept" in said
    assert folders_in(tmp_path) == []


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


def test_a_hub_that_cannot_be_reached_is_said_and_nothing_is_kept(
    tmp_path: Path, models_from
) -> None:
    with hub({}) as here:
        pass  # it is gone
    done = models_from(here, "owner/name", tmp_path, revision="")
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("could not reach the hub"), done.stderr
    assert "use a local folder" in done.stderr
    assert folders_in(tmp_path) == []
