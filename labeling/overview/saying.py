"""Small words that the rooms of the overview share."""

from typing import Any

from django.urls import reverse
from django.utils.translation import gettext as _

from labeling.models import Evaluation, Project
from labeling.templatetags.prefloop import thin

LINE = 200  # characters


def number(value: int) -> dict[str, str]:
    """For sentences with one %(number)s."""
    return {"number": thin(value)}


def url(route: str, project: Project, **more: object) -> str:
    """Where a page of the project is."""
    return reverse(route, kwargs={"slug": project.slug, **more})


def evaluation_url(evaluation: Evaluation) -> str:
    """The evaluation's page."""
    return url("labeling:evaluation", evaluation.project, evaluation=evaluation.pk)


def failure(work: Any) -> dict[str, object]:
    """Which batch or round failed, and the first line of why."""
    return {"number": work.number, "reason": first_line(work.error) or _("no reason was given.")}


def first_line(text: str) -> str:
    """The first line of a text, cut where it is long."""
    line = (text.strip().splitlines() or [""])[0]
    return line if len(line) <= LINE else line[: LINE - 1] + "\u2026"
