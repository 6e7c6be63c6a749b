"""A project's settings, and the versions of its guidelines."""

from collections.abc import Mapping
from dataclasses import dataclass

from django.contrib import messages
from django.db.models import Count
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods

from labeling.access import MANAGERS, project_for
from labeling.differences import Piece, differences
from labeling.figures import counted, figure
from labeling.models import Guidelines, Judgment, Project
from labeling.project_forms import SettingsForm
from labeling.rendering import visible
from labeling.requests import PageRequest
from labeling.services.configuring import publish_guidelines
from labeling.services.examples import shown_examples

VERDICTS = "guidelines.verdicts"


@dataclass(frozen=True, kw_only=True)
class Change:
    """A version's text and the one before it, in pieces; each as one piece if too long to compare.

    `earlier` is None, and `before` empty, for the first version.
    """

    earlier: Guidelines | None
    version: Guidelines
    before: list[Piece]
    after: list[Piece]


@dataclass(frozen=True, kw_only=True)
class Version:
    """A row of the list of versions, with what it changed where the page shows that."""

    guidelines: Guidelines
    judgments: int
    in_force: bool
    change: Change | None


@require_http_methods(["GET", "POST"])
def project_settings(request: PageRequest, slug: str) -> HttpResponse:
    """Show the settings; POST saves them, previews the guidelines or restores a version."""
    project = project_for(request.user, slug, MANAGERS)
    if request.method == "POST":
        if "restore" in request.POST:
            return _restore(request, project)
        form = SettingsForm(project, request.POST)
        if "preview" not in request.POST:
            return _save(request, project, form)
        return _fragment(request, "preview", {"form": form}) or _page(request, project, form)
    asked = _version(project, request.GET.get("version"))
    change = change_of(asked) if asked else None
    return _fragment(request, "change", {"change": change}) or _page(
        request, project, SettingsForm(project), change
    )


def change_of(version: Guidelines) -> Change:
    """What a version changed in the one before it."""
    numbers = version.project.versions.filter(number__lt=version.number)
    earlier = numbers.order_by("-number").first()
    before, after = visible(earlier.text if earlier else ""), visible(version.text)
    found = differences(before, after) if earlier else None
    return Change(
        earlier=earlier,
        version=version,
        before=found.first if found else [Piece(before, differs=False)],
        after=found.second if found else [Piece(after, differs=False)],
    )


def _save(request: PageRequest, project: Project, form: SettingsForm) -> HttpResponse:
    saved = form.save(request.user) if form.is_valid() else None
    if saved is None:
        return _page(request, project, form)
    if saved.guidelines_id != project.guidelines_id:
        _tell_version(request, saved.guidelines)
    else:
        messages.success(request, _("Saved."))
    return redirect("labeling:project_settings", slug=project.slug)


def _restore(request: PageRequest, project: Project) -> HttpResponse:
    """Publish an earlier version's text anew."""
    version = _version(project, request.POST["restore"])
    if version is None:
        raise Http404("There is no such version.")
    published = publish_guidelines(project=project, text=version.text, author=request.user)
    if published is None:
        messages.info(request, _("That text is in force already."))
    else:
        _tell_version(request, published)
    return redirect("labeling:project_settings", slug=project.slug)


def _tell_version(request: PageRequest, guidelines: Guidelines | None) -> None:
    number = guidelines.number if guidelines else 0
    said = _("Saved. Version %(number)s of the guidelines is in force.") % {"number": number}
    messages.success(request, said)


def _fragment(
    request: PageRequest, name: str, context: Mapping[str, object]
) -> HttpResponse | None:
    """The part of the page that a script asked for; None where the whole page is wanted."""
    if not request.htmx or request.htmx.history_restore_request:
        return None
    return render(request, f"labeling/project_settings_{name}.html", dict(context))


def _page(
    request: PageRequest, project: Project, form: SettingsForm, change: Change | None = None
) -> HttpResponse:
    verdicts = figure(project, VERDICTS)
    context = {
        "project": project,
        "form": form,
        "refused": form.is_bound and "preview" not in request.POST,
        "previewed": "preview" in request.POST,
        "versions": _versions(project, change, verdicts.value),
        "verdicts": verdicts,
        "examples": shown_examples(project).count(),
    }
    status = 422 if context["refused"] else 200
    return render(request, "labeling/project_settings.html", context, status=status)


def _version(project: Project, number: str | None) -> Guidelines | None:
    if not (number and number.isascii() and number.isdigit() and len(number) < 10):
        return None
    return project.versions.filter(number=int(number)).first()


def _versions(
    project: Project, change: Change | None, verdicts: Mapping[str, int]
) -> list[Version]:
    """The newest first, in one query however many there are."""
    newest = project.versions.defer("text").select_related("author").order_by("-number")
    return [
        Version(
            guidelines=one,
            judgments=verdicts.get(str(one.pk), 0),
            in_force=one.pk == project.guidelines_id,
            change=change if change and change.version.pk == one.pk else None,
        )
        for one in newest
    ]


@counted(VERDICTS)
def _verdicts(project: Project) -> dict[str, int]:
    """How many verdicts were given under each version, by its id."""
    verdicts = Judgment.objects.current().filter(guidelines__project=project, rewrite_of=None)
    return {
        str(version): number
        for version, number in verdicts.order_by().values_list("guidelines").annotate(Count("pk"))
    }
