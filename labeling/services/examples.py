"""Examples to read and to practise on, and what people answer.

The only writer of examples, of the comparisons behind them, of practice answers and of when
somebody had practised. These comparisons are never in a queue and give no preferences.
"""

from dataclasses import dataclass

from django.db import transaction
from django.db.models import Count, Exists, Max, Min, OuterRef, Q, QuerySet
from django.utils import timezone
from django.utils.translation import gettext as _

from labeling.models import (
    Comparison,
    Example,
    Judgment,
    Membership,
    PracticeAnswer,
    Project,
    Role,
    Slot,
    User,
)
from labeling.services.comparing import NewComparison, create_comparisons
from labeling.services.verdicts import Verdict
from labeling.votes import Tiers
from labeling.wording import placed_tiers

MAX_EXPLANATION = 5000


class CannotAdd(Exception):
    """This verdict makes no example, and why, in words for the page."""


class NotShown(Exception):
    """The example was taken away meanwhile."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One way through the examples: each is answered once, and the first answer stands.

    It began after the answer `since` (an id); the first run after 0.
    """

    since: int
    examples: list[Example]
    answers: dict[int, PracticeAnswer]  # by example; of those that are shown

    @property
    def next(self) -> Example | None:
        """The first example without an answer."""
        return next((one for one in self.examples if one.pk not in self.answers), None)

    @property
    def right(self) -> set[int]:
        """The examples, by id, that were answered right."""
        return {example for example, answer in self.answers.items() if answer.right}

    @property
    def last(self) -> int:
        """The id of the last answer: after it another run begins."""
        return max((answer.pk for answer in self.answers.values()), default=self.since)


@transaction.atomic
def add_example(*, judgment: Judgment, explanation: str, author: User) -> Example:
    """Make an example of one's own verdict: the same responses, with the verdict as the answer.

    The comparison that was judged stays as it is: the example is a copy of it, with its slots in
    the order in which the author saw them. CannotAdd, with nothing written, where the verdict is
    not the author's present one, where nothing explains it, or where the same responses are an
    example already.
    """
    comparison = judgment.comparison
    Project.objects.select_for_update(no_key=True).get(pk=comparison.project_id)
    check_addable(judgment=judgment, author=author)
    if not explanation.strip():
        raise CannotAdd(_("Explain the verdict: the reasons are what people learn from."))
    slots = list(comparison.slots.select_related("response").order_by("index"))
    responses = [slots[index].response for index in judgment.shown_order]
    copy = create_comparisons(
        project=comparison.project,
        wanted=[NewComparison(responses=responses, purpose=Comparison.Purpose.PRACTICE)],
        overlap=1,
        retired=True,
    )[0]
    copy.gold_tiers = placed_tiers(judgment)
    copy.save(update_fields=["gold_tiers"])
    here = Example.objects.filter(comparison__project=comparison.project)
    last = here.aggregate(last=Max("position"))["last"] or 0
    return Example.objects.create(
        comparison=copy, explanation=explanation.strip(), position=last + 1, author=author
    )


def check_addable(*, judgment: Judgment, author: User) -> None:
    """CannotAdd where this verdict makes no example, whatever explains it."""
    if judgment.annotator_id != author.pk or judgment.superseded_at is not None:
        raise CannotAdd(_("This is not your verdict any more: make an example of a present one."))
    if judgment.comparison.state in (Comparison.State.OPEN, Comparison.State.HELD):
        raise CannotAdd(_("Others are still asked about this comparison: wait until it is judged."))
    responses = set(judgment.comparison.slots.values_list("response", flat=True))
    if _is_shown(judgment.comparison.project, responses):
        raise CannotAdd(_("These answers are an example already; remove it first to explain anew."))


@transaction.atomic
def remove_example(*, example: Example) -> None:
    """Show it no more. What people answered stays; once more does nothing."""
    Example.objects.shown().filter(pk=example.pk).update(removed_at=timezone.now())


def shown_examples(project: Project) -> QuerySet[Example]:
    """The project's examples in their order, with prompts."""
    return (
        Example.objects.shown()
        .filter(comparison__project=project)
        .select_related("comparison__prompt")
    )


def must_practise(project: Project) -> bool:
    """Whether this member (as `project_for` found them) has examples to go through first.

    One query at most; none where the project does not want it or the member has practised.
    """
    membership: Membership = project.membership  # type: ignore[attr-defined]
    if not project.practice or membership.practised_at or membership.role != Role.ANNOTATOR:
        return False
    return _unanswered(project.pk, membership.user_id).exists()


def practice_run(*, project: Project, annotator: User, since: int = 0) -> Run:
    """Where the annotator is on the way through the examples that began after `since`."""
    answers: dict[int, PracticeAnswer] = {}
    for answer in _answers(project, annotator, since).filter(example__removed_at=None):
        answers.setdefault(answer.example_id, answer)
    return Run(since=since, examples=list(shown_examples(project)), answers=answers)


@transaction.atomic
def answer_example(
    *, example: Example, annotator: User, verdict: Verdict, since: int = 0
) -> PracticeAnswer:
    """Write what an annotator says of an example, and whether that is right.

    An example that was answered in this run already keeps that answer. With the last of all
    examples the annotator has practised, once and for all. NotShown or BadTiers otherwise.
    """
    project = example.comparison.project
    membership = Membership.objects.select_for_update().get(user=annotator, project=project)
    earlier = _answers(project, annotator, since).filter(example=example).first()
    if earlier is not None:
        return earlier
    if not Example.objects.shown().filter(pk=example.pk).exists():
        raise NotShown(_("This example was taken away meanwhile."))
    tiers = verdict.whole(example.comparison.slots.count()).tiers
    right = is_right(tiers, example.comparison.gold_tiers or [])
    answer = PracticeAnswer.objects.create(
        example=example, annotator=annotator, tiers=tiers, right=right
    )
    if membership.practised_at is None and not _unanswered(project.pk, annotator.pk).exists():
        membership.practised_at = timezone.now()
        membership.save(update_fields=["practised_at"])
    return answer


def is_right(tiers: Tiers, gold: Tiers) -> bool:
    """Whether exactly the responses that are best by the known answer are on top.

    For a pair: the same winner, or a tie where it is one; how much better is not asked. Of three
    or more, the order below the top does not count: it is told, but people rightly differ there.
    """
    return set(tiers[0]) == set(gold[0])


def practice_scores(project: Project) -> dict[int, tuple[int, int]]:
    """By annotator's id: how many of the examples shown now they got right at first, of how many.

    Later runs do not count: they tell what somebody remembers.
    """
    here = PracticeAnswer.objects.filter(
        example__comparison__project=project, example__removed_at__isnull=True
    )
    first = here.values("annotator", "example").annotate(first=Min("pk")).values("first")
    scored = here.filter(pk__in=first).values_list("annotator")
    counted = scored.annotate(agreed=Count("pk", filter=Q(right=True)), answered=Count("pk"))
    return {annotator: (agreed, answered) for annotator, agreed, answered in counted}


def _answers(project: Project, annotator: User, since: int) -> QuerySet[PracticeAnswer]:
    return PracticeAnswer.objects.filter(
        example__comparison__project=project, annotator=annotator, pk__gt=since
    ).order_by("pk")


def _unanswered(project: int, annotator: int) -> QuerySet[Example]:
    answered = PracticeAnswer.objects.filter(example=OuterRef("pk"), annotator=annotator)
    return Example.objects.shown().filter(~Exists(answered), comparison__project=project)


def _is_shown(project: Project, responses: set[int]) -> bool:
    """Whether exactly these responses are an example that is shown."""
    candidates: dict[int, set[int]] = {}
    slots = Slot.objects.filter(
        comparison__in=Example.objects.shown()
        .filter(comparison__project=project, comparison__slots__response__in=responses)
        .order_by()
        .values("comparison")
    )
    for comparison, response in slots.values_list("comparison", "response"):
        candidates.setdefault(comparison, set()).add(response)
    return responses in candidates.values()
