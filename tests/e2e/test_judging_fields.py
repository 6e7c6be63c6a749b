"""What goes with a verdict: ratings, reasons, flags, rewrites, rankings by drag, changed keys."""

from collections.abc import Callable
from typing import Any

import pytest

from labeling.models import Flag, Judgment, Project, Rationale, Response, Role, Skip, User
from labeling.services.assigning import shown_order
from tests.builders import make_comparison, make_project, make_user
from tests.e2e.conftest import PHONE, sync_api
from tests.e2e.test_judging import JUDGE, press

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]
expect = sync_api.expect


@pytest.fixture
def project() -> Project:
    return make_project(slug="kitchen", name="Kitchen helper")


@pytest.fixture
def ada(project: Project) -> User:
    return make_user(role=Role.ANNOTATOR, project=project, username="ada")


def test_where_more_is_asked_for_a_press_chooses_and_enter_sends(
    project: Project, ada: User, open_page: Callable[..., Any]
) -> None:
    project.criteria = [{"key": "truth", "name": "Truth", "help": "Is it so?"}]
    project.rationale = Rationale.REQUIRED
    project.save()
    comparison = make_comparison(project=project)
    page = open_page(ada, JUDGE)
    page.keyboard.press("2")
    page.keyboard.press("6")
    chosen = page.locator(".step[aria-pressed=true]")
    expect(chosen).to_have_text("B better 6")
    page.keyboard.press("Enter")  # the reason is missing: the browser points at it
    expect(page.locator("[name=rationale]")).to_be_focused()
    page.keyboard.type("Because 1 is short.")
    page.keyboard.press("Escape")
    page.get_by_role("group", name="Truth: B").get_by_label("5").check(force=True)
    page.keyboard.press("ArrowLeft")
    page.get_by_role("group", name="Truth: A").get_by_label("2").check(force=True)
    page.keyboard.press("Enter")
    expect(page.get_by_text("Saved: B better.")).to_be_visible()
    judgment = Judgment.objects.get()
    a, b = shown_order(comparison.pk, ada.pk, 2)
    assert judgment.ratings == {"truth": {str(a): 2, str(b): 4}}
    assert judgment.rationale == "Because 1 is short."


def test_a_flag_skips_or_goes_with_the_verdict(
    project: Project, ada: User, open_page: Callable[..., Any]
) -> None:
    skipped = make_comparison(project=project, priority=1)
    judged = make_comparison(project=project)
    page = open_page(ada, JUDGE)
    press(page, "f", "2", "b", "Enter")
    expect(page.get_by_text("Flagged and skipped.")).to_be_visible()
    for key in ("f", "3", "Escape", "f", "5", "Tab", "Tab"):
        page.keyboard.press(key)
    page.keyboard.type("12 a")  # a note: no key of ours
    page.get_by_role("button", name="Flag and judge it").click()
    chip = page.get_by_role("button", name="Take the flag off")
    expect(chip).to_contain_text("I cannot judge this · The whole")
    page.keyboard.press("1")
    expect(page.get_by_text("Saved: A much.")).to_be_visible()
    second = shown_order(skipped.pk, ada.pk, 2)[1]
    told = Flag.objects.order_by("pk").values_list("comparison", "reason", "slot", "note")
    assert list(told) == [
        (skipped.pk, "broken", second, ""),
        (judged.pk, "cannot_judge", None, "12 a"),
    ]
    assert Skip.objects.get().comparison == skipped


def test_the_better_answer_is_rewritten(
    project: Project, ada: User, open_page: Callable[..., Any]
) -> None:
    comparison = make_comparison(project=project, texts=["**Boil** it.", "**Fry** it."])
    page = open_page(ada, JUDGE)
    page.keyboard.press("w")
    page.keyboard.press("ArrowRight")  # among the answers to begin from
    text = page.get_by_role("textbox", name="The better answer")
    expect(text).to_be_focused()
    place = page.locator("[name=rewrite_place]:checked").get_attribute("value")
    first, second = shown_order(comparison.pk, ada.pk, 2)
    original = ["**Boil** it.", "**Fry** it."][second if place == "B" else first]
    expect(text).to_have_value(original)
    page.get_by_role("button", name="Cancel").locator("visible=true").click()
    expect(text).to_be_hidden()
    page.keyboard.press("w")
    page.keyboard.press("ArrowRight")
    text.press("End")
    page.keyboard.type(" Slowly.")
    page.keyboard.press("Escape")
    page.keyboard.press("6")
    expect(page.get_by_text("Saved: B better.")).to_be_visible()
    assert Response.objects.get(annotator=ada).text == f"{original} Slowly."
    assert Judgment.objects.get(rewrite_of__isnull=False).annotator == ada


def test_chips_are_dragged_into_order_and_onto_each_other(
    project: Project, ada: User, open_page: Callable[..., Any]
) -> None:
    for _ in range(2):
        make_comparison(project=project, k=3)
    page = open_page(ada, JUDGE, **PHONE)
    so_far = page.locator("[data-sentence]")

    def drag(letter: str, onto: str, share: float) -> None:
        """To a share of another chip's width: its middle is a tie."""
        chip = page.locator(f"[data-chip={letter}]").bounding_box()
        goal = page.locator(f"[data-chip={onto}]").bounding_box()
        page.mouse.move(chip["x"] + 20, chip["y"] + 20)
        page.mouse.down()
        page.mouse.move(goal["x"] + share * goal["width"], goal["y"] + 22, steps=4)
        page.mouse.up()

    page.locator("[data-chip=B]").tap()
    expect(so_far).to_have_text("B over …")
    drag("A", "B", 0.05)
    expect(so_far).to_have_text("A over B over …")
    drag("C", "A", 0.5)
    expect(so_far).to_have_text("A = C over B")
    drag("A", "B", 0.95)
    expect(so_far).to_have_text("C over B over A")
    page.locator("[data-chip=A]").focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(so_far).to_have_text("A over C over B")
    page.locator("[data-chip=C]").focus()
    page.keyboard.press("ArrowRight")
    expect(so_far).to_have_text("A over B over C")

    page.keyboard.press("Enter")  # in the order shown: once more, if that is meant
    expect(page.get_by_role("alert").get_by_text("Send again if you mean it")).to_be_visible()
    assert not Judgment.objects.exists()
    page.locator("[data-chip=C]").tap()
    page.locator("[data-chip=C]").tap()
    expect(page.get_by_text("Send again if you mean it")).to_be_hidden()
    page.get_by_role("button", name="Send").tap()
    expect(page.get_by_text("Send again if you mean it")).to_be_visible()
    page.get_by_role("button", name="Send").tap()
    expect(page.get_by_text("Saved: A over B over C.")).to_be_visible()


def test_keys_are_the_ones_that_the_person_chose(
    project: Project, ada: User, open_page: Callable[..., Any]
) -> None:
    ada.keys = {"skip": "x", "quick_a": "k"}
    ada.save()
    for _ in range(2):
        make_comparison(project=project)
    page = open_page(ada, JUDGE)
    expect(page.get_by_role("button", name="Skip X")).to_be_visible()
    page.keyboard.press("s")
    page.keyboard.press("a")
    page.keyboard.press("Shift+X")
    page.keyboard.press("Control+x")
    page.keyboard.press("r")
    page.keyboard.type("x")
    page.keyboard.press("Escape")
    press(page, "x")
    expect(page.get_by_text("Skipped.")).to_be_visible()
    cyrillic = {"key": "л", "code": "KeyK", "bubbles": True}
    page.locator("body").dispatch_event("keydown", cyrillic)
    expect(page.get_by_text("Saved: A better.")).to_be_visible()
    assert Skip.objects.count() == Judgment.objects.count() == 1
