"""The meaning of each conversion and of a tile sum, one number at a time, in Python integers.

Slow and readable: this is the specification that `rounding` and `accumulate` are tested against.
Rounding is to nearest, ties to even (RNE); other roundings are not modelled.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

from .formats import FP32, Format

#: A finite value, or one of the floats inf, -inf, nan and -0.0, which a Fraction cannot hold.
Value = Fraction | float
Overflow = Literal["saturate", "ieee"]


def decode(code: int, fmt: Format) -> Value:
    """Return the value of a code: a Fraction, or a float for -0, infinities and NaN.

    Args:
        code: bit pattern, `0 <= code < 2**fmt.bits`.
        fmt: the format.

    Fidelity:
        Exact.
    """
    assert 0 <= code < 1 << fmt.bits, f"code {code} does not fit {fmt.name}"
    if fmt.is_integer:
        return Fraction(code - (1 << fmt.bits) if code >> (fmt.bits - 1) else code)
    magnitude_bits = fmt.bits - 1
    negative, magnitude = divmod(code, 1 << magnitude_bits)
    sign = -1 if negative else 1
    if magnitude == fmt.inf_code:
        return sign * math.inf
    if magnitude > fmt.max_code:
        return math.nan
    if magnitude == 0:
        return -0.0 if negative else Fraction(0)
    exponent, fraction = divmod(magnitude, 1 << fmt.mantissa_bits)
    if exponent == 0:  # subnormal: no implicit one
        return sign * fraction * Fraction(2) ** fmt.smallest_exponent
    significand = fraction + (1 << fmt.mantissa_bits)
    return sign * significand * Fraction(2) ** (exponent - fmt.bias - fmt.mantissa_bits)


def _round_half_even(value: Fraction) -> int:
    """Return the integer nearest to a non-negative fraction, ties to even."""
    whole, rest = divmod(value.numerator, value.denominator)
    twice = 2 * rest - value.denominator
    return whole + (1 if twice > 0 or (twice == 0 and whole & 1) else 0)


def _overflow_code(fmt: Format, overflow: Overflow) -> int:
    """Return the magnitude code of a value that is too large for the format."""
    if overflow == "saturate":
        return fmt.max_code
    if fmt.inf_code is not None:
        return fmt.inf_code
    return fmt.max_code if fmt.nan_code is None else fmt.nan_code


def _exponent_of(value: Fraction) -> int:
    """Return `floor(log2(value))` of a positive fraction."""
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    return exponent if Fraction(2) ** exponent <= value else exponent - 1


def encode(value: Value, fmt: Format, overflow: Overflow = "saturate") -> int:
    """Round a value to a format (RNE) and return its code.

    Special cases: NaN gives the NaN code (0 in formats without one); an infinity is an overflow;
    -0 keeps its sign in floating point formats. Rounding comes first: a value overflows if its
    rounding with unbounded exponent does.

    Args:
        value: the number.
        fmt: the format.
        overflow: "saturate" to the largest finite value, or "ieee": infinity, else NaN, and
            integers saturate.

    Fidelity:
        Exact, one rounding.

    Source:
        IEEE 754-2019 §4.3.1 and §7.4; OCP OFP8 v1.0 for the two overflow behaviours.
    """
    negative = math.copysign(1.0, value) < 0 if isinstance(value, float) else value < 0
    if isinstance(value, float) and math.isnan(value):
        return fmt.nan_code or 0
    if isinstance(value, float) and math.isinf(value):
        magnitude = _overflow_code(fmt, overflow)
    else:
        magnitude = _encode_magnitude(abs(Fraction(value)), fmt, overflow)
    if fmt.is_integer:
        if negative and _is_below_integer_range(value, fmt):
            return fmt.max_code + 1  # two's complement of the lowest integer
        return -magnitude % (1 << fmt.bits) if negative else magnitude
    return magnitude | (1 << (fmt.bits - 1) if negative else 0)


def _is_below_integer_range(value: Value, fmt: Format) -> bool:
    """Tell whether a negative value rounds to the lowest two's complement integer or below."""
    return math.isinf(value) or _round_half_even(abs(Fraction(value))) > fmt.max_code


def _encode_magnitude(value: Fraction, fmt: Format, overflow: Overflow) -> int:
    """Return the code of a non-negative finite value, without its sign."""
    if value == 0:
        return 0
    step = fmt.smallest_exponent
    if not fmt.is_integer:
        step = max(step, _exponent_of(value) - fmt.mantissa_bits)
    significand = _round_half_even(value / Fraction(2) ** step)
    # Consecutive codes are consecutive significands; a carry moves into the exponent by itself.
    code = significand + ((step - fmt.smallest_exponent) << fmt.mantissa_bits)
    return code if code <= fmt.max_code else _overflow_code(fmt, overflow)


def round_to(value: Value, fmt: Format, overflow: Overflow = "saturate") -> Value:
    """Return `value` rounded to a format (RNE): `decode(encode(value))`."""
    return decode(encode(value, fmt, overflow), fmt)


def round_fraction_to_fp32(value: Value) -> float:
    """Return the fp32 number nearest to `value` (RNE; overflow gives infinity) as a float."""
    return float(round_to(value, FP32, "ieee"))


def dot_tile(x: Sequence[float], w: Sequence[float]) -> float:
    """Return the exact sum of products of one K tile, rounded once to fp32.

    An exact zero is +0. Infinities and NaN follow IEEE 754.

    Args:
        x: activations of the tile, finite or not.
        w: weights of the tile, as many.

    Fidelity:
        Exact, one rounding (RNE).
    """
    products = list(zip(x, w, strict=True))
    if not all(math.isfinite(value) for pair in products for value in pair):
        return sum(float(a) * float(b) for a, b in products)
    exact = sum((Fraction(a) * Fraction(b) for a, b in products), Fraction(0))
    return round_fraction_to_fp32(exact)


def dot(x: Sequence[float], w: Sequence[float], k_tile: int) -> float:
    """Return the dot product as the MXM makes it: tiles rounded once, added in fp32 in order."""
    total = 0.0
    for start in range(0, len(x), k_tile):
        part = dot_tile(x[start : start + k_tile], w[start : start + k_tile])
        if math.isfinite(total) and math.isfinite(part):
            total = round_fraction_to_fp32(Fraction(total) + Fraction(part))
        else:
            total += part
    return total
