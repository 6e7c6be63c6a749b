"""Judging sessions as people have them: by keyboard, by touch, and with a clumsy hand."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from labeling.models import Judgment, Lease, Project, Role, Skip, User
from labeling.services.assigning import shown_order
from labeling.services.configuring import publish_guidelines
from tests.builders import PASSWORD, make_comparison, make_project, make_prompt, make_user
from tests.e2e.conftest import PHONE, sync_api
from tests.labeling.hostile import HOSTILE

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]
expect = sync_api.expect
JUDGE = "/p/kitchen/judge/"


@pytest.fixture
def project() -> Project:
    return make_project(slug="kitchen", name="Kitchen helper")


@pytest.fixture
def ada(project: Project) -> User:
    return make_user(role=Role.ANNOTATOR, project=project, username="ada")


def press(page: Any, *keys: str) -> None:
    """Press keys, the last of which judges or skips, and wait for what comes next."""
    card = page.locator("#comparison[data-lease], #comparison:has(.nothing-left)")
    expect(card).to_have_count(1)
    lease = card.get_attribute("data-lease")
    for key in keys:
        page.keyboard.press(key)
    expect(page.locator(f"#comparison[data-lease='{lease}']")).to_have_count(0)
    expect(card).to_have_count(1)


def test_a_session_by_keyboard_alone(
    project: Project, ada: User, open_page: Callable[..., Any]
) -> None:
    publish_guidelines(project=project, text="Prefer **careful** answers.", author=None)
    for _ in range(4):
        make_comparison(project=project)
    page = open_page(None, JUDGE)
    expect(page.get_by_label("Name")).to_be_focused()
    page.keyboard.type("ada")
    page.keyboard.press("Tab")
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url(JUDGE)  # with its scripts
    counts = page.locator("#judge-counts")
    expect(counts).to_have_text(re.compile("0 today.*4 left"))
    press(page, "2")
    expect(counts).to_have_text(re.compile("1 today.*3 left"))
    expect(page.get_by_text("Saved: A better.")).to_be_visible()
    press(page, "b")
    expect(counts).to_have_text(re.compile("2 today.*2 left"))
    press(page, "z")
    expect(page.get_by_text("Taken back.")).to_be_visible()
    expect(counts).to_have_text(re.compile("1 today.*3 left"))
    press(page, "0")
    expect(counts).to_have_text(re.compile("2 today.*2 left"))
    press(page, "s")
    expect(page.get_by_text("Skipped.")).to_be_visible()
    press(page, "e")
    expect(page.get_by_role("heading", name="Nothing left to judge")).to_be_visible()
    page.keyboard.press("z")
    expect(page.get_by_text("Taken back.")).to_be_visible()
    current = list(Judgment.objects.current().order_by("pk"))
    assert [(one.strength, one.all_bad) for one in current] == [(2, False), (None, True)]
    assert Skip.objects.filter(undone_at=None).count() == 1


def test_help_and_guide_open_by_key_and_hold_the_other_keys_back(
    project: Project, ada: User, open_page: Callable[..., Any]
) -> None:
    publish_guidelines(project=project, text="Prefer **careful** answers.", author=None)
    make_comparison(project=project)
    page = open_page(ada, JUDGE)
    for key, panel in (("?", "#help"), ("g", "#guide")):
        page.keyboard.press(key)
        expect(page.locator(panel)).to_be_visible()
        page.keyboard.press("1")
        page.keyboard.press("Escape")
        expect(page.locator(panel)).to_be_hidden()
    assert not Judgment.objects.exists()
    page.keyboard.press("1")
    expect(page.get_by_text("Saved: A much.")).to_be_visible()


def test_four_answers_are_ranked_by_keys_with_a_tie(
    project: Project, ada: User, open_page: Callable[..., Any]
) -> None:
    comparison = make_comparison(project=project, k=4)
    page = open_page(ada, JUDGE)
    so_far = page.locator("[data-sentence]")
    page.keyboard.press("3")
    expect(so_far).to_have_text("C over …")
    page.keyboard.press("b")
    page.keyboard.press("Backspace")
    page.keyboard.press("a")
    page.keyboard.press("=")
    expect(so_far).to_have_text("C over A = …")
    page.keyboard.press("Enter")  # not complete: nothing happens
    page.keyboard.press("2")
    page.keyboard.press("4")
    expect(so_far).to_have_text("C over A = B over D")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Saved: C over A = B over D.")).to_be_visible()
    a, b, c, d = shown_order(comparison.pk, ada.pk, 4)
    assert [sorted(tier) for tier in Judgment.objects.get().tiers] == [[c], sorted([a, b]), [d]]


def test_each_comparison_starts_afresh(
    project: Project, ada: User, open_page: Callable[..., Any]
) -> None:
    long = make_prompt(project=project, text="A long question. " * 200)
    for priority in (3, 2):
        make_comparison(project=project, k=3, priority=priority)
    make_comparison(prompt=long, texts=["word " * 2000, "short"], priority=1)
    page = open_page(ada, JUDGE)
    page.wait_for_timeout(1500)
    for ranking in ("C over A over B", "B over C over A"):
        expect(page.locator("[data-sentence]")).to_have_text("Press 1 to 3, best first.")
        for letter in ranking.split(" over "):
            page.keyboard.press(letter.lower())
        page.keyboard.press("Enter")
        expect(page.get_by_text(f"Saved: {ranking}.")).to_be_visible()
    first, second = Judgment.objects.order_by("pk")
    assert first.active_ms >= 1500
    assert second.active_ms < first.active_ms
    page.get_by_role("button", name="Show all").click()
    page.mouse.move(600, 400)
    page.mouse.wheel(0, 3000)  # the short answer stays in view beside the long one
    expect(page.get_by_role("paragraph").get_by_text("short", exact=True)).to_be_in_viewport()


def test_four_answers_are_ranked_by_clicks_on_the_cards(
    project: Project, ada: User, open_page: Callable[..., Any]
) -> None:
    make_comparison(project=project, k=4)
    page = open_page(ada, JUDGE)
    for letter in "DBAC":
        page.locator(f"#place-{letter}").click(position={"x": 200, "y": 150})
    expect(page.locator("[data-sentence]")).to_have_text("D over B over A over C")
    page.locator("#place-B").click(position={"x": 200, "y": 150})  # takes it out again
    expect(page.locator("[data-sentence]")).to_have_text("D over A over C over …")
    page.locator("[data-pick=B]").click()
    page.keyboard.press("Enter")
    expect(page.get_by_text("Saved: D over A over C over B.")).to_be_visible()


def test_a_session_on_a_phone_by_touch(
    project: Project, ada: User, open_page: Callable[..., Any]
) -> None:
    prompt = make_prompt(project=project, text="A long question. " * 40)
    make_comparison(prompt=prompt, texts=["word " * 900, "word " * 500])
    make_comparison(project=project)
    page = open_page(ada, JUDGE, **PHONE)
    for button in page.locator("button:visible, .switch a:visible, .step").all():
        box = button.bounding_box()
        assert box["height"] >= 44, button.inner_text()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
    for step in page.locator(".step").all():
        box = step.bounding_box()
        assert min(box["width"], box["height"]) >= 44
        assert box["y"] + box["height"] <= 844
    page.locator("[data-switch=B]").tap()
    expect(page.locator("[data-switch=B]")).to_have_attribute("aria-current", "true")
    expect(page.locator("#place-B")).to_be_in_viewport()
    page.get_by_role("button", name="B slightly").tap()
    expect(page.get_by_text("Saved: B slightly.")).to_be_visible()
    page.get_by_role("button", name="Undo").tap()
    expect(page.get_by_text("Taken back.")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert not Judgment.objects.current().exists()


def test_a_phone_ranks_by_touch(project: Project, ada: User, open_page: Callable[..., Any]) -> None:
    make_comparison(project=project, k=3)
    page = open_page(ada, JUDGE, **PHONE)
    for letter in "BCA":
        page.locator(f"[data-switch={letter}]").tap()
        expect(page.locator(f"[data-switch={letter}]")).to_have_attribute("aria-current", "true")
        page.locator(f"[data-pick={letter}]").tap()
    page.get_by_role("button", name="Send").tap()
    expect(page.get_by_text("Saved: B over C over A.")).to_be_visible()


def test_a_session_that_ended_leads_to_the_sign_in_page(
    project: Project, ada: User, open_page: Callable[..., Any]
) -> None:
    make_comparison(project=project)
    page = open_page(ada, JUDGE)
    page.context.clear_cookies()
    page.reload()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


def test_time_is_counted_only_while_the_page_is_open(
    project: Project, ada: User, open_page: Callable[..., Any]
) -> None:
    make_comparison(project=project)
    page = open_page(ada, JUDGE)
    page.wait_for_timeout(300)
    page.keyboard.press("4")
    expect(page.get_by_text("Saved: Tie.")).to_be_visible()
    assert 250 <= Judgment.objects.get().active_ms < 20_000
    assert not Lease.objects.exists()


def test_the_page_works_without_scripts(
    project: Project, ada: User, open_page: Callable[..., Any]
) -> None:
    make_comparison(project=project, k=3, priority=1)
    make_comparison(project=project)
    page = open_page(ada, JUDGE, java_script_enabled=False)
    for letter, place in (("A", "2"), ("B", "1"), ("C", "2")):
        page.locator(f"[name=place_{letter}]").select_option(place)
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_text("Saved: B over A = C.")).to_be_visible()
    page.get_by_role("button", name="A much").click()
    expect(page.get_by_role("heading", name="Nothing left to judge")).to_be_visible()


def test_raw_text_and_the_theme_are_kept_from_one_comparison_to_the_next(
    project: Project, ada: User, open_page: Callable[..., Any]
) -> None:
    make_comparison(project=project, texts=["**one**", "**two**"])
    make_comparison(project=project, texts=["**one**", "**two**"])
    page = open_page(ada, JUDGE)
    page.keyboard.press("v")
    expect(page.get_by_text("**one**")).to_be_visible()
    page.locator("[data-theme-toggle]").first.click()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.keyboard.press("1")
    expect(page.get_by_text("Saved: A much.")).to_be_visible()
    expect(page.get_by_text("**one**")).to_be_visible()
    page.reload()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")


def test_hostile_text_does_nothing_in_a_real_browser(
    project: Project, ada: User, open_page: Callable[..., Any]
) -> None:
    number = -(-len(HOSTILE) // 8)
    sets = [HOSTILE[start::number] for start in range(number)]
    for texts in sets:
        prompt = make_prompt(project=project, text="\n\n".join(texts))
        make_comparison(prompt=prompt, texts=texts)
    page = open_page(ada, JUDGE)
    for left in range(len(sets), 0, -1):
        expect(page.locator("#judge-counts")).to_have_text(re.compile(f"{left} left"))
        page.keyboard.press("v")  # as it was written, too
        press(page, "0")
    expect(page.get_by_role("heading", name="Nothing left to judge")).to_be_visible()


@pytest.mark.parametrize("path", ["/", "/sign-in/", "/nowhere/"])
@pytest.mark.parametrize("signed_in", [True, False])
def test_every_plain_page_keeps_the_policy(
    path: str, signed_in: bool, ada: User, open_page: Callable[..., Any]
) -> None:
    ada.memberships.create(project=make_project(), role=Role.MANAGER)
    page = open_page(ada if signed_in else None, path)
    expect(page.locator("h1")).to_have_count(1)
