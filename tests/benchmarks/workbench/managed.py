"""A project after a thousand rounds, made straight in the tables.

`python -m tests.benchmarks.workbench.managed FOLDER COMPARISONS ROUNDS` prints the project's slug.
Every comparison has five responses, so ten preferences. A process of its own: Django has one
database per process.
"""

import hashlib
import random
import sys
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from tests.benchmarks.workbench.record import CHUNK, WORDS, insert, settle

# isort: split
from django.core.management import call_command
from django.db import transaction
from django.utils import timezone

from generation.models import Batch, BatchPolicy, BatchState, Plan
from jobs.run_dir import append_event
from labeling.models import (
    Comparison,
    Delivery,
    Evaluation,
    Event,
    Example,
    Flag,
    Guidelines,
    Invitation,
    Judgment,
    Membership,
    Policy,
    PolicyEvent,
    PolicyState,
    Preference,
    Project,
    Prompt,
    QueueChange,
    Response,
    Role,
    Skip,
    Slot,
    Split,
    Subscription,
    User,
)
from labeling.models.comparisons import SHUFFLE_RANGE
from labeling.votes import count_votes
from tests.training.rounds import REPORT, RESULTS, log_samples, log_steps
from training.models import Round, RoundSchedule, RoundState, Snapshot

SLUG = "managed"
SIZE = 5  # responses of a comparison
PER_PROMPT = 4  # comparisons of a prompt
DAYS = 90  # the record's age
ANNOTATORS = 25
UNJUDGED = 20  # beside the judged comparisons, one in so many waits
EVALUATED = 25  # and one in so many is of two policies' responses, for an evaluation
EVALUATIONS = 40
STEPS = 2000  # of the round whose page is opened
PAIRINGS = ("random", "random", "different", "smallest_margin")


class Record:
    """What all rows share: the project, its people and policies, texts, and the dice."""

    def __init__(self, comparisons: int, rounds: int) -> None:
        self.comparisons, self.rounds = comparisons, rounds
        self.pick = random.Random(0)
        self.now = timezone.now()
        self.project = Project.objects.create(
            slug=SLUG, name="Kitchen helper", overlap=2, comparison_size=SIZE
        )
        self.manager = self.member("manager", Role.MANAGER)
        self.member("consumer", Role.CONSUMER)
        for slug in ("second", "third"):
            beside = Project.objects.create(slug=slug, name=slug.capitalize())
            Membership.objects.create(user=self.manager, project=beside, role=Role.MANAGER)
        self.annotators = [
            self.member(f"annotator-{number}", Role.ANNOTATOR) for number in range(ANNOTATORS)
        ]
        self.sentences = [" ".join(self.pick.choices(WORDS, k=8)) + "." for _ in range(4000)]
        self.rankings = [self.ranking() for _ in range(400)]

    def member(self, name: str, role: Role) -> User:
        user = User.objects.create(username=name, password="!")
        Membership.objects.create(user=user, project=self.project, role=role)
        return user

    def ranking(self) -> list[list[int]]:
        """Tiers; two in one of them now and then."""
        order = self.pick.sample(range(SIZE), SIZE)
        if self.pick.random() < 0.3:
            at = self.pick.randrange(SIZE - 1)
            return (
                [[slot] for slot in order[:at]]
                + [sorted(order[at : at + 2])]
                + [[slot] for slot in order[at + 2 :]]
            )
        return [[slot] for slot in order]

    def at(self, share: float) -> datetime:
        """A moment of the record's days; 1 is almost now."""
        return self.now - timedelta(days=DAYS) * (1 - share) - timedelta(minutes=1)

    def text(self, sentences: int, mark: int) -> str:
        return f"{' '.join(self.pick.choices(self.sentences, k=sentences))} {mark}"


def fill(folder: Path, comparisons: int, rounds: int) -> str:
    """The project's slug."""
    call_command("migrate", verbosity=0)
    with transaction.atomic():
        record = Record(comparisons, rounds)
        _guidelines(record)
        _policies(record)
        _evaluations(record)
    for start in range(0, comparisons, CHUNK):
        with transaction.atomic():
            _judged(record, range(start, min(start + CHUNK, comparisons)))
    with transaction.atomic():
        _unjudged(record)
        _evaluated(record)
        _said(record)
        _rounds(record, folder)
        _batches(record)
        _notifications(record)
    settle(
        (Policy, PolicyEvent, Prompt, Response, Comparison, Slot, Judgment, Preference)
        + (Guidelines, Evaluation, Flag, Skip, Round, Snapshot, Batch, BatchPolicy)
        + (Subscription, Delivery, QueueChange, Invitation, Example)
    )
    return SLUG


def _guidelines(record: Record) -> None:
    versions = Guidelines.objects.bulk_create(
        Guidelines(
            project=record.project,
            number=number,
            text=record.text(80, number),
            author=record.manager,
        )
        for number in range(1, 51)
    )
    record.project.guidelines = versions[-1]
    record.project.save()


def _policies(record: Record) -> None:
    """A policy a round, each trained from the one before; the last but one serves."""
    serving = record.rounds - 1

    def states() -> Iterator[Policy]:
        for number in range(1, record.rounds + 1):
            at = record.at(number / record.rounds)
            yield Policy(
                pk=number,
                project=record.project,
                name=f"Round {number - 1}" if number > 1 else "Starter",
                model_path="/nowhere/model",
                adapter_path=f"/nowhere/{number}" if number > 1 else "",
                digest=f"{number:064x}",
                parent_id=number - 1 or None,
                state=PolicyState.SERVING
                if number == serving
                else PolicyState.CANDIDATE
                if number > serving
                else PolicyState.RETIRED,
                size_bytes=5_000_000,
                created_at=at,
            )

    insert(Policy, states())
    insert(
        PolicyEvent,
        (
            PolicyEvent(
                pk=2 * number + step,
                policy_id=number,
                replaced_id=(number - 1 or None) if kind == PolicyEvent.Kind.PROMOTED else None,
                kind=kind,
                actor=record.manager,
                at=record.at(number / record.rounds),
            )
            for number in range(1, serving + 1)
            for step, kind in enumerate((PolicyEvent.Kind.REGISTERED, PolicyEvent.Kind.PROMOTED))
        ),
    )


def _evaluations(record: Record) -> None:
    """Of the last policies, each against the one before it; the newest is being judged."""
    for number in range(EVALUATIONS):
        policy = record.rounds - EVALUATIONS + 1 + number
        live = number == EVALUATIONS - 1
        Evaluation.objects.create(
            pk=number + 1,
            project=record.project,
            policy_id=policy,
            against_id=policy - 1,
            state=Evaluation.State.JUDGING if live else Evaluation.State.ENDED,
            started_by=record.manager,
            ended_at=None if live else record.at(policy / record.rounds),
            passed_at=None if live or number % 3 == 0 else record.at(policy / record.rounds),
            result={} if live else {"rate": 0.5 + number % 7 / 20},
        )


def _judged(record: Record, numbers: range) -> None:
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


def _unjudged(record: Record) -> None:
    """The newest comparisons, of the serving policy, which nobody has judged yet."""
    first = record.comparisons + PER_PROMPT
    numbers = range(first, first + record.comparisons // UNJUDGED)
    insert(Prompt, _prompts(record, sorted({one // PER_PROMPT for one in numbers})))
    insert(Response, (row for one in numbers for row in _responses(record, one)))
    insert(Comparison, (_comparison(record, one) for one in numbers))
    insert(Slot, (row for one in numbers for row in _slots(one)))


def _evaluated(record: Record) -> None:
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


def _said(record: Record) -> None:
    """Flags, skips, changes of the queue, examples and invitations."""
    share = max(1, record.comparisons // 2000)
    reasons = list(Flag.Reason)
    insert(
        Flag,
        (
            Flag(
                pk=number + 1,
                comparison_id=number * share + 1,
                annotator=record.annotators[number * share % ANNOTATORS],
                judgment_id=2 * number * share + 1,
                reason=reasons[number % len(reasons)],
                note="See there.",
                at=record.at(number / 2000),
                resolved_at=record.now if number % 2 else None,
                resolved_by=record.manager if number % 2 else None,
            )
            for number in range(record.comparisons // share)
        ),
    )
    insert(
        Skip,
        (
            Skip(
                pk=number + 1,
                comparison_id=number + 1,
                annotator=record.annotators[(number + 5) % ANNOTATORS],
                at=record.at(number / record.comparisons),
            )
            for number in range(record.comparisons // 20)
        ),
    )
    QueueChange.objects.bulk_create(
        QueueChange(
            project=record.project,
            action=QueueChange.Action.PRIORITY,
            priority=number % 3,
            changed=number,
            actor=record.manager,
        )
        for number in range(200)
    )
    for number in range(5):
        Invitation.objects.create(
            project=record.project,
            role=Role.ANNOTATOR,
            digest=f"{number:064x}",
            invited_by=record.manager,
            expires_at=record.now + timedelta(days=7),
        )


def _rounds(record: Record, folder: Path) -> None:
    """All have ended; the newest has a run directory with what a trainer writes."""
    run_dir = folder / "runs" / "round"
    run_dir.mkdir(parents=True, exist_ok=True)
    append_event(run_dir, "data_report", **REPORT)
    log_steps(run_dir, STEPS, STEPS)
    texts = [("And now?", record.text(10, number)) for number in range(16)]
    for when in ("before", "after"):
        log_samples(run_dir, when, *texts)

    def rows() -> Iterator[Round]:
        for number in range(1, record.rounds + 1):
            failed = number % 9 == 0 and number < record.rounds - 5
            at = record.at(number / record.rounds)
            yield Round(
                pk=number,
                project=record.project,
                number=number,
                state=RoundState.FAILED if failed else RoundState.SUCCEEDED,
                start_id=max(1, number - 1),
                reference_id=1,
                options={"beta": 0.1, "learning_rate": 3e-4},
                snapshot_id=number,
                policy_id=number if not failed and number > 1 else None,
                results={} if failed else RESULTS,
                error="Out of memory." if failed else "",
                step=20,
                total_steps=20,
                run_dir=str(run_dir if number == record.rounds else "/nowhere"),
                started_by=record.manager,
                created_at=at,
                started_at=at,
                finished_at=at,
            )

    insert(
        Snapshot,
        (
            Snapshot(
                pk=number,
                project=record.project,
                path="/nowhere/preferences.jsonl",
                digest=f"{number:064x}",
                groups=record.comparisons * number // record.rounds,
                pairs=9 * record.comparisons * number // record.rounds,
                held_out_pairs=record.comparisons * number // record.rounds,
                created_at=record.at(number / record.rounds),
            )
            for number in range(1, record.rounds + 1)
        ),
    )
    insert(Round, rows())
    RoundSchedule.objects.create(project=record.project, every=5000, saved_by=record.manager)


def _batches(record: Record) -> None:
    insert(
        Batch,
        (
            Batch(
                pk=number,
                project=record.project,
                number=number,
                leading_id=number,
                state=BatchState.SUCCEEDED,
                done=100,
                total=100,
                taken=100,
                comparisons=100,
                run_dir="/nowhere",
                started_by=record.manager,
                created_at=record.at(number / record.rounds),
                started_at=record.at(number / record.rounds),
                finished_at=record.at(number / record.rounds),
            )
            for number in range(1, record.rounds + 1)
        ),
    )
    insert(
        BatchPolicy,
        (
            BatchPolicy(pk=number, batch_id=number, policy_id=number, weight=1)
            for number in range(1, record.rounds + 1)
        ),
    )
    Plan.objects.create(project=record.project, ready=500, saved_by=record.manager)


def _notifications(record: Record) -> None:
    address = Subscription.objects.create(
        project=record.project,
        channel=Subscription.Channel.WEBHOOK,
        target="https://example.org/hook",
        events=list(Event.values),
    )
    insert(
        Delivery,
        (
            Delivery(
                pk=number,
                subscription=address,
                key=uuid.uuid4(),
                event=Event.ROUND_FINISHED,
                payload={"round": number},
                state=Delivery.State.DELIVERED,
                created_at=record.at(0.5),
                tried_at=record.at(0.5),
            )
            for number in range(1, 5001)
        ),
    )


if __name__ == "__main__":
    print(fill(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
