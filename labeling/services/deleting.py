"""Deleting a policy's files. Its row stays as a record, and so do the responses it wrote.

The one writer of Policy.deleted_at and Policy.size_bytes. Only files in the site's own folders are
removed: what people registered from elsewhere is theirs, and is marked only.
"""

import logging
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from django.conf import settings
from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from labeling.models import Policy, PolicyEvent, Project, User
from labeling.policy_files import folder_bytes
from labeling.policy_needs import Need, adapters_on, needs, own_folder, twins
from labeling.services.policy_events import note_event

logger = logging.getLogger("labeling")

LONGEST_REASON = 500


class FilesDeleted(Exception):
    """The policy has no files any more; the message is for the user."""


class CannotDelete(Exception):
    """Something needs the files; `needs` say what."""

    def __init__(self, needs: list[Need]) -> None:
        super().__init__(" ".join(need.text for need in needs))
        self.needs = needs


@dataclass(frozen=True, kw_only=True)
class Storage:
    """What deleting a policy takes from the disk."""

    folder: Path
    bytes: int
    ours: bool  # the site's own folder, so that the files are removed
    twin: Policy | None  # another policy that is the same files, or sits on them: they stay

    @property
    def removed(self) -> bool:
        """Whether the files go."""
        return self.ours and self.twin is None


def ensure_files(policy: Policy) -> None:
    """FilesDeleted where the policy's files were deleted: it writes and trains no more."""
    if policy.deleted_at is not None:
        words = _("The files of %(policy)s were deleted. Choose another policy.")
        raise FilesDeleted(words % {"policy": policy.name})


def storage_of(policy: Policy) -> Storage:
    """Where the files are, and whether they would be removed."""
    folder = own_folder(policy)
    same = [*twins(policy), *adapters_on(policy)]
    return Storage(
        folder=folder,
        bytes=folder_bytes(folder),
        ours=_ours(folder),
        twin=same[0] if same else None,
    )


def delete_files(*, policy: Policy, actor: User | None, reason: str = "") -> Storage:
    """Mark the policy as deleted, and remove its files once that is committed.

    CannotDelete where something needs them, with what.
    """
    with transaction.atomic():
        Project.objects.select_for_update(no_key=True).get(pk=policy.project_id)
        policy.refresh_from_db()
        if policy.deleted_at is not None:
            raise CannotDelete([Need(text=_("Its files are deleted already."))])
        if found := needs(policy):
            raise CannotDelete(found)
        storage = storage_of(policy)
        policy.deleted_at, policy.size_bytes = timezone.now(), storage.bytes or policy.size_bytes
        policy.save(update_fields=["deleted_at", "size_bytes"])
        kind = PolicyEvent.Kind.DELETED
        note_event(policy=policy, kind=kind, actor=actor, reason=reason[:LONGEST_REASON])
        transaction.on_commit(lambda: remove_files(policy))
    return storage


def remove_files(policy: Policy) -> None:
    """Remove what a deleted policy has left in the site's own folders. May be called again.

    Files that lie in its folder go, and the folder if it is empty then; links are not followed,
    and folders inside it are somebody else's.
    """
    storage = storage_of(policy)
    if policy.deleted_at is None or not storage.removed:
        return
    try:
        with os.scandir(storage.folder) as entries:
            files = [entry for entry in entries if not entry.is_dir(follow_symlinks=False)]
        if any(_newer(entry, policy.deleted_at) for entry in files):
            logger.warning("another model lies where deleted policy %s was", policy.pk)
            return
        found = [entry.path for entry in files]
        for path in found:
            os.unlink(path)
        storage.folder.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        # The next clean-up tries again: the row says already that they are gone.
        logger.warning("files of deleted policy %s are still there: %s", policy.pk, error)


def _newer(entry: os.DirEntry[str], moment: datetime) -> bool:
    """Whether a file came after that moment: somebody has put another model there since."""
    return entry.stat(follow_symlinks=False).st_ctime > moment.timestamp()


def finish_deletions(project: Project) -> None:
    """Remove what was left of deleted policies, by a site that was stopped in the middle of it."""
    for policy in project.policies.exclude(deleted_at=None):
        if own_folder(policy).exists():
            remove_files(policy)


def note_sizes(project: Project) -> None:
    """Look at the size of policies for which nobody has yet."""
    for policy in project.policies.filter(size_bytes=None, deleted_at=None):
        size = folder_bytes(own_folder(policy))
        Policy.objects.filter(pk=policy.pk, size_bytes=None).update(size_bytes=size)


def _ours(folder: Path) -> bool:
    """Whether a folder is, links resolved, inside one that only the site writes to."""
    if folder.is_symlink():
        return False
    real = folder.resolve()
    roots = [Path(root).resolve() for root in (settings.RUNS_DIR, settings.MODELS_DIR)]
    return any(root in real.parents for root in roots)
