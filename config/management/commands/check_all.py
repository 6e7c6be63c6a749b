"""`manage.py check_all`: everything that must hold before a change lands."""

import subprocess
import sys
import time
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

PYTHON = [sys.executable, "-m"]
MANAGE = [sys.executable, "manage.py"]
CHECKS: dict[str, list[str]] = {
    "format": [*PYTHON, "ruff", "format", "--check", "."],
    "lint": [*PYTHON, "ruff", "check", "."],
    "types": [*PYTHON, "mypy", "config", "generation", "jobs", "labeling", "training"],
    "import contracts": ["lint-imports"],
    "settings": [*MANAGE, "check"],
    "migrations": [*MANAGE, "makemigrations", "--check", "--dry-run"],
    "templates": [*PYTHON, "djlint", "templates", "--lint", "--quiet"],
    "tests": [*MANAGE, "test"],
}


class Command(BaseCommand):
    """Runs each check, and names those that failed at the end."""

    help = "Format, lint, types, import contracts, migrations, templates and tests."
    requires_system_checks = ()

    def handle(self, *args: Any, **options: Any) -> None:
        """Every check is run, so that one pass shows everything."""
        failed = [name for name, command in CHECKS.items() if not self._passes(name, command)]
        if failed:
            raise CommandError(f"failed: {', '.join(failed)}")

    def _passes(self, name: str, command: list[str]) -> bool:
        self.stdout.write(f"-- {name}")
        started = time.monotonic()
        tool = settings.BASE_DIR / ".venv" / "bin" / command[0]
        argv = [str(tool) if tool.exists() else command[0], *command[1:]]
        code = subprocess.run(argv, cwd=settings.BASE_DIR).returncode
        self.stdout.write(
            f"   {'ok' if code == 0 else 'FAILED'} ({time.monotonic() - started:.0f} s)"
        )
        return code == 0
