"""Freeze the preferences that a round trains on. The only writer of Snapshot rows."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs.run_dir import sha256_file, write_jsonl
from labeling.models import Project, Split
from labeling.services.exporting import ranked_groups
from training.models import Snapshot


def freeze(*, project: Project, path: Path) -> Snapshot:
    """Write the project's ranked groups to `path` and record what is in them."""
    counts: Counter[str] = Counter()
    write_jsonl(path, _counted(ranked_groups(project), counts))
    return Snapshot.objects.create(
        project=project,
        path=str(path),
        digest=sha256_file(path),
        groups=counts["groups"],
        pairs=counts[Split.TRAIN],
        held_out_pairs=counts[Split.HELD_OUT],
        left_out={"tied": counts["tied"]},
    )


def _counted(rows: Iterator[dict[str, Any]], counts: Counter[str]) -> Iterator[dict[str, Any]]:
    for row in rows:
        counts["groups"] += 1
        for pair in row["pairs"]:
            voted = pair["votes_for"] + pair["votes_against"] > 0
            counts[row["split"] if voted else "tied"] += 1
        yield row
