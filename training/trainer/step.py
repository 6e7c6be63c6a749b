"""One optimizer step: gradients, the checks before the update, the update, its metrics."""

import math
import resource
import time
from collections.abc import Sequence

import torch

from training.trainer.batches import Batch
from training.trainer.config import Spec
from training.trainer.data import pair_ids
from training.trainer.evaluate import Scored, scoring, summary
from training.trainer.head import LossOf
from training.trainer.logps import add_gradients, passes
from training.trainer.model import Policy
from training.trainer.parallel import gathered, shared, whole
from training.trainer.reference import check_first_loss
from training.trainer.run_dir import Refused
from training.trainer.state import Round


def take_step(round_: Round, step: int, batch: Batch) -> None:
    """Train on a batch, which is step `step` of the round. Refused leaves the weights alone."""
    spec = round_.spec
    began = time.monotonic()
    scored = accumulate(round_, batch)
    numbers = summary(scored)
    check_finite_losses(step, batch, scored)
    if step == 1:
        check_first_loss(numbers["loss"], round_.reference)
        round_.results["loss_step0"] = numbers["loss"]
    norm = clip_gradients(round_.policy, spec.max_grad_norm)
    if not math.isfinite(norm):
        raise non_finite("gradient", step, pair_ids(batch.groups))
    rate = learning_rate(step, round_.total, spec)
    for group in round_.optimizer.param_groups:
        group["lr"] = rate
    round_.optimizer.step()
    round_.step = step
    if step % spec.log_every == 0 or step == round_.total:
        speed = batch.tokens / (time.monotonic() - began)
        round_.log(
            numbers
            | {"grad_norm": norm, "learning_rate": rate, "tokens_per_s": speed}
            | {"memory_mb": peak_memory_mb(round_.policy.device)}
        )


def accumulate(round_: Round, batch: Batch) -> list[Scored]:
    """Gradients of the batch's mean pair loss, pack by pack, in place of any there were.

    Each pack's sum is divided by the number of pairs in the whole batch, so neither how the batch
    is packed nor how many processes share the packs changes anything.
    """
    round_.optimizer.zero_grad(set_to_none=True)
    begin_sparse_gradient(round_.policy)
    turns: list[list[Scored]] = []
    for pack, mine in shared(passes(round_.policy, batch)):
        loss_of: LossOf = no_loss
        if mine:
            turns.append([])
            loss_of = share_of(
                len(batch.pairs), scoring(round_.objective, round_.reference.logps, turns[-1])
            )
        add_gradients(round_.policy, pack, loss_of)
    return gathered(turns)


def share_of(pairs: int, loss_of: LossOf) -> LossOf:
    """A summed loss as its part of the mean over so many pairs."""
    return lambda batch, logps: loss_of(batch, logps) / pairs


def no_loss(_batch: Batch, logps: torch.Tensor) -> torch.Tensor:
    """The loss of a pack that another process counts."""
    return 0.0 * logps.sum()


def clip_gradients(policy: Policy, limit: float) -> float:
    """Scale all gradients so that their norm is at most `limit`; returns the norm before."""
    parameters = list(policy.trainable().values())
    norm = whole(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return float(norm)


def build_optimizer(spec: Spec, policy: Policy) -> torch.optim.Optimizer:
    """AdamW; weight decay is for matrices, not for biases and norms."""
    parameters = list(policy.trainable().values())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": spec.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=spec.learning_rate, fused=True)


def begin_sparse_gradient(policy: Policy) -> None:
    """Give an embedding whose backward pass is sparse a dense gradient to add to."""
    embedding = policy.model.get_input_embeddings()
    if getattr(embedding, "sparse", False):  # an adapter's embedding does not say
        embedding.weight.grad = torch.zeros_like(embedding.weight)


def check_finite_losses(step: int, batch: Batch, scored: Sequence[Scored]) -> None:
    """Refused, before the update, if any pair's loss is not finite."""
    losses = torch.cat([part.pairs.loss for part in scored]).isfinite().tolist()
    bad = [name for name, fine in zip(pair_ids(batch.groups), losses, strict=True) if not fine]
    if bad:
        raise non_finite("loss", step, bad)


def non_finite(what: str, step: int, pairs: list[str]) -> Refused:
    """The refusal for a number that is NaN or infinite."""
    return Refused(
        f"the {what} of step {step} is not finite (pairs {', '.join(pairs[:5])}); the step was "
        "not taken. Lower learning_rate, or look at these pairs; earlier checkpoints are kept",
        step=step,
        pairs=pairs,
    )


def learning_rate(step: int, total: int, spec: Spec) -> float:
    """Linear warmup to `learning_rate`, then linear decay that would reach 0 after the end."""
    if step <= spec.warmup_steps:
        return spec.learning_rate * step / spec.warmup_steps
    return spec.learning_rate * (total - step + 1) / (total - spec.warmup_steps)


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory so far, in MiB: the GPU's where there is one, else the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # Linux counts KiB
