"""Whether a project runs short of comparisons, or its annotators disagree: told once per crossing.

What was found last is remembered among the figures; where that was deleted, it is told once more.
"""

from dataclasses import dataclass
from typing import Any

from django.db import transaction
from django.db.models import F
from django.urls import reverse
from django.utils import timezone

from labeling.models import Comparison, Event, Figure, Preference, Project
from labeling.services.notifying import WATCHED, notify
from labeling.services.promoting import serving_policy

FEW_COMPARISONS = 20
LAST_PAIRS = 200  # multi-judged ones whose agreement is looked at
LEAST_PAIRS = 20  # of fewer nothing is said
LOOKED_AT = 5_000  # newest pairs among which these are sought
LOW_AGREEMENT = 60  # per cent


@dataclass(frozen=True, kw_only=True)
class Found:
    """Whether it is low now, and what is told if it has just become so."""

    low: bool
    facts: dict[str, Any]
    url: str


def look(project: Project) -> dict[Event, Found]:
    """How it stands with what somebody wants to know; what cannot be said is left out."""
    wanted = {name for one in project.subscriptions.filter(paused=False) for name in one.events}
    looks = {Event.QUEUE_LOW: _queue, Event.AGREEMENT_LOW: _agreement}
    found = {event: looks[event](project) for event in WATCHED if event in wanted}
    return {event: one for event, one in found.items() if one is not None}


@transaction.atomic
def tell(project: Project, found: dict[Event, Found]) -> list[Event]:
    """Notify of what has just become low, and remember how it stands."""
    told = []
    for event, now in found.items():
        name = f"watch.{event}"
        before = Figure.objects.select_for_update().filter(project=project, name=name).first()
        if before is not None and before.value == now.low:
            continue
        Figure.objects.update_or_create(
            project=project,
            name=name,
            defaults={"value": now.low, "as_of": timezone.now(), "took_ms": 0},
        )
        if now.low:
            notify(project=project, event=event, facts=now.facts, url=now.url)
            told.append(event)
    return told


def _queue(project: Project) -> Found | None:
    """Open standard comparisons; nothing is wanted of people while no policy serves."""
    if serving_policy(project) is None:
        return None
    waiting = project.comparisons.filter(
        state=Comparison.State.OPEN, purpose=Comparison.Purpose.STANDARD
    )
    left = len(waiting.order_by()[:FEW_COMPARISONS].values_list("pk"))
    return Found(
        low=left < FEW_COMPARISONS,
        facts={"open_comparisons": left, "threshold": FEW_COMPARISONS},
        url=reverse("labeling:queue", args=[project.slug]),
    )


def _agreement(project: Project) -> Found | None:
    """How often two annotators said the same of a pair, of the newest that several judged."""
    newest = Preference.objects.filter(project=project).order_by("-id")[:LOOKED_AT]
    votes = newest.annotate(votes=F("votes_for") + F("votes_against") + F("votes_tied"))
    rows = votes.values_list("votes_for", "votes_against", "votes_tied", "votes")
    couples = alike = pairs = 0
    for *sides, total in rows:
        if total < 2:
            continue
        pairs += 1
        couples += total * (total - 1) // 2
        alike += sum(side * (side - 1) // 2 for side in sides)
        if pairs == LAST_PAIRS:
            break
    if pairs < LEAST_PAIRS:
        return None
    share = 100 * alike / couples
    return Found(
        low=share < LOW_AGREEMENT,
        facts={"agreement_percent": round(share), "threshold_percent": LOW_AGREEMENT},
        url=reverse("labeling:preferences", args=[project.slug]),
    )
