"""Rounds that have ended, told to who wants to know. Called where the round's end is written."""

from typing import Any

from django.urls import reverse

from labeling.models import Event
from labeling.services.notifying import notify
from training.models import Round

LONGEST_REASON = 300


def tell_finished(round_: Round) -> None:
    """A round made a policy: how much better that agrees with held-out pairs."""
    facts: dict[str, Any] = {"round": round_.number, "policy": str(round_.policy)}
    for when in ("before", "after"):
        found = round_.results.get(f"held_out_{when}") or {}
        if found.get("accuracy") is not None:
            facts[f"held_out_accuracy_{when}"] = round(found["accuracy"], 4)
    _notify(round_, Event.ROUND_FINISHED, facts)


def tell_failed(round_: Round, error: str) -> None:
    """A round failed: why in the first sentence; what follows may be of the log."""
    reason = (error.strip().splitlines() or [""])[0].partition(". ")[0][:LONGEST_REASON]
    _notify(round_, Event.ROUND_FAILED, {"round": round_.number, "reason": reason})


def _notify(round_: Round, event: Event, facts: dict[str, Any]) -> None:
    facts["origin"] = round_.origin
    url = reverse("training:round", args=[round_.project.slug, round_.number])
    notify(project=round_.project, event=event, facts=facts, url=url)
