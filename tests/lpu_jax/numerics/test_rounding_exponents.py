"""Conversions with a shared power of two, stochastic means, and equality under jit and vmap."""

import functools
import math
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rounding_oracles import N_RANDOM, assert_same_values, by_numpy, code_values, hard_values

from lpu_jax.numerics import rounding, scalar
from lpu_jax.numerics.formats import (
    BF16,
    E2M1,
    E2M3,
    E3M2,
    E4M3FN,
    E5M2,
    E8M0,
    FORMATS,
    FP16,
    FP32,
    INT8,
    Rounding,
    integer,
)

STATIC = ("fmt", "rounding", "overflow")
jitted_encode = jax.jit(rounding.encode, static_argnames=STATIC)
jitted_decode = jax.jit(rounding.decode, static_argnames="fmt")
KEY = jax.random.key(11)
BLOCK_FORMATS = [E5M2, E4M3FN, E3M2, E2M3, E2M1, INT8, integer("mantissa5", 5, symmetric=True)]
#: Exponents of E8M0 scales, those that push every fp32 number out of a format on either side, and
#: those that move the smallest fp32 subnormal (2**-149) into and out of range.
EXPONENTS = [-300, -150, -127, -126, -30, -1, 0, 1, 24, 126, 127, 149, 276, 300]


def name_of(fmt):
    return fmt.name


def hard_blocks(fmt, n_values=40_000):
    """Return hard values, half of them subnormal or tiny, in rows, each with an exponent."""
    rng = np.random.default_rng(3)
    tail = hard_values(fmt)[N_RANDOM:]
    tiny = rng.integers(0, 1 << 24, n_values // 2, dtype=np.uint32)
    tiny = (tiny >> rng.integers(0, 24, tiny.size).astype(np.uint32)).view(np.float32)
    x = np.concatenate([tiny, -tiny[:500], rng.choice(tail, n_values // 2), tail[-8:]])
    rows = x[: x.size // len(EXPONENTS) * len(EXPONENTS)]
    rows = rng.permutation(rows).reshape(len(EXPONENTS), -1)
    # Near the range of the format in each row, where random values seldom are.
    exponents = np.array(EXPONENTS)[:, None]
    spread = rng.uniform(fmt.smallest_exponent - 2, math.log2(fmt.max_value) + 1, rows.shape)
    with np.errstate(over="ignore"):
        near = np.exp2(np.clip(spread + exponents, -149, 127)).astype(np.float32)
    return np.concatenate([rows, near], axis=1), exponents


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=name_of)
def test_encode_divides_by_a_power_of_two_before_it_rounds(fmt):
    x, exponents = hard_blocks(fmt)
    shift = jnp.asarray(exponents, jnp.int32)
    codes = np.asarray(jitted_encode(jnp.asarray(x), fmt, overflow="ieee", exponent=shift))
    got = codes.view(np.float32) if fmt is FP32 else code_values(fmt)[codes]
    assert_same_values(got, by_numpy(x, fmt, exponent=exponents), x)


@pytest.mark.parametrize("fmt", [*BLOCK_FORMATS, FP16, BF16, FP32, E8M0], ids=name_of)
def test_twins_agree_about_exponents(fmt):
    x, exponents = hard_blocks(fmt, 4_000)
    x = x[:, ::150]
    random = np.asarray(jax.random.bits(KEY, x.shape, jnp.uint32))
    for mode in get_args(Rounding):
        got = rounding.encode(
            jnp.asarray(x),
            fmt,
            rounding=mode,
            exponent=jnp.asarray(exponents, jnp.int32),
            key=KEY if mode == "sr" else None,
        )
        expected = [
            scalar.encode(
                float(value),
                fmt,
                rounding=mode,
                exponent=exponent,
                random=int(bits) if mode == "sr" else None,
            )
            for row, row_bits, exponent in zip(x, random, EXPONENTS, strict=True)
            for value, bits in zip(row, row_bits, strict=True)
        ]
        np.testing.assert_array_equal(np.asarray(got).reshape(-1), expected)


def test_a_multiplication_in_fp32_is_noticed():
    """What a multiply would give: it rounds twice, and a scale below 2**-126 is flushed."""
    x, exponents = hard_blocks(E4M3FN)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        multiplied = (x * np.exp2(-exponents.astype(np.float32))).astype(np.float32)
        once_more = by_numpy(multiplied, E4M3FN)
    with pytest.raises(AssertionError, match="differ"):
        assert_same_values(once_more, by_numpy(x, E4M3FN, exponent=exponents), x)


def codes_of(fmt):
    if fmt.bits <= 8:
        return np.arange(1 << fmt.bits, dtype=np.uint32)
    rng = np.random.default_rng(5)
    return rng.integers(0, 1 << fmt.bits, 500, dtype=np.uint64).astype(np.uint32)


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=name_of)
def test_decode_multiplies_by_a_power_of_two_and_rounds_once(fmt):
    codes = codes_of(fmt)[:, None]
    exponents = np.arange(-310, 311)[None, :]
    values = codes.view(np.float32) if fmt is FP32 else code_values(fmt)[codes]
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        # Exact in float64, then one rounding to fp32, subnormals included.
        expected = np.ldexp(values.astype(np.float64), exponents).astype(np.float32)
    got = np.asarray(
        jitted_decode(
            jnp.asarray(np.broadcast_to(codes, expected.shape)),
            fmt,
            exponent=jnp.asarray(exponents, jnp.int32),
        )
    )
    assert_same_values(got, expected, np.broadcast_to(codes, expected.shape))


@pytest.mark.parametrize("fmt", [E4M3FN, INT8, E8M0, BF16], ids=name_of)
def test_decode_with_an_exponent_agrees_with_its_twin(fmt):
    codes = codes_of(fmt)
    exponents = np.random.default_rng(6).choice([-150, -130, -120, -3, 0, 100, 127], codes.size)
    expected = [
        scalar.round_fraction_to_fp32(scalar.decode(int(code), fmt, exponent=int(exponent)))
        for code, exponent in zip(codes, exponents, strict=True)
    ]
    got = jitted_decode(jnp.asarray(codes), fmt, exponent=jnp.asarray(exponents, jnp.int32))
    assert_same_values(np.asarray(got), np.array(expected), codes)


def test_an_encoded_block_decodes_to_itself():
    exponents = jnp.asarray([[-127], [-20], [0], [100]], jnp.int32)
    codes = jnp.broadcast_to(jnp.arange(16, dtype=jnp.uint8), (4, 16))
    values = jitted_decode(codes, E2M1, exponent=exponents)
    np.testing.assert_array_equal(jitted_encode(values, E2M1, exponent=exponents), codes)


@pytest.mark.parametrize("fmt", [E4M3FN, E8M0], ids=name_of)
def test_jit_vmap_and_eager_agree(fmt):
    x, exponents = hard_blocks(fmt, 4_000)
    x, exponents = jnp.asarray(x[:, ::150]), jnp.asarray(exponents, jnp.int32)
    for shift in (None, exponents):
        kwargs = {"rounding": "rna", "overflow": "ieee"}
        eager = rounding.encode(x, fmt, exponent=shift, **kwargs)
        one = functools.partial(rounding.encode, fmt=fmt, **kwargs)
        if shift is None:
            mapped = jax.jit(jax.vmap(one))(x)
        else:
            mapped = jax.jit(jax.vmap(lambda v, e, one=one: one(v, exponent=e)))(x, shift)
        for got in (jitted_encode(x, fmt, exponent=shift, **kwargs), mapped):
            np.testing.assert_array_equal(np.asarray(got), np.asarray(eager))
    back = rounding.decode(eager, fmt, exponent=exponents)
    jitted = jitted_decode(eager, fmt, exponent=exponents)
    np.testing.assert_array_equal(
        np.asarray(jitted).view(np.uint32), np.asarray(back).view(np.uint32)
    )


#: An unbiased mean of n draws of a step with probability p is off by more than five standard
#: deviations, `5 * sqrt(p * (1 - p) / n)`, once in 1.7 million keys; the key is fixed.
N_DEVIATIONS = 5


@pytest.mark.parametrize("fmt", [E4M3FN, E2M1, BF16, INT8, FP32], ids=name_of)
@pytest.mark.parametrize("fraction", [2.0**-6, 0.25, 0.5, 0.875])
def test_stochastic_rounding_is_right_on_average(fmt, fraction):
    n = 1 << 18
    # Between 1 and the next value; for fp32 below its last bit, by way of an exponent.
    step = 1.0 if fmt.is_integer else 2.0**-fmt.mantissa_bits
    exponent = None
    if fmt is FP32:  # the smallest numbers are 2**-149 apart
        step, exponent = 2.0**-9, jnp.full((1,), 140, jnp.int32)
    x = jnp.full((n,), 1.0 + fraction * step, jnp.float32)
    codes = jitted_encode(x, fmt, rounding="sr", key=KEY, exponent=exponent)
    up = np.asarray(codes).astype(np.int64) - int(np.asarray(codes).min())
    assert set(np.unique(up)) == {0, 1}
    bound = N_DEVIATIONS * math.sqrt(fraction * (1 - fraction) / n)
    assert abs(up.mean() - fraction) < bound


def test_the_mean_of_another_rounding_is_noticed():
    """Nearest even makes 1.25 steps always 1: far outside the bound that is used."""
    x = jnp.full((1000,), 1.0 + 0.25 * 2.0**-3, jnp.float32)
    up = np.asarray(jitted_encode(x, E4M3FN)).astype(int) - 0x38
    assert abs(up.mean() - 0.25) > N_DEVIATIONS * math.sqrt(0.25 * 0.75 / 1000)


@pytest.mark.slow
def test_stochastic_rounding_keeps_what_needs_no_rounding():
    for fmt in (E4M3FN, FP16, INT8):
        codes = jnp.arange(64, dtype=rounding.code_dtype(fmt))
        values = jitted_decode(codes, fmt)
        np.testing.assert_array_equal(jitted_encode(values, fmt, rounding="sr", key=KEY), codes)
