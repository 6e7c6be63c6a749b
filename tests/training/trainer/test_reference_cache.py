"""Trap 11: a cached reference logp is used for exactly what it was computed from."""

import sqlite3
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jobs.run_dir import read_json
from tests.training.trainer.builders import (
    as_policy,
    batch_of,
    events_of,
    make_model,
    metrics_of,
    ranked_row,
    weights_of,
    write_policy,
)
from training.trainer import reference as reference_module
from training.trainer import reference_cache
from training.trainer.__main__ import main
from training.trainer.batches import Branch
from training.trainer.reference_cache import LogpCache, recheck_share, scoring_identity

BRANCHES = [Branch((1, 2), (3, 4)), Branch((1, 2), (3, 5)), Branch((7,), (8, 9, 10))]
GROUPS = batch_of(BRANCHES).groups
LOGPS = torch.tensor([-1.25, -2.1, -300.0078125])
POLICY = as_policy(make_model("llama"))


def cache_at(
    path: Path, policy: Any = POLICY, digest: str = "weights", *, compiled: bool = False
) -> LogpCache:
    spec: Any = SimpleNamespace(compile=compiled)
    return LogpCache(str(path), scoring_identity(policy, spec, digest))


def test_values_come_back_bit_for_bit(tmp_path):
    cache = cache_at(tmp_path / "logps" / "project.sqlite3")
    assert cache.read(GROUPS) == {}
    cache.write(GROUPS, LOGPS)
    assert cache.read(GROUPS) == dict(enumerate(LOGPS.tolist()))
    cache.write(GROUPS, LOGPS)
    assert len(cache.read(GROUPS)) == 3


def test_trap_11_whatever_decides_a_logp_is_in_its_key(tmp_path, monkeypatch):
    path = tmp_path / "logps.sqlite3"
    cache_at(path).write(GROUPS, LOGPS)
    others = [
        cache_at(path, digest="other weights"),
        cache_at(path, replace(POLICY, dtype="bfloat16")),
        cache_at(path, replace(POLICY, padded_because="reasons")),
        cache_at(path, replace(POLICY, device=torch.device("cuda"))),
        cache_at(path, replace(POLICY, model=make_model("llama").bfloat16())),
        cache_at(path, compiled=True),
    ]
    with monkeypatch.context() as patch:
        versions = {"torch": "3.0"}
        patch.setattr(reference_cache, "library_versions", lambda: versions)
        others.append(cache_at(path))
    with monkeypatch.context() as patch:
        changed = tmp_path / "changed.py"
        changed.write_text("# another line of scoring code")
        patch.setattr(reference_cache.logps, "__file__", str(changed))
        others.append(cache_at(path))
    assert [other.read(GROUPS) for other in others] == [{}] * len(others)
    assert len(cache_at(path).read(GROUPS)) == 3


@pytest.mark.parametrize(
    "branch", [Branch((1, 2), (3, 6)), Branch((1, 9), (3, 4)), Branch((1, 2, 3), (4,))]
)
def test_trap_11_another_token_or_another_cut_is_a_miss(tmp_path, branch):
    cache = cache_at(tmp_path / "logps.sqlite3")
    cache.write(GROUPS, LOGPS)
    assert cache.read(batch_of([branch]).groups) == {}
    assert len(cache.read(batch_of(BRANCHES[:1]).groups)) == 1  # in whatever company


def test_a_response_that_recurs_is_found_in_each_of_its_places(tmp_path):
    cache = cache_at(tmp_path / "logps.sqlite3")
    cache.write(GROUPS, LOGPS)
    twice = batch_of([BRANCHES[0], BRANCHES[2], BRANCHES[0]]).groups
    assert cache.read(twice) == {0: -1.25, 1: -300.0078125, 2: -1.25}


def test_one_per_cent_of_the_groups_and_at_least_one_are_scored_again():
    groups = [GROUPS[0]] * 250
    assert [len(recheck_share(groups[:n], 0.01)) for n in (0, 1, 100, 250)] == [0, 1, 1, 3]


# --- in a round -----------------------------------------------------------------------------


def scored_groups(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The groups that reference passes score from now on, in order."""
    seen: list[str] = []
    honest = reference_module.batch_logps

    def watched(policy: Any, pack: Any) -> torch.Tensor:
        seen.extend(group.id for group in pack.groups)
        return honest(policy, pack)

    monkeypatch.setattr(reference_module, "batch_logps", watched)
    return seen


def run(run_dir: Path) -> int:
    return main(["run", str(run_dir)])


def first_loss(run_dir: Path) -> float:
    return read_json(run_dir / "manifest.json")["results"]["loss_step0"]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_later_rounds_score_only_what_is_new(make_round, tmp_path, monkeypatch, method):
    shared = {"reference_cache": str(tmp_path / "logps.sqlite3"), "epochs": 1, "method": method}
    rows = [ranked_row(number) for number in range(12)]
    first = make_round("first", rows=rows[:8], **shared)
    second = make_round("second", rows=rows, beta=0.5, seed=3, **shared)
    plain = make_round("plain", rows=rows, beta=0.5, seed=3, **(shared | {"reference_cache": None}))
    assert run(first) == 0
    assert events_of(first, "reference_cache") == []
    seen = scored_groups(monkeypatch)
    assert run(second) == 0
    assert len(set(seen)) == len(seen) == 4 + 1
    (event,) = events_of(second, "reference_cache")
    assert (event["found"], event["of"], event["checked_groups"]) == (8 * 3, 12 * 3, 1)
    assert run(plain) == 0
    for ours, theirs in zip(metrics_of(second), metrics_of(plain), strict=True):
        if "loss" in ours:
            assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)


def test_another_dtype_or_reference_of_the_same_name_is_scored_anew(
    make_round, tmp_path, monkeypatch
):
    """A folder that was overwritten with other weights, as the next round's might be."""
    policy = write_policy(tmp_path / "policy")
    shared = {"reference_cache": str(tmp_path / "logps.sqlite3"), "epochs": 1, "policy": policy}
    assert run(make_round("first", **shared)) == 0
    seen = scored_groups(monkeypatch)
    assert run(make_round("half", dtype="bfloat16", **shared)) == 0
    assert len(seen) == 12
    write_policy(policy, seed=9)
    assert run(make_round("overwritten", **shared)) == 0
    assert len(seen) == 24


def test_a_value_that_is_not_what_the_reference_says_is_refused(make_round, tmp_path):
    path = tmp_path / "logps.sqlite3"
    assert run(make_round("first", reference_cache=str(path), epochs=1)) == 0
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE logps SET logp = logp * 1.01")
    second = make_round("second", reference_cache=str(path), epochs=1)
    assert run(second) == 3
    assert "delete the cache" in events_of(second, "error")[0]["message"]


def test_a_cache_that_cannot_be_written_costs_later_rounds_their_time_and_no_more(
    make_round, tmp_path, monkeypatch
):
    def full(*_: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(LogpCache, "write", full)
    run_dir = make_round(reference_cache=str(tmp_path / "logps.sqlite3"), epochs=1)
    assert run(run_dir) == 0
    assert "could not be cached" in events_of(run_dir, "warning")[0]["message"]


def test_a_long_pass_gives_signs_of_life_and_keeps_what_it_has(make_round, tmp_path, monkeypatch):
    """Stopped on its way, it is not begun anew."""
    monkeypatch.setattr(reference_module, "SIGN_OF_LIFE_S", 0.0)
    shared = {"reference_cache": str(tmp_path / "logps.sqlite3"), "epochs": 1}
    first = make_round("first", **shared)
    seen = scored_groups(monkeypatch)

    with monkeypatch.context() as stopped:
        stopped.setattr(reference_module, "anyone", lambda _flag: len(seen) >= 6)
        assert run(first) == 75
    assert [event["groups"] for event in events_of(first, "reference_pass")] == [3, 6]
    seen.clear()
    assert run(first) == 0
    assert len(seen) == 6 + 1


def test_a_file_that_is_no_cache_is_named(make_round, tmp_path):
    path = tmp_path / "logps.sqlite3"
    path.write_text("not a database, and longer than its header " * 10)
    run_dir = make_round(reference_cache=str(path))
    assert run(run_dir) == 2
    assert "may be deleted at any time" in events_of(run_dir, "error")[0]["message"]


def test_a_round_and_its_cached_twin_give_the_same_bytes_from_a_checkpoint_on(make_round, tmp_path):
    """A resumed round reads its checkpoint's reference, whatever the cache says by then."""
    path = tmp_path / "logps.sqlite3"
    whole = make_round("whole", epochs=1, reference_cache=str(path))
    assert run(whole) == 0
    again = make_round("again", epochs=1, reference_cache=str(path))
    assert run(again) == 0
    (again / "manifest.json").unlink()
    path.unlink()
    before = weights_of(again)
    assert run(again) == 0
    assert weights_of(again) == before
    assert first_loss(whole) == pytest.approx(first_loss(again), abs=1e-5)
