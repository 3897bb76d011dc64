"""Block formats with power-of-two scales against gfloat, fractions and integers.

Equality is exact everywhere: scales are powers of two and codes are rounded once.
"""

import math
from fractions import Fraction

import gfloat
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gfloat.formats import (
    format_info_mxfp4_e2m1,
    format_info_mxfp6_e2m3,
    format_info_mxfp6_e3m2,
    format_info_mxfp8_e4m3,
    format_info_mxfp8_e5m2,
    format_info_mxint8,
)
from hypothesis import given
from hypothesis import strategies as st

from lpu_jax.numerics import quantized
from lpu_jax.numerics.schemes import SCHEMES, Scheme, block_floating_point

MX = {
    "mxfp8_e4m3": format_info_mxfp8_e4m3,
    "mxfp8_e5m2": format_info_mxfp8_e5m2,
    "mxfp6_e3m2": format_info_mxfp6_e3m2,
    "mxfp6_e2m3": format_info_mxfp6_e2m3,
    "mxfp4": format_info_mxfp4_e2m1,
    "mxint8": format_info_mxint8,
}
#: Largest value and fraction bits of the elements, from the OCP standard's tables.
LARGEST = {
    "mxfp8_e4m3": (Fraction(448), 3),
    "mxfp8_e5m2": (Fraction(57344), 2),
    "mxfp6_e3m2": (Fraction(28), 2),
    "mxfp6_e2m3": (Fraction(15, 2), 3),
    "mxfp4": (Fraction(6), 1),
    "mxint8": (Fraction(127, 64), 6),
}
RULES = ("floor", "up", "even")
quantize = jax.jit(quantized.quantize, static_argnums=(1, 2), static_argnames="rounding")
dequantize = jax.jit(quantized.dequantize)
widen = jax.jit(quantized.widen)


def hard_blocks() -> np.ndarray:
    """Ordinary, wide, subnormal and huge blocks, zeros, and largest magnitudes at every edge."""
    rng = np.random.default_rng(1)
    edges = []
    for exponent in (*range(-126, -100, 5), *range(-30, 31, 6), 100, 125):
        for significand in (1, 1.5, 1.75, 1.875, 1.9375, 1.96875, 127 / 64, 255 / 128):
            middle = np.float32(math.ldexp(significand, exponent))
            for amax in (np.nextafter(middle, np.float32(0)), middle, middle * (1 + 2**-23)):
                block = rng.uniform(-1, 1, 32) * amax
                block[rng.integers(32)] = -amax
                edges.append(block)
    exponents = rng.integers(-148, 127, (256, 1)).astype(np.float64)
    wide = np.clip(rng.normal(size=(256, 32)), -3, 3) * 2.0 ** np.minimum(exponents, 125)
    ordinary = rng.normal(size=(8192, 32))
    uneven = ordinary[:256] * 2.0 ** rng.integers(-20, 20, (256, 32))
    ties = rng.integers(-511, 512, (64, 32)) / 256
    zero = np.zeros((2, 32))
    return np.concatenate([edges, wide, ordinary, uneven, ties, zero]).astype(np.float32)


#: 300,000 values: one array for all tests, so that each scheme compiles once.
BLOCKS = hard_blocks()
MAXIMA = [Fraction(float(amax)) for amax in np.abs(BLOCKS).max(1)]


def exponent_of(value: Fraction) -> int:
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    return exponent if Fraction(2) ** exponent <= value else exponent - 1


def scale_exponent(amax: Fraction, largest: Fraction, fraction_bits: int, rule: str) -> int:
    """The exponent of a block's scale, from the words of each rule."""
    if amax == 0:
        return -127
    if rule == "up":
        exponent = exponent_of(amax) - exponent_of(largest) - 2
        while amax > largest * Fraction(2) ** exponent:
            exponent += 1
    else:
        if rule == "even":
            step = Fraction(2) ** (exponent_of(amax) - fraction_bits)
            amax = round(amax / step) * step  # Python rounds halves to even
        exponent = exponent_of(amax) - exponent_of(largest)
    return min(max(exponent, -127), 127)


def scales_by_fractions(name: str, rule: str) -> np.ndarray:
    largest, fraction_bits = LARGEST[name]
    return np.array([scale_exponent(amax, largest, fraction_bits, rule) for amax in MAXIMA])


def rounded(scaled: np.ndarray, name: str, mode: gfloat.RoundMode) -> np.ndarray:
    """Values rounded to the element format by gfloat, saturating, in float64."""
    info = MX[name].etype
    values = gfloat.round_ndarray(info, scaled, mode, True)
    return np.maximum(values, -127 / 64) if name == "mxint8" else values  # -2 stays unused


def assert_same(q: quantized.QuantizedArray, exponents: np.ndarray, values: np.ndarray) -> None:
    np.testing.assert_array_equal(np.asarray(q.scales)[:, 0], exponents + 127)
    got = np.asarray(dequantize(q))
    np.testing.assert_array_equal(got, values.astype(np.float32))
    if q.codes.dtype != np.int8:
        np.testing.assert_array_equal(np.signbit(got), np.signbit(values))


@pytest.mark.first(3)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", MX)
def test_scales_follow_the_rule_and_elements_gfloat(name: str, rule: str) -> None:
    q = quantize(jnp.asarray(BLOCKS), SCHEMES[name].with_rule(rule), -1)
    quantized.check(q)
    exponents = scales_by_fractions(name, rule)
    scales = np.ldexp(1.0, exponents)[:, None]
    values = rounded(BLOCKS.astype(np.float64) / scales, name, gfloat.RoundMode.TiesToEven)
    assert_same(q, exponents, values * scales)


@pytest.mark.parametrize("name", MX)
def test_floor_equals_the_block_quantiser_of_gfloat(name: str) -> None:
    # In float64 its floor(log2(amax)) is exact for these values.
    expected = []
    for block in BLOCKS[::61].astype(np.float64):
        emax = exponent_of(LARGEST[name][0])
        scale = gfloat.block.compute_scale_amax(emax, block)
        codes = gfloat.encode_block(MX[name], scale, block / scale)
        values = np.array(list(gfloat.decode_block(MX[name], codes)))
        expected.append(np.maximum(values, -127 / 64 * scale) if name == "mxint8" else values)
    got = dequantize(quantize(jnp.asarray(BLOCKS), SCHEMES[name], -1))
    np.testing.assert_array_equal(got[::61], np.float32(expected))


@pytest.mark.parametrize(
    ("rounding", "mode"),
    [("rz", gfloat.RoundMode.TowardZero), ("rna", gfloat.RoundMode.TiesToAway)],
)
@pytest.mark.parametrize("name", ["mxfp8_e4m3", "mxint8"])
def test_other_roundings_of_elements_equal_gfloat(
    name: str, rounding: str, mode: gfloat.RoundMode
) -> None:
    q = quantize(jnp.asarray(BLOCKS), SCHEMES[name], -1, rounding=rounding)
    exponents = scales_by_fractions(name, "floor")
    scales = np.ldexp(1.0, exponents)[:, None]
    assert_same(q, exponents, rounded(BLOCKS.astype(np.float64) / scales, name, mode) * scales)


def test_the_oracles_can_fail() -> None:
    """Each mutant is a mistake that has been made elsewhere; the blocks above must show it."""
    with np.errstate(divide="ignore"):
        by_logarithm = np.floor(np.log2(np.abs(BLOCKS).max(1)))  # fp32: wrong below powers of two
    exact = scales_by_fractions("mxfp8_e4m3", "floor")
    by_logarithm = np.clip(by_logarithm - 8, -127, 127)
    assert (by_logarithm != exact).any()
    assert (exact != scales_by_fractions("mxfp8_e4m3", "up")).any()
    assert (exact != scales_by_fractions("mxfp8_e4m3", "even")).any()
    up = scales_by_fractions("mxfp4", "up")
    strict = [
        scale_exponent(amax * (1 + Fraction(1, 2**24)), *LARGEST["mxfp4"], "up") for amax in MAXIMA
    ]
    assert (up != strict).any()  # `<` instead of `<=`
    scaled = BLOCKS.astype(np.float64) / np.ldexp(1.0, exact)[:, None]
    even = rounded(scaled, "mxfp8_e4m3", gfloat.RoundMode.TiesToEven)
    assert (even != rounded(scaled, "mxfp8_e4m3", gfloat.RoundMode.TiesToAway)).any()


# --- edges, as stated -------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_edges_of_the_scale(rule: str) -> None:
    """e2m1: emax 2, largest 6 = 1.5 * 2**2, rounded to one fraction bit for `even`."""
    scheme = SCHEMES["mxfp4"].with_rule(rule)
    ulp = 2.0**-23
    cases = {
        0.0: (0, 0, 0),
        2.0**-149: (0, 0, 0),
        2.0 - ulp: (125, 126, 126),  # 1.99..: above 1.5, and rounds to 2
        2.0: (126, 126, 126),
        6.0: (127, 127, 127),
        6.0 * (1 + ulp): (127, 128, 127),
        7.0 - ulp * 4: (127, 128, 127),
        7.0: (127, 128, 128),  # a tie between 6 and 8
        float(np.finfo(np.float32).max): (252, 253, 253),
    }
    blocks = np.zeros((len(cases), 32), np.float32)
    blocks[:, 7] = list(cases)
    q = quantize(jnp.asarray(blocks), scheme, -1)
    expected = [codes[RULES.index(rule)] for codes in cases.values()]
    np.testing.assert_array_equal(np.asarray(q.scales)[:, 0], expected)


def test_the_largest_scale_saturates() -> None:
    """MXINT8 rounding up would need 2**128 for the largest fp32 numbers."""
    x = jnp.full((1, 32), np.finfo(np.float32).max)
    q = quantize(x, SCHEMES["mxint8"].with_rule("up"), -1)
    assert np.asarray(q.scales).item() == 254
    np.testing.assert_array_equal(q.codes, np.full((1, 32), 127))


@pytest.mark.parametrize("name", ["mxfp8_e4m3", "mxfp4", "msfp12"])
def test_infinity_and_nan_take_their_block_with_them(name: str) -> None:
    x = np.ones((64, 5), np.float32)
    x[3, 0], x[40, 1], x[63, 2] = np.nan, np.inf, -np.inf
    q = quantize(jnp.asarray(x), SCHEMES[name])
    rows = SCHEMES[name].block_rows
    is_lost = np.zeros_like(x, bool)
    for row, column in ((3, 0), (40, 1), (63, 2)):
        start = row // rows * rows
        is_lost[start : start + rows, column] = True
    for values in (dequantize(q), widen(q)):
        np.testing.assert_array_equal(np.isnan(values), is_lost)
        np.testing.assert_array_equal(np.asarray(values)[~is_lost], 1)
    np.testing.assert_array_equal(np.asarray(q.scales) == 255, is_lost[::rows])


# --- block floating point ---------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "mantissa_bits"), [(16, 3), (16, 7), (8, 1), (24, 5), (4, 15)])
def test_block_floating_point_equals_integers(rows: int, mantissa_bits: int) -> None:
    x = np.random.default_rng(3).normal(size=(48, 40)).astype(np.float32) * 100
    x[:rows, 0] = 0
    x[:rows, 1] *= np.float32(2.0**-130)  # subnormals
    scheme = block_floating_point(rows, mantissa_bits)
    q = quantize(jnp.asarray(x), scheme)
    quantized.check(q)
    assert scheme.bits_per_value == 1 + mantissa_bits + 8 / rows
    for i in range(0, 48, rows):
        for j in range(40):
            column = [Fraction(float(v)) for v in x[i : i + rows, j]]
            amax = max(abs(v) for v in column)
            shared = max(exponent_of(amax), -127) if amax else -127
            step = Fraction(2) ** (shared - mantissa_bits + 1)
            most = 2**mantissa_bits - 1
            codes = [min(max(round(v / step), -most), most) for v in column]
            np.testing.assert_array_equal(q.codes[i : i + rows, j], codes)
            assert q.scales[i // rows, j] == shared + 127
            values = [float(code * step) for code in codes]
            np.testing.assert_array_equal(dequantize(q)[i : i + rows, j], np.float32(values))


# --- properties -------------------------------------------------------------------------------

KEPT = [SCHEMES[name] for name in (*MX, "msfp12", "msfp16")]


@pytest.mark.slow
@given(seed=st.integers(0, 2**32 - 1), scheme=st.sampled_from(KEPT), spread=st.integers(0, 40))
def test_error_is_at_most_half_a_step(seed: int, scheme: Scheme, spread: int) -> None:
    """Half a step of the element's binade, or the clip above the largest value."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(4, 32)) * 2.0 ** rng.integers(-spread, spread + 1, (4, 32))
    q = quantize(jnp.asarray(x, jnp.float32), scheme, -1)
    x = x.astype(np.float32).astype(np.float64)
    scale = np.repeat(np.ldexp(1.0, np.asarray(q.scales).astype(int) - 127), scheme.block_rows, 1)
    fmt = scheme.format
    unit = 2.0**scheme.code_exponent
    largest = scale * fmt.max_value * unit
    if fmt.is_integer:
        step = scale * unit
    else:
        binade = np.maximum(np.frexp(x / scale)[1] - 1, 1 - fmt.bias)
        step = scale * np.ldexp(1.0, binade - fmt.mantissa_bits)
    bound = np.maximum(step / 2, np.abs(x) - largest)
    assert (np.abs(np.asarray(dequantize(q)) - x) <= bound).all()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", MX)
def test_quantising_again_changes_nothing(name: str, rule: str) -> None:
    """Exact for `floor` and `even`; `up` may halve the scale of a block and keep its values."""
    scheme = SCHEMES[name].with_rule(rule)
    q = quantize(jnp.asarray(BLOCKS), scheme, -1)
    values = dequantize(q)
    again = quantize(values, scheme, -1)
    np.testing.assert_array_equal(dequantize(again), values)
    if rule == "up":
        assert set(np.unique(np.asarray(q.scales) - np.asarray(again.scales))) <= {0, 1}
    else:
        for leaf, other in zip(jax.tree.leaves(q), jax.tree.leaves(again), strict=True):
            np.testing.assert_array_equal(np.asarray(leaf), np.asarray(other))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mxfp8_e4m3", "mxfp4", "msfp12"])
def test_blocks_along_either_axis_are_the_same_blocks(name: str) -> None:
    x = np.random.default_rng(4).normal(size=(3, 80, 70)).astype(np.float32)  # ragged both ways
    along_rows = quantize(jnp.asarray(x), SCHEMES[name])
    along_columns = quantize(jnp.asarray(x.swapaxes(-1, -2)), SCHEMES[name], -1)
    assert along_rows.scales.shape == (3, -(-80 // SCHEMES[name].block_rows), 70)
    for a, b in zip(jax.tree.leaves(along_rows), jax.tree.leaves(along_columns), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b).swapaxes(-1, -2))
    np.testing.assert_array_equal(
        dequantize(along_rows), np.asarray(dequantize(along_columns)).swapaxes(-1, -2)
    )
    one = quantize(jnp.asarray(x[1]), SCHEMES[name])
    np.testing.assert_array_equal(dequantize(one), dequantize(along_rows)[1])


@pytest.mark.slow
def test_stochastic_rounding_keeps_the_mean() -> None:
    """64 draws of 4096 values: the mean error is within six standard deviations of 0."""
    x = jnp.asarray(np.random.default_rng(5).uniform(0.5, 0.99, (128, 32)), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 64)

    def draw(key: jax.Array) -> jax.Array:
        q = quantized.quantize(x, SCHEMES["mxfp4"], -1, rounding="sr", key=key)
        return quantized.dequantize(q)

    error = np.asarray(jax.jit(jax.vmap(draw))(keys)).astype(np.float64) - np.asarray(x)
    # Scales are 2**-3, so steps of e2m1 between 4 and 8 (clipped at 6) or of 2**-2; values above
    # 0.75 are clipped, which is no rounding.
    error = error[:, np.asarray(x) < 0.75]
    deviation = 0.25 / 2 / math.sqrt(error.size)  # at most half a step each
    assert abs(error.mean()) < 6 * deviation
    assert np.abs(error).max() > 0.125  # more than rounding to nearest would err
