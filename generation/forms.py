"""The form that starts a batch."""

from typing import Any

from django import forms

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
