"""The loop of a project as data: what is there, what runs, where it is stuck, what to do next.

Counts come from one query per table. Batches and rounds belong to apps above this one; their rows
are read through the project's reverse relations.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from django.db.models import Count, F, Q, Sum
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext, pgettext

from jobs import queue
from labeling.days import midnight
from labeling.models import (
    Comparison,
    Judgment,
    Policy,
    PolicyState,
    Preference,
    Project,
    Response,
    Split,
)
from labeling.models.comparisons import TRAINED_ON
from labeling.services.promoting import serving_policy

ROUND_PAIRS = 10  # new decided pairs before a round may start; training.readiness reads it
GOOD_ROUND_PAIRS = 100  # with so many, a round is worth more than further judging first
WORKER_SILENT = timedelta(seconds=60)  # a worker that lives says so every few seconds

State = Literal["calm", "live", "next", "stuck"]


@dataclass(frozen=True, kw_only=True)
class Activity:
    """Something that runs or waits now; `total` is 0 while its size is unknown."""

    label: str
    done: int
    total: int
    unit: str


@dataclass(frozen=True, kw_only=True)
class Station:
    """One of the six places of the loop. `note` explains the count in a few words."""

    key: str
    title: str
    count: int
    note: str
    url: str
    state: State = "calm"
    activity: Activity | None = None


@dataclass(frozen=True, kw_only=True)
class NextStep:
    """The one thing to do. Without `url` it is done elsewhere, as `command` says."""

    station: str
    text: str
    why: str
    url: str = ""
    command: str = ""
    waiting: bool = False


@dataclass(frozen=True, kw_only=True)
class Overview:
    """A project's loop at one moment."""

    stations: list[Station]
    stuck: list[str]
    step: NextStep
    serving: Policy | None
    live: bool


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Everything counted, and the newest batch and round (of the apps above), if any."""

    prompts: int
    unanswered: int
    responses: int
    written: int
    open: int
    wanted: int
    judgments: int
    today: int
    pairs: int
    decided: int
    fresh: int
    policies: int
    serving: Policy | None
    batch: Any
    round: Any
    worker_seen: datetime | None


def overview(project: Project) -> Overview:
    """The project's loop as it is now."""
    counts = count(project)
    step = next_step(project, counts)
    stuck = _stuck(counts)
    return Overview(
        stations=_stations(project, counts, step, stuck),
        stuck=list(stuck.values()),
        step=step,
        serving=counts.serving,
        live=_live(counts.batch) or _live(counts.round),
    )


def count(project: Project) -> Counts:
    """Count the record, one query a table."""
    serving = serving_policy(project)
    rounds = project.rounds.order_by("-number")
    last_round = rounds.select_related("policy").first()
    learned = rounds.filter(state="succeeded").first()  # a failed one has used nothing up
    responses = Response.objects.filter(prompt__project=project)
    written = Q(policy=serving) if serving else Q(pk__in=[])
    answers = responses.aggregate(
        total=Count("pk"),
        written=Count("pk", filter=written),
        answered=Count("prompt", filter=written, distinct=True),
    )
    prompts = project.prompts.count()
    return Counts(
        prompts=prompts,
        unanswered=prompts - answers["answered"],
        responses=answers["total"],
        written=answers["written"],
        **_comparisons(project),
        **_judgments(project),
        **_preferences(project, learned),
        policies=project.policies.count(),
        serving=serving,
        batch=project.batches.order_by("-number").first(),
        round=last_round,
        worker_seen=queue.worker_seen(),
    )


def _comparisons(project: Project) -> dict[str, int]:
    still_open = project.comparisons.filter(state=Comparison.State.OPEN)
    found = still_open.aggregate(open=Count("pk"), wanted=Sum(F("overlap") - F("judged")))
    return {"open": found["open"], "wanted": found["wanted"] or 0}


def _judgments(project: Project) -> dict[str, int]:
    found: dict[str, int] = (
        Judgment.objects.counted()
        .filter(comparison__project=project)
        .aggregate(judgments=Count("pk"), today=Count("pk", filter=Q(created_at__gte=midnight())))
    )
    return found


def _preferences(project: Project, learned: Any) -> dict[str, int]:
    """Pairs; those decided; those that are decided, trained on and newer than the last round."""
    decided = Q(votes_for__gt=F("votes_against"))
    trained_on = Q(comparison__prompt__split=Split.TRAIN) & Q(comparison__purpose__in=TRAINED_ON)
    newer = Q(updated_at__gt=learned.created_at) if learned else Q()
    found: dict[str, int] = Preference.objects.filter(project=project).aggregate(
        pairs=Count("pk"),
        decided=Count("pk", filter=decided),
        fresh=Count("pk", filter=decided & trained_on & newer),
    )
    return found


def next_step(project: Project, counts: Counts) -> NextStep:
    """The one thing to do now. Rules in order; the first that applies."""
    if counts.prompts == 0:
        return NextStep(
            station="prompts",
            text=_("Import prompts"),
            why=_("The loop begins with prompts, and there are none yet."),
            command=f"python3 manage.py import_prompts FILE --project {project.slug}",
        )
    if counts.serving is None:
        return NextStep(
            station="policies",
            text=_("Register a policy"),
            why=_("No policy serves yet, so nobody can answer the prompts."),
            url=_url("labeling:policies", project),
        )
    return (
        _watch_round(project, counts)
        or _promote(project, counts)
        or _start_round(project, counts)
        or _judge(project, counts)
        or _generate(project, counts)
        or _more_prompts(project, counts)
    )


def _watch_round(project: Project, counts: Counts) -> NextStep | None:
    if not _live(counts.round):
        return None
    return NextStep(
        station="rounds",
        text=_("Watch round %(number)s") % {"number": counts.round.number},
        why=_("A round is training. Nothing else needs you until it ends."),
        url=_url("training:round", project, number=counts.round.number),
        waiting=True,
    )


def _promote(project: Project, counts: Counts) -> NextStep | None:
    made = counts.round.policy if counts.round else None
    if made is None or made.state != PolicyState.CANDIDATE:
        return None
    return NextStep(
        station="policies",
        text=_("Review and promote round %(number)s") % {"number": counts.round.number},
        why=_("%(policy)s has been trained and waits to be put into service.")
        % {"policy": made.name},
        url=_url("training:round", project, number=counts.round.number),
    )


def _start_round(project: Project, counts: Counts) -> NextStep | None:
    wanted = GOOD_ROUND_PAIRS if counts.open else ROUND_PAIRS
    if counts.fresh < wanted:
        return None
    why = (
        ngettext(
            "%(number)s new decided pair is there since the last round.",
            "%(number)s new decided pairs are there since the last round.",
            counts.fresh,
        )
        if counts.round
        else ngettext(
            "%(number)s new decided pair is there to train on.",
            "%(number)s new decided pairs are there to train on.",
            counts.fresh,
        )
    )
    return NextStep(
        station="rounds",
        text=_("Start a round"),
        why=why % {"number": _number(counts.fresh)},
        url=_url("training:new_round", project),
    )


def _judge(project: Project, counts: Counts) -> NextStep | None:
    if not counts.open:
        return None
    missing = ROUND_PAIRS - counts.fresh
    wanted = ngettext("%(number)s judgment wanted.", "%(number)s judgments wanted.", counts.wanted)
    then = (
        ngettext(
            "After %(number)s more decided pair a round can start.",
            "After %(number)s more decided pairs a round can start.",
            missing,
        )
        if missing > 0
        else ngettext(
            "A round could start with %(number)s new pair; more make it better.",
            "A round could start with %(number)s new pairs; more make it better.",
            counts.fresh,
        )
    )
    pairs = {"number": _number(missing if missing > 0 else counts.fresh)}
    return NextStep(
        station="judgments",
        text=_("Judge"),
        why=f"{wanted % {'number': _number(counts.wanted)}} {then % pairs}",
        url=_url("labeling:judge", project),
    )


def _generate(project: Project, counts: Counts) -> NextStep | None:
    if _live(counts.batch):
        return NextStep(
            station="candidates",
            text=_("Watch batch %(number)s") % {"number": counts.batch.number},
            why=_("Candidates are being written. People can judge as soon as it ends."),
            url=_url("generation:batch", project, number=counts.batch.number),
            waiting=True,
        )
    if not counts.unanswered:
        return None
    return NextStep(
        station="candidates",
        text=_("Generate candidates"),
        why=ngettext(
            "%(policy)s has not answered %(number)s prompt yet.",
            "%(policy)s has not answered %(number)s prompts yet.",
            counts.unanswered,
        )
        % {"policy": counts.serving, "number": _number(counts.unanswered)},
        url=_url("generation:batches", project),
    )


def _more_prompts(project: Project, counts: Counts) -> NextStep:
    missing = ROUND_PAIRS - counts.fresh
    return NextStep(
        station="prompts",
        text=_("Import more prompts"),
        why=ngettext(
            "Every prompt is answered and every comparison judged, but %(number)s more decided "
            "pair is needed for a round.",
            "Every prompt is answered and every comparison judged, but %(number)s more decided "
            "pairs are needed for a round.",
            missing,
        )
        % {"number": _number(missing)},
        command=f"python3 manage.py import_prompts FILE --project {project.slug}",
    )


def _stuck(counts: Counts) -> dict[str, str]:
    """Stations that cannot go on by themselves, with the reason in words."""
    stuck = {}
    silent = worker_silence(counts.worker_seen)
    if silent and _live(counts.batch):
        stuck["candidates"] = silent
    if silent and _live(counts.round):
        stuck["rounds"] = silent
    if counts.batch and counts.batch.state == "failed":
        stuck["candidates"] = _("Batch %(number)s failed: %(reason)s") % _failure(counts.batch)
    if counts.round and counts.round.state == "failed":
        stuck["rounds"] = _("Round %(number)s failed: %(reason)s") % _failure(counts.round)
    return stuck


def worker_silence(seen: datetime | None) -> str:
    """What to say where no worker is alive; empty where one is."""
    if seen is None:
        return _("No worker has ever run. Start one: python3 manage.py worker")
    silent = timezone.now() - seen
    if silent < WORKER_SILENT:
        return ""
    minutes = max(1, round(silent.total_seconds() / 60))
    words = ngettext(
        "The worker has not been seen for %(number)s minute. "
        "Start it again: python3 manage.py worker",
        "The worker has not been seen for %(number)s minutes. "
        "Start it again: python3 manage.py worker",
        minutes,
    )
    return words % {"number": _number(minutes)}


def _stations(
    project: Project, counts: Counts, step: NextStep, stuck: dict[str, str]
) -> list[Station]:
    running = _activities(counts)

    def station(key: str, title: str, count: int, note: str, route: str) -> Station:
        return Station(
            key=key,
            title=title,
            count=count,
            note=note,
            url=_url(route, project),
            state=_state(key, step, stuck, running),
            activity=running.get(key),
        )

    rounds = counts.round.number if counts.round else 0
    note = _notes(counts)
    return [
        station("prompts", _("Prompts"), counts.prompts, note["prompts"], "generation:batches"),
        station(
            "candidates",
            _("Candidates"),
            counts.responses,
            note["candidates"],
            "generation:batches",
        ),
        station("judgments", _("Judgments"), counts.judgments, note["judgments"], "labeling:judge"),
        station(
            "preferences",
            _("Preferences"),
            counts.pairs,
            note["preferences"],
            "labeling:preferences",
        ),
        station("rounds", _("Rounds"), rounds, note["rounds"], "training:rounds"),
        station("policies", _("Policies"), counts.policies, note["policies"], "labeling:policies"),
    ]


def _notes(counts: Counts) -> dict[str, str]:
    """What explains the count of each station."""
    open_ = ngettext("%(number)s comparison open", "%(number)s comparisons open", counts.open)
    return {
        "prompts": _prompts_note(counts),
        "candidates": open_ % {"number": _number(counts.open)},
        "judgments": _("%(today)s today, %(wanted)s wanted")
        % {"today": _number(counts.today), "wanted": _number(counts.wanted)},
        "preferences": _("%(decided)s decided, %(fresh)s new")
        % {"decided": _number(counts.decided), "fresh": _number(counts.fresh)},
        "rounds": _("last one %(state)s") % {"state": counts.round.get_state_display().lower()}
        if counts.round
        else pgettext("rounds", "none yet"),
        "policies": _("%(policy)s serves") % {"policy": counts.serving}
        if counts.serving
        else _("none serves"),
    }


def _state(key: str, step: NextStep, stuck: dict[str, str], running: dict[str, Activity]) -> State:
    if key in stuck:
        return "stuck"
    if key in running:
        return "live"
    return "next" if key == step.station else "calm"


def _prompts_note(counts: Counts) -> str:
    if not counts.prompts:
        return pgettext("prompts", "none yet")
    if not counts.unanswered:
        return _("all answered")
    words = ngettext("%(number)s unanswered", "%(number)s unanswered", counts.unanswered)
    return words % {"number": _number(counts.unanswered)}


def _activities(counts: Counts) -> dict[str, Activity]:
    """What is under way, by station. A size is known once the worker has begun."""
    found = {}
    batch, round_ = counts.batch, counts.round
    if _live(batch):
        total = batch.total if batch.started_at else 0
        found["candidates"] = Activity(
            label=_("Batch %(number)s") % {"number": batch.number},
            done=batch.done,
            total=total,
            unit=pgettext("unit of progress", "prompts"),
        )
    if _live(round_):
        found["rounds"] = Activity(
            label=_("Round %(number)s") % {"number": round_.number},
            done=round_.step,
            total=round_.total_steps,
            unit=pgettext("unit of progress", "steps"),
        )
    return found


def _live(work: Any) -> bool:
    return work is not None and work.live


def _failure(work: Any) -> dict[str, object]:
    """Which batch or round failed, and the first line of why."""
    line: str = (work.error.strip().splitlines() or [_("no reason was given.")])[0]
    return {
        "number": work.number,
        "reason": line if len(line) <= 200 else line[:199] + "\u2026",
    }


def _url(route: str, project: Project, **more: object) -> str:
    return reverse(route, kwargs={"slug": project.slug, **more})


def _number(value: int) -> str:
    return f"{value:,}".replace(",", "\u2009")
