"""What the card of a comparison shows: letters and texts, nothing that tells an author."""

import uuid
from dataclasses import dataclass
from typing import Any

from django.urls import reverse

from labeling.models import Judgment, Project
from labeling.services.assigning import Assignment
from labeling.wording import SCALE, letter


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
