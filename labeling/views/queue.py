"""The queue: what waits, in which order, and what a manager does to it."""

from typing import Any

from django.contrib import messages
from django.http import HttpResponse, QueryDict
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.http import require_POST

from labeling.access import MANAGERS, project_for
from labeling.models import Project, QueueChange
from labeling.queue_forms import ChangeForm, FilterForm
from labeling.requests import PageRequest
from labeling.services import queueing
from labeling.services.queueing import Filters, Outcome
from labeling.templatetags.prefloop import thin
from labeling.waiting import LOOKED_THROUGH, match_of, queue_of

SHOWN_CHANGES = 20


def queue(request: PageRequest, slug: str) -> HttpResponse:
    """The whole page; for htmx only what the filters match."""
    project = project_for(request.user, slug, MANAGERS)
    form = FilterForm(project, request.GET)
    if request.htmx and not request.htmx.history_restore_request:
        context = _matching(project, form)
        return render(request, "labeling/queue_match.html", context, status=_status(form))
    return _page(request, project, form)


@require_POST
def change(request: PageRequest, slug: str) -> HttpResponse:
    """Do something to what the filters match, or undo the last change."""
    project = project_for(request.user, slug, MANAGERS)
    if "undo" in request.POST:
        return _undo(request, project)
    form, wanted = FilterForm(project, request.POST), ChangeForm(request.POST)
    filters = form.filters()
    if filters is None or not wanted.is_valid():
        for texts in wanted.errors.values():
            messages.error(request, " ".join(map(str, texts)))
        return _page(request, project, form, status=422)
    action = QueueChange.Action(wanted.cleaned_data["action"])
    outcome = queueing.change(
        project=project,
        filters=filters,
        action=action,
        actor=request.user,
        priority=wanted.cleaned_data["priority"],
    )
    _tell(request, action, outcome)
    return redirect(f"{_address(project)}?{_query(filters)}")


def _undo(request: PageRequest, project: Project) -> HttpResponse:
    number = request.POST["undo"]
    found = get_object_or_404(project.queue_changes, pk=number if number.isdecimal() else 0)
    try:
        outcome = queueing.undo(change=found, actor=request.user)
    except queueing.CannotUndo:
        messages.warning(request, _("Only the last change can be undone; nothing was changed."))
    else:
        _tell(request, queueing.UNDONE_BY[QueueChange.Action(found.action)], outcome)
    return redirect(_address(project))


def _tell(request: PageRequest, action: QueueChange.Action, outcome: Outcome) -> None:
    if not outcome.changed:
        messages.info(request, _nothing(action))
        return
    number = ngettext("%(number)s comparison", "%(number)s comparisons", outcome.changed)
    said = f"{action.label}: {number % {'number': thin(outcome.changed)}}."
    if outcome.finished:
        messages.success(request, said)
    else:
        messages.warning(request, f"{said} " + _("There are more: do it again to go on."))


def _nothing(action: QueueChange.Action) -> str:
    match action:
        case QueueChange.Action.HOLD:
            return _("Nothing was held back: only what is open, unjudged and in nobody's hands is.")
        case QueueChange.Action.RELEASE:
            return _("Nothing was released: none of these is held back.")
        case QueueChange.Action.RETIRE:
            return _("Nothing was retired: only what is unjudged and in nobody's hands is.")
        case _:
            return _("Nothing changed: what is open or held back has this priority already.")


def _page(
    request: PageRequest, project: Project, form: FilterForm, status: int | None = None
) -> HttpResponse:
    context = _matching(project, form) | {
        "queue": queue_of(project),
        "changes": _changes(form, project),
    }
    return render(request, "labeling/queue.html", context, status=status or _status(form))


def _matching(project: Project, form: FilterForm) -> dict[str, Any]:
    filters = form.filters()
    return {
        "project": project,
        "form": form,
        "filters": filters.as_json() if filters else {},
        "match": match_of(project, filters) if filters else None,
        "looked_through": LOOKED_THROUGH,
    }


def _changes(form: FilterForm, project: Project) -> list[dict[str, Any]]:
    """The latest changes; the last one may be undone."""
    latest = project.queue_changes.select_related("actor").order_by("-pk")[:SHOWN_CHANGES]
    return [
        {
            "change": one,
            "words": form.words(one.filters),
            "can_undo": place == 0 and queueing.can_undo(one),
        }
        for place, one in enumerate(latest)
    ]


def _status(form: FilterForm) -> int:
    return 200 if form.is_valid() else 422


def _address(project: Project) -> str:
    return reverse("labeling:queue", kwargs={"slug": project.slug})


def _query(filters: Filters) -> str:
    query = QueryDict(mutable=True)
    query.update(filters.as_json())
    return query.urlencode()
