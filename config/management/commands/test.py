"""`manage.py test`: every test there is, by pytest."""

import subprocess
import sys
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand


class Command(BaseCommand):
    """Takes the place of Django's own test command; what follows `test` goes to pytest."""

    help = "Run all tests (pytest): on SQLite, then on PostgreSQL where its server is installed."
    requires_system_checks = ()

    def run_from_argv(self, argv: list[str]) -> None:
        """Pass everything on unread: the options are pytest's."""
        command = [sys.executable, "-m", "tests", *argv[2:]]
        sys.exit(subprocess.run(command, cwd=settings.BASE_DIR).returncode)

    def add_arguments(self, parser: ArgumentParser) -> None:
        """For `manage.py help test`."""
        parser.add_argument("arguments", nargs="*", help="Handed to pytest.")

    def handle(self, *args: Any, **options: Any) -> None:
        """For call_command."""
        self.run_from_argv(["manage.py", "test", *options["arguments"]])
