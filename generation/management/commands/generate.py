"""`manage.py generate --project SLUG`: start a batch or have one go on, and wait where asked to."""

from argparse import ArgumentParser
from collections.abc import Sequence
from time import monotonic, sleep
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import close_old_connections

from generation.lineage import UnknownPolicy, by_name
from generation.models import SAMPLING, Batch, BatchState
from generation.selecting import Selection
from generation.services import CannotGenerate, resume_batch, start_batch
from jobs import queue
from jobs.models import Job
from labeling.models import Comparison, Project, Split
from labeling.overview import worker_silence

POLL_S = 0.5
ASKED = ("policy", "fewer_than", "split", "search", "prompt", "limit", "seed", *SAMPLING)
TELL_S = 10.0  # between two lines of progress where nobody watches a terminal


class Command(BaseCommand):
    """The operator's way to have candidates written."""

    help = "Have policies answer prompts and compare the responses: starts a batch."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The command's options; what is left out is the page's default."""
        parser.add_argument("--project", required=True, metavar="SLUG")
        parser.add_argument(
            "--policy",
            action="append",
            default=[],
            metavar="NAME=WEIGHT",
            help="who writes, by name, or current, previous or base; again for more "
            "(default: the serving policy)",
        )
        parser.add_argument("--wait", action="store_true", help="until the batch has ended")
        parser.add_argument(
            "--resume",
            type=int,
            metavar="NUMBER",
            help="start no batch; have this one go on, which failed or was cancelled",
        )
        which = parser.add_argument_group("which prompts (default: those not answered yet)")
        which.add_argument("--prompts-with-fewer-than", type=int, metavar="N", dest="fewer_than")
        which.add_argument("--split", choices=Split.values, default="")
        which.add_argument("--search", default="", metavar="TEXT", help="those that say this")
        which.add_argument("--prompt", type=int, action="append", default=[], metavar="ID")
        which.add_argument("--limit", type=int, metavar="N", help="the first N of them")
        how = parser.add_argument_group("how")
        how.add_argument("--k", type=int, help="responses a prompt")
        how.add_argument("--temperature", type=float)
        how.add_argument("--top-p", type=float)
        how.add_argument("--max-new-tokens", type=int)
        how.add_argument("--stop", action="append", metavar="TEXT", help="again for more")
        how.add_argument("--system", metavar="TEXT", help="for prompts without one of their own")
        how.add_argument("--seed", type=int)
        how.add_argument("--pairing", choices=Comparison.Pairing.values)
        how.add_argument("--random-percent", type=int, metavar="PERCENT")

    def handle(self, *args: Any, **options: Any) -> None:
        """CommandError (exit status 1) where no batch was started, or the one waited for failed."""
        project = Project.objects.filter(slug=options["project"]).first()
        if project is None:
            raise CommandError(f"There is no project {options['project']}; an import makes one.")
        if options["resume"] is None:
            batch = self._started(project, options)
            prompts = f"{batch.total} prompt{'' if batch.total == 1 else 's'}"
            self.stdout.write(f"{batch} of {project.slug} asks {prompts}, {batch.k} times each.")
        else:
            batch = self._resumed(project, options)
            far = f"{batch.done} of {batch.total} prompts were answered"
            self.stdout.write(f"{batch} of {project.slug} goes on; {far}.")
        if options["wait"]:
            self._wait(batch)

    def _started(self, project: Project, options: dict[str, Any]) -> Batch:
        given = {name: options[name] for name in (*SAMPLING, "seed") if options[name] is not None}
        try:
            return start_batch(
                project=project,
                policies=by_name(project, _weights(options["policy"] or ["current"])),
                actor=None,
                origin=Batch.Origin.COMMAND,
                selection=Selection(
                    split=options["split"],
                    ids=tuple(dict.fromkeys(options["prompt"])),
                    search=options["search"],
                    fewer_than=options["fewer_than"],
                    limit=options["limit"],
                ),
                **given,
            )
        except (CannotGenerate, UnknownPolicy) as reason:
            raise CommandError(f"No batch was started. {_words(reason)}") from None

    def _resumed(self, project: Project, options: dict[str, Any]) -> Batch:
        if any(options[name] not in (None, "", []) for name in ASKED):
            raise CommandError("--resume goes on with what the batch was asked: no other options.")
        batch = project.batches.filter(number=options["resume"]).first()
        if batch is None:
            raise CommandError(f"{project.slug} has no batch {options['resume']}.")
        try:
            return resume_batch(batch=batch, actor=None)
        except CannotGenerate as reason:
            raise CommandError(str(reason)) from None

    def _wait(self, batch: Batch) -> None:
        told, told_at = "", float("-inf")
        try:
            while batch.live:
                line = _progress(batch)
                due = self.stdout.isatty() or monotonic() - told_at >= TELL_S
                if line != told and due:
                    self.stdout.write(line)
                    told, told_at = line, monotonic()
                sleep(POLL_S)
                close_old_connections()
                batch.refresh_from_db()
        except KeyboardInterrupt:
            raise CommandError(f"{batch} goes on without being watched.", returncode=130) from None
        if batch.state != BatchState.SUCCEEDED:
            raise CommandError(f"{batch} {batch.state}. {batch.error}".strip())
        failed = f", {batch.failures} prompts failed" if batch.failures else ""
        self.stdout.write(
            f"{batch} succeeded: {batch.done} prompts answered{failed}, "
            f"{batch.comparisons} comparisons made."
        )


def _weights(shares: Sequence[str]) -> dict[str, int]:
    """From NAME=WEIGHT or NAME; a name may hold an equals sign itself."""
    found = {}
    for share in shares:
        name, equals, weight = share.rpartition("=")
        if not equals or not weight.isdecimal():
            name, weight = share, "1"
        if name in found:
            raise CommandError(f"{name} is named twice.")
        found[name] = int(weight)
    return found


def _words(reason: Exception) -> str:
    """With the names of the options at fault."""
    if not isinstance(reason, CannotGenerate):
        return str(reason)
    named = {"ids": "prompt", "fewer_than": "prompts-with-fewer-than", "policies": "policy"}
    return " ".join(
        f"--{named.get(name, name).replace('_', '-')}: {message}" if name else message
        for name, messages in reason.errors.items()
        for message in messages
    )


def _progress(batch: Batch) -> str:
    silence = worker_silence(queue.worker_seen())
    if silence:
        return silence
    job = Job.objects.filter(pk=batch.job_id).first() if batch.job_id else None
    if job is not None and job.error:
        return f"Waiting to be tried again: {job.error}"
    if batch.started_at is None:
        return "Waiting for the worker."
    return f"{batch.done} of {batch.total} prompts"
