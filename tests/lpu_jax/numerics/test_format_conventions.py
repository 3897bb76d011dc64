"""Formats of a user's own: every convention against gfloat and ml_dtypes; contradictions refused.

All comparisons are exact: both oracles round in float64, which holds every value and midpoint.
"""

from dataclasses import replace
from typing import get_args

import gfloat
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from gfloat.types import Domain
from hypothesis import assume, given
from hypothesis import strategies as st
from rounding_oracles import MODES, assert_same_values

from lpu_jax.errors import LpuError
from lpu_jax.numerics import rounding, scalar
from lpu_jax.numerics.formats import (
    E8M0,
    FORMATS,
    FP16,
    FP32,
    Convention,
    Format,
    floating,
    integer,
)
from lpu_jax.numerics.quantized import quantize
from lpu_jax.numerics.schemes import Scheme, storage_dtype

FNUZ = {
    floating("e4m3fnuz", exponent_bits=4, mantissa_bits=3, convention="fnuz"): (
        ml_dtypes.float8_e4m3fnuz
    ),
    floating("e5m2fnuz", exponent_bits=5, mantissa_bits=2, convention="fnuz"): (
        ml_dtypes.float8_e5m2fnuz
    ),
    floating("e4m3b11fnuz", exponent_bits=4, mantissa_bits=3, convention="fnuz", bias=11): (
        ml_dtypes.float8_e4m3b11fnuz
    ),
}
#: Values of one test: one length for all formats, so that each operation is compiled once.
N_VALUES = 8192
N_RANDOM = 1_000_000


def in_gfloat(exponent_bits: int, mantissa_bits: int, convention: str, bias: int):
    """Return gfloat's description, which says what is special by counts, not by codes."""
    return gfloat.FormatInfo(
        "user's",
        k=1 + exponent_bits + mantissa_bits,
        precision=mantissa_bits + 1,
        bias=bias,
        is_signed=True,
        domain=Domain.Extended if convention == "ieee" else Domain.Finite,
        has_nz=convention != "fnuz",
        num_high_nans={"ieee": 2**mantissa_bits - 1, "fn": 1}.get(convention, 0),
        has_subnormals=True,
        is_twos_complement=False,
    )


@st.composite
def formats(draw):
    """Draw widths, a convention and a bias that fp32 has room for, and gfloat's twin."""
    exponent_bits, mantissa_bits = draw(st.integers(1, 8)), draw(st.integers(0, 8))
    assume(exponent_bits + mantissa_bits <= 11)
    convention = draw(st.sampled_from(get_args(Convention)))
    top = (1 << exponent_bits) - 1
    if convention == "ieee":
        assume(mantissa_bits > 0)
        top -= 1
    if convention == "fn" and mantissa_bits == 0:
        top -= 1
    assume(top > 0)
    lowest, highest = top - 127, 150 - mantissa_bits
    assume(lowest <= highest)
    usual = 2 ** (exponent_bits - 1) - (convention != "fnuz")
    biases = st.integers(lowest, highest)
    if lowest <= usual <= highest:
        biases = st.one_of(st.just(usual), biases)
    bias = draw(biases)
    ours = floating(
        "mine",
        exponent_bits=exponent_bits,
        mantissa_bits=mantissa_bits,
        convention=convention,
        bias=None if bias == usual else bias,
    )
    return ours, in_gfloat(exponent_bits, mantissa_bits, convention, bias)


def by_gfloat(x: np.ndarray, twin, mode: str, overflow: str) -> np.ndarray:
    has_special = twin.num_high_nans > 0 or not twin.has_nz or twin.domain == Domain.Extended
    with np.errstate(invalid="ignore"):
        return gfloat.round_ndarray(
            twin, x.astype(np.float64), MODES[mode], sat=overflow == "saturate" or not has_special
        )


def hard_values(values: np.ndarray, seed: int) -> np.ndarray:
    """Return fp32 values around a format's own: themselves, midpoints and their neighbours."""
    rng = np.random.default_rng(seed)
    finite = np.unique(np.append(np.abs(values[np.isfinite(values)]), 0.0))
    finite = np.append(finite, 2 * finite[-1] - finite[-2])  # the first that is too large
    with np.errstate(over="ignore"):
        edges = np.append(finite, (finite[1:] + finite[:-1]) / 2).astype(np.float32)
        edges = rng.choice(edges, 2000)
        around = [np.nextafter(edges, np.float32(sign * np.inf)) for sign in (-1, 1)]
    special = np.float32([0, np.inf, 1e-45, 3e38])
    known = np.concatenate([edges, *around, special])
    bits = rng.integers(0, 2**31, N_VALUES - known.size, dtype=np.uint32)
    bits &= ~np.uint32(0x00400000)  # NumPy raises a flag for some NaN; no NaN among them
    random = np.where(bits >= 0x7F800000, bits - 0x01000000, bits).astype(np.uint32)
    x = np.concatenate([known, random.view(np.float32)])
    return x * rng.choice(np.float32([-1, 1]), x.size)


@pytest.mark.slow
@given(pair=formats(), seed=st.integers(0, 2**32 - 1))
def test_a_format_of_any_convention_is_gfloats(pair, seed):
    assert_is_gfloats(*pair, seed)


@pytest.mark.parametrize("convention", get_args(Convention))
def test_formats_of_a_user_are_gfloats(convention):
    ours = floating("e3m2", exponent_bits=3, mantissa_bits=2, convention=convention, bias=130)
    assert_is_gfloats(ours, in_gfloat(3, 2, convention, 130), 0)  # all below fp32's normal numbers


def test_a_format_with_all_exponents_of_fp32_but_no_infinity_is_gfloats():
    ours = floating("e8m2fnuz", exponent_bits=8, mantissa_bits=2, convention="fnuz")
    assert_is_gfloats(ours, in_gfloat(8, 2, "fnuz", 128), 0)


def test_the_oracle_notices_another_bias():
    ours = floating("e3m2", exponent_bits=3, mantissa_bits=2, convention="fn")
    with pytest.raises(AssertionError, match="differ"):
        assert_is_gfloats(ours, in_gfloat(3, 2, "fn", 4), 0)


def assert_is_gfloats(ours, twin, seed):
    """Raise unless every code decodes, and hard values round, as gfloat has it."""
    codes = np.arange(1 << ours.bits)
    expected = gfloat.decode_ndarray(twin, codes)
    padded = jnp.asarray(np.resize(codes, 4096), jnp.int32)
    values = np.asarray(rounding.decode(padded, ours))[: codes.size]
    assert_same_values(values, expected, codes)
    assert ours.max_value == twin.max
    assert 2.0**ours.smallest_exponent == expected[expected > 0].min()

    x = hard_values(expected, seed)
    for mode in ("rne", "rz", "rna"):
        for overflow in ("saturate", "ieee"):
            found = rounding.encode(jnp.asarray(x), ours, rounding=mode, overflow=overflow)
            assert int(found.max()) < 1 << ours.bits
            got = expected[np.asarray(found)]
            answer = by_gfloat(x, twin, mode, overflow)
            # A significand of one bit is always odd: gfloat takes the code's last bit for it.
            is_tie = (ours.mantissa_bits == 0) & (np.abs(np.frexp(x)[0]) == 0.75)
            compared = ~is_tie if mode == "rne" else np.ones_like(is_tie)
            # Towards zero a finite value never overflows; gfloat has it overflow.
            compared &= (mode != "rz") | (np.abs(x) <= ours.max_value)
            assert_same_values(got[compared], answer[compared], x[compared])
            for value in x[:20].tolist():
                code = scalar.encode(value, ours, rounding=mode, overflow=overflow)
                at = np.flatnonzero(x == np.float32(value))[0]
                assert code == int(found[at]) or value == 0


@pytest.mark.parametrize("fmt", FNUZ, ids=lambda fmt: fmt.name)
def test_formats_without_negative_zero_are_those_of_ml_dtypes(fmt):
    narrow = FNUZ[fmt]
    codes = np.arange(256, dtype=np.uint8)
    assert_same_values(
        np.asarray(rounding.decode(jnp.asarray(codes), fmt)),
        codes.view(narrow).astype(np.float32),
        codes,
    )
    assert [float(scalar.decode(code, fmt)) for code in range(128)] == (
        codes[:128].view(narrow).astype(np.float64).tolist()
    )
    every16 = np.arange(1 << 16, dtype=np.uint16)
    random = np.random.default_rng(0).integers(0, 1 << 32, N_RANDOM, dtype=np.uint32)
    with np.errstate(invalid="ignore"):  # signalling NaN
        x = np.concatenate(
            [
                every16.view(np.float16).astype(np.float32),
                every16.view(ml_dtypes.bfloat16).astype(np.float32),
                random.view(np.float32),
            ]
        )
        expected = x.astype(narrow).view(np.uint8)
    got = np.asarray(rounding.encode(jnp.asarray(x), fmt, overflow="ieee"))
    np.testing.assert_array_equal(got, expected)


def test_there_is_no_negative_zero_to_round_to():
    fmt = next(iter(FNUZ))
    tiny = [-0.0, -1e-30, -(2.0**-11)]  # the last is half of the smallest number, to the even zero
    assert rounding.encode(jnp.float32(tiny), fmt).tolist() == [0, 0, 0]
    assert [scalar.encode(value, fmt) for value in tiny] == [0, 0, 0]
    assert scalar.encode(-(2.0**-10), fmt) == 0x81


@pytest.mark.parametrize("sign", [1, -1])
def test_a_changed_format_is_refused_and_a_derived_one_saturates_with_its_sign(sign):
    with pytest.raises(LpuError, match=r"e4m3: codes \(119, 120, 124\) .* formats\.floating"):
        replace(FORMATS["e4m3"], mantissa_bits=2)
    e4m2 = floating("e4m2", exponent_bits=4, mantissa_bits=2, convention="ieee")
    x = jnp.float32([sign * 1e5])
    assert rounding.round_to(x, e4m2).tolist() == [sign * 224.0]  # 1.75 * 2**7
    assert rounding.round_to(x, e4m2, overflow="ieee").tolist() == [sign * np.inf]


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda fmt: fmt.name)
@pytest.mark.parametrize(
    "field", ["exponent_bits", "mantissa_bits", "max_code", "inf_code", "nan_code", "bias"]
)
def test_no_field_can_be_changed_alone(fmt, field):
    value = getattr(fmt, field)
    for changed in (value - 1, value + 1) if value is not None else (0, 1, 127):
        if field == "bias" and fmt.is_signed and not fmt.is_integer and fmt != FP32:
            continue  # the other fields do not follow from the bias
        with pytest.raises(LpuError) as error:
            replace(fmt, **{field: changed})
        assert_is_one_sentence(str(error.value))


@pytest.mark.parametrize(
    "fields",
    [
        {"is_signed": False},
        {"is_symmetric": True},
        {"bias": 200},  # numbers below the smallest of fp32
        {"bias": -200},  # and above its largest
        {"max_code": True},
    ],
)
def test_fields_of_a_format_are_checked(fields):
    with pytest.raises(LpuError) as error:
        replace(FORMATS["e4m3"], **fields)
    assert_is_one_sentence(str(error.value))


@pytest.mark.parametrize(
    ("exponent_bits", "mantissa_bits", "convention"),
    [
        *((0, 3, "fn"), (9, 3, "fn"), (4, -1, "fn"), (4, 24, "fn"), (4, 3, "ocp"), (5, 0, "ieee")),
        *((1, 3, "ieee"), (1, 0, "fn"), (8, 3, "fn"), (8, 3, "finite"), (4.0, 3, "fn")),
    ],
)
def test_formats_that_cannot_be_are_refused(exponent_bits, mantissa_bits, convention):
    with pytest.raises(LpuError) as error:
        floating(
            "odd",
            exponent_bits=exponent_bits,
            mantissa_bits=mantissa_bits,
            convention=convention,
        )
    assert_is_one_sentence(str(error.value))


def test_formats_are_the_same_by_value_not_by_name():
    mine = floating("mine", exponent_bits=5, mantissa_bits=10, convention="ieee")
    assert mine == FP16
    assert hash(mine) == hash(FP16)
    assert storage_dtype(mine) == np.float16
    misnamed = floating("fp16", exponent_bits=4, mantissa_bits=3, convention="ieee")
    assert misnamed != FP16
    assert storage_dtype(misnamed) == np.uint8
    single = floating("single", exponent_bits=8, mantissa_bits=23, convention="ieee")
    largest = jnp.float32([3.4028235e38, -3.4028235e38, np.inf])
    assert rounding.round_to(largest, single, overflow="ieee").tolist() == largest.tolist()


@pytest.mark.slow
@pytest.mark.parametrize(
    "element",
    [
        floating("e2m2", exponent_bits=2, mantissa_bits=2, convention="finite"),
        floating("e3m3fnuz", exponent_bits=3, mantissa_bits=3, convention="fnuz"),
        floating("e5m9", exponent_bits=5, mantissa_bits=9, convention="fn"),
        integer("int11", 11),
    ],
    ids=lambda fmt: fmt.name,
)
def test_a_scheme_of_a_users_format_rounds_each_value_once(element: Format):
    scheme = Scheme(name="mine", format=element, block_rows=32, scale_format=E8M0)
    w = np.random.default_rng(1).normal(size=(64, 3)).astype(np.float32)
    got = np.asarray(quantize(jnp.asarray(w), scheme).dequantize())
    amax = np.abs(w.reshape(2, 32, 3)).max(1, keepdims=True)
    top = np.floor(np.log2(element.max_value))
    scale = np.exp2(np.floor(np.log2(amax)) - top).repeat(32, 1).reshape(64, 3)
    expected = [
        float(scalar.round_to(float(value), element)) for value in (w / scale).reshape(-1)
    ] * scale.reshape(-1)
    np.testing.assert_array_equal(got.reshape(-1), np.float32(expected))


def assert_is_one_sentence(message: str) -> None:
    assert message.endswith(".")
    assert "\n" not in message
    assert len(message) < 300, message
