"""One policy: what it is, where it came from, its files, and deleting these."""

from pathlib import Path

from django import forms
from django.conf import settings
from django.contrib import messages
from django.db.models import Q
from django.http import Http404, HttpResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.text import slugify
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_safe

from labeling.access import MANAGERS, project_for
from labeling.lineage import line_of
from labeling.models import Evaluation, Policy, PolicyState, Project
from labeling.policy_cards import has_files, read_architecture, read_card
from labeling.policy_download import Archive, NotThere
from labeling.policy_needs import needs, own_folder
from labeling.requests import PageRequest
from labeling.services.deleting import (
    LONGEST_REASON,
    CannotDelete,
    delete_files,
    storage_of,
)
from labeling.services.promoting import replaced_policy
from labeling.views.policies import responses_of
from labeling.win_votes import ratings_of

SHOWN = 30  # of children, events and evaluations
NEAR = 8  # ancestors that are named beside the initial policy


def policy_page(request: PageRequest, slug: str, policy: int) -> HttpResponse:
    """Facts, line of descent, model card, evaluations and events of a policy."""
    project = project_for(request.user, slug, MANAGERS)
    shown = _policy(project, policy)
    folder = own_folder(shown)
    there = shown.deleted_at is None and has_files(folder)
    ratings, kept = ratings_of(project)
    line = line_of(shown)[:-1]
    context = {
        "project": project,
        "policy": shown,
        "folder": _told(folder),
        "on": _told(Path(shown.model_path)),
        "there": there,
        "architecture": read_architecture(Path(shown.model_path)) if there else "",
        "size": storage_of(shown).bytes if there else shown.size_bytes,
        "card": read_card(folder) if there else "",
        "rating": ratings.get(shown.pk),
        "rated_at": kept,
        "written": responses_of(project).get(shown.pk, 0),
        "line": line if len(line) <= NEAR + 1 else [line[0], *line[-NEAR:]],
        "left_out": max(0, len(line) - NEAR - 1),
        "children": shown.children.order_by("-pk")[:SHOWN],
        "evaluations": _evaluations(shown),
        "asked_why": "why" in request.GET and shown.state != PolicyState.SERVING,
        "events": shown.events.select_related("policy", "replaced", "actor").order_by("-pk")[
            :SHOWN
        ],
    }
    return render(request, "labeling/policy.html", context)


@require_safe
def download_policy(
    request: PageRequest, slug: str, policy: int
) -> HttpResponse | StreamingHttpResponse:
    """The policy's own folder as a tar archive; an adapter's without the model that it is on."""
    project = project_for(request.user, slug, MANAGERS)
    wanted = _policy(project, policy)
    if wanted.deleted_at is not None:
        raise Http404("The files of this policy were deleted.")
    name = "-".join(filter(None, (project.slug, slugify(wanted.name), wanted.digest[:10])))
    try:
        archive = Archive(own_folder(wanted), name)
    except NotThere:
        raise Http404("The files of this policy are not there.") from None
    # The name has no letter but those of slugs, so it needs no quoting.
    headers = {
        "Content-Disposition": f'attachment; filename="{name}.tar"',
        "Content-Length": str(archive.size),
        "Cache-Control": "no-store",
    }
    body = () if request.method == "HEAD" else archive
    return StreamingHttpResponse(body, content_type="application/x-tar", headers=headers)


class DeleteForm(forms.Form):
    """Why a policy's files are deleted."""

    reason = forms.CharField(
        max_length=LONGEST_REASON,
        required=False,
        label=gettext_lazy("Why"),
        help_text=gettext_lazy("Kept among the policy's events. May be left empty."),
        widget=forms.Textarea(attrs={"rows": 2}),
    )


def delete_policy(request: PageRequest, slug: str, policy: int) -> HttpResponse:
    """What depends on the policy's files, and deleting them."""
    project = project_for(request.user, slug, MANAGERS)
    wanted = _policy(project, policy)
    if wanted.deleted_at is not None:
        return redirect("labeling:policy", slug=slug, policy=policy)
    form = DeleteForm(request.POST if request.method == "POST" else None)
    if request.method == "POST" and form.is_valid():
        try:
            gone = delete_files(policy=wanted, actor=request.user, **form.cleaned_data)
        except CannotDelete as error:
            return _delete_page(request, project, wanted, form, error)
        words = (
            _("The files of %(policy)s are deleted; its record stays.")
            if gone.removed
            else _("%(policy)s is marked as deleted; its files stay where they are.")
        )
        messages.success(request, words % {"policy": wanted})
        return redirect("labeling:policy", slug=slug, policy=policy)
    return _delete_page(request, project, wanted, form, None)


def _delete_page(
    request: PageRequest,
    project: Project,
    policy: Policy,
    form: DeleteForm,
    refused: CannotDelete | None,
) -> HttpResponse:
    serving = project.policies.filter(state=PolicyState.SERVING).first()
    storage = storage_of(policy)
    context = {
        "project": project,
        "policy": policy,
        "form": form,
        "needs": refused.needs if refused else needs(policy),
        "storage": storage,
        "twin_is_here": storage.twin is not None and storage.twin.project_id == project.pk,
        "restores": serving is not None and replaced_policy(serving) == policy,
        "children": policy.children.count(),
        "written": responses_of(project).get(policy.pk, 0),
    }
    status = 409 if refused else 422 if form.errors else 200
    return render(request, "labeling/policy_delete.html", context, status=status)


def _policy(project: Project, key: int) -> Policy:
    found = project.policies.select_related("parent", "made_by_round").defer(
        "made_by_round__options", "made_by_round__results", "made_by_round__error"
    )
    return get_object_or_404(found, pk=key)


def _told(folder: Path) -> Path:
    """A folder as people look for it: within the site's data folder from there on."""
    data: Path = settings.DATA_DIR
    return folder.relative_to(data) if folder.is_relative_to(data) else folder


def _evaluations(policy: Policy) -> list[Evaluation]:
    """Those in which people compared it, the newest first."""
    found = policy.project.evaluations.filter(Q(policy=policy) | Q(against=policy))
    return list(found.select_related("policy", "against").order_by("-pk")[:SHOWN])
