"""The DPO loss and its labels, with the paper's names (Rafailov et al. 2023, arXiv:2305.18290)."""

from typing import NamedTuple

import torch
from torch.nn import functional


class PairLogps(NamedTuple):
    """Summed log-probabilities of the responses of P pairs, fp32, each (P,)."""

    chosen: torch.Tensor  # log π(y+|x)
    rejected: torch.Tensor  # log π(y-|x)


class PairScores(NamedTuple):
    """What the loss says about P pairs, each (P,). Only `loss` carries a gradient."""

    loss: torch.Tensor
    chosen_reward: torch.Tensor  # β·(log π(y+|x) − log π_ref(y+|x)), the implicit reward
    rejected_reward: torch.Tensor
    margin: torch.Tensor  # chosen_reward − rejected_reward


def dpo_loss(
    policy: PairLogps, reference: PairLogps, *, beta: float, label: torch.Tensor
) -> PairScores:
    """Per-pair DPO loss with soft labels: equation 7 of the paper where label is 1.

    margin = β·[(log π(y+|x) − log π_ref(y+|x)) − (log π(y-|x) − log π_ref(y-|x))]
    loss   = −label·log σ(margin) − (1 − label)·log σ(−margin)

    `label` (P,) is the probability that chosen is the better one (cDPO, Mitchell 2023); the loss
    is least at margin = log(label / (1 − label)), so disputed pairs keep a bounded margin.
    """
    chosen_reward = beta * (policy.chosen - reference.chosen)
    rejected_reward = beta * (policy.rejected - reference.rejected)
    margin = chosen_reward - rejected_reward
    loss = -label * functional.logsigmoid(margin) - (1 - label) * functional.logsigmoid(-margin)
    return PairScores(loss, chosen_reward.detach(), rejected_reward.detach(), margin.detach())


def soft_label(votes_for: int, votes_against: int, *, labels: str) -> float | None:
    """Probability that chosen is better, from the votes; None for a pair that says nothing.

    "votes": the share of decided votes, so disagreement is kept (1 : 1 is 0.5, which pulls the
    margin to 0). "majority": 1 or 0, and None where the votes are even. Tied votes decide
    nothing: a pair with no other votes is None under both.
    """
    decided = votes_for + votes_against
    if decided == 0:
        return None
    if labels == "votes":
        return votes_for / decided
    if votes_for == votes_against:
        return None
    return 1.0 if votes_for > votes_against else 0.0
