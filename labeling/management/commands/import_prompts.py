"""manage.py import_prompts FILE --project SLUG"""

from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from django.core.management.base import BaseCommand, CommandError

from labeling.formats import Parsed, parse_file, prompt_row
from labeling.json_rows import BadFile
from labeling.services.importing import BadRows, CannotImport, Imported, import_prompts

SHOWN_KEYS = 10


class ImportCommand(BaseCommand):
    """Read a file, import it, say what became of every row. Subclasses name the kind of row."""

    what: ClassVar[str]
    row_of: ClassVar[Callable[[dict[str, Any]], Any]]
    import_rows: ClassVar[Callable[..., Imported]]

    def add_arguments(self, parser: ArgumentParser) -> None:
        """FILE --project SLUG [--skip-bad]"""
        parser.add_argument("file", type=Path, help="JSON lines, or one JSON list, in UTF-8")
        parser.add_argument("--project", required=True, metavar="SLUG", help="made if it is new")
        parser.add_argument(
            "--skip-bad", action="store_true", help="leave bad rows out instead of importing none"
        )

    def handle(self, *, file: Path, project: str, skip_bad: bool, **options: Any) -> None:
        """CommandError (exit status 1) where nothing was imported because something is wrong."""
        parsed = self._parsed(file)
        for problem in parsed.problems:
            self.stderr.write(str(problem))
        try:
            outcome = type(self).import_rows(
                slug=project, parsed=parsed, skip_bad=skip_bad, progress=self._progress
            )
        except BadRows as error:
            rows = len(parsed.rows) + len(error.problems)
            raise CommandError(
                f"Nothing was imported: {len(error.problems)} of {rows} rows are bad (listed "
                "above). Mend them, or leave them out with --skip-bad."
            ) from None
        except CannotImport as error:
            raise CommandError(f"Nothing was imported: {error}.") from None
        self._report(outcome, parsed, project)

    def _parsed(self, file: Path) -> Parsed[Any]:
        try:
            with file.open("rb") as opened:
                return parse_file(opened, type(self).row_of)
        except OSError as error:
            raise CommandError(f"{file} cannot be read: {error.strerror}.") from None
        except BadFile as error:
            raise CommandError(f"{file} cannot be imported: {error}.") from None

    def _progress(self, done: int, total: int) -> None:
        if self.stderr.isatty():
            self.stderr.write(f"\r{done} of {total} rows", ending="\n" if done == total else "")

    def _report(self, outcome: Imported, parsed: Parsed[Any], project: str) -> None:
        self.stdout.write(
            f"{outcome.read} rows read: {outcome.imported} {self.what} imported into {project}, "
            f"{outcome.already_there} already there, {outcome.bad} bad."
        )
        if parsed.unread:
            names = [ascii(name)[:60] for name in sorted(parsed.unread)]
            more = f" and {len(names) - SHOWN_KEYS} more" if len(names) > SHOWN_KEYS else ""
            self.stdout.write(f"Keys not kept: {', '.join(names[:SHOWN_KEYS])}{more}.")


class Command(ImportCommand):
    """Import prompts."""

    help = "Import prompts: texts, chat messages, or MT-Bench questions."
    what = "prompts"
    row_of = prompt_row
    import_rows = import_prompts
