"""What goes wrong under a round, through the worker's handler and the real trainer: the round has
failed with its cause and what to do, the site answers, and the next round is unhindered.
"""

import errno
import os
import shutil
import sys
import threading
from pathlib import Path

import pytest
from django.test import Client

from jobs import queue
from jobs.models import Job
from jobs.worker import run_job
from labeling.models import Policy, Project, Role, Split
from labeling.services.promoting import register_policy
from tests.builders import judge, make_comparison, make_project, make_prompt, make_user
from tests.training.rounds import page_of
from training import snapshots, tasks
from training.events import read_events
from training.models import Round, RoundState
from training.services import NotReady, resumable, resume_round, start_round

pytestmark = [pytest.mark.slow, pytest.mark.django_db(transaction=True)]

PROGRAM = Path(__file__).with_name("faulty.py")
USED = ". By its last logged step it had used"
OPTIONS = {
    "epochs": 1,
    "batch_groups": 3,
    "max_length": 128,
    "warmup_steps": 1,
    "checkpoint_every": 1,
    "sample_prompts": 0,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.training.trainer.builders import write_policy

    return write_policy(tmp_path_factory.mktemp("model"))


@pytest.fixture
def project(settings, tmp_path: Path, model: Path) -> Project:
    settings.RUNS_DIR = tmp_path / "runs"  # tests reuse the ids of rounds
    project = make_project()
    annotator = make_user(role=Role.ANNOTATOR, project=project)
    for number in range(12):
        prompt = make_prompt(project=project, text=f"question {number}?", split=Split.TRAIN)
        texts = [f"yes the {number}", f"no {number}"]
        judge(comparison=make_comparison(prompt=prompt, texts=texts), annotator=annotator)
    own = Path(shutil.copytree(model, tmp_path / "model"))
    register_policy(project=project, name="Tiny", model_path=own)
    return project


@pytest.fixture
def break_it(settings, tmp_path: Path):
    """Let the trainer meet a fault from now on."""

    def put(fault: str) -> None:
        script = tmp_path / "python"
        script.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} {PROGRAM} {fault} "$@"\n')
        script.chmod(0o700)
        settings.TRAINER_PYTHON = str(script)

    return put


def work() -> Job:
    job = queue.claim(lanes=["gpu"], worker="here")
    assert job is not None
    run_job(job, threading.Event())
    job.refresh_from_db()
    return job


def trained(project: Project) -> Round:
    """The next round, ended one way or another."""
    round_ = start_round(project=project, actor=None, options=OPTIONS)
    work()
    round_.refresh_from_db()
    return round_


def failed_for(project: Project, client: Client, cause: str, advice: str) -> Round:
    """The next round, which has failed in these words; what was good is kept, the site is up."""
    failed = trained(project)
    assert failed.state == RoundState.FAILED
    assert cause in failed.error
    assert advice in failed.error
    assert read_events(Path(failed.run_dir)).checkpoint == 2
    client.force_login(make_user(role=Role.MANAGER, project=project))
    html = client.get(page_of(failed)).content.decode()
    assert cause in html
    assert "Go on" in html
    assert not Job.objects.live().filter(lane="gpu").exists()
    return failed


@pytest.mark.parametrize(
    ("fault", "cause", "advice"),
    [
        ("out_of_memory", "out of memory", "activation_checkpointing"),
        ("not_finite", "of step 3 is not finite", "Lower learning_rate"),
        ("disk_full", "disk is full", "free space"),
    ],
)
def test_a_fault_in_a_step_fails_the_round_with_its_cause_and_bars_no_other(
    project: Project, client: Client, break_it, fault: str, cause: str, advice: str
) -> None:
    break_it(fault)
    failed = failed_for(project, client, cause, advice)
    assert (USED in failed.error) == (fault == "out_of_memory")
    assert start_round(project=project, actor=None).live


def test_a_trainer_that_hangs_is_stopped_and_the_next_round_succeeds(
    project: Project, client: Client, break_it, monkeypatch
) -> None:
    monkeypatch.setattr(tasks, "SILENCE_S", 2.0)
    break_it("hangs")
    failed_for(project, client, "wrote nothing for", "go on from there")
    break_it("sound")
    assert trained(project).state == RoundState.SUCCEEDED


def test_a_killed_round_goes_on_from_the_checkpoint_before_a_broken_one_and_says_so(
    project: Project, client: Client, break_it
) -> None:
    break_it("killed")
    failed = failed_for(project, client, "ran out of memory", "fewer groups a batch")
    assert USED in failed.error
    first = failed.snapshot
    newest = Path(failed.run_dir) / "checkpoints" / "step-00000002" / "weights.safetensors"
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(data)
    break_it("sound")
    resume_round(round_=failed, actor=None)
    work()
    failed.refresh_from_db()
    assert (failed.state, failed.error) == (RoundState.SUCCEEDED, "")
    assert failed.snapshot == first, "what was judged meanwhile is for the next round"
    events = read_events(Path(failed.run_dir))
    assert any("step-00000002 is broken and was passed over" in said for said in events.warnings)


def test_a_missing_model_is_said_and_the_round_goes_on_when_it_is_back(project: Project) -> None:
    folder = Path(Policy.objects.get().model_path)
    away = folder.rename(folder.with_name("away"))
    failed = trained(project)
    assert failed.state == RoundState.FAILED
    assert "is not a folder" in failed.error
    away.rename(folder)
    assert resume_round(round_=failed, actor=None).state == RoundState.QUEUED
    with pytest.raises(NotReady, match="started just now"):
        resume_round(round_=failed, actor=None)


def test_a_disk_that_is_full_before_the_trainer_starts_is_said_too(
    project: Project, monkeypatch
) -> None:
    def full(*_args: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(snapshots, "write_jsonl", full)
    failed = trained(project)
    assert failed.state == RoundState.FAILED
    assert "The disk is full" in failed.error
    assert not resumable(failed), "nothing of it was frozen yet: another one is started"
