"""Policies: where each came from, which one serves, and putting one into service."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from django.contrib import messages
from django.db.models import Count, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST

from labeling.access import MANAGERS, project_for
from labeling.models import Policy, PolicyEvent, PolicyState, Project, Response
from labeling.requests import PageRequest
from labeling.services.promoting import CannotPromote, promote, roll_back

SHOWN_EVENTS = 30


@dataclass(frozen=True, kw_only=True)
class Member:
    """A policy's row in the family tree. `rails` draw the lanes to its left, outermost first."""

    policy: Policy
    rails: tuple[str, ...]
    root: bool
    continued: bool


def policies(request: PageRequest, slug: str) -> HttpResponse:
    """The family tree from the initial policy, and what happened to its members."""
    project = project_for(request.user, slug, MANAGERS)
    found = list(_with_counts(project))
    serving = next((one for one in found if one.state == PolicyState.SERVING), None)
    events = list(
        PolicyEvent.objects.filter(policy__project=project)
        .select_related("policy", "replaced", "actor")
        .order_by("-id")[:SHOWN_EVENTS]
    )
    context = {
        "project": project,
        "family": list(family(found, serving)),
        "serving": serving,
        "before": _replaced_by(serving),
        "events": events,
    }
    return render(request, "labeling/policies.html", context)


@require_POST
def promote_policy(request: PageRequest, slug: str, policy: int) -> HttpResponse:
    """Put a policy into service."""
    project = project_for(request.user, slug, MANAGERS)
    wanted = get_object_or_404(project.policies, pk=policy)
    try:
        promote(policy=wanted, actor=request.user)
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


def _with_counts(project: Project) -> QuerySet[Policy]:
    """The project's policies, oldest first, with their responses and the round that made them."""
    written = (
        Response.objects.filter(policy=OuterRef("pk"))
        .order_by()
        .values("policy")
        .annotate(number=Count("pk"))
        .values("number")
    )
    return (
        project.policies.select_related("made_by_round")
        .annotate(written=Coalesce(Subquery(written), 0))
        .order_by("id")
    )


def _replaced_by(serving: Policy | None) -> Policy | None:
    """What rolling back would put into service."""
    promotion = (
        PolicyEvent.objects.filter(policy=serving, kind=PolicyEvent.Kind.PROMOTED)
        .select_related("replaced")
        .order_by("-id")
        .first()
    )
    return promotion.replaced if promotion else None


def family(policies: Sequence[Policy], serving: Policy | None) -> Iterator[Member]:
    """The tree, depth first. A line stays in one lane: only side branches are indented.

    The heir that stays in the lane is on the way to the serving policy, else the youngest child.
    """
    children: dict[int | None, list[Policy]] = defaultdict(list)
    by_id = {policy.pk: policy for policy in policies}
    for policy in policies:
        children[policy.parent_id].append(policy)
    line = set()
    ancestor = serving
    while ancestor is not None:
        line.add(ancestor.pk)
        ancestor = by_id.get(ancestor.parent_id) if ancestor.parent_id else None
    for root in children[None]:
        yield from _descent(root, children, line, (), ())


def _descent(
    policy: Policy | None,
    children: dict[int | None, list[Policy]],
    line: set[int],
    first: tuple[str, ...],
    later: tuple[str, ...],
) -> Iterator[Member]:
    """A lane from its first member down; `first` and `later` are the rails to its left."""
    rails = first
    while policy is not None:
        born = children[policy.pk]
        heir = next((one for one in born if one.pk in line), born[-1] if born else None)
        yield Member(
            policy=policy, rails=rails, root=policy.parent_id is None, continued=bool(born)
        )
        sides = [one for one in born if one is not heir]
        for side in sides:
            yield from _descent(side, children, line, (*later, "branch"), (*later, "pass"))
        policy, rails = heir, later
