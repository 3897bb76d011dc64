"""The meaning of each conversion and of a tile sum, one number at a time, in Python integers.

Slow and readable: this is the specification that `rounding` and `accumulate` are tested against.
Directed rounding other than towards zero is not modelled.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

from ..arguments import Positive, checked, described
from ..errors import LpuError
from .formats import FP32, Format, Overflow, Rounding, check_random

#: A finite value, or one of the floats inf, -inf, nan and -0.0, which a Fraction cannot hold.
Value = Fraction | float | int


@checked
def decode(code: int, fmt: Format, *, exponent: int = 0) -> Value:
    """Return `value * 2**exponent` of a code: a Fraction, or a float for -0, infinities and NaN.

    Args:
        code: bit pattern, `0 <= code < 2**fmt.bits`.
        fmt: the format.
        exponent: power of two to multiply by, at most 2**16 in magnitude.

    Raises:
        LpuError: if the format has no such code, or for an exponent out of range.

    Fidelity:
        Exact.
    """
    if not 0 <= code < 1 << fmt.bits:
        raise LpuError(
            f"scalar.decode: code={described(code)} was given; codes of {fmt.name} are 0 to "
            f"{(1 << fmt.bits) - 1}."
        )
    _check_exponent("scalar.decode", exponent)
    value = _decode(code, fmt)
    return value * Fraction(2) ** exponent if isinstance(value, Fraction) else value


def _check_exponent(caller: str, exponent: int) -> None:
    if abs(exponent) > 1 << 16:
        raise LpuError(
            f"{caller}: exponent={described(exponent)} was given; it must be -2**16 to 2**16."
        )


def _decode(code: int, fmt: Format) -> Value:
    """Return the value of a code."""
    if fmt.is_integer:
        return Fraction(code - (1 << fmt.bits) if code >> (fmt.bits - 1) else code)
    if not fmt.is_signed:
        return math.nan if code > fmt.max_code else Fraction(2) ** (code - fmt.bias)
    negative, magnitude = divmod(code, 1 << (fmt.bits - 1))
    sign = -1 if negative else 1
    if magnitude == fmt.inf_code:
        return sign * math.inf
    if magnitude > fmt.max_code or code == fmt.nan_code:
        return math.nan
    if magnitude == 0:
        return -0.0 if negative else Fraction(0)
    exponent, fraction = divmod(magnitude, 1 << fmt.mantissa_bits)
    if exponent == 0:  # subnormal: no implicit one
        return sign * fraction * Fraction(2) ** fmt.smallest_exponent
    significand = fraction + (1 << fmt.mantissa_bits)
    return sign * significand * Fraction(2) ** (exponent - fmt.bias - fmt.mantissa_bits)


def _round_to_integer(value: Fraction, rounding: Rounding, random: int | None) -> int:
    """Return one of the two integers next to a non-negative fraction."""
    whole, rest = divmod(value.numerator, value.denominator)
    if random is not None:  # "sr"
        return whole + ((rest << 32) // value.denominator + random >> 32)
    if rounding == "rz":
        return whole
    twice = 2 * rest - value.denominator
    is_tie_up = twice == 0 and (rounding == "rna" or whole % 2 == 1)
    return whole + (1 if twice > 0 or is_tie_up else 0)


def _exponent_of(value: Fraction) -> int:
    """Return `floor(log2(value))` of a positive fraction."""
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    return exponent if Fraction(2) ** exponent <= value else exponent - 1


@checked
def encode(
    value: Value,
    fmt: Format,
    *,
    rounding: Rounding = "rne",
    overflow: Overflow = "saturate",
    exponent: int = 0,
    random: int | None = None,
) -> int:
    """Round `value * 2**-exponent` to a format and return its code.

    Special cases: NaN gives the NaN code (0 in formats without one); an infinity is an overflow;
    -0 keeps its sign in floating point formats that have one. In e8m0, which has neither sign nor
    zero, zero and negative values give NaN, and positive values below `2**-127` give `2**-127`;
    "rne" rounds every tie of it, 1.5 times a power of two, up. Rounding comes first: a value
    overflows if its rounding with unbounded exponent is too large. Towards zero ("rz") no finite
    value overflows to infinity or NaN.

    Args:
        value: the number.
        fmt: the format.
        rounding: see `Rounding`. Stochastic: with `r` in [0, 1) the discarded fraction of a step,
            the magnitude is rounded up if `floor(r * 2**32) + random >= 2**32`.
        overflow: "saturate" to the largest finite value, or "ieee": infinity, else NaN, else
            saturate.
        exponent: power of two to divide by first, at most 2**16 in magnitude.
        random: 32 random bits, for "sr" only.

    Raises:
        LpuError: if random bits are missing or not used, or an exponent is out of range.

    Fidelity:
        Exact, one rounding.

    Source:
        IEEE 754-2019 §4.3 and §7.4; OCP OFP8 v1.0 for the two overflow behaviours; ml_dtypes for
        e8m0 outside its range.
    """
    check_random("scalar.encode", rounding, has_random=random is not None)
    _check_exponent("scalar.encode", exponent)
    if random is not None and not 0 <= random < 1 << 32:
        raise LpuError(
            f"scalar.encode: random={described(random)} was given; it must be 32 bits, 0 to "
            f"{(1 << 32) - 1}."
        )
    if isinstance(value, float) and math.isnan(value):
        return fmt.nan_code or 0
    negative = math.copysign(1.0, value) < 0 if isinstance(value, float) else value < 0
    if not fmt.is_signed and (negative or value == 0):
        assert fmt.nan_code is not None, f"{fmt.name} has neither sign nor NaN"
        return fmt.nan_code
    limit = fmt.max_code
    if fmt.is_integer and negative and not fmt.is_symmetric:
        limit += 1  # two's complement goes one further down
    if isinstance(value, float) and math.isinf(value):
        magnitude = limit if fmt.is_integer else fmt.overflow_code(overflow)
    else:
        scaled = abs(Fraction(value)) / Fraction(2) ** exponent
        magnitude = _encode_magnitude(scaled, fmt, rounding, random)
        if magnitude > limit:
            is_clipped = fmt.is_integer or rounding == "rz"
            magnitude = limit if is_clipped else fmt.overflow_code(overflow)
    if fmt.is_integer:
        return -magnitude % (1 << fmt.bits) if negative else magnitude
    if not (magnitude or fmt.has_negative_zero):
        return 0
    return magnitude | (1 << (fmt.bits - 1) if negative else 0)


def _encode_magnitude(value: Fraction, fmt: Format, rounding: Rounding, random: int | None) -> int:
    """Return the code of a non-negative finite value as if no code were the largest."""
    if value == 0:
        return 0
    step = fmt.smallest_exponent
    if not fmt.is_integer:
        step = max(step, _exponent_of(value) - fmt.mantissa_bits)
    significand = _round_to_integer(value / Fraction(2) ** step, rounding, random)
    # Consecutive codes are consecutive significands; a carry moves into the exponent by itself.
    code = significand + ((step - fmt.smallest_exponent) << fmt.mantissa_bits)
    # Code 0 of a signed format is zero, that of a scale is the smallest value.
    return code if fmt.is_signed else max(code - 1, 0)


@checked
def round_to(
    value: Value,
    fmt: Format,
    *,
    rounding: Rounding = "rne",
    overflow: Overflow = "saturate",
    random: int | None = None,
) -> Value:
    """Return `value` rounded to a format: `decode(encode(value))`, arguments as of `encode`."""
    return decode(encode(value, fmt, rounding=rounding, overflow=overflow, random=random), fmt)


@checked
def round_fraction_to_fp32(value: Value, rounding: Rounding = "rne") -> float:
    """Return `value` rounded to fp32 as a float; RNE overflows to infinity."""
    return float(round_to(value, FP32, rounding=rounding, overflow="ieee"))


@checked
def dot_tile(
    x: Sequence[float | int], w: Sequence[float | int], *, rounding: Rounding = "rne"
) -> float:
    """Return the exact sum of products of one K tile, rounded once to fp32.

    An exact zero is +0. Infinities and NaN follow IEEE 754.

    Args:
        x: activations of the tile, finite or not.
        w: as many weights.
        rounding: of the sum.

    Fidelity:
        Exact, one rounding.
    """
    _check_operands("scalar.dot_tile", x, w)
    products = list(zip(x, w, strict=True))
    if not all(math.isfinite(value) for pair in products for value in pair):
        return sum(float(a) * float(b) for a, b in products)
    exact = sum((Fraction(a) * Fraction(b) for a, b in products), Fraction(0))
    return round_fraction_to_fp32(exact, rounding)


@checked
def dot(
    x: Sequence[float | int],
    w: Sequence[float | int],
    k_tile: Positive,
    *,
    rounding: Rounding = "rne",
) -> float:
    """Return the dot product as the MXM makes it: tiles rounded once, added in fp32 in order.

    The tiles round as `rounding` says, the fp32 sums to nearest even.
    """
    _check_operands("scalar.dot", x, w)
    total = 0.0
    for start in range(0, len(x), k_tile):
        part = dot_tile(x[start : start + k_tile], w[start : start + k_tile], rounding=rounding)
        if math.isfinite(total) and math.isfinite(part):
            total = round_fraction_to_fp32(Fraction(total) + Fraction(part))
        else:
            total += part
    return total


def _check_operands(caller: str, x: Sequence[float | int], w: Sequence[float | int]) -> None:
    """Refuse operands of different lengths, and whole numbers that no float holds."""
    if len(x) != len(w):
        raise LpuError(
            f"{caller}: {len(x)} activations and {len(w)} weights were given; their "
            "numbers must be equal."
        )
    large = [value for value in (*x, *w) if isinstance(value, int) and abs(value) > 1 << 53]
    if large:
        raise LpuError(
            f"{caller}: the operand {described(large[0])} was given; whole numbers must be at most "
            "2**53 in magnitude."
        )
