"""The comparisons of a managed project, with everything that hangs on one."""

import hashlib
import uuid
from collections.abc import Iterator
from typing import Any

from tests.benchmarks.workbench.record import insert

# isort: split

from labeling.models import (
    Comparison,
    Judgment,
    Preference,
    Prompt,
    Response,
    Slot,
    Split,
)
from labeling.models.comparisons import SHUFFLE_RANGE
from labeling.votes import count_votes
from tests.benchmarks.workbench.managed_record import (
    ANNOTATORS,
    EVALUATED,
    EVALUATIONS,
    PAIRINGS,
    PER_PROMPT,
    SIZE,
    UNJUDGED,
    Record,
)


def judged(record: Record, numbers: range) -> None:
    """Comparisons with one or two judgments each; of ten, three want another."""
    insert(Prompt, _prompts(record, sorted({one // PER_PROMPT for one in numbers})))
    insert(Response, (row for one in numbers for row in _responses(record, one)))
    insert(Comparison, (_comparison(record, one) for one in numbers))
    insert(Slot, (row for one in numbers for row in _slots(one)))
    said = {one: record.pick.choices(record.rankings, k=1 + one % 2) for one in numbers}
    insert(Judgment, (row for one in numbers for row in _judgments(record, one, said[one])))
    insert(Preference, (row for one in numbers for row in _preferences(record, one, said[one])))


def _prompts(record: Record, numbers: list[int]) -> Iterator[Prompt]:
    for number in numbers:
        text = f"Question {number}: {record.text(2, number)}"
        yield Prompt(
            pk=number + 1,
            project=record.project,
            messages=[{"role": "user", "content": text}],
            digest=hashlib.sha256(text.encode()).hexdigest(),
            split=Split.HELD_OUT if number % 7 == 0 else Split.TRAIN,
            created_at=record.at(0),
        )


def _responses(record: Record, number: int) -> Iterator[Response]:
    """Of the policy that served at the time."""
    policy = 1 + number * (record.rounds - 1) // max(record.comparisons, number + 1)
    for side in range(SIZE):
        text = record.text(record.pick.randint(5, 20), SIZE * number + side)
        yield Response(
            pk=SIZE * number + side + 1,
            prompt_id=number // PER_PROMPT + 1,
            text=text,
            text_digest=hashlib.sha256(text.encode()).hexdigest(),
            policy_id=policy,
            created_at=record.at(number / record.comparisons),
        )


def _comparison(record: Record, number: int) -> Comparison:
    judged = 1 + number % 2 if number < record.comparisons else 0
    finished = judged and number % 10 < 7
    return Comparison(
        pk=number + 1,
        project=record.project,
        prompt_id=number // PER_PROMPT + 1,
        pairing=record.pick.choice(PAIRINGS),
        overlap=judged if finished else judged + 1,
        judged=judged,
        priority=number % 3,
        state=Comparison.State.JUDGED if finished else Comparison.State.OPEN,
        shuffle_key=record.pick.randrange(SHUFFLE_RANGE),
        created_at=record.at(min(1, number / record.comparisons)),
    )


def _slots(number: int) -> Iterator[Slot]:
    for side in range(SIZE):
        pk = SIZE * number + side + 1
        yield Slot(pk=pk, comparison_id=number + 1, index=side, response_id=pk)


def _judgments(record: Record, number: int, said: list[list[list[int]]]) -> Iterator[Judgment]:
    for place, tiers in enumerate(said):
        yield Judgment(
            pk=2 * number + place + 1,
            comparison_id=number + 1,
            annotator=record.annotators[(number + place) % ANNOTATORS],
            tiers=tiers,
            rationale="Kinder." if number % 4 == 0 else "",
            guidelines_id=1 + number * 50 // record.comparisons,
            shown_order=list(range(SIZE)),
            active_ms=3000 + number % 9000,
            key=uuid.uuid4().hex,
            created_at=record.at(number / record.comparisons),
        )


def _preferences(record: Record, number: int, said: list[list[list[int]]]) -> Iterator[Preference]:
    votes = count_votes(said, SIZE)
    for place, ((low, high), one) in enumerate(votes.items()):
        sides = (low, high) if one.low_leads else (high, low)
        yield Preference(
            pk=len(votes) * number + place + 1,
            project=record.project,
            comparison_id=number + 1,
            low_slot=low,
            high_slot=high,
            chosen_id=SIZE * number + sides[0] + 1,
            rejected_id=SIZE * number + sides[1] + 1,
            votes_for=max(one.low, one.high),
            votes_against=min(one.low, one.high),
            votes_tied=one.tied,
            probability=one.probability,
            updated_at=record.at(number / record.comparisons),
        )


def unjudged(record: Record) -> None:
    """The newest comparisons, of the serving policy, which nobody has judged yet."""
    first = record.comparisons + PER_PROMPT
    numbers = range(first, first + record.comparisons // UNJUDGED)
    insert(Prompt, _prompts(record, sorted({one // PER_PROMPT for one in numbers})))
    insert(Response, (row for one in numbers for row in _responses(record, one)))
    insert(Comparison, (_comparison(record, one) for one in numbers))
    insert(Slot, (row for one in numbers for row in _slots(one)))


def evaluated(record: Record) -> None:
    """Two policies' responses to held-out prompts; most are judged, some of the newest wait."""
    held_out = list(
        Prompt.objects.filter(split=Split.HELD_OUT).order_by("pk").values_list("pk", flat=True)
    )
    latest = [
        model.objects.order_by("-pk").values_list("pk", flat=True)[0]
        for model in (Response, Comparison, Slot, Judgment, Preference)
    ]
    response, comparison, slot, judgment, preference = latest
    rows: dict[Any, list[Any]] = {
        model: [] for model in (Response, Comparison, Slot, Judgment, Preference)
    }
    for number in range(record.comparisons // EVALUATED):
        evaluation = 1 + number % EVALUATIONS
        policy = record.rounds - EVALUATIONS + evaluation
        waits = evaluation == EVALUATIONS and number % 2
        share = policy / record.rounds
        comparison += 1
        rows[Comparison].append(
            Comparison(
                pk=comparison,
                project=record.project,
                prompt_id=held_out[number % len(held_out)],
                purpose=Comparison.Purpose.EVALUATION,
                evaluation_id=evaluation,
                overlap=1,
                judged=0 if waits else 1,
                state=Comparison.State.OPEN if waits else Comparison.State.JUDGED,
                shuffle_key=record.pick.randrange(SHUFFLE_RANGE),
                created_at=record.at(share),
            )
        )
        for side, writer in enumerate((policy, policy - 1)):
            response, slot = response + 1, slot + 1
            text = record.text(record.pick.randint(5, 20), response)
            rows[Response].append(
                Response(
                    pk=response,
                    prompt_id=held_out[number % len(held_out)],
                    text=text,
                    text_digest=hashlib.sha256(text.encode()).hexdigest(),
                    policy_id=writer,
                    created_at=record.at(share),
                )
            )
            rows[Slot].append(
                Slot(pk=slot, comparison_id=comparison, index=side, response_id=response)
            )
        if waits:
            continue
        judgment, preference = judgment + 1, preference + 1
        better = record.pick.random() < 0.55
        tiers = [[0], [1]] if better else [[1], [0]]
        rows[Judgment].append(
            Judgment(
                pk=judgment,
                comparison_id=comparison,
                annotator=record.annotators[number % ANNOTATORS],
                tiers=tiers,
                shown_order=[0, 1],
                active_ms=5000,
                key=uuid.uuid4().hex,
                created_at=record.at(share),
            )
        )
        rows[Preference].append(
            Preference(
                pk=preference,
                project=record.project,
                comparison_id=comparison,
                low_slot=0,
                high_slot=1,
                chosen_id=response - (1 if better else 0),
                rejected_id=response - (0 if better else 1),
                votes_for=1,
                votes_against=0,
                votes_tied=0,
                probability=0.75,
                updated_at=record.at(share),
            )
        )
    for model, made in rows.items():
        insert(model, made)
