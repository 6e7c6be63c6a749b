"""The reference's log-probabilities, once for each response, before the first step.

They are numbers in the checkpoint from then on: a resumed round never asks a model again, least
of all the one it has trained.
"""

import gc
import math
import sqlite3
import time
from dataclasses import dataclass
from typing import Any

import torch

from jobs.run_dir import StopRequest, append_event
from training.trainer.batches import Batch, chunks, epoch_batches
from training.trainer.config import Spec
from training.trainer.data import Dataset, Group
from training.trainer.evaluate import of_pairs
from training.trainer.logps import batch_logps, passes, plain_logps
from training.trainer.model import (
    Policy,
    check_fits,
    check_same_vocabulary,
    load_reference,
    source_digest,
)
from training.trainer.objectives import Objective, pair_losses
from training.trainer.parallel import added_up, anyone, from_leader, leads, shared, world
from training.trainer.reference_cache import LogpCache, recheck_share, scoring_identity
from training.trainer.run_dir import Refused, RoundFiles, Stopped

RECHECKED = 0.01  # share of the groups found in the cache that are scored again
# How far step 0's loss may be from what it must be, relative to the larger of it and 1, where the
# step repeats the reference's own passes.
EXACT = 1e-5
# How far two ways to the same logp may differ: relative to it, and as noise in nats, which a loss
# multiplies by its slope.
LOGP_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05}
LOGP_NOISE = {"float32": 1e-3, "bfloat16": 0.5}
SIGN_OF_LIFE_S = 60.0  # between events, and between writes to the cache, in a long pass


@dataclass(frozen=True)
class Reference:
    """log π_ref(y|x) of all responses of the round, and the loss that step 0 must show."""

    logps: torch.Tensor  # (responses,) fp32, on the CPU
    first_loss: float
    tolerance: float


def first_batches(dataset: Dataset, spec: Spec) -> list[Batch]:
    """The batches of the first epoch."""
    return epoch_batches(dataset.train, size=spec.batch_groups, seed=spec.seed, epoch=0)


def held_out_batches(dataset: Dataset, spec: Spec) -> list[Batch]:
    """The held-out groups in their order."""
    return chunks(dataset.held_out, spec.batch_groups)


@dataclass(frozen=True)
class ReferencePass:
    """What scoring the reference needs to know of its round."""

    files: RoundFiles
    spec: Spec
    dataset: Dataset
    objective: Objective
    stop: StopRequest

    def of_start(self, policy: Policy) -> Reference:
        """For a policy that is its own reference: its logps before any update.

        Scored in the first epoch's own batches, so that in any dtype the first step's forward
        passes repeat these bit for bit, and DPO's loss is ln 2. What comes from the cache was
        scored among other batches.
        """
        logps, cached = self.score_all(policy)
        first = first_batches(self.dataset, self.spec)[0]
        check_logps(policy, first, logps)
        return self.expected(first, logps[first.rows], logps[first.rows], logps, exact=not cached)

    def of_frozen(self, tokenizer: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Logps of a reference that is loaded for this and freed: of all responses, and plain
        ones of the first batch."""
        check_same_vocabulary(tokenizer, self.spec.reference)
        frozen = load_reference(self.spec)
        check_fits(frozen, tokenizer, self.dataset.report["longest"])
        logps, _cached = self.score_all(frozen)
        plain = check_logps(frozen, first_batches(self.dataset, self.spec)[0], logps)
        del frozen
        gc.collect()
        torch.cuda.empty_cache()
        return logps, plain

    def of_other(self, policy: Policy, logps: torch.Tensor, plain: torch.Tensor) -> Reference:
        """For a reference that is another policy: loss 0 is the one of two plain forward passes."""
        batch = first_batches(self.dataset, self.spec)[0]
        with torch.no_grad():
            start = plain_logps(policy, batch.branches).cpu()
        return self.expected(batch, start, plain, logps, exact=False)

    def expected(
        self,
        batch: Batch,
        policy: torch.Tensor,
        reference: torch.Tensor,
        logps: torch.Tensor,
        *,
        exact: bool,
    ) -> Reference:
        """What step 0's loss must be, by a batch's logps (n,) under policy and reference.

        Unless `exact`, it may be off by what noise in the logps makes of it: Σ |∂L/∂logp|·noise.
        """
        leaves = policy.clone().requires_grad_()
        scores = pair_losses(
            self.objective,
            of_pairs(leaves, batch),
            of_pairs(reference, batch),
            of_pairs(batch.lengths, batch),
            batch.outcome,
        )
        loss = scores.loss.double().mean()
        (slopes,) = torch.autograd.grad(loss, leaves)
        noise = 0.0 if exact else LOGP_NOISE[self.spec.dtype] * float(slopes.abs().sum())
        tolerance = noise + EXACT * max(1.0, abs(float(loss.detach())))
        return Reference(logps, float(loss.detach()), tolerance)

    def score_all(self, policy: Policy) -> tuple[torch.Tensor, bool]:
        """(responses,) logps of all responses, and whether any came from the cache.

        A share of what the cache holds is scored again; where that differs the round is refused.
        """
        identity = scoring_identity(policy, self.spec, source_digest(self.spec.reference))
        cache = LogpCache(self.spec.reference_cache, identity)
        groups = [g for batch in self._batches() for g in batch.groups]
        known = from_leader(cache.read(groups) if leads() else {})
        held = [g for g in groups if all(at in known for at in _places(g))]
        again = {g.id for g in recheck_share(held, RECHECKED)}
        fresh = {g.id for g in groups} - {g.id for g in held}
        logps = self._score(policy, cache, fresh, again)
        for group in held:
            values = torch.tensor([known[at] for at in _places(group)])
            if group.id in again:
                _check_cached(group, values, logps[_places(group)], policy.dtype)
            logps[_places(group)] = values
        _check_finite(logps, groups)
        if leads() and held:
            append_event(
                self.files.root,
                "reference_cache",
                found=len(known),
                of=self.dataset.responses,
                checked_groups=len(again),
            )
        return logps, bool(held)

    def _batches(self) -> list[Batch]:
        return [
            *first_batches(self.dataset, self.spec),
            *held_out_batches(self.dataset, self.spec),
        ]

    @torch.no_grad()
    def _score(
        self, policy: Policy, cache: LogpCache, fresh: set[str], again: set[str]
    ) -> torch.Tensor:
        """(responses,) logps of these groups' responses, 0 elsewhere.

        The `fresh` ones go into the cache: on the way where this process has all of them, else
        when those of all processes are together.
        """
        logps = torch.zeros(self.dataset.responses)
        done: list[Group] = []
        kept = 0  # of those done
        said = time.monotonic()
        for batch in self._batches():
            if anyone(self.stop.requested):
                if world() == 1:
                    self._keep(cache, done[kept:], logps)
                raise Stopped("stopped before the first step; run it again")
            part = Batch(tuple(g for g in batch.groups if g.id in fresh or g.id in again))
            if not part.groups:
                continue
            for pack, mine in shared(passes(policy, part)):
                values = batch_logps(policy, pack).cpu()
                if mine:
                    logps[pack.rows] = values
            done += [group for group in part.groups if group.id in fresh]
            if leads() and time.monotonic() - said > SIGN_OF_LIFE_S:
                append_event(self.files.root, "reference_pass", groups=len(done), of=len(fresh))
                if world() == 1:
                    self._keep(cache, done[kept:], logps)
                    kept = len(done)
                said = time.monotonic()
        logps = added_up(logps)
        if leads():
            self._keep(cache, done[kept:], logps)
        return logps

    def _keep(self, cache: LogpCache, groups: list[Group], logps: torch.Tensor) -> None:
        """Write to the cache. A round goes on without it: it only saves later ones their time."""
        try:
            cache.write([g for g in groups if logps[_places(g)].isfinite().all()], logps)
        except (sqlite3.Error, OSError) as error:
            append_event(
                self.files.root,
                "warning",
                message=f"reference log-probabilities could not be cached ({error}); later rounds "
                "will compute them again",
            )


def _places(group: Group) -> list[int]:
    return list(range(group.offset, group.offset + len(group.responses)))


def _check_cached(group: Group, cached: torch.Tensor, now: torch.Tensor, dtype: str) -> None:
    if _relative(cached, now) <= LOGP_TOLERANCE[dtype]:
        return
    raise Refused(
        f"the cached reference logps of group {group.id} are not what the reference says now; "
        "delete the cache (reference_cache) and run again; nothing was trained",
        group=group.id,
    )


def _relative(values: torch.Tensor, truth: torch.Tensor) -> float:
    return float(((values - truth).abs() / truth.abs().clamp(min=1.0)).max())


def _check_finite(logps: torch.Tensor, groups: list[Group]) -> None:
    bad = [g.id for g in groups if not logps[_places(g)].isfinite().all()]
    if bad:
        raise Refused(f"the reference gives logps that are not finite for {bad[:5]}", groups=bad)


@torch.no_grad()
def check_logps(policy: Policy, batch: Batch, logps: torch.Tensor) -> torch.Tensor:
    """Refused unless the batch's logps are those of plain forward passes, which are returned."""
    plain = plain_logps(policy, batch.branches).cpu()
    off = _relative(logps[batch.rows], plain)
    if not off <= LOGP_TOLERANCE[policy.dtype]:
        raise Refused(
            f"batched logps differ from plain forward passes by {off:.2%}: this model does not "
            "treat positions, padding or its head in a way this trainer knows; nothing was trained"
        )
    return plain


def check_first_loss(loss: float, reference: Reference) -> None:
    """Refused where step 0's loss is not the one it must be."""
    if abs(loss - reference.first_loss) <= reference.tolerance:
        return
    raise Refused(
        f"the loss before the first update is {loss:.6f}, it must be {reference.first_loss:.6f}: "
        "the policy does not score its responses as the reference pass did (dropout, another "
        "dtype or other weights); nothing was trained",
        loss_step0=loss,
        expected=reference.first_loss,
    )


def saved_reference(logps: torch.Tensor, dataset: Dataset) -> Reference:
    """The reference out of a checkpoint; Refused if it is not of these responses."""
    if logps.shape != (dataset.responses,):
        raise Refused("the checkpoint's reference logps are not of this round's responses")
    return Reference(logps, math.nan, 0.0)
