"""Batches as indices, and what is measured over them."""

import math

import pytest
import torch

from training.trainer.batches import Batch, all_batches, epoch_batches, packs
from training.trainer.data import Group, Pair
from training.trainer.evaluate import kl_estimate, reward_accuracy


def test_batches_are_whole_groups_and_an_epoch_is_every_group_once():
    groups = [
        Group(str(n), (1, 2), ((3,), (4,)), (Pair("p", 0, 1, 1.0),), 2 * n) for n in range(10)
    ]
    epoch = epoch_batches(groups, size=4, seed=1, epoch=0)
    assert [len(batch.groups) for batch in epoch] == [4, 4, 2]
    assert sorted(g.offset for batch in epoch for g in batch.groups) == [2 * n for n in range(10)]
    assert epoch != epoch_batches(groups, size=4, seed=1, epoch=1)
    steps = list(all_batches(groups, size=4, seed=1, epochs=3, start=0))
    assert [step for step, _ in steps] == list(range(1, 10))
    assert list(all_batches(groups, size=4, seed=1, epochs=3, start=5)) == steps[5:]


def test_pairs_point_at_their_own_groups_responses():
    one = Group("a", (1,), ((2,), (3,)), (Pair("p", 1, 0, 1.0),), 0)
    two = Group("b", (1,), ((4,), (5,), (6,)), (Pair("q", 2, 0, 0.75), Pair("r", 1, 0, 1.0)), 7)
    batch = Batch((two, one))
    assert [batch.branches[at].response for at in batch.chosen] == [(6,), (5,), (3,)]
    assert [batch.branches[at].response for at in batch.rejected] == [(4,), (4,), (2,)]
    assert batch.rows.tolist() == [7, 8, 9, 0, 1]
    assert batch.labels.tolist() == [0.75, 1.0, 1.0]
    assert [[g.id for g in pack.groups] for pack in packs(batch, 7)] == [["b", "a"]]
    assert [[g.id for g in pack.groups] for pack in packs(batch, 6)] == [["b"], ["a"]]


def test_reward_accuracy_counts_zero_and_even_votes_half():
    margin = torch.tensor([1.0, -1.0, 0.0, 3.0])
    label = torch.tensor([1.0, 1.0, 1.0, 0.5])
    assert reward_accuracy(margin, label).tolist() == [1.0, 0.0, 0.5, 0.5]


def test_the_kl_estimate_is_zero_at_the_reference_and_never_negative():
    values = kl_estimate(torch.tensor([0.0, 1e-4, -1e-4, 2.0, -1e4, 1e4]))
    assert values[0] == 0
    assert (values >= 0).all()
    assert values[3].item() == pytest.approx(math.exp(-2) - 1 + 2)
    assert values[4] == values[5] == 100


def test_the_kl_estimate_is_the_kl_in_the_mean_over_the_policys_own_samples():
    """Σ_y π(y)·k3(y) = KL(π ‖ π_ref) exactly, on a distribution small enough to enumerate."""
    policy, reference = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.5, 0.3])
    ratio = (policy / reference).log()
    exact = (policy * ratio).sum()
    assert (policy * kl_estimate(ratio)).sum().item() == pytest.approx(exact.item(), abs=1e-6)
