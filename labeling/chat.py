"""Chat messages and their token ids: one rendering for the sampler and for the trainer.

What the sampler was fed must be exactly what the trainer sees, so both call these functions.
Standard library only; tokenizers come in as arguments.
"""

from collections.abc import Sequence
from typing import Any, Literal, TypedDict

Role = Literal["system", "user", "assistant"]
ROLES = ("system", "user", "assistant")


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
    """Token ids that the policy is fed: the template with its generation prompt, one BOS."""
    return _render(tokenizer, list(messages), add_generation_prompt=True)


def response_ids(tokenizer: Any, messages: Sequence[Message], text: str) -> list[int]:
    """Token ids of an answer, its end token included, as they follow `prompt_ids`.

    From the template where the prompt's ids are a prefix of the whole conversation's, cut after
    the first end token; else (templates that trim or rewrite) from the text itself.
    """
    prompt = prompt_ids(tokenizer, messages)
    answer = Message(role="assistant", content=text)
    whole = _render(tokenizer, [*messages, answer], add_generation_prompt=False)
    ends = end_token_ids(tokenizer)
    if whole[: len(prompt)] == prompt:
        ids = _through_end(whole[len(prompt) :], ends)
        if ids is not None and tokenizer.decode(ids[:-1], skip_special_tokens=True) == text:
            return ids
    plain: list[int] = tokenizer.encode(
        text, add_special_tokens=False, split_special_tokens=True
    )  # a response that spells "<|end|>" does not end there
    return [*plain, ends[0]]


def end_token_ids(tokenizer: Any) -> list[int]:
    """Ids that end a response; ChatError where the tokenizer names no end token."""
    if tokenizer.eos_token_id is None:
        raise ChatError("the tokenizer has no end-of-sequence token")
    return [int(tokenizer.eos_token_id)]


def _through_end(ids: list[int], ends: list[int]) -> list[int] | None:
    for position, token in enumerate(ids):
        if token in ends:
            return ids[: position + 1]
    return None


def _render(tokenizer: Any, messages: list[Message], *, add_generation_prompt: bool) -> list[int]:
    if not getattr(tokenizer, "chat_template", None):
        raise ChatError("the tokenizer has no chat template")
    try:
        ids = tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=add_generation_prompt,
            tokenize=True,
            return_dict=False,
        )
    except Exception as error:  # a template is a program of the model's author: anything goes
        raise ChatError(f"the chat template failed: {error}") from error
    return _one_bos(tokenizer, [int(token) for token in ids])


def _one_bos(tokenizer: Any, ids: list[int]) -> list[int]:
    """Templates that spell BOS, met by tokenizers that add it, would give two."""
    bos = tokenizer.bos_token_id
    if bos is None:
        return ids
    while len(ids) > 1 and ids[0] == ids[1] == bos:
        ids = ids[1:]
    return ids
