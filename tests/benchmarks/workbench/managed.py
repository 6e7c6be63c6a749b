"""A project after a thousand rounds, made straight in the tables.

`python -m tests.benchmarks.workbench.managed FOLDER COMPARISONS ROUNDS` prints the project's slug.
Every comparison has five responses, so ten preferences. A process of its own: Django has one
database per process.
"""

import sys
from pathlib import Path

from tests.benchmarks.workbench.record import CHUNK, settle

# isort: split
from django.core.management import call_command
from django.db import transaction

from generation.models import Batch, BatchPolicy
from labeling.models import (
    Comparison,
    Delivery,
    Evaluation,
    Example,
    Flag,
    Guidelines,
    Invitation,
    Judgment,
    Policy,
    PolicyEvent,
    Preference,
    Prompt,
    QueueChange,
    Response,
    Skip,
    Slot,
    Subscription,
)
from tests.benchmarks.workbench.managed_comparisons import evaluated, judged, unjudged
from tests.benchmarks.workbench.managed_history import (
    batches,
    evaluations,
    guidelines,
    notifications,
    policies,
    said,
)
from tests.benchmarks.workbench.managed_history import rounds as write_rounds
from tests.benchmarks.workbench.managed_record import (
    SLUG,
    Record,
)
from training.models import Round, Snapshot


def fill(folder: Path, comparisons: int, rounds: int) -> str:
    """The project's slug."""
    call_command("migrate", verbosity=0)
    with transaction.atomic():
        record = Record(comparisons, rounds)
        guidelines(record)
        policies(record)
        evaluations(record)
    for start in range(0, comparisons, CHUNK):
        with transaction.atomic():
            judged(record, range(start, min(start + CHUNK, comparisons)))
    with transaction.atomic():
        unjudged(record)
        evaluated(record)
        said(record)
        write_rounds(record, folder)
        batches(record)
        notifications(record)
    settle(
        (Policy, PolicyEvent, Prompt, Response, Comparison, Slot, Judgment, Preference)
        + (Guidelines, Evaluation, Flag, Skip, Round, Snapshot, Batch, BatchPolicy)
        + (Subscription, Delivery, QueueChange, Invitation, Example)
    )
    return SLUG


if __name__ == "__main__":
    print(fill(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
