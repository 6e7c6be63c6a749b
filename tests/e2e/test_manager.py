"""A manager at work in a real browser: what is live moves, and every step can be taken."""

from pathlib import Path

import pytest
from django.utils import timezone

from jobs import queue
from jobs.run_dir import append_jsonl
from labeling.models import PolicyState, Project, Role, Split, User
from labeling.overview import ROUND_PAIRS
from labeling.services.promoting import serving_policy
from tests.builders import (
    judge,
    make_comparison,
    make_policy,
    make_project,
    make_prompt,
    make_user,
)
from tests.e2e.conftest import PHONE
from training.models import Round, RoundState

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def project(transactional_db) -> Project:
    project = make_project()
    make_policy(project=project, name="Starter", state=PolicyState.SERVING)
    annotator = make_user(role=Role.ANNOTATOR, project=project)
    for _ in range(ROUND_PAIRS):
        prompt = make_prompt(project=project, split=Split.TRAIN)
        judge(
            comparison=make_comparison(prompt=prompt, policy=project.policies.get()),
            annotator=annotator,
        )
    queue.saw_worker(name="here", lanes=["gpu"])
    return project


@pytest.fixture
def manager(project: Project) -> User:
    return make_user(role=Role.MANAGER, project=project, username="dana")


def learn(round_: Round, first: int, last: int) -> None:
    """What the trainer would log for these steps of 20."""
    for step in range(first, last + 1):
        row = {"step": step, "total": 20, "loss": 0.7 - step / 100, "seconds": float(step)}
        append_jsonl(Path(round_.run_dir) / "metrics.jsonl", row)


def test_an_open_question_survives_the_polling(
    project: Project, manager: User, open_page, tmp_path: Path
) -> None:
    policy = serving_policy(project)
    round_ = Round.objects.create(
        project=project,
        number=1,
        start=policy,
        reference=policy,
        state=RoundState.RUNNING,
        started_at=timezone.now(),
        run_dir=str(tmp_path),
    )
    learn(round_, 1, 3)
    page = open_page(manager, f"/p/{project.slug}/rounds/1/")
    page.get_by_role("button", name="Cancel", exact=True).click()
    learn(round_, 4, 7)
    page.get_by_text("7 of 20").wait_for()
    assert page.get_by_role("dialog").is_visible()
    page.get_by_role("button", name="Keep training").click()
    assert not page.get_by_role("dialog").is_visible()


def test_filters_change_the_table_and_the_address_and_back_undoes_them(
    project: Project, manager: User, open_page
) -> None:
    page = open_page(manager, f"/p/{project.slug}/preferences/")
    page.get_by_text(f"{ROUND_PAIRS} pairs").wait_for()
    page.get_by_label("Outcome").select_option("no")
    page.get_by_text("Nothing matches").wait_for()
    assert "decided=no" in page.url
    page.go_back()
    page.get_by_text(f"{ROUND_PAIRS} pairs").wait_for()
    page.locator("details.skim-item summary").first.click()
    assert page.get_by_text("chosen is better").first.is_visible()


@pytest.mark.parametrize("path", ["", "batches/", "rounds/", "rounds/new/", "policies/"])
def test_no_page_is_wider_than_a_phone(
    project: Project, manager: User, open_page, path: str
) -> None:
    page = open_page(manager, f"/p/{project.slug}/{path}", **PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["viewport"]["width"]
