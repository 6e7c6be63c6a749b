"""Ranked groups as token ids, split into train and held out, and the report of what was left out.

A pair stays one record from here to the loss. Each distinct response of a group is there once,
however many pairs it is in.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from labeling.chat import (
    ChatError,
    Message,
    end_token_ids,
    prompt_ids,
    response_ids,
    response_text,
)
from training.trainer.config import Spec
from training.trainer.objectives import fitted_nu, soft_label, tied_share
from training.trainer.report import Report, summary
from training.trainer.rows import prompt_key
from training.trainer.run_dir import BadInput
from training.trainer.shorten import shorter_prompts

Ids = tuple[int, ...]
Encoded = dict[int, tuple[Ids, str]]  # by place in the row: a response's ids, whence they come


@dataclass(frozen=True)
class Pair:
    """Two responses of a group, by index. `chosen` has at least half of the decided votes."""

    id: str
    chosen: int
    rejected: int
    label: float  # probability that chosen is better, where a vote decided, in [0.5, 1]
    tied: float = 0.0  # share of the votes that are ties; 0 without a model of ties


@dataclass(frozen=True)
class Group:
    """A prompt with its distinct responses (token ids, end token included) and their pairs."""

    id: str
    prompt: Ids
    responses: tuple[Ids, ...]
    pairs: tuple[Pair, ...]
    offset: int  # place of the first response among all responses of the round

    @property
    def tokens(self) -> int:
        """Tokens of the tree: the prompt once, and each response."""
        return len(self.prompt) + sum(map(len, self.responses))


@dataclass(frozen=True)
class Dataset:
    """The round's groups. `responses` counts the distinct responses of both sides."""

    train: list[Group]
    held_out: list[Group]
    responses: int
    report: dict[str, Any]
    tie_nu: float  # ν of Rao and Kupper, 1 without a model of ties


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
    decided = any(pair.tied < 1 for group in train for pair in group.pairs)
    nu = _tie_nu(train, spec) if decided else None
    told = summary(report, train, held_out, tie_nu=nu)
    if not train:
        raise BadInput("no pair is left to train on", data_report=told)
    if not decided:
        raise BadInput("all votes to train on are ties: they prefer nothing", data_report=told)
    return Dataset(train, held_out, offset, told, 1.0 if nu is None else nu)


def _tie_nu(train: list[Group], spec: Spec) -> float | None:
    """The ν to train with, fitted where the spec leaves it open; None without a model of ties."""
    if spec.ties == "drop":
        return None
    return spec.tie_nu or fitted_nu([pair.tied for group in train for pair in group.pairs])


def _encode_group(
    tokenizer: Any, row: dict[str, Any], spec: Spec, offset: int, report: Report
) -> Group | None:
    """A row's kept pairs over its distinct responses; None when no pair is kept."""
    labelled = _labelled_pairs(row, spec, report)
    try:
        prompt = tuple(prompt_ids(tokenizer, row["prompt"])) if labelled else ()
        encoded = _encoded(tokenizer, row, labelled)
    except ChatError as error:
        report.template_errors.append(f"{row['id']}: {error}")
        for pair in labelled:
            report.drop("template", pair.id)
        return None
    pairs = [pair for pair in labelled if _differ(pair, encoded, report)]
    prompts = _histories(tokenizer, row["prompt"], prompt, _longest(pairs, encoded), spec)
    room = spec.max_length - min(map(len, prompts))
    kept = [pair for pair in pairs if _fits(pair, encoded, room, report)]
    if not kept:
        return None
    budget = spec.max_length - _longest(kept, encoded)
    prompt = next(history for history in prompts if len(history) <= budget)
    if prompt is not prompts[0]:
        report.shortened.append(row["id"])
    return _distinct(row["id"], prompt, kept, encoded, offset, report)


def _encoded(tokenizer: Any, row: dict[str, Any], pairs: list[Pair]) -> Encoded:
    """The ids of the responses that the pairs name."""
    used = sorted({index for pair in pairs for index in (pair.chosen, pair.rejected)})
    return {i: encode_response(tokenizer, row["prompt"], **row["responses"][i]) for i in used}


def _longest(pairs: list[Pair], encoded: Encoded) -> int:
    """Tokens of the longest response of the pairs, 0 without any."""
    ends = (index for pair in pairs for index in (pair.chosen, pair.rejected))
    return max((len(encoded[index][0]) for index in ends), default=0)


def _histories(
    tokenizer: Any, messages: list[Message], prompt: Ids, longest: int, spec: Spec
) -> list[Ids]:
    """The prompt and, where it must be and may be shortened, ever shorter ones."""
    if len(prompt) + longest <= spec.max_length or spec.long_prompts == "drop":
        return [prompt]
    return [prompt, *shorter_prompts(tokenizer, messages)]


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
    """The pair with the share of its votes; None where the votes say nothing."""
    counts = (votes["votes_for"], votes["votes_against"])
    best, worst = votes["chosen"], votes["rejected"]
    label = soft_label(*counts, labels=spec.labels)
    tied = 0.0
    if spec.ties == "rao_kupper":
        tied = tied_share(*counts, votes["votes_tied"], labels=spec.labels)
        label = 0.5 if tied == 1 else label
    if label is None:
        return None
    if label < 0.5:
        best, worst, label = worst, best, 1 - label
    return Pair(_pair_id(row, best, worst), best, worst, label, tied)


def _pair_id(row: dict[str, Any], best: int, worst: int) -> str:
    return f"{row['id']}: {row['responses'][best]['id']} > {row['responses'][worst]['id']}"


def encode_response(
    tokenizer: Any, messages: list[Message], *, id: str, text: str, token_ids: list[int] | None
) -> tuple[Ids, str]:
    """A response's ids and where they come from: "sampled", "cut" or "encoded".

    The ids that were sampled are the ones to train on, as long as they spell the text: encoding
    the text again may merge it into other tokens. A "cut" response hit its length limit and has
    no end token; none is added, since that would teach the policy to stop in mid-sentence. A
    response that a stop text ended is encoded: its ids spell the stop text, which is not its own.
    """
    ends = end_token_ids(tokenizer)
    if token_ids and max(token_ids) < len(tokenizer):
        ended = token_ids[-1] in ends
        body = token_ids[:-1] if ended else token_ids
        spelled = not set(body) & set(ends)
        if spelled and response_text(tokenizer, body) == text:
            return tuple(token_ids), "sampled" if ended else "cut"
    return tuple(response_ids(tokenizer, messages, text)), "encoded"


def _differ(pair: Pair, encoded: Encoded, report: Report) -> bool:
    """Texts may be equal, or nothing, once they are ids: such pairs are dropped and counted."""
    ends = (encoded[pair.chosen], encoded[pair.rejected])
    if any(len(ids) == 1 and source != "cut" for ids, source in ends):  # the end token alone
        report.drop("empty", pair.id)
    elif ends[0][0] == ends[1][0]:
        report.drop("identical", pair.id)
    else:
        return True
    return False


def _fits(pair: Pair, encoded: Encoded, room: int, report: Report) -> bool:
    """No response is ever cut to fit: a pair with one too long is dropped and counted."""
    if _longest([pair], encoded) <= room:
        return True
    report.drop("too_long", pair.id)
    return False


def _distinct(
    name: str, prompt: Ids, pairs: list[Pair], encoded: Encoded, offset: int, report: Report
) -> Group:
    """The group over its distinct responses: equal token ids are one response."""
    used = sorted({index for pair in pairs for index in (pair.chosen, pair.rejected)})
    place: dict[Ids, int] = {}
    for index in used:
        ids, source = encoded[index]
        if ids not in place:
            report.sources[source] += 1
        place.setdefault(ids, len(place))
    moved = tuple(
        replace(p, chosen=place[encoded[p.chosen][0]], rejected=place[encoded[p.rejected][0]])
        for p in pairs
    )
    return Group(name, prompt, tuple(place), moved, offset)


def pair_ids(groups: Iterable[Group]) -> list[str]:
    """Names of all pairs, for messages."""
    return [pair.id for group in groups for pair in group.pairs]
