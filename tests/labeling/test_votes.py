import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeling.votes import BadTiers, PairVotes, check_tiers, count_votes


@st.composite
def rankings(draw, slots: int) -> list[list[int]]:
    order = draw(st.permutations(range(slots)))
    cuts = draw(st.sets(st.integers(1, slots - 1))) if slots > 1 else set()
    edges = [0, *sorted(cuts), slots]
    return [order[a:b] for a, b in zip(edges, edges[1:], strict=False)]


def test_one_ranking_gives_a_vote_for_each_pair() -> None:
    votes = count_votes([[[2], [0, 1]]], 3)
    assert votes == {
        (0, 1): PairVotes(tied=1),
        (0, 2): PairVotes(high=1),
        (1, 2): PairVotes(high=1),
    }


def test_votes_add_up_over_annotators() -> None:
    votes = count_votes([[[0], [1]], [[0], [1]], [[1], [0]], [[0, 1]]], 2)
    assert votes[(0, 1)] == PairVotes(low=2, high=1, tied=1)


@given(st.integers(2, 6).flatmap(lambda k: st.tuples(st.just(k), st.lists(rankings(k)))))
def test_every_ranking_casts_exactly_one_vote_on_every_pair(case) -> None:
    slots, cast = case
    votes = count_votes(cast, slots)
    assert len(votes) == slots * (slots - 1) // 2
    assert all(v.low + v.high + v.tied == len(cast) for v in votes.values())


@given(rankings(5))
def test_reversing_a_ranking_swaps_the_votes(ranking) -> None:
    forward, backward = count_votes([ranking], 5), count_votes([ranking[::-1]], 5)
    assert all(
        (f.low, f.high, f.tied) == (b.high, b.low, b.tied)
        for f, b in zip(forward.values(), backward.values(), strict=True)
    )


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_probability_is_at_least_a_half_and_never_certain(low, high, tied) -> None:
    votes = PairVotes(low=low, high=high, tied=tied)
    assert 0.5 <= votes.probability < 1
    assert (votes.probability == 0.5) == (low == high)


def test_probability_by_hand() -> None:
    assert PairVotes(low=1).probability == 0.75  # (1 + 0.5) / (1 + 1)
    assert PairVotes(low=2, high=1, tied=1).probability == pytest.approx(3.0 / 5)


@pytest.mark.parametrize(
    "tiers",
    [[], [[0]], [[0], [0]], [[0], [1], [2]], [[0, 1], []], [[0], ["1"]], [[0], [True]], "01", None],
)
def test_a_ranking_that_does_not_name_each_slot_once_is_refused(tiers) -> None:
    with pytest.raises(BadTiers):
        check_tiers(tiers, 2)


@given(rankings(4))
def test_every_ranking_of_the_slots_is_accepted(ranking) -> None:
    assert check_tiers(ranking, 4) == [sorted(tier) for tier in ranking]
