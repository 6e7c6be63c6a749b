"""One line of state for each of many projects: a query for each kind of work, however many."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from django.db.models import OuterRef, Subquery
from django.utils.translation import gettext as _

from labeling.models import Evaluation, PolicyState, Project
from labeling.overview.counts import is_live


@dataclass(frozen=True, kw_only=True)
class Line:
    """What a project is about, in a few words. `state` is that of a badge, "" where it rests."""

    text: str
    state: str = ""


def lines_of(projects: Collection[int]) -> dict[int, Line]:
    """By project; one where nothing runs and nothing waits has no line."""
    rounds = _newest("rounds", "number", projects, "policy")
    evaluations = _newest("evaluations", "pk", projects, "policy")
    batches = _newest("batches", "number", projects)
    found = {
        one: _round(rounds.get(one))
        or _evaluation(evaluations.get(one))
        or _made(rounds.get(one), evaluations.get(one))
        or _batch(batches.get(one))
        for one in projects
    }
    return {one: line for one, line in found.items() if line}


def at_rest(*, prompts: int, open_ones: int) -> Line:
    """For a project where nothing runs and nothing waits for its manager."""
    if not prompts:
        return Line(text=_("There are no prompts yet"))
    if open_ones:
        return Line(text=_("Comparisons wait to be judged"))
    return Line(text=_("Nothing is left to judge"))


def _newest(work: str, order: str, projects: Collection[int], *with_them: str) -> dict[int, Any]:
    """The last batch, round or evaluation of each project; the tables belong to apps above."""
    rows = getattr(Project, work).rel.related_model.objects
    last = rows.filter(project=OuterRef("pk")).order_by(f"-{order}").values("pk")[:1]
    ids = Project.objects.filter(pk__in=projects).values_list(Subquery(last), flat=True)
    found = rows.filter(pk__in=list(ids)).select_related(*with_them)
    return {one.project_id: one for one in found}


def _round(newest: Any) -> Line | None:
    if is_live(newest):
        words = {"number": newest.number, "done": newest.step, "all": newest.total_steps}
        if not newest.total_steps:
            return Line(text=_("Round %(number)s is about to begin") % words, state="running")
        text = _("Round %(number)s trains: %(done)s of %(all)s steps") % words
        return Line(text=text, state="running")
    if newest is not None and newest.state == "failed":
        return Line(text=_("Round %(number)s failed") % {"number": newest.number}, state="warning")
    return None


def _evaluation(newest: Evaluation | None) -> Line | None:
    if newest is None:
        return None
    words = {"policy": newest.policy}
    if newest.passed_at and newest.policy.state == PolicyState.CANDIDATE:
        return Line(text=_("%(policy)s passed the gate: promote it") % words, state="open")
    if newest.state == Evaluation.State.WAITING and newest.problem:
        text = _("The evaluation of %(policy)s has no responses yet") % words
        return Line(text=text, state="warning")
    if newest.live:
        return Line(text=_("%(policy)s is being evaluated") % words, state="running")
    return None


def _made(newest: Any, evaluation: Evaluation | None) -> Line | None:
    """What the last round made, where nobody has been asked about it yet."""
    made = newest.policy if newest else None
    if made is None or made.state != PolicyState.CANDIDATE:
        return None
    if evaluation and evaluation.policy_id == made.pk:
        return None
    return Line(text=_("%(policy)s waits to be put into service") % {"policy": made}, state="open")


def _batch(newest: Any) -> Line | None:
    if is_live(newest):
        text = _("Batch %(number)s is being written") % {"number": newest.number}
        return Line(text=text, state="running")
    if newest is not None and newest.state == "failed":
        return Line(text=_("Batch %(number)s failed") % {"number": newest.number}, state="warning")
    return None
