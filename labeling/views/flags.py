"""Flags: what annotators found wrong, and what a manager does about it."""

from collections.abc import Sequence
from dataclasses import dataclass

from django.contrib import messages
from django.db.models import QuerySet
from django.db.models.functions import Left
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST

from labeling.access import MANAGERS, project_for
from labeling.models import Flag, Slot
from labeling.requests import PageRequest
from labeling.services.flagging import resolve_flag

PAGE = 20
MOST = 999  # open flags that are counted
SHOWN_CHARACTERS = 3000  # of an answer


@dataclass(frozen=True, kw_only=True)
class Row:
    """A flag, and the beginnings of the answers that it is about while it is open."""

    flag: Flag
    answers: list[str]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A page of flags, latest first; `older` is where the next one begins."""

    rows: list[Row]
    older: int | None
    placed: bool


def flags(request: PageRequest, slug: str) -> HttpResponse:
    """Open flags, and those that were dealt with."""
    project = project_for(request.user, slug, MANAGERS)
    standing = Flag.objects.standing().filter(comparison__project=project)
    still_open = standing.filter(resolved_at__isnull=True)
    number = still_open[: MOST + 1].count()
    context = {
        "project": project,
        "open": _page(still_open, request.GET.get("before")),
        "number": min(number, MOST),
        "more": number > MOST,
        "resolved": _page(
            standing.filter(resolved_at__isnull=False), request.GET.get("resolved_before")
        ),
    }
    return render(request, "labeling/flags.html", context)


@require_POST
def resolve(request: PageRequest, slug: str, flag: int) -> HttpResponse:
    """Retire the flag's comparison, or leave it."""
    project = project_for(request.user, slug, MANAGERS)
    found = get_object_or_404(Flag, pk=flag, comparison__project=project)
    action = request.POST.get("action")
    if action not in ("retire", "leave"):
        messages.error(request, _("Say what to do: retire the comparison, or leave it."))
    elif not resolve_flag(flag=found, retire=action == "retire", actor=request.user):
        messages.info(request, _("Somebody has dealt with this flag already."))
    elif action == "retire":
        messages.success(request, _("The comparison is retired, and its flags are settled."))
    else:
        messages.success(request, _("The comparison stays as it is; the flag is settled."))
    query = f"?{request.GET.urlencode()}" if request.GET else ""
    return redirect(reverse("labeling:flags", args=[slug]) + query)


def _page(flags: QuerySet[Flag], before: str | None) -> Rows:
    """Found by id: as quick on the last page as on the first."""
    placed = before is not None and before.isdecimal() and len(before) < 19
    if placed:
        flags = flags.filter(pk__lt=before)
    full = flags.select_related("comparison__prompt", "annotator", "resolved_by")
    found = list(full.order_by("-pk")[: PAGE + 1])
    page = found[:PAGE]
    return Rows(
        rows=_with_answers(page),
        older=page[-1].pk if len(found) > PAGE else None,
        placed=placed,
    )


def _with_answers(flags: Sequence[Flag]) -> list[Row]:
    """The answer that a flag names; all of the comparison's where it names none."""
    still_open = {flag.comparison_id for flag in flags if flag.resolved_at is None}
    slots = (
        Slot.objects.filter(comparison__in=still_open)
        .order_by("index")
        .values_list("comparison", "index", Left("response__text", SHOWN_CHARACTERS + 1))
    )
    texts = {(comparison, index): text for comparison, index, text in slots}
    return [
        Row(
            flag=flag,
            answers=[
                text
                for (comparison, index), text in texts.items()
                if comparison == flag.comparison_id and flag.slot in (None, index)
            ],
        )
        for flag in flags
    ]
