"""What is measured about a batch of pairs, the same way for a training step and held-out pairs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from training.trainer.batches import Batch
from training.trainer.head import LossOf
from training.trainer.logps import batch_logps, passes
from training.trainer.model import Policy
from training.trainer.objectives import Objective, PairLogps, PairScores, pair_losses
from training.trainer.parallel import gathered, shared

KL_CLAMP = 100.0  # nats; one response that the policy has left far behind must not be the mean


@dataclass(frozen=True)
class Scored:
    """What the policy says about a batch, on the CPU and without gradients."""

    pairs: PairScores  # each (P,)
    labels: torch.Tensor  # (P,)
    policy: PairLogps  # each (P,)
    reference: PairLogps  # each (P,)
    tokens: PairLogps  # (P,) lengths of the chosen and of the rejected responses
    logratios: torch.Tensor  # (n,) of the distinct responses: log π(y|x) − log π_ref(y|x)


def scoring(objective: Objective, reference: torch.Tensor, scored: list[Scored]) -> LossOf:
    """A function from a batch and its responses' logps (n,) to the sum of its pairs' losses.

    `reference` holds the reference logps of all responses of the round. What each call saw is
    appended to `scored`.
    """

    def loss_of(batch: Batch, logps: torch.Tensor) -> torch.Tensor:
        device = logps.device
        held = reference[batch.rows]
        tokens = of_pairs(batch.lengths, batch)
        pairs = pair_losses(
            objective,
            of_pairs(logps, batch),
            of_pairs(held.to(device), batch),
            PairLogps(*(value.to(device) for value in tokens)),
            type(batch.outcome)(*(share.to(device) for share in batch.outcome)),
        )
        seen = logps.detach().cpu()
        scored.append(
            Scored(
                pairs=PairScores(*(value.detach().cpu() for value in pairs)),
                labels=batch.labels,
                policy=of_pairs(seen, batch),
                reference=of_pairs(held, batch),
                tokens=tokens,
                logratios=seen - held,
            )
        )
        return pairs.loss.sum()

    return loss_of


def of_pairs(values: torch.Tensor, batch: Batch) -> PairLogps:
    """(n,) by response to (P,) by pair."""
    places = (batch.chosen.to(values.device), batch.rejected.to(values.device))
    return PairLogps(values[places[0]], values[places[1]])


def reward_accuracy(margin: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """(P,) 1 where the margin is above 0, 0 below; a half at 0, and where the votes are even.

    So an untrained policy shows 0.5, and a pair without a right answer moves nothing.
    """
    hits = (margin > 0).float() + 0.5 * (margin == 0).float()
    return torch.where(label == 0.5, torch.full_like(hits, 0.5), hits)


def kl_estimate(logratio: torch.Tensor) -> torch.Tensor:
    """(n,) estimates of KL(π ‖ π_ref) in nats: k3 = e^{−r} − 1 + r for logratio r, never negative.

    An estimate: k3 (Schulman 2020) is unbiased for responses sampled from π, and these were
    sampled from the policy that the annotators saw. Each value is clamped at KL_CLAMP.
    """
    return (torch.expm1(-logratio) + logratio).clamp(0.0, KL_CLAMP)


def summary(parts: Sequence[Scored]) -> dict[str, float]:
    """Means over all pairs; the KL estimate's is over all distinct responses."""

    def mean(values: list[torch.Tensor]) -> float:
        return float(torch.cat(values).double().mean())

    chosen = [part.policy.chosen - part.reference.chosen for part in parts]
    rejected = [part.policy.rejected - part.reference.rejected for part in parts]
    return {
        "loss": mean([part.pairs.loss for part in parts]),
        "margin": mean([part.pairs.margin for part in parts]),
        "accuracy": mean([reward_accuracy(part.pairs.margin, part.labels) for part in parts]),
        "chosen_reward": mean([part.pairs.chosen_reward for part in parts]),
        "rejected_reward": mean([part.pairs.rejected_reward for part in parts]),
        "chosen_logp": mean([part.policy.chosen for part in parts]),
        "rejected_logp": mean([part.policy.rejected for part in parts]),
        "chosen_logratio": mean(chosen),
        "rejected_logratio": mean(rejected),
        "chosen_fell": mean([(logratio < 0).double() for logratio in chosen]),
        "kl": mean([kl_estimate(part.logratios) for part in parts]),
        "chosen_tokens": mean([part.tokens.chosen for part in parts]),
        "rejected_tokens": mean([part.tokens.rejected for part in parts]),
    }


@torch.no_grad()
def evaluate(
    policy: Policy, batches: Sequence[Batch], reference: torch.Tensor, objective: Objective
) -> dict[str, float] | None:
    """The summary over held-out pairs, with their number; None where nothing is held out."""
    parts = [pack for batch in batches for pack in passes(policy, batch)]
    if not parts:
        return None
    turns: list[list[Scored]] = []
    for pack, mine in shared(parts):
        logps = batch_logps(policy, pack)
        if mine:
            turns.append([])
            scoring(objective, reference, turns[-1])(pack, logps)
    scored = gathered(turns)
    return summary(scored) | {"pairs": sum(len(part.labels) for part in scored)}
