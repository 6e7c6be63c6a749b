"""Preferences that no round has learned from yet, counted as training would take them."""

from dataclasses import dataclass
from datetime import datetime

from django.db.models import F
from django.utils import timezone

from labeling.figures import counted, figure
from labeling.models import Project, Split
from training.material import trained_on
from training.models import Round, RoundState

NAME = "training.new_pairs"


@dataclass(frozen=True, kw_only=True)
class New:
    """Decided pairs that came, or changed, since round `since` froze its own; 0: since ever."""

    number: int
    since: int
    as_of: datetime


def new_pairs(project: Project) -> New:
    """The new pairs; in a large project the number may be some minutes old, and then too small."""
    found = figure(project, NAME)
    kept = New(**found.value, as_of=found.as_of)
    learned = last_learned(project)
    return kept if kept.since == (learned.pk if learned else 0) else count_now(project)


def last_learned(project: Project) -> Round | None:
    """The last round that succeeded: what was new before it has been trained on."""
    done = project.rounds.filter(state=RoundState.SUCCEEDED).select_related("snapshot")
    return done.order_by("-number").first()


@counted(NAME)
def _count(project: Project) -> dict[str, int]:
    new = count_now(project)
    return {"number": new.number, "since": new.since}


def count_now(project: Project) -> New:
    """Pairs a round would train on that were decided, or changed, since the last one froze its."""
    pairs = trained_on(project).filter(
        comparison__prompt__split=Split.TRAIN, votes_for__gt=F("votes_against")
    )
    learned, as_of = last_learned(project), timezone.now()
    if learned is None:
        return New(number=pairs.count(), since=0, as_of=as_of)
    frozen = learned.snapshot.created_at if learned.snapshot else learned.created_at
    number = pairs.filter(updated_at__gt=frozen).count()
    return New(number=number, since=learned.pk, as_of=as_of)
