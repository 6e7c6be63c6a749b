"""The judging page: one comparison at a time, blind, with its places shuffled on the server.

The page's script asks for JSON and shows the next comparison before the answer is there; a
browser without scripts gets pages and redirects from the same routes.
"""

from typing import Any
from uuid import UUID

from django.contrib import messages
from django.core.exceptions import ValidationError
from django.http import HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from labeling import keys
from labeling.access import JUDGES, project_for
from labeling.cards import card_context, draft_of
from labeling.forms import SkipForm, TokensForm, VerdictForm
from labeling.models import Comparison, Judgment, Lease, Project, Skip
from labeling.requests import PageRequest
from labeling.services import assigning, judging
from labeling.services.assigning import Assignment
from labeling.services.examples import must_practise
from labeling.votes import BadTiers
from labeling.wording import in_words

MOST_LEFT = 1000  # counted exactly up to here; counting further would cost as the queue grows


@require_http_methods(["GET", "POST"])
def judge(request: PageRequest, slug: str) -> HttpResponse:
    """The page with the comparison to judge now; POST records a verdict."""
    project = project_for(request.user, slug, JUDGES)
    if request.method == "POST":
        return _record(request, project)
    if must_practise(project):
        return redirect("labeling:practice", slug=slug)
    return _page(request, project, _asked(request, project))


@require_POST
def skip(request: PageRequest, slug: str) -> HttpResponse:
    """Pass a comparison over, perhaps with a flag."""
    project = project_for(request.user, slug, JUDGES)
    form = SkipForm(request.POST)
    if not form.is_valid():
        return _refuse(request, project, form)
    token = form.cleaned_data["lease"]
    try:
        judging.skip(
            project=project,
            annotator=request.user,
            token=token,
            flags=form.flags(),
            placed=True,
        )
    except (judging.NotHeld, BadTiers) as refusal:
        return _answer(request, project, "gone", str(refusal), status=410)
    said = _("Flagged and skipped.") if form.flags() else _("Skipped.")
    return _answer(request, project, "skipped", said)


@require_POST
def undo(request: PageRequest, slug: str) -> HttpResponse:
    """Take the last verdict or skip back, and show its comparison again."""
    project = project_for(request.user, slug, JUDGES)
    last = judging.last_action(annotator=request.user, project=project)
    draft = _left_in(last) if isinstance(last, Judgment) else {}
    lease, said = _take_back(last)
    if lease is not None and draft:
        assigning.hold(annotator=request.user, tokens=[lease.token], draft=draft)
    if not _wants_json(request):
        messages.info(request, said)
        address = reverse("labeling:judge", kwargs={"slug": slug})
        return redirect(f"{address}?lease={lease.token}" if lease else address)
    if lease is None:
        return JsonResponse({"state": "nothing", "said": said, "card": None})
    card = _card(request, project, assigning.assignment_of(lease))
    return JsonResponse({"state": "undone", "said": said} | card)


@require_POST
def next_card(request: PageRequest, slug: str) -> HttpResponse:
    """The comparison after those that the page has, leased ahead; null where none is left."""
    project = project_for(request.user, slug, JUDGES)
    form = TokensForm(request.POST)
    if not form.is_valid():
        return JsonResponse({"state": "invalid", "errors": form.errors}, status=422)
    if must_practise(project):
        return JsonResponse({"card": None, "said": _("Practise first: reload the page.")})
    try:
        assignment = _next(request, project, form.cleaned_data["tokens"])
    except assigning.LimitReached:
        return JsonResponse({"card": None, "said": _day_is_full()})
    if assignment is None:
        return JsonResponse({"card": None, "said": ""})
    return JsonResponse(_card(request, project, assignment))


@require_POST
def hold(request: PageRequest, slug: str) -> HttpResponse:
    """Hold comparisons for longer and keep what is filled in; tells which are still held."""
    project_for(request.user, slug, JUDGES)
    form = TokensForm(request.POST)
    if not form.is_valid():
        return JsonResponse({"state": "invalid", "errors": form.errors}, status=422)
    held = assigning.hold(annotator=request.user, **form.cleaned_data)
    return JsonResponse({"held": held})


@require_POST
def give_back(request: PageRequest, slug: str) -> HttpResponse:
    """Let go of comparisons that were fetched ahead and are not needed."""
    project_for(request.user, slug, JUDGES)
    form = TokensForm(request.POST)
    if not form.is_valid():
        return JsonResponse({"state": "invalid", "errors": form.errors}, status=422)
    assigning.give_back(annotator=request.user, tokens=form.cleaned_data["tokens"])
    return HttpResponse(status=204)


@require_GET
def counts(request: PageRequest, slug: str) -> HttpResponse:
    """How many verdicts today, in all, and comparisons left: a fragment."""
    project = project_for(request.user, slug, JUDGES)
    user = request.user
    left = assigning.left_for(project=project, annotator=user, at_most=MOST_LEFT)
    every = Judgment.objects.current().filter(
        annotator=user, comparison__project=project, rewrite_of=None
    )
    context = {
        "today": assigning.judged_today(project, user),
        "in_all": every.count(),
        "left": left + assigning.held_open(project=project, annotator=user),
        "more_left": left == MOST_LEFT,
        "daily_limit": _daily_limit(project),
    }
    return render(request, "labeling/judge_counts.html", context)


def _record(request: PageRequest, project: Project) -> HttpResponse:
    form = VerdictForm(request.POST, project=project)
    if not form.is_valid():
        return _refuse(request, project, form)
    try:
        judgment = judging.record_judgment(
            project=project,
            annotator=request.user,
            token=form.cleaned_data["lease"],
            verdict=form.verdict(),
            key=form.cleaned_data["key"],
            placed=True,
        )
    except judging.Conflict as refusal:
        return _answer(request, project, "conflict", str(refusal), status=409)
    except judging.NotHeld as refusal:
        return _answer(request, project, "gone", str(refusal), status=410)
    except BadTiers:
        form.add_error(None, _("This is no verdict on this comparison; nothing was sent."))
        return _refuse(request, project, form)
    return _answer(request, project, *_receipt(judgment))


def _receipt(judgment: Judgment) -> tuple[str, str]:
    words = {"verdict": in_words(judgment)}
    if judgment.surplus:
        text = _("Kept as surplus: %(verdict)s. Others filled its places while you had it.")
        return "surplus", text % words
    return "saved", _("Saved: %(verdict)s.") % words


def _left_in(judgment: Judgment) -> dict[str, str]:
    """What a verdict that is taken back leaves in its form: everything but the choice."""
    return draft_of(judgment) | {"choice": "", "active_ms": str(judgment.active_ms)}


def _take_back(last: Judgment | Skip | None) -> tuple[Lease | None, str]:
    if last is None:
        return None, _("There is nothing to take back.")
    try:
        lease = (
            judging.undo_skip(skip=last) if isinstance(last, Skip) else judging.undo(judgment=last)
        )
    except judging.TooLate as refusal:
        return None, str(refusal)
    if lease is None:
        return None, _("Taken back. Others have filled its place meanwhile.")
    return lease, _("Taken back. Here it is again.")


def _answer(
    request: PageRequest, project: Project, state: str, said: str, *, status: int = 200
) -> HttpResponse:
    """What became of it: to the script as JSON, to a browser without scripts on the next page."""
    if _wants_json(request):
        return JsonResponse({"state": state, "said": said}, status=status)
    (messages.success if status == 200 else messages.warning)(request, said)
    return redirect("labeling:judge", slug=project.slug)


def _refuse(request: PageRequest, project: Project, form: SkipForm) -> HttpResponse:
    """What was sent cannot be read: nothing was written, and the page keeps what was filled in."""
    said = " ".join(str(text) for texts in form.errors.values() for text in texts)
    if _wants_json(request):
        answer = {"state": "invalid", "said": said, "errors": form.errors}
        return JsonResponse(answer, status=422)
    lease = _lease(request, project, request.POST.get("lease"))
    if lease is None:
        return _answer(request, project, "gone", said, status=410)
    return _page(request, project, assigning.assignment_of(lease), form)


def _page(
    request: PageRequest,
    project: Project,
    assignment: Assignment | None,
    form: SkipForm | None = None,
) -> HttpResponse:
    nothing = ""
    if assignment is None:
        try:
            assignment = _next(request, project)
        except assigning.LimitReached:
            nothing = _day_is_full()
    context: dict[str, Any] = {"project": project, "form": form, "nothing": nothing}
    context |= {"actions": keys.ACTIONS, "keys": keys.effective(request.user.keys)}
    if assignment is not None:
        context |= card_context(project, assignment)
    if form is not None:
        context["draft"] = form.data.dict()  # type: ignore[attr-defined]
    return render(request, "labeling/judge.html", context, status=422 if form else 200)


def _card(request: PageRequest, project: Project, assignment: Assignment) -> dict[str, Any]:
    context = card_context(project, assignment) | {"keys": keys.effective(request.user.keys)}
    html = render_to_string("labeling/judge_card.html", context, request)
    return {"card": html, "lease": assignment.lease.token}


def _next(
    request: PageRequest, project: Project, besides: list[UUID] | None = None
) -> Assignment | None:
    return assigning.next_assignment(
        project=project,
        annotator=request.user,
        besides=besides or (),
        daily_limit=_daily_limit(project),
    )


def _asked(request: PageRequest, project: Project) -> Assignment | None:
    """The comparison that the address names, if a verdict of the annotator is still taken."""
    lease = _lease(request, project, request.GET.get("lease"))
    if lease is None or lease.comparison.state == Comparison.State.RETIRED:
        return None
    return assigning.assignment_of(lease)


def _lease(request: PageRequest, project: Project, token: str | None) -> Lease | None:
    try:
        lease = assigning.held_lease(annotator=request.user, token=UUID(token or ""))
    except (ValueError, ValidationError):
        return None
    return lease if lease and lease.comparison.project_id == project.pk else None


def _daily_limit(project: Project) -> int | None:
    limit: int | None = project.membership.daily_limit  # type: ignore[attr-defined]
    return limit


def _day_is_full() -> str:
    return _("You have given as many verdicts as you may today. Thank you, and until tomorrow.")


def _wants_json(request: PageRequest) -> bool:
    return bool(request.accepts("application/json")) and not request.accepts("text/html")
