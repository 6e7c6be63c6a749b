"""Markdown written by models and strangers, as HTML that is safe to show.

Text is hostile until it has passed here: nothing runs, nothing is fetched, nothing is hidden.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

import nh3
from django.utils.html import escape
from django.utils.safestring import SafeString, mark_safe
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.token import STANDARD_TYPES
from pygments.util import ClassNotFound

MAX_MARKDOWN = 64 * 1024  # characters; beyond, text is shown as it was written
MAX_CODE = 16 * 1024  # characters of one code block that are worth highlighting
MAX_NESTING = 20  # blocks within blocks; markdown-it drops what lies deeper, so we show it plain
TAGS = {
    *("p", "br", "hr", "em", "strong", "del", "s", "a", "blockquote", "ul", "ol", "li"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "pre", "code", "span"),
    *("table", "thead", "tbody", "tr", "th", "td"),
}
ATTRIBUTES = {"a": {"href"}, "ol": {"start"}, "th": {"align"}, "td": {"align"}}
CLASSES = {"span": {name for name in STANDARD_TYPES.values() if name}}
# Controls, and the characters that show others in another order than they are in (UAX #9). The
# marks U+200E and U+200F stay: right-to-left text is full of them, and they turn nothing around.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb]"
)
_ALIGNMENT = re.compile(r"text-align:(left|right|center)")
_FORMATTER = HtmlFormatter(nowrap=True)


def visible(text: str) -> str:
    """The text with each control or direction-changing character spelled out: [U+202E]."""
    return _INVISIBLE.sub(lambda found: f"[U+{ord(found[0]):04X}]", text.replace("\r\n", "\n"))


def to_html(text: str) -> SafeString:
    """Sanitized HTML of Markdown; very long or deeply nested text comes as one plain block."""
    if len(text) > MAX_MARKDOWN:
        return mark_safe(_plain(visible(text)))  # noqa: S308 - escaped
    return mark_safe(_render(text))  # noqa: S308 - sanitized


@lru_cache(maxsize=2048)
def _render(text: str) -> str:
    shown = visible(text)
    tokens = _MARKDOWN.parse(shown)
    if any(token.level >= MAX_NESTING for token in tokens):
        return _plain(shown)
    return nh3.clean(
        _MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {}),
        tags=TAGS,
        attributes=ATTRIBUTES,
        allowed_classes=CLASSES,
        url_schemes={"http", "https", "mailto"},
        url_relative="deny",
        link_rel="noopener noreferrer nofollow ugc",
        generic_attribute_prefixes=set(),
        strip_comments=True,
    )


def _plain(text: str) -> str:
    return f'<pre class="raw">{escape(text)}</pre>'


class _Renderer(RendererHTML):
    """Images become words, so that nothing is fetched; alignment an attribute, not a style."""

    def image(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        label = self.renderInlineAsText(tokens[idx].children or [], options, env)
        source = str(tokens[idx].attrGet("src") or "")
        return f"<em>[image: {escape(label or 'no description')}, {escape(source)}]</em>"

    def th_open(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        aligned = _ALIGNMENT.search(str(tokens[idx].attrGet("style") or ""))
        align = f' align="{aligned[1]}"' if aligned else ""
        return f"<{tokens[idx].tag}{align}>"

    td_open = th_open


def _highlight(code: str, language: str, _attributes: str) -> str:
    """Spans of Pygments' classes; nothing (so plain, escaped code) for an unknown language."""
    if not language or len(code) > MAX_CODE:
        return ""
    try:
        lexer = get_lexer_by_name(language, stripnl=False)
    except ClassNotFound:
        return ""
    return str(highlight(code, lexer, _FORMATTER))


_MARKDOWN = MarkdownIt(
    "commonmark",
    {"html": False, "maxNesting": 2 * MAX_NESTING, "highlight": _highlight},
    renderer_cls=_Renderer,
).enable(["table", "strikethrough"])
