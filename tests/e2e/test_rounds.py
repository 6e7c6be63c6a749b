"""A round's pages in a real browser: options come and go, nothing scrolls sideways on a phone."""

from pathlib import Path

import pytest

from jobs.run_dir import append_event
from labeling.models import PolicyState, Project, Role, Split, User
from labeling.overview import ROUND_PAIRS
from tests.builders import (
    judge,
    make_comparison,
    make_policy,
    make_project,
    make_prompt,
    make_user,
)
from tests.e2e.conftest import PHONE
from tests.training.rounds import REPORT, RESULTS, SAMPLES, log_samples, log_steps, make_round
from training.models import RoundState

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

WIDER = """[...document.querySelectorAll("main *")]
  .filter((one) => one.scrollWidth > one.clientWidth + 1 && one.clientWidth > 1
    && getComputedStyle(one).overflowX !== "visible")
  .map((one) => `${one.className} ${one.ariaLabel} ${one.scrollWidth} > ${one.clientWidth}`)"""


@pytest.fixture
def project(transactional_db) -> Project:
    project = make_project()
    make_policy(project=project, name="Starter", state=PolicyState.SERVING)
    annotator = make_user(role=Role.ANNOTATOR, project=project)
    for _ in range(ROUND_PAIRS):
        prompt = make_prompt(project=project, split=Split.TRAIN)
        judge(comparison=make_comparison(prompt=prompt), annotator=annotator)
    return project


@pytest.fixture
def manager(project: Project) -> User:
    return make_user(role=Role.MANAGER, project=project)


def test_options_come_and_go_with_the_objective_and_are_sent_only_while_they_count(
    project: Project, manager: User, open_page
) -> None:
    page = open_page(manager, f"/p/{project.slug}/rounds/new/")
    page.get_by_text("More options").click()
    penalty, noise = page.get_by_label("Length penalty α"), page.get_by_label("Wrong votes")
    assert penalty.is_visible()
    assert not noise.is_visible()
    penalty.fill("0.01")
    page.get_by_label("Objective").select_option("robust")
    assert not penalty.is_visible()
    noise.fill("0.2")
    page.get_by_role("button", name="Start the round").click()
    page.wait_for_url("**/rounds/1/")
    options = project.rounds.get().options
    assert options["label_noise"] == 0.2
    assert not {"length_penalty", "ties", "lora_export"} & options.keys()


def test_an_option_that_is_missing_is_asked_for_where_it_belongs(
    project: Project, manager: User, open_page
) -> None:
    page = open_page(manager, f"/p/{project.slug}/rounds/new/")
    page.get_by_text("More options").click()
    page.get_by_label("Objective").select_option("ipo")
    page.get_by_role("button", name="Start the round").click()
    page.get_by_text("IPO needs this").wait_for()
    page.get_by_label("Log-probability").select_option("mean")
    page.get_by_role("button", name="Start the round").click()
    page.wait_for_url("**/rounds/1/")
    assert project.rounds.get().options["logratio"] == "mean"


def test_what_a_round_would_come_to_follows_the_form(
    project: Project, manager: User, open_page
) -> None:
    page = open_page(manager, f"/p/{project.slug}/rounds/new/")
    start = page.get_by_role("button", name="Start the round")
    page.get_by_text("What the trainer gets").click()
    page.get_by_text("Train on all pairs").click()
    page.get_by_label("Judged until").fill("2001-01-01")
    page.get_by_label("Judged until").blur()
    page.get_by_text("left out: judged on other days").wait_for()
    assert start.is_disabled()
    assert page.get_by_text("checkpoint_every").is_visible(), "what was unfolded stays so"
    page.get_by_label("Judged until").fill("")
    page.get_by_label("β").fill("0.7")
    page.get_by_label("β").blur()
    page.locator(".settings dd", has_text="0.7").wait_for()
    assert start.is_enabled()
    page.get_by_label("Begin with").select_option("large-many")
    page.wait_for_url("**preset=large-many")
    assert page.get_by_label("Method").input_value() == "lora"


@pytest.mark.parametrize("java_script_enabled", [True, False])
def test_nothing_on_a_rounds_page_scrolls_sideways_on_a_phone(
    project: Project, manager: User, open_page, tmp_path: Path, java_script_enabled: bool
) -> None:
    log_steps(tmp_path, 30, 30)
    append_event(tmp_path, "data_report", **REPORT)
    texts = [("How?" * 200, "word" * 400), ("Why?", "Because of a <b>reason</b>. " * 30)]
    log_samples(tmp_path, "before", *texts)
    log_samples(tmp_path, "after", *[(prompt, text[::-1]) for prompt, text in texts])
    results = RESULTS | {"samples_before": SAMPLES, "samples_after": SAMPLES}
    make_round(project, RoundState.SUCCEEDED, tmp_path, results=results)
    make_round(project, RoundState.FAILED, tmp_path)
    for path in ("", "1/", "new/", "compare/?rounds=1&rounds=2"):
        page = open_page(
            manager,
            f"/p/{project.slug}/rounds/{path}",
            **PHONE,
            java_script_enabled=java_script_enabled,
        )
        if path == "new/":
            page.get_by_text("More options").click()
        assert page.evaluate(WIDER) == []
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= PHONE["viewport"]["width"]
