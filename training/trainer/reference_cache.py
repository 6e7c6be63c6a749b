"""Reference log-probabilities on disk, by content, for all rounds that are given the same file.

One row a response: the SHA-256 of everything that decides the number, and the number. A changed
weight, dtype, token, library or line of the scoring code is another key, so nothing ever has to
be invalidated; what a value answers for cannot change under it.
"""

import hashlib
import json
import math
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch

from training.trainer import attention, head, logps, model, tree
from training.trainer.config import Spec
from training.trainer.data import Group
from training.trainer.model import Policy
from training.trainer.run_dir import BadInput, library_versions

SCORING_CODE = (attention, head, logps, model, tree)
TABLE = "CREATE TABLE IF NOT EXISTS logps (key BLOB PRIMARY KEY, logp REAL) WITHOUT ROWID"
WAIT_S = 60.0  # for another round that writes to the same file
LOOKUP = 500  # keys in one query


def scoring_identity(policy: Policy, spec: Spec, digest: str) -> dict[str, Any]:
    """All that decides a logp besides the tokens. `digest` is of the weights' files.

    bfloat16 is two things: weights that are stored so, and fp32 ones that are multiplied so.
    """
    code = b"".join(Path(str(module.__file__)).read_bytes() for module in SCORING_CODE)
    return {
        "weights": digest,
        "dtype": policy.dtype,
        "stored": str(policy.head_weight.dtype),
        "compiled": spec.compile,
        "device": policy.device.type,
        "shares_prompts": policy.shares_prompts,
        "code": hashlib.sha256(code).hexdigest(),
        "versions": library_versions(),
    }


class LogpCache:
    """The file at `path`; None is a cache that holds nothing and keeps nothing."""

    def __init__(self, path: str | None, identity: dict[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.prefix = json.dumps(identity, sort_keys=True).encode()

    def read(self, groups: Sequence[Group]) -> dict[int, float]:
        """Known logps by the response's place among all responses of the round."""
        if self.path is None or not self.path.exists():
            return {}
        keys: dict[bytes, list[int]] = {}  # several places where a prompt and response recur
        for group, i, response in _responses(groups):
            keys.setdefault(self._key(group, response), []).append(group.offset + i)
        known: dict[int, float] = {}
        with self._named_errors(), self._open() as connection:
            wanted = list(keys)
            for at in range(0, len(wanted), LOOKUP):
                part = wanted[at : at + LOOKUP]
                marks = ",".join("?" * len(part))
                query = f"SELECT key, logp FROM logps WHERE key IN ({marks})"  # noqa: S608 (marks)
                for key, logp in connection.execute(query, part):
                    known |= dict.fromkeys(keys[key], logp)
        return known

    def write(self, groups: Sequence[Group], logps: torch.Tensor) -> None:
        """Keep the logps (of all responses of the round) of these groups' responses."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        rows = (
            (self._key(group, r), float(logps[group.offset + i]))
            for group, i, r in _responses(groups)
        )
        with self._open() as connection, connection:
            connection.executemany("INSERT OR REPLACE INTO logps VALUES (?, ?)", rows)

    def _key(self, group: Group, response: tuple[int, ...]) -> bytes:
        tokens = json.dumps([group.prompt, response]).encode()
        return hashlib.sha256(self.prefix + tokens).digest()

    def _open(self) -> "closing[sqlite3.Connection]":
        connection = sqlite3.connect(str(self.path), timeout=WAIT_S)
        connection.execute(TABLE)
        return closing(connection)

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise BadInput(
                f"the cache of reference log-probabilities {self.path} cannot be used ({error}); "
                "it may be deleted at any time, the next round fills it again"
            ) from error


def _responses(groups: Iterable[Group]) -> Iterator[tuple[Group, int, tuple[int, ...]]]:
    for group in groups:
        for index, response in enumerate(group.responses):
            yield group, index, response


def recheck_share(groups: Sequence[Group], share: float) -> list[Group]:
    """`share` of the groups and at least one, evenly spread: those that are scored again."""
    count = min(len(groups), max(1, math.ceil(share * len(groups))))
    return [groups[at * len(groups) // count] for at in range(count)] if groups else []
