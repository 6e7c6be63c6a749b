"""The same rows for both trainers: our preferences file, TRL's texts and the ids they stand for."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from jobs.run_dir import write_jsonl
from tests.benchmarks.environment import ROOT
from tests.benchmarks.models import word_tokenizer
from tests.benchmarks.rows import Ranking, group_row
from training.trainer.batches import Batch, epoch_batches
from training.trainer.config import Spec, load_spec
from training.trainer.data import Group, prepare
from training.trainer.model import load_tokenizer
from training.trainer.run_dir import RoundFiles

Batches = list[list[Group]]


def write_rows(
    folder: Path, name: str, rankings: Sequence[Ranking], settings: Mapping[str, Any]
) -> Batches:
    """Both sides' files of these rankings, and the batches in which both train on them.

    The rankings' own order is the order of training: ours shuffles by a seed, so its file holds
    them in the order that the shuffle undoes. TRL's rows are what ours makes of that file.
    """
    preferences = folder / f"{name}.preferences.jsonl"
    run_dir = folder / f"{name}.order"
    rows = [group_row(f"{at:04}", ranking) for at, ranking in enumerate(rankings)]
    write_jsonl(preferences, rows)
    make_run_dir(run_dir, folder / "model", preferences, settings)
    spec = load_spec(RoundFiles(run_dir).spec)
    dataset = prepare(load_tokenizer(spec.policy), rows, spec)
    if len(dataset.train) < len(rankings) or dataset.report["dropped"]:
        raise SystemExit(f"rows were left out, so batches would differ: {dataset.report}")
    shuffled = list(chain(*(b.groups for b in first_epoch(dataset.train, spec))))
    rows_of = {group.id: rows[at] for group, at in zip(shuffled, range(len(rows)), strict=True)}
    rows = [rows_of[group.id] for group in dataset.train]
    write_jsonl(preferences, rows)
    groups = prepare(load_tokenizer(spec.policy), rows, spec).train
    batches = [list(batch.groups) for batch in first_epoch(groups, spec)]
    write_jsonl(folder / f"{name}.trl.jsonl", trl_rows(list(chain(*batches))))
    return batches


def first_epoch(groups: Sequence[Group], spec: Spec) -> list[Batch]:
    """The batches that the trainer takes its steps on."""
    return epoch_batches(groups, size=spec.batch_groups, seed=spec.seed, epoch=0)


def make_run_dir(
    folder: Path, policy: Path, preferences: Path, settings: Mapping[str, Any]
) -> None:
    """As `python -m training.trainer init` makes it."""
    given = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    command = [sys.executable, "-m", "training.trainer", "init", str(folder)]
    command += ["--policy", str(policy), "--preferences", str(preferences), "--set", *given]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if made.returncode:
        raise SystemExit(f"{made.stderr}\n{folder} could not be made (the message is above)")


def trl_rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Every pair of the groups, in order: its texts, and the token ids they stand for.

    TRL encodes `prompt`, and `prompt` with each response and the end token that it adds itself.
    """
    tokenizer = word_tokenizer()

    def side(name: str, ids: tuple[int, ...]) -> dict[str, Any]:
        return {name: " " + tokenizer.decode(ids[:-1]), f"{name}_ids": ids}

    return [
        {"prompt": tokenizer.decode(group.prompt), "prompt_ids": group.prompt}
        | side("chosen", group.responses[pair.chosen])
        | side("rejected", group.responses[pair.rejected])
        for group in groups
        for pair in group.pairs
    ]


def lengths(batch: Sequence[Group]) -> list[tuple[int, list[int]]]:
    """Tokens of each prompt and of each of its responses."""
    return [(len(group.prompt), [len(ids) for ids in group.responses]) for group in batch]
