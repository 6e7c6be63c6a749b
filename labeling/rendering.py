"""Markdown written by models and strangers, as HTML that is safe to show.

Text is hostile until it has passed here: nothing runs, nothing is fetched, nothing is hidden, and
nothing takes long: text that would is shown as it was written.
"""

import re
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from io import StringIO
from threading import Lock
from typing import Any

import nh3
from django.utils.html import escape, format_html
from django.utils.safestring import SafeString, mark_safe
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.ruler import RuleOptionsType
from markdown_it.rules_block import StateBlock
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.token import STANDARD_TYPES
from pygments.util import ClassNotFound

from labeling.formulas import can_be_typeset, formulas

MAX_MARKDOWN = 64 * 1024  # characters; beyond, text is shown as it was written
MAX_CODE = 32 * 1024  # characters of one text's code that are worth highlighting
MAX_TOKENS = 20_000  # lines, cells and spans of one text; beyond, its page would be too heavy
MAX_NESTING = 20  # blocks within blocks; markdown-it drops what lies deeper, so we show it plain
MAX_FORMULAS = 300  # of one text; those after it are shown as LaTeX
PARSING = 0.3  # seconds of a thread's time; real text of the greatest length takes 0.06
HIGHLIGHTING = 0.2
CACHED = 24 * 1024 * 1024  # bytes
TAGS = {
    *("p", "br", "hr", "em", "strong", "del", "s", "a", "blockquote", "ul", "ol", "li"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "pre", "code", "span", "div"),
    *("table", "thead", "tbody", "tr", "th", "td"),
}
ATTRIBUTES = {"a": {"href"}, "ol": {"start"}, "th": {"align"}, "td": {"align"}}
DIRECTED = ("blockquote", "ul", "ol", "table")  # have a side of their own: marker, line, columns
CLASSES = {
    "span": {name for name in STANDARD_TYPES.values() if name} | {"language", "math", "displayed"},
    "div": {"scrolls"},
}
# Controls, and the characters that show others in another order than they are in (UAX #9). The
# marks U+200E and U+200F stay: right-to-left text is full of them, and they turn nothing around.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb]"
)
_ALIGNMENT = re.compile(r"text-align:(left|right|center)")
_TASK = re.compile(r"^\[([ xX])\](?=\s)")
_FORMATTER = HtmlFormatter(nowrap=True)
_CLEANER = nh3.Cleaner(
    tags=TAGS,
    attributes=ATTRIBUTES,
    tag_attribute_values={tag: {"dir": {"auto"}} for tag in DIRECTED},
    allowed_classes=CLASSES,
    url_schemes={"http", "https", "mailto"},
    url_relative="deny",
    link_rel="noopener noreferrer nofollow ugc",
    generic_attribute_prefixes=set(),
    strip_comments=True,
)


def visible(text: str) -> str:
    """The text with each control or direction-changing character spelled out: [U+202E]."""
    return _INVISIBLE.sub(lambda found: f"[U+{ord(found[0]):04X}]", text.replace("\r\n", "\n"))


def to_html(text: str) -> SafeString:
    """Sanitized HTML of Markdown; what is too long, deep or costly comes as one plain block."""
    html = rendered(text)
    return format_html('<pre class="raw">\n{}</pre>', visible(text)) if html is None else html


def rendered(text: str) -> SafeString | None:
    """Sanitized HTML of Markdown; None for what is better shown as it was written."""
    if len(text) > MAX_MARKDOWN:
        return None
    html = _CACHE.get(text, _render)
    return mark_safe(html) if html or not text.strip() else None  # noqa: S308 - sanitized


def sanitize(html: str) -> str:
    """Only the tags, attributes, classes and addresses named above; sanitizing twice is once."""
    return _CLEANER.clean(html)


def _render(text: str) -> str:
    env = {"budget": _Budget()}
    try:
        tokens = _MARKDOWN.parse(visible(text), env)
    except _TooCostly:
        return ""
    pieces = sum(1 + len(token.children or ()) for token in tokens)
    if pieces > MAX_TOKENS or any(token.level >= MAX_NESTING for token in tokens):
        return ""
    return sanitize(_MARKDOWN.renderer.render(tokens, _MARKDOWN.options, env))


class _TooCostly(Exception):
    """A text that takes so long to parse that it is not worth it."""


class _Budget:
    """What is left for one text. Parsing some texts takes time that grows with their square."""

    def __init__(self) -> None:
        self.until = time.thread_time() + PARSING
        self.calls = 0
        self.highlighting: float = HIGHLIGHTING
        self.code = MAX_CODE
        self.formulas = MAX_FORMULAS

    def check(self) -> None:
        """_TooCostly when the time is over."""
        self.calls += 1
        if self.calls % 64 == 0 and time.thread_time() > self.until:
            raise _TooCostly


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

    def table_open(self, *_: Any) -> str:
        return '<div class="scrolls"><table dir="auto">'

    def table_close(self, *_: Any) -> str:
        return "</table></div>"

    def fence(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        language = tokens[idx].info.split(maxsplit=1)[:1]
        if not language:
            return f"<pre><code>{escape(tokens[idx].content)}</code></pre>\n"
        name, code = _highlighted(tokens[idx].content, language[0], env["budget"])
        return f'<pre><span class="language">{escape(name)}</span><code>{code}</code></pre>\n'

    def formula(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        displayed = tokens[idx].block or tokens[idx].meta["displayed"]
        env["budget"].formulas -= 1
        if env["budget"].formulas < 0 or not can_be_typeset(tokens[idx].content):
            return f"<code>{escape(tokens[idx].content)}</code>"
        classes = "math displayed" if displayed else "math"
        return f'<span class="{classes}">{escape(tokens[idx].content)}</span>'

    def formula_block(self, *args: Any) -> str:
        return f"<p>{self.formula(*args)}</p>\n"


def _highlighted(code: str, language: str, budget: _Budget) -> tuple[str, str]:
    """The language's name and the code as HTML: Pygments' classes where it knows the language.

    Some of its lexers take time that grows with the square of hostile code: they are stopped.
    """
    plain = str(escape(code))
    try:
        lexer = get_lexer_by_name(language, stripnl=False)
    except ClassNotFound:
        return language[:30], plain
    budget.code -= len(code)
    if budget.code < 0:
        return lexer.name, plain
    began, tokens, html = time.thread_time(), [], StringIO()
    for token in lexer.get_tokens(code):
        tokens.append(token)
        if time.thread_time() - began > budget.highlighting:
            budget.code = 0
            return lexer.name, plain
    budget.highlighting -= time.thread_time() - began
    _FORMATTER.format(tokens, html)
    return lexer.name, html.getvalue()


def _spend(state: StateInline | StateBlock, *_: Any) -> bool:
    """A rule that matches nothing: the parser asks it wherever it asks any."""
    state.env["budget"].check()
    return False


def _present(state: StateCore) -> None:
    """Boxes for the tasks of a list, and a direction of its own for what has a side."""
    for number, token in enumerate(state.tokens):
        if token.nesting == 1 and token.tag in DIRECTED:
            token.attrSet("dir", "auto")
        begins_item = number > 1 and state.tokens[number - 2].type == "list_item_open"
        if begins_item and token.type == "inline" and token.children:
            first = token.children[0]
            first.content = _TASK.sub(_box, first.content)


def _box(task: re.Match[str]) -> str:
    return "\u2610" if task[1] == " " else "\u2611"


def _parser() -> MarkdownIt:
    options = {"html": False, "breaks": True, "maxNesting": 2 * MAX_NESTING}
    markdown = MarkdownIt("commonmark", options, renderer_cls=_Renderer)
    markdown.enable(["table", "strikethrough"]).use(formulas)
    markdown.disable("reference")  # a definition, used or not, would vanish from the page
    markdown.inline.ruler.before("text", "spend", _spend)
    # What may end a quote is asked at each row of a table, too.
    rows: RuleOptionsType = {"alt": ["blockquote"]}
    markdown.block.ruler.before("table", "spend", _spend, rows)
    markdown.core.ruler.push("present", _present)
    return markdown


class _Cache:
    """The HTML of the texts rendered last, in no more bytes than these."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._size = 0
        self._kept: OrderedDict[str, str] = OrderedDict()
        self._lock = Lock()

    def get(self, text: str, make: Callable[[str], str]) -> str:
        """What `make` gives for the text, made anew only where it isn't kept."""
        with self._lock:
            if text in self._kept:
                self._kept.move_to_end(text)
                return self._kept[text]
        made = make(text)
        with self._lock:
            if text not in self._kept:
                self._kept[text] = made
                self._size += _bytes(text, made)
            while self._size > self._most:
                self._size -= _bytes(*self._kept.popitem(last=False))
        return made


def _bytes(text: str, made: str) -> int:
    return sys.getsizeof(text) + sys.getsizeof(made)


_MARKDOWN = _parser()
_CACHE = _Cache(CACHED)
