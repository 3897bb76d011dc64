"""Conversions against ml_dtypes (fp32 sources), gfloat and the scalar twin."""

import math
from fractions import Fraction

import gfloat
import gfloat.formats
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lpu_jax.numerics import rounding, scalar
from lpu_jax.numerics.formats import BF16, E4M3, E5M2, FORMATS, FP16, FP32, INT4, INT8

NARROW = {
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
}
GFLOAT = {
    "fp16": gfloat.formats.format_info_binary16,
    "bf16": gfloat.formats.format_info_bfloat16,
    "e4m3": gfloat.formats.format_info_ocp_e4m3,
    "e5m2": gfloat.formats.format_info_ocp_e5m2,
}


jitted_encode = jax.jit(rounding.encode, static_argnums=(1, 2))
jitted_decode = jax.jit(rounding.decode, static_argnums=1)
round_product = jax.jit(rounding.round_product, static_argnums=2)


def encode(x, fmt, overflow="saturate"):
    return np.asarray(jitted_encode(jnp.asarray(x, jnp.float32), fmt, overflow))


def decode(codes, fmt):
    return np.asarray(jitted_decode(jnp.asarray(codes), fmt))


def all_codes(fmt):
    return np.arange(1 << fmt.bits, dtype=np.uint32)


def ml_dtypes_values(fmt):
    unsigned = np.uint16 if fmt.bits == 16 else np.uint8
    return all_codes(fmt).astype(unsigned).view(NARROW[fmt.name]).astype(np.float32)


def hard_values(fmt):
    """Random bit patterns, all values of the format, all midpoints, the neighbours of both."""
    rng = np.random.default_rng(0)
    random = rng.integers(0, 1 << 32, 200_000, dtype=np.uint32).view(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        near = np.exp2(rng.uniform(fmt.smallest_exponent - 3, math.log2(fmt.max_value) + 2, 50_000))
        near = (near * rng.choice([-1, 1], near.size)).astype(np.float32)
        values = ml_dtypes_values(fmt) if fmt.name in NARROW else np.arange(-140, 140) / 2
        values = np.unique(values[np.isfinite(values)]).astype(np.float64)
        middles = (values[1:] + values[:-1]) / 2
        edges = np.concatenate([values, middles, [fmt.max_value * 1.0625, fmt.max_value * 2]])
        edges = edges.astype(np.float32)
        around = [np.nextafter(edges, np.float32(s * np.inf)) for s in (-1, 1)]
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45], np.float32)
    return np.concatenate([random, near, edges, *around, special])


def as_ml_dtypes(x, fmt):
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = x.astype(NARROW[fmt.name])
    unsigned = np.uint16 if fmt.bits == 16 else np.uint8
    return narrow.view(unsigned).astype(np.uint32), np.isnan(narrow.astype(np.float32))


@pytest.mark.parametrize("fmt", [FP16, BF16, E4M3, E5M2], ids=lambda f: f.name)
def test_encode_equals_ml_dtypes(fmt):
    x = hard_values(fmt)
    expected, is_nan = as_ml_dtypes(x, fmt)
    got = encode(x, fmt, "ieee")
    np.testing.assert_array_equal(got[~is_nan], expected[~is_nan])
    magnitude = got[is_nan] & ((1 << (fmt.bits - 1)) - 1)
    np.testing.assert_array_equal(magnitude, fmt.nan_code)


@pytest.mark.parametrize("fmt", [FP16, BF16, E4M3, E5M2], ids=lambda f: f.name)
def test_saturating_encode_only_differs_where_it_overflows(fmt):
    x = hard_values(fmt)
    x = x[~np.isnan(x)]
    plain, saturated = (
        np.asarray(decode(encode(x, fmt, mode), fmt)) for mode in ("ieee", "saturate")
    )
    expected = np.where(np.isfinite(plain), plain, np.copysign(np.float32(fmt.max_value), x))
    np.testing.assert_array_equal(saturated, expected)


@pytest.mark.parametrize("fmt", [INT8, INT4], ids=lambda f: f.name)
def test_integer_encode_rounds_half_even_and_saturates(fmt):
    x = hard_values(fmt)
    expected = np.clip(np.rint(np.nan_to_num(x, nan=0.0)), -fmt.max_code - 1, fmt.max_code)
    codes = encode(x, fmt)
    np.testing.assert_array_equal(rounding.to_signed(jnp.asarray(codes), fmt), expected)
    np.testing.assert_array_equal(decode(codes, fmt), expected)


def test_fp32_round_trip_keeps_every_bit():
    x = np.random.default_rng(1).integers(0, 1 << 32, 100_000, dtype=np.uint32)
    x = x[~np.isnan(x.view(np.float32))]
    codes = encode(x.view(np.float32), FP32, "ieee")
    np.testing.assert_array_equal(codes, x)
    np.testing.assert_array_equal(np.asarray(decode(codes, FP32)).view(np.uint32), x)


@pytest.mark.parametrize("fmt", [FP16, BF16, E4M3, E5M2], ids=lambda f: f.name)
def test_decode_equals_ml_dtypes_on_every_code(fmt):
    got, expected = np.asarray(decode(all_codes(fmt), fmt)), ml_dtypes_values(fmt)
    np.testing.assert_array_equal(got, expected)
    finite = ~np.isnan(expected)  # bits too: the sign of zero, and bf16 subnormals
    np.testing.assert_array_equal(got.view(np.uint32)[finite], expected.view(np.uint32)[finite])


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda f: f.name)
def test_twins_agree(fmt):
    rng = np.random.default_rng(2)
    x = rng.permutation(hard_values(fmt))[:1500]
    for mode in ("ieee", "saturate"):
        expected = [scalar.encode(float(v), fmt, mode) for v in x]
        np.testing.assert_array_equal(encode(x, fmt, mode), expected)
    sample = rng.integers(0, 1 << fmt.bits, 1500, dtype=np.uint64).astype(np.uint32)
    codes = all_codes(fmt) if fmt.bits <= 8 else sample
    expected = np.array([float(scalar.decode(int(c), fmt)) for c in codes], np.float32)
    np.testing.assert_array_equal(decode(codes, fmt), expected)


@pytest.mark.parametrize("fmt", [FP16, BF16, E4M3, E5M2], ids=lambda f: f.name)
@pytest.mark.parametrize("mode", ["ieee", "saturate"])
def test_scalar_equals_gfloat(fmt, mode):
    x = np.random.default_rng(3).permutation(hard_values(fmt))[:400]
    info = GFLOAT[fmt.name]
    for value in map(float, x[~np.isnan(x)]):
        expected = gfloat.round_float(
            info, value, gfloat.RoundMode.TiesToEven, sat=mode == "saturate"
        )
        got = float(scalar.round_to(value, fmt, mode))
        assert got == expected or (math.isnan(got) and math.isnan(expected)), value


def test_oracle_notices_ties_away_and_truncation():
    """An oracle that cannot fail proves nothing: two wrong roundings must differ from ml_dtypes."""
    x = hard_values(FP16)
    x = x[np.isfinite(x) & (np.abs(x) < 60000) & (np.abs(x) > 1e-4)]
    expected, _ = as_ml_dtypes(x, FP16)
    for wrong in (0x1000, 0):
        shifted = (x.view(np.uint32) + np.uint32(wrong)) & np.uint32(0xFFFFE000)
        codes, _ = as_ml_dtypes(shifted.view(np.float32), FP16)
        assert (codes != expected).any()


def test_fp16_casts_equal_numpy_inside_and_outside_vmap():
    x = hard_values(FP16)
    x = x[~np.isnan(x)]
    x = x[: x.size // 50 * 50]
    with np.errstate(over="ignore"):
        expected = x.astype(np.float16)
    got = jax.jit(jax.vmap(rounding.to_fp16))(jnp.asarray(x.reshape(-1, 50)))
    assert got.dtype == jnp.float16
    np.testing.assert_array_equal(
        np.asarray(got).reshape(-1).view(np.uint16), expected.view(np.uint16)
    )
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    np.testing.assert_array_equal(rounding.from_fp16(jnp.asarray(every)), every.astype(np.float32))


def near_midpoint_products():
    """Codes and scales whose exact product lies within an fp32 rounding of an fp16 midpoint."""
    codes = np.repeat(np.array([3, 5, 7, 11, 127], np.float32), 300)
    middles = 1 + (2 * np.arange(codes.size) % 2048 + 1) * 2.0**-11
    return codes, (middles / codes).astype(np.float32)


@pytest.mark.parametrize("fmt", [FP16, E4M3], ids=lambda f: f.name)
def test_products_are_rounded_once(fmt):
    rng = np.random.default_rng(4)
    codes = rng.integers(-127, 128, 1500).astype(np.float32)
    scales = np.exp2(rng.uniform(-35, 8, 1500)).astype(np.float32)
    near_codes, near_scales = near_midpoint_products()
    codes, scales = np.append(codes, near_codes), np.append(scales, near_scales)
    exact = [Fraction(float(c)) * Fraction(float(s)) for c, s in zip(codes, scales, strict=True)]
    # A zero product has the sign of its factors, which a Fraction cannot hold.
    exact = [v or float(c * s) for v, c, s in zip(exact, codes, scales, strict=True)]
    expected = [scalar.encode(v, fmt, "ieee") for v in exact]
    got = round_product(jnp.asarray(codes), jnp.asarray(scales), fmt)
    np.testing.assert_array_equal(got, expected)


def test_rounding_a_product_twice_is_noticed():
    codes, scales = near_midpoint_products()
    got = round_product(jnp.asarray(codes), jnp.asarray(scales), FP16)
    assert ((codes * scales).astype(np.float16).view(np.uint16) != np.asarray(got)).any()
