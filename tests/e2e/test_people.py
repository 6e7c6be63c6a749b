"""Coming in by a link, one's own settings, and the managers' pages about people and the queue."""

from collections.abc import Callable
from typing import Any

import pytest

from labeling.models import Comparison, Project, Role, User
from labeling.services import inviting
from tests.builders import PASSWORD, make_comparison, make_project, make_prompt, make_user
from tests.e2e.conftest import PHONE, sync_api

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]
expect = sync_api.expect
# What sticks out at either side of the page, but for what scrolls by itself.
STICKING_OUT = """() => [...document.querySelectorAll("body *")].filter((one) => {
  if (!one.checkVisibility() || one.matches(".skip-link")) return false;
  for (let up = one.parentElement; up !== document.body; up = up.parentElement) {
    if (getComputedStyle(up).overflowX !== "visible") return false;
  }
  const { left, right, width } = one.getBoundingClientRect();
  return width > 1 && (left < -1 || right > document.documentElement.clientWidth + 1);
}).map((one) => one.outerHTML.slice(0, 120))"""


@pytest.fixture
def project() -> Project:
    return make_project(slug="kitchen", name="Kitchen helper")


@pytest.fixture
def dana(project: Project) -> User:
    return make_user(role=Role.MANAGER, project=project, username="dana")


def test_a_stranger_comes_in_by_a_link_and_makes_the_site_their_own(
    project: Project, dana: User, open_page: Callable[..., Any]
) -> None:
    manager = open_page(dana, "/p/kitchen/people/")
    manager.get_by_label("For whom").fill("Zoë")
    manager.get_by_role("button", name="Make a link").click()
    link = manager.get_by_role("textbox", name="The link is made").input_value()
    manager.context.grant_permissions(["clipboard-read", "clipboard-write"])
    manager.get_by_role("button", name="Copy").click()
    manager.get_by_role("button", name="Copied").wait_for()
    assert manager.evaluate("navigator.clipboard.readText()") == link

    page = open_page(None, link)
    page.get_by_role("button", name="Español").click()
    expect(page.locator("html")).to_have_attribute("lang", "es")
    page.get_by_role("button", name="English").click()
    expect(page.locator("html")).to_have_attribute("lang", "en")
    page.get_by_label("Name").fill("zoe")
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_label("The password again", exact=True).fill("something else entirely")
    page.get_by_role("button", name="Make the account and join").click()
    page.get_by_text("two password fields").wait_for()
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_label("The password again", exact=True).fill(PASSWORD)
    page.get_by_role("button", name="Make the account and join").click()
    page.wait_for_url("**/p/kitchen/judge/")

    page.goto("/settings/")
    page.get_by_label("Larger").check()
    page.get_by_role("button", name="Save", exact=True).click()
    page.get_by_text("This is how your pages look").wait_for()
    assert page.evaluate("getComputedStyle(document.documentElement).fontSize") == "22px"
    page.get_by_label("Skip", exact=True).focus()
    page.keyboard.press("F")
    page.keyboard.press("Tab")
    page.get_by_label("Flag", exact=True).press("ArrowLeft")
    page.get_by_label("Send", exact=True).press("Space")
    page.get_by_role("button", name="Save the keys").click()
    page.get_by_text("these are your keys").wait_for()
    zoe = User.objects.get(username="zoe")
    assert zoe.keys == {"skip": "f", "flag": "arrowleft", "send": "space"}
    assert page.get_by_label("Flag", exact=True).input_value() == "arrowleft"

    manager.goto("/p/kitchen/people/")
    manager.get_by_label("Most verdicts a day of zoe").fill("25")
    manager.get_by_role("button", name="Set the limit of zoe").click()
    manager.get_by_text("zoe may give 25 verdicts a day").wait_for()
    manager.get_by_role("row", name="zoe").get_by_role("button", name="Remove").click()
    manager.get_by_role("dialog").get_by_role("button", name="Remove").click()
    manager.get_by_text("zoe is no longer in Kitchen helper").wait_for()
    assert page.goto("/p/kitchen/judge/").status == 404


def test_the_queue_answers_while_one_chooses_and_changes_what_is_shown(
    project: Project, dana: User, open_page: Callable[..., Any]
) -> None:
    for text in ("Soup", "Bread"):
        make_comparison(prompt=make_prompt(project=project, text=text))
    page = open_page(dana, "/p/kitchen/queue/")
    page.get_by_text("2 comparisons match").wait_for()
    page.get_by_label("Prompt says").fill("soup")
    page.get_by_label("Prompt says").press("Enter")
    page.get_by_text("1 comparison matches").wait_for()
    assert "text=soup" in page.url
    page.get_by_role("button", name="Hold back").click()
    page.get_by_text("Held back: 1 comparison.").wait_for()
    page.get_by_role("button", name="Undo").click()
    page.get_by_text("Released: 1 comparison.").wait_for()
    page.get_by_label("State").select_option("untouched")
    page.wait_for_url("**state=untouched**")
    page.get_by_role("button", name="Retire").click()
    page.get_by_role("dialog").get_by_role("button", name="Retire").click()
    page.get_by_text("Retired: 2 comparisons.").wait_for()
    assert set(project.comparisons.values_list("state", flat=True)) == {Comparison.State.RETIRED}


def test_pages_hold_from_right_to_left_on_a_phone(
    project: Project, dana: User, open_page: Callable[..., Any], settings: Any
) -> None:
    settings.LANGUAGES = [*settings.LANGUAGES, ("ar", "العربيّة")]
    make_comparison(prompt=make_prompt(project=project, text="ما هو أفضل خبز؟"))
    _, token = inviting.create(
        project=project, role=Role.ANNOTATOR, note="عائشة", days=7, invited_by=dana
    )
    User.objects.filter(pk=dana.pk).update(language="ar", text_size="larger")
    stranger = open_page(None, f"/invite/{token}/?language=ar", **PHONE)
    member = open_page(dana, "/settings/", **PHONE)
    for page, paths in (
        (stranger, (f"/invite/{token}/", "/sign-in/")),
        (member, ("/settings/", *(f"/p/kitchen/{name}/" for name in ("people", "queue", "judge")))),
    ):
        for path in paths:
            page.goto(path)
            expect(page.locator("html")).to_have_attribute("dir", "rtl")
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
            for menu in page.locator("details.menu > summary:visible").all():
                menu.click()
                assert page.evaluate(STICKING_OUT) == [], path
            assert page.evaluate(STICKING_OUT) == [], path
