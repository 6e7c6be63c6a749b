"""What a project's judgments say of its policies: votes between them, and ratings from these.

A vote is what one counted judgment says of two responses that different policies wrote. Standard
comparisons and evaluations give votes; gold, practice and people's rewrites are about something
else. Preferences hold the counted judgments of each pair already.
"""

from typing import Any

import numpy as np
from django.db.models import F, Q, Sum

from labeling.figures import Kept, counted, figure
from labeling.lineage import initial_policy
from labeling.models import Comparison, Policy, Preference, Project
from labeling.ratings import Rating, Votes, rate
from labeling.services.promoting import serving_policy

VOTING = (Comparison.Purpose.STANDARD, Comparison.Purpose.EVALUATION)
RATINGS = "policies.ratings"
FRESH_S = 60.0


def votes_between(project: Project) -> Votes:
    """All votes between two policies; reads every preference of the project."""
    rows = (
        Preference.objects.filter(
            ~Q(chosen__policy=F("rejected__policy")),
            project=project,
            comparison__purpose__in=VOTING,
            chosen__policy__isnull=False,
            rejected__policy__isnull=False,
        )
        .exclude(comparison__state=Comparison.State.RETIRED)
        .order_by()
        .values("comparison__prompt", "chosen__policy", "rejected__policy")
        .annotate(wins=Sum("votes_for"), losses=Sum("votes_against"), ties=Sum("votes_tied"))
        .values_list(
            "comparison__prompt", "chosen__policy", "rejected__policy", "wins", "losses", "ties"
        )
    )
    table = np.array(list(rows), dtype=np.int64).reshape(-1, 6)
    prompts, first, second, wins, losses, ties = table.T
    return Votes(
        prompts=prompts,
        first=first,
        second=second,
        wins=wins + ties / 2,
        losses=losses + ties / 2,
    )


def anchor_of(project: Project) -> Policy | None:
    """The policy whose rating is 1000: the initial one of the serving policy's line.

    Where that was never compared with any, the oldest that was takes its place.
    """
    serving = serving_policy(project)
    return initial_policy(serving) if serving else project.policies.order_by("pk").first()


@counted(RATINGS)
def _ratings(project: Project) -> dict[str, Any]:
    votes, initial = votes_between(project), anchor_of(project)
    compared = sorted({*votes.first.tolist(), *votes.second.tolist()})
    if initial is None or not compared:
        return {}
    found = rate(votes, initial.pk if initial.pk in compared else compared[0])
    return {str(policy): [one.value, one.low, one.high, one.votes] for policy, one in found.items()}


def ratings_of(project: Project) -> tuple[dict[int, Rating], Kept]:
    """Ratings by policy, as they were last worked out, and when that was."""
    kept = figure(project, RATINGS, fresh_s=FRESH_S)
    found = {
        int(policy): Rating(value=value, low=low, high=high, votes=votes)
        for policy, (value, low, high, votes) in kept.value.items()
    }
    return found, kept
