"""Evaluations by people: start one, see how it stands, stop it."""

from django import forms
from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_POST

from labeling.access import MANAGERS, project_for
from labeling.evaluation_standing import standing_of
from labeling.models import Evaluation, PolicyState, Project
from labeling.models.evaluations import LEAST_WANTED, MOST_WANTED, WANTED
from labeling.requests import PageRequest
from labeling.services import evaluating

PAGE_EVERY_S = 5


class EvaluationForm(forms.Form):
    """How many judgments are asked for, and what follows from them."""

    wanted = forms.IntegerField(
        label=gettext_lazy("Judgments, at most"),
        min_value=LEAST_WANTED,
        max_value=MOST_WANTED,
        initial=WANTED,
        help_text=gettext_lazy("200 show a win rate of 62 % to be real, more often than not."),
    )
    promote_if_better = forms.BooleanField(
        label=gettext_lazy("Promote it as soon as it has passed the gate"), required=False
    )


def evaluation(request: PageRequest, slug: str, evaluation: int) -> HttpResponse:
    """How an evaluation stands. While it lives the page asks again every few seconds."""
    project = project_for(request.user, slug, MANAGERS)
    found = get_object_or_404(
        project.evaluations.select_related(
            "project", "policy__made_by_round", "against", "started_by"
        ),
        pk=evaluation,
    )
    context = {
        "project": project,
        "evaluation": found,
        "standing": standing_of(found),
        "every": PAGE_EVERY_S,
        "promotable": found.policy.state != PolicyState.SERVING and not found.policy.deleted_at,
    }
    name = "evaluation_live.html" if request.htmx else "evaluation.html"
    return render(request, f"labeling/{name}", context)


def new_evaluation(request: PageRequest, slug: str, policy: int) -> HttpResponse:
    """Ask for a policy to be put before people, and POST: do it."""
    project = project_for(request.user, slug, MANAGERS)
    wanted = get_object_or_404(project.policies, pk=policy)
    form = EvaluationForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            started = evaluating.start_evaluation(
                policy=wanted, actor=request.user, **form.cleaned_data
            )
        except evaluating.CannotEvaluate as reason:
            form.add_error(None, str(reason))
        else:
            return redirect("labeling:evaluation", slug=slug, evaluation=started.pk)
    context = {
        "project": project,
        "policy": wanted,
        "form": form,
        "live": _live(project),
    }
    status = 422 if form.is_bound else 200
    return render(request, "labeling/new_evaluation.html", context, status=status)


@require_POST
def stop_evaluation(request: PageRequest, slug: str, evaluation: int) -> HttpResponse:
    """End an evaluation before its time."""
    project = project_for(request.user, slug, MANAGERS)
    found = get_object_or_404(project.evaluations, pk=evaluation)
    evaluating.stop_evaluation(evaluation=found)
    messages.info(request, _("The evaluation is over. What was judged stays and counts."))
    return redirect("labeling:evaluation", slug=slug, evaluation=evaluation)


def _live(project: Project) -> Evaluation | None:
    return project.evaluations.exclude(state=Evaluation.State.ENDED).first()
