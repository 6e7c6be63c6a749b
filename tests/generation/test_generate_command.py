"""`manage.py generate`"""

import subprocess
import sys
import time
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError

from generation.management.commands import generate
from generation.models import Batch, BatchState
from generation.services import end_batch, prepare, take_in
from jobs import queue
from labeling.models import PolicyState, Project, Prompt
from labeling.services.promoting import promote, register_policy
from tests.builders import make_policy, make_project, make_prompt, write_output

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _own_place(settings, tmp_path: Path, monkeypatch) -> None:
    settings.RUNS_DIR = tmp_path / "runs"  # tests reuse the ids of batches
    settings.SAMPLER = "transformers"
    monkeypatch.setattr(generate, "POLL_S", 0.02)
    monkeypatch.setattr(generate, "TELL_S", 0.0)


@pytest.fixture
def project(db) -> Project:
    project = make_project(slug="kitchen")
    make_policy(project=project, name="Starter", state=PolicyState.SERVING)
    for _ in range(3):
        make_prompt(project=project)
    return project


def run(*arguments: str) -> str:
    out = StringIO()
    call_command("generate", "--project", "kitchen", *arguments, stdout=out)
    return out.getvalue()


def test_a_batch_is_started_with_the_page_s_defaults(project: Project) -> None:
    assert run() == "Batch 1 of kitchen asks 3 prompts, 4 times each.\n"
    batch = project.batches.get()
    defaults = Batch()
    assert batch.sampling == defaults.sampling
    assert batch.origin == Batch.Origin.COMMAND
    assert [(share.policy.name, share.weight) for share in batch.shares.all()] == [("Starter", 1)]


def test_every_option_is_passed_on(project: Project) -> None:
    better = make_policy(project=project, name="Better = best")
    promote(policy=better, actor=None)
    prompt = make_prompt(project=project, text="Was kostet Käse?")
    text = run(
        *("--policy", "Better = best=3", "--policy", "previous"),
        *("--k", "6", "--temperature", "0.5", "--top-p", "0.9", "--max-new-tokens", "64"),
        *("--stop", "END", "--stop", "\n\n", "--system", "Be brief.", "--seed", "12"),
        *("--pairing", "across", "--random-percent", "50"),
        *("--prompts-with-fewer-than", "3", "--split", prompt.split, "--search", "käse"),
        *("--prompt", str(prompt.pk), "--limit", "9"),
    )
    assert "asks 1 prompt, 6 times each" in text
    batch = project.batches.get()
    assert {s.policy.name: s.weight for s in batch.shares.all()} == {
        "Better = best": 3,
        "Starter": 1,
    }
    assert batch.sampling == {
        "k": 6,
        "temperature": 0.5,
        "top_p": 0.9,
        "max_new_tokens": 64,
        "stop": ["END", "\n\n"],
        "system": "Be brief.",
        "pairing": "across",
        "random_percent": 50,
    }
    assert batch.seed == 12
    assert batch.selection == {
        "split": prompt.split,
        "ids": [prompt.pk],
        "search": "käse",
        "fewer_than": 3,
        "limit": 9,
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--k", "1"], "--k: Ensure this value is greater than or equal to 2"),
        (["--temperature", "nan"], "--temperature: Enter a number"),
        (["--policy", "Nobody"], "no policy named Nobody"),
        (["--policy", "Starter", "--policy", "Starter=2"], "Starter is named twice"),
        (["--policy", "Starter=0"], "--policy: Weights are whole numbers"),
        (["--prompt", "987654"], "--prompt: The project has no prompt 987654"),
        (["--prompts-with-fewer-than", "0"], "--prompts-with-fewer-than: A whole number"),
        (["--search", "nowhere"], "No prompt is left"),
        (["--system", "broken \udcff"], "--system: This holds a character"),
    ],
)
def test_what_cannot_be_is_refused_by_the_option_s_name(
    project: Project, arguments: list[str], words: str
) -> None:
    with pytest.raises(CommandError) as refusal:
        run(*arguments)
    assert words in str(refusal.value)
    assert not Batch.objects.exists()


def test_a_project_that_is_not_there_and_a_live_batch_are_said(project: Project) -> None:
    with pytest.raises(CommandError, match="no project cellar"):
        call_command("generate", "--project", "cellar")
    run()
    with pytest.raises(CommandError, match="waiting or running"):
        run()


def in_between(monkeypatch, *steps: Any) -> None:
    """Something that happens at each look at the batch."""
    left = list(steps)
    monkeypatch.setattr(generate, "sleep", lambda _: left.pop(0)() if left else None)


@pytest.mark.django_db(transaction=True)
def test_waiting_tells_how_far_it_is_until_it_has_ended(project: Project, monkeypatch) -> None:
    def begin() -> None:
        queue.saw_worker(name="here", lanes=["gpu"])
        write_output(project.batches.get(), say=lambda row, index: "abcd"[index])

    def go_on() -> None:
        project.batches.update(done=2)

    in_between(monkeypatch, begin, go_on, lambda: take_in(batch=project.batches.get()))
    lines = run("--wait").splitlines()
    assert lines == [
        "Batch 1 of kitchen asks 3 prompts, 4 times each.",
        "No worker has ever run. Start one: python3 manage.py worker",
        "0 of 3 prompts",
        "2 of 3 prompts",
        "Batch 1 succeeded: 3 prompts answered, 6 comparisons made.",
    ]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("state", [BatchState.FAILED, BatchState.CANCELLED])
def test_waiting_for_a_batch_that_fails_is_an_error(
    project: Project, monkeypatch, state: BatchState
) -> None:
    in_between(
        monkeypatch,
        lambda: end_batch(batch=project.batches.get(), state=state, error="No such folder."),
    )
    with pytest.raises(CommandError, match=f"Batch 1 {state}. No such folder"):
        run("--wait")


def test_a_batch_that_failed_goes_on(project: Project) -> None:
    run()
    batch = project.batches.get()
    prepare(batch)
    with pytest.raises(CommandError, match="is waiting or running"):
        run("--resume", "1")
    end_batch(batch=batch, state=BatchState.FAILED, error="No such folder.")
    assert run("--resume", "1") == "Batch 1 of kitchen goes on; 0 of 3 prompts were answered.\n"
    assert project.batches.get().state == BatchState.QUEUED


def test_what_cannot_go_on_is_refused(project: Project) -> None:
    with pytest.raises(CommandError, match="kitchen has no batch 7"):
        run("--resume", "7")
    for option in (("--k", "3"), ("--policy", "base"), ("--prompt", "1"), ("--seed", "0")):
        with pytest.raises(CommandError, match="no other options"):
            run("--resume", "1", *option)


@pytest.mark.django_db(transaction=True)
def test_somebody_who_stops_watching_stops_nothing(project: Project, monkeypatch) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "sleep", interrupt)
    with pytest.raises(CommandError, match="goes on without being watched") as end:
        run("--wait")
    assert end.value.returncode == 130
    assert project.batches.get().live


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_a_real_worker_writes_what_the_command_waits_for(site_env, tmp_path: Path) -> None:
    from training.trainer.starter import Recipe, Shape, build

    project = make_project(slug="kitchen")
    shape = Shape(vocabulary=600, width=32, layers=2, heads=2, inner_width=64)
    build(tmp_path / "tiny", recipe=Recipe(epochs=1, most_steps=6, shape=shape))
    register_policy(project=project, name="Tiny", model_path=tmp_path / "tiny")
    own = make_prompt(project=project)
    wish = {"sampling": {"max_new_tokens": 2}, "system": "Rhyme."}
    Prompt.objects.filter(pk=own.pk).update(metadata=wish)
    for wrong in ({"sampling": {"heat": 1}}, {"sampling": "hot"}, {"system": 5}):
        failing = make_prompt(project=project)
        Prompt.objects.filter(pk=failing.pk).update(metadata=wrong)
    for _ in range(4):
        make_prompt(project=project)
    site = site_env | {"PREFLOOP_SAMPLER": "transformers"}

    def manage(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "manage.py", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, cwd=ROOT, env=site, text=True, **pipes)

    asked = ("--k", "3", "--max-new-tokens", "8", "--stop", "zzz", "--pairing", "different")
    waiting = manage("generate", "--project", "kitchen", "--wait", *asked)
    deadline = time.monotonic() + 60
    while not project.batches.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    worker = manage("worker", "--until-idle")
    said, _ = waiting.communicate(timeout=240)
    log, _ = worker.communicate(timeout=60)
    assert (waiting.returncode, worker.returncode) == (0, 0), said + log
    assert "Batch 1 succeeded: 5 prompts answered, 3 prompts failed" in said
    batch = project.batches.get()
    assert batch.sampler == "transformers"
    assert batch.engine.startswith("transformers ")
    response = own.responses.all()[0]
    assert len(response.token_ids or []) <= 2
    assert (response.sampling["system"], response.sampling["max_new_tokens"]) == ("Rhyme.", 2)
    assert response.sampling["prompt_token_ids"]
    assert response.logp is not None
