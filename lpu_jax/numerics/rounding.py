"""Conversions between fp32 and every format in pure integer operations (twins of `scalar`).

Integer operations give the same bits on every backend: a float cast may flush subnormals, round
twice, or be removed (a compiler that is allowed excess precision drops fp32 -> fp16 -> fp32).
Rounding is to nearest, ties to even; truncation and stochastic rounding are not modelled.
"""

from typing import Literal

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Float16, Float32, Int32, Integer, UInt32

from .formats import FP16, Format

Overflow = Literal["saturate", "ieee"]

#: A significand is normalised to a leading one at this bit: 24 bits of fp32 fit above it together
#: with room for a sticky bit, and a rounding carry cannot leave 32 bits.
_TOP = 29


def encode(
    x: Float32[Array, "..."], fmt: Format, overflow: Overflow = "saturate"
) -> UInt32[Array, "..."]:
    """Round fp32 values to a format (RNE) and return their codes.

    Special cases: NaN gives the NaN code (0 in formats without one); an infinity is an overflow;
    -0 keeps its sign in floating point formats.

    Args:
        x: values; fp32 subnormals count with their exact value.
        fmt: target format.
        overflow: "saturate" to the largest finite value, or "ieee": infinity, else NaN, and
            integers saturate.

    Returns:
        Bit patterns, sign included, in the low `fmt.bits` bits.

    Fidelity:
        Exact, one rounding; equal to `scalar.encode`.

    Source:
        IEEE 754-2019 §4.3.1; OCP OFP8 v1.0 for the two overflow behaviours.
    """
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    significand, exponent = _split(bits)
    magnitude = _round_magnitude(*_normalise(significand, exponent), fmt, overflow)
    absolute = bits & jnp.uint32(0x7FFFFFFF)
    special = jnp.where(
        absolute > 0x7F800000,
        jnp.uint32(fmt.nan_code or 0),
        jnp.uint32(_overflow_code(fmt, overflow)),
    )
    magnitude = jnp.where(absolute >= 0x7F800000, special, magnitude)
    return _with_sign(magnitude, _is_negative(bits), absolute > 0x7F800000, fmt)


def decode(codes: Integer[Array, "..."], fmt: Format) -> Float32[Array, "..."]:
    """Return the fp32 values of codes.

    Args:
        codes: bit patterns of any integer type; bits above `fmt.bits` are ignored.
        fmt: their format.

    Fidelity:
        Exact: every value of every format is an fp32 number. NaN payloads are not kept.
    """
    code = codes.astype(jnp.uint32)
    if fmt.is_integer:
        return to_signed(code, fmt).astype(jnp.float32)
    magnitude_bits = fmt.bits - 1
    magnitude = code & jnp.uint32((1 << magnitude_bits) - 1)
    sign = (code >> magnitude_bits & jnp.uint32(1)) << 31
    if fmt.exponent_bits == 8:  # the exponents of fp32: subnormals stay subnormals
        finite = magnitude << (23 - fmt.mantissa_bits)
    else:
        finite = _decode_narrow(magnitude, fmt)
    special = jnp.uint32(0x7FC00000)
    if fmt.inf_code is not None:
        special = jnp.where(magnitude == fmt.inf_code, jnp.uint32(0x7F800000), special)
    bits = jnp.where(magnitude > fmt.max_code, special, finite)
    return lax.bitcast_convert_type(bits | sign, jnp.float32)


def _decode_narrow(magnitude: UInt32[Array, "..."], fmt: Format) -> UInt32[Array, "..."]:
    """Return fp32 bits of magnitudes of a format whose smallest value is a normal fp32."""
    exponent = magnitude >> fmt.mantissa_bits
    fraction = magnitude & jnp.uint32((1 << fmt.mantissa_bits) - 1)
    normal = (magnitude << (23 - fmt.mantissa_bits)) + jnp.uint32((127 - fmt.bias) << 23)
    shift = lax.clz(fraction) - jnp.uint32(31 - fmt.mantissa_bits)
    field = jnp.uint32(128 - fmt.bias) - shift  # leading one becomes implicit
    subnormal = ((fraction << shift) - jnp.uint32(1 << fmt.mantissa_bits)) << (
        23 - fmt.mantissa_bits
    )
    subnormal = jnp.where(fraction == 0, jnp.uint32(0), subnormal | (field << 23))
    return jnp.where(exponent == 0, subnormal, normal)


def round_to(
    x: Float32[Array, "..."], fmt: Format, overflow: Overflow = "saturate"
) -> Float32[Array, "..."]:
    """Return fp32 values rounded to a format (RNE): `decode(encode(x))`.

    Fidelity:
        Exact, one rounding.
    """
    return decode(encode(x, fmt, overflow), fmt)


def to_fp16(x: Float32[Array, "..."]) -> Float16[Array, "..."]:
    """Round fp32 to fp16 (RNE, subnormals kept, overflow to infinity).

    The integer codec is used although `astype` gives the same bits on CPU: a GPU compiler may
    remove a pair of casts fp32 -> fp16 -> fp32 (excess precision), but never a bit pattern.

    Fidelity:
        Exact, one rounding.
    """
    codes = encode(x, FP16, "ieee").astype(jnp.uint16)
    return lax.bitcast_convert_type(codes, jnp.float16)


def from_fp16(x: Float16[Array, "..."]) -> Float32[Array, "..."]:
    """Widen fp16 to fp32.

    Fidelity:
        Exact, subnormals included: each fp16 value is a normal fp32 number or zero, so flushing
        of fp32 subnormals cannot touch it.
    """
    return x.astype(jnp.float32)


def round_product(
    code_values: Float[Array, "..."],
    scales: Float32[Array, "..."],
    fmt: Format,
    overflow: Overflow = "ieee",
) -> UInt32[Array, "..."]:
    """Return codes of `code_values * scales`, the exact product rounded once (RNE).

    Args:
        code_values: finite values with at most 8 significant bits (int4, int8, e4m3 codes), or
            NaN.
        scales: fp32 scales, broadcast-compatible by shape (ranks equal).
        fmt: target format.
        overflow: as in `encode`.

    Fidelity:
        Exact, one rounding. The 8 by 24 bit product fits 32 bits, which a product in fp32 does
        not: rounding that one again would round twice.
    """
    a = lax.bitcast_convert_type(code_values.astype(jnp.float32), jnp.uint32)
    b = lax.bitcast_convert_type(scales, jnp.uint32)
    a_significand, a_exponent = _split(a)
    b_significand, b_exponent = _split(b)
    product = (a_significand >> 16) * b_significand
    exponent = a_exponent + b_exponent + 16
    magnitude = _round_magnitude(*_normalise(product, exponent), fmt, overflow)
    a_special, b_special = (v & jnp.uint32(0x7F800000) == jnp.uint32(0x7F800000) for v in (a, b))
    special = a_special | b_special
    magnitude = jnp.where(special, jnp.uint32(fmt.nan_code or 0), magnitude)
    return _with_sign(magnitude, _is_negative(a ^ b), special, fmt)


def to_signed(codes: UInt32[Array, "..."], fmt: Format) -> Int32[Array, "..."]:
    """Return the integers that two's complement codes of an integer format stand for."""
    unused = 32 - fmt.bits
    return lax.bitcast_convert_type(codes << unused, jnp.int32) >> unused


def _split(bits: UInt32[Array, "..."]) -> tuple[UInt32[Array, "..."], Int32[Array, "..."]]:
    """Return integers with `|value| = significand * 2**exponent` for finite fp32 bits."""
    field = (bits >> 23 & jnp.uint32(0xFF)).astype(jnp.int32)
    fraction = bits & jnp.uint32(0x7FFFFF)
    significand = jnp.where(field > 0, fraction | jnp.uint32(0x800000), fraction)
    return significand, jnp.maximum(field, 1) - 150


def _normalise(
    significand: UInt32[Array, "..."], exponent: Int32[Array, "..."]
) -> tuple[UInt32[Array, "..."], Int32[Array, "..."]]:
    """Shift the leading one to bit `_TOP` (bits lost below go into a sticky bit).

    Returns:
        The shifted significand, and the exponent of its leading one: `floor(log2(value))`.
    """
    left = lax.clz(significand)
    shifted = significand << left
    sticky = (shifted & jnp.uint32(3) != 0).astype(jnp.uint32)
    return shifted >> 2 | sticky, exponent + 31 - left.astype(jnp.int32)


def _round_magnitude(
    significand: UInt32[Array, "..."],
    exponent: Int32[Array, "..."],
    fmt: Format,
    overflow: Overflow,
) -> UInt32[Array, "..."]:
    """Return magnitude codes of normalised significands; zero significands give code 0."""
    if fmt.is_integer:
        field = jnp.zeros_like(exponent)
        drop = _TOP - exponent
        too_large = exponent >= fmt.bits
    else:
        biased = exponent + fmt.bias
        field = jnp.maximum(biased - 1, 0)  # the significand's leading one adds the last 1
        drop = _TOP - fmt.mantissa_bits + jnp.maximum(1 - biased, 0)
        too_large = biased > (1 << fmt.exponent_bits)
    # From bit 31 on everything is below half a step. An integer far too large needs no shift.
    drop = jnp.clip(drop, 1, 31).astype(jnp.uint32)
    kept = significand >> drop
    rest = significand & ((jnp.uint32(1) << drop) - jnp.uint32(1))
    half = jnp.uint32(1) << (drop - jnp.uint32(1))
    up = (rest > half) | ((rest == half) & (kept & jnp.uint32(1) == 1))
    field_bits = jnp.clip(field, 0, 1 << fmt.exponent_bits).astype(jnp.uint32) << fmt.mantissa_bits
    code = kept + up.astype(jnp.uint32) + field_bits
    code = jnp.where(
        too_large | (code > fmt.max_code), jnp.uint32(_overflow_code(fmt, overflow)), code
    )
    return jnp.where(significand == 0, jnp.uint32(0), code)


def _overflow_code(fmt: Format, overflow: Overflow) -> int:
    """Return the magnitude code of a value that is too large for the format."""
    if fmt.is_integer:
        return fmt.max_code + 1  # `_with_sign` clips it to the larger end on the positive side
    if overflow == "saturate":
        return fmt.max_code
    if fmt.inf_code is not None:
        return fmt.inf_code
    return fmt.max_code if fmt.nan_code is None else fmt.nan_code


def _with_sign(
    magnitude: UInt32[Array, "..."],
    negative: Bool[Array, "..."],
    is_nan: Bool[Array, "..."],
    fmt: Format,
) -> UInt32[Array, "..."]:
    """Attach the sign: a bit in floating point, two's complement in integers. NaN is positive."""
    negative = negative & ~is_nan
    if fmt.is_integer:
        positive = jnp.minimum(magnitude, jnp.uint32(fmt.max_code))
        mask = jnp.uint32((1 << fmt.bits) - 1)
        return jnp.where(negative, (jnp.uint32(0) - magnitude) & mask, positive)
    return magnitude | jnp.where(negative, jnp.uint32(1 << (fmt.bits - 1)), jnp.uint32(0))


def _is_negative(bits: UInt32[Array, "..."]) -> Bool[Array, "..."]:
    """Tell whether the sign bit of fp32 bits is set."""
    return bits >> 31 == 1
