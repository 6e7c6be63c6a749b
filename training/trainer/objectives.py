"""The losses over pairs, with their papers' names, and the labels that votes give.

Of a pair, y+ is the chosen response and y- the rejected one; |y| is a response's number of tokens.

    r(y) = log π(y|x) − log π_ref(y|x)      the logratio; divided by |y| where the objective says so
    h    = r(y+) − r(y-)
    β·r(y) is the implicit reward, β·h the reward margin.

Everything here is a pure function of fp32 logps, element by element over P pairs.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn.functional import logsigmoid, relu

from training.trainer.config import LogratioKind, ObjectiveName, Spec


class PairLogps(NamedTuple):
    """A number for each response of P pairs, fp32, each (P,): logps, or token counts."""

    chosen: torch.Tensor  # log π(y+|x)
    rejected: torch.Tensor  # log π(y-|x)


class Outcome(NamedTuple):
    """Shares of a pair's votes, each (P,); the three of a pair sum to 1."""

    win: torch.Tensor  # for chosen
    loss: torch.Tensor  # for rejected
    tie: torch.Tensor  # 0 without a model of ties


class PairScores(NamedTuple):
    """What the loss says about P pairs, each (P,). Only `loss` carries a gradient."""

    loss: torch.Tensor
    chosen_reward: torch.Tensor  # β·r(y+), the implicit reward
    rejected_reward: torch.Tensor
    margin: torch.Tensor  # chosen_reward − rejected_reward


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Which loss, with its numbers. A term whose number is 0 (tie_nu: 1) is absent."""

    name: ObjectiveName
    beta: float  # β; the τ of IPO
    logratio: LogratioKind = "sum"
    label_noise: float = 0.0  # ε of robust: the probability that a vote was flipped
    target_margin: float = 0.0  # γ of simpo
    length_penalty: float = 0.0  # α of R-DPO, for each token
    chosen_floor: float = 0.0  # λ of DPOP
    tie_nu: float = 1.0  # ν of Rao and Kupper, at least 1


def objective_of(spec: Spec, *, tie_nu: float) -> Objective:
    """The spec's objective, its defaults resolved; `tie_nu` is the data's (1 without ties)."""
    return Objective(
        name=spec.objective,
        beta=spec.beta,
        logratio=spec.logratio or ("mean" if spec.objective == "simpo" else "sum"),
        label_noise=spec.label_noise or 0.0,
        target_margin=spec.target_margin or 0.0,
        length_penalty=spec.length_penalty or 0.0,
        chosen_floor=spec.chosen_floor or 0.0,
        tie_nu=tie_nu,
    )


def pair_losses(
    objective: Objective,
    policy: PairLogps,
    reference: PairLogps,
    tokens: PairLogps,
    outcome: Outcome,
) -> PairScores:
    """Per-pair losses under the votes, and the pairs' implicit rewards; all (P,).

    loss = win·l(y+ over y-) + loss·l(y- over y+) + tie·(−log P_tie)

    With l = −log σ(β·h) this is the likelihood of the votes under Bradley and Terry: DPO where
    one vote decides, cDPO (Mitchell 2023, "A note on DPO with noisy preferences") where they
    disagree. It is least at β·h = log(win / loss), so disputed pairs keep a bounded margin.

    Ties are those of Rao and Kupper (1967; for DPO: Chen et al. 2024, arXiv:2409.17431):

        P_win = σ(β·h − ln ν)     P_tie = (ν² − 1)·σ(β·h − ln ν)·σ(−β·h − ln ν)

    so −log P_tie = l(y+ over y-) + l(y- over y+) − ln(ν² − 1), and ν = 1 is DPO.

    `reference` is not looked at by simpo. The margin shown is β·h, without any further term.
    """
    ratio = _logratios(objective, policy, reference, tokens)
    longer = tokens.chosen - tokens.rejected
    loss_of = LOSSES[objective.name]
    won = loss_of(objective, Roles(ratio.chosen, ratio.rejected, longer))
    lost = loss_of(objective, Roles(ratio.rejected, ratio.chosen, -longer))
    loss = outcome.win * won + outcome.loss * lost
    if objective.tie_nu > 1:
        loss = loss + outcome.tie * (won + lost - _log_nu_squared_less_1(objective.tie_nu))
    rewards = PairLogps(*(objective.beta * r.detach() for r in ratio))
    return PairScores(loss, *rewards, rewards.chosen - rewards.rejected)


def _logratios(
    objective: Objective, policy: PairLogps, reference: PairLogps, tokens: PairLogps
) -> PairLogps:
    """r(y) of both responses; of simpo log π(y|x)/|y|, since it has no reference."""
    held = (torch.zeros_like(logp) if objective.name == "simpo" else logp for logp in reference)
    ratios = PairLogps(*(logp - start for logp, start in zip(policy, held, strict=True)))
    if objective.logratio == "sum":
        return ratios
    return PairLogps(ratios.chosen / tokens.chosen, ratios.rejected / tokens.rejected)


def _log_nu_squared_less_1(nu: float) -> float:
    """ln(ν² − 1), exact near ν = 1 and without overflow."""
    return math.log(nu - 1) + math.log(nu + 1)


class Roles(NamedTuple):
    """A pair read as "`better` beats `worse`": the votes may say that of either response."""

    better: torch.Tensor  # r(y) of the response that is to win
    worse: torch.Tensor
    longer: torch.Tensor  # |better| − |worse|, in tokens

    @property
    def h(self) -> torch.Tensor:
        return self.better - self.worse


def dpo(objective: Objective, roles: Roles) -> torch.Tensor:
    """−log σ(β·h): Rafailov et al. 2023 (arXiv:2305.18290), equation 7. Three terms may join:

    α·(|y+| − |y-|)           R-DPO, Park et al. 2024 (arXiv:2403.19159): the reward less α for
                              each token, so that pairs won by length teach less
    −β·λ·max(0, −r(y+))       DPOP, Pal et al. 2024 (arXiv:2402.13228), equation 3: the chosen
                              response may not fall below the reference
    −ln ν                     Rao and Kupper: a win must beat the room that ties take

    With logratio = mean it is Tulu 3's length-normalised DPO (arXiv:2411.15124, equation 6).
    """
    floor = objective.chosen_floor * relu(-roles.better)
    margin = objective.beta * (roles.h - floor) + objective.length_penalty * roles.longer
    return -logsigmoid(margin - math.log(objective.tie_nu))


def ipo(objective: Objective, roles: Roles) -> torch.Tensor:
    """(h − 1/(2β))²: Azar et al. 2023 (arXiv:2310.12036), equation 17, where β is called τ.

    The paper sums log-probabilities over tokens, TRL averages them since it asked the authors.
    β means something else in each, which is why `logratio` has no default here.
    """
    return (roles.h - 1 / (2 * objective.beta)) ** 2


def hinge(objective: Objective, roles: Roles) -> torch.Tensor:
    """max(0, 1 − β·h): the hinge loss of RSO, Liu et al. 2023 (arXiv:2309.06657), after SLiC."""
    return relu(1 - objective.beta * roles.h)


def robust(objective: Objective, roles: Roles) -> torch.Tensor:
    """[−(1−ε)·log σ(β·h) + ε·log σ(−β·h)] / (1−2ε): Chowdhury et al. 2024 (arXiv:2403.00409).

    Its mean over votes of which a share ε was flipped is the DPO loss of the true ones. It has
    no lower bound: as β·h grows it falls with slope −ε/(1−2ε), so train briefly.
    """
    margin, noise = objective.beta * roles.h, objective.label_noise
    return (noise * logsigmoid(-margin) - (1 - noise) * logsigmoid(margin)) / (1 - 2 * noise)


def simpo(objective: Objective, roles: Roles) -> torch.Tensor:
    """−log σ(β·log π(y+|x)/|y+| − β·log π(y-|x)/|y-| − γ): Meng et al. 2024 (arXiv:2405.14734)."""
    return -logsigmoid(objective.beta * roles.h - objective.target_margin)


LOSSES: dict[ObjectiveName, Callable[[Objective, Roles], torch.Tensor]] = {
    "dpo": dpo,
    "ipo": ipo,
    "hinge": hinge,
    "robust": robust,
    "simpo": simpo,
}


def fitted_nu(tied: Sequence[float]) -> float:
    """The ν under which untrained margins explain the ties best, from each pair's share of ties.

    At margin 0 P_tie = (ν − 1)/(ν + 1), so the mean loss is least at ν = (1 + t)/(1 − t), where t
    is the mean share. ValueError where every vote is a tie: no ν is large enough.
    """
    share = math.fsum(tied) / len(tied)
    if share == 1:
        raise ValueError("every vote is a tie")
    return (1 + share) / (1 - share)


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


def tied_share(votes_for: int, votes_against: int, votes_tied: int, *, labels: str) -> float:
    """Share of a pair's votes that are ties; with labels="majority" 1 or 0.

    A majority that is neither for nor against is a tie: most votes say so, or no side leads.
    """
    if labels == "votes":
        return votes_tied / (votes_for + votes_against + votes_tied)
    leads = votes_for != votes_against and max(votes_for, votes_against) > votes_tied
    return 0.0 if leads else 1.0
