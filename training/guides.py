"""What DPO is known to do wrong, as lines on the curves and as words when it happens. Pure.

The thresholds come from what users of other trainers met and reported.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

LN_2 = math.log(2)  # the loss of a policy that is its own reference
LOW_LOSS = 0.05
LOW_LOSS_SHARE = 0.1  # of all steps: so low so early, the learning rate is too high
COIN_TOSS = 0.5
MEMORIZED_GAP = 0.25  # reward accuracy on train minus held-out
UNLEARNED_REWARD = -1.0  # at β 0.1: chosen responses have become e^10 times less likely
FAR_KL = 8.0  # nats; the estimate cannot exceed 10 a response
LONGER = 1.25  # chosen over rejected, in tokens
FEW_STEPS = 5  # no advice from fewer


@dataclass(frozen=True, kw_only=True)
class Guide:
    """A level drawn across a chart, up to step `until` if given.

    `always` keeps it in view; other levels are drawn once the curve comes near.
    """

    at: float
    text: str
    warns: bool = False
    always: bool = False
    until: float | None = None


Rows = Sequence[dict[str, float]]


def guides(key: str, steps: Rows, total: int) -> list[Guide]:
    """The levels to draw on a chart."""
    match key:
        case "loss":
            early = Guide(
                at=LOW_LOSS, text=str(LOW_LOSS), warns=True, until=max(1, total * LOW_LOSS_SHARE)
            )
            return [Guide(at=LN_2, text="ln 2", always=True), early]
        case "margin":
            return [Guide(at=0.0, text="", warns=True, always=True)]
        case "accuracy":
            return [Guide(at=COIN_TOSS, text="coin toss", warns=True, always=True)]
        case "rewards":
            return [
                Guide(at=0.0, text="", always=True),
                Guide(at=UNLEARNED_REWARD, text="chosen", warns=True),
            ]
        case "kl":
            return [Guide(at=FAR_KL, text=f"{FAR_KL:g} nats", warns=True)]
        case "length":
            rejected = _mean(steps, "rejected_tokens")
            return [] if rejected is None else [_longer(rejected)]
    return []


def _longer(rejected: float) -> Guide:
    return Guide(at=LONGER * rejected, text="rejected + 25 %", warns=True, always=True)


def advise(key: str, steps: Rows, held_out: Rows, total: int) -> list[str]:
    """What is wrong with a curve, in words and with what to do; nothing while it is too early."""
    if len(steps) < FEW_STEPS:
        return []
    check = {
        "loss": _loss,
        "margin": _margin,
        "accuracy": _accuracy,
        "rewards": _rewards,
        "kl": _kl,
        "length": _length,
    }[key]
    return check(steps, held_out, total)


def _loss(steps: Rows, held_out: Rows, total: int) -> list[str]:
    early = [
        row["loss"] for row in steps if row["step"] <= total * LOW_LOSS_SHARE and "loss" in row
    ]
    if early and min(early) < LOW_LOSS:
        return [
            f"Below {LOW_LOSS} in the first tenth of the steps: the learning rate is too high, or "
            "the pairs are too easy to tell apart."
        ]
    return []


def _margin(steps: Rows, held_out: Rows, total: int) -> list[str]:
    last = _mean(_recent(steps), "margin")
    if last is not None and last < 0:
        return ["Below 0: the policy has come to prefer what people rejected."]
    return []


def _accuracy(steps: Rows, held_out: Rows, total: int) -> list[str]:
    checked = [row["accuracy"] for row in held_out if "accuracy" in row]
    if len(checked) < 2:  # the first is from before the first step
        return []
    train = _mean(_recent(steps), "accuracy")
    found = []
    if checked[-1] < COIN_TOSS:
        found.append("Held-out accuracy is below a coin toss: do not promote this policy.")
    if train is not None and train - checked[-1] > MEMORIZED_GAP:
        found.append(
            "Train is far above held-out: the pairs are being memorized. Fewer epochs, or more "
            "pairs."
        )
    return found


def _rewards(steps: Rows, held_out: Rows, total: int) -> list[str]:
    last = _mean(_recent(steps), "chosen_reward")
    if last is not None and last < UNLEARNED_REWARD:
        return [
            "Chosen responses have become much less likely too. Look at samples before you "
            "promote; a larger β or a lower learning rate holds the policy closer."
        ]
    return []


def _kl(steps: Rows, held_out: Rows, total: int) -> list[str]:
    last = _mean(_recent(steps), "kl")
    if last is not None and last > FAR_KL:
        return [
            f"Above {FAR_KL:g} nats: the policy has left the reference. Expect repetition; lower "
            "the learning rate or take fewer epochs."
        ]
    return []


def _length(steps: Rows, held_out: Rows, total: int) -> list[str]:
    chosen, rejected = _mean(steps, "chosen_tokens"), _mean(steps, "rejected_tokens")
    if chosen and rejected and chosen > LONGER * rejected:
        return [
            f"Chosen responses are {chosen / rejected - 1:.0%} longer than rejected ones: expect "
            "longer answers."
        ]
    return []


def _recent(steps: Rows) -> Rows:
    return steps[-max(FEW_STEPS, len(steps) // 10) :]


def _mean(rows: Rows, key: str) -> float | None:
    values = [row[key] for row in rows if key in row]
    return math.fsum(values) / len(values) if values else None
