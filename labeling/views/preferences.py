"""The preference table: made for skimming, with an export.

Filters have no index, so a page looks through so many pairs and says so: a filter that fits few of
a million would read them all.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from django import forms
from django.db.models import F, Q, QuerySet
from django.http import HttpResponse, QueryDict, StreamingHttpResponse
from django.shortcuts import render
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, pgettext_lazy

from jobs.run_dir import encode
from labeling.access import EXPORTERS, project_for
from labeling.figures import counted, figure
from labeling.models import Preference, Project, Split
from labeling.requests import PageRequest
from labeling.services.exporting import preference_rows

PAGE = 25
LOOKED_THROUGH = 5_000  # pairs, for one page of those that filters leave
NUMBER = "preferences.number"
MOST_MARKS = 7  # more votes than that are told as numbers


class FilterForm(forms.Form):
    """What the table shows. Values that make no sense are as if they were not there."""

    split = forms.ChoiceField(
        required=False,
        choices=[("", gettext_lazy("Both sides")), *Split.choices],
        label=gettext_lazy("Split"),
    )
    decided = forms.ChoiceField(
        required=False,
        choices=[
            ("", pgettext_lazy("outcomes", "All")),
            ("yes", pgettext_lazy("pairs", "Decided")),
            ("no", gettext_lazy("Even votes")),
        ],
        label=gettext_lazy("Outcome"),
    )
    votes = forms.IntegerField(
        required=False, min_value=1, max_value=50, label=gettext_lazy("At least")
    )

    def __init__(self, project: Project, data: QueryDict) -> None:
        super().__init__(data)
        written = project.policies.order_by("-id").values_list("pk", "name")[:200]
        self.fields["policy"] = forms.TypedChoiceField(
            required=False,
            coerce=int,
            empty_value=None,
            choices=[("", _("Any policy")), *written],
            label=_("Written by"),
        )
        self.order_fields(("split", "decided", "policy", "votes"))

    def narrow(self, rows: QuerySet[Preference]) -> QuerySet[Preference]:
        """The rows that the filters leave."""
        self.is_valid()
        wanted = self.cleaned_data
        if split := wanted.get("split"):
            rows = rows.filter(comparison__prompt__split=split)
        if decided := wanted.get("decided"):
            even = Q(votes_for=F("votes_against"))
            rows = rows.exclude(even) if decided == "yes" else rows.filter(even)
        if policy := wanted.get("policy"):
            rows = rows.filter(Q(chosen__policy=policy) | Q(rejected__policy=policy))
        if votes := wanted.get("votes"):
            rows = rows.annotate(
                votes=F("votes_for") + F("votes_against") + F("votes_tied")
            ).filter(votes__gte=votes)
        return rows

    @property
    def narrowed(self) -> bool:
        """Whether any filter is set."""
        return any(self.cleaned_data.values())


@dataclass(frozen=True, kw_only=True)
class Row:
    """A preference, and its votes as marks where there are few."""

    preference: Preference

    @property
    def marks(self) -> list[str]:
        """One mark a vote: for, against, tied; none where there are too many to draw."""
        one = self.preference
        if one.votes_for + one.votes_against + one.votes_tied > MOST_MARKS:
            return []
        return ["for"] * one.votes_for + ["against"] * one.votes_against + ["tied"] * one.votes_tied


@dataclass(frozen=True, kw_only=True)
class KeysetPage:
    """A page of rows, newest first, found by id: as quick on the last page as on the first.

    `cut` where it ends because enough was looked through; then it may be short, or empty.
    `matching`: how many match among all that was looked through, where that was found on the way.
    """

    rows: list[Row]
    newer: int | None
    older: int | None
    placed: bool
    cut: bool
    matching: int | None


def preferences(request: PageRequest, slug: str) -> HttpResponse:
    """The table, its filters and the export, for managers and consumers."""
    project = project_for(request.user, slug, EXPORTERS)
    form = FilterForm(project, request.GET)
    page = page_of(project, form, request.GET)
    context = {
        "project": project,
        "form": form,
        "page": page,
        "looked_through": LOOKED_THROUGH,
        **_total(project, form, page),
        "bare": not (page.rows or page.placed or form.narrowed),
        "splits": Split.choices,
    }
    fragment = request.htmx and not request.htmx.history_restore_request
    name = "labeling/preferences_table.html" if fragment else "labeling/preferences.html"
    return render(request, name, context)


def export_preferences(request: PageRequest, slug: str) -> StreamingHttpResponse:
    """The decided pairs as JSON lines in TRL's format, streamed; `split` narrows them."""
    project = project_for(request.user, slug, EXPORTERS)
    asked = request.GET.get("split", "")
    split = Split(asked) if asked in Split.values else None
    name = f"{project.slug}-preferences{f'-{split}' if split else ''}.jsonl"
    return StreamingHttpResponse(
        _lines(preference_rows(project, split)),
        content_type="application/jsonl; charset=utf-8",
        headers={
            "Content-Disposition": f'attachment; filename="{name}"',
            "X-Content-Type-Options": "nosniff",
        },
    )


def page_of(project: Project, form: FilterForm, place: QueryDict) -> KeysetPage:
    """The page after (`before` an id) or before (`after` an id) that place, else the first."""
    before, after = _id(place.get("before")), _id(place.get("after"))
    order = "-pk" if after is None else "pk"
    first = before is None and after is None
    matches, edge = _matches(project, form, before, after)
    ids = list(matches if first and form.narrowed else matches[: PAGE + 1])
    shown = _whole(Preference.objects.filter(pk__in=ids[:PAGE]))
    page = list(shown.order_by(order))
    cut = len(ids) <= PAGE and edge is not None
    # Where one goes on in this direction, and where back in the one that the page came from.
    onward = edge if cut else ids[PAGE - 1] if len(ids) > PAGE else None
    beside = before - 1 if before is not None else after + 1 if after is not None else None
    back = None if first else ids[0] if ids else beside
    return KeysetPage(
        rows=[Row(preference=one) for one in (page if after is None else page[::-1])],
        newer=back if after is None else onward,
        older=onward if after is None else back,
        placed=not first,
        cut=cut,
        matching=len(ids) if first and form.narrowed else None,
    )


def _matches(
    project: Project, form: FilterForm, before: int | None, after: int | None
) -> tuple["QuerySet[Preference, int]", int | None]:
    """Ids that the filters leave from a place on, and the last one that is looked through."""
    every = Preference.objects.filter(project=project)
    if after is not None:
        every, order = every.filter(pk__gt=after), "pk"
    else:
        every, order = every if before is None else every.filter(pk__lt=before), "-pk"
    rows = form.narrow(every)
    edge = _edge(every, order) if form.narrowed else None
    if edge is not None:
        rows = rows.filter(pk__gte=edge) if after is None else rows.filter(pk__lte=edge)
    return rows.order_by(order).values_list("pk", flat=True), edge


def _edge(rows: QuerySet[Preference], order: str) -> int | None:
    """The id of the last row that is looked through; None where all are. Reads an index alone."""
    ids = rows.order_by(order).values_list("pk", flat=True)
    last_and_next = list(ids[LOOKED_THROUGH - 1 : LOOKED_THROUGH + 1])
    return last_and_next[0] if len(last_and_next) == 2 else None


def _whole(rows: QuerySet[Preference]) -> QuerySet[Preference]:
    """With everything that the table shows."""
    return rows.select_related("comparison__prompt", "chosen__policy", "rejected__policy").defer(
        "chosen__token_ids", "chosen__sampling", "rejected__token_ids", "rejected__sampling"
    )


def _total(project: Project, form: FilterForm, page: KeysetPage) -> dict[str, Any]:
    """How many pairs there are; with filters, among the newest that are looked through."""
    every = Preference.objects.filter(project=project)
    if not form.narrowed:
        return {"total": figure(project, NUMBER).value, "capped": False}
    edge = _edge(every, "-pk")
    total = page.matching
    if total is None:
        total = form.narrow(every if edge is None else every.filter(pk__gte=edge)).count()
    return {"total": total, "capped": edge is not None}


@counted(NUMBER)
def _number(project: Project) -> int:
    return Preference.objects.filter(project=project).count()


def _id(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 19 else None


def _lines(rows: Iterator[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        yield encode(row) + "\n"
