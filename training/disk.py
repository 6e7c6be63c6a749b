"""What a project's rounds and policies take on the disk, and how much is left there."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.conf import settings
from django.utils.translation import gettext as _

from labeling.figures import Kept, counted, figure
from labeling.models import Policy, Project
from labeling.policy_files import folder_bytes
from labeling.policy_needs import own_folder
from training.models import RoundState
from training.presets import default_options
from training.sizes import model_bytes

DISK = "training.disk"
FRESH_S = 300.0
GB = 2**30  # as pages tell sizes
NEARLY_FULL = 0.05
CHECKPOINTS = 3  # that are on the disk at once: those that are kept, and the one being written
FULL_STATE = 3  # a checkpoint of full training: the weights and two averages of each
ADAPTER_SHARE = 0.05  # of a model's size: more than the largest adapter that anybody trains
LARGEST = 10  # rounds that the page names


@dataclass(frozen=True, kw_only=True)
class Room:
    """A file system."""

    free: int
    total: int


def room() -> Room:
    """What is left where run directories are made."""
    settings.RUNS_DIR.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = shutil.disk_usage(settings.RUNS_DIR)
    return Room(free=found.free, total=found.total)


def limit_bytes() -> int:
    """How much the installation's folders may take before older checkpoints go; 0 is no limit."""
    return int(settings.DISK_LIMIT_GB) * GB


def disk_warning(start: Policy) -> str:
    """What a manager should know before a round from `start`; "" while there is room."""
    left = room()
    need = next_round_bytes(start)
    if left.free >= max(need, NEARLY_FULL * left.total):
        return ""
    words = _(
        "The disk is nearly full: %(free)s GB are free, and a round like this may need "
        "%(need)s GB. Free some on the page Disk, under Policies."
    )
    return words % {"free": f"{left.free / GB:.1f}", "need": f"{need / GB:.1f}"}


def next_round_bytes(start: Policy) -> int:
    """About what a round from this policy writes, with the usual options: upwards rounded."""
    weights = model_bytes(Path(start.model_path))
    if default_options(start, 0)["method"] == "full":
        return weights * (1 + CHECKPOINTS * FULL_STATE)
    return round(weights * ADAPTER_SHARE * (1 + CHECKPOINTS * FULL_STATE))


def tree_bytes(folder: Path) -> int:
    """Bytes of all files in a folder and those within it; links are not followed."""
    total, ahead = 0, [str(folder)]
    while ahead:
        try:
            with os.scandir(ahead.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        ahead.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        total += entry.stat(follow_symlinks=False).st_size
        except OSError:
            continue  # a folder that went meanwhile, or that the site may not read
    return total


def usage_of(project: Project) -> Kept:
    """The figure `DISK`, as it was last worked out."""
    return figure(project, DISK, fresh_s=FRESH_S)


@counted(DISK)
def _usage(project: Project) -> dict[str, Any]:
    """Bytes by what they are for, those of the whole installation, and the largest rounds."""
    rounds = project.rounds.order_by("number").values_list("number", "state", "run_dir")
    taken: list[tuple[int, str, int]] = []
    others = 0
    for number, state, run_dir in rounds:
        if run_dir:
            checkpoints = tree_bytes(Path(run_dir) / "checkpoints")
            taken.append((number, state, checkpoints))
            others += tree_bytes(Path(run_dir)) - checkpoints
            others -= tree_bytes(Path(run_dir) / "policy")
    snapshots = {path for (path,) in project.snapshots.values_list("path")}
    policies, elsewhere = _policies(project)
    return {
        "checkpoints": sum(size for *_rest, size in taken),
        "done": sum(size for _, state, size in taken if state == RoundState.SUCCEEDED),
        "runs": others,
        "policies": policies,
        "elsewhere": elsewhere,
        "snapshots": sum(_file_bytes(Path(path)) for path in snapshots),
        "cache": _file_bytes(cache_file(project)),
        "site": tree_bytes(settings.RUNS_DIR) + tree_bytes(settings.MODELS_DIR),
        "rounds": sorted((one for one in taken if one[2]), key=lambda one: -one[2])[:LARGEST],
    }


def cache_file(project: Project) -> Path:
    """Where the project's rounds keep reference log-probabilities; the trainer makes the file.

    It is a cache by content: deleted at any time, the next round fills it again.
    """
    folder: Path = settings.RUNS_DIR / "reference-logps"
    return folder / f"project-{project.pk}.sqlite3"


def _policies(project: Project) -> tuple[int, int]:
    """Bytes of the policies in the site's own folders, and of those elsewhere; each folder once."""
    roots = [Path(root).resolve() for root in (settings.RUNS_DIR, settings.MODELS_DIR)]
    sizes: dict[Path, int] = {}
    for policy in project.policies.filter(deleted_at=None):
        folder = own_folder(policy)
        known = policy.size_bytes
        sizes[folder] = folder_bytes(folder) if known is None else known
    ours = elsewhere = 0
    for folder, size in sizes.items():
        if any(root in folder.resolve().parents for root in roots):
            ours += size
        else:
            elsewhere += size
    return ours, elsewhere


def _file_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
