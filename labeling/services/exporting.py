"""The preference table as rows for others: streamed, in id order, in constant memory.

Nothing here says who judged: rows hold counts of votes.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from django.db.models import Count, Exists, F, OuterRef, Q, QuerySet

from labeling.formats import trl_row
from labeling.models import Comparison, Preference, Project, Slot, Split
from labeling.models.comparisons import TRAINED_ON

PAGE = 200  # rows read at a time

TRAINED = Q(comparison__purpose__in=TRAINED_ON)
RETIRED = Q(comparison__state=Comparison.State.RETIRED)
DECIDED = Q(votes_for__gt=F("votes_against"))
ONLY_TIES = Q(votes_for=0, votes_against=0)


def preference_rows(project: Project, split: Split | None) -> Iterator[dict[str, Any]]:
    """Decided preferences of comparisons that are trained on and not retired, in TRL's shape.

    Each row also tells its votes, probability, split and comparison. Both splits where `split` is
    None.
    """
    table = _table(project, split).filter(TRAINED, ~RETIRED, DECIDED)
    rows = table.order_by("pk").values(
        "pk",
        "comparison_id",
        "votes_for",
        "votes_against",
        "votes_tied",
        "probability",
        chosen_text=F("chosen__text"),
        rejected_text=F("rejected__text"),
        messages=F("comparison__prompt__messages"),
        split=F("comparison__prompt__split"),
    )
    last = 0
    while page := list(rows.filter(pk__gt=last)[:PAGE]):
        yield from map(_preference_row, page)
        last = page[-1]["pk"]


def left_out(project: Project, split: Split | None) -> dict[str, int]:
    """How many of the split's preferences `preference_rows` leaves out, by reason."""
    live = TRAINED & ~RETIRED
    counts = _table(project, split).aggregate(
        even=Count("pk", filter=live & ~DECIDED & ~ONLY_TIES),
        tied=Count("pk", filter=live & ONLY_TIES),
        retired=Count("pk", filter=TRAINED & RETIRED),
        checks=Count("pk", filter=~TRAINED),
    )
    return {
        "votes even": counts["even"],
        "only ties": counts["tied"],
        "comparison retired": counts["retired"],
        "gold or evaluation": counts["checks"],
    }


def ranked_groups(project: Project) -> Iterator[dict[str, Any]]:
    """One row a comparison: its prompt, all its responses, and the votes on each pair of them.

    Comparisons that are trained on, have preferences and are not retired, of both splits;
    undecided pairs are in, with their votes. This is the trainer's preferences.jsonl.
    """
    comparisons = (
        Comparison.objects.filter(
            Exists(Preference.objects.filter(comparison=OuterRef("pk"))),
            project=project,
            purpose__in=TRAINED_ON,
        )
        .exclude(state=Comparison.State.RETIRED)
        .select_related("prompt")
        .order_by("pk")
    )
    last = 0
    while page := list(comparisons.filter(pk__gt=last)[:PAGE]):
        yield from _groups(page)
        last = page[-1].pk


def _table(project: Project, split: Split | None) -> QuerySet[Preference]:
    table = Preference.objects.filter(project=project)
    return table.filter(comparison__prompt__split=split) if split else table


def _preference_row(row: Mapping[str, Any]) -> dict[str, Any]:
    texts = trl_row(
        prompt=row["messages"], chosen=row["chosen_text"], rejected=row["rejected_text"]
    )
    return texts | {
        "votes_for": row["votes_for"],
        "votes_against": row["votes_against"],
        "votes_tied": row["votes_tied"],
        "probability": row["probability"],
        "split": row["split"],
        "comparison": row["comparison_id"],
    }


def _groups(comparisons: list[Comparison]) -> Iterator[dict[str, Any]]:
    responses: dict[int, list[dict[str, Any]]] = {c.pk: [] for c in comparisons}
    pairs: dict[int, list[dict[str, Any]]] = {c.pk: [] for c in comparisons}
    slots = Slot.objects.filter(comparison__in=comparisons).order_by("comparison", "index")
    for slot in slots.values(
        "comparison_id", "response_id", text=F("response__text"), ids=F("response__token_ids")
    ):
        responses[slot["comparison_id"]].append(
            {
                "id": f"response-{slot['response_id']}",
                "text": slot["text"],
                "token_ids": slot["ids"],
            }
        )
    preferences = Preference.objects.filter(comparison__in=comparisons)
    for preference in preferences.order_by("low_slot", "high_slot"):
        pairs[preference.comparison_id].append(_pair(preference, responses))
    for comparison in comparisons:
        yield {
            "id": f"comparison-{comparison.pk}",
            "prompt": comparison.prompt.messages,
            "split": comparison.prompt.split,
            "responses": responses[comparison.pk],
            "pairs": pairs[comparison.pk],
        }


def _pair(preference: Preference, responses: dict[int, list[dict[str, Any]]]) -> dict[str, Any]:
    """A preference as places in its comparison's list of responses."""
    ids = [response["id"] for response in responses[preference.comparison_id]]
    return {
        "chosen": ids.index(f"response-{preference.chosen_id}"),
        "rejected": ids.index(f"response-{preference.rejected_id}"),
        "votes_for": preference.votes_for,
        "votes_against": preference.votes_against,
        "votes_tied": preference.votes_tied,
    }
