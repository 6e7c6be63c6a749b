"""Tokens are drawn from exactly the distribution that the policy gives."""

import math

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from generation.samplers.drawing import draw_tokens, uniforms  # noqa: E402

DRAWS = 20_000


def draw_many(logits, *, temperature=1.0, top_p=1.0):
    return draw_tokens(
        logits.expand(DRAWS, -1).contiguous(),
        uniforms([11], DRAWS)[0],
        temperature=temperature,
        top_p=top_p,
    )


def chi_square(tokens, probabilities) -> float:
    """Pearson's statistic over the tokens that are expected at least 5 times."""
    expected = probabilities.double() * DRAWS
    counts = torch.bincount(tokens, minlength=len(probabilities)).double()
    common = expected >= 5
    return float(((counts - expected) ** 2 / expected)[common].sum())


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_tokens_are_drawn_with_their_softmax_probabilities(temperature):
    torch.manual_seed(0)
    logits = torch.randn(40) * 2
    tokens, logps = draw_many(logits, temperature=temperature)
    # 40 tokens: the 99.9 % point of chi-square with 39 degrees of freedom is 72.1
    assert chi_square(tokens, (logits / temperature).softmax(0)) < 72
    torch.testing.assert_close(logps, logits.log_softmax(0)[tokens])


def test_top_p_keeps_the_smallest_likely_set_and_its_proportions():
    probabilities = torch.tensor([0.05, 0.4, 0.1, 0.3, 0.15])
    tokens, logps = draw_many(probabilities.log(), top_p=0.8)
    assert set(tokens.tolist()) == {1, 3, 4}  # 0.4 + 0.3 < 0.8 <= 0.4 + 0.3 + 0.15
    kept = torch.tensor([0, 0.4, 0, 0.3, 0.15]) / 0.85
    assert chi_square(tokens, kept) < 13.8  # 2 degrees of freedom, 99.9 %
    torch.testing.assert_close(logps, probabilities.log()[tokens])  # of the whole distribution


def test_top_p_sees_beyond_the_likely_tokens_of_a_flat_distribution():
    tokens, _ = draw_many(torch.zeros(2000) - torch.arange(2000) * 1e-4, top_p=0.5)
    assert 900 < int(tokens.max()) < 1000


@given(
    st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=12),
    st.floats(0, 1, exclude_max=True),
    st.floats(0.05, 3),
    st.floats(0.01, 1),
)
@settings(max_examples=150, deadline=None)
def test_a_token_of_probability_zero_is_never_drawn(values, uniform, temperature, top_p):
    logits = torch.tensor([[-math.inf, *values, -math.inf]])
    at = torch.tensor([uniform], dtype=torch.float64)
    token, logp = draw_tokens(logits, at, temperature=temperature, top_p=top_p)
    assert 1 <= token.item() <= len(values)
    assert logp.item() <= 1e-5


def test_the_largest_uniform_number_still_names_a_token():
    almost_one = torch.tensor([1 - 2**-53], dtype=torch.float64)
    logits = torch.tensor([[0.0, 1.0, -math.inf]])
    assert draw_tokens(logits, almost_one, temperature=1.0, top_p=1.0)[0].item() == 1


def test_temperature_zero_takes_the_most_probable_token():
    logits = torch.randn(5, 9)
    tokens, _ = draw_tokens(logits, uniforms([1], 5)[0], temperature=0.0, top_p=1.0)
    assert tokens.tolist() == logits.argmax(-1).tolist()


def test_uniform_numbers_depend_on_their_own_seed_only():
    together = uniforms([5, 2**62, 7], 50)
    assert torch.equal(together[1], uniforms([2**62], 50)[0])
    assert torch.equal(together[0, :9], uniforms([5], 9)[0])
    assert len(set(together.flatten().tolist())) == 150
    many = uniforms([3], 20_000)
    assert float(many.min()) >= 0
    assert float(many.max()) < 1
    assert abs(float(many.mean()) - 0.5) < 0.01
    assert abs(float(many.var()) - 1 / 12) < 0.005
