"""The whole loop with its real parts: worker process, sampler, trainer, record."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command

from generation.models import Batch, BatchState
from generation.services import CannotGenerate, start_batch
from jobs.models import Job
from labeling.models import Comparison, Policy, Project, Response
from labeling.services import assigning, judging
from labeling.services.promoting import promote, register_policy, serving_policy
from labeling.services.verdicts import Verdict
from tests.builders import make_project, make_prompt, make_user
from training.models import Round, RoundState
from training.services import NotReady, start_round

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = {"epochs": 1, "batch_groups": 4, "learning_rate": 1e-3}

pytestmark = [pytest.mark.slow, pytest.mark.django_db(transaction=True)]


@pytest.fixture(scope="module")
def tiny_policy(tmp_path_factory) -> Path:
    """The starter policy in small: the same program, a few steps."""
    from training.trainer.starter import Recipe, Shape, build

    folder = tmp_path_factory.mktemp("models") / "tiny"
    shape = Shape(vocabulary=600, width=32, layers=2, heads=2, inner_width=64)
    build(folder, recipe=Recipe(epochs=1, most_steps=6, shape=shape))
    return folder


@pytest.fixture
def project(tiny_policy: Path) -> Project:
    project = make_project(held_out_percent=30)
    project.comparison_size = 4
    project.save()
    for number in range(16):
        make_prompt(project=project, text=f"How do I wash {number} shirts?")
    register_policy(project=project, name="Tiny", model_path=tiny_policy)
    return project


@pytest.fixture
def work(site_env):
    """Run the worker until there is nothing left to do."""

    def run() -> None:
        done = subprocess.run(
            [sys.executable, "manage.py", "worker", "--until-idle"],
            cwd=ROOT,
            env=site_env,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr

    return run


def the_policy(project: Project) -> Policy:
    policy = serving_policy(project)
    assert policy is not None
    return policy


def begin_batch(project: Project, **options: Any) -> Batch:
    policies = {the_policy(project): 1}
    return start_batch(project=project, policies=policies, actor=None, **options)


def judge_everything(project: Project) -> int:
    annotator = make_user(role="annotator", project=project)
    judged = 0
    while assignment := assigning.next_assignment(project=project, annotator=annotator):
        slots = sorted(assignment.slots, key=lambda slot: len(slot.response.text))
        verdict = Verdict(tiers=[[slot.index] for slot in slots])
        judging.record_judgment(
            project=project,
            annotator=assignment.lease.annotator,
            token=assignment.lease.token,
            verdict=verdict,
            key=f"key-{judged}",
        )
        judged += 1
    return judged


def test_prompts_to_candidates_to_preferences_to_a_policy_that_writes_the_next_candidates(
    project, work
) -> None:
    batch = begin_batch(project, max_new_tokens=12)
    with pytest.raises(CannotGenerate, match="waiting or running"):
        begin_batch(project)
    work()
    batch.refresh_from_db()
    assert (batch.state, batch.done, batch.error) == (BatchState.SUCCEEDED, 16, "")
    response = Response.objects.filter(policy=batch.leading)[0]
    assert response.token_ids
    assert response.logp is not None
    assert response.sampling["temperature"] == 1.0
    comparisons = Comparison.objects.filter(project=project).count()
    assert 14 <= comparisons <= 16
    assert judge_everything(project) == comparisons

    round_ = start_round(project=project, actor=None, options=OPTIONS)
    with pytest.raises(NotReady, match="waiting or running"):
        start_round(project=project, actor=None)
    work()
    round_.refresh_from_db()
    assert (round_.state, round_.error) == (RoundState.SUCCEEDED, "")
    assert round_.results["loss_step0"] == pytest.approx(0.693147, abs=1e-5)
    assert round_.step == round_.total_steps > 0
    assert round_.policy is not None
    assert round_.policy.digest != batch.leading.digest

    promote(policy=round_.policy, actor=None)
    work()
    following = Batch.objects.latest("id")
    assert (following.leading, following.state) == (round_.policy, BatchState.SUCCEEDED)
    call_command("check_record")

    second = start_round(
        project=project, actor=None, options={**OPTIONS, "method": "lora", "lora_rank": 4}
    )
    assert second.reference == batch.leading, "held to the initial policy, started from the new one"
    work()
    second.refresh_from_db()
    assert (second.state, second.error) == (RoundState.SUCCEEDED, "")
    assert second.policy is not None
    assert second.policy.adapter_path
    promote(policy=second.policy, actor=None)
    work()
    assert Batch.objects.latest("id").state == BatchState.SUCCEEDED, "an adapter can be sampled"
    call_command("check_record")


def test_a_round_that_cannot_train_fails_with_its_cause_and_the_next_is_unhindered(
    project, work
) -> None:
    begin_batch(project, max_new_tokens=8)
    work()
    judge_everything(project)
    failed = start_round(project=project, actor=None, options={"beta": -1.0})
    work()
    failed.refresh_from_db()
    assert failed.state == RoundState.FAILED
    assert "beta" in failed.error
    policy = the_policy(project)
    moved = Path(policy.model_path).rename(Path(policy.model_path).with_name("moved"))
    try:
        missing = start_round(project=project, actor=None, options=OPTIONS)
        work()
    finally:
        moved.rename(policy.model_path)
    missing.refresh_from_db()
    assert missing.state == RoundState.FAILED
    assert "not a folder" in missing.error
    assert not Job.objects.live().exists()
    fine = start_round(project=project, actor=None, options=OPTIONS)
    work()
    fine.refresh_from_db()
    assert (fine.state, fine.error) == (RoundState.SUCCEEDED, "")


def test_a_round_without_enough_decided_pairs_is_not_started(project) -> None:
    with pytest.raises(NotReady) as refusal:
        start_round(project=project, actor=None)
    assert [problem.blocks for problem in refusal.value.problems] == [True]
    assert not Round.objects.exists()
