"""The manager's whole way in a real browser, with a real worker: round, evaluation, promotion."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from generation.services import start_batch
from labeling.models import Evaluation, Project, Role, Split, User
from labeling.services.assigning import next_assignment
from labeling.services.judging import record_judgment
from labeling.services.promoting import register_policy, serving_policy
from labeling.services.verdicts import Verdict
from tests.builders import ROOT, make_project, make_prompt, make_user
from tests.jobs.conftest import eventually

pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.django_db(transaction=True),
]
LIMIT_MS = 120_000  # for what the worker does


@pytest.fixture
def project(transactional_db, tmp_path: Path) -> Project:
    """Prompts on both sides, and a policy that knows a few words."""
    from training.trainer.starter import Recipe, Shape, build

    project = make_project(name="Laundry")
    project.comparison_size = 4
    project.save()
    for number in range(24):
        split = Split.HELD_OUT if number % 2 else Split.TRAIN
        make_prompt(project=project, text=f"How do I wash {number} shirts?", split=split)
    shape = Shape(vocabulary=600, width=32, layers=2, heads=2, inner_width=64)
    build(tmp_path / "tiny", recipe=Recipe(epochs=1, most_steps=6, shape=shape))
    register_policy(project=project, name="Tiny", model_path=tmp_path / "tiny")
    return project


@contextmanager
def working(env: dict[str, str]) -> Iterator[None]:
    """A worker runs meanwhile."""
    worker = subprocess.Popen([sys.executable, "manage.py", "worker"], cwd=ROOT, env=env)
    try:
        yield
    finally:
        worker.terminate()
        worker.wait(30)


def judge(project: Project, annotator: User, worth: dict[int, int]) -> None:
    """Judge all that is offered: whoever wrote it decides, else the shorter response is better."""
    number = annotator.judgments.count()
    while given := next_assignment(project=project, annotator=annotator):
        slots = [
            (worth.get(slot.response.policy_id or 0, 0), len(slot.response.text), slot.index)
            for slot in given.comparison.slots.select_related("response")
        ]
        verdict = Verdict(tiers=[[index] for _worth, _length, index in sorted(slots)])
        record_judgment(
            project=project,
            annotator=annotator,
            token=given.lease.token,
            verdict=verdict,
            key=f"console-key-{number:06}",
        )
        number += 1


def test_a_manager_goes_round_the_loop(
    project: Project, site_env: dict[str, str], open_page
) -> None:
    dana, ben = (
        make_user(role=Role.MANAGER, project=project, username=name) for name in ("dana", "ben")
    )
    ada = make_user(role=Role.ANNOTATOR, project=project, username="ada")
    tiny = serving_policy(project)
    assert tiny is not None
    start_batch(project=project, policies={tiny: 1}, actor=dana, max_new_tokens=12)
    with working(site_env):
        ended = project.batches.filter(state="succeeded")
        eventually(ended.exists, "the first batch", seconds=120)
        judge(project, ada, {})

        page = open_page(dana, f"/p/{project.slug}/")
        page.get_by_role("link", name="Start a round").click()
        other = open_page(ben, f"/p/{project.slug}/rounds/new/")
        for one in (page, other):
            with one.expect_response("**/rounds/new/preview/"):
                one.get_by_label("Put it before people", exact=True).check()
        page.get_by_role("button", name="Start the round").click()
        page.wait_for_url("**/rounds/1/")
        other.get_by_role("button", name="Start the round").click()
        other.get_by_text("Another one is under way").wait_for()
        other.get_by_text("by dana").first.wait_for()
        assert project.rounds.count() == 1

        page.get_by_role("link", name="Before people").click(timeout=LIMIT_MS)
        round_one = project.rounds.get().policy
        assert round_one is not None
        page.get_by_text("Nobody has judged it yet").wait_for(timeout=LIMIT_MS)
        judge(project, ada, {tiny.pk: 1})
        page.get_by_text("Passed the gate").wait_for(timeout=20_000)
        evaluation = Evaluation.objects.get()
        assert evaluation.comparisons.filter(state="judged").count() >= 10

        page.get_by_role("button", name="Promote").first.click()
        page.get_by_role("dialog").get_by_role("button", name="Promote").click()
        page.get_by_text("Round 1 serves now").wait_for()
        assert serving_policy(project) == round_one
        newest = project.batches.order_by("-number")[0]
        page.goto(page.url.split("/p/")[0] + f"/p/{project.slug}/batches/{newest.number}/")
        assert newest.leading == round_one
        page.get_by_text("after a promotion").first.wait_for()
        page.get_by_text("Succeeded").first.wait_for(timeout=LIMIT_MS)
        assert project.comparisons.filter(
            purpose="standard", slots__response__policy=round_one, state="open"
        ).exists()

        page.goto(page.url.split("/p/")[0] + f"/p/{project.slug}/policies/")
        page.get_by_role("button", name="Roll back").click()
        page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
        page.get_by_text("Tiny serves again").wait_for()
        assert serving_policy(project) == tiny
        for one in (page, other):
            one.goto("about:blank")
