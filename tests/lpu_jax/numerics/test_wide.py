"""Wide numbers against Python integers and Fractions: one rounding, at the end."""

from fractions import Fraction
from itertools import pairwise

import jax
import ml_dtypes
import numpy as np
import pytest
from exact_sums import cases, round_units, units
from hypothesis import example, given
from hypothesis import strategies as st

from lpu_jax.errors import LpuError
from lpu_jax.numerics import wide

UNIT = Fraction(1, 2**72)
FIRST = np.arange(6)[:, None, None] < 2
INF, NAN = np.inf, np.nan
#: fp32 numbers of every size that a wide number holds exactly, and zeros of both signs.
EXACT = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0**-49, 2.0**39]),
    st.builds(
        lambda significand, exponent: float(np.ldexp(significand, exponent)),
        st.integers(-(2**24) + 1, 2**24 - 1),
        st.integers(-72, 15),
    ),
)


def as_integers(x):
    """Wide numbers as Python integers of `UNIT`, in an object array."""
    words = np.asarray(x).astype(np.uint32).astype(object)
    number = sum(words[..., i, :] * 2 ** (32 * i) for i in range(4)) % 2**125
    return np.where(number >= 2**124, number - 2**125, number)


def rounded(number):
    """A whole number of units as fp32: round to nearest, ties to even, in integers."""
    return round_units(number) * 2.0**-24  # from units of 2**-48


def to_fp32(x):
    with jax.enable_x64(True):
        return np.asarray(jax.jit(wide.to_fp32)(x))


def from_fp32(numbers):
    return np.asarray(jax.jit(wide.from_fp32)(np.float32(numbers)[:, None]))


def sum_leading(parts):
    return np.asarray(jax.jit(wide.sum_leading)(parts))


def matmul(x, w):
    with jax.enable_x64(True):
        return np.asarray(jax.jit(wide.matmul)(x, w))


def same_bits(a, b):
    return np.array_equal(np.float32(a).view(np.uint32), np.float32(b).view(np.uint32))


@given(st.lists(EXACT, min_size=6, max_size=6))
def test_sums_of_fp32_numbers_are_those_of_fractions(numbers):
    parts = from_fp32(numbers)
    exact = sum(map(Fraction, numbers), Fraction(0)) / UNIT
    total = sum_leading(parts)
    assert as_integers(total).tolist() == [exact]
    assert same_bits(to_fp32(total), [rounded(int(exact))])
    assert np.array_equal(total, sum_leading(parts[::-1]))
    halves = [sum_leading(np.where(keep, parts, 0)) for keep in (FIRST, ~FIRST)]
    assert np.array_equal(total, sum_leading(np.stack([*halves, *np.zeros_like(parts[:4])])))


def bits_of(x):
    return int(np.float32(x).view(np.uint32))


@given(st.integers(0, 2**32 - 1))
@example(bits_of(2.0**-73))
@example(bits_of(-3 * 2.0**-73))
@example(bits_of(5 * 2.0**-73))
def test_one_fp32_number_comes_back_or_is_a_multiple_of_the_unit(bits):
    (x,) = np.uint32([bits]).view(np.float32)
    (back,) = to_fp32(from_fp32([x])[0])
    if np.isnan(x):
        assert np.isnan(back)
    elif abs(x) >= wide.TERM_LIMIT:
        assert back == np.copysign(INF, x)
    elif abs(x) < np.finfo(np.float32).smallest_normal:
        assert same_bits(back, 0.0)
    else:
        units_of_x = round(Fraction(float(x)) / UNIT)  # Python rounds ties to even
        assert same_bits(back, rounded(units_of_x))


@pytest.mark.parametrize("number", [1, -1, 2**23 + 1, 2**24 + 1, -(2**24) - 3, 2**64 - 1, 2**64])
@pytest.mark.parametrize("shift", [0, 1, 30, 59])
def test_one_rounding_at_the_end(number, shift):
    value = (number << shift) + (1 if number % 3 else 0)
    words = np.uint32([value >> 32 * i & 0xFFFF_FFFF for i in range(4)])
    words[3] &= 2**29 - 1
    assert as_integers(words.view(np.int32)[:, None]).tolist() == [value]
    assert same_bits(to_fp32(words.view(np.int32)[:, None]), [rounded(value)])


@pytest.mark.parametrize("case", cases())
def test_products_are_those_of_integers(case):
    x, w = cases()[case]
    exact = units(x).dot(units(w)) * 2**24
    found = matmul(x, w)
    assert (as_integers(found) == exact).all()
    assert same_bits(to_fp32(found), np.vectorize(rounded)(exact))


@pytest.mark.slow
def test_shares_of_a_contraction_add_up_wherever_it_is_cut():
    rng = np.random.default_rng(0)
    x, w = (rng.normal(size=s).astype(np.float16) for s in ((3, 5000), (5000, 5)))
    whole = matmul(x, w)  # two runs of rows
    for cuts in ((4096,), (1, 2, 4999)):
        edges = [0, *cuts, 5000]
        parts = [matmul(x[:, a:b], w[a:b]) for a, b in pairwise(edges)]
        assert np.array_equal(sum_leading(np.stack(parts)), whole)


def test_a_long_sum_keeps_its_last_bit():
    # 2**14 products of almost 2**40 units of 2**-48, and one of 1: beyond 2**53.
    column = np.float16([2047 * 2.0**-15] * 2**14 + [2.0**-24])[:, None]
    exact = (2047 * 2**9) ** 2 * 2**14 + 1
    assert as_integers(matmul(column.T, column)).tolist() == [[exact * 2**24]]


def test_types_and_forms():
    rng = np.random.default_rng(1)
    for x_type, w_type in [(np.float16, np.int8), (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)]:
        x = rng.normal(size=(2, 4, 6)).astype(x_type)
        w = (8 * rng.normal(size=(2, 6, 3))).astype(w_type)
        exact = np.stack([units(a).dot(units(b)) for a, b in zip(x, w, strict=True)]) * 2**24
        assert (as_integers(matmul(x, w)) == exact).all()
        shared = np.stack([units(x[0]).dot(units(b)) for b in w]) * 2**24
        assert (as_integers(matmul(x[0], w)) == shared).all()
    assert matmul(np.zeros((2, 0), np.float16), np.zeros((0, 3), np.float16)).shape == (2, 4, 3)


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([INF, 1.0], INF),
        ([-1.0, -INF, 2.0**41], NAN),
        ([INF, -INF], NAN),
        ([-(2.0**41), 3.0], -INF),
        ([NAN, 1.0], NAN),
        ([INF, NAN], NAN),
    ],
)
def test_what_is_not_finite_is_as_in_ieee(numbers, expected):
    total = sum_leading(from_fp32(numbers))
    assert same_bits(to_fp32(total), [expected]) or np.isnan([expected, *to_fp32(total)]).all()


def test_products_of_what_is_not_finite():
    x = np.float16([[1, INF], [0, INF], [1, 2], [NAN, 0]])
    w = np.float16([[1.0, -INF], [2.0, 1.0]])
    with np.errstate(invalid="ignore"):
        expected = x.astype(np.float32) @ w.astype(np.float32)
    np.testing.assert_array_equal(to_fp32(matmul(x, w)), expected)


def test_too_long_a_sum_is_refused():
    shape = jax.ShapeDtypeStruct
    with jax.enable_x64(True), pytest.raises(LpuError, match="1048577 products"):
        jax.eval_shape(wide.matmul, shape((1, 2**20 + 1), "f2"), shape((2**20 + 1, 1), "f2"))
