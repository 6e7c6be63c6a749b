"""Preference rows as people write them, normalised to ranked groups.

Two shapes are read, also mixed in one file: ranked groups (a prompt, its responses, the pairs
among them with their votes) and plain rows (prompt, chosen, rejected). A plain row is one vote.
All bad rows are found before anything is written.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labeling.chat import ChatError, Message, check_prompt_messages
from training.trainer.run_dir import BadInput

SHOWN_PROBLEMS = 20
GROUP_KEYS = {"id", "prompt", "split", "responses", "pairs"}
PLAIN_KEYS = {"prompt", "chosen", "rejected"}
RESPONSE_KEYS = {"id", "text", "token_ids"}
PAIR_KEYS = ("chosen", "rejected", "votes_for", "votes_against", "votes_tied")
SPLITS = ("train", "held_out", None)


class RowError(ValueError):
    """What is wrong with one row."""


@dataclass
class PlainGroup:
    """Plain rows of one prompt that share responses, as one ranked group in the making."""

    line: int
    prompt: list[Message]
    texts: list[str] = field(default_factory=list)
    votes: list[tuple[str, str]] = field(default_factory=list)  # (chosen, rejected) texts


@dataclass
class Table:
    """The normalised rows of a file, and plain keys that nobody reads."""

    groups: list[dict[str, Any]]
    unread_keys: list[str]


def prompt_key(prompt: list[Message]) -> str:
    """A prompt's identity: equal messages, equal key."""
    return json.dumps(prompt, ensure_ascii=False, sort_keys=True)


def read_table(path: Path) -> Table:
    """Normalised ranked groups of a preference file; BadInput names all bad lines (first 20)."""
    groups: list[dict[str, Any]] = []
    plain: dict[str, list[PlainGroup]] = {}
    unread: set[str] = set()

    def take(row: dict[str, Any], line: int) -> None:
        if "responses" in row or "pairs" in row:
            groups.append(check_group(row))
        else:
            _add_plain(plain, row, line)
            unread.update(row.keys() - PLAIN_KEYS)

    problems = _each_line(path, take)
    groups += [_ranked(group) for same in plain.values() for group in same]
    problems += list(_clashes(groups))
    _raise(path, problems)
    return Table(groups=groups, unread_keys=sorted(unread))


def read_groups(path: Path) -> list[dict[str, Any]]:
    """The ranked groups of a run directory; BadInput names all bad lines (first 20)."""
    groups: list[dict[str, Any]] = []
    problems = _each_line(path, lambda row, _line: groups.append(check_group(row)))
    problems += list(_clashes(groups))
    _raise(path, problems)
    return groups


def _raise(path: Path, problems: list[str]) -> None:
    if not problems:
        return
    more = len(problems) - SHOWN_PROBLEMS
    tail = [f"and {more} more"] if more > 0 else []
    lines = "\n  ".join(problems[:SHOWN_PROBLEMS] + tail)
    raise BadInput(f"{path} was not taken, its rows must be mended first:\n  {lines}")


def _each_line(path: Path, take: Callable[[dict[str, Any], int], None]) -> list[str]:
    """Call `take` on each row and collect what is wrong, by line."""
    problems = []
    try:
        file = path.open("rb")
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from None
    with file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                take(_parse(text), line)
            except (RowError, ChatError) as error:
                problems.append(f"line {line}: {error}")
    return problems


def _parse(text: bytes) -> dict[str, Any]:
    try:
        row = json.loads(text)
        json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:  # UnicodeError is a ValueError
        raise RowError(f"not JSON ({error})") from None
    if not isinstance(row, dict):
        raise RowError("expected an object")
    return row


def check_group(row: dict[str, Any]) -> dict[str, Any]:
    """A ranked-group row with its optional keys filled in; RowError says what is wrong."""
    unknown = row.keys() - GROUP_KEYS
    if unknown:
        raise RowError(f"unknown keys {', '.join(sorted(unknown))}")
    if not isinstance(row.get("id"), str) or not row["id"]:
        raise RowError("id must be text that is not empty")
    if row.get("split") not in SPLITS:
        raise RowError(f"split must be train, held_out or null, got {row['split']!r}")
    responses = [_check_response(value) for value in _list(row, "responses")]
    pairs = [_check_pair(value, len(responses)) for value in _list(row, "pairs")]
    seen = {frozenset((pair["chosen"], pair["rejected"])) for pair in pairs}
    if len(seen) < len(pairs):
        raise RowError("two pairs name the same two responses; add their votes up in one")
    prompt = check_prompt_messages(row.get("prompt"))
    split = row.get("split")
    return {
        "id": row["id"],
        "prompt": prompt,
        "split": split,
        "responses": responses,
        "pairs": pairs,
    }


def _list(row: dict[str, Any], key: str) -> list[Any]:
    value = row.get(key)
    if not isinstance(value, list) or not value:
        raise RowError(f"{key} must be a list that is not empty")
    return value


def _check_response(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() - RESPONSE_KEYS:
        raise RowError("a response is an object with id, text and token_ids")
    if not isinstance(value.get("id"), str) or not isinstance(value.get("text"), str):
        raise RowError("a response's id and text must be text")
    ids = value.get("token_ids")
    if ids is not None and not (isinstance(ids, list) and all(_is_count(token) for token in ids)):
        raise RowError(f"response {value['id']}: token_ids must be a list of integers or null")
    return {"id": value["id"], "text": value["text"], "token_ids": ids}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_pair(value: Any, responses: int) -> dict[str, int]:
    if not isinstance(value, dict) or value.keys() != set(PAIR_KEYS):
        raise RowError(f"a pair is an object with {', '.join(PAIR_KEYS)}")
    if not all(_is_count(value[key]) for key in PAIR_KEYS):
        raise RowError("a pair's values must be integers of at least 0")
    if max(value["chosen"], value["rejected"]) >= responses:
        raise RowError(f"a pair names a response that is not among the {responses}")
    if value["chosen"] == value["rejected"]:
        raise RowError("a pair names one response twice")
    if value["votes_for"] + value["votes_against"] + value["votes_tied"] == 0:
        raise RowError("a pair has no votes")
    return {key: value[key] for key in PAIR_KEYS}


def _add_plain(plain: dict[str, list[PlainGroup]], row: dict[str, Any], line: int) -> None:
    """Put a plain row into its group, joining groups that it turns out to connect."""
    missing = PLAIN_KEYS - row.keys()
    if missing:
        raise RowError(f"missing {', '.join(sorted(missing))} (an explicit prompt is needed)")
    prompt = _plain_prompt(row["prompt"])
    chosen = _plain_response(row["chosen"], prompt, "chosen")
    rejected = _plain_response(row["rejected"], prompt, "rejected")
    same = plain.setdefault(prompt_key(prompt), [])
    group = PlainGroup(line=line, prompt=prompt)
    for other in [g for g in same if chosen in g.texts or rejected in g.texts]:
        same.remove(other)
        group.line = min(group.line, other.line)
        group.texts += other.texts
        group.votes += other.votes
    group.texts += [text for text in dict.fromkeys((chosen, rejected)) if text not in group.texts]
    group.votes.append((chosen, rejected))
    same.append(group)


def _plain_prompt(value: Any) -> list[Message]:
    return check_prompt_messages(
        [{"role": "user", "content": value}] if isinstance(value, str) else value
    )


def _plain_response(value: Any, prompt: list[Message], key: str) -> str:
    """The assistant's turn: text, one message, or a conversation that starts with the prompt."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise RowError(f"{key} must be text or a list of messages")
    turns = value[len(prompt) :] if value[: len(prompt)] == prompt else value
    if len(turns) != 1 or not isinstance(turns[0], dict) or turns[0].get("role") != "assistant":
        raise RowError(f"{key} must be one assistant message, after the prompt's or alone")
    if turns[0].keys() != {"role", "content"} or not isinstance(turns[0]["content"], str):
        raise RowError(f"{key}: the assistant's message must have a role and text content")
    return turns[0]["content"]


def _ranked(group: PlainGroup) -> dict[str, Any]:
    """A plain group as a ranked one: equal rows are votes for, reversed rows votes against."""
    texts = list(group.texts)
    votes: dict[tuple[int, int], list[int]] = {}
    for chosen, rejected in group.votes:
        best = texts.index(chosen)
        worst = texts.index(rejected)
        if best == worst:  # kept, so that the data report counts it among the identical
            worst = _twin(texts, best)
        if (worst, best) in votes:
            votes[worst, best][1] += 1
        else:
            votes.setdefault((best, worst), [0, 0])[0] += 1
    name = f"row-{group.line}"
    responses = [
        {"id": f"{name}-response-{index}", "text": text, "token_ids": None}
        for index, text in enumerate(texts)
    ]
    pairs = [
        dict(zip(PAIR_KEYS, (*pair, *counts, 0), strict=True)) for pair, counts in votes.items()
    ]
    return {
        "id": name,
        "prompt": group.prompt,
        "split": None,
        "responses": responses,
        "pairs": pairs,
    }


def _twin(texts: list[str], index: int) -> int:
    """The place of a second response with the same text, added when there is none yet."""
    twins = [place for place, text in enumerate(texts) if text == texts[index] and place > index]
    if not twins:
        texts.append(texts[index])
    return twins[0] if twins else len(texts) - 1


def _clashes(groups: list[dict[str, Any]]) -> Iterator[str]:
    """Rules across rows: ids are unique, and no prompt is on both sides of the split."""
    ids: set[str] = set()
    splits: dict[str, str] = {}
    for group in groups:
        if group["id"] in ids:
            yield f"row {group['id']}: its id is used by an earlier row"
        ids.add(group["id"])
        split = group["split"]
        if split and splits.setdefault(prompt_key(group["prompt"]), split) != split:
            yield f"row {group['id']}: its prompt is on the other side of the split elsewhere"
