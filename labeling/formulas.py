r"""Formulas in Markdown: $a$, \(a\), $$a$$ and \[a\], and not the money that looks like them.

What is recognised becomes a token `formula` or `formula_block` whose content is LaTeX. Every
search is bounded, so that no text makes these rules slow.
"""

import re

from markdown_it import MarkdownIt
from markdown_it.ruler import RuleOptionsType
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline

MAX_FORMULA = 2000  # characters; a longer one stays as it was written
_TO = f"{{1,{MAX_FORMULA}}}+"
# What follows an opener, up to its closer; a backslash takes the next character with it.
_REST = {
    "$": re.compile(rf"((?:[^$\\]|\\.){_TO})\$", re.DOTALL),
    "$$": re.compile(rf"((?:[^$\\]|\\.|\$(?!\$)){_TO})\$\$", re.DOTALL),
    r"\(": re.compile(rf"((?:[^\\]|\\[^()]){_TO})\\\)", re.DOTALL),
    r"\[": re.compile(rf"((?:[^\\]|\\[^\[\]]){_TO})\\\]", re.DOTALL),
}
_DISPLAYED = ("$$", r"\[")
_DEFINES = re.compile(r"\\([gex]?def|let|futurelet|(re)?newcommand|providecommand)(?![a-zA-Z])")
_SIGNS = re.compile(r"[\\^_={}+<>|]")
_WORD = re.compile(r"[^\W\d_]{3}")
_PRICE = re.compile(r"[\d.,]+[\s/-].*?(?<![\\{a-zA-Z])[^\W\d_]{2}", re.DOTALL)  # $5 to 10$


def formulas(markdown: MarkdownIt) -> None:
    """Teach a parser formulas; how the two tokens are rendered is its renderer's."""
    interrupts: RuleOptionsType = {"alt": ["paragraph", "reference", "blockquote", "list"]}
    markdown.inline.ruler.before("escape", "formula", _inline)
    markdown.block.ruler.before("fence", "formula_block", _block, interrupts)


def can_be_typeset(latex: str) -> bool:
    """Whether it only uses what LaTeX has: a few words of one's own can stand for a million."""
    return not _DEFINES.search(latex)


def _inline(state: StateInline, silent: bool) -> bool:
    found = _found(state.src, state.pos)
    if found is None:
        return False
    opener, content, end = found
    if opener == "$" and not _between_dollars(state.src, state.pos, end):
        return False
    if not silent:
        token = state.push("formula", "span", 0)
        token.content, token.meta = content, {"displayed": opener in _DISPLAYED}
    state.pos = end
    return True


def _block(state: StateBlock, line: int, last: int, silent: bool) -> bool:
    """A formula on lines of its own: from the beginning of one to the end of another."""
    begin = state.bMarks[line] + state.tShift[line]
    found = _found(state.src, begin)
    if state.is_code_block(line) or found is None or found[0] not in _DISPLAYED:
        return False
    while state.eMarks[line] < found[2]:
        line += 1
        if line == last or state.isEmpty(line) or state.sCount[line] < state.blkIndent:
            return False
    if state.src[found[2] : state.eMarks[line]].strip():
        return False
    if not silent:
        first, state.line = state.line, line + 1
        token = state.push("formula_block", "span", 0)
        # Read again by lines: without the marks of the quote or the list it stands in.
        token.content = state.getLines(first, line + 1, state.blkIndent, False).strip()[2:-2]
    return True


def _found(text: str, begin: int) -> tuple[str, str, int] | None:
    """The opener there, the formula it opens, and where its closer ends."""
    opener = text[begin : begin + 2]
    opener = opener if opener in _REST else opener[:1]
    if opener not in _REST:
        return None
    rest = _REST[opener].match(text, begin + len(opener))
    if rest is None or not rest[1].strip():
        return None
    # Brackets with backslashes are also how Markdown writes plain brackets.
    if opener[0] == "\\" and not _SIGNS.search(rest[1]) and _WORD.search(rest[1]):
        return None
    return opener, rest[1], rest.end()


def _between_dollars(text: str, begin: int, end: int) -> bool:
    """Whether text[begin:end], with a dollar at both ends, is a formula rather than money."""
    content = text[begin + 1 : end - 1]
    alone = not (text[begin - 1 : begin].isalnum() or text[end : end + 1].isdigit())
    return alone and content == content.strip() and not _PRICE.match(content)
