"""One's own verdicts and skips in a project, and judging again."""

from dataclasses import dataclass
from typing import Any

from django.contrib import messages
from django.db.models import Exists, OuterRef, QuerySet
from django.http import HttpResponse, QueryDict
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods

from labeling import keys
from labeling.access import JUDGES, project_for
from labeling.cards import card_context, draft_of
from labeling.forms import VerdictForm
from labeling.models import Comparison, Flag, Judgment, Lease, Project, Skip, User
from labeling.requests import PageRequest, number_in
from labeling.services import assigning, judging
from labeling.services.assigning import Assignment
from labeling.votes import BadTiers
from labeling.wording import in_words

PAGE = 50


@dataclass(frozen=True, kw_only=True)
class Given:
    """A verdict as the list shows it."""

    row: Judgment
    first_line: str

    @property
    def verdict(self) -> str:
        """The verdict in words."""
        return in_words(self.row)

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.row.active_ms / 1000

    @property
    def state(self) -> tuple[str, str]:
        """What became of the verdict: a badge's state, and words."""
        if self.row.superseded_at:
            changed = self.row.later  # type: ignore[attr-defined]
            return "stopped", _("changed later") if changed else _("taken back")
        if self.row.comparison.state == Comparison.State.RETIRED:
            return "retired", _("comparison retired")
        if self.row.surplus:
            return "warning", _("surplus, does not count")
        return "judged", _("counts")

    @property
    def changeable(self) -> bool:
        """Whether it may be judged again now."""
        return judging.changeable(self.row)


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A skip as the list shows it."""

    row: Skip
    first_line: str

    @property
    def wanted(self) -> bool:
        """Whether the comparison still waits for verdicts."""
        return self.row.comparison.state in (Comparison.State.OPEN, Comparison.State.HELD)


@dataclass(frozen=True, kw_only=True)
class Entries:
    """A page of either, newest first, found by id: as quick on the last page as on the first."""

    rows: list[Given | Skipped]
    newer: int | None
    older: int | None


@require_http_methods(["GET", "POST"])
def history(request: PageRequest, slug: str) -> HttpResponse:
    """One's own verdicts, or skips (`show=skips`); POST offers a skipped comparison again."""
    project = project_for(request.user, slug, JUDGES)
    if request.method == "POST":
        return _offer_again(request, project)
    skips = request.GET.get("show") == "skips"
    rows = _skips(project, request.user) if skips else _verdicts(project, request.user)
    context = {
        "project": project,
        "skips": skips,
        "page": _page(project, rows, request.GET),
        "hours": project.rejudge_hours,
        "days": _whole_days(project.rejudge_hours),
    }
    return render(request, "labeling/history.html", context)


@require_http_methods(["GET", "POST"])
def judge_again(request: PageRequest, slug: str, judgment: int) -> HttpResponse:
    """The card of a comparison with one's earlier verdict; POST puts another in its place."""
    project = project_for(request.user, slug, JUDGES)
    found = get_object_or_404(
        _verdicts(project, request.user).select_related("comparison__project"), pk=judgment
    )
    if request.method == "POST":
        return _rejudge(request, project, found)
    if not judging.changeable(found):
        messages.warning(request, _("This verdict can no longer be changed."))
        return redirect("labeling:history", slug=slug)
    return _card(request, project, found)


def _rejudge(request: PageRequest, project: Project, judgment: Judgment) -> HttpResponse:
    form = VerdictForm(request.POST, project=project)
    if not form.is_valid():
        return _card(request, project, judgment, form)
    key = form.cleaned_data["key"]
    try:
        new = judging.rejudge(judgment=judgment, verdict=form.verdict(), key=key, placed=True)
    except (judging.TooLate, judging.Conflict) as refusal:
        messages.warning(request, str(refusal))
    except BadTiers:
        form.add_error(None, _("This is no verdict on this comparison; nothing was sent."))
        return _card(request, project, judgment, form)
    else:
        messages.success(request, _("Changed: %(verdict)s.") % {"verdict": in_words(new)})
    return redirect("labeling:history", slug=project.slug)


def _card(
    request: PageRequest, project: Project, judgment: Judgment, form: VerdictForm | None = None
) -> HttpResponse:
    assignment = _assignment(judgment)
    context = card_context(project, assignment, again=judgment) | {
        "form": form,
        "draft": form.data.dict() if form else draft_of(judgment),  # type: ignore[attr-defined]
        "earlier": in_words(judgment),
        "actions": keys.ACTIONS,
        "keys": keys.effective(request.user.keys),
    }
    return render(request, "labeling/history_again.html", context, status=422 if form else 200)


def _assignment(judgment: Judgment) -> Assignment:
    """The comparison in the order in which its annotator sees it.

    Nobody holds what they have judged: a lease that is never saved stands for it.
    """
    comparison = judgment.comparison
    slots = list(comparison.slots.select_related("response").order_by("index"))
    order = assigning.shown_order(comparison.pk, judgment.annotator_id, len(slots))
    return Assignment(
        lease=Lease(comparison=comparison, annotator_id=judgment.annotator_id),
        comparison=comparison,
        slots=[slots[index] for index in order],
    )


def _offer_again(request: PageRequest, project: Project) -> HttpResponse:
    own = _skips(project, request.user)
    skip = get_object_or_404(own, pk=number_in(request.POST.get("skip")) or 0)
    lease = judging.undo_skip(skip=skip)
    if lease is not None:
        return redirect(f"{reverse('labeling:judge', args=[project.slug])}?lease={lease.token}")
    messages.success(request, _("You are offered it again as soon as a place is free."))
    return redirect(f"{reverse('labeling:history', args=[project.slug])}?show=skips")


def _verdicts(project: Project, user: User) -> QuerySet[Judgment]:
    """What this person said, with marks for what came with it and whether more came later."""
    again = Judgment.objects.filter(
        comparison=OuterRef("comparison"), annotator=user, pk__gt=OuterRef("pk")
    )
    return (
        Judgment.objects.filter(annotator=user, comparison__project=project, rewrite_of=None)
        .select_related("comparison__prompt")
        .annotate(
            later=Exists(again),
            flagged=Exists(Flag.objects.filter(judgment=OuterRef("pk"))),
            rewritten=Exists(Judgment.objects.filter(rewrite_of=OuterRef("pk"))),
        )
    )


def _skips(project: Project, user: User) -> QuerySet[Skip]:
    return (
        Skip.objects.filter(annotator=user, comparison__project=project, undone_at=None)
        .select_related("comparison__prompt")
        .annotate(flagged=Exists(Flag.objects.filter(skip=OuterRef("pk"))))
    )


def _page(project: Project, rows: QuerySet[Judgment] | QuerySet[Skip], place: QueryDict) -> Entries:
    """The page after (`before` an id) or before (`after` an id) that place, else the first."""
    before, after = number_in(place.get("before")), number_in(place.get("after"))
    found: list[Any]
    if after is not None:
        found = list(rows.filter(pk__gt=after).order_by("pk")[: PAGE + 1])
        page, newer, older = found[:PAGE][::-1], len(found) > PAGE, bool(found)
    else:
        rest = rows if before is None else rows.filter(pk__lt=before)
        found = list(rest.order_by("-pk")[: PAGE + 1])
        page, newer, older = found[:PAGE], before is not None and bool(found), len(found) > PAGE
    for row in page:
        row.comparison.project = project
    return Entries(
        rows=[_entry(row) for row in page],
        newer=page[0].pk if newer else None,
        older=page[-1].pk if older else None,
    )


def _entry(row: Judgment | Skip) -> Given | Skipped:
    lines = row.comparison.prompt.last_turn.split("\n")
    first = next((line.strip() for line in lines if line.strip()), "")
    if isinstance(row, Skip):
        return Skipped(row=row, first_line=first)
    return Given(row=row, first_line=first)


def _whole_days(hours: int) -> int:
    """The hours as days, where that reads better; else 0."""
    return hours // 24 if hours > 48 and hours % 24 == 0 else 0
