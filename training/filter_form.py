"""The form that narrows what a round trains on, and its filters in words."""

from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any

from django import forms
from django.db.models import Q
from django.forms.boundfield import BoundField
from django.utils import formats
from django.utils.text import get_text_list
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from labeling.models import Project, User
from labeling.services.verdicts import RATINGS
from training.filters import NO_POLICY, BadFilters, Filters

MOST_POLICIES = 100  # newest first; a round on the responses of older ones is rare
RATING = "rating_"  # and a criterion's key
FIRST_DAY, LAST_DAY = date(2000, 1, 1), date(2999, 12, 31)  # far from where calendars end


class FilterForm(forms.Form):
    """Which pairs to train on; left empty, all.

    What a round was narrowed by that is begun anew may always be chosen again: people who have
    left, older policies, criteria that are no longer asked for.
    """

    agreement = forms.IntegerField(
        required=False,
        min_value=1,
        max_value=100,
        label=gettext_lazy("Least agreement, %"),
        help_text=gettext_lazy(
            "Of the votes on a pair, the share that says the same. 67 leaves out a 1 : 1 and "
            "keeps a 2 : 1; a single vote agrees with itself."
        ),
    )
    since = forms.DateField(
        required=False,
        label=gettext_lazy("Judged from"),
        widget=forms.DateInput(attrs={"type": "date"}, format="%Y-%m-%d"),
        help_text=gettext_lazy("Votes of earlier days do not count."),
    )
    until = forms.DateField(
        required=False,
        label=gettext_lazy("Judged until"),
        widget=forms.DateInput(attrs={"type": "date"}, format="%Y-%m-%d"),
        help_text=gettext_lazy("Votes of later days do not count; this day's do."),
    )
    annotators = forms.TypedMultipleChoiceField(
        required=False,
        coerce=int,
        label=gettext_lazy("Votes of"),
        widget=forms.CheckboxSelectMultiple,
        help_text=gettext_lazy("Only theirs count; none chosen: everybody's."),
    )
    policies = forms.TypedMultipleChoiceField(
        required=False,
        coerce=int,
        label=gettext_lazy("Responses of"),
        widget=forms.CheckboxSelectMultiple,
        help_text=gettext_lazy("Both of a pair; none chosen: anybody's."),
    )

    def __init__(self, project: Project, data: Any = None, *, initial: Filters | None = None):
        begun = initial or Filters()
        super().__init__(data, initial=_initial(begun))
        self.project = project
        self.fields["annotators"].choices = _people(project, begun)  # type: ignore[attr-defined]
        self.fields["policies"].choices = _policies(project, begun)  # type: ignore[attr-defined]
        known = {one["key"] for one in project.criteria}
        dropped = [{"key": key, "name": key} for key in begun.ratings if key not in known]
        for criterion in [*project.criteria, *dropped]:
            self.fields[RATING + criterion["key"]] = forms.TypedChoiceField(
                required=False,
                coerce=int,
                empty_value=None,
                choices=[("", _("Any")), *((n, _("%(n)s or more") % {"n": n}) for n in RATINGS)],
                label=_("Rated: %(criterion)s") % {"criterion": criterion["name"]},
                help_text=_("The chosen response's mean rating; unrated pairs are left out."),
            )

    def clean(self) -> dict[str, Any]:
        """The days are in order."""
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        since, until = cleaned.get("since"), cleaned.get("until")
        for name, day in (("since", since), ("until", until)):
            if day and not FIRST_DAY <= day <= LAST_DAY:
                self.add_error(name, _("No verdict is of that day."))
        if since and until and since > until:
            self.add_error("until", _("This is before the first day."))
        return cleaned

    @property
    def filters(self) -> Filters:
        """What was asked for."""
        asked = self.cleaned_data
        ratings = {
            name.removeprefix(RATING): least
            for name, least in asked.items()
            if name.startswith(RATING) and least
        }
        return Filters(
            agreement=asked["agreement"] or 0,
            annotators=tuple(asked["annotators"]),
            policies=tuple(asked["policies"]),
            since=asked["since"],
            until=asked["until"],
            ratings=ratings,
        )

    @property
    def short(self) -> list[BoundField]:
        """The fields that take a line."""
        return [field for field in self if field.widget_type != "checkboxselectmultiple"]

    @property
    def lists(self) -> list[BoundField]:
        """The fields of which several may be chosen."""
        return [self["annotators"], self["policies"]]

    @property
    def unfolded(self) -> bool:
        """Whether anything is narrowed, or must be mended."""
        if self.is_bound:
            return bool(self.errors) or bool(self.filters.as_json())
        return bool(self.initial)


def _initial(filters: Filters) -> dict[str, Any]:
    """As the fields are called, without what is not narrowed."""
    values: dict[str, Any] = {
        "agreement": filters.agreement,
        "since": filters.since,
        "until": filters.until,
        "annotators": list(filters.annotators),
        "policies": list(filters.policies),
        **{RATING + key: least for key, least in filters.ratings.items()},
    }
    return {name: value for name, value in values.items() if value}


def _people(project: Project, begun: Filters) -> list[tuple[int, str]]:
    wanted = Q(memberships__project=project) | Q(pk__in=begun.annotators)
    found = User.objects.filter(wanted).distinct().order_by("username")
    return [(user.pk, user.get_full_name() or user.username) for user in found]


def _policies(project: Project, begun: Filters) -> list[tuple[int, str]]:
    named = project.policies.order_by("-id").values_list("pk", "name")
    newest = dict(named[:MOST_POLICIES]) | dict(named.filter(pk__in=begun.policies))
    return [*newest.items(), (NO_POLICY, _("No policy: imported, or written by a person"))]


def filters_in_words(project: Project, stored: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Stored filters as names with values, for a page; what cannot be read is told as it is."""
    try:
        filters = Filters.from_json(stored)
    except BadFilters as problem:
        return [(_("Filters"), str(problem))]
    return list(_in_words(project, filters))


def _in_words(project: Project, filters: Filters) -> Iterator[tuple[str, str]]:
    label = FilterForm.base_fields
    if filters.agreement:
        yield str(label["agreement"].label), str(filters.agreement)
    for name in ("since", "until"):
        if day := getattr(filters, name):
            yield str(label[name].label), formats.date_format(day)
    if filters.annotators:
        people = User.objects.filter(pk__in=filters.annotators).order_by("username")
        yield str(label["annotators"].label), get_text_list([str(one) for one in people], _("and"))
    if filters.policies:
        named = [str(one) for one in project.policies.filter(pk__in=filters.policies)]
        named += [_("no policy")] if NO_POLICY in filters.policies else []
        yield str(label["policies"].label), get_text_list(named, _("and"))
    names = {criterion["key"]: criterion["name"] for criterion in project.criteria}
    for key, least in filters.ratings.items():
        rated = _("Rated: %(criterion)s") % {"criterion": names.get(key, key)}
        yield rated, _("%(n)s or more") % {"n": least}
