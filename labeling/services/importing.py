"""Prompts and preferences from files into the record: whole or not at all.

A file is parsed first (labeling.formats); what is written is written in one transaction, so a
kill, a full disk or an error leaves nothing. Importing a file again adds nothing.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from django.contrib.auth.hashers import make_password
from django.core.exceptions import ValidationError
from django.core.validators import validate_slug
from django.db import transaction

from labeling.chat import Message
from labeling.formats import Parsed, PreferenceRow, Problem, PromptRow
from labeling.models import Comparison, Judgment, Project, Prompt, Response, User
from labeling.models.prompts import prompt_digest, split_of, text_digest
from labeling.services.aggregating import rewrite_preferences
from labeling.services.comparing import NewComparison, create_comparisons

CHUNK = 500  # rows looked up and written together
IMPORTER = "imported"  # the user whose judgments imported preferences are; nobody can sign in
MAX_SLUG_LENGTH = 50

Progress = Callable[[int, int], None]
RowT = TypeVar("RowT")


class BadRows(Exception):
    """Rows that are not what was asked for, where none was to be left out; nothing is written."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(f"{len(problems)} rows cannot be imported")
        self.problems = problems


class CannotImport(Exception):
    """The project cannot take rows in; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What became of a file's rows: `imported + already_there + bad == read`."""

    read: int
    imported: int
    bad: int

    @property
    def already_there(self) -> int:
        """Rows the project held before, and repetitions within the file."""
        return self.read - self.imported - self.bad


def import_prompts(
    *, slug: str, parsed: Parsed[PromptRow], skip_bad: bool, progress: Progress | None = None
) -> Imported:
    """Write the prompts that the project does not hold yet; the project is made if need be.

    BadRows or CannotImport, with nothing written.
    """
    return _import(slug, parsed, skip_bad, _write_prompts, progress)


def import_preferences(
    *, slug: str, parsed: Parsed[PreferenceRow], skip_bad: bool, progress: Progress | None = None
) -> Imported:
    """Write each row as a judged pair of imported responses; the project is made if need be.

    A row that was imported before is known by its content and adds nothing. BadRows or
    CannotImport, with nothing written.
    """
    return _import(slug, parsed, skip_bad, _write_preferences, progress)


def _import(
    slug: str,
    parsed: Parsed[Any],
    skip_bad: bool,
    write: Callable[[Project, Sequence[Any]], int],
    progress: Progress | None,
) -> Imported:
    if parsed.problems and not skip_bad:
        raise BadRows(parsed.problems)
    imported = done = 0
    with transaction.atomic():
        project = _lock_project(slug) if parsed.rows else None
        for chunk in _chunks(parsed.rows):
            imported += write(project, chunk) if project else 0
            done += len(chunk)
            if progress:
                progress(done, len(parsed.rows))
    bad = len(parsed.problems)
    return Imported(read=len(parsed.rows) + bad, imported=imported, bad=bad)


def _lock_project(slug: str) -> Project:
    """The project, made where it does not exist; locked, so that imports into it take turns."""
    try:
        validate_slug(slug)
    except ValidationError:
        raise CannotImport(
            f"{slug!a} cannot name a project: use letters, digits, hyphens and underscores"
        ) from None
    if len(slug) > MAX_SLUG_LENGTH:
        raise CannotImport(f"a project's slug has at most {MAX_SLUG_LENGTH} characters")
    name = slug.replace("-", " ").replace("_", " ").strip().capitalize() or slug
    project, _ = Project.objects.get_or_create(slug=slug, defaults={"name": name})
    return Project.objects.select_for_update(no_key=True).get(pk=project.pk)


def _chunks(rows: Sequence[RowT]) -> Iterator[Sequence[RowT]]:
    return (rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK))


# Prompts


def _write_prompts(project: Project, rows: Sequence[PromptRow]) -> int:
    wanted: dict[str, Prompt] = {}
    for row in rows:
        prompt = _new_prompt(project, row.messages, row.external_id, row.metadata)
        wanted.setdefault(prompt.digest, prompt)
    return _add_missing_prompts(project, wanted)


def _new_prompt(
    project: Project, messages: list[Message], external_id: str, metadata: dict[str, Any]
) -> Prompt:
    digest = prompt_digest(messages)
    return Prompt(
        project=project,
        external_id=external_id,
        messages=messages,
        digest=digest,
        split=split_of(digest, project.held_out_percent),
        metadata=metadata,
    )


def _add_missing_prompts(project: Project, wanted: dict[str, Prompt]) -> int:
    """Give every prompt in `wanted` (by digest) its id, writing those that are new."""
    held = dict(
        Prompt.objects.filter(project=project, digest__in=wanted).values_list("digest", "pk")
    )
    missing = [prompt for digest, prompt in wanted.items() if digest not in held]
    Prompt.objects.bulk_create(missing)
    for digest, pk in held.items():
        wanted[digest].pk = pk
    return len(missing)


# Preferences


def _write_preferences(project: Project, rows: Sequence[PreferenceRow]) -> int:
    importer = _importer()
    by_key = {_judgment_key(project, row): row for row in rows}
    held = set(
        Judgment.objects.filter(annotator=importer, key__in=by_key).values_list("key", flat=True)
    )
    new = {key: row for key, row in by_key.items() if key not in held}
    comparisons = create_comparisons(
        project=project,
        wanted=[NewComparison(responses=pair) for pair in _pairs(project, list(new.values()))],
        overlap=1,
    )
    _judge(comparisons, list(new), importer)
    return len(new)


def _importer() -> User:
    """The user that stands for whoever judged elsewhere; CannotImport if it is a real person."""
    user, _ = User.objects.get_or_create(
        username=IMPORTER, defaults={"is_active": False, "password": make_password(None)}
    )
    if user.is_active:
        raise CannotImport(
            f'somebody can sign in as "{IMPORTER}", the name imported judgments are kept under: '
            "rename that person first"
        )
    return user


def _judgment_key(project: Project, row: PreferenceRow) -> str:
    """Equal for equal preferences in one project, and for no others."""
    parts = (prompt_digest(row.messages), text_digest(row.chosen), text_digest(row.rejected))
    return hashlib.sha256(f"import:{project.pk}:{':'.join(parts)}".encode()).hexdigest()


def _pairs(project: Project, rows: Sequence[PreferenceRow]) -> list[tuple[Response, Response]]:
    """Each row's chosen and rejected response, in the record."""
    prompts: dict[str, Prompt] = {}
    digests = []
    for row in rows:
        prompt = _new_prompt(project, row.messages, row.external_id, {})
        prompts.setdefault(prompt.digest, prompt)
        digests.append(prompt.digest)
    _add_missing_prompts(project, prompts)
    pairs = [
        (_new_response(prompts[digest], row.chosen), _new_response(prompts[digest], row.rejected))
        for digest, row in zip(digests, rows, strict=True)
    ]
    responses = _with_ids(response for pair in pairs for response in pair)
    return [(responses[_place(chosen)], responses[_place(rejected)]) for chosen, rejected in pairs]


def _new_response(prompt: Prompt, text: str) -> Response:
    return Response(prompt=prompt, text=text, text_digest=text_digest(text))


def _place(response: Response) -> tuple[int, str]:
    """What makes two imported responses the same one."""
    return response.prompt_id, response.text_digest


def _with_ids(responses: Iterator[Response]) -> dict[tuple[int, str], Response]:
    """Imported responses by place, each with its id, writing those that are new."""
    wanted = {_place(response): response for response in responses}
    rows = Response.objects.filter(
        prompt__in={prompt for prompt, _ in wanted},
        text_digest__in={digest for _, digest in wanted},
        policy=None,
        annotator=None,
    )
    held = {(prompt, digest): pk for pk, prompt, digest in rows.values_list(*PLACE_FIELDS)}
    Response.objects.bulk_create(
        response for place, response in wanted.items() if place not in held
    )
    for place in wanted.keys() & held.keys():
        wanted[place].pk = held[place]
    return wanted


PLACE_FIELDS = ("pk", "prompt_id", "text_digest")


def _judge(comparisons: Sequence[Comparison], keys: Sequence[str], importer: User) -> None:
    """Fill each comparison's one place with the verdict that slot 0 is better than slot 1."""
    Judgment.objects.bulk_create(
        Judgment(
            comparison=comparison, annotator=importer, tiers=[[0], [1]], shown_order=[0, 1], key=key
        )
        for comparison, key in zip(comparisons, keys, strict=True)
    )
    Comparison.objects.filter(pk__in=[comparison.pk for comparison in comparisons]).update(
        state=Comparison.State.JUDGED, judged=1
    )
    rewrite_preferences(comparisons)
