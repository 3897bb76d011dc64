"""Every fp32 number into every narrow format, against thresholds in exact arithmetic."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slices import some_slow

from lpu_jax.numerics import rounding, scalar
from lpu_jax.numerics.formats import E4M3FN, E8M0, FORMATS

INF_BITS = 0x7F800000
N_PER_STEP = 1 << 24
NARROW_FORMATS = [fmt for fmt in FORMATS.values() if fmt.bits <= 8]
#: Those tried with the other roundings too: a number and a scale.
WIDER_TRIED = [E4M3FN, E8M0]


def first_bits_at_least(value, or_above):
    """Return the bits of the first fp32 number at least (or, `or_above`, larger than) `value`."""
    bits = scalar.encode(value, FORMATS["fp32"], rounding="rz")
    exact = scalar.decode(bits, FORMATS["fp32"])
    return bits + (1 if exact < value or or_above else 0)


def thresholds(values, fmt, mode):
    """Return, per code of `values`, which start at code 0, the first fp32 bits that round to it.

    Halfway between neighbours lies the threshold of a nearest rounding, and it belongs to the
    upper one if ties go away, or to even and the upper code is even (of a scale, whose single
    significant bit is odd, IEEE 754 takes the upper one). Integers and floating point alike have
    consecutive codes for consecutive positive values.
    """
    starts = [0]
    for code in range(1, len(values)):
        edge = values[code] if mode == "rz" else (values[code - 1] + values[code]) / 2
        goes_down = mode == "rne" and code % 2 == 1 and fmt.is_signed
        starts.append(first_bits_at_least(edge, goes_down))
    return np.array(starts)


def expected_codes(starts, first, last):
    """Return the codes of the fp32 bits from `first` up to `last`."""
    edges = np.clip(np.append(starts, INF_BITS), first, last)
    return np.repeat(np.arange(starts.size, dtype=np.uint8), np.diff(edges))


def negated(codes, fmt):
    """Return the codes of negative numbers from the magnitudes of their codes."""
    if not fmt.is_signed:
        return np.full_like(codes, fmt.nan_code)
    if fmt.is_integer:
        return (-codes.astype(np.int16) % (1 << fmt.bits)).astype(np.uint8)
    return codes | np.uint8(1 << (fmt.bits - 1))


@pytest.mark.parametrize(
    ("fmt", "mode"),
    some_slow(
        [(fmt, "rne") for fmt in NARROW_FORMATS]
        + [(f, m) for f in WIDER_TRIED for m in ("rz", "rna")],
        count=4,
    ),
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_every_fp32_number_rounds_right(fmt, mode):
    values = [Fraction(scalar.decode(code, fmt)) for code in range(fmt.max_code + 1)]
    starts = lowest_starts = thresholds(values, fmt, mode)
    if fmt.is_integer:  # two's complement goes one further down
        lowest_starts = thresholds([*values, Fraction(fmt.max_code + 1)], fmt, mode)

    @jax.jit
    def encode(first, sign):
        bits = first + jnp.arange(N_PER_STEP, dtype=jnp.uint32) | sign
        x = jax.lax.bitcast_convert_type(bits, jnp.float32)
        return rounding.encode(x, fmt, rounding=mode)

    for first in range(0, INF_BITS, N_PER_STEP):
        last = min(first + N_PER_STEP, INF_BITS)
        expected = expected_codes(starts, first, last)
        got = np.asarray(encode(jnp.uint32(first), jnp.uint32(0)))[: last - first]
        if first == 0 and not fmt.is_signed:
            expected[0] = fmt.nan_code  # zero
        assert np.array_equal(got, expected), hex(first)
        negative = np.asarray(encode(jnp.uint32(first), jnp.uint32(1 << 31)))[: last - first]
        expected = negated(expected_codes(lowest_starts, first, last), fmt)
        assert np.array_equal(negative, expected), hex(first)


def test_thresholds_notice_another_rounding():
    fmt = E4M3FN
    values = [Fraction(scalar.decode(code, fmt)) for code in range(fmt.max_code + 1)]
    found = {mode: thresholds(values, fmt, mode) for mode in ("rne", "rz", "rna")}
    assert (found["rne"] != found["rna"]).sum() == fmt.max_code // 2  # the odd codes but 1 ... 125
    assert (found["rz"] > found["rna"]).sum() == fmt.max_code
