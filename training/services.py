"""Rounds: start, follow, end. The only writer of Round rows."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import count
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Max
from django.utils import timezone, translation
from django.utils.translation import gettext as _

from jobs import queue
from jobs.run_dir import read_json
from labeling.lineage import initial_policy
from labeling.models import Policy, Project, User
from labeling.services.deleting import FilesDeleted, ensure_files
from labeling.services.evaluating import CannotEvaluate, start_evaluation
from labeling.services.promoting import inspect_policy, register_policy, serving_policy
from training.cleaning import ask_to_clean
from training.filters import Filters
from training.material import count_pairs
from training.models import (
    ENDED_EARLY,
    LIVE_ROUND_STATES,
    AfterSuccess,
    Reference,
    Round,
    RoundState,
    Snapshot,
)
from training.presets import default_options
from training.readiness import Problem, readiness
from training.snapshots import freeze
from training.telling import tell_failed, tell_finished

logger = logging.getLogger("training")

KIND = "training.round"


class NotReady(Exception):
    """A round cannot start now; `problems` say why."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(" ".join(problem.text for problem in problems))
        self.problems = problems


def start_round(
    *,
    project: Project,
    actor: User | None,
    options: dict[str, Any] | None = None,
    reference: Reference = Reference.INITIAL,
    filters: Filters | None = None,
    after: AfterSuccess = AfterSuccess.NOTHING,
    origin: Round.Origin = Round.Origin.MANUAL,
    like: Round | None = None,
) -> Round:
    """Queue a round that starts from the serving policy. NotReady says what is in the way.

    `filters` choose the pairs, None all; `like` is the round whose options it began with.
    """
    pairs = count_pairs(project, filters)
    blocking = [p for p in readiness(project, pairs) if p.blocks]
    start = serving_policy(project)
    if blocking or start is None:
        raise NotReady(blocking)
    held_to = initial_policy(start) if reference == Reference.INITIAL else start
    try:
        with transaction.atomic():
            round_ = Round.objects.create(
                project=project,
                number=_next_number(project),
                start=start,
                reference=held_to,
                options=default_options(start, pairs.train) | (options or {}),
                filters=filters.as_json() if filters else {},
                after=after,
                origin=origin,
                like=like,
                started_by=actor,
            )
            _ensure_files(start, held_to)
            round_.run_dir = str(settings.RUNS_DIR / f"round-{round_.pk:06d}")
            round_.job_id = _enqueue(round_)
            round_.save(update_fields=["run_dir", "job_id"])
    except IntegrityError:
        raise _another() from None
    return round_


def _enqueue(round_: Round) -> int:
    return queue.enqueue(kind=KIND, payload={"round": round_.pk}, lane="gpu").pk


def _ensure_files(*policies: Policy) -> None:
    """NotReady where one was deleted; the project is locked, so none is from now on."""
    for policy in policies:
        policy.refresh_from_db(fields=["deleted_at"])
        try:
            ensure_files(policy)
        except FilesDeleted as error:
            raise NotReady([Problem(text=str(error), blocks=True)]) from None


def _another() -> NotReady:
    text = _("Another round was started just now.")
    return NotReady([Problem(text=text, blocks=True, live=True)])


def cancel_round(*, round_: Round) -> None:
    """Ask for the round to stop; its last checkpoint stays."""
    if round_.job_id is not None:
        queue.request_cancel(round_.job_id)


def resumable(round_: Round) -> bool:
    """Whether a round that ended too early had begun, so that it can go on where it stopped."""
    return round_.state in ENDED_EARLY and round_.snapshot_id is not None


def resume_round(*, round_: Round, actor: User | None) -> Round:
    """Have a round that failed or was cancelled go on, from its last checkpoint where it has one.

    It trains on the preferences that were frozen for it. NotReady says what is in the way.
    """
    try:
        with transaction.atomic():
            Project.objects.select_for_update(no_key=True).get(pk=round_.project_id)
            round_.refresh_from_db()
            if round_.live:
                raise _another()
            if not resumable(round_):
                raise NotReady([Problem(text=_not_resumable(round_), blocks=True)])
            _ensure_files(round_.start, round_.reference)
            round_.state, round_.error, round_.resumed_by = RoundState.QUEUED, "", actor
            round_.started_at = round_.finished_at = None
            names = ["state", "error", "resumed_by", "started_at", "finished_at"]
            round_.save(update_fields=names)
            round_.job_id = _enqueue(round_)
            round_.save(update_fields=["job_id"])
    except IntegrityError:
        raise _another() from None
    return round_


def _not_resumable(round_: Round) -> str:
    words = (
        _("Round %(number)s has succeeded: nothing of it is left to do.")
        if round_.state == RoundState.SUCCEEDED
        else _("Round %(number)s had not begun; start another one like it.")
    )
    return words % {"number": round_.number}


def begin(round_: Round) -> Snapshot:
    """Mark the round as running and freeze its snapshot, unless an earlier attempt did."""
    Round.objects.filter(pk=round_.pk, state=RoundState.QUEUED).update(
        state=RoundState.RUNNING, started_at=timezone.now()
    )
    if round_.snapshot is None:
        folder = settings.RUNS_DIR / "snapshots"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / f"round-{round_.pk:06d}.jsonl"
        round_.snapshot = freeze(
            project=round_.project, path=path, filters=Filters.from_json(round_.filters)
        )
        round_.save(update_fields=["snapshot"])
    return round_.snapshot


def note_progress(*, round_: Round, step: int, total: int) -> None:
    """The trainer's last logged step."""
    Round.objects.filter(pk=round_.pk, state=RoundState.RUNNING).update(
        step=step, total_steps=total
    )


def end_round(*, round_: Round, state: RoundState, error: str = "") -> None:
    """Bring a live round to an end that is not success."""
    with transaction.atomic():
        live = Round.objects.filter(pk=round_.pk, state__in=LIVE_ROUND_STATES)
        ended = live.update(state=state, error=error, finished_at=timezone.now())
        if ended and state == RoundState.FAILED:
            tell_failed(round_, error)
        if ended:
            ask_to_clean(project=round_.project)


def take_in(*, round_: Round, fenced: Callable[[], AbstractContextManager[None]]) -> None:
    """Register the policy a round made, and its figures, in one `fenced` transaction; once only."""
    run_dir = Path(round_.run_dir)
    manifest = read_json(run_dir / "manifest.json")
    adapter = (run_dir / "policy" / "adapter_config.json").exists()
    model_path = Path(round_.start.model_path) if adapter else run_dir / "policy"
    adapter_path = run_dir / "policy" if adapter else None
    digest = inspect_policy(model_path, adapter_path)
    with fenced():
        round_ = Round.objects.select_for_update().get(pk=round_.pk)
        if not round_.live:
            return
        round_.policy = register_policy(
            project=round_.project,
            name=_free_name(round_),
            model_path=model_path,
            adapter_path=adapter_path,
            digest=digest,
            parent=round_.start,
            actor=round_.started_by,
        )
        round_.results = manifest["results"]
        round_.state = RoundState.SUCCEEDED
        round_.finished_at = timezone.now()
        round_.save(update_fields=["policy", "results", "state", "finished_at"])
        tell_finished(round_)
        ask_to_clean(project=round_.project)
    follow_up(round_=round_)


def follow_up(*, round_: Round) -> None:
    """Put the policy that a round made before people, where that was asked for; once only.

    Where it cannot be, `results["not_evaluated"]` says why, and the round has succeeded all the
    same.
    """
    made = round_.policy
    done = "not_evaluated" in round_.results or made is None or made.evaluations.exists()
    if done or round_.after == AfterSuccess.NOTHING or made is None:
        return
    try:
        with translation.override(settings.LANGUAGE_CODE):  # what is kept is for all to read
            start_evaluation(
                policy=made,
                actor=round_.started_by,
                promote_if_better=round_.after == AfterSuccess.PROMOTE,
            )
    except CannotEvaluate as reason:
        logger.warning("%s of %s is not evaluated: %s", round_, round_.project, reason)
        round_.results["not_evaluated"] = str(reason)
        round_.save(update_fields=["results"])


def _free_name(round_: Round) -> str:
    """ "Round 3", or "Round 3 (2)" where a manager gave that name to a model of their own."""
    taken = set(round_.project.policies.values_list("name", flat=True))
    names = (f"Round {round_.number}" + (f" ({n})" if n > 1 else "") for n in count(1))
    return next(name for name in names if name not in taken)


def _next_number(project: Project) -> int:
    Project.objects.select_for_update(no_key=True).get(pk=project.pk)
    return (project.rounds.aggregate(last=Max("number"))["last"] or 0) + 1
