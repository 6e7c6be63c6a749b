"""Merging a policy's adapter into the model that it is on: a new policy, of the same behaviour.

The trainer's program does it, on the CPU, in a run directory of its own; here it is asked for,
followed, and its policy taken in.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import count
from pathlib import Path

from django.conf import settings
from django.db import transaction
from django.utils.translation import gettext as _

from jobs import queue
from jobs.models import Job
from labeling.models import Policy, PolicyEvent, Project, User
from labeling.services.deleting import FilesDeleted, ensure_files, note_sizes
from labeling.services.policy_events import note_event
from labeling.services.promoting import inspect_policy, register_policy

KIND = "training.merge"
MOST_NAME = 120  # as Policy.name holds


class CannotMerge(Exception):
    """Why nothing is merged; the message is for the user."""


def start_merge(*, policy: Policy, actor: User | None) -> Job:
    """Have the worker merge the policy's adapter.

    CannotMerge where it has none or no files, or where it is merged or being merged already.
    """
    if not policy.adapter_path:
        words = _("%(policy)s is a whole model: there is no adapter to merge.")
        raise CannotMerge(words % {"policy": policy.name})
    try:
        with transaction.atomic():
            Project.objects.select_for_update(no_key=True).get(pk=policy.project_id)
            policy.refresh_from_db()
            ensure_files(policy)
            if (already := merged_of(policy)) is not None:
                words = _("%(merged)s is %(policy)s with its adapter merged.")
                raise CannotMerge(words % {"merged": already.name, "policy": policy.name})
            return queue.enqueue(
                kind=KIND,
                payload={"policy": policy.pk, "actor": actor.pk if actor else None},
                lane="gpu",  # light jobs are quick, and this one takes as much memory as a round
                once_key=f"{KIND}:{policy.pk}",
            )
    except FilesDeleted as error:
        raise CannotMerge(str(error)) from None
    except queue.AlreadyQueued:
        raise CannotMerge(_("Its adapter is being merged already.")) from None


def cancel_merge(*, policy: Policy) -> None:
    """Ask for the merging to stop; nothing of it is kept."""
    job = last_merge(policy)
    if job is not None and job.live:
        queue.request_cancel(job.pk)


def last_merge(policy: Policy) -> Job | None:
    """The newest job that merges this policy's adapter."""
    return Job.objects.filter(kind=KIND, payload__policy=policy.pk).order_by("-pk").first()


def merged_of(policy: Policy) -> Policy | None:
    """The policy that this one became by merging, while it has its files."""
    made = policy.children.filter(events__kind=PolicyEvent.Kind.MERGED, deleted_at=None)
    return made.order_by("-pk").first()


def run_dir_of(job_id: int) -> Path:
    """Where the program works."""
    folder: Path = settings.RUNS_DIR / f"merge-{job_id:06d}"
    return folder


def command(policy: Policy, run_dir: Path) -> list[str]:
    """The program that merges."""
    program = [settings.TRAINER_PYTHON, "-m", "training.trainer", "merge", str(run_dir)]
    return [*program, "--policy", policy.model_path, "--adapter", policy.adapter_path]


def take_in(
    *,
    policy: Policy,
    run_dir: Path,
    actor: User | None,
    fenced: Callable[[], AbstractContextManager[None]],
) -> None:
    """Register what the program wrote, in one `fenced` transaction; once only."""
    folder = run_dir / "policy"
    digest = inspect_policy(folder, None)
    with fenced():
        project = Project.objects.select_for_update(no_key=True).get(pk=policy.project_id)
        if project.policies.filter(model_path=str(folder)).exists():
            return
        merged = register_policy(
            project=project,
            name=_free_name(policy),
            model_path=folder,
            digest=digest,
            parent=policy,
            actor=actor,
        )
        note_event(policy=merged, kind=PolicyEvent.Kind.MERGED, actor=actor)
        note_sizes(project)


def _free_name(policy: Policy) -> str:
    """ "Round 3, merged", or "Round 3, merged (2)" where that is taken."""
    taken = set(policy.project.policies.values_list("name", flat=True))
    endings = (", merged" + (f" ({n})" if n > 1 else "") for n in count(1))
    names = (policy.name[: MOST_NAME - len(ending)] + ending for ending in endings)
    return next(name for name in names if name not in taken)
