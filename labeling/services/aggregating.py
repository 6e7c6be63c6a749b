"""Judgments to preferences. The only writer of the preference table."""

from collections import defaultdict
from collections.abc import Collection, Sequence

from django.db import transaction

from labeling.models import Comparison, Judgment, Preference, Slot
from labeling.votes import PairVotes, Tiers, count_votes


@transaction.atomic(savepoint=False)
def rewrite_preferences(comparisons: Collection[Comparison]) -> None:
    """Make the preference rows of these comparisons say what their counted judgments say.

    Called in the transaction that changed a judgment. Rows keep their ids; rows of comparisons
    without judgments go.
    """
    rows = preferences_of(comparisons)
    judged = {row.comparison_id for row in rows}
    unjudged = [one.pk for one in comparisons if one.pk not in judged]
    Preference.objects.filter(comparison__in=unjudged).delete()
    _store(rows)


@transaction.atomic(savepoint=False)
def write_preferences(
    *, comparison: Comparison, rankings: Sequence[Tiers], responses: Sequence[int]
) -> None:
    """The same for one comparison whose counted rankings and responses, by slot, are known.

    One statement, so that sending a verdict stays quick.
    """
    if rankings:
        _store(_preferences(comparison, rankings, responses))
    else:
        Preference.objects.filter(comparison=comparison).delete()


def _store(rows: list[Preference]) -> None:
    Preference.objects.bulk_create(
        rows,
        batch_size=1000,
        update_conflicts=True,
        unique_fields=["comparison", "low_slot", "high_slot"],
        update_fields=[
            "chosen",
            "rejected",
            "votes_for",
            "votes_against",
            "votes_tied",
            "probability",
            "updated_at",
        ],
    )


def preferences_of(comparisons: Collection[Comparison]) -> list[Preference]:
    """The rows, unsaved, that the counted judgments of these comparisons give: two queries."""
    rankings, responses = _rankings(comparisons), _responses(comparisons)
    return [
        row
        for comparison in comparisons
        if comparison.pk in rankings
        for row in _preferences(comparison, rankings[comparison.pk], responses[comparison.pk])
    ]


def _preferences(
    comparison: Comparison, rankings: Sequence[Tiers], responses: Sequence[int]
) -> list[Preference]:
    return [
        _preference(comparison, pair, votes, responses)
        for pair, votes in sorted(count_votes(rankings, len(responses)).items())
    ]


def _preference(
    comparison: Comparison, pair: tuple[int, int], votes: PairVotes, responses: Sequence[int]
) -> Preference:
    low, high = pair
    chosen, rejected = (low, high) if votes.low_leads else (high, low)
    return Preference(
        project_id=comparison.project_id,
        comparison=comparison,
        low_slot=low,
        high_slot=high,
        chosen_id=responses[chosen],
        rejected_id=responses[rejected],
        votes_for=max(votes.low, votes.high),
        votes_against=min(votes.low, votes.high),
        votes_tied=votes.tied,
        probability=votes.probability,
    )


def _rankings(comparisons: Collection[Comparison]) -> dict[int, list[Tiers]]:
    found: dict[int, list[Tiers]] = defaultdict(list)
    rows = Judgment.objects.counted().filter(comparison__in=comparisons).order_by("id")
    for comparison, tiers in rows.values_list("comparison", "tiers"):
        found[comparison].append(tiers)
    return found


def _responses(comparisons: Collection[Comparison]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = defaultdict(list)
    rows = Slot.objects.filter(comparison__in=comparisons).order_by("comparison", "index")
    for comparison, response in rows.values_list("comparison", "response"):
        found[comparison].append(response)
    return found
