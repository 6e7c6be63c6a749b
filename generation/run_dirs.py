"""A batch's run directory, from this side: what it asks, and what the sampler wrote.

A batch may hold tens of thousands of responses with all their token ids, so neither side is ever
in memory as a whole.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from django.conf import settings

from generation.lineage import base_of
from generation.models import Batch
from generation.pairing import NEEDS_REWARDS
from generation.samplers.protocol import SCHEMA
from generation.selecting import Selection, select_prompts
from generation.sharing import share_out
from jobs.run_dir import RunDirError, read_json, read_jsonl
from labeling.lineage import initial_policy
from labeling.models import Policy
from labeling.policy_files import is_small

CHUNK = 100  # prompts taken in together: a fifth of a second in which SQLite lets nobody write
BATCH_PROMPTS = 32  # that the transformers sampler takes at once

RESPONSE_KEYS = {
    "prompt_id",
    "index",
    "policy",
    "text",
    "prompt_token_ids",
    "token_ids",
    "logp",
    "finish_reason",
    "seed",
}

Row = dict[str, Any]


def prompt_rows(batch: Batch) -> Iterator[Row]:
    """prompts.jsonl: each prompt, who writes which of its responses, and what it wants itself."""
    shares = {share.policy: share.weight for share in batch.shares.select_related("policy")}
    ids = {str(policy.pk): weight for policy, weight in shares.items()}
    asked = select_prompts(
        batch.project,
        Selection.from_json(batch.selection),
        leading=batch.leading,
        policies=list(shares),
    )
    for turn, prompt in enumerate(asked.only("messages", "metadata").iterator()):
        writers = share_out(ids, k=batch.k, turn=turn, seed=batch.seed)
        row = {"id": str(prompt.pk), "messages": prompt.messages, "policies": writers}
        yield row | _own_wishes(prompt.metadata)


def _own_wishes(metadata: Row) -> Row:
    """A prompt's own sampling and system message.

    The sampler checks the values. What has the wrong shape goes where it refuses it by name, so
    that this prompt fails alone.
    """
    draw, system = metadata.get("sampling") or {}, metadata.get("system") or ""
    if not isinstance(draw, dict):
        draw = {"sampling": draw}
    if not isinstance(system, str):
        draw, system = draw | {"system": system}, ""
    wishes = {"draw": draw, "system": system}
    return {name: wish for name, wish in wishes.items() if wish}


def spec_of(batch: Batch) -> Row:
    """spec.json, as `SamplerSpec` has it."""
    scored = _scored_under(batch)
    writers = [share.policy for share in batch.shares.select_related("policy")]
    policies = list(dict.fromkeys([*writers, *scored]))
    small = all(is_small(Path(policy.model_path)) for policy in policies)
    return {
        "schema": SCHEMA,
        "sampler": batch.sampler,
        "policies": [_policy_spec(policy) for policy in policies],
        "draw": {
            "temperature": batch.temperature,
            "top_p": batch.top_p,
            "max_new_tokens": batch.max_new_tokens,
            "stop": batch.stop,
        },
        "seed": batch.seed,
        "system": batch.system or None,
        "score_under": [str(policy.pk) for policy in scored],
        "server": _server_spec() if batch.sampler == "server" else None,
        "batch_prompts": BATCH_PROMPTS,
        "dtype": "float32" if small else "bfloat16",
    }


def _scored_under(batch: Batch) -> list[Policy]:
    """The two policies whose difference is a reward; none where nobody asks or they are one."""
    if batch.pairing not in NEEDS_REWARDS:
        return []
    reference = initial_policy(batch.leading)
    return [] if reference == batch.leading else [batch.leading, reference]


def _policy_spec(policy: Policy) -> Row:
    base = base_of(policy)
    return {
        "id": str(policy.pk),
        "model": policy.model_path,
        "adapter": policy.adapter_path or None,
        "digest": policy.digest,
        "base_digest": base.digest if base else None,
    }


def _server_spec() -> Row:
    return {
        "urls": settings.SERVER_URLS,
        "key_file": settings.SERVER_KEY_FILE or None,
        "unproven": settings.SERVER_UNPROVEN,
    }


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a prompt was asked, and the rows of its responses in the order of their indexes."""

    prompt: int
    asked: Row
    rows: list[Row]


class Output:
    """What the sampler left in a run directory that is complete; RunDirError where it is not sound.

    It is read through once, and after that only the places of its rows are kept.
    """

    def __init__(self, run_dir: Path) -> None:
        self._prompts = run_dir / "prompts.jsonl"
        self._responses = run_dir / "responses.jsonl"
        manifest = read_json(run_dir / "manifest.json")
        self.engine: str = manifest["engine"] or ""
        self.digests: dict[str, str] = manifest["policies"]
        self.reward_policies: list[str] = read_json(run_dir / "spec.json")["score_under"]
        failures = read_jsonl(run_dir / "failures.jsonl")
        self.failed = len({row["prompt_id"] for row in failures})  # in whole or in part
        self._scores = {
            (row["prompt_id"], row["index"], row["policy"]): row["logp"]
            for row in read_jsonl(run_dir / "scores.jsonl")
        }
        self._places = self._find_places()
        self.answered = len(self._places)

    def chunks(self, *, after: int) -> Iterator[list[Written]]:
        """The prompts that were asked, but for the first `after`, with what was written for them.

        In their order, some at a time.
        """
        asked = islice(read_jsonl(self._prompts, torn=False), after, None)
        with self._responses.open("rb") as file:
            while chunk := list(islice(asked, CHUNK)):
                yield [self._written(row, file) for row in chunk]

    def _find_places(self) -> dict[str, list[int]]:
        """Where each prompt's rows begin: policies and servers write them in any order."""
        known = {row["id"] for row in read_jsonl(self._prompts, torn=False)}
        places = defaultdict(list)
        position = 0
        with self._responses.open("rb") as file:
            for line in file:
                row = _response_row(line)
                if (
                    row is None
                    or row["prompt_id"] not in known
                    or row["policy"] not in self.digests
                ):
                    raise RunDirError(
                        f"{self._responses} holds what is no response of this batch, at byte "
                        f"{position}. Nothing was taken in; start another batch"
                    )
                places[row["prompt_id"]].append(position)
                position += len(line)
        return places

    def _written(self, asked: Row, file: BinaryIO) -> Written:
        rows = []
        for place in self._places.get(asked["id"], []):
            file.seek(place)
            rows.append(json.loads(file.readline()))
        rows.sort(key=lambda row: int(row["index"]))
        return Written(prompt=int(asked["id"]), asked=asked, rows=rows)

    def reward(self, row: Row) -> float | None:
        """A response's log-probability under the leading policy minus under the reference."""
        if not self.reward_policies:
            return None
        leading, reference = (self._logp(row, policy) for policy in self.reward_policies)
        return None if leading is None or reference is None else leading - reference

    def _logp(self, row: Row, policy: str) -> float | None:
        if row["policy"] == policy:
            own: float | None = row["logp"]
            return own
        return self._scores.get((row["prompt_id"], row["index"], policy))


def _response_row(line: bytes) -> Row | None:
    """A row of responses.jsonl; None where the line is no such row."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and row.keys() >= RESPONSE_KEYS else None
