"""`manage.py demo`: the whole product on one machine, with one command."""

import json
import shutil
import signal
import sys
import threading
import types
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import connections

from config.demo import headless, preparing
from config.demo.browser import PageError
from config.demo.site import Site, SiteError, check_port
from generation.choosing import choose
from generation.models import Batch
from generation.selecting import NOT_ANSWERED, select_prompts
from generation.services import CannotGenerate, start_batch
from labeling.models import Policy, Project
from labeling.services.promoting import serving_policy

NEED_FREE_BYTES = 500 * 2**20
HEADLESS_DATA = settings.BASE_DIR / "var" / "headless"  # manage.py chooses it
K = 4
TEMPERATURE = 0.8  # the starter policy is small: at 1 a word in a dozen is out of place
FILES = ("prefloop.sqlite3", "prefloop.sqlite3-wal", "prefloop.sqlite3-shm")
FOLDERS = ("runs", "logs")


class Stop(BaseException):
    """Ctrl+C, or the terminal went away."""


class Command(BaseCommand):
    """Sets everything up, starts the site, and waits; or runs the loop by itself."""

    help = "Set up and run Prefloop here: bundled prompts, a starter policy, web and worker."
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The command's options; none may be shortened: `--head` is not what manage.py read.

        manage.py reads --data and --sampler before settings are made.
        """
        parser.allow_abbrev = False
        parser.add_argument("--port", type=int, default=8000, help="where the site listens")
        parser.add_argument("--data", help="folder of the database and all files (default: var)")
        parser.add_argument(
            "--reset", action="store_true", help="delete the demo's data and start anew"
        )
        parser.add_argument(
            "--headless",
            action="store_true",
            help="no person needed: simulated annotators and two rounds, then a table",
        )
        parser.add_argument(
            "--sampler",
            choices=["auto", "vllm", "server", "transformers"],
            help="what writes responses (default: PREFLOOP_SAMPLER, else the best that is here)",
        )
        parser.add_argument(
            "--prompts", type=_count, help="take only so many of the bundled prompts: quicker"
        )
        parser.add_argument(
            "--rounds", type=_count, help="with --headless: how many rounds (default: 2)"
        )
        parser.add_argument("--json", type=Path, help="with --headless: write the table here too")

    def handle(self, *args: Any, **options: Any) -> None:
        """CommandError (exit 1) names what is in the way; everything started is ended."""
        for name in ("json", "rounds"):
            if options[name] and not options["headless"]:
                raise CommandError(f"--{name} goes with --headless: only that makes a table.")
        try:
            with _signals_as_stop(), _alone():
                self._run(options)
        except Stop:
            self.stdout.write("\nStopped. Run the same command to go on.")
        except (
            preparing.PreparationError,
            SiteError,
            PageError,
            headless.LoopError,
        ) as error:
            raise CommandError(str(error)) from None

    def _run(self, options: dict[str, Any]) -> None:
        check_port(options["port"])
        self._check_disk()
        choice = choose()
        self.stdout.write(f"Responses are written by {choice.sampler}: {choice.why}.")
        if options["reset"] or options["headless"]:
            own = options["data"] is None and settings.DATA_DIR == HEADLESS_DATA
            _reset(explicit=options["reset"] or own)
        preparing.migrate()
        name, folder = preparing.first_policy()
        project = preparing.project(options["prompts"])
        preparing.register_first(project, name, folder)
        people = preparing.people(project, annotators=3 if options["headless"] else 1)
        connections.close_all()
        with Site(options["port"]) as site:
            self._first_candidates(site, project)
            if options["headless"]:
                self._loop(site, project, people, options)
            else:
                self._invite(site, people)
                _wait(site)

    def _check_disk(self) -> None:
        free = shutil.disk_usage(settings.DATA_DIR).free
        if free < NEED_FREE_BYTES:
            raise CommandError(
                f"{settings.DATA_DIR} has {free // 2**20} MiB free; the demo needs 500 MiB. "
                "Free some space, or choose another folder with --data."
            )

    def _first_candidates(self, site: Site, project: Project) -> None:
        """Have the serving policy answer what it has not answered yet, in the worker."""
        policy = serving_policy(project)
        live = project.batches.filter(state__in=("queued", "running")).first()
        if live is None and policy is not None and _unanswered(project, policy):
            try:
                live = start_batch(
                    project=project,
                    policies={policy: 1},
                    actor=None,
                    origin=Batch.Origin.COMMAND,
                    k=K,
                    temperature=TEMPERATURE,
                )
            except CannotGenerate as reason:
                raise CommandError(str(reason)) from None
        if live is not None:
            headless.follow_batch(site, live, "Writing candidates")

    def _loop(
        self,
        site: Site,
        project: Project,
        people: list[preparing.SignIn],
        options: dict[str, Any],
    ) -> None:
        path: Path | None = options["json"]
        table = headless.Loop(site, project, people).run(options["rounds"] or headless.ROUNDS)
        self.stdout.write("\n" + headless.as_text(table))
        if path is not None:
            path.write_text(json.dumps(headless.as_json(table), indent=1) + "\n")
        if not headless.improved(table):
            raise CommandError("The loop did not improve the policy.")
        data = settings.DATA_DIR
        self.stdout.write(f"\nLook around in it: python3 manage.py demo --data {data}")

    def _invite(self, site: Site, people: list[preparing.SignIn]) -> None:
        self.stdout.write(f"\nPrefloop runs at  {site.address}\n\nSign in as\n")
        for person in people:
            self.stdout.write(
                f"  {person.role:<10}  user name  {person.username:<10}  "
                f"password  {person.password}\n"
            )
        self.stdout.write("\nThe passwords are new and shown only here. Ctrl+C ends the demo.\n")
        self.stdout.flush()


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text} is not a number from 1 on")
    return int(text)


def _unanswered(project: Project, policy: Policy) -> bool:
    return select_prompts(project, NOT_ANSWERED, leading=policy, policies=[policy]).exists()


@contextmanager
def _signals_as_stop() -> Iterator[None]:
    """Ctrl+C, SIGTERM and a closed terminal all end the demo in good order, once."""

    def stop(number: int, _frame: types.FrameType | None) -> None:
        for one in caught:
            signal.signal(one, signal.SIG_IGN)
        raise Stop(number)

    caught = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP"):
        caught.append(signal.SIGHUP)
    before = {one: signal.signal(one, stop) for one in caught}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


@contextmanager
def _alone() -> Iterator[None]:
    """One demo at a time in a data folder: a second one would reset it under the first."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with (settings.DATA_DIR / "demo.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandError(
                f"A demo is running in {settings.DATA_DIR} already. End it, or choose another "
                "folder with --data."
            ) from None
        yield


def _wait(site: Site) -> None:
    """Until Ctrl+C, or until a process of the site ends by itself."""
    while True:
        site.check()
        threading.Event().wait(1)


def _reset(*, explicit: bool) -> None:
    """Delete the demo's database and files, by name; the starter policy and the key stay.

    A folder that was named without --reset must hold no demo yet.
    """
    folder: Path = settings.DATA_DIR
    if not (folder / "prefloop.sqlite3").exists():
        return
    if not explicit:
        raise CommandError(
            f"{folder} holds a demo already. Add --reset to delete it and start anew."
        )
    connections.close_all()
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    for name in FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
