"""The form that says when a project's rounds start by themselves."""

from functools import cache
from typing import Any
from zoneinfo import available_timezones

from django import forms
from django.conf import settings
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from labeling.lineage import initial_policy
from labeling.models import Project
from training.filters import Filters
from training.models import AfterSuccess, Reference, Round, RoundSchedule, RoundState

MOST_PAIRS = 10_000_000
SHOWN_ROUNDS = 20  # whose options may be taken
AS_IS = "as-is"


class ScheduleForm(forms.Form):
    """When, what each round is like, and what comes after it."""

    every = forms.IntegerField(
        required=False,
        min_value=1,
        max_value=MOST_PAIRS,
        label=gettext_lazy("New preferences"),
        help_text=gettext_lazy(
            "A round starts once so many pairs to train on were decided, or changed, since the "
            "last round that succeeded. Usual: 100 to 1000; empty: however many there are."
        ),
    )
    cron = forms.CharField(
        required=False,
        max_length=100,
        label=gettext_lazy("Times"),
        help_text=gettext_lazy(
            "Minute, hour, day of the month, month, weekday: 30 2 * * * is every night at 02:30, "
            "0 6 * * 1 Mondays at 06:00. Empty: at any time."
        ),
    )
    time_zone = forms.ChoiceField(
        label=gettext_lazy("Time zone"),
        help_text=gettext_lazy("Whose clocks the times go by, summer time included."),
    )
    like = forms.ChoiceField(
        required=False,
        label=gettext_lazy("Options"),
        help_text=gettext_lazy(
            "Try options in a round of your own first; rounds of the schedule can then be like it, "
            "its choice of pairs included."
        ),
    )
    after = forms.ChoiceField(
        choices=AfterSuccess.choices,
        widget=forms.RadioSelect,
        label=gettext_lazy("When a round has made a policy"),
    )

    def __init__(self, project: Project, schedule: RoundSchedule | None, data: Any = None) -> None:
        initial: dict[str, Any] = {
            "every": 100,
            "time_zone": settings.TIME_ZONE,
            "after": AfterSuccess.EVALUATE,
        }
        if schedule is not None:
            names = ("cron", "time_zone", "after")
            initial = {name: getattr(schedule, name) for name in names}
            initial["every"] = schedule.every or None
            initial["like"] = AS_IS if schedule.options else ""
        super().__init__(data, initial=initial)
        self.schedule = schedule
        done = project.rounds.filter(state=RoundState.SUCCEEDED).select_related(
            "start", "reference"
        )
        self.rounds = {str(one.number): one for one in done.order_by("-number")[:SHOWN_ROUNDS]}
        self._offer()
        self.fields["cron"].widget.attrs |= {"autocapitalize": "none", "spellcheck": "false"}

    def _offer(self) -> None:
        like: Any = self.fields["like"]
        like.choices = [("", _("What suits the policy and the data then"))]
        if self.schedule is not None and self.schedule.options:
            like.choices.append((AS_IS, _("As they are saved now")))
        like.choices += [
            (number, _("Like round %(number)s") % {"number": number}) for number in self.rounds
        ]
        zones: Any = self.fields["time_zone"]
        known = [*_zones()]
        saved = self.initial["time_zone"]
        zones.choices = [(name, name) for name in (known if saved in known else [saved, *known])]

    @property
    def wanted(self) -> dict[str, Any]:
        """Keyword arguments of `save_schedule`."""
        cleaned = self.cleaned_data
        return {
            "every": cleaned["every"] or 0,
            "cron": cleaned["cron"],
            "time_zone": cleaned["time_zone"],
            "after": AfterSuccess(cleaned["after"]),
            **self._options(cleaned["like"]),
        }

    def _options(self, like: str) -> dict[str, Any]:
        if like == AS_IS and self.schedule is not None:
            return {
                "options": self.schedule.options,
                "filters": Filters.from_json(self.schedule.filters),
                "reference": Reference(self.schedule.reference),
            }
        if round_ := self.rounds.get(like):
            return {
                "options": round_.options,
                "filters": Filters.from_json(round_.filters),
                "reference": _reference(round_),
            }
        return {}


def _reference(like: Round) -> Reference:
    """What a round was held to, as a rule for others."""
    initial = initial_policy(like.start).pk
    own = like.reference_id == like.start_id and initial != like.start_id
    return Reference.START if own else Reference.INITIAL


@cache
def _zones() -> tuple[str, ...]:
    """The time zones that people live in, by name; UTC first."""
    named = (name for name in available_timezones() if "/" in name)
    lived_in = (name for name in named if not name.startswith(("Etc/", "SystemV/", "US/")))
    return ("UTC", *sorted(lived_in))
