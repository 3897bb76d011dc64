"""Draws against NumPy's own arithmetic, a chi-square test, and the edges of top-k and top-p."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpu_jax.errors import LpuError
from models.sampling import Draws, Sampling, candidates, draw

#: A place for each token of the tests: nothing special about it.
LOGITS = np.array([0.5, 2.0, -1.0, 2.0, 0.0, -3.0, 1.0, 1.5], np.float32)


def softmax(logits, temperature):
    powers = np.exp(logits.astype(np.float64) / temperature)
    return powers / powers.sum()


def one_draw(sampling, position, logits=LOGITS):
    return draw(logits, sampling, Draws(sampling.seed, [7, 8]), position)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_frequencies_are_the_softmax_of_the_logits(temperature):
    """2,000 draws; chi-square of 7 degrees of freedom is above 24.3 once in a thousand seeds."""
    sampling = Sampling(temperature=temperature, seed=11)
    counts = np.bincount([one_draw(sampling, i) for i in range(2000)], minlength=len(LOGITS))
    expected = softmax(LOGITS, temperature) * counts.sum()
    kept = expected > 5  # the rule of thumb for this test
    assert kept.sum() >= 6
    chi_square = np.sum((counts - expected)[kept] ** 2 / expected[kept])
    assert chi_square < 24.3, counts


def test_top_k_keeps_the_most_likely_and_their_proportions():
    tokens, probabilities = candidates(LOGITS, Sampling(temperature=1.0, top_k=3))
    assert tokens.tolist() == [1, 3, 7]  # of the equal ones the lower number first
    whole = softmax(LOGITS, 1.0)[tokens]
    np.testing.assert_allclose(probabilities, whole / whole.sum(), rtol=1e-14)


def test_equal_logits_at_the_edge_rank_by_number():
    assert candidates(LOGITS, Sampling(temperature=1.0, top_k=1))[0].tolist() == [1]
    flat = np.zeros(5, np.float32)
    assert candidates(flat, Sampling(temperature=1.0, top_k=2))[0].tolist() == [0, 1]
    # five times 0.2: three of them are the fewest that reach 0.5
    assert candidates(flat, Sampling(temperature=1.0, top_p=0.5))[0].tolist() == [0, 1, 2]


def test_top_p_is_of_what_top_k_left():
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1])).astype(np.float32)
    # of 4/9, 3/9, 2/9 the first two reach 0.7; of the whole three would be needed for 0.75
    assert len(candidates(logits, Sampling(temperature=1.0, top_k=3, top_p=0.75))[0]) == 2
    assert len(candidates(logits, Sampling(temperature=1.0, top_p=0.75))[0]) == 3


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=5.0, top_k=1),
        Sampling(temperature=5.0, top_p=1e-12),
        Sampling(temperature=1e-300),
    ],
)
def test_extremes_are_greedy(sampling):
    distinct = LOGITS + np.arange(8, dtype=np.float32) / 64
    assert {one_draw(sampling, i, distinct) for i in range(50)} == {int(distinct.argmax())}


@given(
    logits=st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40),
    temperature=st.floats(0.05, 20),
    top_k=st.integers(0, 50),
    top_p=st.floats(0.01, 1),
)
def test_what_is_kept_is_the_least_that_is_allowed(logits, temperature, top_k, top_p):
    """By brute force over how many of the ranked tokens are kept; sums within 1e-12 may differ."""
    values = np.array(logits, np.float32)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    tokens, probabilities = candidates(values, sampling)
    assert abs(probabilities.sum() - 1) < 1e-12
    ranked = sorted(range(len(values)), key=lambda i: (-values[i], i))[: top_k or None]
    assert tokens.tolist() == ranked[: len(tokens)]
    wide = values.astype(np.float64)
    powers = softmax(wide[ranked] - wide.max(), temperature)
    if top_p == 1:
        assert len(tokens) == len(ranked)
    else:
        assert powers[: len(tokens)].sum() >= top_p - 1e-12
        assert powers[: len(tokens) - 1].sum() < top_p + 1e-12


def test_a_draw_depends_on_seed_prompt_copy_and_position_alone():
    first = [Draws(3, [1, 2]).uniform(i) for i in range(20)]
    shuffled = Draws(3, [1, 2])
    again = {i: shuffled.uniform(i) for i in (7, 3, 19, *range(20))}
    assert [again[i] for i in range(20)] == first
    others = [Draws(4, [1, 2]), Draws(3, [2, 1]), Draws(3, [12]), Draws(3, [1, 2], 1)]
    for other in others:
        assert not set(first) & {other.uniform(i) for i in range(20)}


def test_raw_words_are_pinned():
    """Made with NumPy 2.4.6; the raw words of a bit generator are the same in every release."""
    assert Draws(0, [1, 2, 3]).uniform(5) == 0.8095933229869975


def test_uniforms_are_uniform():
    """2,000 numbers in 10 bins; chi-square of 9 degrees is above 27.9 once in a thousand seeds."""
    numbers = [Draws(5, [i // 50]).uniform(i) for i in range(2000)]
    assert min(numbers) >= 0
    assert max(numbers) < 1
    counts = np.histogram(numbers, bins=10, range=(0, 1))[0]
    assert np.sum((counts - 200.0) ** 2 / 200) < 27.9


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_refused(bad):
    logits = LOGITS.copy()
    logits[2] = bad
    with pytest.raises(LpuError, match="the logits are not finite"):
        one_draw(Sampling(temperature=1.0), 0, logits)


def test_tokens_that_are_ruled_out_are_never_drawn():
    logits = np.array([-np.inf, 0, -np.inf, 0], np.float32)
    assert {one_draw(Sampling(temperature=9.0), i, logits) for i in range(60)} == {1, 3}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; it must be 0 or more"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_k": -1}, "top-k is -1"),
        ({"top_p": 0.0}, "top-p is 0.0; it must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top-p is 1.5"),
        ({"top_p": float("nan")}, "top-p is nan"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_values_out_of_range_are_one_sentence(values, message):
    with pytest.raises(LpuError, match=message):
        Sampling(**values)
