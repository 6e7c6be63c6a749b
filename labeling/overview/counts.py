"""What the loop's page counts, and the rows that say what runs."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Count, F, Q, QuerySet, Sum
from django.db.models.functions import Coalesce

from jobs import queue
from labeling.days import midnight
from labeling.figures import Kept, counted, figures
from labeling.models import (
    Comparison,
    Evaluation,
    Judgment,
    Policy,
    Preference,
    Project,
    Response,
    Split,
)
from labeling.models.comparisons import TRAINED_ON
from labeling.services.promoting import serving_policy

DAYS = 14  # of a trend
PROMPTS, RESPONSES, COMPARISONS = "loop.prompts", "loop.responses", "loop.comparisons"
JUDGMENTS, PREFERENCES = "loop.judgments", "loop.preferences"
FIGURES = (PROMPTS, RESPONSES, COMPARISONS, JUDGMENTS, PREFERENCES)


@dataclass(frozen=True, kw_only=True)
class Judging:
    """The newest evaluation, and how far people are with it while it lives."""

    evaluation: Evaluation
    done: int
    wanted: int

    @property
    def passed(self) -> bool:
        """Whether its policy waits for nothing but to be promoted."""
        return self.evaluation.passed_at is not None


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Everything counted, and the newest batch, round and evaluation, if any."""

    project: Project
    kept: dict[str, Kept]
    policies: int
    serving: Policy | None
    batch: Any
    round: Any
    learned: int  # the number of the last round that succeeded
    judging: Judging | None
    schedule: Any
    stopped: str  # why the plan of generation writes nothing more, if it does not
    worker_seen: datetime | None

    @property
    def prompts(self) -> int:
        """All prompts."""
        return int(self.kept[PROMPTS].value["number"])

    @property
    def responses(self) -> int:
        """All responses."""
        return int(self.kept[RESPONSES].value["number"])

    @property
    def unanswered(self) -> int:
        """Prompts that the serving policy has not answered."""
        counted = self.kept[RESPONSES].value
        same = self.serving is not None and counted["policy"] == self.serving.pk
        return max(0, self.prompts - (int(counted["answered"]) if same else 0))

    @property
    def open(self) -> int:
        """Comparisons that want judgments."""
        return int(self.kept[COMPARISONS].value["open"])

    @property
    def wanted(self) -> int:
        """Judgments that these want."""
        return int(self.kept[COMPARISONS].value["wanted"])

    @property
    def judgments(self) -> int:
        """Those that count."""
        return int(self.kept[JUDGMENTS].value["number"])

    @property
    def pairs(self) -> int:
        """All preferences."""
        return int(self.kept[PREFERENCES].value["number"])

    @property
    def decided(self) -> int:
        """Pairs with more votes for than against."""
        return int(self.kept[PREFERENCES].value["decided"])

    @property
    def fresh(self) -> int:
        """Decided pairs that no successful round has trained on, and one may.

        None are left when a round has just succeeded, until they are counted again.
        """
        counted = self.kept[PREFERENCES].value
        return int(counted["fresh"]) if counted["learned"] == self.learned else 0

    def days(self, name: str) -> list[int]:
        """How many there were on each of the last days, today last."""
        found: list[int] = self.kept[name].value["days"]
        return found

    @property
    def live(self) -> bool:
        """Whether a batch or a round waits or runs."""
        return is_live(self.batch) or is_live(self.round)


def is_live(work: Any) -> bool:
    """Whether a batch or round, if there is one, waits or runs."""
    return work is not None and work.live


def count(project: Project) -> Counts:
    """Count the record: one query a table, or one for all that is kept."""
    rounds = project.rounds.order_by("-number")
    plan = getattr(project, "plan", None)
    return Counts(
        project=project,
        kept=figures(project, FIGURES),
        policies=project.policies.count(),
        serving=serving_policy(project),
        batch=project.batches.defer("barren").order_by("-number").first(),
        round=rounds.select_related("policy").first(),
        learned=_learned(project)[0],
        judging=_judging(project),
        schedule=getattr(project, "schedule", None),
        stopped=plan.stopped if plan and plan.ready else "",
        worker_seen=queue.worker_seen(),
    )


def _learned(project: Project) -> tuple[int, datetime | None]:
    """The last round that succeeded, and when its snapshot was begun; others use nothing up."""
    found = project.rounds.filter(state="succeeded").order_by("-number")
    begun = Coalesce("snapshot__created_at", "created_at")
    return found.values_list("number", begun).first() or (0, None)


def _judging(project: Project) -> Judging | None:
    newest = project.evaluations.select_related("policy").order_by("-pk").first()
    if newest is None:
        return None
    states = {}
    if newest.live:
        by_state = newest.comparisons.order_by().values_list("state").annotate(Count("pk"))
        states = dict(by_state)
    return Judging(
        evaluation=newest,
        done=states.get(Comparison.State.JUDGED, 0),
        wanted=states.get(Comparison.State.OPEN, 0),
    )


def _by_day(rows: QuerySet[Any], moment: str, **more: Any) -> dict[str, Any]:
    """How many rows there are, how many of each of the last days, and `more`, in one pass."""
    today = midnight()
    begins = [today - timedelta(days=back) for back in range(DAYS - 1, -1, -1)]
    since = {
        f"since_{place}": Count("pk", filter=Q(**{f"{moment}__gte": begin}))
        for place, begin in enumerate(begins)
    }
    found = rows.order_by().aggregate(number=Count("pk"), **since, **more)
    sums = [found.pop(name) for name in since]
    days = [one - later for one, later in zip(sums, [*sums[1:], 0], strict=True)]
    return found | {"days": days}


@counted(PROMPTS)
def _prompts(project: Project) -> dict[str, Any]:
    return _by_day(project.prompts.all(), "created_at")


@counted(RESPONSES)
def _responses(project: Project) -> dict[str, Any]:
    serving = serving_policy(project)
    answered = 0
    if serving is not None:
        own = Response.objects.filter(policy=serving)
        answered = own.aggregate(number=Count("prompt", distinct=True))["number"]
    found = _by_day(Response.objects.filter(prompt__project=project), "created_at")
    return found | {"policy": serving.pk if serving else None, "answered": answered}


@counted(COMPARISONS)
def _comparisons(project: Project) -> dict[str, Any]:
    still_open = project.comparisons.filter(state=Comparison.State.OPEN).exclude(
        evaluation__state=Evaluation.State.ENDED
    )
    found = still_open.aggregate(open=Count("pk"), wanted=Sum(F("overlap") - F("judged")))
    return {"open": found["open"], "wanted": found["wanted"] or 0}


@counted(JUDGMENTS)
def _judgments(project: Project) -> dict[str, Any]:
    counted_ones = Judgment.objects.counted().filter(comparison__project=project)
    return _by_day(counted_ones, "created_at")


@counted(PREFERENCES)
def _preferences(project: Project) -> dict[str, Any]:
    """Pairs; those decided; those that are decided, trained on and newer than the last round."""
    learned, since = _learned(project)
    decided = Q(votes_for__gt=F("votes_against"))
    trained_on = Q(comparison__prompt__split=Split.TRAIN, comparison__purpose__in=TRAINED_ON)
    trained_on &= ~Q(comparison__state=Comparison.State.RETIRED)
    newer = Q(updated_at__gt=since) if since else Q()
    found = _by_day(
        Preference.objects.filter(project=project),
        "updated_at",
        decided=Count("pk", filter=decided),
        fresh=Count("pk", filter=decided & trained_on & newer),
    )
    return found | {"learned": learned}
