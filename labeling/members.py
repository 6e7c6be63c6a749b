"""The members of a project as a manager sees them.

What they have done is counted over all judgments, and kept where that takes long.
"""

from collections import defaultdict
from dataclasses import dataclass
from statistics import median
from typing import Any

from django.db.models import Count, Q

from labeling.days import midnight
from labeling.figures import Kept, counted, figure
from labeling.models import Flag, Judgment, Membership, Project, Role
from labeling.services.examples import practice_scores

NAME = "members.work"
LATEST = 10_000  # verdicts of the project that the median times are taken from
ORDER = (Role.MANAGER, Role.ANNOTATOR, Role.CONSUMER)


@dataclass(frozen=True, kw_only=True)
class Member:
    """A membership, and what the person has done in the project."""

    membership: Membership
    today: int
    total: int
    flags: int
    seconds: float | None
    practice: tuple[int, int] | None  # examples answered right at first, of those answered

    @property
    def key(self) -> str:
        """Tells the row from others on the page."""
        return str(self.membership.pk)


@dataclass(frozen=True, kw_only=True)
class Members:
    """Everybody, and how many verdicts there are of people who are not members any more."""

    rows: list[Member]
    of_others: int
    kept: Kept


def members_of(project: Project) -> Members:
    """Managers first, then annotators, then consumers; each by name."""
    memberships = sorted(
        project.memberships.select_related("user"),
        key=lambda one: (ORDER.index(Role(one.role)), one.user.username.casefold()),
    )
    kept = figure(project, NAME)
    work = dict(kept.value)
    nothing = {"today": 0, "total": 0, "flags": 0, "seconds": None}
    scores = practice_scores(project) if project.practice else {}
    rows = [
        Member(
            membership=one,
            **nothing | work.pop(str(one.user_id), nothing),
            practice=scores.get(one.user_id),
        )
        for one in memberships
    ]
    others = sum(left.get("total", 0) for left in work.values())
    return Members(rows=rows, of_others=others, kept=kept)


@counted(NAME)
def _work(project: Project) -> dict[str, dict[str, Any]]:
    """What each person has done in the project, by id."""
    flags = Flag.objects.standing().filter(comparison__project=project).order_by()
    flagged = dict(flags.values_list("annotator").annotate(Count("pk")))
    verdicts, seconds = _verdicts(project), _median_seconds(project)
    return {
        str(one): verdicts.get(one, {})
        | {"flags": flagged.get(one, 0), "seconds": seconds.get(one)}
        for one in verdicts.keys() | flagged.keys() | seconds.keys()
    }


def _verdicts(project: Project) -> dict[int, dict[str, Any]]:
    """Current verdicts by annotator; what a rewrite says by itself is none."""
    counted = (
        Judgment.objects.current()
        .filter(comparison__project=project, rewrite_of=None)
        .order_by()
        .values("annotator")
        .annotate(total=Count("pk"), today=Count("pk", filter=Q(created_at__gte=midnight())))
    )
    return {row["annotator"]: {"today": row["today"], "total": row["total"]} for row in counted}


def _median_seconds(project: Project) -> dict[int, float]:
    """Active time on a verdict by annotator, over the project's latest ones with a time."""
    latest = (
        Judgment.objects.filter(comparison__project=project, rewrite_of=None, active_ms__gt=0)
        .order_by("-pk")
        .values_list("annotator", "active_ms")[:LATEST]
    )
    times = defaultdict(list)
    for annotator, active_ms in latest:
        times[annotator].append(active_ms / 1000)
    return {annotator: median(of_one) for annotator, of_one in times.items()}
