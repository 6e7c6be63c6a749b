"""Which pairs a round trains on, and why each of the others is left out.

Filters by person and day leave verdicts out: the votes on a pair are counted again from those that
stay, and the response with more of them is the chosen one. The other filters leave out pairs. Only
the train side is filtered; held-out pairs measure every round of a project alike.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import date, datetime, time, timedelta
from itertools import islice
from typing import Any, Self

from django.utils import timezone
from django.utils.translation import gettext_noop

from labeling.models import Judgment, Response, Split
from labeling.votes import Tiers, count_votes

NO_POLICY = 0  # stands for texts that no policy wrote: imported, or written by a person
PAGE = 200  # comparisons looked at in one go
REASONS = {
    "tied": gettext_noop("only tied votes"),
    "policy": gettext_noop("a response of another policy"),
    "date": gettext_noop("judged on other days"),
    "annotator": gettext_noop("judged by other people"),
    "rating": gettext_noop("the chosen response not rated high enough"),
    "agreement": gettext_noop("too little agreement"),
}


class BadFilters(ValueError):
    """Stored filters that make no sense."""


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Which pairs; every part narrows further, and none means all.

    `agreement` is the least share, in per cent, of the votes on a pair that say the same; days
    are the site's, both ends counted; `ratings` are the least mean rating of the chosen response
    by criterion.
    """

    agreement: int = 0
    annotators: tuple[int, ...] = ()
    policies: tuple[int, ...] = ()
    since: date | None = None
    until: date | None = None
    ratings: Mapping[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """As it is stored: only the parts that say something."""
        return {
            part.name: _plain(value)
            for part in fields(self)
            if (value := getattr(self, part.name)) not in (0, (), None, {})
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """Back from as_json; BadFilters where something else is stored."""
        unknown = stored.keys() - {part.name for part in fields(cls)}
        if unknown:
            raise BadFilters(f"unknown filters {', '.join(sorted(unknown))}")
        try:
            return cls(
                agreement=int(stored.get("agreement", 0)),
                annotators=tuple(map(int, stored.get("annotators", ()))),
                policies=tuple(map(int, stored.get("policies", ()))),
                since=_day(stored.get("since")),
                until=_day(stored.get("until")),
                ratings={str(key): int(least) for key, least in stored.get("ratings", {}).items()},
            )
        except (AttributeError, TypeError, ValueError) as error:
            raise BadFilters(f"filters that make no sense: {error}") from None

    @property
    def by_verdict(self) -> bool:
        """Whether single verdicts decide, and not the pair's votes as they are."""
        return bool(self.annotators or self.since or self.until or self.ratings)


def _plain(value: Any) -> Any:
    if isinstance(value, date):
        return value.isoformat()
    return list(value) if isinstance(value, tuple) else value


def _day(text: Any) -> date | None:
    return None if text is None else date.fromisoformat(text)


@dataclass(frozen=True, kw_only=True)
class _Verdict:
    """What the filters ask of a judgment."""

    annotator: int
    at: datetime
    tiers: Tiers
    ratings: Mapping[str, Mapping[str, int]]


class Sieve:
    """Lets the pairs of ranked groups through that the filters keep, and counts the others.

    `left_out` has the numbers of pairs by the keys of REASONS.
    """

    def __init__(self, filters: Filters) -> None:
        self.left_out: Counter[str] = Counter()
        self._filters = filters
        self._since = _midnight(filters.since) if filters.since else None
        self._before = _midnight(filters.until + timedelta(days=1)) if filters.until else None

    def rows(self, groups: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The groups of labeling.services.exporting.ranked_groups that keep a pair."""
        if not self._filters.as_json():
            yield from groups
            return
        ahead = iter(groups)
        while page := list(islice(ahead, PAGE)):
            train = [row for row in page if row["split"] == Split.TRAIN]
            verdicts = self._verdicts(train)
            authors = self._authors(train)
            for row in page:
                if row["split"] == Split.TRAIN:
                    row = row | {"pairs": self._pairs(row, verdicts[_number(row)], authors)}
                if row["pairs"]:
                    yield row

    def _pairs(
        self, row: dict[str, Any], verdicts: list[_Verdict], authors: Mapping[int, int]
    ) -> list[dict[str, Any]]:
        kept = []
        for pair in row["pairs"]:
            reason, sifted = self._pair(row, pair, verdicts, authors)
            if reason:
                self.left_out[reason] += 1
            else:
                kept.append(sifted)
        return kept

    def _pair(
        self,
        row: dict[str, Any],
        pair: dict[str, Any],
        verdicts: list[_Verdict],
        authors: Mapping[int, int],
    ) -> tuple[str, dict[str, Any]]:
        """Why the pair is left out, "" where it is not; and its votes as they count."""
        wanted = self._filters
        sides = [_number(row["responses"][pair[side]]) for side in ("chosen", "rejected")]
        if wanted.policies and any(authors[side] not in wanted.policies for side in sides):
            return "policy", pair
        if wanted.by_verdict:
            in_time = [verdict for verdict in verdicts if self._in_time(verdict)]
            if not in_time:
                return "date", pair
            counted = [
                verdict
                for verdict in in_time
                if not wanted.annotators or verdict.annotator in wanted.annotators
            ]
            if not counted:
                return "annotator", pair
            pair = _recounted(pair, counted, len(row["responses"]))
            if not _rated(pair["chosen"], counted, wanted.ratings):
                return "rating", pair
        if agreement(pair) * 100 < wanted.agreement:
            return "agreement", pair
        return "", pair

    def _in_time(self, verdict: _Verdict) -> bool:
        early = self._since is not None and verdict.at < self._since
        late = self._before is not None and verdict.at >= self._before
        return not early and not late

    def _verdicts(self, rows: list[dict[str, Any]]) -> dict[int, list[_Verdict]]:
        found: dict[int, list[_Verdict]] = defaultdict(list)
        if not self._filters.by_verdict:
            return found
        wanted = [_number(row) for row in rows]
        judgments = Judgment.objects.counted().filter(comparison__in=wanted).order_by("pk")
        for comparison, annotator, at, tiers, ratings in judgments.values_list(
            "comparison_id", "annotator_id", "created_at", "tiers", "ratings"
        ):
            verdict = _Verdict(annotator=annotator, at=at, tiers=tiers, ratings=ratings)
            found[comparison].append(verdict)
        return found

    def _authors(self, rows: list[dict[str, Any]]) -> dict[int, int]:
        """The policy of each response, NO_POLICY where none wrote it."""
        if not self._filters.policies:
            return {}
        wanted = {_number(response) for row in rows for response in row["responses"]}
        pairs = Response.objects.filter(pk__in=wanted).values_list("pk", "policy_id")
        return {response: policy or NO_POLICY for response, policy in pairs}


def agreement(pair: Mapping[str, int]) -> float:
    """The share of a pair's votes that say the same: for it, against it, or level."""
    votes = [pair[name] for name in ("votes_for", "votes_against", "votes_tied")]
    return max(votes) / sum(votes)


def _number(row: Mapping[str, Any]) -> int:
    """The 3 of "comparison-3"."""
    return int(row["id"].rpartition("-")[2])


def _midnight(day: date) -> datetime:
    return timezone.make_aware(datetime.combine(day, time.min))


def _recounted(pair: dict[str, Any], verdicts: list[_Verdict], slots: int) -> dict[str, Any]:
    low, high = sorted((pair["chosen"], pair["rejected"]))
    votes = count_votes([verdict.tiers for verdict in verdicts], slots)[low, high]
    chosen, rejected = (low, high) if votes.low_leads else (high, low)
    return {
        "chosen": chosen,
        "rejected": rejected,
        "votes_for": max(votes.low, votes.high),
        "votes_against": min(votes.low, votes.high),
        "votes_tied": votes.tied,
    }


def _rated(slot: int, verdicts: list[_Verdict], least: Mapping[str, int]) -> bool:
    """Whether the response in the slot is rated high enough by every criterion asked for."""
    for criterion, number in least.items():
        given = [
            verdict.ratings[criterion][str(slot)]
            for verdict in verdicts
            if str(slot) in verdict.ratings.get(criterion, {})
        ]
        if not given or sum(given) < number * len(given):
            return False
    return True
