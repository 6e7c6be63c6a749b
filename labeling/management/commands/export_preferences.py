"""manage.py export_preferences --project SLUG --format trl --out FILE"""

from argparse import ArgumentParser
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from jobs.run_dir import write_jsonl
from labeling.formats import plain_row
from labeling.models import Project, Split
from labeling.services.exporting import left_out, preference_rows

ALL = "all"


class Command(BaseCommand):
    """Write the preference table to a file: complete, or not at all."""

    help = "Export preferences as JSON lines, one decided pair of responses a line."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """--project SLUG --format trl --out FILE [--split ...] [--plain]"""
        parser.add_argument("--project", required=True, metavar="SLUG")
        parser.add_argument("--format", choices=["trl"], default="trl")
        parser.add_argument("--out", required=True, type=Path, metavar="FILE")
        parser.add_argument("--split", choices=[*Split.values, ALL], default=ALL)
        parser.add_argument(
            "--plain",
            action="store_true",
            help="texts instead of chat messages; prompts of several turns are left out",
        )

    def handle(self, *, project: str, out: Path, split: str, plain: bool, **options: Any) -> None:
        """CommandError where there is no such project or the file cannot be written."""
        found = Project.objects.filter(slug=project).first()
        if found is None:
            raise CommandError(f"There is no project {project!a}; nothing was written.")
        side = None if split == ALL else Split(split)
        reasons = left_out(found, side)
        rows: Iterable[dict[str, Any]] = preference_rows(found, side)
        if plain:
            reasons["several turns"] = 0
            rows = _plain(rows, reasons)
        try:
            count = write_jsonl(out, rows)
        except OSError as error:
            raise CommandError(
                f"{out} cannot be written: {error.strerror}. Nothing was left behind."
            ) from None
        self.stdout.write(f"{count} preferences ({split}) written to {out}.")
        missing = [f"{number} ({reason})" for reason, number in reasons.items() if number]
        if missing:
            self.stdout.write(f"Left out: {', '.join(missing)}.")


def _plain(rows: Iterable[dict[str, Any]], reasons: dict[str, int]) -> Iterator[dict[str, Any]]:
    """Rows as texts; those that cannot be are counted."""
    for row in rows:
        as_text = plain_row(row)
        if as_text is None:
            reasons["several turns"] += 1
        else:
            yield as_text
