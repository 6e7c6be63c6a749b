"""Ranked groups as token ids, split into train and held out, and the report of what was left out.

A pair stays one record from here to the loss. Each distinct response of a group is there once,
however many pairs it is in.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from labeling.chat import ChatError, Message, end_token_ids, prompt_ids, response_ids
from training.trainer.config import Spec
from training.trainer.objectives import soft_label
from training.trainer.rows import prompt_key
from training.trainer.run_dir import BadInput

SHOWN_PAIRS = 5  # ids of dropped pairs in the report, for each reason


@dataclass(frozen=True)
class Pair:
    """Two responses of a group, by index. `chosen` has at least half of the decided votes."""

    id: str
    chosen: int
    rejected: int
    label: float  # probability that chosen is better, in [0.5, 1]


@dataclass(frozen=True)
class Group:
    """A prompt with its distinct responses (token ids, end token included) and their pairs."""

    id: str
    prompt: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]
    pairs: tuple[Pair, ...]
    offset: int  # place of the first response among all responses of the round

    @property
    def tokens(self) -> int:
        """Tokens that a forward pass over every response costs."""
        return sum(len(self.prompt) + len(response) for response in self.responses)


@dataclass
class Report:
    """What became of every pair: kept, or dropped for a reason that is counted."""

    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    sources: Counter[str] = field(default_factory=Counter)  # of the kept responses' token ids
    template_errors: list[str] = field(default_factory=list)

    def drop(self, reason: str, pair: str) -> None:
        """Count a pair out and keep the first few ids for each reason."""
        self.dropped[reason] += 1
        shown = self.examples.setdefault(reason, [])
        if len(shown) < SHOWN_PAIRS:
            shown.append(pair)


@dataclass(frozen=True)
class Dataset:
    """The round's groups. `responses` counts the distinct responses of both sides."""

    train: list[Group]
    held_out: list[Group]
    responses: int
    report: dict[str, Any]


def is_held_out(prompt: list[Message], share: float) -> bool:
    """A stable hash of the prompt decides, so a prompt is on the same side in every round."""
    digest = hashlib.sha256(prompt_key(prompt).encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64 < share


def prepare(tokenizer: Any, rows: list[dict[str, Any]], spec: Spec) -> Dataset:
    """Token ids, labels and the split of all rows; BadInput when nothing is left to train on."""
    report = Report()
    sides = {prompt_key(row["prompt"]): row["split"] for row in rows if row["split"]}
    train: list[Group] = []
    held_out: list[Group] = []
    offset = 0
    for row in rows:
        group = _encode_group(tokenizer, row, spec, offset, report)
        if group is None:
            continue
        offset += len(group.responses)
        side = sides.get(prompt_key(row["prompt"]))
        out = is_held_out(row["prompt"], spec.held_out_share) if side is None else side != "train"
        (held_out if out else train).append(group)
    dataset = Dataset(train, held_out, offset, _summary(report, train, held_out))
    if not train:
        raise BadInput("no pair is left to train on", data_report=dataset.report)
    return dataset


def _encode_group(
    tokenizer: Any, row: dict[str, Any], spec: Spec, offset: int, report: Report
) -> Group | None:
    """A row's kept pairs over its distinct responses; None when no pair is kept."""
    labelled = _labelled_pairs(row, spec, report)
    try:
        prompt = tuple(prompt_ids(tokenizer, row["prompt"])) if labelled else ()
    except ChatError as error:
        report.template_errors.append(f"{row['id']}: {error}")
        for pair in labelled:
            report.drop("template", pair.id)
        return None
    encoded = {
        index: encode_response(tokenizer, row["prompt"], **row["responses"][index])
        for index in sorted({index for pair in labelled for index in (pair.chosen, pair.rejected)})
    }
    kept = [pair for pair in labelled if _fits(pair, prompt, encoded, spec.max_length, report)]
    if not kept:
        return None
    return _distinct(row["id"], prompt, kept, encoded, offset, report)


def _labelled_pairs(row: dict[str, Any], spec: Spec, report: Report) -> list[Pair]:
    """Pairs that the votes decide, chosen first; ties and blank responses are counted out."""
    pairs = []
    for votes in row["pairs"]:
        pair = _label(row, votes, spec)
        texts = [row["responses"][votes[side]]["text"] for side in ("chosen", "rejected")]
        if pair is None:
            report.drop("tied", _pair_id(row, votes["chosen"], votes["rejected"]))
        elif not all(text.strip() for text in texts):
            report.drop("empty", pair.id)
        elif texts[0] == texts[1]:
            report.drop("identical", pair.id)
        else:
            pairs.append(pair)
    return pairs


def _label(row: dict[str, Any], votes: dict[str, int], spec: Spec) -> Pair | None:
    label = soft_label(votes["votes_for"], votes["votes_against"], labels=spec.labels)
    if label is None:
        return None
    best, worst = votes["chosen"], votes["rejected"]
    if label < 0.5:
        best, worst, label = worst, best, 1 - label
    return Pair(_pair_id(row, best, worst), best, worst, label)


def _pair_id(row: dict[str, Any], best: int, worst: int) -> str:
    return f"{row['id']}: {row['responses'][best]['id']} > {row['responses'][worst]['id']}"


def encode_response(
    tokenizer: Any, messages: list[Message], *, id: str, text: str, token_ids: list[int] | None
) -> tuple[tuple[int, ...], str]:
    """A response's ids and where they come from: "sampled", "cut" or "encoded".

    The ids that were sampled are the ones to train on, as long as they spell the text: encoding
    the text again may merge it into other tokens. A "cut" response hit its length limit and has
    no end token; none is added, since that would teach the policy to stop in mid-sentence.
    """
    ends = end_token_ids(tokenizer)
    if token_ids and max(token_ids) < len(tokenizer):
        ended = token_ids[-1] in ends
        body = token_ids[:-1] if ended else token_ids
        spelled = not set(body) & set(ends)
        if spelled and tokenizer.decode(body, skip_special_tokens=True) == text:
            return tuple(token_ids), "sampled" if ended else "cut"
    return tuple(response_ids(tokenizer, messages, text)), "encoded"


Encoded = dict[int, tuple[tuple[int, ...], str]]


def _fits(
    pair: Pair, prompt: tuple[int, ...], encoded: Encoded, max_length: int, report: Report
) -> bool:
    """Nothing is ever cut to fit: a pair that is too long is dropped and counted."""
    chosen, rejected = encoded[pair.chosen][0], encoded[pair.rejected][0]
    if len(prompt) + max(len(chosen), len(rejected)) > max_length:
        report.drop("too_long", pair.id)
    elif chosen == rejected:
        report.drop("identical", pair.id)
    else:
        return True
    return False


def _distinct(
    name: str,
    prompt: tuple[int, ...],
    pairs: list[Pair],
    encoded: Encoded,
    offset: int,
    report: Report,
) -> Group:
    """The group over its distinct responses: equal token ids are one response."""
    used = sorted({index for pair in pairs for index in (pair.chosen, pair.rejected)})
    place: dict[tuple[int, ...], int] = {}
    for index in used:
        ids, source = encoded[index]
        if ids not in place:
            report.sources[source] += 1
        place.setdefault(ids, len(place))
    moved = tuple(
        Pair(p.id, place[encoded[p.chosen][0]], place[encoded[p.rejected][0]], p.label)
        for p in pairs
    )
    return Group(name, prompt, tuple(place), moved, offset)


def _summary(report: Report, train: list[Group], held_out: list[Group]) -> dict[str, Any]:
    sides = {"train": train, "held_out": held_out}
    groups = [*train, *held_out]
    return {
        "groups": {name: len(side) for name, side in sides.items()},
        "pairs": {name: sum(len(g.pairs) for g in side) for name, side in sides.items()},
        "responses": {name: sum(len(g.responses) for g in side) for name, side in sides.items()},
        "evenly_split": sum(pair.label == 0.5 for group in groups for pair in group.pairs),
        "dropped": dict(report.dropped),
        "dropped_examples": report.examples,
        "token_ids": dict(report.sources),
        "longest": max((_longest(group) for group in groups), default=0),
        "template_errors": report.template_errors[:SHOWN_PAIRS],
    }


def _longest(group: Group) -> int:
    return len(group.prompt) + max(map(len, group.responses))


def pair_ids(groups: Iterable[Group]) -> list[str]:
    """Names of all pairs, for messages."""
    return [pair.id for group in groups for pair in group.pairs]
