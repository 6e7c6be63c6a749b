"""Questions of two turns: answered four times, judged in the browser, then the second turn.

With PREFLOOP_TEST_DATA naming a folder that holds mt_bench_questions.jsonl, all of MT-Bench; with
PREFLOOP_TEST_SAMPLER=vllm by vLLM's real engine, with the model that PREFLOOP_TEST_MODEL names.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db.models import Count
from playwright.sync_api import expect

from labeling.models import Comparison, Judgment, Project, Prompt, Role
from labeling.services.promoting import register_policy
from tests.builders import make_user
from tests.generation.samplers.vllm_env import vllm_python

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.django_db(transaction=True)]

ROOT = Path(__file__).resolve().parents[2]
K = 4
OWN = [
    {"question_id": n, "category": "home", "turns": [f"How do I wash {n} shirts?", "And if wet?"]}
    for n in range(1, 7)
]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    named = os.environ.get("PREFLOOP_TEST_DATA")
    if named:
        return Path(named) / "mt_bench_questions.jsonl"
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in OWN))
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    named = os.environ.get("PREFLOOP_TEST_MODEL")
    if named:
        return Path(named)
    from training.trainer.starter import Recipe, Shape, build

    folder = tmp_path / "tiny"
    shape = Shape(vocabulary=600, width=64, layers=2, heads=2, inner_width=64)
    build(folder, recipe=Recipe(epochs=1, most_steps=6, shape=shape))
    return folder


@pytest.fixture
def work(site_env: dict[str, str]) -> Callable[[], None]:
    """Have a real worker do all that waits."""
    sampler = os.environ.get("PREFLOOP_TEST_SAMPLER", "transformers")
    wishes = {"PREFLOOP_SAMPLER": sampler}
    if sampler == "vllm":
        wishes["PREFLOOP_VLLM_PYTHON"] = vllm_python()

    def run() -> None:
        done = subprocess.run(
            [sys.executable, "manage.py", "worker", "--until-idle"],
            cwd=ROOT,
            env=site_env | wishes,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr

    return run


def judge_all(page: Any, count: int) -> None:
    """Rank the answers of so many comparisons by their letters; of two, take one by its key."""
    for _ in range(count):
        lease = page.locator("#verdict input[name=lease]").input_value()
        answers = page.locator("[data-place]").count()
        if answers == 2:
            page.keyboard.press("2")
        else:
            for letter in "dcba"[-answers:]:  # in the order shown, the page would ask again
                page.keyboard.press(letter)
            page.keyboard.press("Enter")
        expect(page.locator(f"#verdict input[name=lease][value='{lease}']")).to_have_count(0)
    expect(page.get_by_text("Nothing left to judge")).to_be_visible()


def comparable(project: Project) -> int:
    """Prompts with two responses or more: a small model may say the same thing four times."""
    prompts = project.prompts.annotate(answers=Count("responses"))
    return prompts.filter(answers__gte=2).count()


def test_both_turns_are_answered_compared_and_judged_in_the_browser(
    questions: Path, model: Path, work: Callable[[], None], open_page: Callable[..., Any]
) -> None:
    call_command("import_prompts", str(questions), "--project", "bench", verbosity=0)
    project = Project.objects.get(slug="bench")
    project.comparison_size = K
    project.save()
    register_policy(project=project, name="First", model_path=model)
    annotator = make_user(role=Role.ANNOTATOR, project=project)
    count, judged = project.prompts.count(), 0
    for _turn in (1, 2):
        call_command("generate", "--project", "bench", "--k", str(K), "--max-new-tokens", "60")
        work()
        batch = project.batches.latest("number")
        assert (batch.state, batch.done) == ("succeeded", count), batch.error
        assert batch.failures == 0
        waiting = project.comparisons.filter(state=Comparison.State.OPEN)
        assert waiting.count() == comparable(project) - judged >= 0.9 * count
        page = open_page(annotator, "/p/bench/judge/")
        judge_all(page, waiting.count())
        assert not waiting.exists()
        judged = Judgment.objects.count()
        assert judged == comparable(project)
        assert project.prompts.count() == 2 * count
    second = Prompt.objects.filter(project=project, continues__isnull=False)
    assert second.count() == count
    for prompt in second.select_related("continues__prompt"):
        asked, answered, again = prompt.messages
        assert prompt.continues is not None
        assert asked == prompt.continues.prompt.messages[0]
        assert answered == {"role": "assistant", "content": prompt.continues.text}
        assert again["role"] == "user"
        assert prompt.split == prompt.continues.prompt.split
