"""What came of a managed project's comparisons: policies, rounds, and what managers did."""

import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from tests.benchmarks.workbench.record import insert

# isort: split

from generation.models import Batch, BatchPolicy, BatchState, Plan
from jobs.run_dir import append_event
from labeling.models import (
    Delivery,
    Evaluation,
    Event,
    Flag,
    Guidelines,
    Invitation,
    Policy,
    PolicyEvent,
    PolicyState,
    QueueChange,
    Role,
    Skip,
    Subscription,
)
from tests.benchmarks.workbench.managed_record import ANNOTATORS, EVALUATIONS, STEPS, Record
from tests.training.rounds import REPORT, RESULTS, log_samples, log_steps
from training.models import Round, RoundSchedule, RoundState, Snapshot


def guidelines(record: Record) -> None:
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


def policies(record: Record) -> None:
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


def evaluations(record: Record) -> None:
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


def said(record: Record) -> None:
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


def rounds(record: Record, folder: Path) -> None:
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


def batches(record: Record) -> None:
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


def notifications(record: Record) -> None:
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
