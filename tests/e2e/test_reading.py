"""Reading in a real browser: formulas, differences, scrolling, and texts of any length."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from labeling.chat import Message
from labeling.models import Project, Role, User
from tests.builders import make_comparison, make_project, make_prompt, make_user
from tests.e2e.conftest import PHONE, sync_api
from tests.labeling.hostile import HOSTILE

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]
expect = sync_api.expect
JUDGE = "/p/kitchen/judge/"
FREEZE = 600  # ms; alone on a machine it is below 100, beside other tests three times that
MEGABYTE = 2**20
WATCH = """
window.freezes = [];
new PerformanceObserver((list) => freezes.push(...list.getEntries().map((one) => one.duration)))
  .observe({ type: "longtask", buffered: true });
"""
# What no text may ever become, wherever it is shown; KaTeX makes svg and math of its own.
ALIVE = """() => [...document.querySelectorAll("#comparison :is(.prose, pre) *")].filter((one) =>
  one.matches("script, img, iframe, object, embed, base, link, meta, style")
  || one.matches("form, input, button, select, textarea, video, audio, details")
  || [...one.attributes].some(({ name, value }) => /^(on|hx-|data-action)/.test(name)
    || (/href|src|action/.test(name) && !/^(https?|mailto):/.test(value)))
).map((one) => one.outerHTML.slice(0, 200))"""


@pytest.fixture
def project() -> Project:
    return make_project(slug="kitchen", name="Kitchen helper")


@pytest.fixture
def ada(project: Project) -> User:
    return make_user(role=Role.ANNOTATOR, project=project, username="ada")


def long_text(word: str) -> str:
    line = f"This is a line of a very long answer about {word}.\n"
    return (line * (MEGABYTE // len(line) + 1))[:MEGABYTE]


def freezes(page: Any) -> float:
    """The longest freeze since this was asked last."""
    page.wait_for_timeout(300)
    return float(page.evaluate("Math.max(0, ...freezes.splice(0))"))


def test_formulas_code_tables_and_right_to_left_text_are_set(
    project: Project, ada: User, open_page: Callable[..., Any]
) -> None:
    rich = (
        "Take $x^2$ for $5.\n\n"
        "$$\n\\vec{a} = \\begin{bmatrix} 1\\\\2\\\\3\\\\4\\\\5 \\end{bmatrix}\n$$\n\n"
        "and $\\fcolorbox{red}{blue}{$\\nonsense$}$ and $\\nonsense{$ too\n\n"
        "```python\nprint('" + "wide " * 60 + "')\n```\n\n"
        "| a | b |\n|---|---|\n| " + "wide" * 40 + " | " + "table" * 40 + " |\n"
    )
    make_comparison(project=project, texts=[rich, "# مرحبا\n\nEnglish\n\n- שלום\n- עולם"])
    page = open_page(ada, JUDGE, viewport={"width": 1280, "height": 800})
    expect(page.locator(".math .katex")).to_have_count(2)
    expect(page.locator(".katex-display")).to_have_count(1)
    expect(page.locator(".katex math annotation").first).to_have_text("x^2")
    expect(page.get_by_role("paragraph").get_by_text("for $5.")).to_be_visible()
    for wide in (".prose pre", ".prose .scrolls"):  # scroll in themselves, by keyboard too
        expect(page.locator(wide)).to_have_attribute("tabindex", "0")
    assert page.evaluate("document.documentElement.scrollWidth") == 1280
    sides = page.evaluate(
        """() => ["h1", "p", "ul"].map((tag) => {
          const one = [...document.querySelectorAll(`.place-text ${tag}`)]
            .find((found) => /[א-ת؀-ۿ]|English/.test(found.textContent));
          const range = document.createRange();
          range.selectNodeContents(one.querySelector("li") ?? one);
          const text = range.getBoundingClientRect(), block = one.getBoundingClientRect();
          return text.left - block.left < block.right - text.right ? "left" : "right";
        })"""
    )
    assert sides == ["right", "left", "right"]


def test_differences_are_marked_on_a_key_and_stay_on_for_the_next_comparison(
    project: Project, ada: User, open_page: Callable[..., Any]
) -> None:
    make_comparison(project=project, texts=["the **cat** sat", "the **dog** sat"], priority=1)
    make_comparison(project=project, texts=["red one", "red two", "blue three", "blue four"])
    page = open_page(ada, JUDGE)
    marks, button = page.locator("mark"), page.locator("[data-action=differences]")
    page.keyboard.press("d")
    expect(marks).to_have_count(2)
    assert sorted(marks.all_inner_texts()) == ["cat", "dog"]
    expect(button).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_text("Differences are marked.")).to_be_attached()
    expect(page.locator(".place .rendered").first).to_be_hidden()
    colours = page.evaluate(
        "[...document.querySelectorAll('mark')].map((one) => getComputedStyle(one).backgroundColor)"
    )
    assert len(set(colours)) == 1  # neither side is the right one
    heard = page.evaluate("getComputedStyle(document.querySelector('mark'), '::before').content")
    assert "differs" in heard
    page.keyboard.press("d")
    expect(marks.first).to_be_hidden()
    expect(page.locator(".place .rendered").first).to_be_visible()
    page.keyboard.press("d")
    page.keyboard.press("1")
    against = page.get_by_label("Against")
    expect(against).to_be_visible()
    for letter in "CA":
        against.select_option(letter)
        base = page.locator(f"#place-{letter} .differences")
        expect(base).to_contain_text("The others are held against this one.")
        expect(base.locator("mark")).to_have_count(0)
        expect(page.locator("#place-B mark, #place-D mark")).to_have_count(2)


def test_answers_scroll_together_or_apart_and_the_choice_is_kept(
    project: Project, ada: User, open_page: Callable[..., Any]
) -> None:
    make_comparison(project=project, texts=["word " * 3000, "word. " * 3000])
    page = open_page(ada, JUDGE, viewport={"width": 1280, "height": 800})
    taller = "document.documentElement.scrollHeight > 2 * innerHeight"
    assert page.evaluate(taller)
    expect(page.locator("#place-A")).to_contain_text("3\u2009000 words")
    page.keyboard.press("t")
    for _ in range(2):
        expect(page.locator("[data-action=scroll]")).to_have_attribute("aria-pressed", "true")
        assert not page.evaluate(taller)
        page.locator("#place-B").focus()
        page.keyboard.press("End")
        page.wait_for_timeout(200)
        tops = [page.evaluate(f"document.querySelector('#place-{one}').scrollTop") for one in "AB"]
        assert tops[0] == 0
        assert tops[1] > 500
        page.reload()
    page.locator("[data-action=scroll]").click()
    assert page.evaluate(taller)


def test_a_megabyte_on_either_side_opens_and_unrolls_without_a_freeze(
    project: Project, ada: User, open_page: Callable[..., Any]
) -> None:
    texts = [long_text("one"), long_text("two")]
    make_comparison(project=project, texts=texts)
    page = open_page(ada, "/")
    page.add_init_script(WATCH)

    def longest() -> float:
        page.goto(JUDGE)
        times = [freezes(page)]
        for place in "AB":
            more = page.locator(f"#place-{place} [data-rest]")
            expect(more).to_have_text("Show all of it (1\u2009048\u2009576 characters)")
            more.focus()
            page.keyboard.press("Enter")
            expect(more).to_have_count(0, timeout=30_000)
            times.append(freezes(page))
        for key in ("End", "v", "t", "d"):
            page.keyboard.press(key)
            times.append(freezes(page))
        page.keyboard.press("d")
        page.keyboard.press("t")
        page.keyboard.press("v")
        return max(times)

    # A machine that does other things as well may hold any page up; a slow page is slow each time.
    assert any(longest() < FREEZE for _ in range(3))
    shown = page.locator(".place-text").evaluate_all(
        """(all) => all.map((one) =>
          [...one.querySelectorAll("pre")].map((pre) => pre.textContent).join(""))"""
    )
    assert sorted(shown) == sorted(texts)


def test_hundreds_of_earlier_turns_unfold_at_once(
    project: Project, ada: User, open_page: Callable[..., Any]
) -> None:
    turns = [
        Message(
            role="user" if number % 2 == 0 else "assistant", content=f"Turn **{number}**. " * 40
        )
        for number in range(500)
    ]
    system = Message(role="system", content="Be brief. " * 200)
    last = Message(role="user", content="So? " * 400)
    make_comparison(prompt=make_prompt(project=project, messages=[system, *turns, last]))
    page = open_page(ada, "/")
    page.add_init_script(WATCH)
    page.goto(JUDGE)
    expect(page.get_by_text("Be brief.")).to_be_visible()
    expect(page.get_by_text("So?")).to_be_visible()
    expect(page.get_by_text("Turn 499")).to_be_hidden()
    freezes(page)
    page.get_by_text("500 earlier turns").click()
    assert freezes(page) < 2 * FREEZE
    expect(page.get_by_text("Turn 499")).to_be_visible()
    early = page.locator(".earlier .turn").nth(1)
    early.scroll_into_view_if_needed()
    expect(early).to_contain_text("Turn **1**.")
    folded = page.locator(".last [data-folds]")
    before = folded.bounding_box()["height"]
    page.locator(".last").get_by_role("button", name="Show all").click()
    assert folded.bounding_box()["height"] > before + 50
    page.locator(".last").get_by_role("button", name="Show less").click()
    assert folded.bounding_box()["height"] == before


def test_on_a_phone_the_prompt_is_two_lines_and_every_tool_is_in_reach(
    project: Project, ada: User, open_page: Callable[..., Any]
) -> None:
    prompt = make_prompt(project=project, text="A long question with $x^2$ in it. " * 40)
    make_comparison(prompt=prompt, texts=["the cat " * 300, "the dog " * 300])
    page = open_page(ada, JUDGE, **PHONE)
    line = page.evaluate(
        "parseFloat(getComputedStyle(document.querySelector('.prose')).lineHeight)"
    )
    assert page.locator("[data-folds]").bounding_box()["height"] <= 2.3 * line
    for tool in page.locator(".places-bar :is(a, button):visible").all():
        box = tool.bounding_box()
        assert min(box["width"], box["height"]) >= 44
        assert box["x"] + box["width"] <= 390
    page.get_by_role("button", name="Differences").tap()
    expect(page.locator("#place-A mark").first).to_be_visible()
    page.locator("[data-switch=B]").tap()
    expect(page.locator("#place-B")).to_be_in_viewport(ratio=0.9)
    expect(page.locator("[data-switch=B]")).to_have_attribute("aria-current", "true")
    page.get_by_role("button", name="Show all").tap()
    assert page.locator("[data-folds]").bounding_box()["height"] > 3 * line
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_no_hostile_text_comes_alive_with_formulas_set_and_differences_marked(
    project: Project, ada: User, open_page: Callable[..., Any]
) -> None:
    turns = [
        Message(role=("user", "assistant")[number % 2], content=text.replace("\x00", ""))
        for number, text in enumerate([*HOSTILE, *(["And?"] * (1 - len(HOSTILE) % 2))])
    ]
    quarters = ["\n\n".join(HOSTILE[start::4]).replace("\x00", "") for start in range(4)]
    make_comparison(prompt=make_prompt(project=project, messages=turns), texts=quarters)
    page = open_page(ada, JUDGE)
    expect(page.locator(".place .katex").first).to_be_visible()
    page.locator(".earlier summary").click()
    expect(page.locator(".earlier .katex").first).to_be_attached()
    assert page.evaluate(ALIVE) == []
    for math in page.locator(".place .math").all():
        math.dispatch_event("mouseover")
        math.dispatch_event("click")
    page.keyboard.press("v")
    assert page.evaluate(ALIVE) == []
    page.locator("[data-action=differences]").click()
    expect(page.locator(".differences")).to_have_count(4)
    assert page.evaluate(ALIVE) == []
    # What a formula draws outside of its own answer is not seen.
    clipped = page.locator(".place-text").evaluate_all(
        "(all) => all.map((one) => getComputedStyle(one).contain)"
    )
    assert set(clipped) == {"paint"}
    expect(page.locator("h1")).to_have_count(1)
    assert re.search(r"/p/kitchen/judge/$", page.url)
