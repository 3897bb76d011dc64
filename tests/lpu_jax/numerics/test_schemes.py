"""Schemes as values: what they describe, and which are refused."""

import copy
from dataclasses import replace

import jax.numpy as jnp
import pytest

from lpu_jax.errors import LpuError, UnknownNameError
from lpu_jax.numerics.formats import E2M1, E4M3FN, E8M0, FP16, FP32, INT8
from lpu_jax.numerics.schemes import (
    FP8_BLOCK128,
    MXFP4,
    NVFP4,
    SCHEMES,
    Scheme,
    block_floating_point,
    scheme_named,
)

#: Element bits, block and largest value of an element: OCP MX v1.0 and the MSFP paper.
TABLE = {
    "mxfp8_e4m3": (8, 32, 448),
    "mxfp8_e5m2": (8, 32, 57344),
    "mxfp6_e3m2": (6, 32, 28),
    "mxfp6_e2m3": (6, 32, 7.5),
    "mxfp4": (4, 32, 6),
    "mxint8": (8, 32, 127 / 64),
    "nvfp4": (4, 16, 6),
    "msfp12": (4, 16, 7 / 4),
    "msfp16": (8, 16, 127 / 64),
}


@pytest.mark.parametrize("name", TABLE)
def test_named_schemes_are_the_published_ones(name: str) -> None:
    scheme = scheme_named(name)
    bits, block_rows, largest = TABLE[name]
    assert (scheme.format.bits, scheme.block_rows, scheme.block_columns) == (bits, block_rows, 1)
    assert scheme.format.max_value * 2.0**scheme.code_exponent == largest
    assert scheme.has_power_of_two_scales == (name != "nvfp4")
    assert scheme.rule == "floor"


def test_codes_lie_in_their_natural_types() -> None:
    types = {name: scheme.code_dtype.name for name, scheme in SCHEMES.items()}
    assert types == {
        **{"fp16": "float16", "bf16": "bfloat16"},
        **dict.fromkeys(("fp8", "fp8_column"), "float8_e4m3fn"),
        **dict.fromkeys(("int8", "int8_row", "int8_tensor", "int4", "mxint8"), "int8"),
        **dict.fromkeys(("msfp12", "msfp16"), "int8"),
        **{"mxfp8_e4m3": "float8_e4m3fn", "mxfp8_e5m2": "float8_e5m2"},
        **dict.fromkeys(("mxfp6_e3m2", "mxfp6_e2m3", "mxfp4", "nvfp4"), "uint8"),
    }
    assert block_floating_point(16, 9).code_dtype == jnp.int16
    assert NVFP4.scale_dtype == jnp.float8_e4m3fn
    assert MXFP4.scale_dtype == jnp.uint8
    assert scheme_named("int4").scale_dtype == jnp.bfloat16
    assert scheme_named("fp16").scale_dtype is None


def test_schemes_are_values() -> None:
    assert MXFP4.with_rule("up") == replace(MXFP4, rule="up")
    assert MXFP4.with_rule("up") != MXFP4
    assert hash(MXFP4.with_rule("up").with_rule("floor")) == hash(MXFP4)
    assert block_floating_point(16, 3, name="msfp12") == SCHEMES["msfp12"]
    assert [s.name for s in SCHEMES.values() if s.multiplies_bare] == ["int8", "int8_tensor"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(MXFP4, block_rows=0), "mxfp4: block_rows=0 .* at least 1, or None"),
        (lambda: replace(MXFP4, block_columns=-3), "block_columns=-3 was given"),
        (lambda: NVFP4.with_rule("up"), "nvfp4: rule 'up' .* not powers of two"),
        (lambda: block_floating_point(16, 0), "mantissa_bits=0 was given; it must be 1 to 15"),
        (lambda: block_floating_point(16, 16), "mantissa_bits=16 was given"),
        (lambda: block_floating_point(0, 3), "block_rows=0 was given"),
        (lambda: Scheme(name="s", format=E8M0), "s: e8m0 holds scales only"),
        (lambda: Scheme(name="s", format=E2M1, is_two_level=True), "need a floating point"),
        (
            lambda: Scheme(name="s", format=E2M1, scale_format=FP32, is_two_level=True),
            "scale_format=fp32 was given for two levels",
        ),
        (lambda: replace(NVFP4, scale_format=E8M0), "two-level scales need a floating point"),
        (lambda: replace(FP8_BLOCK128, scale_format=INT8), "scale_format=int8 was given"),
        (lambda: replace(FP8_BLOCK128, format=FP16), "11 significant bits .* fp32 .* at most 8"),
        (lambda: Scheme(name="s", format=FP32, scale_format=E8M0), "24 .* e8m0 .* at most 16"),
        (lambda: Scheme(name="s", format=FP16, scale_format=E4M3FN), "11 .* e4m3fn .* at most 8"),
    ],
)
def test_meaningless_schemes_are_refused(make, message: str) -> None:
    with pytest.raises(LpuError, match=message):
        make()


def test_an_unknown_rule_is_refused() -> None:
    scheme = copy.copy(
        MXFP4
    )  # the tests' type checker would refuse the word before the scheme does
    object.__setattr__(scheme, "rule", "down")
    with pytest.raises(LpuError, match=r"rule='down' .* one of floor, up, even"):
        scheme.__post_init__()


def test_an_unknown_name_lists_its_nearest() -> None:
    with pytest.raises(UnknownNameError, match="int4"):
        scheme_named("int3")
