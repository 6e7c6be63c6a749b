"""The shapes of prompts and preferences in files: objects to checked rows, and rows to write.

What a file holds is hostile until it has been through here: a row is either a checked PromptRow or
PreferenceRow, or a Problem with its line and reason. Nothing is repaired or guessed, and texts are
kept byte for byte. Standard library only.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Generic, Literal, Protocol, TypeVar

from labeling.chat import ChatError, Message, check_prompt_messages
from labeling.json_rows import BadFile, BadRow, read_objects

MAX_ID_LENGTH = 200

PROMPT_KEYS = ("prompt", "messages", "turns", "instruction", "text")
ID_KEYS = ("id", "question_id", "external_id")
SIDES = ("chosen", "rejected")
SCALARS = (str, int, float, bool, type(None))

# A transcript's turn begins at a line's start after an empty line; one space follows the colon.
TURN = re.compile(r"(?:\A\n*|\n\n)(Human|Assistant):(?: |(?=\n)|\Z)")
SPEAKERS: dict[str, Literal["user", "assistant"]] = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRow:
    """A prompt to import. `unread` names the row's keys that are kept nowhere."""

    messages: list[Message]
    external_id: str
    metadata: dict[str, Any]
    unread: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceRow:
    """One response preferred over another. `unread` names the row's keys that are kept nowhere."""

    messages: list[Message]
    chosen: str
    rejected: str
    external_id: str
    unread: frozenset[str]


@dataclass(frozen=True, slots=True)
class Problem:
    """Why the row on this line was not taken."""

    line: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


class _Row(Protocol):
    @property
    def unread(self) -> frozenset[str]: ...


RowT = TypeVar("RowT", bound=_Row)


@dataclass
class Parsed(Generic[RowT]):
    """A file's rows in order, and the problems of those that are none."""

    rows: list[RowT] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    unread: set[str] = field(default_factory=set)


def parse_file(file: BinaryIO, row_of: Callable[[dict[str, Any]], RowT]) -> Parsed[RowT]:
    """All rows of a file through `row_of` (`prompt_row` or `preference_row`).

    BadFile where the file as a whole cannot be read: empty, another encoding, a broken list.
    """
    parsed: Parsed[RowT] = Parsed()
    for line, found in read_objects(file):
        try:
            if isinstance(found, BadRow):
                raise found
            row = row_of(found)
        except BadRow as error:
            parsed.problems.append(Problem(line, str(error)))
        else:
            parsed.rows.append(row)
            parsed.unread |= row.unread
    if not parsed.rows and not parsed.problems:
        raise BadFile("it holds no rows")
    return parsed


# Prompts


def prompt_row(row: Mapping[str, Any]) -> PromptRow:
    """A prompt from a row that holds text, chat messages or MT-Bench turns; BadRow otherwise.

    Of several turns the first is the prompt and the others go into the metadata, as do how the
    prompt wants to be sampled and all other keys with a plain value.
    """
    key = next((key for key in PROMPT_KEYS if row.get(key) is not None), None)
    if key is None:
        raise BadRow(f"no prompt: expected one of the keys {', '.join(PROMPT_KEYS)}")
    if key == "instruction" and row.get("input"):
        raise BadRow("an instruction with an input: write both into one prompt")
    external_id, id_key = _external_id(row)
    others = {name: value for name, value in row.items() if name not in (key, id_key)}
    metadata: dict[str, Any] = {
        name: value for name, value in others.items() if isinstance(value, SCALARS)
    }
    prompt = row[key]
    if key == "turns":
        prompt, *later = _turns(prompt)
        metadata |= {"turns": later} if later else {}
    if isinstance(others.get("sampling"), dict):
        metadata["sampling"] = others["sampling"]  # the sampler checks what it says
    return PromptRow(
        messages=_prompt(prompt),
        external_id=external_id,
        metadata=metadata,
        unread=frozenset(others) - frozenset(metadata),
    )


def _turns(turns: Any) -> list[str]:
    if not isinstance(turns, list) or not turns:
        raise BadRow("turns must be a non-empty list of texts")
    return [_text(turn, f"turn {number}") for number, turn in enumerate(turns, start=1)]


def _prompt(value: Any) -> list[Message]:
    if isinstance(value, str):
        return [Message(role="user", content=_text(value, "the prompt"))]
    try:
        return check_prompt_messages(value)
    except ChatError as error:
        raise BadRow(f"prompt: {error}") from None


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise BadRow(f"{what} must be text")
    if not value.strip():
        raise BadRow(f"{what} is empty")
    return value


def _external_id(row: Mapping[str, Any]) -> tuple[str, str | None]:
    """The row's id as text, and the key it came from."""
    key = next((key for key in ID_KEYS if row.get(key) is not None), None)
    if key is None:
        return "", None
    value = row[key]
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadRow(f"{key} must be text or a whole number")
    if len(str(value)) > MAX_ID_LENGTH:
        raise BadRow(f"{key} is longer than {MAX_ID_LENGTH} characters")
    return str(value), key


# Preferences


def preference_row(row: Mapping[str, Any]) -> PreferenceRow:
    """A preference from a row with `chosen` and `rejected`; BadRow otherwise.

    Both are texts or chat messages. The prompt is `prompt` (text or messages), or, where there is
    none, the turns with which both conversations begin (messages, or hh-rlhf transcripts).
    """
    missing = [side for side in SIDES if row.get(side) is None]
    if missing:
        raise BadRow(f"no {' and no '.join(missing)}")
    external_id, id_key = _external_id(row)
    messages, chosen, rejected = _sides(row.get("prompt"), row["chosen"], row["rejected"])
    _text(chosen, "chosen")
    _text(rejected, "rejected")
    if chosen == rejected:
        raise BadRow("chosen and rejected are the same text")
    return PreferenceRow(
        messages=messages,
        chosen=chosen,
        rejected=rejected,
        external_id=external_id,
        unread=frozenset(row) - {"prompt", *SIDES, id_key},
    )


def _sides(prompt: Any, chosen: Any, rejected: Any) -> tuple[list[Message], str, str]:
    """The prompt and the two responses, whichever of the shapes they came in."""
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is not None:
            return _prompt(prompt), chosen, rejected
        return _shared_prompt(_transcript(chosen, "chosen"), _transcript(rejected, "rejected"))
    if not (isinstance(chosen, list) and isinstance(rejected, list)):
        raise BadRow("chosen and rejected must both be texts or both be lists of messages")
    chosen, rejected = _messages(chosen, "chosen"), _messages(rejected, "rejected")
    if prompt is None:
        return _shared_prompt(chosen, rejected)
    if len(chosen) == len(rejected) == 1:
        _check_last_turn(chosen, rejected)
        return _prompt(prompt), chosen[0]["content"], rejected[0]["content"]
    shared, chosen_text, rejected_text = _shared_prompt(chosen, rejected)
    if prompt not in (shared, shared[-1]["content"]):
        raise BadRow("the conversations in chosen and rejected are not about the prompt given")
    return shared, chosen_text, rejected_text


def _shared_prompt(
    chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], str, str]:
    """Split two conversations that differ only in their last answer."""
    _check_last_turn(chosen, rejected)
    if chosen == rejected:
        raise BadRow("chosen and rejected are the same text")
    common = 0
    while common < min(len(chosen), len(rejected)) and chosen[common] == rejected[common]:
        common += 1
    if common < max(len(chosen), len(rejected)) - 1:
        raise BadRow(
            f"not one prompt: the conversations differ from turn {common + 1} on, "
            f"and have {len(chosen)} and {len(rejected)} turns"
        )
    return _prompt(chosen[:common]), chosen[-1]["content"], rejected[-1]["content"]


def _check_last_turn(chosen: list[Message], rejected: list[Message]) -> None:
    for side, turns in zip(SIDES, (chosen, rejected), strict=True):
        if turns[-1]["role"] != "assistant":
            raise BadRow(f"{side} does not end with an assistant's turn")
        _text(turns[-1]["content"], f"{side}'s last turn")


def _messages(value: list[Any], side: str) -> list[Message]:
    for number, message in enumerate(value, start=1):
        shaped = isinstance(message, dict) and set(message) == {"role", "content"}
        if not shaped or not all(isinstance(part, str) for part in message.values()):
            raise BadRow(f"{side}: message {number} must be an object with role and content, texts")
    if not value:
        raise BadRow(f"{side} is empty")
    return value


def _transcript(text: str, side: str) -> list[Message]:
    """The turns of an hh-rlhf transcript: "\\n\\nHuman: ...\\n\\nAssistant: ..."."""
    marks = list(TURN.finditer(text))
    if not marks or marks[0].start() > 0:
        raise BadRow(f"no prompt, and {side} is neither messages nor a Human/Assistant transcript")
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return [
        Message(role=SPEAKERS[mark[1]], content=text[mark.end() : end])
        for mark, end in zip(marks, ends, strict=True)
    ]


# Rows to write


def trl_row(*, prompt: Sequence[Message], chosen: str, rejected: str) -> dict[str, Any]:
    """A preference in TRL's conversational shape, with its prompt explicit."""
    return {
        "prompt": list(prompt),
        "chosen": [Message(role="assistant", content=chosen)],
        "rejected": [Message(role="assistant", content=rejected)],
    }


def plain_row(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """A `trl_row` as plain texts; None where the prompt is more than one user's turn."""
    if len(row["prompt"]) != 1:
        return None
    return {**row, **{key: row[key][0]["content"] for key in ("prompt", *SIDES)}}
