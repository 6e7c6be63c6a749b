"""A prompt that is too long loses its oldest turns, whole; nothing else is ever cut.

Responses decide the loss, so a cut one would be scored as what nobody wrote, and the last turn and
the system message say what was asked.
"""

from collections.abc import Iterator
from typing import Any

from labeling.chat import ChatError, Message, prompt_ids


def shorter_histories(messages: list[Message]) -> Iterator[list[Message]]:
    """The conversation without its oldest turns, ever fewer, down to the last turn alone.

    Each keeps the system message and starts, after it, with a user's turn.
    """
    system = [message for message in messages[:1] if message["role"] == "system"]
    turns = messages[len(system) :]
    for start in range(1, len(turns)):
        if turns[start]["role"] == "user":
            yield system + turns[start:]


def shorter_prompts(tokenizer: Any, messages: list[Message]) -> list[tuple[int, ...]]:
    """Token ids of the shorter histories, longest first; those that the template refuses are not
    among them."""
    prompts = []
    for history in shorter_histories(messages):
        try:
            prompts.append(tuple(prompt_ids(tokenizer, history)))
        except ChatError:
            continue
    return prompts
