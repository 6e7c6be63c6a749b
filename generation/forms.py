"""The forms that start a batch and bring a model."""

from typing import Any

from django import forms
from django.conf import settings

from generation.adding import MAX_NAME, PATH_MOST
from generation.models import Batch


class BatchForm(forms.ModelForm):  # type: ignore[type-arg]  # no subscript at run time
    """How candidates are sampled. The limits are the model's own."""

    class Meta:
        model = Batch
        fields = ("k", "temperature", "top_p", "max_new_tokens")
        labels = {
            "k": "Responses a prompt",
            "temperature": "Temperature",
            "top_p": "Top-p",
            "max_new_tokens": "Most tokens",
        }
        help_texts = {
            "k": "2 to 16. More give more to compare, and cost as much more time.",
            "temperature": "1 samples what the policy has learned; lower is tamer, 0 always the "
            "same.",
            "top_p": "1 keeps every token; 0.95 drops the unlikeliest.",
            "max_new_tokens": "A response that reaches this is cut off there.",
        }
        widgets = {
            "k": forms.NumberInput(attrs={"min": 2, "max": 16}),
            "temperature": forms.NumberInput(attrs={"min": 0, "max": 2, "step": "0.05"}),
            "top_p": forms.NumberInput(attrs={"min": 0.01, "max": 1, "step": "0.01"}),
            "max_new_tokens": forms.NumberInput(attrs={"min": 1, "max": 4096}),
        }

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of `start_batch`."""
        return {name: self.cleaned_data[name] for name in self.Meta.fields}


class PolicyForm(forms.Form):
    """A model and what to call it. `generation.adding` checks both."""

    name = forms.CharField(
        max_length=MAX_NAME,
        help_text="What people will call the policy.",
        widget=forms.TextInput(attrs={"autocomplete": "off"}),
    )
    source = forms.CharField(
        max_length=PATH_MOST,
        label="Folder",
        help_text="Its whole path on the site's machine, from / on.",
        widget=forms.TextInput(attrs={"autocapitalize": "off", "spellcheck": "false"}),
    )
    revision = forms.CharField(
        max_length=40,
        required=False,
        help_text="For a model from the hub: the commit, 40 hex digits. Empty means the newest.",
        widget=forms.TextInput(attrs={"autocapitalize": "off", "spellcheck": "false"}),
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if settings.HUB:
            self.fields["source"].label = "Folder or hub id"
            self.fields["source"].help_text += " Or owner/name."
        else:
            del self.fields["revision"]
