"""`manage.py check_record`: recount everything; exit 1 on any breach."""

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from generation.models import LIVE_BATCH_STATES, Batch
from jobs.models import LIVE_STATES, Job
from jobs.run_dir import sha256_file
from labeling.services.checking import breaches
from training.models import LIVE_ROUND_STATES, Round, RoundState


class Command(BaseCommand):
    """Looks, and changes nothing."""

    help = "Recount the record: preferences, counts, digests, leases, jobs, finished rounds."

    def handle(self, *args: Any, **options: Any) -> None:
        """Print each breach; CommandError (exit 1) where there is one."""
        found = 0
        for breach in (*breaches(), *_round_breaches(), *_job_breaches()):
            self.stdout.write(breach)
            found += 1
        if found:
            raise CommandError(f"{found} breaches. Nothing was changed.")
        self.stdout.write("The record is whole: no breach found.")


def _round_breaches() -> list[str]:
    """Snapshots and policies of finished rounds against the digests that were recorded."""
    found = []
    rounds = Round.objects.filter(state=RoundState.SUCCEEDED).select_related("snapshot", "policy")
    for round_ in rounds:
        snapshot = round_.snapshot
        if snapshot is None or round_.policy is None:
            found.append(f"round {round_.pk}: it succeeded without a snapshot or a policy")
        elif not Path(snapshot.path).exists():
            found.append(f"round {round_.pk}: its snapshot {snapshot.path} is gone")
        elif sha256_file(Path(snapshot.path)) != snapshot.digest:
            found.append(f"round {round_.pk}: its snapshot is not what it was trained on")
    return found


def _job_breaches() -> list[str]:
    """Rounds and batches that wait for a job which has ended."""
    live = Job.objects.filter(state__in=LIVE_STATES).values("pk")
    rounds = Round.objects.filter(state__in=LIVE_ROUND_STATES).exclude(job_id__in=live)
    batches = Batch.objects.filter(state__in=LIVE_BATCH_STATES).exclude(job_id__in=live)
    return [f"round {one.pk}: it is {one.state}, but its job has ended" for one in rounds] + [
        f"batch {one.pk}: it is {one.state}, but its job has ended" for one in batches
    ]
