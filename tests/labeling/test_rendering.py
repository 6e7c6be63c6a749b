"""Hostile text comes out harmless, nothing of it is silently lost, and none takes long."""

import re
import time
from html.parser import HTMLParser

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from labeling import rendering
from labeling.rendering import (
    ATTRIBUTES,
    CLASSES,
    DIRECTED,
    MAX_MARKDOWN,
    TAGS,
    rendered,
    sanitize,
    to_html,
    visible,
)
from tests.labeling.hostile import HOSTILE

SIGNS = "<>&\"'`[]()!*_~|#-=\\/:;$^{}ajscriptonx \n\t\0\u202e"


class _Elements(HTMLParser):
    """Every element that a browser would make, with its attributes."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data


def assert_harmless(html: str) -> None:
    """Only the tags, attributes, classes and addresses of the allow-list."""
    for tag, attributes in _Elements(html).found:
        assert tag in TAGS
        allowed = ATTRIBUTES.get(tag, set()) | {"class"} | ({"rel"} if tag == "a" else set())
        assert set(attributes) <= allowed | ({"dir"} if tag in DIRECTED else set())
        assert attributes.get("dir", "auto") == "auto"
        known = CLASSES.get(tag, set()) | ({"raw"} if tag == "pre" else set())
        assert set(attributes.get("class", "").split()) <= known
        if "href" in attributes:
            assert re.match(r"(https?:|mailto:)", attributes["href"], re.I)
            assert attributes["rel"] == "noopener noreferrer nofollow ugc"


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_makes_no_live_tag_attribute_or_address(text: str) -> None:
    for around in ("%s", "```html\n%s\n```", "> - %s", "| a |\n|-|\n| %s |", "**%s**"):
        html = str(to_html(around.replace("%s", text)))
        assert_harmless(html)
        assert sanitize(sanitize(html)) == sanitize(html)


@given(st.text(alphabet=SIGNS, max_size=200))
@example("\\[ <b> \\] $`$` | $$\n$$")
@settings(max_examples=150, deadline=None)
def test_no_text_at_all_makes_a_live_tag(text: str) -> None:
    html = str(to_html(text))
    assert_harmless(html)
    assert sanitize(html) == sanitize(sanitize(html))


@given(st.text(alphabet="<>/=\"'&!- abimgsvgtyleonx\n", max_size=120))
@settings(max_examples=150, deadline=None)
def test_sanitizing_twice_is_sanitizing_once(html: str) -> None:
    assert sanitize(sanitize(html)) == sanitize(html)
    assert_harmless(sanitize(html))


@pytest.mark.parametrize("text", HOSTILE)
def test_html_itself_is_sanitized_once_and_for_all(text: str) -> None:
    assert sanitize(sanitize(text)) == sanitize(text)
    assert_harmless(sanitize(text))


def test_markdown_reads_as_it_should() -> None:
    html = str(
        to_html(
            "# Title\n\n**bold** ~~gone~~\n\n1. one\n2. two\n\n| a | b |\n| - | -: |\n| 1 | 2 |"
        )
    )
    for piece in ("<h1>Title</h1>", "<strong>bold</strong>", "<s>gone</s>"):
        assert piece in html
    assert '<td align="right">2</td>' in html
    assert '<div class="scrolls"><table dir="auto">' in html
    assert '<ol dir="auto">' in html
    assert "<p>one<br>\ntwo</p>" in to_html("one\ntwo")  # poems and addresses keep their lines


def test_tasks_of_a_list_have_boxes() -> None:
    html = str(to_html("- [ ] to do\n- [x] done\n- [y] neither\n\n[ ] no list"))
    assert "<li>\u2610 to do</li>\n<li>\u2611 done</li>\n<li>[y] neither</li>" in html
    assert "<p>[ ] no list</p>" in html


def test_code_names_its_language_and_known_code_is_coloured_by_class() -> None:
    html = to_html("```py\ndef f(): pass\n```")
    assert '<pre><span class="language">Python</span><code><span class="k">def</span>' in html
    html = to_html("```no-such-language\nx < y\n```")
    assert '<span class="language">no-such-language</span><code>x &lt; y\n</code>' in html
    assert to_html("```\nx\n```") == "<pre><code>x\n</code></pre>\n"


@pytest.mark.parametrize(
    ("text", "formula"),
    [
        ("so $a_1 * b_1 * c$ is", "a_1 * b_1 * c"),
        ("the $n$th and", "n"),
        (r"so \(a < b\), but", "a &lt; b"),
        (r"\(5 \text{ to } 10\)", r"5 \text{ to } 10"),
        (r"a $\$5$ note", r"\$5"),
    ],
)
def test_a_formula_within_a_line_is_latex_in_a_span(text: str, formula: str) -> None:
    assert f'<span class="math">{formula}</span>' in to_html(text)


@pytest.mark.parametrize(
    "text",
    [
        "$$\nx\n= y\n$$",
        "Thus:\n$$ x\n= y $$\nand so on",
        "\\[\nx\n= y\n\\]",
        "- so\n  \\[\n  x\n  = y\n  \\]",
        "> \\[\n> x\n> = y\n> \\]",
    ],
)
def test_a_formula_on_lines_of_its_own_is_displayed(text: str) -> None:
    shown = re.search(r'<p><span class="math displayed">([^<]*)</span></p>', to_html(text))
    assert shown is not None
    assert shown[1].split() == ["x", "=", "y"]


@pytest.mark.parametrize(
    "text",
    [
        "$5 and $10",
        "costs $5 to 10$",
        "US$5 or A$7",
        "from $20,000-$30,000",
        "$AAPL and $TSLA",
        "5$ and 10$",
        r"\$5 and \$6",
        "$5/month (was $8/month)",
        r"\[not a link\] and \(not emphasised\)",
        "`$x$`",
        "$$\n\nx$$",
        "$" + "x" * 2001 + "$",
    ],
)
def test_money_brackets_and_code_are_no_formulas(text: str) -> None:
    assert "math" not in to_html(text)


def test_after_many_formulas_the_rest_are_shown_as_latex() -> None:
    html = str(to_html("$x$ " * 1000))
    assert html.count('class="math"') == rendering.MAX_FORMULAS
    assert html.count("<code>x</code>") == 1000 - rendering.MAX_FORMULAS


@pytest.mark.parametrize(
    "word", [r"\def\a", r"\gdef\a", r"\newcommand{\a}", r"\let\a=", r"\renewcommand\a"]
)
def test_formulas_that_define_words_of_their_own_are_shown_as_latex(word: str) -> None:
    html = to_html(f"${word}{{xx}} \\a\\a$ and $$\\letter$$")
    assert html.count('class="math') == 1
    assert "<code>" in html


def test_an_image_becomes_words_and_is_never_fetched() -> None:
    html = str(to_html("![a chart](https://example.com/t.png)"))
    assert "<img" not in html
    assert "[image: a chart, https://example.com/t.png]" in html


def test_characters_that_hide_or_turn_text_around_are_spelled_out() -> None:
    assert visible("a\u202eb\0c") == "a[U+202E]b[U+0000]c"
    assert "[U+202E]" in to_html("evil \u202etxt.exe")
    assert "[U+202E]" in to_html("x" * MAX_MARKDOWN + "\u202e")


def test_definitions_of_links_stay_on_the_page() -> None:
    assert "[1]: https://example.com/source" in to_html("See.\n\n[1]: https://example.com/source")


def test_very_long_text_is_shown_whole_as_it_was_written() -> None:
    html = str(to_html("**a** <b>\n" * 10_000))
    assert html.startswith('<pre class="raw">')
    assert html.count("**a** &lt;b&gt;") == 10_000
    assert rendered("x" * (MAX_MARKDOWN + 1)) is None


@pytest.mark.parametrize("text", [">" * 5000 + " deep", "- " * 3000 + "deep", "[" * 3000 + "deep"])
def test_deep_nesting_loses_no_text(text: str) -> None:
    html = str(to_html(text))
    assert "deep" in _Elements(html).text


def _full(piece: str, before: str = "") -> str:
    """As much of a text as is still parsed."""
    return (before + piece * (MAX_MARKDOWN // len(piece)))[:MAX_MARKDOWN]


@pytest.mark.parametrize(
    "text",
    [
        *(
            "*" * 2**20,
            "[" * 2**20,
            "`" * 2**20,
            ">" * 50_000,
            "|a|b|\n|-|-|\n" + "|1|2|\n" * 20_000,
        ),
        *(_full("*"), _full("["), _full("`"), _full("![a"), _full("[a]("), _full("a*b_")),
        *(_full("- a\n"), _full("1. a\n"), _full("# a\n"), _full("a\n=\n"), _full("> > a\n")),
        *(_full("|1|2|\n", "|a|b|\n|-|-|\n"), _full("a\n", "|a" * 999 + "\n" + "|-" * 999 + "\n")),
        *(_full("$"), _full("$a "), _full("$$a "), _full("\\(a "), _full("\\[\n"), _full("$$\n")),
        *(
            _full("&"),
            _full("<a"),
            _full("\\"),
            _full("~~a"),
            _full("a\u0301"),
            _full("<http://a>"),
        ),
        # Lexers that take long over hostile code: this one 26 seconds, left to itself.
        ("```java\n" + "a " * 7900 + "\n```\n") * 4,
        ("```cpp\n" + "(" * 15_800 + "\n```\n") * 4,
        ("```yaml\n" + "- " * 7900 + "\n```\n") * 4,
    ],
    ids=lambda text: f"{text[:12]!r} {len(text)}",
)
def test_pathological_text_is_rendered_in_bounded_time_or_left_as_written(text: str) -> None:
    began = time.thread_time()
    html = to_html(text)
    assert time.thread_time() - began < 4  # left to itself it takes far longer
    assert len(html) < 2 * 2**20 + 64


def test_rendered_text_is_kept_in_few_bytes() -> None:
    made: list[str] = []

    def make(text: str) -> str:
        made.append(text)
        return text * 2

    cache = rendering._Cache(10_000)
    assert [cache.get(text, make) for text in ("a", "a", "b")] == ["aa", "aa", "bb"]
    assert made == ["a", "b"]
    for number in range(50):
        cache.get(f"{number} " * 200, make)
    assert cache._size <= 10_000
    assert cache._size == sum(rendering._bytes(*kept) for kept in cache._kept.items())
    cache.get("49 " * 200, make)
    assert made.count("49 " * 200) == 1
