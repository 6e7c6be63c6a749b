"""Chat messages and their token ids: one rendering for the sampler and for the trainer.

What the sampler was fed must be exactly what the trainer sees, so both call these functions.
docs/decisions/0009-chat-templates.md says what is expected of a template, and why. Standard library
only; tokenizers come in as arguments.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Literal, TypedDict
from weakref import WeakKeyDictionary

Role = Literal["system", "user", "assistant"]
ROLES = ("system", "user", "assistant")
LONGEST_TEXT = 2_000_000  # characters of a rendered conversation
LONGEST_REASON = 300  # characters of what a template says when it fails
TODAY = date(2024, 7, 26)  # what templates that ask for it are told, whenever they are rendered


class Message(TypedDict):
    """One turn of a conversation."""

    role: Role
    content: str


class ChatError(ValueError):
    """Messages that cannot be a prompt, or that the chat template cannot render."""


def check_prompt_messages(messages: Any) -> list[Message]:
    """The messages if they can be answered by an assistant's turn, else ChatError says why."""
    if not isinstance(messages, list) or not messages:
        raise ChatError("a prompt is a non-empty list of messages")
    for number, message in enumerate(messages, start=1):
        _check_message(message, number)
        if message["role"] == "system" and number > 1:
            raise ChatError(f"message {number}: a system message must come first")
    if messages[-1]["role"] != "user":
        raise ChatError(f"the last message must be the user's, not the {messages[-1]['role']}'s")
    return [Message(role=m["role"], content=m["content"]) for m in messages]


def _check_message(message: Any, number: int) -> None:
    if not isinstance(message, dict) or set(message) != {"role", "content"}:
        raise ChatError(f"message {number}: expected an object with role and content")
    if message["role"] not in ROLES:
        raise ChatError(f"message {number}: role must be one of {', '.join(ROLES)}")
    content = message["content"]
    if not isinstance(content, str) or not content.strip():
        raise ChatError(f"message {number}: content must be text that is not empty")
    if "\x00" in content:
        raise ChatError(f"message {number}: content holds a NUL character")


def prompt_ids(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Token ids that the policy is fed: the template with its generation prompt, one BOS.

    ChatError where the template fails or leaves a message out, and where a message spells a
    special token, with which it could open or close turns.
    """
    messages = list(messages)
    dialect = _dialect(tokenizer)
    frame = _frame(tokenizer, dialect, messages)
    ids = _encode(tokenizer, _render(tokenizer, messages, add_generation_prompt=True))
    if dialect.marks_in(ids) != frame.marks:
        _check_spelling(tokenizer, dialect, messages)
    return _one_bos(ids, dialect, frame)


def response_ids(tokenizer: Any, messages: Sequence[Message], text: str) -> list[int]:
    """Token ids of an answer, its end token included, as they follow `prompt_ids`.

    From the template where the prompt's ids are a prefix of the whole conversation's, cut after
    the first end token; else (templates that trim or rewrite) from the text itself.
    """
    prompt = prompt_ids(tokenizer, messages)
    dialect = _dialect(tokenizer)
    answered = [*messages, Message(role="assistant", content=text)]
    ids = _encode(tokenizer, _render(tokenizer, answered, add_generation_prompt=False))
    whole = _one_bos(ids, dialect, _frame(tokenizer, dialect, messages))
    ends = end_token_ids(tokenizer)
    if whole[: len(prompt)] == prompt:
        found = _through_end(whole[len(prompt) :], ends)
        if found is not None and response_text(tokenizer, found[:-1]) == text:
            return found
    plain: list[int] = tokenizer.encode(
        text, add_special_tokens=False, split_special_tokens=True
    )  # a response that spells "<|end|>" does not end there
    if _through_end(plain, ends):
        raise ChatError("the response spells an end token that its tokenizer cannot tell from text")
    return [*plain, ends[0]]


def response_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of sampled ids (without their end token), as responses are recorded.

    Special tokens are left out, nothing is tidied, and a NUL, which databases cannot keep, is
    replaced.
    """
    text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text.replace("\x00", "\ufffd")


def end_token_ids(tokenizer: Any) -> list[int]:
    """Ids that end a response, first the one with which the template ends an assistant's turn.

    ChatError where neither the template nor the tokenizer names one.
    """
    ends = _dialect(tokenizer).ends
    if not ends:
        raise ChatError("the tokenizer has no end-of-sequence token")
    return list(ends)


def _through_end(ids: list[int], ends: list[int]) -> list[int] | None:
    for position, token in enumerate(ids):
        if token in ends:
            return ids[: position + 1]
    return None


def _render(tokenizer: Any, messages: list[Message], *, add_generation_prompt: bool) -> str:
    """The conversation as text, the same on every day."""
    if not getattr(tokenizer, "chat_template", None):
        raise ChatError("the tokenizer has no chat template")
    try:
        text: str = tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            strftime_now=TODAY.strftime,
        )
    except Exception as error:  # a template is a program of the model's author: anything goes
        raise ChatError(f"the chat template failed: {str(error)[:LONGEST_REASON]}") from error
    if len(text) > LONGEST_TEXT:
        raise ChatError(
            f"too long: the chat template makes {len(text):,} characters of it, the most that are "
            f"read are {LONGEST_TEXT:,}"
        )
    return text


def _encode(tokenizer: Any, text: str) -> list[int]:
    """Ids of a rendered text. A BOS that the tokenizer itself would add is not among them."""
    try:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    except Exception as error:  # such as half a surrogate pair
        raise ChatError(f"the tokenizer failed: {str(error)[:LONGEST_REASON]}") from error
    return ids


# What a tokenizer and its template do to every conversation


@dataclass(frozen=True)
class _Frame:
    """What surrounds the messages of conversations with the same roles, whatever they say."""

    marks: tuple[int, ...]  # in the order in which they are fed
    lacks_bos: bool  # the tokenizer adds BOS to texts, and the template does not spell it


@dataclass(frozen=True)
class _Dialect:
    """A tokenizer with its template, found out once.

    `marks` are the tokens that could open or close a turn: the special ones, and added ones that
    the template itself uses.
    """

    source: tuple[Any, int]
    bos: int | None
    adds_bos: bool
    ends: tuple[int, ...]
    marks: dict[int, str]
    spelled: re.Pattern[str]
    frames: dict[tuple[Role, ...], _Frame] = field(default_factory=dict)

    def marks_in(self, ids: Iterable[int]) -> tuple[int, ...]:
        """The marks among the ids, in their order."""
        marks = self.marks
        return tuple([token for token in ids if token in marks])


_DIALECTS: WeakKeyDictionary[Any, _Dialect] = WeakKeyDictionary()


def _dialect(tokenizer: Any) -> _Dialect:
    source = (getattr(tokenizer, "chat_template", None), len(tokenizer))
    known = _DIALECTS.get(tokenizer)
    if known is None or known.source != source:
        known = _DIALECTS[tokenizer] = _learn(tokenizer, source)
    return known


def _learn(tokenizer: Any, source: tuple[Any, int]) -> _Dialect:
    bos, eos, unknown = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id
    answered = _try(tokenizer, ("user", "assistant"))
    texts = [answered, *(_try(tokenizer, roles) for roles in (("user",), ("system", "user")))]
    used = {token for text in texts for token in _encode(tokenizer, text)}
    special = set(tokenizer.all_special_ids)
    marks = {
        token: added.content
        for token, added in tokenizer.added_tokens_decoder.items()
        if (added.special or token in special or token in used) and added.content.strip()
    }
    _, found, tail = answered.rpartition(_word(2))
    after = _encode(tokenizer, tail) if found else []
    turn_end = next((token for token in after if token in marks and token != unknown), None)
    ends = [end for end in (turn_end, eos) if end is not None]
    longest_first = sorted(marks.values(), key=len, reverse=True)
    return _Dialect(
        source=source,
        bos=bos,
        adds_bos=bos is not None and tokenizer.encode("a")[:1] == [bos],
        ends=tuple(dict.fromkeys(ends)),
        marks=marks,
        spelled=re.compile("|".join(map(re.escape, longest_first)) or "(?!)"),
    )


def _word(number: int) -> str:
    return f"message{number}text"


def _try(tokenizer: Any, roles: tuple[Role, ...]) -> str:
    """A conversation in these roles as text; "" where the template refuses it."""
    try:
        asking = roles[-1] == "user"
        return _render(tokenizer, _stand_ins(roles), add_generation_prompt=asking)
    except ChatError:
        return ""


def _stand_ins(roles: Sequence[Role]) -> list[Message]:
    """Messages that no template has a reason to change."""
    return [Message(role=role, content=_word(at)) for at, role in enumerate(roles, start=1)]


def _frame(tokenizer: Any, dialect: _Dialect, messages: Sequence[Message]) -> _Frame:
    roles = tuple([message["role"] for message in messages])
    frame = dialect.frames.get(roles)
    if frame is None:
        frame = dialect.frames[roles] = _new_frame(tokenizer, dialect, roles)
    return frame


def _new_frame(tokenizer: Any, dialect: _Dialect, roles: tuple[Role, ...]) -> _Frame:
    """ChatError where the template leaves one of the messages out."""
    messages = _stand_ins(roles)
    text = _render(tokenizer, messages, add_generation_prompt=True)
    for at, message in enumerate(messages):
        if message["content"] not in text:
            other = [*messages]
            other[at] = Message(role=message["role"], content="another")
            if _render(tokenizer, other, add_generation_prompt=True) == text:
                raise ChatError(
                    f"message {at + 1}: the chat template leaves out this {message['role']} message"
                )
    head = text.partition(messages[0]["content"])[0]
    return _Frame(
        marks=dialect.marks_in(_encode(tokenizer, text)),
        lacks_bos=dialect.adds_bos and tokenizer.bos_token not in head,
    )


def _check_spelling(tokenizer: Any, dialect: _Dialect, messages: list[Message]) -> None:
    """ChatError names the message that brought in marks which are not the template's."""
    for number, message in enumerate(messages, start=1):
        found = dialect.spelled.search(message["content"])
        token = found[0] if found else _hidden_mark(tokenizer, dialect, message["content"])
        if token is not None:
            raise ChatError(
                f"message {number}: it spells {token}, which is a special token of the policy"
            )


def _hidden_mark(tokenizer: Any, dialect: _Dialect, text: str) -> str | None:
    """A mark that a text becomes once it is normalised; what is unknown is no such mark."""
    found = dialect.marks_in(_encode(tokenizer, text))
    return next((dialect.marks[t] for t in found if t != tokenizer.unk_token_id), None)


def _one_bos(ids: list[int], dialect: _Dialect, frame: _Frame) -> list[int]:
    """Some templates spell BOS twice, or not at all where the tokenizer puts one before texts."""
    if frame.lacks_bos and dialect.bos is not None:
        return [dialect.bos, *ids]
    while len(ids) > 1 and ids[0] == ids[1] == dialect.bos:
        ids = ids[1:]
    return ids
