"""A project's own settings. The only writer of them, of its guidelines and of their versions."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypedDict, Unpack

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Max
from django.utils.text import slugify
from django.utils.translation import gettext as _

from labeling.models import Example, Guidelines, Project, User

MAX_CRITERIA = 8
MAX_NAME = 40  # characters of a criterion's name, and of its key
MAX_HELP = 300
MAX_GUIDELINES = 50_000
MAX_REJUDGE_HOURS = 720
OWN_COLUMNS = {
    "name",
    "overlap",
    "comparison_size",
    "rationale",
    "rejudge_hours",
    "practice",
    "held_out_percent",
    "evaluation_percent",
    "gate_percent",
}


class Settings(TypedDict, total=False):
    """What a manager may set. `criteria` are {key, name, help}; a new one's key is empty."""

    name: str
    guidelines: str
    overlap: int
    comparison_size: int
    criteria: Sequence[Mapping[str, str]]
    rationale: str
    rejudge_hours: int
    practice: bool
    held_out_percent: int
    evaluation_percent: int
    gate_percent: int


@transaction.atomic
def configure(*, project: Project, actor: User, **changes: Unpack[Settings]) -> Project:
    """Change the settings that are named, and leave the others; all of them or none.

    ValidationError, by setting, with nothing written, where one makes no sense. Guidelines with
    another text become a new version by `actor`. A criterion keeps its key when it is reworded;
    one that is left out is no longer asked for, and what people rated on it stays.
    """
    locked = Project.objects.select_for_update(no_key=True).get(pk=project.pk)
    columns = {name: value for name, value in changes.items() if name in OWN_COLUMNS}
    if "name" in changes:
        columns["name"] = " ".join(changes["name"].split())
    if "criteria" in changes:
        columns["criteria"] = _keyed(changes["criteria"], locked.criteria)
    different = {name for name, value in columns.items() if getattr(locked, name) != value}
    for name, value in columns.items():
        setattr(locked, name, value)
    _check(locked, different, changes.get("guidelines", ""))
    if "guidelines" in changes:
        publish_guidelines(project=locked, text=changes["guidelines"], author=actor)
    locked.save(update_fields=list(columns))
    return locked


def same_text(one: str, other: str) -> bool:
    """Whether two texts of guidelines are the same: line ends and outer blanks do not tell."""
    return one.replace("\r\n", "\n").strip() == other.replace("\r\n", "\n").strip()


@transaction.atomic
def publish_guidelines(*, project: Project, text: str, author: User | None) -> Guidelines | None:
    """Put a new version of the guidelines in force; None where the text is as it was.

    Earlier versions stay: judgments name the one they were made under.
    """
    locked = Project.objects.select_for_update(of=("self",), no_key=True).select_related(
        "guidelines"
    )
    current = locked.get(pk=project.pk).guidelines
    if same_text(text, current.text if current else ""):
        return None
    last = project.versions.aggregate(last=Max("number"))["last"] or 0
    project.guidelines = project.versions.create(number=last + 1, text=text, author=author)
    project.save(update_fields=["guidelines"])
    return project.guidelines


def _keyed(wanted: Sequence[Mapping[str, str]], present: list[dict[str, str]]) -> list[Any]:
    """The criteria with the keys that they have, or that are made for them here."""
    known = {one["key"] for one in present}
    taken = {one["key"] for one in wanted if one["key"] in known}
    keyed = []
    for one in wanted:
        name = " ".join(one["name"].split())
        key = one["key"] if one["key"] in known else _new_key(name, taken)
        taken.add(key)
        keyed.append({"key": key, "name": name, "help": one["help"].strip()})
    return keyed


def _new_key(name: str, taken: set[str]) -> str:
    """A slug of the name; numbered where it is taken already, or where the name has no slug."""
    stem = slugify(name)[: MAX_NAME - 3].strip("-") or "criterion"
    numbered = (f"{stem}-{number}" for number in range(2, len(taken) + 3))
    return next(key for key in (stem, *numbered) if key not in taken)


def _check(project: Project, different: Collection[str], guidelines: str) -> None:
    """ValidationError that names every setting which makes no sense."""
    errors: dict[str, list[str]] = {}
    try:
        project.clean_fields(exclude={"slug", "guidelines", "criteria"})
    except ValidationError as found:
        errors = found.message_dict
    if project.rejudge_hours > MAX_REJUDGE_HOURS:
        errors["rejudge_hours"] = [
            _("At most %(most)s hours, which are 30 days.") % {"most": MAX_REJUDGE_HOURS}
        ]
    if len(guidelines) > MAX_GUIDELINES:
        errors["guidelines"] = [
            _("At most %(most)s characters: nobody reads more beside their work.")
            % {"most": MAX_GUIDELINES}
        ]
    if wrong := _wrong_criteria(project.criteria):
        errors["criteria"] = [wrong]
    if "held_out_percent" in different and project.prompts.exists():
        errors["held_out_percent"] = [_("Prompts are there already: their sides stay as they are.")]
    if "practice" in different and project.practice and not _has_examples(project):
        errors["practice"] = [
            _("There is nothing to practise on yet: make an example from one of your judgments.")
        ]
    if errors:
        raise ValidationError(errors)


def _wrong_criteria(criteria: Sequence[Mapping[str, str]]) -> str:
    """What is wrong with them, in words; empty where nothing is."""
    names = [one["name"].casefold() for one in criteria]
    keys = {one["key"] for one in criteria}
    if len(criteria) > MAX_CRITERIA:
        return _("At most %(most)s criteria.") % {"most": MAX_CRITERIA}
    if not all(names):
        return _("Every criterion needs a name.")
    if len(set(names)) < len(names) or len(keys) < len(criteria):
        return _("Two criteria have the same name.")
    if any(len(one["name"]) > MAX_NAME or len(one["help"]) > MAX_HELP for one in criteria):
        return _("A criterion's name has at most %(name)s characters, its help %(help)s.") % {
            "name": MAX_NAME,
            "help": MAX_HELP,
        }
    return ""


def _has_examples(project: Project) -> bool:
    return Example.objects.shown().filter(comparison__project=project).exists()
