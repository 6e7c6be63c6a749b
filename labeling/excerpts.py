"""How much of a text goes into a page: all of it, or its beginning and where the rest begins."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from django.utils.functional import Promise
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy

from labeling.chat import Message
from labeling.rendering import MAX_MARKDOWN, rendered, visible

WHOLE = MAX_MARKDOWN  # characters; of a longer text a page holds the beginning
BEGINNING = 32 * 1024
GLIMPSE = 400  # of each of a long conversation's early turns
PIECE = 64 * 1024  # of what is asked for later
SPEAKERS = {
    "system": gettext_lazy("System"),
    "user": gettext_lazy("User"),
    "assistant": gettext_lazy("Assistant"),
}
_SPACE = re.compile(r"\s")


@dataclass(frozen=True, kw_only=True)
class Excerpt:
    """A text as a page shows it: `html` where it is short enough to be rendered, else None."""

    html: SafeString | None
    raw: str
    length: int
    rest: int | None  # where what is left out begins

    @property
    def blank(self) -> bool:
        """Whether there is nothing to see."""
        return not self.raw.strip()


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A turn of a conversation, and its place there."""

    index: int
    speaker: str | Promise
    text: Excerpt


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A prompt as it is read: what the system was told, the turns before, and the last one."""

    system: Turn | None
    earlier: list[Turn]
    last: Turn


def excerpt(text: str, *, whole: int = WHOLE, beginning: int = BEGINNING) -> Excerpt:
    """The text itself up to `whole` characters; of a longer one the `beginning`, as written."""
    if len(text) <= whole:
        return Excerpt(html=rendered(text), raw=visible(text), length=len(text), rest=None)
    end = piece_end(text, 0, beginning)
    rest = end if end < len(text) else None
    return Excerpt(html=None, raw=visible(text[:end]), length=len(text), rest=rest)


def piece_end(text: str, begin: int, most: int = PIECE) -> int:
    """Where a piece ends that begins there: after a line, else after a word, else anywhere."""
    end = begin + most
    if end >= len(text):
        return len(text)
    line = text.rfind("\n", begin, end) + 1
    if line > begin:
        return line
    last_words = text[max(begin, end - 200) : end]
    spaces = [found.end() for found in _SPACE.finditer(last_words)]
    return end - len(last_words) + spaces[-1] if spaces else end


def conversation(messages: Sequence[Message]) -> Conversation:
    """A prompt's turns. Those before the last are whole while they are not too long together.

    The last ones go first: of a very long conversation only a glimpse of each early turn is shown.
    """
    left = WHOLE
    texts = [excerpt(messages[-1]["content"])]
    for message in reversed(messages[:-1]):
        texts.append(excerpt(message["content"], whole=max(left, GLIMPSE), beginning=GLIMPSE))
        left -= len(message["content"])
    turns = [
        Turn(index=index, speaker=SPEAKERS[message["role"]], text=text)
        for index, (message, text) in enumerate(zip(messages, reversed(texts), strict=True))
    ]
    begins = 1 if messages[0]["role"] == "system" else 0
    return Conversation(
        system=turns[0] if begins else None, earlier=turns[begins:-1], last=turns[-1]
    )
