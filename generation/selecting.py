"""Which prompts a batch asks."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from django.db.models import (
    Count,
    Exists,
    OuterRef,
    QuerySet,
    Subquery,
)
from django.db.models.functions import Coalesce
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from labeling.models import Policy, Project, Prompt, Response, Split
from labeling.searching import Says

MOST_IDS = 5000
LARGEST_ID = 2**63 - 1
LONGEST_SEARCH = 200
MOST_PROMPTS = 1_000_000
SIDES = {
    Split.TRAIN: gettext_lazy("of the train side"),
    Split.HELD_OUT: gettext_lazy("of the held out side"),
}


@dataclass(frozen=True, kw_only=True)
class Selection:
    """A filter over a project's prompts; every part narrows it further.

    `ids` and `fewer_than` take the place of the default, "not answered by the policy that leads
    the batch". `fewer_than` counts a prompt's responses by the batch's own policies: what others
    wrote, or people brought, is not theirs to be compared with. `limit` keeps the first by id.
    """

    split: str = ""
    ids: tuple[int, ...] = ()
    search: str = ""
    fewer_than: int | None = None
    limit: int | None = None

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Selection":
        """From `Batch.selection`."""
        return cls(**{**stored, "ids": tuple(stored.get("ids", ()))})

    def as_json(self) -> dict[str, Any]:
        """For `Batch.selection`."""
        return {**asdict(self), "ids": list(self.ids)}

    def words(self, leading: str) -> str:
        """Which prompts, for people, as what follows the word prompts."""
        if self.ids:
            named = _("named one by one (%(number)s)") % {"number": len(self.ids)}
        elif self.fewer_than is None:
            named = _("not answered by %(policy)s") % {"policy": leading}
        else:
            named = ""
        parts = [
            named,
            self._fewer_words(),
            str(SIDES[Split(self.split)]) if self.split else "",
            _("that say “%(text)s”") % {"text": self.search} if self.search else "",
            _("the first %(number)s of them") % {"number": self.limit} if self.limit else "",
        ]
        return ", ".join(filter(None, parts))

    def _fewer_words(self) -> str:
        if not self.fewer_than:
            return ""
        words = ngettext(
            "with fewer than %(number)s response",
            "with fewer than %(number)s responses",
            self.fewer_than,
        )
        return words % {"number": self.fewer_than}

    def problems(self) -> dict[str, str]:
        """What cannot be, by part, in words."""
        found = {}
        if self.split not in ("", *Split.values):
            found["split"] = _("%(name)s is no split.") % {"name": self.split}
        if len(self.ids) > MOST_IDS:
            found["ids"] = _("Name at most %(number)s prompts.") % {"number": MOST_IDS}
        elif not all(1 <= pk <= LARGEST_ID for pk in self.ids):
            found["ids"] = _("Prompts are numbered from 1 on.")
        if len(self.search) > LONGEST_SEARCH:
            found["search"] = _("At most %(number)s characters.") % {"number": LONGEST_SEARCH}
        for part in ("fewer_than", "limit"):
            value = getattr(self, part)
            if value is not None and not 1 <= value <= MOST_PROMPTS:
                found[part] = _("A whole number from 1 to %(most)s.") % {"most": MOST_PROMPTS}
        return found


NOT_ANSWERED = Selection()


def select_prompts(
    project: Project, selection: Selection, *, leading: Policy, policies: Collection[Policy]
) -> QuerySet[Prompt]:
    """The prompts that a batch of these policies asks, in the order of their ids."""
    found = project.prompts.all()
    if selection.ids:
        found = found.filter(pk__in=selection.ids)
    if selection.fewer_than is not None:
        found = found.annotate(written=_written(policies)).filter(written__lt=selection.fewer_than)
    if not selection.ids and selection.fewer_than is None:
        answered = Response.objects.filter(prompt=OuterRef("pk"), policy=leading)
        found = found.filter(~Exists(answered))
    if selection.split:
        found = found.filter(split=selection.split)
    if selection.search:
        found = found.filter(Says("messages", selection.search))
    return found.order_by("id")[: selection.limit]


def missing_ids(project: Project, selection: Selection) -> list[int]:
    """Ids of the selection that no prompt of the project has."""
    known = project.prompts.filter(pk__in=selection.ids).values_list("pk", flat=True)
    return sorted(set(selection.ids) - set(known))


def least_answered(policy: Policy, *, number: int, without: Collection[int]) -> list[int]:
    """Ids of the prompts with the fewest responses by a policy, unanswered ones first."""
    ordered = (
        policy.project.prompts.annotate(written=_written([policy]))
        .order_by("written", "id")
        .values_list("pk", flat=True)
    )
    found: list[int] = []
    for pk in ordered.iterator():
        if len(found) == number:
            break
        if pk not in without:
            found.append(pk)
    return found


def _written(policies: Collection[Policy]) -> Coalesce:
    """How many responses to a prompt these policies have written."""
    counted = (
        Response.objects.filter(prompt=OuterRef("pk"), policy__in=policies)
        .order_by()
        .values("prompt")
        .annotate(number=Count("pk"))
        .values("number")
    )
    return Coalesce(Subquery(counted), 0)
