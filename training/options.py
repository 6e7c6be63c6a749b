"""A round's options: each with its words, a usual value, and with what it means anything.

Which option applies with which objective or method is the trainer's fact: it is read from there.
"""

from collections.abc import Mapping
from typing import Any, cast

from django import forms
from django.utils import formats
from django.utils.text import format_lazy, get_text_list
from django.utils.translation import gettext, gettext_noop
from django.utils.translation import gettext_lazy as _

from training.models import Reference
from training.trainer.config import DEFAULTS, ONLY_WITH

WITH_REFERENCE = ("dpo", "ipo", "hinge", "robust")
# By option: the other one, and its values with which this one means anything.
CONDITIONS = {**ONLY_WITH, "logratio": ("objective", WITH_REFERENCE)}
MAIN = (
    "reference",
    "method",
    "beta",
    "learning_rate",
    "epochs",
    "batch_groups",
    "max_length",
    "labels",
    "dtype",
)
# Values whose words on the form explain themselves at length.
IN_SHORT = {"full": _("Full"), "lora": "LoRA"}
FURTHER = {
    gettext_noop("What the loss asks"): (
        "objective",
        "logratio",
        "label_noise",
        "target_margin",
        "length_penalty",
        "chosen_floor",
        "ties",
    ),
    gettext_noop("Length and memory"): ("long_prompts", "activation_checkpointing"),
    gettext_noop("When to stop, what to keep"): ("early_stopping", "keep", "lora_export", "seed"),
}


class OptionFields(forms.Form):
    """The fields. Those of FURTHER may be left out, which is the trainer's own default."""

    reference = forms.ChoiceField(
        choices=Reference.choices,
        label=_("Reference"),
        help_text=_(
            "What the policy is held to. The initial policy keeps all rounds together from "
            "drifting; its own start lets each round move on from the last."
        ),
    )
    method = forms.ChoiceField(
        choices=[("full", _("Full: all weights")), ("lora", _("LoRA: an adapter"))],
        label=_("Method"),
        help_text=_(
            "Full suits small models. An adapter needs a fraction of the memory and can be "
            "taken off again."
        ),
    )
    beta = forms.FloatField(
        min_value=0.001,
        max_value=100,
        label="β",
        help_text=_(
            "How tightly the policy is held to the reference. Usual: 0.05 to 0.5, for SimPO 2 "
            "to 10; lower moves further."
        ),
    )
    learning_rate = forms.FloatField(
        min_value=1e-8,
        max_value=0.01,
        label=_("Learning rate"),
        help_text=_(
            "The size of a step. Too high shows as repetition and a loss near 0: about 1e-6 for"
            " large models in full, 1e-5 for adapters, 8e-5 for tiny ones."
        ),
    )
    epochs = forms.IntegerField(
        min_value=1,
        max_value=100,
        label=_("Epochs"),
        help_text=_("How often each pair is seen. More than 2 or 3 learns pairs by heart."),
    )
    batch_groups = forms.IntegerField(
        min_value=1,
        max_value=1024,
        label=_("Comparisons a step"),
        help_text=_("More make steadier steps, and fewer of them."),
    )
    max_length = forms.IntegerField(
        min_value=16,
        max_value=131_072,
        label=_("Most tokens"),
        help_text=_(
            "Of a prompt with a response. A longer prompt loses its oldest turns, which is "
            "counted; its system message, its last turn and the responses stay whole."
        ),
    )
    labels = forms.ChoiceField(
        choices=[("votes", _("Share of votes")), ("majority", _("Majority takes all"))],
        label=_("Labels"),
        help_text=_("With the share, a 2 : 1 vote teaches less certainty than a 3 : 0."),
    )
    dtype = forms.ChoiceField(
        choices=[("float32", "float32"), ("bfloat16", "bfloat16")],
        label=_("Precision"),
        help_text=_("bfloat16 halves the memory of large models; log-probabilities stay float32."),
    )

    objective = forms.ChoiceField(
        required=False,
        choices=[
            ("dpo", "DPO"),
            ("ipo", "IPO"),
            ("hinge", "Hinge"),
            ("robust", _("Robust DPO")),
            ("simpo", "SimPO"),
        ],
        label=_("Objective"),
        help_text=_(
            "DPO fits most rounds. IPO and hinge stop at a margin, robust DPO expects wrong "
            "votes, SimPO trains without the reference."
        ),
    )
    logratio = forms.ChoiceField(
        required=False,
        choices=[
            ("", _("As the objective has it")),
            ("sum", _("Summed over tokens")),
            ("mean", _("Mean a token")),
        ],
        label=_("Log-probability"),
        help_text=_(
            "Summed is usual. With the mean long responses weigh no more than short ones, and β"
            " is larger: about 5 for DPO. IPO must be told."
        ),
    )
    label_noise = forms.FloatField(
        required=False,
        min_value=0,
        max_value=0.49,
        label=_("Wrong votes"),
        help_text=_("The share of votes that you take to be mistakes. Usual: 0.1."),
    )
    target_margin = forms.FloatField(
        required=False,
        min_value=0,
        max_value=100,
        label=_("Target margin γ"),
        help_text=_("By how much a chosen response should win. Usual: half of β."),
    )
    length_penalty = forms.FloatField(
        required=False,
        min_value=1e-6,
        max_value=10,
        label=_("Length penalty α"),
        help_text=_(
            "Where the chosen response is the longer one, each token more makes the pair teach "
            "less. Usual: 0.005 to 0.05; empty: none."
        ),
    )
    chosen_floor = forms.FloatField(
        required=False,
        min_value=1e-6,
        max_value=1000,
        label=_("Floor under chosen λ"),
        help_text=_(
            "Keeps chosen responses from becoming less likely than under the reference, which "
            "pairs that differ in few words suffer from. Usual: 5 to 50; empty: none."
        ),
    )
    ties = forms.ChoiceField(
        required=False,
        choices=[("drop", _("Leave tied votes out")), ("rao_kupper", _("Model ties (Rao-Kupper)"))],
        label=_("Ties"),
        help_text=_(
            "Modelled, a tie teaches that two responses are equally good. Worth it from about "
            "one tied vote in ten."
        ),
    )
    long_prompts = forms.ChoiceField(
        required=False,
        choices=[
            ("shorten", _("Leave out their oldest turns")),
            ("drop", _("Leave out their pairs")),
        ],
        label=_("Long prompts"),
        help_text=_("What happens to a prompt with more than the most tokens; either is counted."),
    )
    activation_checkpointing = forms.BooleanField(
        required=False,
        label=_("Compute activations twice"),
        help_text=_(
            "Instead of keeping them: steps take about a third longer in far less memory. Usual"
            " for large models in full."
        ),
    )
    early_stopping = forms.IntegerField(
        required=False,
        min_value=1,
        max_value=1000,
        label=_("Stop early"),
        help_text=format_lazy(
            _(
                "After so many looks at the held-out pairs, one every {every} steps, without a "
                "better reward accuracy. Usual: 3; empty: never."
            ),
            every=DEFAULTS["eval_every"],
        ),
    )
    keep = forms.ChoiceField(
        required=False,
        choices=[("last", _("The last step")), ("best", _("The best held-out accuracy"))],
        label=_("Keep"),
        help_text=_(
            "Which step becomes the policy. The best suits many held-out pairs, 100 or more: "
            "among few the best is mostly luck."
        ),
    )
    lora_export = forms.ChoiceField(
        required=False,
        choices=[("adapter", _("An adapter")), ("merged", _("Whole weights"))],
        label=_("Result"),
        help_text=_(
            "Whole weights load wherever the model does, and take as much room as it. Usual: an"
            " adapter."
        ),
    )
    seed = forms.IntegerField(
        required=False,
        min_value=0,
        max_value=2**31 - 1,
        label=_("Seed"),
        help_text=_(
            "The order of the pairs and the luck of samples. Any number; the same one gives the"
            " same policy."
        ),
    )


def only_for(name: str) -> str:
    """With what an option means anything, in words: "DPO, IPO, Hinge and Robust DPO"."""
    other, values = CONDITIONS[name]
    return get_text_list([shown(other, value) for value in values], gettext("and"))


def shown(name: str, value: Any) -> str:
    """An option's value as the form words it, or shorter."""
    field = OptionFields.base_fields.get(name)
    if isinstance(field, forms.ChoiceField):
        words = dict(cast(list[tuple[str, str]], field.choices))
        return str(IN_SHORT.get(value, words.get(value, value)))
    if isinstance(value, float) and "e" not in str(value):
        return str(formats.localize(value))
    if isinstance(value, bool):
        return gettext("yes") if value else gettext("no")
    return str(value)


def named_options(options: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A round's options in the form's order and words; others under their own names."""
    fields = OptionFields.base_fields
    known = [name for name in fields if name in options]
    others = [name for name in options if name not in fields]
    return [(str(fields[name].label), shown(name, options[name])) for name in known] + [
        (name, str(options[name])) for name in others
    ]
