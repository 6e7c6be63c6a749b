"""The guide with its examples, practice on them, and how a verdict becomes an example."""

from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.http import urlencode
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from labeling import keys
from labeling.access import JUDGES, MANAGERS, project_for
from labeling.example_cards import card_of_judgment, cards_of
from labeling.models import Example, Judgment, PracticeAnswer, Project
from labeling.project_forms import ExplanationForm, PracticeForm
from labeling.requests import PageRequest, number_in
from labeling.services import examples as service
from labeling.services.examples import Run
from labeling.votes import BadTiers
from labeling.wording import SCALE


@require_GET
def guide(request: PageRequest, slug: str) -> HttpResponse:
    """The guidelines in force, and every example with its verdict and the reasons."""
    project = project_for(request.user, slug, JUDGES)
    cards = cards_of(list(service.shown_examples(project)))
    return render(request, "labeling/guide.html", {"project": project, "cards": cards})


@require_http_methods(["GET", "POST"])
def practice(request: PageRequest, slug: str) -> HttpResponse:
    """The next example of a run, what became of the last answer, or how the run went."""
    project = project_for(request.user, slug, JUDGES)
    since = number_in((request.POST or request.GET).get("since")) or 0
    run = service.practice_run(project=project, annotator=request.user, since=since)
    if request.method == "POST":
        return _answer(request, project, run)
    asked = number_in(request.GET.get("answer")) or 0
    answer = next((one for one in run.answers.values() if one.pk == asked), None)
    if answer is not None:
        return _feedback(request, project, run, answer)
    if run.next is not None:
        return _ask(request, project, run, run.next)
    context = {"project": project, "run": run, "cards": cards_of(run.examples)}
    return render(request, "labeling/practice_summary.html", context)


@require_http_methods(["GET", "POST"])
def add(request: PageRequest, slug: str, judgment: int) -> HttpResponse:
    """Show one's own verdict and ask why it is right; POST makes an example of it."""
    project = project_for(request.user, slug, MANAGERS)
    own = Judgment.objects.filter(annotator=request.user, comparison__project=project)
    found = get_object_or_404(
        own.select_related("comparison__prompt", "comparison__project"), pk=judgment
    )
    form = ExplanationForm(request.POST or None, initial={"explanation": found.rationale})
    try:
        service.check_addable(judgment=found, author=request.user)
        if request.method == "POST" and form.is_valid():
            return _add(request, found, form.cleaned_data["explanation"])
    except service.CannotAdd as refusal:
        messages.warning(request, str(refusal))
        return redirect("labeling:history", slug=slug)
    context = {"project": project, "form": form, "card": card_of_judgment(found)}
    status = 422 if form.errors else 200
    return render(request, "labeling/example_add.html", context, status=status)


@require_POST
def remove(request: PageRequest, slug: str, example: int) -> HttpResponse:
    """Take an example out of the guide and out of practice."""
    project = project_for(request.user, slug, MANAGERS)
    here = Example.objects.filter(comparison__project=project)
    service.remove_example(example=get_object_or_404(here, pk=example))
    messages.success(request, _("Removed. What people answered in practice is kept."))
    return redirect("labeling:guide", slug=slug)


def _add(request: PageRequest, judgment: Judgment, explanation: str) -> HttpResponse:
    example = service.add_example(judgment=judgment, author=request.user, explanation=explanation)
    messages.success(request, _("Added: it is in the guide now."))
    address = reverse("labeling:guide", args=[judgment.comparison.project.slug])
    return redirect(f"{address}#example-{example.pk}")


def _answer(request: PageRequest, project: Project, run: Run) -> HttpResponse:
    asked = number_in(request.POST.get("example")) or 0
    example = next((one for one in run.examples if one.pk == asked), None)
    if example is None:
        messages.info(request, _("That example was taken away meanwhile."))
        return _to_practice(project, run)
    form = PracticeForm(request.POST, project=project)
    if form.is_valid():
        try:
            answer = service.answer_example(
                example=example, annotator=request.user, verdict=form.verdict(), since=run.since
            )
        except BadTiers:
            form.add_error(None, _("This is no verdict on this example; nothing was sent."))
        except service.NotShown as refusal:
            messages.info(request, str(refusal))
            return _to_practice(project, run)
        else:
            return _to_practice(project, run, answer=answer.pk)
    return _ask(request, project, run, example, form)


def _ask(
    request: PageRequest,
    project: Project,
    run: Run,
    example: Example,
    form: PracticeForm | None = None,
) -> HttpResponse:
    context = _context(project, run, example) | {
        "action": reverse("labeling:practice", args=[project.slug]),
        "scale": SCALE,
        "form": form,
        "draft": form.data.dict() if form else {},  # type: ignore[attr-defined]
        "actions": keys.ACTIONS,
        "keys": keys.effective(request.user.keys),
        "must": service.must_practise(project),
    }
    return render(request, "labeling/practice.html", context, status=422 if form else 200)


def _feedback(
    request: PageRequest, project: Project, run: Run, answer: PracticeAnswer
) -> HttpResponse:
    example = next(one for one in run.examples if one.pk == answer.example_id)
    context = _context(project, run, example)
    context |= {"answer": answer, "said": context["card"].in_words(answer.tiers)}
    return render(request, "labeling/practice_feedback.html", context)


def _context(project: Project, run: Run, example: Example) -> dict[str, Any]:
    """What a page with one example of the run shows."""
    (card,) = cards_of([example])
    return {
        "project": project,
        "run": run,
        "number": [one.pk for one in run.examples].index(example.pk) + 1,
        "card": card,
        "prompt": card.prompt,
        "places": card.places,
        "example": example,
        "lease": "",  # nobody leases an example
    }


def _to_practice(project: Project, run: Run, **more: int) -> HttpResponse:
    query = {name: number for name, number in ({"since": run.since} | more).items() if number}
    address = reverse("labeling:practice", args=[project.slug])
    return redirect(f"{address}?{urlencode(query)}" if query else address)
