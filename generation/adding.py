"""Policies that people bring: from a folder on this machine, or from the hub where that is allowed.

A manager's words become a path here, so they are checked twice: when asked for, and by the worker.
"""

import os
from pathlib import Path

from django.conf import settings
from django.utils.text import get_text_list
from django.utils.translation import gettext as _

from generation.samplers.fetch import HUB_ID, REVISION
from jobs import queue
from jobs.models import Job
from labeling.models import Project, User

KIND = "generation.policy"
SHOWN = 5
PATH_MOST = 500  # Policy.model_path
# What a way to the hub may need; a program sees no other variable of the site's environment.
NETWORK = ("HF_ENDPOINT", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")
MAX_NAME = 120  # as Policy.name holds


class CannotAdd(Exception):
    """Why no policy is added; the message is for the user."""


def add_policy(
    *, project: Project, name: str, source: str, revision: str = "", actor: User | None
) -> Job:
    """Have the worker check, hash and register a model; large weights take minutes.

    `source` is a folder in one of `roots()`, or a hub id where PREFLOOP_HUB allows these.
    CannotAdd where it is neither, or the name is no name or is taken.
    """
    name, source, revision = name.strip(), source.strip(), revision.strip()
    if not name.isprintable() or not 0 < len(name) <= MAX_NAME:
        raise CannotAdd(_("The policy needs a name of at most 120 characters, in one line."))
    if project.policies.filter(name=name).exists():
        words = _("There is a policy named %(name)s already; choose a new name.")
        raise CannotAdd(words % {"name": name})
    check_source(source, revision)
    payload = {
        "project": project.pk,
        "name": name,
        "source": source,
        "revision": revision,
        "actor": actor.pk if actor else None,
    }
    once_key = f"{KIND}:{project.pk}:{name}"
    try:
        return queue.enqueue(kind=KIND, payload=payload, lane="light", once_key=once_key)
    except queue.AlreadyQueued:
        raise CannotAdd(_("%(name)s is being added already.") % {"name": name}) from None


def roots() -> list[Path]:
    """The folders, links resolved, in which a manager may name a model."""
    return [root.resolve() for root in (settings.MODELS_DIR, *settings.MODEL_ROOTS)]


def check_source(source: str, revision: str) -> Path | None:
    """The real path of the folder that is meant, None where it is a hub id; else CannotAdd."""
    if source.startswith("/"):
        if revision:
            raise CannotAdd(_("A revision goes with a hub id, not with a folder."))
        return _folder(source)
    if not settings.HUB:
        raise CannotAdd(_("Give a folder's whole path, from / on. Hub ids are not allowed here."))
    if not HUB_ID.fullmatch(source):
        raise CannotAdd(_("That is neither a folder's whole path nor a hub id such as owner/name."))
    if revision and not REVISION.fullmatch(revision):
        raise CannotAdd(_("A revision is the 40 hex digits of a commit; none means the newest."))
    return None


def _folder(source: str) -> Path:
    """Says nothing of what lies outside the allowed folders, not even whether it exists."""
    try:
        folder = Path(source).resolve()
    except (ValueError, OSError, RuntimeError):  # a null character, a loop of links
        raise CannotAdd(_("That is not a path.")) from None
    allowed = roots()
    if not any(folder.is_relative_to(root) for root in allowed):
        raise CannotAdd(
            _("The folder must lie in %(folders)s.")
            % {"folders": get_text_list(list(map(str, allowed)), _("or"))}
        )
    if len(str(folder)) > PATH_MOST:
        raise CannotAdd(
            _("The folder's path is longer than %(number)s characters.") % {"number": PATH_MOST}
        )
    if not os.path.isfile(folder / "config.json"):
        raise CannotAdd(
            _("%(folder)s holds no config.json: name the folder of one whole model.")
            % {"folder": folder}
        )
    return folder


def fetch_command(*, repo: str, revision: str, run_dir: Path) -> list[str]:
    """The program that brings a model from the hub; manifest.json in `run_dir` names its folder."""
    options = ["--revision", revision, "--run-dir", str(run_dir)]
    program = [settings.SAMPLER_PYTHON, "-m", "generation.samplers.fetch"]
    return [*program, *options, repo, str(settings.MODELS_DIR / "hub")]


def fetch_environment() -> dict[str, str]:
    """Lets this one program reach the hub, the way this machine does."""
    names = [*NETWORK, *(name.lower() for name in NETWORK)]
    found = {name: os.environ[name] for name in names if name in os.environ}
    return {"HF_HUB_OFFLINE": "0", **found}


def recent_jobs(project: Project) -> list[Job]:
    """The project's last additions, newest first."""
    return list(Job.objects.filter(kind=KIND, payload__project=project.pk).order_by("-pk")[:SHOWN])
