"""Which curves a round's page draws, and how each is to be read.

The levels that they are held against, and what is said when one is crossed, are in guides.py.
"""

from dataclasses import dataclass

from training.guides import KL_CLAMP, Aim


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What one chart shows: metrics by key with their names; `share` if from 0 to 1.

    `dots` is the metric of the held-out pairs that is drawn as dots, and `dots_name` its name.
    """

    key: str
    title: str
    series: tuple[tuple[str, str], ...]
    reading: str
    dots: str = ""
    dots_name: str = "held-out"
    share: bool = False
    digits: int = 2


CHARTS = (
    Spec(
        key="loss",
        title="Loss",
        series=(("loss", "train"),),
        dots="loss",
        digits=3,
        reading="Lower means the policy tells chosen from rejected; a round that is held to its "
        "own start falls from the line. Held-out rising while train falls is memorizing.",
    ),
    Spec(
        key="margin",
        title="Reward margin",
        series=(("margin", "train"),),
        dots="margin",
        reading="Chosen reward minus rejected reward, mean over pairs. Should grow and level "
        "off; below 0 the policy prefers what people rejected.",
    ),
    Spec(
        key="accuracy",
        title="Reward accuracy",
        series=(("accuracy", "train"),),
        dots="accuracy",
        share=True,
        reading="Share of pairs with a margin above 0; 0.5 is a coin toss. Trust the held-out "
        "dots, not the line: a policy can learn its own training pairs by heart.",
    ),
    Spec(
        key="rewards",
        title="Chosen and rejected reward",
        series=(("chosen_reward", "chosen"), ("rejected_reward", "rejected")),
        reading="β times how much likelier each has become than under the reference. Both often "
        "fall; what counts is the gap. Chosen far below 0 means good answers are unlearned too.",
    ),
    Spec(
        key="logratios",
        title="Log-probability against the reference",
        series=(("chosen_logratio", "chosen"), ("rejected_logratio", "rejected")),
        dots="chosen_logratio",
        dots_name="held-out chosen",
        digits=1,
        reading="Nats a response, 0 where nothing has changed. Where chosen falls half as far as "
        "rejected or more, the probability goes to what nobody has read.",
    ),
    Spec(
        key="chosen_fell",
        title="Chosen that fell",
        series=(("chosen_fell", "train"),),
        dots="chosen_fell",
        share=True,
        reading="Share of pairs whose chosen response is less likely than under the reference. "
        "Around a half is usual; above three in four the policy forgets what people liked.",
    ),
    Spec(
        key="kl",
        title="KL to the reference",
        series=(("kl", "train"),),
        dots="kl",
        reading="An estimate of how far the policy has moved, in nats a response, each counting "
        f"{KL_CLAMP:g} at most. Near that, fluency has gone: lower the learning rate.",
    ),
    Spec(
        key="length",
        title="Response length",
        series=(("chosen_tokens", "chosen"), ("rejected_tokens", "rejected")),
        digits=0,
        reading="Tokens of the responses in each batch. Where chosen ones are much longer, "
        "longer is what the policy will learn, whatever people meant.",
    ),
)
WITHOUT_REFERENCE = {
    "rewards": "SimPO's reward: β times the mean log-probability of a token, always below 0. What "
    "counts is the gap; both falling far means that good answers are unlearned too.",
}
WITHOUT_LINE = (
    "Lower means the policy tells chosen from rejected. Held-out rising while train falls is "
    "memorizing."
)


def reading(spec: Spec, aim: Aim) -> str:
    """How to read a chart of a round with this aim, in a sentence or two."""
    if spec.key == "loss" and aim.first_loss is None:
        return WITHOUT_LINE
    if aim.objective == "simpo":
        return WITHOUT_REFERENCE.get(spec.key, spec.reading)
    return spec.reading
