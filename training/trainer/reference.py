"""The reference's log-probabilities, once for each response, before the first step.

They are numbers in the checkpoint from then on: a resumed round never asks a model again, least
of all the one it has trained.
"""

import gc
import math
from dataclasses import dataclass
from typing import Any

import torch

from jobs.run_dir import StopRequest
from training.trainer.batches import Batch, chunks, epoch_batches, micro_batches
from training.trainer.config import Spec
from training.trainer.data import Dataset
from training.trainer.logps import plain_logps, response_logps
from training.trainer.model import Policy, check_fits, check_same_vocabulary, load_reference
from training.trainer.objectives import PairLogps, dpo_loss
from training.trainer.run_dir import Refused, Stopped

LN_2 = math.log(2.0)
LN_2_TOLERANCE = 1e-5
# How far batched and plain forward passes may differ: in a loss, and in a logp (relative).
LOSS_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05}
LOGP_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05}


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


def reference_of_start(
    spec: Spec, dataset: Dataset, policy: Policy, stop: StopRequest
) -> Reference:
    """For a policy that is its own reference: its logps before any update; loss 0 is ln 2.

    Scored in the first epoch's own batches, so that in any dtype the first step's forward
    passes repeat these bit for bit.
    """
    logps = score_all(policy, spec, dataset, stop)
    first = first_batches(dataset, spec)[0]
    check_logps(policy, first, logps)
    return Reference(logps, LN_2, LN_2_TOLERANCE)


def frozen_reference(
    spec: Spec, dataset: Dataset, tokenizer: Any, stop: StopRequest
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logps of a reference that is loaded for this and freed: of all responses, and plain ones
    of the first batch."""
    check_same_vocabulary(tokenizer, spec.reference)
    frozen = load_reference(spec)
    check_fits(frozen, tokenizer, dataset.report["longest"])
    logps = score_all(frozen, spec, dataset, stop)
    plain = check_logps(frozen, first_batches(dataset, spec)[0], logps)
    del frozen
    gc.collect()
    torch.cuda.empty_cache()
    return logps, plain


def reference_of_other(
    spec: Spec, batch: Batch, policy: Policy, logps: torch.Tensor, plain: torch.Tensor
) -> Reference:
    """For a reference that is another policy: loss 0 is the one of two plain forward passes."""
    with torch.no_grad():
        start = plain_logps(policy, batch.branches).cpu()
    pairs = [PairLogps(values[batch.chosen], values[batch.rejected]) for values in (start, plain)]
    loss = dpo_loss(pairs[0], pairs[1], beta=spec.beta, label=batch.labels).loss.mean()
    return Reference(logps, float(loss), LOSS_TOLERANCE[spec.dtype])


@torch.no_grad()
def score_all(policy: Policy, spec: Spec, dataset: Dataset, stop: StopRequest) -> torch.Tensor:
    """(responses,) logps of all responses, in the batches in which training will see them."""
    logps = torch.full((dataset.responses,), math.nan)
    for batch in [*first_batches(dataset, spec), *held_out_batches(dataset, spec)]:
        if stop.requested:
            raise Stopped("stopped before the first step; nothing is lost, run it again")
        for micro in micro_batches(batch):
            logps[micro.rows] = response_logps(policy, micro.branches).cpu()
    _check_finite(logps, dataset)
    return logps


def _check_finite(logps: torch.Tensor, dataset: Dataset) -> None:
    groups = [*dataset.train, *dataset.held_out]
    bad = [
        g.id for g in groups if not logps[g.offset : g.offset + len(g.responses)].isfinite().all()
    ]
    if bad:
        raise Refused(f"the reference gives logps that are not finite for {bad[:5]}", groups=bad)


@torch.no_grad()
def check_logps(policy: Policy, batch: Batch, logps: torch.Tensor) -> torch.Tensor:
    """Refused unless the batch's logps are those of plain forward passes, which are returned."""
    plain = plain_logps(policy, batch.branches).cpu()
    off = ((logps[batch.rows] - plain).abs() / plain.abs().clamp(min=1.0)).max()
    if not off <= LOGP_TOLERANCE[policy.dtype]:
        raise Refused(
            f"batched logps differ from plain forward passes by {float(off):.2%}: this model "
            "does not treat padding or its head in a way this trainer knows; nothing was trained"
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
