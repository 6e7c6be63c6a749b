"""Groups as batches: which groups make a step, and their pairs as indices into tensors."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

from training.trainer.data import Group, Pair
from training.trainer.objectives import Outcome


class Branch(NamedTuple):
    """One distinct response after its prompt, as token ids."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """Groups laid flat: n distinct responses and P pairs that point into them."""

    groups: tuple[Group, ...]

    @cached_property
    def branches(self) -> list[Branch]:
        """The n distinct responses with their prompts."""
        return [Branch(g.prompt, response) for g in self.groups for response in g.responses]

    @cached_property
    def responses(self) -> list[tuple[int, ...]]:
        """Token ids of the n distinct responses."""
        return [response for group in self.groups for response in group.responses]

    @cached_property
    def pairs(self) -> list[Pair]:
        """The P pairs; their indices are within their group, `chosen` is within the batch."""
        return [pair for group in self.groups for pair in group.pairs]

    @cached_property
    def chosen(self) -> torch.Tensor:
        """(P,) index of each pair's chosen response among the branches."""
        return self._places([pair.chosen for pair in self.pairs])

    @cached_property
    def rejected(self) -> torch.Tensor:
        """(P,) index of each pair's rejected response among the branches."""
        return self._places([pair.rejected for pair in self.pairs])

    @cached_property
    def labels(self) -> torch.Tensor:
        """(P,) probability that chosen is better, where a vote decided."""
        return torch.tensor([pair.label for pair in self.pairs])

    @cached_property
    def outcome(self) -> Outcome:
        """(P,) shares of the votes for chosen, for rejected, and for neither."""
        tied = torch.tensor([pair.tied for pair in self.pairs])
        return Outcome((1 - tied) * self.labels, (1 - tied) * (1 - self.labels), tied)

    @cached_property
    def rows(self) -> torch.Tensor:
        """(n,) place of each branch among all responses of the round."""
        rows = [range(g.offset, g.offset + len(g.responses)) for g in self.groups]
        return torch.tensor([row for span in rows for row in span])

    @cached_property
    def lengths(self) -> torch.Tensor:
        """(n,) response tokens, the end token included."""
        return torch.tensor([float(len(branch.response)) for branch in self.branches])

    @property
    def tokens(self) -> int:
        """Tokens in all groups, each prompt counted once."""
        return sum(group.tokens for group in self.groups)

    def _places(self, within: list[int]) -> torch.Tensor:
        starts: list[int] = []
        start = 0
        for group in self.groups:
            starts += [start] * len(group.pairs)
            start += len(group.responses)
        return torch.tensor(starts) + torch.tensor(within)


def chunks(groups: Sequence[Group], size: int) -> list[Batch]:
    """Batches of `size` groups in order; the last may be smaller."""
    return [Batch(tuple(groups[at : at + size])) for at in range(0, len(groups), size)]


def epoch_batches(groups: Sequence[Group], *, size: int, seed: int, epoch: int) -> list[Batch]:
    """The optimizer batches of an epoch: a shuffle that only seed and epoch decide."""
    shuffled = list(groups)
    random.Random(f"{seed} {epoch}").shuffle(shuffled)  # noqa: S311 (a shuffle, not a secret)
    return chunks(shuffled, size)


def steps_of(groups: Sequence[Group], *, size: int, epochs: int) -> int:
    """Optimizer steps of the whole round."""
    return epochs * math.ceil(len(groups) / size)


def all_batches(
    groups: Sequence[Group], *, size: int, seed: int, epochs: int, start: int
) -> Iterator[tuple[int, Batch]]:
    """(step, batch) from step `start` + 1 on; steps count from 1 over all epochs."""
    per_epoch = math.ceil(len(groups) / size)
    for epoch in range(start // per_epoch, epochs):
        batches = epoch_batches(groups, size=size, seed=seed, epoch=epoch)
        for place, batch in enumerate(batches):
            step = epoch * per_epoch + place + 1
            if step > start:
                yield step, batch


def packs(
    batch: Batch, tokens: int, *, cost: Callable[[Group], int] = lambda group: group.tokens
) -> list[Batch]:
    """Whole groups, in order, up to so many tokens; a larger group is a pack of its own.

    The pairs of a batch are the same however it is packed, and a group's share one pack.
    """
    parts: list[list[Group]] = [[]]
    held = 0
    for group in batch.groups:
        if parts[-1] and held + cost(group) > tokens:
            parts.append([])
            held = 0
        parts[-1].append(group)
        held += cost(group)
    return [Batch(tuple(part)) for part in parts]
