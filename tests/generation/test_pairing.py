from hypothesis import given
from hypothesis import strategies as st

from generation.pairing import groups


@given(st.sets(st.integers(), max_size=20), st.integers(2, 8), st.integers())
def test_each_response_is_used_once_and_at_most_one_is_left_over(responses, size, seed) -> None:
    made = groups(sorted(responses), size=size, seed=seed)
    used = [response for group in made for response in group]
    assert len(used) == len(set(used))
    assert len(responses) - len(used) <= 1
    assert all(2 <= len(group) <= size for group in made)


def test_the_same_seed_gives_the_same_groups() -> None:
    assert groups(range(9), size=2, seed=4) == groups(range(9), size=2, seed=4)
    assert groups(range(9), size=2, seed=4) != groups(range(9), size=2, seed=5)
