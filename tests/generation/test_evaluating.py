"""Evaluations from this side: both policies answer, and the pairs go to people."""

from collections import Counter
from pathlib import Path

import pytest

from generation.batch_forms import BatchForms
from generation.models import Batch, BatchState
from generation.plans import carry_on, plan_of, save_plan, top_up
from generation.services import end_batch, take_in
from jobs.run_dir import read_jsonl
from labeling.models import Comparison, Evaluation, PolicyState, Project
from labeling.services.evaluating import start_evaluation, stop_evaluation, want_again
from tests.builders import (
    make_batch,
    make_policy,
    make_project,
    make_prompt,
    write_output,
)

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _own_place(settings, tmp_path: Path) -> None:
    settings.RUNS_DIR = tmp_path / "runs"
    settings.SAMPLER = "transformers"


@pytest.fixture
def project() -> Project:
    """Five held-out prompts, three others."""
    project = make_project()
    make_policy(project=project, name="Starter", state=PolicyState.SERVING)
    for split in ["held_out"] * 5 + ["train"] * 3:
        make_prompt(project=project, split=split)
    return project


@pytest.fixture
def start(project: Project, django_capture_on_commit_callbacks):
    def _start(wanted: int = 10) -> Evaluation:
        with django_capture_on_commit_callbacks(execute=True):
            policy = make_policy(project=project, name="Round 1")
            return start_evaluation(policy=policy, actor=None, wanted=wanted)

    return _start


def written(batch: Batch, say=None) -> None:
    write_output(batch, say=say)
    take_in(batch=batch, ended=carry_on)


def test_both_policies_answer_each_held_out_prompt_alike(project: Project, start) -> None:
    evaluation = start(wanted=10)
    batch = evaluation.batches.get()
    assert (batch.origin, batch.k) == ("evaluation", 4), "two pairs of each prompt"
    written(batch)
    evaluation.refresh_from_db()
    assert evaluation.state == Evaluation.State.JUDGING
    made = evaluation.comparisons.prefetch_related("slots__response", "prompt")
    assert len(made) == 10
    for comparison in made:
        assert (comparison.purpose, comparison.prompt.split) == ("evaluation", "held_out")
        writers = [slot.response.policy_id for slot in comparison.slots.all()]
        assert writers == [evaluation.policy_id, evaluation.against_id]
    rows = read_jsonl(Path(batch.run_dir) / "prompts.jsonl")
    assert all(set(Counter(row["policies"]).values()) == {2} for row in rows)


def test_no_more_is_judged_than_is_wanted_and_prompts_are_drawn_by_chance(project, start) -> None:
    for _ in range(20):
        make_prompt(project=project, split="held_out")
    evaluation = start(wanted=12)
    batch = evaluation.batches.get()
    assert (batch.total, batch.k) == (12, 2)
    assert batch.selection["ids"] == sorted(set(batch.selection["ids"]))
    written(batch)
    assert evaluation.comparisons.count() == 12


def test_what_both_say_alike_is_counted_and_not_judged(start) -> None:
    evaluation = start()
    written(evaluation.batches.get(), say=lambda row, index: f"{row['id']}: {index % 2}")
    evaluation.refresh_from_db()
    assert evaluation.alike == 10
    assert evaluation.state == Evaluation.State.ENDED


def test_a_live_batch_is_waited_for_and_the_evaluation_comes_before_more_candidates(
    project: Project, start
) -> None:
    live = make_batch(project=project, state=BatchState.RUNNING)
    evaluation = start()
    evaluation.refresh_from_db()
    assert evaluation.problem.startswith("Another batch is being written")
    save_plan(project=project, actor=None, ready=50, weights={"current": 1})
    Batch.objects.filter(pk=live.pk).update(state=BatchState.SUCCEEDED)
    assert top_up(project=project) is None
    live.refresh_from_db()
    carry_on(live)
    assert evaluation.batches.get().state == BatchState.QUEUED
    evaluation.refresh_from_db()
    assert evaluation.problem == ""
    want_again(evaluation)
    assert evaluation.batches.count() == 1


def test_a_batch_that_failed_is_named_and_not_tried_again_by_itself(start) -> None:
    evaluation = start()
    end_batch(batch=evaluation.batches.get(), state=BatchState.FAILED, error="No memory.")
    want_again(evaluation)
    evaluation.refresh_from_db()
    assert evaluation.problem == (
        "Batch 1 has not written them all: let it go on, or stop the evaluation."
    )
    assert evaluation.batches.count() == 1


def test_an_evaluation_that_was_stopped_takes_nothing_in(start) -> None:
    evaluation = start()
    stop_evaluation(evaluation=evaluation)
    written(evaluation.batches.get())
    assert not Comparison.objects.filter(evaluation=evaluation).exists()


def test_candidates_are_not_sampled_as_often_as_an_evaluation_s_responses(project, start) -> None:
    make_batch(project=project, k=4)
    evaluation = start(wanted=30)
    assert evaluation.batches.get().k == 12
    assert plan_of(project).sampling["k"] == 4
    assert BatchForms(project).how.initial["k"] == 4
