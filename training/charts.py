"""Which curves a round's page draws, and how each is to be read.

The levels that they are held against, and what is said when one is crossed, are in guides.py.
"""

from dataclasses import dataclass

from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop

from training.guides import KL_CLAMP, Aim

TRAIN = gettext_noop("train")
CHOSEN = gettext_noop("chosen")
REJECTED = gettext_noop("rejected")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What one chart shows: metrics by key with their names; `share` if from 0 to 1.

    Words are as the catalogues know them: they are translated where they are shown.

    `dots` is the metric of the held-out pairs that is drawn as dots, and `dots_name` its name.
    """

    key: str
    title: str
    series: tuple[tuple[str, str], ...]
    reading: str
    dots: str = ""
    dots_name: str = gettext_noop("held-out")
    share: bool = False
    digits: int = 2


CHARTS = (
    Spec(
        key="loss",
        title=gettext_noop("Loss"),
        series=(("loss", TRAIN),),
        dots="loss",
        digits=3,
        reading=gettext_noop(
            "Lower means the policy tells chosen from rejected; a round that is held to its "
            "own start falls from the line. Held-out rising while train falls is memorizing."
        ),
    ),
    Spec(
        key="margin",
        title=gettext_noop("Reward margin"),
        series=(("margin", TRAIN),),
        dots="margin",
        reading=gettext_noop(
            "Chosen reward minus rejected reward, mean over pairs. Should grow and level off;"
            " below 0 the policy prefers what people rejected."
        ),
    ),
    Spec(
        key="accuracy",
        title=gettext_noop("Reward accuracy"),
        series=(("accuracy", TRAIN),),
        dots="accuracy",
        share=True,
        reading=gettext_noop(
            "Share of pairs with a margin above 0; 0.5 is a coin toss. Trust the held-out "
            "dots, not the line: a policy can learn its own training pairs by heart."
        ),
    ),
    Spec(
        key="rewards",
        title=gettext_noop("Chosen and rejected reward"),
        series=(("chosen_reward", CHOSEN), ("rejected_reward", REJECTED)),
        reading=gettext_noop(
            "β times how much likelier each has become than under the reference. Both often "
            "fall; what counts is the gap. Chosen far below 0 means good answers are "
            "unlearned too."
        ),
    ),
    Spec(
        key="logratios",
        title=gettext_noop("Log-probability against the reference"),
        series=(("chosen_logratio", CHOSEN), ("rejected_logratio", REJECTED)),
        dots="chosen_logratio",
        dots_name=gettext_noop("held-out chosen"),
        digits=1,
        reading=gettext_noop(
            "Nats a response, 0 where nothing has changed. Where chosen falls half as far as "
            "rejected or more, the probability goes to what nobody has read."
        ),
    ),
    Spec(
        key="chosen_fell",
        title=gettext_noop("Chosen that fell"),
        series=(("chosen_fell", TRAIN),),
        dots="chosen_fell",
        share=True,
        reading=gettext_noop(
            "Share of pairs whose chosen response is less likely than under the reference. "
            "Around a half is usual; above three in four the policy forgets what people "
            "liked."
        ),
    ),
    Spec(
        key="kl",
        title=gettext_noop("KL to the reference"),
        series=(("kl", TRAIN),),
        dots="kl",
        reading=gettext_noop(
            "An estimate of how far the policy has moved, in nats a response, each counting "
            "%(most)s at most. Near that, fluency has gone: lower the learning rate."
        ),
    ),
    Spec(
        key="length",
        title=gettext_noop("Response length"),
        series=(("chosen_tokens", CHOSEN), ("rejected_tokens", REJECTED)),
        digits=0,
        reading=gettext_noop(
            "Tokens of the responses in each batch. Where chosen ones are much longer, longer"
            " is what the policy will learn, whatever people meant."
        ),
    ),
    Spec(
        key="speed",
        title=gettext_noop("Tokens a second"),
        series=(("tokens_per_s", TRAIN),),
        digits=0,
        reading=gettext_noop(
            "What this machine gets through. A lasting fall means that something else has come to "
            "want the same processors."
        ),
    ),
    Spec(
        key="memory",
        title=gettext_noop("Memory, MiB"),
        series=(("memory_mb", gettext_noop("most so far")),),
        digits=0,
        reading=gettext_noop(
            "The GPU's where there is one. Near what the machine has, the next long batch may be "
            "one too many: compute activations twice, or take a shorter maximum length."
        ),
    ),
)
WITHOUT_REFERENCE = {
    "rewards": gettext_noop(
        "SimPO's reward: β times the mean log-probability of a token, always below 0. What "
        "counts is the gap; both falling far means that good answers are unlearned too."
    ),
}
WITHOUT_LINE = gettext_noop(
    "Lower means the policy tells chosen from rejected. Held-out rising while train falls is "
    "memorizing."
)


def reading(spec: Spec, aim: Aim) -> str:
    """How to read a chart of a round with this aim, in a sentence or two."""
    if spec.key == "loss" and aim.first_loss is None:
        return _(WITHOUT_LINE)
    words = spec.reading
    if aim.objective == "simpo":
        words = WITHOUT_REFERENCE.get(spec.key, words)
    return _(words) % {"most": f"{KL_CLAMP:g}"}
