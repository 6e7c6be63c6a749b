"""The form that starts a batch: who writes, for which prompts, and how."""

import re
from collections.abc import Mapping
from typing import Any

from django import forms
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, pgettext, pgettext_lazy

from generation.forms import SamplingForm
from generation.lineage import WORDS, standing
from generation.models import LARGEST_SEED, MOST_WEIGHT
from generation.plans import last_asked
from generation.selecting import LONGEST_SEARCH, MOST_PROMPTS, Selection
from generation.services import CannotGenerate
from labeling.models import Policy, Project, Split

SHOWN_POLICIES = 200
WHO = {
    "current": gettext_lazy("It serves now."),
    "previous": gettext_lazy("It served before."),
    "base": gettext_lazy("The initial policy."),
}


class HowForm(SamplingForm):
    """How one batch samples."""

    seed = forms.IntegerField(
        required=False,
        min_value=0,
        max_value=LARGEST_SEED,
        label=gettext_lazy("Seed"),
        help_text=gettext_lazy("The same seed draws the same numbers again. Empty: a new one."),
    )


class WhoForm(forms.Form):
    """Who writes, by weight. Only what the project has is asked for."""

    def __init__(self, project: Project, data: Mapping[str, Any] | None = None) -> None:
        super().__init__(data)
        self.policies: dict[str, Policy] = {}
        found = standing(project)
        for word in WORDS:
            if word in found and found[word] not in self.policies.values():
                self.policies[word] = found[word]
        known = [policy.pk for policy in self.policies.values()]
        others = project.policies.exclude(pk__in=known).order_by("-pk")[:SHOWN_POLICIES]
        self.others = {str(policy.pk): policy for policy in others}
        self._add_fields()

    def _add_fields(self) -> None:
        if len(self.policies) + len(self.others) < 2:
            return
        for word, policy in self.policies.items():
            self.fields[word] = self._weight(policy.name, str(WHO[word]), int(word == "current"))
        if self.others:
            named = ((pk, policy.name) for pk, policy in self.others.items())
            choices = [("", pgettext("policy", "None")), *named]
            self.fields["other"] = forms.ChoiceField(
                choices=choices, required=False, label=_("Another policy")
            )
            self.fields["other_weight"] = self._weight(_("Its weight"), "", 1)

    @property
    def unfolded(self) -> bool:
        """Whether somebody must look at it, or has given others than the serving policy a share."""
        return bool(self.errors) or (self.is_bound and self.weights.keys() != self._usual)

    @property
    def _usual(self) -> set[Policy]:
        return {policy for word, policy in self.policies.items() if word == "current"}

    def _weight(self, label: str, help_text: str, initial: int) -> forms.IntegerField:
        return forms.IntegerField(
            min_value=0,
            max_value=MOST_WEIGHT,
            required=False,
            label=label,
            help_text=help_text,
            initial=initial,
        )

    @property
    def weights(self) -> dict[Policy, int]:
        """For `start_batch`; the serving policy where there is no choice."""
        if not self.fields or not self.is_bound:
            return dict.fromkeys(self._usual, 1)
        cleaned = getattr(self, "cleaned_data", {})
        found = {policy: cleaned.get(word) or 0 for word, policy in self.policies.items()}
        if other := self.others.get(cleaned.get("other", "")):
            found[other] = cleaned.get("other_weight") or 0
        return {policy: weight for policy, weight in found.items() if weight}


class WhichForm(forms.Form):
    """Which prompts are asked."""

    fewer_than = forms.IntegerField(
        required=False,
        min_value=1,
        max_value=MOST_PROMPTS,
        label=gettext_lazy("With fewer responses than"),
        help_text=gettext_lazy("Counted by who writes here. Empty: those without an answer yet."),
    )
    split = forms.ChoiceField(
        required=False,
        choices=[("", gettext_lazy("Both sides")), *Split.choices],
        label=gettext_lazy("Split"),
    )
    search = forms.CharField(
        required=False, max_length=LONGEST_SEARCH, label=pgettext_lazy("prompts", "That say")
    )
    ids = forms.CharField(
        required=False,
        label=pgettext_lazy("prompts", "Only these"),
        help_text=gettext_lazy("Numbers of prompts, with commas."),
    )
    limit = forms.IntegerField(
        required=False, min_value=1, max_value=MOST_PROMPTS, label=gettext_lazy("At most")
    )

    @property
    def unfolded(self) -> bool:
        """Whether somebody narrowed it, or must look at it."""
        return any(field.errors or field.data for field in self)

    def clean_ids(self) -> tuple[int, ...]:
        """Numbers, however they are separated."""
        words = re.split(r"[\s,;]+", self.cleaned_data["ids"].strip())
        if words == [""]:
            return ()
        if not all(re.fullmatch(r"[0-9]{1,15}", word) for word in words):
            raise forms.ValidationError(_("Enter numbers of prompts, with commas."))
        return tuple(dict.fromkeys(int(word) for word in words))

    @property
    def selection(self) -> Selection:
        """For `start_batch`; what is wrong is as if it were not there."""
        cleaned = getattr(self, "cleaned_data", {})
        given = {name: cleaned[name] for name in self.fields if cleaned.get(name)}
        return Selection(**given)


class BatchForms:
    """One form to its user: who writes, for which prompts, and how."""

    def __init__(self, project: Project, data: Mapping[str, Any] | None = None) -> None:
        last = last_asked(project)
        self.who = WhoForm(project, data)
        self.which = WhichForm(data)
        self.how = HowForm(data, initial=last.sampling if last else {})

    def is_valid(self) -> bool:
        """All of them are looked at, so that everything wrong is marked at once."""
        found = [form.is_valid() for form in (self.who, self.which, self.how)]
        return all(found)

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of `start_batch`."""
        return {
            "policies": self.who.weights,
            "selection": self.which.selection,
            **self.how.cleaned_data,
        }

    def refuse(self, reason: CannotGenerate) -> str:
        """Mark what `start_batch` refused at its field; returns what belongs to none."""
        rest = []
        for name, messages in reason.errors.items():
            field = "current" if name == "policies" else name
            homes = [form for form in (self.who, self.which, self.how) if field in form.fields]
            for message in messages:
                homes[0].add_error(field, message) if homes else rest.append(message)
        return " ".join(rest)
