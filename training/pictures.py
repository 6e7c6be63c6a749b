"""The data of a round before it starts, for people: figures, a bar and a histogram, as SVG data."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from labeling.models import Project, Split
from labeling.templatetags.prefloop import percent, thin
from training.filters import NO_POLICY, REASONS
from training.material import EDGES, PairCounts, Sample

WIDTH, HEIGHT, FLOOR = 240, 72, 56
GAP = 2


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """A part of the bar of pairs: from `start`, so wide, in per cent of all."""

    key: str  # "train", "held_out", "dropped"
    title: str
    pairs: int
    start: float
    width: float


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the histogram, which tells its number on hover."""

    x: float
    y: float
    width: float
    height: float
    side: str  # "rejected" or "chosen" is longer, or "level"
    text: str


@dataclass(frozen=True, kw_only=True)
class MaterialReport:
    """Everything a template needs to tell it. `newest` is 0 where all pairs were looked at."""

    bar: list[Stretch]
    left_out: list[tuple[str, str]]
    facts: list[tuple[str, str]]
    columns: list[Column]
    summary: str
    newest: int
    policies: list[tuple[str, str]]
    width: int = WIDTH
    height: int = HEIGHT
    floor: int = FLOOR
    middle: float = WIDTH / 2


def material_report(
    project: Project, pairs: PairCounts, sample: Sample, prompts: dict[str, int]
) -> MaterialReport:
    """What a round would train on, in words and pictures."""
    names = dict(project.policies.values_list("pk", "name"))
    written = sum(number for _policy, number in sample.policies)
    return MaterialReport(
        bar=_bar(pairs, sample),
        left_out=[(_(REASONS[key]), thin(number)) for key, number in sample.left_out.items()],
        facts=list(_facts(sample, prompts)),
        columns=list(_columns(sample.differences)),
        summary=_summary(sample),
        newest=0 if sample.whole else sample.pairs,
        policies=[
            (
                names.get(policy, _("No policy")) if policy != NO_POLICY else _("No policy"),
                percent(number / written),
            )
            for policy, number in sample.policies
        ],
    )


def _bar(pairs: PairCounts, sample: Sample) -> list[Stretch]:
    left_out = sum(sample.left_out.values())
    if not sample.whole and sample.kept > 0:
        left_out = round(pairs.train / sample.kept) - pairs.train
    parts = (
        ("train", _("To train on"), pairs.train),
        ("held_out", _("Held out"), pairs.held_out),
        ("dropped", _("Even votes"), pairs.undecided),
        ("dropped", _("Left out by the filters"), left_out),
    )
    whole = max(1, sum(number for _key, _title, number in parts))
    stretches, start = [], 0.0
    for key, title, number in parts:
        if not number and title == parts[-1][1]:
            continue
        width = 100 * number / whole
        stretch = Stretch(
            key=key, title=title, pairs=number, start=round(start, 2), width=round(width, 2)
        )
        stretches.append(stretch)
        start += width
    return stretches


def _facts(sample: Sample, prompts: dict[str, int]) -> Iterator[tuple[str, str]]:
    yield (
        _("Prompts"),
        _("%(train)s to train on, %(held_out)s held out")
        % {"train": thin(prompts[Split.TRAIN]), "held_out": thin(prompts[Split.HELD_OUT])},
    )
    if sample.agreement is not None:
        words = ngettext(
            "%(share)s of the votes, over %(number)s pair with two or more",
            "%(share)s of the votes, over %(number)s pairs with two or more",
            sample.twice,
        )
        told = words % {"share": percent(sample.agreement), "number": thin(sample.twice)}
        yield _("Agreement"), told
    if sample.train and sample.chosen_length is not None and sample.rejected_length is not None:
        yield (
            _("Mean length"),
            _("chosen %(chosen)s, rejected %(rejected)s characters")
            % {"chosen": thin(sample.chosen_length), "rejected": thin(sample.rejected_length)},
        )
        yield _("Chosen is longer"), percent(sample.longer_chosen)
    if sample.identical:
        yield _("Identical responses"), thin(sample.identical)
    if sample.repeated:
        yield _("Pairs judged before"), thin(sample.repeated)


def _columns(differences: Sequence[int]) -> Iterator[Column]:
    """Equal columns, whatever the width of what they count: the far ends are rare."""
    if not differences or not any(differences):
        return
    width, most = WIDTH / len(differences), max(differences)
    middle = len(differences) // 2
    for place, number in enumerate(differences):
        height = (FLOOR - 6) * number / most
        side = "level" if place == middle else "chosen" if place > middle else "rejected"
        yield Column(
            x=round(place * width + GAP / 2, 1),
            y=round(FLOOR - height, 1),
            width=round(width - GAP, 1),
            height=round(height, 1),
            side=side,
            text=f"{_reach(place, len(differences))}: {thin(number)}",
        )


def _reach(place: int, places: int) -> str:
    """What a column counts, in words."""
    if place == places // 2:
        return _("within %(number)s characters of each other") % {"number": EDGES[place]}
    ours = place > places // 2
    near, far = sorted(
        abs(edge) for edge in (EDGES[max(0, place - 1)], EDGES[min(place, len(EDGES) - 1)])
    )
    if near == far:
        words = (
            _("chosen longer by %(near)s characters or more")
            if ours
            else _("rejected longer by more than %(near)s characters")
        )
        return words % {"near": thin(near)}
    words = (
        _("chosen longer by %(near)s to %(far)s characters")
        if ours
        else _("rejected longer by %(near)s to %(far)s characters")
    )
    return words % {"near": thin(near), "far": thin(far)}


def _summary(sample: Sample) -> str:
    """The histogram in words, for those who cannot see it."""
    return _(
        "Length of chosen minus rejected: the chosen response is longer in %(share)s of pairs"
    ) % {"share": percent(sample.longer_chosen)}
