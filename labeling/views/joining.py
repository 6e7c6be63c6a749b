"""The way in: what a person sees who opens an invitation's link.

Nothing tells a used, revoked or forgotten link from one that never was. The token stays in the
address: no message or record holds it, no other site learns it, and config.logs keeps it out of
the log. It is 256 random bits, so nobody comes upon one by trying.
"""

from django.contrib import messages
from django.contrib.auth import login
from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods

from labeling.member_forms import AccountForm
from labeling.models import Invitation, Membership, User
from labeling.services import inviting
from labeling.templatetags.prefloop import project_home

# Nothing of the address ever leaves the page. Not "no-referrer": with that a browser sends forms
# without their origin, and the site could not tell its own from another's.
REFERRER_POLICY = "strict-origin"
BACKEND = "django.contrib.auth.backends.ModelBackend"


@login_not_required
@require_http_methods(["GET", "POST"])
def join(request: HttpRequest, token: str) -> HttpResponse:
    """Whose project it is, and one button; a stranger makes an account first."""
    try:
        invitation = inviting.find(token)
        if request.method == "POST":
            response = _join(request, invitation, token)
        else:
            response = _page(request, invitation, AccountForm())
    except inviting.NoLongerWorks:
        response = render(request, "labeling/join_gone.html", status=404)
    response["Referrer-Policy"] = REFERRER_POLICY
    return response


def _join(request: HttpRequest, invitation: Invitation, token: str) -> HttpResponse:
    if isinstance(request.user, User):
        try:
            membership = inviting.accept(token=token, user=request.user)
        except inviting.AlreadyMember:
            return _page(request, invitation)
        return _welcome(request, membership)
    form = AccountForm(request.POST)
    if form.is_valid():
        wanted = form.cleaned_data
        try:
            membership = inviting.accept_as_new(
                token=token, username=wanted["username"], password=wanted["password1"]
            )
        except inviting.NameTaken:
            form.add_error("username", _("Somebody has just taken this name. Choose another one."))
        else:
            # axes keeps the address of every sign-in: without the token.
            request.META["PATH_INFO"] = reverse("join", args=["-"])
            login(request, membership.user, backend=BACKEND)
            return _welcome(request, membership)
    return _page(request, invitation, form)


def _page(
    request: HttpRequest, invitation: Invitation, form: AccountForm | None = None
) -> HttpResponse:
    """The invitation as this person can take it: a button, an account, or already inside."""
    member = None
    if isinstance(request.user, User):
        member = request.user.memberships.filter(project=invitation.project).first()
        form = None
    context = {"invitation": invitation, "member": member, "form": form}
    status = 422 if form and form.is_bound else 200
    return render(request, "labeling/join.html", context, status=status)


def _welcome(request: HttpRequest, membership: Membership) -> HttpResponse:
    welcome = _("Welcome: you are in %(project)s now.") % {"project": membership.project.name}
    messages.success(request, welcome)
    return redirect(project_home(membership))
