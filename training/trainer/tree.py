"""Ranked groups as trees: a prompt once, its responses branching off it, all in one row.

    x1 x2 x3 | a1 a2 a3 | b1 b2 | x'1 x'2 | a'1 ...      tokens of a pack
     0  1  2 |  3  4  5 |  3  4 |   0   1 |   2 ...      their positions

A response attends to its own prompt and to itself (attention.py), and its positions start where
the prompt ends, so its log-probability is the one it has alone. k responses cost P + Σ R tokens,
where the k(k−1)/2 pairs as separate sequences cost (k−1)·Σ (P + R).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain, pairwise

import torch

from training.trainer.batches import Batch


@dataclass(frozen=True)
class Span:
    """Where a group lies in the row: its prompt, then its responses, each from start to end."""

    prompt: slice
    responses: tuple[slice, ...]

    @property
    def trunk(self) -> slice:
        """The prompt with the first response: one plain sequence."""
        return slice(self.prompt.start, self.responses[0].stop)

    @property
    def others(self) -> tuple[slice, ...]:
        """The other responses."""
        return self.responses[1:]

    @property
    def branches(self) -> slice:
        """All of the others; they lie side by side."""
        return slice(self.trunk.stop, self.responses[-1].stop)


class Tree:
    """A batch's groups in one row of T tokens, of which N belong to responses."""

    def __init__(self, batch: Batch, device: torch.device) -> None:
        self.batch = batch
        self.device = device
        self.spans = list(_spans(batch))

    @cached_property
    def ids(self) -> torch.Tensor:
        """(1, T) token ids."""
        rows = [chain(group.prompt, *group.responses) for group in self.batch.groups]
        return self._tensor([token for row in rows for token in row])[None]

    @cached_property
    def positions(self) -> torch.Tensor:
        """(1, T) positions: a response's go on from its prompt's."""
        rows: list[int] = []
        for group in self.batch.groups:
            start = len(group.prompt)
            rows += range(start)
            for response in group.responses:
                rows += range(start, start + len(response))
        return self._tensor(rows)[None]

    @cached_property
    def predicting(self) -> torch.Tensor:
        """(N,) the place in the row that predicts each response token.

        A response's first token is predicted by its prompt's last, any other by the one before.
        """
        rows: list[int] = []
        for span in self.spans:
            for response in span.responses:
                rows.append(span.prompt.stop - 1)
                rows += range(response.start, response.stop - 1)
        return self._tensor(rows)

    @cached_property
    def targets(self) -> torch.Tensor:
        """(N,) response tokens, response after response."""
        return self._tensor([token for b in self.batch.branches for token in b.response])

    @cached_property
    def sequences(self) -> "Sequences":
        """The row as plain sequences: what variable-length attention kernels read."""
        queries: list[int] = []
        keys: list[int] = []
        rows: list[int] = []
        for span in self.spans:
            for response in span.responses:
                first = response is span.responses[0]
                own = range(response.start, response.stop)
                seen = [*range(span.prompt.start, span.prompt.stop), *own]
                queries.append(len(seen) if first else len(own))
                keys.append(len(seen))
                rows += seen
        return Sequences(
            key_rows=self._tensor(rows),
            query_ends=self._ends(queries),
            key_ends=self._ends(keys),
            longest_query=max(queries),
            longest_key=max(keys),
        )

    def _ends(self, lengths: list[int]) -> torch.Tensor:
        return self._tensor(list(accumulate(lengths, initial=0))).int()

    def _tensor(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, device=self.device)


@dataclass(frozen=True)
class Sequences:
    """S sequences. A group's first holds prompt and response; the others only gather the prompt.

    `query_ends` and `key_ends` are (S + 1,) int32 running totals from 0. `key_rows` says which
    rows of the tree are the keys; queries are the tree's own rows in order.
    """

    key_rows: torch.Tensor
    query_ends: torch.Tensor
    key_ends: torch.Tensor
    longest_query: int
    longest_key: int


def _spans(batch: Batch) -> Iterator[Span]:
    start = 0
    for group in batch.groups:
        lengths = [len(group.prompt), *map(len, group.responses)]
        ends = list(accumulate(lengths, initial=start))
        prompt, *responses = [slice(a, b) for a, b in pairwise(ends)]
        yield Span(prompt, tuple(responses))
        start = ends[-1]
