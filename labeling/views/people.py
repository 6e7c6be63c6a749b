"""People: who is in a project, what they do, and who is invited."""

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST

from labeling.access import MANAGERS, project_for
from labeling.agreement import agreement_of
from labeling.member_forms import DailyLimitForm, InvitationForm
from labeling.members import members_of
from labeling.models import Invitation, Membership, Project, Role
from labeling.requests import PageRequest
from labeling.services import inviting, staffing

SHOWN_COUPLES = 10  # who agree least


def people(request: PageRequest, slug: str) -> HttpResponse:
    """The members, the open invitations, and the form for another one."""
    return _page(request, project_for(request.user, slug, MANAGERS), InvitationForm())


def invite(request: PageRequest, slug: str) -> HttpResponse:
    """Make an invitation. Its link is in this one answer and nowhere else, so no redirect."""
    project = project_for(request.user, slug, MANAGERS)
    if request.method != "POST":
        return redirect("labeling:people", slug=slug)
    form = InvitationForm(request.POST)
    if not form.is_valid():
        return _page(request, project, form)
    wanted = form.cleaned_data
    invitation, token = inviting.create(
        project=project,
        role=Role(wanted["role"]),
        note=wanted["note"],
        days=wanted["days"],
        invited_by=request.user,
    )
    link = request.build_absolute_uri(reverse("join", args=[token]))
    return _page(request, project, InvitationForm(), invitation, link)


@require_POST
def change(request: PageRequest, slug: str, member: int) -> HttpResponse:
    """Set a member's daily limit."""
    project = project_for(request.user, slug, MANAGERS)
    membership = _membership(project, member)
    form = DailyLimitForm(request.POST)
    name = {"name": membership.user}
    if not form.is_valid():
        problem = form.errors["daily_limit"][0]
        messages.error(request, _("The limit of %(name)s is as it was.") % name + f" {problem}")
    else:
        limit = form.cleaned_data["daily_limit"]
        staffing.set_daily_limit(membership=membership, limit=limit)
        if limit is None:
            said = _("%(name)s may give as many verdicts a day as they like.") % name
        else:
            said = _("%(name)s may give %(limit)d verdicts a day.") % {**name, "limit": limit}
        messages.success(request, said)
    return redirect(f"{reverse('labeling:people', args=[slug])}#member-{member}")


@require_POST
def remove(request: PageRequest, slug: str, member: int) -> HttpResponse:
    """Take somebody out, or leave oneself."""
    project = project_for(request.user, slug, MANAGERS)
    membership = _membership(project, member)
    own = membership.user == request.user
    try:
        staffing.remove(membership=membership)
    except staffing.LastManager:
        messages.warning(
            request, _("A project needs a manager, and there is no other. Invite one first.")
        )
        return redirect("labeling:people", slug=slug)
    if own:
        messages.success(request, _("You have left %(project)s.") % {"project": project})
        return redirect("home")
    gone = {"name": membership.user, "project": project}
    messages.success(
        request, _("%(name)s is no longer in %(project)s. Their judgments stay.") % gone
    )
    return redirect("labeling:people", slug=slug)


@require_POST
def revoke(request: PageRequest, slug: str, invitation: int) -> HttpResponse:
    """Close an invitation before somebody uses it."""
    project = project_for(request.user, slug, MANAGERS)
    found = get_object_or_404(project.invitations, pk=invitation)
    if inviting.revoke(invitation=found):
        messages.success(request, _("The invitation is revoked: its link no longer works."))
    else:
        messages.info(request, _("That invitation was closed already."))
    return redirect("labeling:people", slug=slug)


def _membership(project: Project, member: int) -> Membership:
    return get_object_or_404(project.memberships.select_related("user"), pk=member)


def _page(
    request: PageRequest,
    project: Project,
    form: InvitationForm,
    made: Invitation | None = None,
    link: str = "",
) -> HttpResponse:
    invitations = project.invitations.open().select_related("invited_by").order_by("expires_at")
    context = {
        "project": project,
        "members": members_of(project),
        "agreement": agreement_of(project),
        "shown_couples": SHOWN_COUPLES,
        "invitations": invitations,
        "form": form,
        "made": made,
        "link": link,
    }
    return render(request, "labeling/people.html", context, status=422 if form.is_bound else 200)
