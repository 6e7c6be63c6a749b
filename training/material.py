"""What a round would train on, as the record stands now: how much, and what the newest is like.

Counting pairs reads the whole table, so those figures are kept (labeling.figures). Everything else
is looked up in the newest few thousand pairs, which say enough, however many there are.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from django.db.models import F, Q, QuerySet
from django.db.models.functions import Length

from labeling.figures import counted, figure
from labeling.models import Comparison, Preference, Project, Prompt, Response, Slot, Split
from labeling.models.comparisons import TRAINED_ON
from training.filters import NO_POLICY, Filters, Sieve, agreement

NEWEST = 3000  # pairs that are looked at
PROMPTS_LOOKED_AT = 500  # for the lengths of prompts
# Edges of the length differences that are counted together, in characters.
EDGES = (-2000, -1000, -500, -200, -50, 50, 200, 500, 1000, 2000)
MOST_POLICIES = 8


@dataclass(frozen=True, kw_only=True)
class PairCounts:
    """Decided pairs a round would use; undecided ones have even votes."""

    train: int
    held_out: int
    undecided: int


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The newest pairs after filters; lengths are in characters, shares of 1 by their names."""

    pairs: int = 0  # looked at, those left out included
    whole: bool = True  # whether there are no others
    comparisons: int = 0  # of pairs to train on
    responses: int = 0
    train: int = 0
    held_out: int = 0
    undecided: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)
    twice: int = 0  # pairs with two votes or more, and what their votes agree to
    agreement: float | None = None
    chosen_length: float | None = None
    rejected_length: float | None = None
    prompt_length: float | None = None
    longer_chosen: float | None = None
    differences: Sequence[int] = ()  # pairs between two neighbouring EDGES
    identical: int = 0
    repeated: int = 0  # pairs of two texts that were judged before, in another comparison
    policies: Sequence[Sequence[int]] = ()  # policy or NO_POLICY, and its responses

    @property
    def kept(self) -> float:
        """Share of the decided pairs on the train side that the filters keep."""
        decided = self.train + sum(self.left_out.values())
        return self.train / decided if decided else 1.0


def trained_on(project: Project) -> QuerySet[Preference]:
    """The pairs that rounds look at, of both sides, decided or not."""
    return Preference.objects.filter(project=project, comparison__purpose__in=TRAINED_ON).exclude(
        comparison__state=Comparison.State.RETIRED
    )


@counted("training.pairs")
def _count(project: Project) -> dict[str, int]:
    pairs = trained_on(project)
    decided = pairs.filter(votes_for__gt=F("votes_against"))
    held_out = Q(comparison__prompt__split=Split.HELD_OUT)
    return {
        "train": decided.exclude(held_out).count(),
        "held_out": decided.filter(held_out).count(),
        "undecided": pairs.filter(votes_for=F("votes_against")).count(),
    }


@counted("training.prompts")
def _count_prompts(project: Project) -> dict[str, int]:
    prompts = Prompt.objects.filter(project=project)
    return {split: prompts.filter(split=split).count() for split in Split.values}


@counted("training.sample")
def _sample(project: Project) -> dict[str, Any]:
    return asdict(look(project, Filters()))


def count_pairs(project: Project, filters: Filters | None = None) -> PairCounts:
    """The pairs of comparisons that are trained on, by side.

    With filters, where there are more than NEWEST pairs, the train side is estimated from these.
    """
    counts = PairCounts(**figure(project, "training.pairs").value)
    if filters is None or not filters.as_json():
        return counts
    sample = sample_of(project, filters)
    train = sample.train if sample.whole else round(counts.train * sample.kept)
    return PairCounts(train=train, held_out=counts.held_out, undecided=counts.undecided)


def count_prompts(project: Project) -> dict[str, int]:
    """All prompts, by side."""
    counts: dict[str, int] = figure(project, "training.prompts").value
    return counts


def sample_of(project: Project, filters: Filters) -> Sample:
    """What the newest pairs are like; kept where there are no filters and it took long."""
    if filters.as_json():
        return look(project, filters)
    return Sample(**figure(project, "training.sample").value)


def look(project: Project, filters: Filters) -> Sample:
    """The same, looked up now."""
    rows = list(
        trained_on(project)
        .order_by("-pk")[: NEWEST + 1]
        .values(
            "comparison_id",
            "low_slot",
            "high_slot",
            "votes_for",
            "votes_against",
            "votes_tied",
            "chosen_id",
            "rejected_id",
            split=F("comparison__prompt__split"),
            prompt=F("comparison__prompt_id"),
        )
    )
    whole = len(rows) <= NEWEST
    rows = rows[:NEWEST]
    sieve = Sieve(filters)
    kept = list(sieve.rows(_groups(rows)))
    pairs = [(row, pair) for row in kept for pair in row["pairs"]]
    decided = [(row, pair) for row, pair in pairs if pair["votes_for"] > pair["votes_against"]]
    train = [(row, pair) for row, pair in decided if row["split"] == Split.TRAIN]
    twice = [pair for _row, pair in pairs if _votes(pair) > 1]
    comparisons = {row["id"]: row for row, _pair in train}
    return Sample(
        pairs=len(rows),
        whole=whole,
        comparisons=len(comparisons),
        responses=sum(len(row["responses"]) for row in comparisons.values()),
        train=len(train),
        held_out=len(decided) - len(train),
        undecided=len(pairs) - len(decided),
        left_out=dict(sieve.left_out),
        twice=len(twice),
        agreement=_mean([agreement(pair) for pair in twice]),
        **_texts(train),
        prompt_length=_prompt_length({row["prompt"] for row in comparisons.values()}),
    )


def _groups(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The pairs in the shape of ranked groups, without their texts."""
    pairs: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        pairs[row["comparison_id"]].append(row)
    slots: dict[int, list[int]] = defaultdict(list)
    named = Slot.objects.filter(comparison__in=list(pairs)).order_by("comparison", "index")
    for comparison, response in named.values_list("comparison_id", "response_id"):
        slots[comparison].append(response)
    for comparison, found in pairs.items():
        places = slots[comparison]
        yield {
            "id": f"comparison-{comparison}",
            "prompt": found[0]["prompt"],
            "split": found[0]["split"],
            "responses": [{"id": f"response-{response}"} for response in places],
            "pairs": [
                {
                    "chosen": places.index(row["chosen_id"]),
                    "rejected": places.index(row["rejected_id"]),
                    **{name: row[name] for name in ("votes_for", "votes_against", "votes_tied")},
                }
                for row in found
            ],
        }


def _texts(train: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    """What the texts of these pairs are like, and who wrote them."""
    sides = [
        tuple(row["responses"][pair[side]]["id"] for side in ("chosen", "rejected"))
        for row, pair in train
    ]
    known = _responses({int(name.rpartition("-")[2]) for both in sides for name in both})
    both = [(known[chosen], known[rejected]) for chosen, rejected in sides]
    differences = [chosen["length"] - rejected["length"] for chosen, rejected in both]
    seen = Counter(
        (chosen["prompt_id"], *sorted((chosen["text_digest"], rejected["text_digest"])))
        for chosen, rejected in both
    )
    identical = sum(chosen["text_digest"] == rejected["text_digest"] for chosen, rejected in both)
    written = {name for names in sides for name in names}
    authors = Counter(known[name]["policy_id"] or NO_POLICY for name in written)
    return {
        "chosen_length": _mean([chosen["length"] for chosen, _rejected in both]),
        "rejected_length": _mean([rejected["length"] for _chosen, rejected in both]),
        "longer_chosen": _mean([_longer(difference) for difference in differences]),
        "differences": _histogram(differences),
        "identical": identical,
        "repeated": sum(seen.values()) - len(seen),
        "policies": [list(one) for one in authors.most_common(MOST_POLICIES)],
    }


def _responses(wanted: set[int]) -> dict[str, dict[str, Any]]:
    rows = Response.objects.filter(pk__in=wanted).values(
        "pk", "prompt_id", "text_digest", "policy_id", length=Length("text")
    )
    return {f"response-{row['pk']}": dict(row) for row in rows}


def _prompt_length(prompts: set[int]) -> float | None:
    """The mean length of some of the prompts, as their JSON is long."""
    some = Prompt.objects.filter(pk__in=sorted(prompts)[-PROMPTS_LOOKED_AT:])
    return _mean([sum(len(str(turn["content"])) for turn in one.messages) for one in some])


def _votes(pair: Mapping[str, int]) -> int:
    return pair["votes_for"] + pair["votes_against"] + pair["votes_tied"]


def _longer(difference: int) -> float:
    return 0.5 if difference == 0 else float(difference > 0)


def _histogram(differences: Sequence[int]) -> list[int]:
    counts = [0] * (len(EDGES) + 1)
    for difference in differences:
        counts[sum(difference >= edge for edge in EDGES)] += 1
    return counts


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
