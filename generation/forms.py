"""The forms that say how batches sample, plan them, and bring a model."""

import re
from typing import Any

from django import forms
from django.conf import settings
from django.utils.translation import gettext_lazy as _

from generation.adding import MAX_NAME, PATH_MOST
from generation.lineage import WORDS
from generation.models import SAMPLING, Batch, Plan

MAIN = ("k", "temperature", "max_new_tokens")
ESCAPES = {"\\n": "\n", "\\t": "\t", "\\\\": "\\"}


class LinesField(forms.CharField):
    """A list of texts, one a line; \\n, \\t and \\\\ stand for what a line cannot hold."""

    widget = forms.Textarea(attrs={"rows": 2, "spellcheck": "false"})

    def __init__(self, **options: Any) -> None:
        super().__init__(strip=False, required=False, **options)

    def prepare_value(self, value: Any) -> Any:
        """A stored list as lines."""
        if not isinstance(value, list):
            return value
        return "\n".join(map(in_one_line, value))

    def to_python(self, value: Any) -> list[str]:  # type: ignore[override]
        """Lines as a list; empty ones say nothing."""
        lines = str(value or "").replace("\r\n", "\n").split("\n")
        return [re.sub(r"\\[nt\\]", lambda m: ESCAPES[m[0]], line) for line in lines if line]

    def has_changed(self, initial: Any, data: Any) -> bool:
        """Compared as lists."""
        return self.to_python(data) != (initial or [])


def in_one_line(text: str) -> str:
    """A text as `LinesField` reads it."""
    written = {sign: escape for escape, sign in ESCAPES.items()}
    return re.sub(r"[\n\t\\]", lambda found: written[found[0]], text)


class SamplingForm(forms.ModelForm):  # type: ignore[type-arg]  # no subscript at run time
    """How responses are sampled and compared. The limits are the model's own."""

    stop = LinesField(
        label=_("Stop texts"),
        help_text=_("One a line, \\n for a line break. A response ends before the first of them."),
    )

    class Meta:
        model = Batch
        fields = SAMPLING
        labels = {
            "k": _("Responses a prompt"),
            "temperature": _("Temperature"),
            "top_p": _("Top-p"),
            "max_new_tokens": _("Most tokens"),
            "system": _("System message"),
            "pairing": _("Compare"),
            "random_percent": _("Compared at random, %"),
        }
        help_texts = {
            "k": _("2 to 16. More give more to compare, and cost as much more time."),
            "temperature": _(
                "1 samples what the policy has learned; lower is tamer, 0 always the same."
            ),
            "top_p": _("1 keeps every token; 0.95 drops the unlikeliest."),
            "max_new_tokens": _("A response that reaches this is cut off there."),
            "system": _("For prompts that have none of their own."),
            "pairing": _(
                "Which of a prompt's responses stand side by side. Rewards need a policy that has "
                "been trained."
            ),
            "random_percent": _(
                "10 to 100: a share of prompts whose pairing shows what the other is worth."
            ),
        }
        widgets = {
            "k": forms.NumberInput(attrs={"min": 2, "max": 16}),
            "temperature": forms.NumberInput(attrs={"min": 0, "max": 2, "step": "0.05"}),
            "top_p": forms.NumberInput(attrs={"min": 0.01, "max": 1, "step": "0.01"}),
            "max_new_tokens": forms.NumberInput(attrs={"min": 1, "max": 4096}),
            "system": forms.Textarea(attrs={"rows": 2}),
            "random_percent": forms.NumberInput(attrs={"min": 10, "max": 100}),
        }

    @property
    def main(self) -> list[forms.BoundField]:
        """What most batches decide."""
        return [self[name] for name in MAIN]

    @property
    def further(self) -> list[forms.BoundField]:
        """The rest."""
        return [field for field in self if field.name not in MAIN]

    @property
    def unfolded(self) -> bool:
        """Whether somebody must look at the rest."""
        return any(field.errors for field in self.further)


class PlanForm(SamplingForm):
    """How many comparisons are kept ready, and how the batches for that sample.

    It stands beside the form that starts a batch, so its fields have ids of their own.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"auto_id": "id_plan_%s", **kwargs})

    class Meta(SamplingForm.Meta):
        model = Plan  # type: ignore[assignment]
        fields = ("ready", *WORDS, *SAMPLING)  # type: ignore[assignment]
        labels = {
            **SamplingForm.Meta.labels,
            "ready": _("Comparisons"),
            "current": _("Weight of the serving policy"),
            "previous": _("Weight of the one before"),
            "base": _("Weight of the initial one"),
        }
        help_texts = {
            **SamplingForm.Meta.help_texts,
            "ready": _("As people judge them, more are written. 0 turns it off."),
        }

    @property
    def main(self) -> list[forms.BoundField]:
        """What the plan is."""
        return [self["ready"]]

    @property
    def further(self) -> list[forms.BoundField]:
        """How its batches sample."""
        return [field for field in self if field.name != "ready"]

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of `save_plan`."""
        values = dict(self.cleaned_data)
        weights = {word: values.pop(word) for word in WORDS}
        return {"weights": weights, **values}


class PolicyForm(forms.Form):
    """A model and what to call it. `generation.adding` checks both."""

    name = forms.CharField(
        max_length=MAX_NAME,
        label=_("Name"),
        help_text=_("What people will call the policy."),
        widget=forms.TextInput(attrs={"autocomplete": "off"}),
    )
    source = forms.CharField(
        max_length=PATH_MOST,
        label=_("Folder"),
        help_text=_("Its whole path on the site's machine, from / on."),
        widget=forms.TextInput(attrs={"autocapitalize": "off", "spellcheck": "false"}),
    )
    revision = forms.CharField(
        max_length=40,
        required=False,
        label=_("Revision"),
        help_text=_("For a model from the hub: the commit, 40 hex digits. Empty means the newest."),
        widget=forms.TextInput(attrs={"autocapitalize": "off", "spellcheck": "false"}),
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if settings.HUB:
            self.fields["source"].label = _("Folder or hub id")
            self.fields["source"].help_text = _(
                "Its whole path on the site's machine, from / on. Or owner/name."
            )
        else:
            del self.fields["revision"]
