"""Policies: where each came from, which one serves, and putting one into service."""

from collections.abc import Sequence
from typing import Any

from django.contrib import messages
from django.core.paginator import Paginator
from django.db.models import Count
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST

from labeling.access import MANAGERS, project_for
from labeling.figures import counted, figure
from labeling.ladder import marks
from labeling.lineage import Fold, Member, family, folded
from labeling.models import Policy, PolicyEvent, PolicyState, Project, Response
from labeling.ratings import Rating
from labeling.requests import PageRequest
from labeling.services.deleting import LONGEST_REASON
from labeling.services.promoting import (
    CannotPromote,
    ReasonNeeded,
    promote,
    replaced_policy,
    roll_back,
)
from labeling.win_votes import ratings_of

SHOWN_EVENTS = 30
NEWEST = 30  # policies that are shown whatever their place in the tree
PAGE = 60  # of the whole tree
RESPONSES = "policies.responses"


@counted(RESPONSES)
def _responses(project: Project) -> dict[str, int]:
    """How many responses each policy has written."""
    rows = Response.objects.filter(policy__project=project).order_by().values_list("policy")
    return {str(policy): number for policy, number in rows.annotate(Count("pk"))}


def responses_of(project: Project) -> dict[int, int]:
    """How many responses each policy has written, by id; those without any are left out."""
    kept = figure(project, RESPONSES)
    return {int(policy): number for policy, number in kept.value.items()}


def policies(request: PageRequest, slug: str) -> HttpResponse:
    """The family tree from the initial policy, and what happened to its members."""
    project = project_for(request.user, slug, MANAGERS)
    slim = list(project.policies.only("name", "parent", "state", "project").order_by("pk"))
    serving = next((one for one in slim if one.state == PolicyState.SERVING), None)
    before = replaced_policy(serving) if serving else None
    tree = list(family(slim, serving))
    everything = Paginator(tree, PAGE).get_page(request.GET.get("page"))
    whole = "page" in request.GET or len(tree) <= PAGE
    wanted = _wanted(slim, serving, before)
    rows = list(everything) if whole else list(folded(tree, wanted))
    ratings, rated_at = ratings_of(project)
    context = {
        "project": project,
        "rows": _rows(project, rows, ratings),
        "page": everything if whole else None,
        "serving": serving,
        "before": before if before and before.deleted_at is None else None,
        "events": _events(project),
        "rated_at": rated_at,
    }
    return render(request, "labeling/policies.html", context)


def _wanted(policies: list[Policy], serving: Policy | None, before: Policy | None) -> set[int]:
    """Whom a long tree shows: the initial ones, whom serving is about, and the newest."""
    shown = {one.pk for one in policies[-NEWEST:]} | {
        one.pk for one in policies if one.parent_id is None
    }
    shown |= {one.pk for one in (serving, before) if one is not None}
    if serving is not None and serving.parent_id is not None:
        shown.add(serving.parent_id)
    return shown


def _rows(
    project: Project, rows: Sequence[Member | Fold], ratings: dict[int, Rating]
) -> list[dict[str, Any]]:
    """The rows with all that is told of each policy; a fold has none."""
    ids = [row.policy.pk for row in rows if isinstance(row, Member)]
    full = project.policies.select_related("made_by_round").defer(
        "made_by_round__options", "made_by_round__results", "made_by_round__error"
    )
    found = full.in_bulk(ids)
    drawn = marks({pk: ratings[pk] for pk in ids if pk in ratings})
    written = responses_of(project)
    return [
        {"fold": row.number}
        if isinstance(row, Fold)
        else {
            "member": row,
            "policy": found[row.policy.pk],
            "mark": drawn.get(row.policy.pk),
            "written": written.get(row.policy.pk, 0),
        }
        for row in rows
    ]


def _events(project: Project) -> list[PolicyEvent]:
    events = PolicyEvent.objects.filter(policy__project=project)
    return list(events.select_related("policy", "replaced", "actor").order_by("-id")[:SHOWN_EVENTS])


@require_POST
def promote_policy(request: PageRequest, slug: str, policy: int) -> HttpResponse:
    """Put a policy into service."""
    project = project_for(request.user, slug, MANAGERS)
    wanted = get_object_or_404(project.policies, pk=policy)
    try:
        promote(
            policy=wanted,
            actor=request.user,
            reason=request.POST.get("reason", "")[:LONGEST_REASON],
        )
    except ReasonNeeded as error:
        messages.warning(request, str(error))
        return redirect(f"{reverse('labeling:policy', args=[slug, policy])}?why=1")
    except CannotPromote as error:
        messages.warning(request, str(error))
    else:
        messages.success(
            request,
            _("%(policy)s serves now and will write the next candidates.") % {"policy": wanted},
        )
    return redirect("labeling:policies", slug=slug)


@require_POST
def roll_back_policy(request: PageRequest, slug: str) -> HttpResponse:
    """Put the policy back into service that the serving one replaced."""
    project = project_for(request.user, slug, MANAGERS)
    try:
        restored = roll_back(project=project, actor=request.user)
    except CannotPromote as error:
        messages.warning(request, str(error))
    else:
        messages.success(
            request, _("%(policy)s serves again. Nothing was deleted.") % {"policy": restored}
        )
    return redirect("labeling:policies", slug=slug)
