"""What managers ask of the queue: which comparisons, and what to do with them."""

from collections.abc import Mapping
from typing import Any

from django import forms
from django.http import QueryDict
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from labeling.models import Comparison, Project, QueueChange, Split
from labeling.services.queueing import BY_PEOPLE, PRIORITIES, Filters

LATEST_POLICIES = 200
PURPOSES = (
    Comparison.Purpose.STANDARD,
    Comparison.Purpose.GOLD,
    Comparison.Purpose.EVALUATION,
)
STATES: dict[str, Promise] = {
    "untouched": gettext_lazy("Open, nobody has judged"),
    "started": gettext_lazy("Open, begun"),
    "held": gettext_lazy("Held back"),
    "judged": gettext_lazy("Judged"),
    "retired": gettext_lazy("Retired"),
}
PAIRINGS = {
    **dict(Comparison.Pairing.choices),
    BY_PEOPLE: gettext_lazy("Chosen by people"),
}
ANSWERS = range(2, 9)


class FilterForm(forms.Form):
    """Which comparisons; what cannot be is an error, not an empty filter."""

    state = forms.ChoiceField(
        required=False,
        label=gettext_lazy("State"),
        choices=[("", gettext_lazy("Any state")), *STATES.items()],
    )
    purpose = forms.ChoiceField(
        required=False,
        label=gettext_lazy("Purpose"),
        choices=[("", gettext_lazy("Any purpose")), *((one, one.label) for one in PURPOSES)],
    )
    split = forms.ChoiceField(
        required=False,
        label=gettext_lazy("Split"),
        choices=[("", gettext_lazy("Both sides")), *Split.choices],
    )
    pairing = forms.ChoiceField(
        required=False,
        label=gettext_lazy("Pairing"),
        choices=[("", gettext_lazy("Any pairing")), *PAIRINGS.items()],
    )
    answers = forms.TypedChoiceField(
        required=False,
        coerce=int,
        empty_value=None,
        label=gettext_lazy("Answers"),
        choices=[("", gettext_lazy("Any number")), *((number, number) for number in ANSWERS)],
    )
    text = forms.CharField(
        required=False, max_length=200, label=gettext_lazy("Prompt says, or its id")
    )

    def __init__(self, project: Project, data: QueryDict) -> None:
        super().__init__(data)
        latest = project.policies.order_by("-id").values_list("pk", "name")[:LATEST_POLICIES]
        self.policies = dict(latest)
        self.fields["policy"] = forms.TypedChoiceField(
            required=False,
            coerce=int,
            empty_value=None,
            choices=[("", _("Any policy")), *self.policies.items()],
            label=_("With an answer by"),
        )
        self.order_fields(("state", "policy", "split", "pairing", "answers", "purpose", "text"))

    def filters(self) -> Filters | None:
        """The filters; None where one of them cannot be."""
        return Filters(**self.cleaned_data) if self.is_valid() else None

    @property
    def problems(self) -> list[str]:
        """What is wrong, each with the field's name."""
        return [
            f"{self.fields[name].label}: {problem}"
            for name, problems in self.errors.items()
            for problem in problems
        ]

    def words(self, stored: Mapping[str, Any]) -> str:
        """Filters of a past change, as people read them."""
        words: dict[str, Mapping[Any, Any]] = {
            "state": STATES,
            "purpose": dict(Comparison.Purpose.choices),
            "split": dict(Split.choices),
            "pairing": PAIRINGS,
            "policy": self.policies,
        }
        parts = [
            f"{self.fields[name].label}: {words.get(name, {}).get(value, value)}"
            for name, value in stored.items()
            if name in self.fields
        ]
        return " · ".join(parts)


class ChangeForm(forms.Form):
    """What to do with the matches."""

    action = forms.ChoiceField(choices=QueueChange.Action.choices)
    priority = forms.IntegerField(
        required=False,
        min_value=PRIORITIES.start,
        max_value=PRIORITIES.stop - 1,
        label=gettext_lazy("Priority"),
    )

    def clean(self) -> dict[str, Any]:
        """A priority where one is set; for the other actions it says nothing."""
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        if cleaned.get("action") != QueueChange.Action.PRIORITY:
            cleaned["priority"] = None
        elif cleaned.get("priority") is None and "priority" not in self.errors:
            self.add_error("priority", _("Say which priority."))
        return cleaned
