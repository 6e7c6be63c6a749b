"""The preference table: made for skimming, with an export."""

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
from labeling.models import Preference, Project, Split
from labeling.requests import PageRequest
from labeling.services.exporting import preference_rows

PAGE = 25
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
    """A page of rows, newest first, found by id: as quick on the last page as on the first."""

    rows: list[Row]
    newer: int | None
    older: int | None
    placed: bool


def preferences(request: PageRequest, slug: str) -> HttpResponse:
    """The table, its filters and the export, for managers and consumers."""
    project = project_for(request.user, slug, EXPORTERS)
    form = FilterForm(project, request.GET)
    rows = form.narrow(Preference.objects.filter(project=project))
    page = page_of(rows, request.GET)
    context = {
        "project": project,
        "form": form,
        "total": rows.count(),
        "page": page,
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


def page_of(rows: QuerySet[Preference], place: QueryDict) -> KeysetPage:
    """The page after (`before` an id) or before (`after` an id) that place, else the first."""
    full = rows.select_related("comparison__prompt", "chosen__policy", "rejected__policy").defer(
        "chosen__token_ids", "chosen__sampling", "rejected__token_ids", "rejected__sampling"
    )
    before, after = _id(place.get("before")), _id(place.get("after"))
    if after is not None:
        found = list(full.filter(pk__gt=after).order_by("pk")[: PAGE + 1])
        more, page = len(found) > PAGE, found[:PAGE][::-1]
        newer, older = more, bool(page)
    else:
        older_rows = full if before is None else full.filter(pk__lt=before)
        found = list(older_rows.order_by("-pk")[: PAGE + 1])
        page, older = found[:PAGE], len(found) > PAGE
        newer = before is not None and bool(page)
    return KeysetPage(
        rows=[Row(preference=one) for one in page],
        newer=page[0].pk if newer else None,
        older=page[-1].pk if older else None,
        placed=before is not None or after is not None,
    )


def _id(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 19 else None


def _lines(rows: Iterator[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        yield encode(row) + "\n"
