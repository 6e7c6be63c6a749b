"""`manage.py worker`: run the queued jobs."""

import argparse
import logging
import sys
from typing import Any

from django.core.management.base import BaseCommand

from jobs.models import Lane
from jobs.worker import Until, Worker


class Command(BaseCommand):
    help = "Run queued jobs and schedules until stopped (Ctrl+C or SIGTERM; a second one kills)."
    requires_system_checks = ()  # those of the pages: a worker starts without importing them

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--lanes",
            type=_lanes,
            default=list(Lane.values),
            help="Which jobs to run, separated by commas (default: %(default)s).",
        )
        limit = parser.add_mutually_exclusive_group()
        limit.add_argument("--once", action="store_true", help="Run at most one job.")
        limit.add_argument("--until-idle", action="store_true", help="Stop when no job is due.")

    def handle(self, *args: Any, **options: Any) -> None:
        logging.getLogger("jobs").setLevel(logging.INFO)
        until = Until.STOPPED
        if options["once"]:
            until = Until.ONE_JOB
        elif options["until_idle"]:
            until = Until.IDLE
        sys.exit(Worker(lanes=options["lanes"], until=until).run())


def _lanes(text: str) -> list[str]:
    lanes = [lane.strip() for lane in text.split(",")]
    unknown = [lane for lane in lanes if lane not in Lane.values]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"no lane {', '.join(unknown)}; there are {', '.join(Lane.values)}"
        )
    return lanes
