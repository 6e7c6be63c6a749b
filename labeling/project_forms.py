"""What is filled in about a project: its settings, why an example is one, and in practice."""

from collections.abc import Mapping
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from labeling.forms import VerdictForm
from labeling.models import Project, Rationale, User
from labeling.services import configuring
from labeling.services.examples import MAX_EXPLANATION

ASKED = [
    (Rationale.NEVER, _("Never: the page has no place for it")),
    (Rationale.OPTIONAL, _("If they like")),
    (Rationale.REQUIRED, _("Always: no verdict without it")),
]


class CriterionForm(forms.Form):
    """One thing that each answer is rated on. A row without a name and a help is no criterion."""

    key = forms.CharField(required=False, widget=forms.HiddenInput)
    name = forms.CharField(label=_("Name"), required=False, max_length=configuring.MAX_NAME)
    help = forms.CharField(
        label=_("What to look at"), required=False, max_length=configuring.MAX_HELP
    )
    remove = forms.BooleanField(label=_("Remove"), required=False)

    use_required_attribute = False

    def clean(self) -> dict[str, Any]:
        """Adds `wanted`: whether the row is a criterion."""
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        name, kept = cleaned.get("name", ""), not cleaned.get("remove")
        if kept and not name and "name" not in self.errors:
            if cleaned.get("key"):
                self.add_error("name", _("Name it, or tick Remove."))
            elif cleaned.get("help"):
                self.add_error("name", _("Name it, or empty its help too."))
        cleaned["wanted"] = kept and bool(name)
        return cleaned

    @property
    def kept(self) -> bool:
        """Whether the project has this criterion already."""
        return bool(self["key"].value())

    @property
    def filled(self) -> bool:
        """Whether anything is in the row."""
        return any(self[name].value() for name in ("key", "name", "help"))


class SettingsForm(forms.Form):
    """A project's settings. What makes sense is for labeling.services.configuring to say."""

    name = forms.CharField(label=_("Name"), max_length=120)
    guidelines = forms.CharField(
        label=_("What annotators read"),
        required=False,
        widget=forms.Textarea(attrs={"rows": 14, "dir": "auto"}),
        help_text=_("Markdown. A changed text is a new version; verdicts name the one they saw."),
    )
    seen = forms.IntegerField(required=False, widget=forms.HiddenInput)
    overlap = forms.IntegerField(
        label=_("Annotators per comparison"),
        min_value=1,
        max_value=50,
        help_text=_("More tell how far people agree; each costs as much as a new comparison."),
    )
    comparison_size = forms.IntegerField(
        label=_("Answers per comparison"),
        min_value=2,
        max_value=8,
        help_text=_("Two are quickest to judge; a ranking of four tells as much as six pairs."),
    )
    held_out_percent = forms.IntegerField(
        label=_("Held-out prompts, in percent"), min_value=0, max_value=90
    )
    rationale = forms.ChoiceField(
        label=_("Do annotators write down why?"), choices=ASKED, widget=forms.RadioSelect
    )
    rejudge_hours = forms.IntegerField(
        label=_("Hours in which a verdict can be changed"),
        min_value=0,
        max_value=configuring.MAX_REJUDGE_HOURS,
        help_text=_("By whoever gave it: undo, or judge again. 0: never."),
    )
    practice = forms.BooleanField(
        label=_("Annotators go through the examples before their first verdict"), required=False
    )

    evaluation_percent = forms.IntegerField(
        label=_("Comparisons that evaluate, in percent"),
        min_value=1,
        max_value=100,
        help_text=_(
            "So many of the comparisons that annotators are given, while a new policy is being "
            "evaluated. They look like all others."
        ),
    )
    gate_percent = forms.IntegerField(
        label=_("Gate, in percent"),
        min_value=50,
        max_value=90,
        help_text=_(
            "A new policy may serve once the lower bound of its win rate exceeds this. Before "
            "that, whoever promotes it says why."
        ),
    )

    def __init__(self, project: Project, data: Mapping[str, Any] | None = None) -> None:
        initial = {
            "name": project.name,
            "guidelines": project.guidelines.text if project.guidelines else "",
            "overlap": project.overlap,
            "comparison_size": project.comparison_size,
            "held_out_percent": project.held_out_percent,
            "rationale": project.rationale,
            "rejudge_hours": project.rejudge_hours,
            "practice": project.practice,
            "evaluation_percent": project.evaluation_percent,
            "gate_percent": project.gate_percent,
        }
        super().__init__(data, initial=initial)
        self.project = project
        held_out = self.fields["held_out_percent"]
        held_out.disabled = project.prompts.exists()
        held_out.help_text = (
            _("Rounds never train on them. Fixed, as prompts are there already.")
            if held_out.disabled
            else _("Rounds never train on them. Fixed once the first prompts are there.")
        )
        self.criteria_error = ""
        self.criteria = [
            CriterionForm(data, prefix=f"criterion-{number}", initial=initial)
            for number, initial in enumerate(_rows(project))
        ]

    def is_valid(self) -> bool:
        """Whether the settings and every criterion are well formed."""
        rows = [row.is_valid() for row in self.criteria]
        return super().is_valid() and all(rows)

    def clean_guidelines(self) -> str:
        """With line ends of one character, as they are stored."""
        text: str = self.cleaned_data["guidelines"]
        return text.replace("\r\n", "\n")

    def clean(self) -> dict[str, Any]:
        """Nobody replaces a version that they have not seen."""
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        current = self.project.guidelines
        if current is None or cleaned.get("seen") == current.number:
            return cleaned
        if not configuring.same_text(cleaned.get("guidelines", current.text), current.text):
            self.add_error("guidelines", self._overtaken(current.number, current.author))
        return cleaned

    def save(self, actor: User) -> Project | None:
        """Write the settings; None, with the errors at their fields, where they are refused."""
        changes = {name: self.cleaned_data[name] for name in self.fields if name != "seen"}
        rows = [row.cleaned_data for row in self.criteria]
        criteria = [
            {name: row[name] for name in ("key", "name", "help")} for row in rows if row["wanted"]
        ]
        try:
            return configuring.configure(
                project=self.project, actor=actor, criteria=criteria, **changes
            )
        except ValidationError as refused:
            errors = refused.message_dict
            self.criteria_error = " ".join(errors.pop("criteria", []))
            for name, messages in errors.items():
                self.add_error(name, messages)
            return None

    def _overtaken(self, number: int, author: User | None) -> str:
        return gettext(
            "Version %(number)s by %(author)s came in between. Read it below: to put your text in "
            "its place, save once more."
        ) % {"number": number, "author": author or gettext("an import")}


class ExplanationForm(forms.Form):
    """Why the verdict of an example is right."""

    explanation = forms.CharField(
        label=_("Why is this the verdict?"),
        max_length=MAX_EXPLANATION,
        widget=forms.Textarea(attrs={"rows": 6, "dir": "auto"}),
        help_text=_("Markdown: what decides it. Everybody finds the answers under these letters."),
    )


class PracticeForm(VerdictForm):
    """What is said of an example: which answer is better, and nothing besides."""

    example = forms.IntegerField()
    since = forms.IntegerField(required=False)

    def __init__(self, *args: Any, project: Project, **kwargs: Any) -> None:
        super().__init__(*args, project=project, **kwargs)
        for name in ("lease", "key", "rationale"):
            self.fields[name].required = False

    def clean_confirmed(self) -> bool:
        """Nobody is asked whether they mean the order that is shown: they are told at once."""
        return True


def _rows(project: Project) -> list[dict[str, str]]:
    """What is in the rows for criteria: those of the project, and then empty ones."""
    spare = configuring.MAX_CRITERIA - len(project.criteria)
    return [*project.criteria, *({} for _number in range(spare))]
