"""What the card of a comparison shows: letters and texts, nothing that tells an author."""

import uuid
from dataclasses import dataclass
from typing import Any

from django.urls import reverse

from labeling.forms import RANKING
from labeling.models import Judgment, Project
from labeling.services.assigning import Assignment
from labeling.wording import SCALE, choice_of, letter


@dataclass(frozen=True, kw_only=True)
class Place:
    """A response as the page shows it."""

    letter: str
    text: str
    words: int


def places_of(assignment: Assignment) -> list[Place]:
    """The places of a comparison, in the order in which its annotator sees them."""
    return [
        Place(letter=letter(place), text=slot.response.text, words=slot.response.words)
        for place, slot in enumerate(assignment.slots)
    ]


def card_context(
    project: Project, assignment: Assignment, *, again: Judgment | None = None
) -> dict[str, Any]:
    """The context of judge_card.html. `again`: the judgment that its annotator wants to change."""
    route, own = ("judge_again", {"judgment": again.pk}) if again else ("judge", {})
    return {
        "project": project,
        "action": reverse(f"labeling:{route}", kwargs={"slug": project.slug} | own),
        "again": again,
        "lease": assignment.lease.token,
        "key": uuid.uuid4().hex,
        "prompt": assignment.comparison.prompt,
        "places": places_of(assignment),
        "scale": SCALE,
        "criteria": project.criteria,
        "draft": assignment.lease.draft,
    }


def draft_of(judgment: Judgment) -> dict[str, str]:
    """A verdict, and all that came with it, as the form's fields hold it."""
    place = {slot: letter(number) for number, slot in enumerate(judgment.shown_order)}
    draft = {"choice": choice_of(judgment), "rationale": judgment.rationale}
    if draft["choice"] == RANKING:
        for rank, tier in enumerate(judgment.tiers, 1):
            draft |= {f"place_{place[slot]}": str(rank) for slot in tier}
    for criterion, ratings in judgment.ratings.items():
        for slot, rating in ratings.items():
            draft[f"rating_{criterion}_{place[int(slot)]}"] = str(rating)
    flag = judgment.flags.order_by("pk").first()
    if flag is not None:
        where = "" if flag.slot is None else place[flag.slot]
        draft |= {"flag_reason": flag.reason, "flag_place": where, "flag_note": flag.note}
    return draft | _rewrite_draft(judgment, place)


def _rewrite_draft(judgment: Judgment, place: dict[int, str]) -> dict[str, str]:
    """The rewrite that was sent with the verdict, if there was one."""
    rewrite = judgment.rewrites.first()
    if rewrite is None:
        return {}
    written, original = rewrite.comparison.slots.select_related("response").order_by("index")
    slot = judgment.comparison.slots.get(response=original.response_id)
    return {"rewrite_place": place[slot.index], "rewrite_text": written.response.text}
