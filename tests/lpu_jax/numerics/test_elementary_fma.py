"""The fused multiply-add against exact fractions, on values that an error would show in."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpu_jax.datapath import vxm
from lpu_jax.numerics import fused

SIZE = 1500


def rounded_once(value: Fraction) -> float:
    """Round to 24 bits (nearest, ties to even) as if every exponent were allowed, then flush."""
    if value == 0:
        return 0.0
    sign, value = (-1 if value < 0 else 1), abs(value)
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    exponent -= Fraction(2) ** exponent > value
    step = Fraction(2) ** (exponent - 23)
    rounded = round(value / step) * step
    if rounded < Fraction(2) ** -126:
        return sign * 0.0
    return sign * (float(rounded) if rounded < Fraction(2) ** 128 else np.inf)


def values(rng: np.random.Generator, low: int, high: int) -> np.ndarray:
    """Any significand and sign, exponents `low` to `high`."""
    significand = rng.integers(2**23, 2**24, SIZE) * rng.choice([-1, 1], SIZE)
    return np.ldexp(significand.astype(np.float32), rng.integers(low, high + 1, SIZE) - 23)


def midpoints(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Factors whose product is a midpoint of fp32 numbers: an odd number of 25 bits."""
    pairs = [
        (p, m // p)
        for m in range(2**24 + 1, 2**24 + 20_001, 2)
        for p in (3, 5, 7, 11, 13, 641, 1009, 2203)
        if m % p == 0 and m // p < 2**24
    ]
    a, b = np.array(pairs, np.float32)[rng.integers(0, len(pairs), SIZE)].T
    return a, b


def cases() -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    a, b = values(rng, -20, 20), values(rng, -20, 20)
    product = a.astype(np.float64) * b
    scales = np.exp2(rng.integers(-60, 61, SIZE))
    p, q = midpoints(rng)
    return {
        "any": (values(rng, -60, 60), values(rng, -60, 60), values(rng, -120, 120)),
        "cancelling": (a, b, (-product).astype(np.float32)),
        "near": (a, b, (-product * scales).astype(np.float32)),
        "midpoint and a little": (p, q, values(rng, -126, -20)),
        "midpoint exactly": (p, q, np.zeros(SIZE, np.float32)),
        "underflow": (values(rng, -64, -62), values(rng, -64, -62), values(rng, -126, -124)),
        "overflow": (values(rng, 62, 64), values(rng, 62, 63), values(rng, 125, 127)),
    }


def in_float64(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """The mutation: a float64 sum, rounded twice."""
    with np.errstate(over="ignore"):
        return (a.astype(np.float64) * b + c).astype(np.float32)


@pytest.mark.parametrize("name", cases())
def test_one_rounding(name: str) -> None:
    a, b, c = cases()[name]
    exact = [
        Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        for x, y, z in zip(a, b, c, strict=True)
    ]
    expected = np.array([rounded_once(value) for value in exact], np.float32)
    got = vxm.fma(*map(jnp.asarray, (a, b, c)))
    np.testing.assert_array_equal(got, expected)
    if name in ("midpoint and a little", "underflow"):
        assert (in_float64(a, b, c) != expected).any()


def test_special_values() -> None:
    inf, nan = np.inf, np.nan
    table = [
        (0.0, 1.0, -0.0, 0.0), (-0.0, 1.0, -0.0, -0.0), (2.0, 3.0, -6.0, 0.0),
        (inf, 0.0, 1.0, nan), (inf, 2.0, -inf, nan), (inf, 2.0, 1.0, inf), (1.0, 1.0, -inf, -inf),
        (nan, 0.0, 0.0, nan), (0.0, 0.0, nan, nan), (3e38, 2.0, -3e38, 3e38),
        (1e-39, 1e38, 0.0, 0.0), (1.0, 1.0, 1e-39, 1.0), (2.0**-126, 0.5, 0.0, 0.0),
    ]  # fmt: skip
    a, b, c, expected = np.array(table, np.float32).T
    got = np.asarray(vxm.fma(*map(jnp.asarray, (a, b, c))))
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


def test_constants_and_integers_are_not_seen_through() -> None:
    """What a compiler knows of its operands, it may use to fold a sum and its error."""
    n = np.arange(2**20 - 2000, 2**20 + 2000, dtype=np.int32)
    c = np.float32(1 / 3)

    def function(n: jax.Array) -> jax.Array:
        x = n.astype(jnp.float32)
        return fused.fma(x, jnp.full_like(x, 1 / 7), jnp.full_like(x, c))

    with jax.enable_x64(True):
        got = jax.jit(function)(n)
    seventh = Fraction(float(np.float32(1 / 7)))
    expected = [rounded_once(int(i) * seventh + Fraction(float(c))) for i in n]
    np.testing.assert_array_equal(got, np.array(expected, np.float32))


@pytest.mark.slow
def test_under_vmap_and_in_a_program() -> None:
    a, b, c = (jnp.asarray(x).reshape(3, -1) for x in cases()["near"])
    expected = np.stack([vxm.fma(*row) for row in zip(a, b, c, strict=True)])
    np.testing.assert_array_equal(jax.vmap(vxm.fma)(a, b, c), expected)
    np.testing.assert_array_equal(jax.jit(lambda *xs: vxm.fma(*xs))(a, b, c), expected)
    np.testing.assert_array_equal(vxm.fma(a, 1.0, 0.0), a)
