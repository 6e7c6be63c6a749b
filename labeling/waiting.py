"""The queue as a manager sees it: what waits at which priority, and what a filter matches.

Every count stops at MOST, so that a million comparisons are counted as quickly as few. Filters
have no index, so what they match is sought among the first LOOKED_THROUGH, and the page says so.
"""

from dataclasses import dataclass
from typing import Any

from django.db import connection
from django.db.models import Count, QuerySet

from labeling.models import Comparison, Project
from labeling.services.queueing import Filters
from labeling.templatetags.prefloop import thin

MOST = 10_000
LOOKED_THROUGH = 10_000
SAMPLES = 5
# Steps from one priority to the next along the queue's index, and counts there. "open" is written
# out, not a parameter: only so can SQLite count in that index alone, which is of open ones.
LEVELS = """
WITH RECURSIVE level (priority) AS (
  SELECT (SELECT priority FROM labeling_comparison
          WHERE project_id = %(project)s AND state = 'open'
          ORDER BY priority DESC LIMIT 1)
  UNION ALL
  SELECT (SELECT priority FROM labeling_comparison
          WHERE project_id = %(project)s AND state = 'open' AND priority < level.priority
          ORDER BY priority DESC LIMIT 1)
  FROM level WHERE level.priority IS NOT NULL
)
SELECT priority,
  (SELECT COUNT(*) FROM (SELECT 1 FROM labeling_comparison AS c
    WHERE c.project_id = %(project)s AND c.state = 'open' AND c.priority = level.priority
      AND c.judged = 0 LIMIT %(most)s) AS untouched),
  (SELECT COUNT(*) FROM (SELECT 1 FROM labeling_comparison AS c
    WHERE c.project_id = %(project)s AND c.state = 'open' AND c.priority = level.priority
      AND c.judged > 0 LIMIT %(most)s) AS started)
FROM level WHERE priority IS NOT NULL ORDER BY priority DESC
"""


@dataclass(frozen=True, kw_only=True)
class Tally:
    """A number that was counted up to MOST."""

    number: int

    def __str__(self) -> str:
        return f"{thin(MOST)}+" if self.more else thin(self.number)

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(number=self.number + other.number)

    @property
    def more(self) -> bool:
        """Whether it is more than MOST; how much more is not known."""
        return self.number > MOST


@dataclass(frozen=True, kw_only=True)
class Level:
    """A priority, and what is open there: nobody has judged it, or somebody has."""

    priority: int
    untouched: Tally
    started: Tally


@dataclass(frozen=True, kw_only=True)
class Queue:
    """What is open by priority, the first to be judged first, and everything by state."""

    levels: list[Level]
    states: dict[str, Tally]

    @property
    def empty(self) -> bool:
        """Whether there is nothing at all, nor ever was."""
        return not any(tally.number for tally in self.states.values())


@dataclass(frozen=True, kw_only=True)
class Match:
    """How many comparisons a filter leaves, and the first of them.

    `cut` where there are more than were looked through: perhaps more match.
    """

    tally: Tally
    sample: list[Any]
    cut: bool


def queue_of(project: Project) -> Queue:
    """What the project's queue holds now."""
    with connection.cursor() as cursor:
        cursor.execute(LEVELS, {"project": project.pk, "most": MOST + 1})
        levels = [
            Level(
                priority=priority, untouched=Tally(number=untouched), started=Tally(number=started)
            )
            for priority, untouched, started in cursor.fetchall()
        ]
    none = Tally(number=0)
    states = {
        "untouched": sum((level.untouched for level in levels), start=none),
        "started": sum((level.started for level in levels), start=none),
    } | {
        state.value: _tally(project.comparisons.filter(state=state))
        for state in (Comparison.State.HELD, Comparison.State.JUDGED, Comparison.State.RETIRED)
    }
    return Queue(levels=levels, states=states)


def match_of(project: Project, filters: Filters) -> Match:
    """What the filters leave, read once."""
    rows = filters.narrow(project.comparisons.all()).order_by("pk")
    edge = _edge(project, filters)
    if edge is not None:
        rows = rows.filter(pk__lte=edge)
    found = list(rows.values_list("pk", flat=True)[: MOST + 1])
    sample = project.comparisons.filter(pk__in=found[:SAMPLES]).select_related("prompt")
    return Match(
        tally=Tally(number=len(found)),
        sample=list(sample.annotate(answers=Count("slots")).order_by("pk")),
        cut=edge is not None and len(found) <= MOST,
    )


def _edge(project: Project, filters: Filters) -> int | None:
    """The last comparison that is looked through; None where all are, or an index knows them."""
    by_state = Filters(state=filters.state)
    if filters == by_state:
        return None
    ids = by_state.narrow(project.comparisons.all()).order_by("pk").values_list("pk", flat=True)
    last_and_next = list(ids[LOOKED_THROUGH - 1 : LOOKED_THROUGH + 1])
    return last_and_next[0] if len(last_and_next) == 2 else None


def _tally(rows: QuerySet[Comparison]) -> Tally:
    return Tally(number=rows[: MOST + 1].count())
