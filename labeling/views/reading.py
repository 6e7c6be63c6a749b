"""What the judging page asks for while somebody reads: the rest of long texts, and differences.

Only by the person's own lease or judgment, or by an example of the guide, and only in the order
in which they see the responses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from django.http import Http404, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.http import require_GET

from labeling.access import JUDGES, project_for
from labeling.differences import Piece
from labeling.differences import differences as compare
from labeling.excerpts import piece_end
from labeling.models import Comparison, Example, Judgment, Project
from labeling.rendering import visible
from labeling.requests import PageRequest, number_in
from labeling.services import assigning
from labeling.wording import letter

NEXT = "X-Next-From"  # of the header that tells where the next piece begins


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """A comparison as its annotator sees it: the slot at each letter."""

    comparison: Comparison
    slots: dict[str, int]

    def texts(self) -> dict[str, str]:
        """All responses, by letter."""
        found = dict(self.comparison.slots.values_list("index", "response__text"))
        return {one: found[index] for one, index in self.slots.items()}

    def text(self, place: str) -> str:
        """The response at a letter; 404 where there is none."""
        if place not in self.slots:
            raise Http404("There is no such place.")
        slot = self.comparison.slots.filter(index=self.slots[place])
        return slot.values_list("response__text", flat=True).get()

    def turn(self, index: int) -> str:
        """A turn of the prompt; 404 where there is none."""
        messages = self.comparison.prompt.messages
        if index >= len(messages):
            raise Http404("There is no such turn.")
        return str(messages[index]["content"])


@dataclass(frozen=True)
class _Side:
    """A response with what sets it apart from an `other`, which the base of several has not.

    No pieces where the two are too long to compare.
    """

    letter: str
    text: str
    other: str = ""
    pieces: list[Piece] | None = None
    shared: float = 0.0


@require_GET
def text(request: PageRequest, slug: str) -> HttpResponse:
    """A response (`place`) or a turn of the prompt (`turn`), as it was written.

    All of it, or with `from` the piece that begins there.
    """
    shown = _shown(request, project_for(request.user, slug, JUDGES))
    if "turn" in request.GET:
        whole = shown.turn(_number(request, "turn"))
    else:
        whole = shown.text(request.GET.get("place", ""))
    begin, end = 0, len(whole)
    if "from" in request.GET:
        begin = _number(request, "from")
        end = piece_end(whole, begin)
    response = HttpResponse(visible(whole[begin:end]), content_type="text/plain; charset=utf-8")
    if end < len(whole):
        response[NEXT] = str(end)
    return response


@require_GET
def differences(request: PageRequest, slug: str) -> HttpResponse:
    """A fragment: what each response has that the one at `against` has not.

    Of a pair both sides are marked; of more the one that the others are held against is not.
    """
    shown = _shown(request, project_for(request.user, slug, JUDGES))
    texts = {one: visible(text) for one, text in shown.texts().items()}
    against = request.GET.get("against", "")
    if against not in texts:
        raise Http404("There is no such place.")
    sides = _pair(*texts.items()) if len(texts) == 2 else _against(against, texts)
    return render(request, "labeling/reading_differences.html", {"sides": sides})


def _pair(first: tuple[str, str], second: tuple[str, str]) -> list[_Side]:
    found = compare(first[1], second[1])
    if found is None:
        return [_Side(*first, other=second[0]), _Side(*second, other=first[0])]
    return [
        _Side(*first, second[0], found.first, found.shared),
        _Side(*second, first[0], found.second, found.shared),
    ]


def _against(base: str, texts: dict[str, str]) -> list[_Side]:
    sides = []
    for one, text in texts.items():
        found = compare(text, texts[base]) if one != base else None
        if found is None:
            sides.append(_Side(one, text, other="" if one == base else base))
        else:
            sides.append(_Side(one, text, base, found.first, found.shared))
    return sides


def _shown(request: PageRequest, project: Project) -> _Shown:
    """The comparison that the request names, in the order in which this person sees it."""
    if "judgment" in request.GET:
        own = Judgment.objects.filter(annotator=request.user, comparison__project=project)
        judgment = get_object_or_404(
            own.select_related("comparison__prompt"), pk=_number(request, "judgment")
        )
        return _in_order(judgment.comparison, judgment.shown_order)
    if "example" in request.GET:
        shown = Example.objects.shown().filter(comparison__project=project)
        example = get_object_or_404(
            shown.select_related("comparison__prompt"), pk=_number(request, "example")
        )
        return _in_order(example.comparison, range(example.comparison.slots.count()))
    try:
        token = UUID(request.GET.get("lease", ""))
    except ValueError:
        raise Http404("No comparison is named.") from None
    lease = assigning.held_lease(annotator=request.user, token=token)
    if lease is None or lease.comparison.project_id != project.pk:
        raise Http404("You do not hold this comparison any more.")
    comparison = lease.comparison
    order = assigning.shown_order(comparison.pk, request.user.pk, comparison.slots.count())
    return _in_order(comparison, order)


def _in_order(comparison: Comparison, order: Sequence[int]) -> _Shown:
    slots = {letter(place): index for place, index in enumerate(order)}
    return _Shown(comparison=comparison, slots=slots)


def _number(request: PageRequest, name: str) -> int:
    given = number_in(request.GET.get(name))
    if given is None:
        raise Http404(f"{name} is not a number.")
    return given
