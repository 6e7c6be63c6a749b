"""What DPO is known to do wrong, as lines on the curves and as words when it happens. Pure.

The thresholds come from what users of other trainers met and reported; where a number is our own,
the comment says what it was measured against.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext as _

from labeling.intervals import wilson

LN_2 = math.log(2)  # the loss of a policy that is its own reference
LOW_LOSS = 0.05
LOW_LOSS_SHARE = 0.1  # of all steps: so low so early, the learning rate is too high
ENDS_AT_0 = ("dpo", "hinge", "simpo")  # objectives; IPO counts otherwise, robust DPO has no end
COIN_TOSS = 0.5
MEMORIZED_GAP = 0.25  # reward accuracy on train minus held-out
UNLEARNED_REWARD = -1.0  # at β 0.1: chosen responses have become e^10 times less likely
# Both log-probabilities fall in most rounds (chosen by a third of rejected in the demo's); from
# half on, and beyond what noise does, the pairs' probability goes to other responses.
FALLEN_NATS = -2.0
FALLEN_SHARE = 0.5
# Noise alone makes half of the chosen responses fall; sound rounds of the demo reach 0.7.
MOST_FELL = 0.75
# Sound rounds of the demo show 50 nats, since the estimate counts unlikely rejected responses in
# full; the one whose language was lost (docs/lab-log.md) showed 96.
FAR_KL = 80.0
FAR = {"number": f"{FAR_KL:g}"}
KL_CLAMP = 100.0  # nats; what a response counts at most (training/trainer/evaluate.py)
LONGER = 1.25  # chosen over rejected, in tokens
FEW_STEPS = 5  # no advice from fewer


@dataclass(frozen=True, kw_only=True)
class Aim:
    """What a round's loss asks, as far as its curves look different."""

    objective: str = "dpo"
    beta: float = 0.1
    shifted: bool = False  # ties or a length penalty move the loss at margin 0

    @property
    def first_loss(self) -> tuple[float, str] | None:
        """The loss of a round that is held to its own start, and its name; None where it varies."""
        if self.shifted:
            return None
        return {
            "dpo": (LN_2, "ln 2"),
            "robust": (LN_2, "ln 2"),
            "hinge": (1.0, "1"),
            "ipo": (1 / (4 * self.beta**2), "1/(4β²)"),
        }.get(self.objective)


def aim_of(options: Mapping[str, Any]) -> Aim:
    """A round's aim from the options that were chosen for it."""
    return Aim(
        objective=options.get("objective", "dpo"),
        beta=options.get("beta", 0.1),
        shifted=options.get("ties") == "rao_kupper" or bool(options.get("length_penalty")),
    )


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


@dataclass(frozen=True, kw_only=True)
class Course:
    """A round as far as it has come: what was logged, of how many steps, and its aim."""

    steps: Rows
    held_out: Rows
    total: int
    aim: Aim = Aim()

    def recent(self, key: str) -> float | None:
        """The mean over the last tenth of the steps, or a few."""
        return mean(self.steps[-max(FEW_STEPS, len(self.steps) // 10) :], key)

    def checked(self, key: str) -> float | None:
        """The newest held-out value, or the recent train one where nothing is held out."""
        values = [row[key] for row in self.held_out if key in row]
        return values[-1] if len(values) > 1 else self.recent(key)  # the first is from before


def mean(rows: Rows, key: str) -> float | None:
    """The mean of what the rows say of a metric; None where none does."""
    values = [row[key] for row in rows if key in row]
    return math.fsum(values) / len(values) if values else None


def guides(key: str, course: Course) -> list[Guide]:
    """The levels to draw on a chart."""
    aim = course.aim
    match key:
        case "loss":
            return _loss_guides(course)
        case "margin":
            return [Guide(at=0.0, text="", warns=True, always=True)]
        case "accuracy":
            return [Guide(at=COIN_TOSS, text=_("coin toss"), warns=True, always=True)]
        case "rewards":
            unlearned = Guide(at=UNLEARNED_REWARD, text=_("chosen"), warns=True)
            return [Guide(at=0.0, text="", always=True), *([unlearned] if _has_zero(aim) else [])]
        case "logratios":
            return [Guide(at=0.0, text="", always=True), *_fallen(course)]
        case "chosen_fell":
            return [Guide(at=MOST_FELL, text=_("three in four"), warns=True, always=True)]
        case "kl":
            return [Guide(at=FAR_KL, text=_("%(number)s nats") % FAR, warns=True)]
        case "length":
            rejected = mean(course.steps, "rejected_tokens")
            return [] if rejected is None else [_longer(rejected)]
    return []


def _loss_guides(course: Course) -> list[Guide]:
    found = []
    if first := course.aim.first_loss:
        found.append(Guide(at=first[0], text=first[1], always=True))
    if course.aim.objective in ENDS_AT_0:
        until = max(1, course.total * LOW_LOSS_SHARE)
        found.append(Guide(at=LOW_LOSS, text=str(LOW_LOSS), warns=True, until=until))
    return found


def _fallen(course: Course) -> list[Guide]:
    rejected = course.recent("rejected_logratio")
    if rejected is None or rejected * FALLEN_SHARE > FALLEN_NATS:
        return []
    return [Guide(at=rejected * FALLEN_SHARE, text=_("chosen"), warns=True)]


def _longer(rejected: float) -> Guide:
    return Guide(at=LONGER * rejected, text=_("rejected + 25 %"), warns=True, always=True)


def _has_zero(aim: Aim) -> bool:
    """Whether a reward of 0 means that nothing has changed: SimPO's has no reference."""
    return aim.objective != "simpo"


def advise(key: str, course: Course) -> list[str]:
    """What is wrong with a curve, in words and with what to do; nothing while it is too early."""
    checks = {
        "loss": _loss,
        "margin": _margin,
        "accuracy": _accuracy,
        "rewards": _rewards,
        "logratios": _logratios,
        "chosen_fell": _chosen_fell,
        "kl": _kl,
        "length": _length,
    }
    if len(course.steps) < FEW_STEPS or key not in checks:
        return []
    return checks[key](course)


def _loss(course: Course) -> list[str]:
    last = course.total * LOW_LOSS_SHARE
    early = [row["loss"] for row in course.steps if row["step"] <= last and "loss" in row]
    if course.aim.objective in ENDS_AT_0 and early and min(early) < LOW_LOSS:
        words = _(
            "Below %(loss)s in the first tenth of the steps: the learning rate is too high, or the "
            "pairs are too easy to tell apart."
        )
        return [words % {"loss": LOW_LOSS}]
    return []


def _margin(course: Course) -> list[str]:
    last = course.recent("margin")
    if last is not None and last < 0:
        return [_("Below 0: the policy has come to prefer what people rejected.")]
    return []


def _accuracy(course: Course) -> list[str]:
    checked = [row["accuracy"] for row in course.held_out if "accuracy" in row]
    if len(checked) < 2:  # the first is from before the first step
        return []
    train = course.recent("accuracy")
    found = []
    if _surely_below(course.held_out[-1]):
        found.append(_("Held-out accuracy is below a coin toss: do not promote this policy."))
    if train is not None and train - checked[-1] > MEMORIZED_GAP:
        found.append(
            _(
                "Train is far above held-out: the pairs are being memorized. Fewer epochs, or "
                "more pairs."
            )
        )
    return found


def _surely_below(row: Mapping[str, float]) -> bool:
    """Whether the accuracy is below a coin toss by more than so few pairs can do by chance."""
    share, pairs = row.get("accuracy", COIN_TOSS), int(row.get("pairs", 0))
    return (wilson(share, pairs)[1] if pairs else share) < COIN_TOSS


def _rewards(course: Course) -> list[str]:
    last = course.recent("chosen_reward")
    if _has_zero(course.aim) and last is not None and last < UNLEARNED_REWARD:
        words = _(
            "Chosen responses have become much less likely too. Look at what it writes before you "
            "promote."
        )
        return [f"{words} {_closer(course.aim)}"]
    return []


def _logratios(course: Course) -> list[str]:
    chosen, rejected = course.checked("chosen_logratio"), course.recent("rejected_logratio")
    if chosen is None or rejected is None:
        return []
    if chosen < FALLEN_NATS and chosen < FALLEN_SHARE * rejected:
        words = _(
            "Chosen falls with rejected: what both lose goes to responses that nobody has read."
        )
        return [f"{words} {_closer(course.aim)}"]
    return []


def _chosen_fell(course: Course) -> list[str]:
    share = course.checked("chosen_fell")
    if share is not None and share > MOST_FELL:
        words = _("Most chosen responses have become less likely than under the reference.")
        return [f"{words} {_closer(course.aim)}"]
    return []


def _closer(aim: Aim) -> str:
    """What keeps chosen responses likely under the round's objective."""
    if aim.objective == "dpo":
        return _("What helps: a lower learning rate, a larger β or a floor under chosen.")
    if _has_zero(aim):
        return _("What helps: a lower learning rate or a larger β.")
    return _("What helps: a lower learning rate.")


def _kl(course: Course) -> list[str]:
    last = course.recent("kl")
    if last is not None and last > FAR_KL:
        words = _(
            "Above %(number)s nats: the policy has left the reference. Expect repetition; lower "
            "the learning rate or take fewer epochs."
        )
        return [words % FAR]
    return []


def _length(course: Course) -> list[str]:
    chosen, rejected = mean(course.steps, "chosen_tokens"), mean(course.steps, "rejected_tokens")
    if chosen and rejected and chosen > LONGER * rejected:
        words = _(
            "Chosen responses are %(share)s longer than rejected ones: expect longer answers."
        )
        return [words % {"share": f"{chosen / rejected - 1:.0%}"}]
    return []
