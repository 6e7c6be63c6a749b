"""Freeze the preferences that a round trains on. The only writer of Snapshot rows."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.utils import timezone

from jobs.run_dir import sha256_file, write_jsonl
from labeling.models import Project, Split
from labeling.services.exporting import ranked_groups
from training.filters import Filters, Sieve
from training.models import Snapshot


def freeze(*, project: Project, path: Path, filters: Filters | None = None) -> Snapshot:
    """Write the ranked groups that the filters leave to `path`; record what is in and what not.

    The snapshot is of when it was begun: what is judged while a large one is written may be in the
    file, and counts as new once more, never as learned without being in it.
    """
    begun = timezone.now()
    filters = filters or Filters()
    sieve = Sieve(filters)
    counts: Counter[str] = Counter()
    write_jsonl(path, counted(sieve.rows(ranked_groups(project)), counts))
    return Snapshot.objects.create(
        project=project,
        path=str(path),
        digest=sha256_file(path),
        groups=counts["groups"],
        pairs=counts[Split.TRAIN],
        held_out_pairs=counts[Split.HELD_OUT],
        filters=filters.as_json(),
        created_at=begun,
        left_out={"tied": counts["tied"]} | sieve.left_out,
    )


def counted(rows: Iterator[dict[str, Any]], counts: Counter[str]) -> Iterator[dict[str, Any]]:
    """The rows; meanwhile `counts` takes in their groups and, by split or as tied, their pairs."""
    for row in rows:
        counts["groups"] += 1
        for pair in row["pairs"]:
            voted = pair["votes_for"] + pair["votes_against"] > 0
            counts[row["split"] if voted else "tied"] += 1
        yield row
