"""From settings to a first verdict and its correction, as a manager and an annotator have them."""

from collections.abc import Callable
from typing import Any

import pytest

from labeling.models import Judgment, PracticeAnswer, Role
from labeling.services.assigning import shown_order
from tests.builders import judge, make_comparison, make_project, make_user
from tests.e2e.conftest import PHONE, sync_api

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]
expect = sync_api.expect


def test_practice_comes_first_and_a_verdict_is_changed_from_the_history(
    open_page: Callable[..., Any],
) -> None:
    project = make_project(slug="kitchen", name="Kitchen helper")
    maya = make_user(role=Role.MANAGER, project=project, username="maya")
    ada = make_user(role=Role.ANNOTATOR, project=project, username="ada")
    pair = judge(
        comparison=make_comparison(project=project, texts=["Good.", "Bad."]), annotator=maya
    )
    judge(comparison=make_comparison(project=project, k=3), annotator=maya)
    make_comparison(project=project)

    # The manager makes two examples of what they judged, and asks for practice.
    page = open_page(maya, "/p/kitchen/history/")
    for reason, row in (("Three of them.", 0), ("The other is **bad**.", 1)):
        page.goto("/p/kitchen/history/")
        page.get_by_role("link", name="Use as an example").nth(row).click()
        page.get_by_label("Why is this the verdict?").fill(reason)
        page.get_by_role("button", name="Add to the guide").click()
        expect(page.get_by_text("Added: it is in the guide now.")).to_be_visible()
    page.goto("/p/kitchen/settings/")
    page.get_by_label("What annotators read").fill("Prefer **careful** answers.")
    expect(page.locator("#guidelines-preview strong")).to_have_text("careful")
    expect(page.get_by_text("There are changes that are not saved.")).to_be_visible()
    page.get_by_role("button", name="Add a criterion").click()
    page.get_by_role("textbox", name="Name", exact=True).nth(1).fill("Clear")
    page.get_by_label("Annotators go through the examples").check()
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Version 1 of the guidelines is in force.")).to_be_visible()
    page.locator("#version-1 summary").click()
    expect(page.locator("#version-1 .change-text")).to_have_text("Prefer **careful** answers.")

    # The annotator ranks three by touch or key, then judges a pair: feedback at once.
    page = open_page(ada, "/p/kitchen/judge/")
    expect(page.get_by_text("Practice: 1 of 2")).to_be_visible()
    for key in "cba":
        page.keyboard.press(key)
    page.keyboard.press("Enter")
    expect(page.get_by_text("Three of them.")).to_be_visible()
    expect(page.get_by_role("link", name="Next")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_text("Practice: 2 of 2")).to_be_visible()
    expect(page.get_by_role("button", name="A much 1")).to_be_visible()  # the keys are written on
    page.keyboard.press("1" if pair.shown_order == [0, 1] else "7")
    expect(page.get_by_role("heading", name="Right", exact=True)).to_be_visible()
    expect(page.locator(".practice-result strong")).to_have_text("bad")
    page.get_by_role("link", name="How it went").click()
    right = PracticeAnswer.objects.filter(right=True).count()
    expect(page.get_by_text(f"{right} of 2 right")).to_be_visible()
    page.get_by_role("link", name="Start judging").click()

    # The first verdict, and second thoughts about it on a phone.
    page.wait_for_url("**/judge/")  # with its scripts
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Saved: A better.")).to_be_visible()
    phone = open_page(ada, "/p/kitchen/history/", **PHONE)
    phone.get_by_role("link", name="Judge again").tap()
    expect(phone.locator("[name=choice][value='2']")).to_have_attribute("aria-pressed", "true")
    phone.locator("[name=choice][value='7']").tap()
    phone.get_by_role("button", name="Send").tap()
    expect(phone.get_by_text("Changed: B much.")).to_be_visible()
    expect(phone.locator(".history-row")).to_have_count(2)
    judgment = Judgment.objects.current().get(annotator=ada)
    order = shown_order(judgment.comparison_id, ada.pk, 2)
    assert (judgment.tiers, judgment.strength) == ([[order[1]], [order[0]]], 3)
