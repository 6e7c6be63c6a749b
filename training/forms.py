"""The form that starts a round: each option with a sentence that says what it does."""

from typing import Any

from django import forms

from training.models import Round

OPTIONS = (
    "method",
    "beta",
    "learning_rate",
    "epochs",
    "batch_groups",
    "max_length",
    "dtype",
    "labels",
)


class RoundForm(forms.Form):
    """A round's options; the initial values suit the size of the policy."""

    reference = forms.ChoiceField(
        choices=Round.Reference.choices,
        label="Reference",
        help_text="What the policy is held to. The initial policy keeps all rounds together from "
        "drifting; its own start lets each round move on from the last.",
    )
    method = forms.ChoiceField(
        choices=[("full", "Full: all weights"), ("lora", "LoRA: an adapter")],
        label="Method",
        help_text="Full suits small models. An adapter needs a fraction of the memory and can be "
        "taken off again.",
    )
    beta = forms.FloatField(
        min_value=0.001,
        max_value=10,
        label="β",
        help_text="How tightly the policy is held to the reference. Usual: 0.05 to 0.5; lower "
        "moves further.",
    )
    learning_rate = forms.FloatField(
        min_value=1e-8,
        max_value=0.01,
        label="Learning rate",
        help_text="The size of a step. Too high shows as repetition and a loss near 0: about "
        "1e-6 for large models in full, 1e-5 for adapters, 8e-5 for tiny ones.",
    )
    epochs = forms.IntegerField(
        min_value=1,
        max_value=100,
        label="Epochs",
        help_text="How often each pair is seen. More than 2 or 3 learns pairs by heart.",
    )
    batch_groups = forms.IntegerField(
        min_value=1,
        max_value=1024,
        label="Comparisons a step",
        help_text="More make steadier steps, and fewer of them.",
    )
    max_length = forms.IntegerField(
        min_value=16,
        max_value=131_072,
        label="Most tokens",
        help_text="Of a prompt with a response. Longer pairs are left out and counted, never cut.",
    )
    labels = forms.ChoiceField(
        choices=[("votes", "Share of votes"), ("majority", "Majority takes all")],
        label="Labels",
        help_text="With the share, a 2 : 1 vote teaches less certainty than a 3 : 0.",
    )
    dtype = forms.ChoiceField(
        choices=[("float32", "float32"), ("bfloat16", "bfloat16")],
        label="Precision",
        help_text="bfloat16 halves the memory of large models; log-probabilities stay float32.",
    )

    def __init__(self, data: Any = None, *, defaults: dict[str, Any] | None = None) -> None:
        start = {"reference": Round.Reference.INITIAL, "labels": "votes", **(defaults or {})}
        super().__init__(data, initial=start)
        for name in ("beta", "learning_rate"):
            self.fields[name].widget.attrs["step"] = "any"

    @property
    def options(self) -> dict[str, Any]:
        """Trainer options, by the names of the trainer's spec."""
        return {name: self.cleaned_data[name] for name in OPTIONS}


def named_options(options: dict[str, Any]) -> list[tuple[str, Any]]:
    """A round's options under the labels of the form; others under their own names."""
    fields = RoundForm.base_fields
    return [
        (str(fields[name].label) if name in fields else name, value)
        for name, value in options.items()
    ]
