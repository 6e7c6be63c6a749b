"""Deleting checkpoints that nobody will go on from.

Those of rounds that succeeded go: their policy is whole. Where the installation takes more than
its limit, those of rounds that failed or were cancelled go too, the oldest first, and of every
project's the newest stays, for it may still go on. A live round's are never touched.
"""

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings
from django.db import transaction

from jobs import queue
from jobs.models import Job
from jobs.run_dir import append_event
from labeling.models import Project
from training.disk import limit_bytes, tree_bytes
from training.models import ENDED_EARLY, Round, RoundState

KIND = "training.clean"
GONE = ".checkpoints-gone"  # checkpoints in the middle of being deleted


@dataclass(frozen=True, kw_only=True)
class Freed:
    """What a clean-up came to."""

    rounds: int = 0
    bytes: int = 0

    def __add__(self, other: "Freed") -> "Freed":
        return Freed(rounds=self.rounds + other.rounds, bytes=self.bytes + other.bytes)


def ask_to_clean(*, project: Project, stopped: bool = False) -> Job:
    """Have the worker clean up, in the caller's transaction; one clean-up of a kind at a time.

    `stopped`: also what is left of rounds that failed or were cancelled, whatever the limit.
    """
    try:
        return queue.enqueue(
            kind=KIND,
            payload={"project": project.pk, "stopped": stopped},
            lane="light",
            once_key=f"{KIND}:{project.pk}:{int(stopped)}",
        )
    except queue.AlreadyQueued as already:
        return already.job


def last_cleaning(project: Project) -> Job | None:
    """The newest clean-up of the project."""
    return Job.objects.filter(kind=KIND, payload__project=project.pk).order_by("-pk").first()


def clean(*, project: Project, stopped: bool, check: Callable[[], None] = lambda: None) -> Freed:
    """Delete what the project's rounds need no more, then what the limit asks for.

    `check` is called between rounds, and may raise.
    """
    freed = Freed()
    succeeded = project.rounds.filter(state=RoundState.SUCCEEDED)
    found = list(succeeded.select_related("policy")) + (
        _left_behind([project.pk]) if stopped else []
    )
    for round_ in found:
        check()
        freed += _free(round_)
    limit = limit_bytes()
    if not limit:
        return freed
    excess = tree_bytes(settings.RUNS_DIR) + tree_bytes(settings.MODELS_DIR) - limit
    for round_ in _left_behind(Project.objects.values_list("pk", flat=True)):
        if excess <= 0:
            break
        check()
        gone = _free(round_)
        freed, excess = freed + gone, excess - gone.bytes
    return freed


def _left_behind(projects: Iterable[int]) -> list[Round]:
    """Rounds that ended too early, the oldest first, without the newest of each project."""
    found: list[Round] = []
    for project in projects:
        ended = Round.objects.filter(project=project, state__in=ENDED_EARLY).order_by("-number")
        ended = ended.defer("options", "results", "error")
        found += list(ended[1:])
    return sorted(found, key=lambda one: (one.finished_at or one.created_at, one.pk))


def _free(round_: Round) -> Freed:
    """Delete a round's checkpoints, if it is still in the state that we found it in."""
    folder = _checkpoints(round_)
    if folder is None:
        return Freed()
    gone = folder.with_name(GONE)
    with transaction.atomic():
        locked = Round.objects.select_for_update(of=("self",)).get(pk=round_.pk)
        if locked.state != round_.state:
            return Freed()
        size = tree_bytes(folder) + tree_bytes(gone)
        shutil.rmtree(gone, ignore_errors=True)  # of a clean-up that was killed
        if folder.exists():
            folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
    if size:
        append_event(folder.parent, "cleaned", bytes=size)
    return Freed(rounds=1 if size else 0, bytes=size)


def _checkpoints(round_: Round) -> Path | None:
    """The folder of a round's checkpoints, where there is something in it to delete.

    None for a run directory that is not the site's own, and for a round that has lost its policy
    without anybody having deleted it: its checkpoints may be all that is left.
    """
    run_dir = Path(round_.run_dir or "/nowhere")
    if Path(settings.RUNS_DIR).resolve() not in run_dir.resolve().parents:
        return None
    folder = run_dir / "checkpoints"
    if folder.is_symlink() or not (folder.exists() or (run_dir / GONE).exists()):
        return None
    if round_.state == RoundState.SUCCEEDED and not _whole(round_, run_dir / "policy"):
        return None
    return folder


def _whole(round_: Round, policy: Path) -> bool:
    deleted = round_.policy is not None and round_.policy.deleted_at is not None
    return deleted or any(policy.glob("*.safetensors"))
