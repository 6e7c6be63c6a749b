"""Hostile text comes out harmless, and nothing of it is silently lost."""

import re
import time
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labeling.rendering import ATTRIBUTES, MAX_MARKDOWN, TAGS, to_html, visible
from tests.labeling.hostile import HOSTILE


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


def _assert_harmless(html: str) -> None:
    for tag, attributes in _Elements(html).found:
        assert tag in TAGS
        allowed = ATTRIBUTES.get(tag, set()) | {"class"} | ({"rel"} if tag == "a" else set())
        assert set(attributes) <= allowed
        assert tag in ("span", "pre") or "class" not in attributes
        if "href" in attributes:
            assert re.match(r"(https?:|mailto:)", attributes["href"], re.I)
            assert attributes["rel"] == "noopener noreferrer nofollow ugc"


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_makes_no_live_tag_attribute_or_address(text: str) -> None:
    _assert_harmless(str(to_html(text)))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_in_a_code_block_stays_code(text: str) -> None:
    html = str(to_html(f"```html\n{text}\n```"))
    _assert_harmless(html)


@given(st.text(alphabet="<>&\"'`[]()!*_~|#-=\\/:;ajscriptonx \n\t\0\u202e", max_size=200))
@settings(max_examples=150, deadline=None)
def test_no_text_at_all_makes_a_live_tag(text: str) -> None:
    _assert_harmless(str(to_html(text)))


def test_markdown_reads_as_it_should() -> None:
    html = str(
        to_html(
            "# Title\n\n**bold** ~~gone~~\n\n1. one\n2. two\n\n| a | b |\n| - | -: |\n| 1 | 2 |"
        )
    )
    for piece in ("<h1>Title</h1>", "<strong>bold</strong>", "<s>gone</s>", "<ol>", "<table>"):
        assert piece in html
    assert '<td align="right">2</td>' in html


def test_known_code_is_coloured_by_class_and_unknown_code_is_kept_plain() -> None:
    assert '<span class="k">def</span>' in to_html("```python\ndef f(): pass\n```")
    assert "<pre><code>x &lt; y\n</code></pre>" in to_html("```no-such-language\nx < y\n```")


def test_an_image_becomes_words_and_is_never_fetched() -> None:
    html = str(to_html("![a chart](https://example.com/t.png)"))
    assert "<img" not in html
    assert "[image: a chart, https://example.com/t.png]" in html


def test_characters_that_hide_or_turn_text_around_are_spelled_out() -> None:
    assert visible("a\u202eb\0c") == "a[U+202E]b[U+0000]c"
    assert "[U+202E]" in to_html("evil \u202etxt.exe")
    assert "[U+202E]" in to_html("x" * MAX_MARKDOWN + "\u202e")


def test_very_long_text_is_shown_whole_as_it_was_written() -> None:
    html = str(to_html("**a** <b>\n" * 10_000))
    assert html.startswith('<pre class="raw">')
    assert html.count("**a** &lt;b&gt;") == 10_000


@pytest.mark.parametrize("text", [">" * 5000 + " deep", "- " * 3000 + "deep", "[" * 3000 + "deep"])
def test_deep_nesting_loses_no_text(text: str) -> None:
    html = str(to_html(text))
    assert "deep" in _Elements(html).text


@pytest.mark.parametrize(
    "text",
    ["*" * 30_000, "`" * 30_000, "[" * 30_000, "a*b_" * 8_000, "|" * 30_000, "<a" * 20_000],
)
def test_pathological_text_is_rendered_in_reasonable_time(text: str) -> None:
    began = time.monotonic()
    to_html(text)
    assert time.monotonic() - began < 5  # seconds; generous, for a busy machine
