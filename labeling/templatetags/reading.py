"""Tags of the templates in which people read what they compare."""

from typing import Any

from django import template
from django.template import Context
from django.urls import reverse
from django.utils.http import urlencode

from labeling.chat import Message
from labeling.excerpts import Conversation, Turn, conversation, excerpt

register = template.Library()


@register.filter
def in_turns(messages: list[Message]) -> Conversation:
    """A prompt's turns, each with as much of its text as the page shows."""
    return conversation(messages)


@register.inclusion_tag("labeling/reading_text.html", takes_context=True)
def turn_text(context: Context, turn: Turn) -> dict[str, Any]:
    """A turn's text; of a long one its beginning, and the way to the rest."""
    return {"text": turn.text, "address": _address(context, "judge_text", turn=turn.index)}


@register.inclusion_tag("labeling/reading_text.html", takes_context=True)
def place_text(context: Context, place: Any) -> dict[str, Any]:
    """A response's text, rendered and as written; of a long one its beginning, and so on."""
    address = _address(context, "judge_text", place=place.letter)
    return {"text": excerpt(place.text), "address": address, "also_raw": True}


@register.simple_tag(takes_context=True)
def differences_address(context: Context) -> str:
    """Where the differences between this comparison's responses are asked for."""
    return _address(context, "judge_differences")


def _address(context: Context, route: str, **which: object) -> str:
    """By what the comparison is shown for: a judgment it has, an example, or a lease."""
    if context.get("again"):
        shown = {"judgment": context["again"].pk}
    elif context.get("example"):
        shown = {"example": context["example"].pk}
    else:
        shown = {"lease": context["lease"]}
    url = reverse(f"labeling:{route}", kwargs={"slug": context["project"].slug})
    return f"{url}?{urlencode(shown | which)}"
