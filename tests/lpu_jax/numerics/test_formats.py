"""Formats as data, and the value of every code, against ml_dtypes, NumPy and the scalar twin."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from rounding_oracles import NARROW, SMALL_FORMATS, assert_same_values, code_values

from lpu_jax.errors import LpuError
from lpu_jax.numerics import rounding, scalar
from lpu_jax.numerics.formats import E4M3, E4M3FN, E8M0, FORMATS, FP16, FP32, INT4, INT8, integer

IN_ML_DTYPES = [FORMATS[name] for name in NARROW]
INTEGERS = [INT4, INT8, integer("int6", 6), integer("int12", 12)]


def name_of(fmt):
    return fmt.name


jitted_decode = jax.jit(rounding.decode, static_argnames="fmt")


@functools.cache
def decoded(fmt):
    codes = jnp.arange(1 << fmt.bits, dtype=rounding.code_dtype(fmt))
    return np.asarray(jitted_decode(codes, fmt))


@pytest.mark.parametrize("fmt", SMALL_FORMATS, ids=name_of)
def test_every_code_decodes_as_in_ml_dtypes_and_numpy(fmt):
    if fmt.is_integer:
        codes = np.arange(1 << fmt.bits, dtype=np.int8)
        expected = (codes << (8 - fmt.bits) >> (8 - fmt.bits)).astype(np.float64)
    else:
        expected = code_values(fmt)
    # float64 holds fp32 subnormals apart from zero, so a flushed one shows.
    assert_same_values(decoded(fmt), expected, np.arange(1 << fmt.bits))


@pytest.mark.slow
@pytest.mark.parametrize("fmt", [*SMALL_FORMATS, *INTEGERS], ids=name_of)
def test_every_code_decodes_as_in_the_scalar_twin(fmt):
    expected = [float(scalar.decode(code, fmt)) for code in range(1 << fmt.bits)]
    assert_same_values(decoded(fmt), np.array(expected), np.arange(1 << fmt.bits))


def test_oracle_notices_another_format():
    with pytest.raises(AssertionError, match="differ"):
        assert_same_values(decoded(E4M3), code_values(E4M3FN), np.arange(256))


def test_fp32_codes_are_its_bits():
    bits = np.random.default_rng(0).integers(0, 1 << 32, 100_000, dtype=np.uint32)
    got = np.asarray(jitted_decode(jnp.asarray(bits), FP32))
    np.testing.assert_array_equal(got.view(np.uint32), bits)


@pytest.mark.parametrize("fmt", IN_ML_DTYPES, ids=name_of)
def test_limits_equal_those_of_ml_dtypes(fmt):
    limits = ml_dtypes.finfo(NARROW[fmt.name])
    assert fmt.max_value == float(limits.max)
    smallest = limits.smallest_subnormal if fmt.is_signed else limits.smallest_normal
    assert 2.0**fmt.smallest_exponent == float(smallest)
    assert fmt.bits == limits.bits


@pytest.mark.parametrize("fmt", INTEGERS, ids=name_of)
def test_integer_limits(fmt):
    assert fmt.max_value == 2 ** (fmt.bits - 1) - 1
    assert fmt.smallest_exponent == 0


def test_bits_above_a_code_are_ignored():
    for fmt in (E4M3FN, INT4, E8M0):
        codes = np.arange(1 << fmt.bits)
        for dtype in (jnp.int32, jnp.uint32, jnp.uint16):
            raised = jnp.asarray(codes | 0x5A00, dtype)
            np.testing.assert_array_equal(jitted_decode(raised, fmt), decoded(fmt))


def test_codes_of_fp16_are_its_bits():
    every = np.arange(1 << 16, dtype=np.uint16)
    np.testing.assert_array_equal(decoded(FP16), every.view(np.float16).astype(np.float32))


@pytest.mark.parametrize("bits", [1, 17])
def test_unreasonable_integers_are_refused(bits):
    with pytest.raises(LpuError, match=rf"integer format odd: bits={bits} was given; allowed are"):
        integer("odd", bits)
