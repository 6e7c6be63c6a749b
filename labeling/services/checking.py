"""Recount the whole record. Everything stored twice must agree, every promise must hold."""

from collections.abc import Callable, Iterator
from typing import Any

from django.db.models import Count, F, OuterRef, Q, QuerySet, Subquery
from django.db.models.functions import Coalesce

from labeling.chat import Message
from labeling.models import (
    Comparison,
    Judgment,
    Lease,
    Policy,
    PolicyState,
    Preference,
    Project,
    Prompt,
    Response,
    Slot,
    Split,
)
from labeling.models.prompts import prompt_digest, split_of, text_digest
from labeling.services.aggregating import preferences_of
from labeling.votes import BadTiers, check_tiers

CHUNK = 500


def breaches() -> Iterator[str]:
    """Each way in which the record breaks a promise, in words. Reads everything, in chunks."""
    for check in CHECKS:
        yield from check()


def _prompts() -> Iterator[str]:
    fields = ("pk", "messages", "digest", "split", "project_id", "continues")
    percents = dict(Project.objects.values_list("pk", "held_out_percent"))
    rows = Prompt.objects.values_list(*fields)
    for pk, messages, digest, split, project, continues in rows.iterator(CHUNK):
        if digest != prompt_digest(messages):
            yield f"prompt {pk}: its digest is not that of its messages"
        if continues is None and split != split_of(digest, percents[project]):
            yield f"prompt {pk}: it is on side {split}, which its digest does not say"


def _continuations() -> Iterator[str]:
    """Prompts that go on from a response are on the side of the prompt that it answered."""
    answered = ("continues__prompt__messages", "continues__text", "continues__prompt__split")
    rows = Prompt.objects.filter(continues__isnull=False)
    for pk, messages, split, begun, text, side in rows.values_list(
        "pk", "messages", "split", *answered
    ).iterator(CHUNK):
        if split != side:
            yield f"prompt {pk}: it is on side {split}, the prompt that it continues is not"
        if messages[:-1] != [*begun, Message(role="assistant", content=text)]:
            yield f"prompt {pk}: it does not go on from the response that it names"


def _responses() -> Iterator[str]:
    for pk, text, digest in Response.objects.values_list("pk", "text", "text_digest").iterator(
        CHUNK
    ):
        if digest != text_digest(text):
            yield f"response {pk}: its digest is not that of its text"


def _slots() -> Iterator[str]:
    strangers = Slot.objects.exclude(response__prompt=F("comparison__prompt"))
    for pk in strangers.values_list("comparison", flat=True).distinct():
        yield f"comparison {pk}: holds a response to another prompt"
    counted = Comparison.objects.annotate(
        slots_number=Count("slots"), texts=Count("slots__response__text_digest", distinct=True)
    )
    bad = counted.filter(Q(slots_number__lt=2) | ~Q(texts=F("slots_number")))
    for pk in bad.values_list("pk", flat=True):
        yield f"comparison {pk}: has fewer than two responses, or identical ones"


def _evaluations() -> Iterator[str]:
    """What compares two policies compares these, on prompts that no round learns from."""
    rows = Comparison.objects.filter(evaluation__isnull=False)
    own = Q(slots__response__policy=F("evaluation__policy"))
    other = Q(slots__response__policy=F("evaluation__against"))
    counted = rows.annotate(
        own=Count("slots", filter=own), other=Count("slots", filter=other), all=Count("slots")
    )
    held_out = Q(prompt__split=Split.HELD_OUT)
    strange = counted.exclude(held_out, own=1, other=1, all=2).order_by("pk")
    for pk in strange.values_list("pk", flat=True):
        yield f"comparison {pk}: does not compare its evaluation's policies on a held-out prompt"


def _overlaps() -> Iterator[str]:
    rows = _with_counts().filter(~Q(judged=F("counted")))
    for pk, judged, counted in rows.values_list("pk", "judged", "counted"):
        yield f"comparison {pk}: says {judged} judgments count, there are {counted}"
    rows = _with_counts().filter(overlap__lt=F("counted") + F("held"))
    for pk, counted, held, overlap in rows.values_list("pk", "counted", "held", "overlap"):
        yield (
            f"comparison {pk}: {counted} judgments and {held} live leases exceed its overlap "
            f"of {overlap}"
        )
    full = Q(judged__gte=F("overlap"))
    waiting = Q(state__in=(Comparison.State.OPEN, Comparison.State.HELD))
    wrong = waiting & full | Q(state=Comparison.State.JUDGED) & ~full
    for pk in Comparison.objects.filter(wrong).values_list("pk", flat=True):
        yield f"comparison {pk}: its state does not follow from its judgments"


def _with_counts() -> QuerySet[Any]:
    return Comparison.objects.annotate(
        counted=_count_of(Judgment.objects.counted()), held=_count_of(Lease.objects.live())
    )


def _count_of(rows: QuerySet[Any]) -> Coalesce:
    """How many of `rows` belong to the comparison of the outer query."""
    ours = rows.filter(comparison=OuterRef("pk")).order_by().values("comparison")
    return Coalesce(Subquery(ours.annotate(number=Count("pk")).values("number")), 0)


def _judgments() -> Iterator[str]:
    rows = Judgment.objects.annotate(slots_number=Count("comparison__slots"))
    facts = rows.values_list("pk", "tiers", "shown_order", "slots_number")
    for pk, tiers, shown, slots in facts.iterator(CHUNK):
        try:
            check_tiers(tiers, slots)
        except BadTiers as error:
            yield f"judgment {pk}: {error}"
        if sorted(shown) != list(range(slots)):
            yield f"judgment {pk}: its shown order does not name every slot once"


def _rewrites() -> Iterator[str]:
    """A rewrite stands and falls with the verdict it came with, and others never judge it."""
    current = Judgment.objects.current()
    stranded = current.filter(rewrite_of__superseded_at__isnull=False)
    for pk in stranded.values_list("pk", flat=True):
        yield f"judgment {pk}: the verdict its rewrite came with was taken back"
    rewrites = Comparison.objects.filter(purpose=Comparison.Purpose.REWRITE)
    for pk in rewrites.filter(state=Comparison.State.OPEN).values_list("pk", flat=True):
        yield f"comparison {pk}: a rewrite is open to others"
    wrote = Q(comparison__slots__response__annotator=F("annotator"))
    own = current.filter(wrote).exclude(comparison__purpose=Comparison.Purpose.REWRITE)
    for pk in own.values_list("pk", flat=True):
        yield f"judgment {pk}: its annotator wrote one of the responses"


def _examples() -> Iterator[str]:
    """Examples are never put before people as work, and have an answer."""
    practice = Comparison.objects.filter(purpose=Comparison.Purpose.PRACTICE)
    for pk in practice.exclude(state=Comparison.State.RETIRED).values_list("pk", flat=True):
        yield f"comparison {pk}: an example is in the queue"
    for pk in practice.filter(gold_tiers__isnull=True).values_list("pk", flat=True):
        yield f"comparison {pk}: an example without an answer"


def _preferences() -> Iterator[str]:
    """Preference rows against those that the judgments give."""
    last = 0
    while True:
        chunk = list(Comparison.objects.filter(pk__gt=last).order_by("pk")[:CHUNK])
        if not chunk:
            return
        last = chunk[-1].pk
        stored = {_key(row): _facts(row) for row in Preference.objects.filter(comparison__in=chunk)}
        expected = {_key(row): _facts(row) for row in preferences_of(chunk)}
        yield from _compare(stored, expected)


def _key(row: Preference) -> tuple[int, int, int]:
    return (row.comparison_id, row.low_slot, row.high_slot)


def _facts(row: Preference) -> tuple[object, ...]:
    votes = (row.votes_for, row.votes_against, row.votes_tied)
    return (row.chosen_id, row.rejected_id, *votes, round(row.probability, 12))


def _compare(
    stored: dict[tuple[int, int, int], tuple[object, ...]],
    expected: dict[tuple[int, int, int], tuple[object, ...]],
) -> Iterator[str]:
    for key in sorted(stored.keys() | expected.keys()):
        if stored.get(key) != expected.get(key):
            comparison, low, high = key
            yield (
                f"comparison {comparison}: the preference between slots {low} and {high} "
                "is not what its judgments say"
            )


def _policies() -> Iterator[str]:
    for project in Project.objects.annotate(number=Count("policies")).filter(number__gt=0):
        serving = Policy.objects.filter(project=project, state=PolicyState.SERVING).count()
        if serving != 1:
            yield f"project {project.slug}: {serving} policies serve, not one"


CHECKS: tuple[Callable[[], Iterator[str]], ...] = (
    _prompts,
    _continuations,
    _responses,
    _slots,
    _evaluations,
    _overlaps,
    _judgments,
    _rewrites,
    _examples,
    _preferences,
    _policies,
)
