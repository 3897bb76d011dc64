"""Conversions between fp32 and every format in pure integer operations (twins of `scalar`).

Integer operations give the same bits on every backend: a float cast may flush subnormals, round
twice, or be removed (a compiler that is allowed excess precision drops fp32 -> fp16 -> fp32).
Directed rounding other than towards zero is not modelled, nor are NaN payloads.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import (
    Array,
    Float,
    Float8e4m3fn,
    Float16,
    Float32,
    Int32,
    Integer,
    PRNGKeyArray,
    UInt,
    UInt32,
)

from ..arguments import check_spread, check_within, checked
from ..errors import LpuError
from ..predicates import is_concrete
from .formats import E4M3FN, FP16, FP32, Format, Overflow, Rounding, check_random

_INF_BITS = 0x7F800000
_NAN_BITS = 0x7FC00000
#: Where the leading one of a significand of fp32 stands; one higher where the target keeps all 24
#: bits, so that a bit below the last kept one always exists.
_TOP = 23
#: The same for the product of `round_product`: a rounding carry cannot leave 31 bits.
_PRODUCT_TOP = 29
#: Larger exponents of fp32 are all alike, and could carry a code into the sign.
_LARGEST_EXCESS = 254


@checked
def code_dtype(fmt: Format) -> np.dtype[np.unsignedinteger]:
    """Return the smallest of uint8, uint16 and uint32 that holds the codes of a format."""
    if fmt.bits <= 8:
        return np.dtype(np.uint8)
    return np.dtype(np.uint16 if fmt.bits <= 16 else np.uint32)


@checked
def encode(
    x: Float32[Array, "..."],
    fmt: Format,
    *,
    rounding: Rounding = "rne",
    overflow: Overflow = "saturate",
    exponent: Int32[Array, "..."] | None = None,
    key: PRNGKeyArray | None = None,
) -> UInt[Array, "..."]:
    """Round fp32 values, or `x * 2**-exponent`, to a format and return their codes.

    Special cases: NaN gives the NaN code (0 in formats without one); an infinity is an overflow;
    -0 keeps its sign in floating point formats that have one. In e8m0, which has neither sign nor
    zero, zero and negative values give NaN, and positive values below `2**-127` give `2**-127`.
    "rne" rounds every tie of e8m0, 1.5 times a power of two, up: a significand of one bit is always
    odd, and the larger neighbour is the even one (so does ml_dtypes from 0.6 on; gfloat takes the
    even code).
    Rounding comes first: a value overflows if its rounding with unbounded exponent is too large.
    Towards zero ("rz") no finite value overflows to infinity or NaN.

    Stochastic rounding ("sr") adds a uniform 32-bit integer to the discarded fraction of a step,
    truncated to 32 bits, and rounds the magnitude up on a carry. The integers are
    `jax.random.bits(key, x.shape, uint32)`: give each `vmap` lane or chip a key of its own.

    Args:
        x: values; fp32 subnormals count with their exact value.
        fmt: target format.
        rounding: see `Rounding`.
        overflow: "saturate" to the largest finite value, or "ieee": infinity, else NaN, else
            saturate.
        exponent: power of two to divide by, exactly and before the only rounding; of the rank of
            `x`, with dimensions of 1 broadcast; of magnitude below 2**29.
        key: random key, for "sr" only.

    Returns:
        Bit patterns, sign included, in the low `fmt.bits` bits of the smallest unsigned type that
        holds them.

    Raises:
        LpuError: if `x` is not float32, a key is missing or not used, or the ranks of `x` and
            `exponent` differ.

    Fidelity:
        Exact, one rounding; equal to `scalar.encode`.

    Source:
        IEEE 754-2019 §4.3 and §7.4; OCP OFP8 v1.0 for the two overflow behaviours; ml_dtypes for
        e8m0 outside its range.
    """
    check_random("rounding.encode", rounding, has_random=key is not None)
    _check_exponent("rounding.encode", x, exponent)
    random = None if key is None else jax.random.bits(key, x.shape, jnp.uint32)
    bits = lax.bitcast_convert_type(x, jnp.int32)
    absolute = bits & jnp.int32(0x7FFFFFFF)
    # Where fp32 subnormals are far below half of a smallest step, all that matters is that they
    # are small, and their bits as they stand say so. 2**-94 because a stochastic rounding looks
    # 32 bits further down.
    is_wide = exponent is not None or fmt.smallest_exponent < -94
    normalised = _normalise(absolute) if is_wide else absolute
    magnitude = _encode_magnitude(normalised, fmt, rounding, overflow, exponent, random)
    if exponent is not None:  # the shift moved the exponents of zero and infinity too
        magnitude = _restore_special(magnitude, absolute, _limit(fmt, overflow))
    elif rounding == "rz":
        magnitude = jnp.where(absolute == _INF_BITS, _limit(fmt, overflow), magnitude)
    return _finish(magnitude, bits, fmt)


@checked
def decode(
    codes: Integer[Array, "..."], fmt: Format, *, exponent: Int32[Array, "..."] | None = None
) -> Float32[Array, "..."]:
    """Return the fp32 values of codes, or `value * 2**exponent`.

    Args:
        codes: bit patterns of any integer type; bits above `fmt.bits` are ignored.
        fmt: their format.
        exponent: power of two to multiply by; of the rank of `codes`, with dimensions of 1
            broadcast; of magnitude below 2**29.

    Raises:
        LpuError: if the codes are not integers, or the ranks of `codes` and `exponent` differ.

    Fidelity:
        Exact without `exponent`: every value of every format is an fp32 number. With it exact
        where the result is an fp32 number, else rounded once (RNE), to a subnormal too: a store
        of numbers keeps what it can, and whether arithmetic flushes it is the vector unit's rule.
        Overflow gives infinity. NaN payloads are not kept.
    """
    _check_exponent("rounding.decode", codes, exponent)
    bits = _decode_bits(codes, fmt)
    if exponent is not None:
        absolute = bits & jnp.int32(0x7FFFFFFF)
        normalised = absolute if fmt.smallest_exponent >= -126 else _normalise(absolute)
        magnitude = _encode_magnitude(normalised, FP32, "rne", "ieee", -exponent, None)
        magnitude = _restore_special(magnitude, absolute, _INF_BITS)
        bits = lax.bitcast_convert_type(_finish(magnitude, bits, FP32), jnp.int32)
    return lax.bitcast_convert_type(bits, jnp.float32)


@checked
def round_to(
    x: Float32[Array, "..."],
    fmt: Format,
    *,
    rounding: Rounding = "rne",
    overflow: Overflow = "saturate",
    key: PRNGKeyArray | None = None,
) -> Float32[Array, "..."]:
    """Return fp32 values rounded to a format: `decode(encode(x))`, with the arguments of `encode`.

    Fidelity:
        Exact, one rounding.
    """
    return decode(encode(x, fmt, rounding=rounding, overflow=overflow, key=key), fmt)


@checked
def to_fp16(x: Float32[Array, "..."]) -> Float16[Array, "..."]:
    """Round fp32 to fp16 (RNE, subnormals kept, overflow to infinity).

    The integer codec is used although `astype` gives the same bits on CPU: a GPU compiler may
    remove a pair of casts fp32 -> fp16 -> fp32 (excess precision), but never a bit pattern.

    Fidelity:
        Exact, one rounding.
    """
    return lax.bitcast_convert_type(encode(x, FP16, overflow="ieee"), jnp.float16)


@checked
def to_e4m3fn(x: Float32[Array, "..."]) -> Float8e4m3fn[Array, "..."]:
    """Round fp32 to e4m3fn (RNE, saturating at +-448; NaN stays NaN).

    Fidelity:
        Exact, one rounding.
    """
    return lax.bitcast_convert_type(encode(x, E4M3FN), jnp.float8_e4m3fn)


@checked
def round_product(
    code_values: Float[Array, "..."],
    scales: Float32[Array, "..."],
    fmt: Format,
    *,
    overflow: Overflow = "ieee",
) -> UInt[Array, "..."]:
    """Return codes of `code_values * scales`, the exact product rounded once (RNE).

    Args:
        code_values: finite values with at most 8 significant bits (int4, int8, fp8 codes), or
            NaN.
        scales: fp32 scales, broadcast-compatible by shape (ranks equal).
        fmt: target format, signed.
        overflow: as in `encode`.

    Raises:
        LpuError: a format without a sign, or values of more bits where they are known.

    Fidelity:
        Exact, one rounding. The 8 by 24 bit product fits 32 bits, which a product in fp32 does
        not: rounding that one again would round twice. An infinite or NaN factor gives NaN.
    """
    check_spread("rounding.round_product", [code_values.shape, scales.shape])
    if not fmt.is_signed:
        raise LpuError(
            f"rounding.round_product: fmt={fmt.name} was given; it must be a format with a sign."
        )
    a = lax.bitcast_convert_type(code_values.astype(jnp.float32), jnp.int32)
    b = lax.bitcast_convert_type(scales, jnp.int32)
    a_magnitude, b_magnitude = (v & jnp.int32(0x7FFFFFFF) for v in (a, b))
    is_long = (a & 0xFFFF != 0) & (a_magnitude < _INF_BITS)
    if is_concrete(is_long) and np.any(is_long):
        raise LpuError(
            "rounding.round_product: code_values of more than 8 significant bits were given; they "
            "must be values of int4, int8 or fp8 codes."
        )
    (a_significand, a_exponent), (b_significand, b_exponent) = (
        _significand(_normalise(v)) for v in (a_magnitude, b_magnitude)
    )
    product = (a_significand >> 16).astype(jnp.uint32) * b_significand.astype(jnp.uint32)
    # Both leading ones are at bits 7 and 23, so that of the product is at 30 or 31.
    high = (product >> 31).astype(jnp.int32)
    sticky = product & jnp.uint32(1) | product >> 1 & high.astype(jnp.uint32)
    shifted = product >> (1 + high).astype(jnp.uint32)
    significand = (shifted | sticky).astype(jnp.int32)
    leading = a_exponent + b_exponent + high
    magnitude = _round_significand(significand, leading, _PRODUCT_TOP, fmt, "rne", None)
    magnitude = jnp.minimum(magnitude, _limit(fmt, overflow))
    magnitude = jnp.where((a_magnitude == 0) | (b_magnitude == 0), 0, magnitude)
    special = jnp.maximum(a_magnitude, b_magnitude) >= _INF_BITS
    sign = (a ^ b) & jnp.int32(-0x80000000)
    return _finish(magnitude, jnp.where(special, jnp.int32(_NAN_BITS), sign), fmt)


@checked
def to_signed(codes: Integer[Array, "..."], fmt: Format) -> Int32[Array, "..."]:
    """Return the integers that two's complement codes of an integer format stand for."""
    if not fmt.is_integer:
        raise LpuError(
            f"rounding.to_signed: fmt={fmt.name} was given; it must be an integer format."
        )
    unused = 32 - fmt.bits
    return codes.astype(jnp.int32) << unused >> unused


def _check_exponent(caller: str, array: Array, exponent: Array | None) -> None:
    """Refuse an exponent whose shape is not the array's, or that is too large."""
    if exponent is None:
        return
    if exponent.ndim != array.ndim:
        raise LpuError(
            f"{caller}: exponent of shape {exponent.shape} was given for an array of shape "
            f"{array.shape}; both must have the same rank."
        )
    check_spread(caller, [array.shape, exponent.shape])
    check_within(caller, "exponent", exponent, 1 - 2**29, 2**29 - 1, "integer arithmetic")


def _normalise(absolute: Int32[Array, "..."]) -> Int32[Array, "..."]:
    """Return fp32 bits without sign in which a subnormal has a leading one and a field below 1.

    A subnormal is an integer times `2**-149`; turning that integer into an fp32 number finds its
    leading one, exactly and without touching a subnormal. Zero gets the field -149.
    """
    number = lax.bitcast_convert_type(absolute.astype(jnp.float32), jnp.int32)
    subnormal = number - jnp.int32(149 << 23)
    return jnp.where(absolute < 1 << 23, subnormal, absolute)


def _significand(
    normalised: Int32[Array, "..."],
) -> tuple[Int32[Array, "..."], Int32[Array, "..."]]:
    """Return the 24-bit significand of normalised fp32 bits and the exponent of its leading one."""
    significand = normalised & jnp.int32(0x7FFFFF) | jnp.int32(0x800000)
    return significand, (normalised >> 23) - jnp.int32(127)


def _encode_magnitude(
    normalised: Int32[Array, "..."],
    fmt: Format,
    rounding: Rounding,
    overflow: Overflow,
    exponent: Int32[Array, "..."] | None,
    random: UInt32[Array, "..."] | None,
) -> Int32[Array, "..."]:
    """Return magnitude codes of normalised fp32 bits.

    Those of NaN have no meaning, nor have those of zero and infinity with an `exponent`, nor that
    of infinity where `rounding` is "rz".
    """
    significand, leading = _significand(normalised)
    if exponent is not None:
        leading = leading - exponent
    guard = 1 if fmt.mantissa_bits == _TOP else 0
    magnitude = _round_significand(
        significand << guard, leading, _TOP + guard, fmt, rounding, random
    )
    # Towards zero, a finite value is never too large.
    return jnp.minimum(magnitude, _limit(fmt, "saturate" if rounding == "rz" else overflow))


def _restore_special(
    magnitude: Int32[Array, "..."], absolute: Int32[Array, "..."], inf_code: int
) -> Int32[Array, "..."]:
    """Return magnitude codes with those of zero and infinite fp32 bits put in."""
    magnitude = jnp.where(absolute == 0, 0, magnitude)
    return jnp.where(absolute == _INF_BITS, inf_code, magnitude)


def _round_significand(
    significand: Int32[Array, "..."],
    leading: Int32[Array, "..."],
    top: int,
    fmt: Format,
    rounding: Rounding,
    random: UInt32[Array, "..."] | None,
) -> Int32[Array, "..."]:
    """Return magnitude codes before overflow.

    Args:
        significand: leading one at bit `top`.
        leading: exponent of that leading one.
        top: as above; more than the mantissa bits of `fmt`.
        fmt: target format.
        rounding: as in `encode`.
        random: uniform bits for "sr".
    """
    excess = leading + jnp.int32(fmt.bias - 1)  # exponent above that of the smallest normal number
    drop = jnp.full_like(excess, top - fmt.mantissa_bits)
    if fmt.is_signed:  # subnormals: the step stays, so more bits go
        drop = drop + jnp.maximum(-excess, 0)
        excess = jnp.maximum(excess, 0)
    # Exponents above the largest field are all alike.
    excess = jnp.minimum(excess, _LARGEST_EXCESS if fmt == FP32 else 1 << fmt.exponent_bits)
    if random is None:
        drop = jnp.minimum(drop, top + 2)  # there everything is below half of a step
        kept = significand + _addend(significand, drop, rounding) >> drop
    else:
        kept = _round_stochastically(significand, drop, random)
    # A leading one that was kept adds 1 to the exponent field, and so does a rounding carry.
    code = kept + (excess << fmt.mantissa_bits)
    if fmt == FP32:  # a carry out of the largest exponent must not reach the sign
        code = jnp.where((excess == _LARGEST_EXCESS) & (code < 0), _INF_BITS, code)
    return jnp.maximum(code, 0)


def _addend(
    significand: Int32[Array, "..."], drop: Int32[Array, "..."], rounding: Rounding
) -> Int32[Array, "..."]:
    """Return what makes truncation of the sum the wanted rounding; `drop` is at least 1."""
    if rounding == "rz":
        return jnp.zeros_like(significand)
    half: Array = jnp.int32(1) << drop - jnp.int32(1)
    if rounding == "rna":
        return half
    is_odd: Array = significand >> drop & jnp.int32(1)
    below_half: Array = half - jnp.int32(1) + is_odd
    return below_half


def _round_stochastically(
    significand: Int32[Array, "..."], drop: Int32[Array, "..."], random: UInt32[Array, "..."]
) -> Int32[Array, "..."]:
    """Return `significand >> drop`, plus 1 where the dropped fraction and `random` carry."""
    left = jnp.maximum(32 - drop, 0).astype(jnp.uint32)
    right = jnp.clip(drop - 32, 0, 31).astype(jnp.uint32)
    fraction = significand.astype(jnp.uint32) << left >> right  # in units of 2**-32
    carry = fraction + random < random
    whole: Array = significand >> jnp.minimum(drop, 31)
    return whole + carry.astype(jnp.int32)


def _limit(fmt: Format, overflow: Overflow) -> int:
    """Return the magnitude code that clips overflows; it is `max_code` or one more.

    The magnitude of a negative integer may be one more; `_finish` clips the positive ones.
    """
    if fmt.is_integer:
        return fmt.max_code + (not fmt.is_symmetric)
    return fmt.overflow_code(overflow)


def _finish(
    magnitude: Int32[Array, "..."], bits: Int32[Array, "..."], fmt: Format
) -> UInt[Array, "..."]:
    """Attach the sign of fp32 bits to magnitude codes, and put in NaN (positive) where they are."""
    nan_code = jnp.uint32(fmt.nan_code or 0)
    is_nan = bits & jnp.int32(0x7FFFFFFF) > _INF_BITS
    if fmt.is_integer:
        signed = jnp.where(bits < 0, -magnitude, jnp.minimum(magnitude, fmt.max_code))
        codes = signed.astype(jnp.uint32) & jnp.uint32((1 << fmt.bits) - 1)
    elif fmt.is_signed:
        sign = bits.astype(jnp.uint32) & jnp.uint32(1 << 31)
        if not fmt.has_negative_zero:
            sign = jnp.where(magnitude == 0, jnp.uint32(0), sign)
        codes = magnitude.astype(jnp.uint32) | sign >> (32 - fmt.bits)
    else:
        codes = magnitude.astype(jnp.uint32)  # a number is positive
        is_nan = is_nan | (bits <= 0)
    return jnp.where(is_nan, nan_code, codes).astype(code_dtype(fmt))


def _decode_bits(codes: Integer[Array, "..."], fmt: Format) -> Int32[Array, "..."]:
    """Return the fp32 bits of codes."""
    if fmt.is_integer:
        return lax.bitcast_convert_type(to_signed(codes, fmt).astype(jnp.float32), jnp.int32)
    code = codes.astype(jnp.int32)
    if not fmt.is_signed:
        exponent = code & jnp.int32(fmt.nan_code or 0)
        scale = jnp.where(exponent == 0, 1 << 22, exponent << 23)  # 2**-127 is a subnormal
        result: Array = jnp.where(exponent > fmt.max_code, _NAN_BITS, scale)
        return result
    magnitude = code & jnp.int32((1 << (fmt.bits - 1)) - 1)
    sign: Array = code << (32 - fmt.bits) & jnp.int32(-0x80000000)
    finite: Array = magnitude << (23 - fmt.mantissa_bits)
    if fmt.exponent_bits == 8 and fmt.inf_code is not None and fmt.bias == FP32.bias:
        return finite | sign  # the exponents of fp32: special codes are in their place too
    # A subnormal number is an integer times the smallest one: fp32 of the integer finds its
    # leading one, and the exponent is added.
    integer = lax.bitcast_convert_type(magnitude.astype(jnp.float32), jnp.int32)
    subnormal = integer + jnp.int32(fmt.smallest_exponent * (1 << 23))
    normal = finite + jnp.int32((127 - fmt.bias) * (1 << 23))
    result = jnp.where(magnitude < 1 << fmt.mantissa_bits, subnormal, normal)
    if fmt.smallest_exponent < -126:  # fields below 1 stand for subnormals of fp32
        result = _encode_magnitude(result, FP32, "rne", "ieee", None, None)
    result = jnp.where(magnitude == 0, 0, result)
    if not fmt.has_negative_zero:
        return jnp.where((magnitude == 0) & (sign != 0), _NAN_BITS, result) | sign
    if fmt.inf_code is not None:
        result = jnp.where(magnitude == fmt.inf_code, _INF_BITS, result)
    if fmt.nan_code is not None:
        first_nan = fmt.max_code + (1 if fmt.inf_code is None else 2)
        result = jnp.where(magnitude >= first_nan, _NAN_BITS, result)
    return result | sign
