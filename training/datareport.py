"""The data report for people: what became of every pair, before the first step and after.

The trainer's report is training/trainer/report.py; this puts it in words and finds the
comparisons that it names.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any
from urllib.parse import urlencode

from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop, ngettext, pgettext

from labeling.models import Preference, Project
from labeling.templatetags.prefloop import thin
from training.curves import number
from training.events import Events, at, count

DROPPED = {
    "tied": gettext_noop("only tied votes"),
    "empty": gettext_noop("an empty response"),
    "identical": gettext_noop("identical responses"),
    "too_long": gettext_noop("longer than the most tokens"),
    "template": gettext_noop("the chat template failed"),
}
SOURCES = {
    "sampled": gettext_noop("as they were sampled"),
    "cut": gettext_noop("cut off at the length limit when sampled"),
    "encoded": gettext_noop("encoded from the text"),
}
COMPARISON = re.compile(r"comparison-(\d{1,18})(?::.*)?", re.S)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Something the report names: a comparison with a link to it, or just a name."""

    text: str
    url: str = ""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One row of the table, and one stretch of the bar."""

    key: str  # "train", "held_out", "dropped"
    title: str
    pairs: int
    comparisons: int | None
    responses: int | None
    start: float  # on the bar, in per cent of all pairs
    width: float


@dataclass(frozen=True, kw_only=True)
class Named:
    """So many of something, with the first few of them."""

    number: int
    words: str
    places: list[Place]


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """Everything a template needs to tell it."""

    sides: list[Side]
    pairs: int
    dropped: list[Named]
    shortened: Named
    facts: list[tuple[str, str]]
    template_errors: list[str]


def data_report(events: Events, project: Project) -> DataReport | None:
    """The newest report of a round; None as long as there is none."""
    report = events.report
    if not report:
        return None
    dropped = {one: _names(report, "dropped_examples", one) for one in _reasons(report)}
    shortened = _names(report, "shortened_examples")
    links = comparison_links(project, [*shortened, *chain.from_iterable(dropped.values())])
    left_out = [
        Named(
            number=count(report, "dropped", reason),
            words=_(DROPPED.get(reason, reason)),
            places=_places(names, links),
        )
        for reason, names in dropped.items()
    ]
    sides = _sides(report)
    return DataReport(
        sides=sides,
        pairs=sum(side.pairs for side in sides),
        dropped=sorted(left_out, key=lambda one: -one.number),
        shortened=Named(
            number=count(report, "shortened"), words="", places=_places(shortened, links)
        ),
        facts=_facts(events),
        template_errors=_names(report, "template_errors"),
    )


def _reasons(report: Mapping[str, Any]) -> list[str]:
    dropped = at(report, "dropped")
    return list(dropped) if isinstance(dropped, dict) else []


def _sides(report: Mapping[str, Any]) -> list[Side]:
    left_out = sum(count(report, "dropped", reason) for reason in _reasons(report))
    pairs = {
        "train": count(report, "pairs", "train"),
        "held_out": count(report, "pairs", "held_out"),
        "dropped": left_out,
    }
    titles = {"train": _("Trained on"), "held_out": _("Held out"), "dropped": _("Left out")}
    whole = max(1, sum(pairs.values()))
    sides, start = [], 0.0
    for key, found in pairs.items():
        kept = key != "dropped"
        width = 100 * found / whole
        sides.append(
            Side(
                key=key,
                title=titles[key],
                pairs=found,
                comparisons=count(report, "groups", key) if kept else None,
                responses=count(report, "responses", key) if kept else None,
                start=round(start, 2),
                width=round(width, 2),
            )
        )
        start += width
    return sides


def _facts(events: Events) -> list[tuple[str, str]]:
    """What else there is to know of the data, in words; lengths are in tokens."""
    report, cache = events.report, events.cache
    facts = []
    if even := count(report, "evenly_split"):
        words = ngettext(
            "%(number)s of these pairs: it pulls its margin to 0",
            "%(number)s of these pairs: they pull their margin to 0",
            even,
        )
        facts.append((_("Evenly split"), words % {"number": thin(even)}))
    if tied := count(report, "tied"):
        facts.append((_("With tied votes"), _tied(tied, at(report, "tie_nu"))))
    if lengths := _lengths(report):
        facts.append((_("Mean length"), lengths))
    longest = _("%(number)s tokens, a prompt with its response")
    facts.append((_("Longest"), longest % {"number": thin(count(report, "longest"))}))
    if sources := _sources(report):
        facts.append((_("Token ids"), sources))
    if of := count(cache, "of"):
        facts.append((_("Reference"), _cached(cache, of)))
    return facts


def _tied(pairs: int, nu: Any) -> str:
    if not isinstance(nu, float):
        words = ngettext("%(number)s pair, modelled", "%(number)s pairs, modelled", pairs)
        return words % {"number": thin(pairs)}
    words = ngettext(
        "%(number)s pair, modelled with ν = %(nu)s",
        "%(number)s pairs, modelled with ν = %(nu)s",
        pairs,
    )
    return words % {"number": thin(pairs), "nu": number(nu, 2)}


def _cached(cache: Mapping[str, Any], of: int) -> str:
    again = count(cache, "checked_groups")
    words = ngettext(
        "%(found)s of %(all)s log-probabilities came from the cache; %(again)s comparison "
        "computed again agreed",
        "%(found)s of %(all)s log-probabilities came from the cache; %(again)s comparisons "
        "computed again agreed",
        again,
    )
    return words % {"found": thin(count(cache, "found")), "all": thin(of), "again": again}


def _lengths(report: Mapping[str, Any]) -> str:
    names = {
        "prompt": pgettext("length", "prompt"),
        "chosen": pgettext("length", "chosen"),
        "rejected": pgettext("length", "rejected"),
    }
    found = [(words, at(report, "lengths", name)) for name, words in names.items()]
    told = [f"{words} {number(v, 0)}" for words, v in found if isinstance(v, (int, float))]
    return _("%(lengths)s tokens") % {"lengths": ", ".join(told)} if told else ""


def _sources(report: Mapping[str, Any]) -> str:
    found = [(_(words), count(report, "token_ids", key)) for key, words in SOURCES.items()]
    return ", ".join(f"{thin(n)} {words}" for words, n in found if n)


def _names(report: Mapping[str, Any], *path: str) -> list[str]:
    found = at(report, *path)
    return [str(name) for name in found] if isinstance(found, list) else []


def _places(names: Iterable[str], links: Mapping[int, str]) -> list[Place]:
    """The names in their order, each comparison once."""
    places: dict[str, Place] = {}
    for name in names:
        comparison = _comparison(name)
        if comparison is not None and comparison in links:
            places[str(comparison)] = Place(text=str(comparison), url=links[comparison])
        else:
            places[name] = Place(text=name)
    return list(places.values())


def _comparison(name: str) -> int | None:
    """The comparison that a pair or a group is of: "comparison-3: response-7 > response-6"."""
    match = COMPARISON.fullmatch(name)
    return int(match[1]) if match else None


def comparison_links(project: Project, names: Iterable[str]) -> dict[int, str]:
    """Addresses of the comparisons among these names, by their number.

    The preferences page with the comparison's pairs on top. A comparison of another project, or
    without preferences by now, has no address.
    """
    wanted = {found for name in names if (found := _comparison(name)) is not None}
    page = reverse("labeling:preferences", args=[project.slug])
    rows = Preference.objects.filter(project=project, comparison__in=wanted).order_by("pk")
    newest = dict(rows.values_list("comparison_id", "pk"))
    return {one: f"{page}?{urlencode({'before': pk + 1})}" for one, pk in newest.items()}
