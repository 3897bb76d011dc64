"""Wide numbers: sums without any rounding, in 128 bits, and the one rounding at their end.

A wide number is a whole number of `2**UNIT_EXPONENT` in two's complement, 125 bits of four words of
32 (`int32[..., 4, n]`, the lowest word first). The three bits above say that an infinity or NaN is
among what was added. Additions are those of whole numbers: neither order nor grouping, and so no
number of chips, moves a bit. Enough for 2**20 products of any two fp16 numbers, multiples of 2**-48
below 2**32, and for 2**12 fp32 terms below 2**40. These are meanings: those that need 64-bit types
run inside `jax.enable_x64(True)`. Not modelled: sums that need more bits than the vendor's 100.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float32, Int32, Int64, Num, UInt32, UInt64

from .certificate import as_fp16
from .repair import fp16_units, joined_halves, round_leading
from .tiles import check_length, product

#: Words of a wide number, and the bytes that it takes in memory and on a link. Assumed; the
#: accumulators of the vendor's matrix unit are said to have 100 bits.
WORDS = 4
BYTES = 4 * WORDS
#: Of the lowest bit: a product of fp16 numbers is a multiple of 2**-48, and 24 bits are left for
#: terms of fp32.
UNIT_EXPONENT = -72
#: Longest sum of products of fp16 numbers.
MAX_K = 2**20
#: fp32 terms from here on count as infinite.
TERM_LIMIT = 2.0**40

_NUMBER_BITS = 125
_TOP_MASK = (1 << _NUMBER_BITS - 96) - 1  #: bits of the number in the highest word
_MINUS_INF, _PLUS_INF, _NAN = (1 << bit for bit in (29, 30, 31))
_HALF_BITS = 20
_HALF_MASK = (1 << _HALF_BITS) - 1
#: Rows whose products of halves float64 adds exactly: `2**13 * 2**40` is `2**53`.
_EXACT_ROWS = 2**13

Words = tuple[UInt32[Array, "..."], ...]


# --- words ----------------------------------------------------------------------------------------


def _split(x: Int32[Array, "..."]) -> Words:
    """Take wide numbers apart, lowest word first."""
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    return tuple(bits[..., i, :] for i in range(WORDS))


def _joined(words: Words) -> Int32[Array, "..."]:
    return lax.bitcast_convert_type(jnp.stack(words, axis=-2), jnp.int32)


def _added(a: Words, b: Words) -> Words:
    """Add with carries; what is not finite stays noted."""
    flags = (a[-1] | b[-1]) & jnp.uint32(~_TOP_MASK & 0xFFFF_FFFF)
    words, carry = [], jnp.zeros_like(a[0])
    for one, other in zip(a, b, strict=True):
        part = one + other
        total = part + carry
        carry = ((part < one) | (total < part)).astype(jnp.uint32)
        words.append(total)
    return (*words[:-1], words[-1] & jnp.uint32(_TOP_MASK) | flags)


def _with_flags(top: UInt32[Array, "..."], values: Float32[Array, "..."]) -> UInt32[Array, "..."]:
    """Replace the highest word by what a value is that is not finite."""
    special = jnp.where(values > 0, jnp.uint32(_PLUS_INF), jnp.uint32(_MINUS_INF))
    special = jnp.where(values == values, special, jnp.uint32(_NAN))
    return jnp.where(jnp.isfinite(values), top & jnp.uint32(_TOP_MASK), special)


# --- sums -----------------------------------------------------------------------------------------


def sum_leading(parts: Int32[Array, "n *rows 4 columns"]) -> Int32[Array, "*rows 4 columns"]:
    """Add wide numbers along the leading axis. Fidelity: exact."""

    def add(total: Words, part: Array) -> tuple[Words, None]:
        return _added(total, _split(part)), None

    zero = jnp.zeros((*parts.shape[1:-2], parts.shape[-1]), jnp.uint32)
    return _joined(lax.scan(add, (zero,) * WORDS, parts)[0])


def from_fp32(x: Float32[Array, "*rows n"]) -> Int32[Array, "*rows 4 n"]:
    """Return fp32 numbers as wide numbers.

    Fidelity:
        Exact from 2**-49 on; smaller ones are rounded (RNE) to a multiple of 2**-72. Magnitudes of
        `TERM_LIMIT` and more become infinite; subnormals are zeros.
    """
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    field = (bits >> 23 & 0xFF).astype(jnp.int32)
    significand = jnp.where(field > 0, bits & 0x7F_FFFF | 0x80_0000, jnp.uint32(0))
    shift = field - (127 + 23) - UNIT_EXPONENT  # the value is `significand * 2**shift` units
    significand = _shifted_right(significand, jnp.maximum(-shift, 0))
    shift = jnp.maximum(shift, 0)
    words = tuple(_part(significand, shift - 32 * i) for i in range(WORDS))
    zero = jnp.zeros_like(significand)
    negated = _added(tuple(~word for word in words), (zero + 1, zero, zero, zero))
    is_negative = bits >> 31 == 1
    words = tuple(jnp.where(is_negative, n, w) for n, w in zip(negated, words, strict=True))
    finite = jnp.where(jnp.abs(x) < TERM_LIMIT, jnp.float32(0), x)
    limited = jnp.where(jnp.isfinite(finite) & (finite != 0), jnp.sign(x) * jnp.inf, finite)
    words = tuple(jnp.where(limited == 0, word, jnp.uint32(0)) for word in words)
    return _joined((*words[:-1], _with_flags(words[-1], limited)))


def _shifted_right(x: UInt32[Array, "..."], by: Int32[Array, "..."]) -> UInt32[Array, "..."]:
    """Return 24-bit numbers divided by a power of two, rounded to nearest, ties to even."""
    by = jnp.minimum(by, 25).astype(jnp.uint32)  # beyond, less than half a unit is left
    kept, rest = x >> by, x & ((jnp.uint32(1) << by) - 1)
    half = jnp.where(by > 0, jnp.uint32(1) << jnp.maximum(by, 1) - 1, jnp.uint32(0xFFFF_FFFF))
    up = (rest > half) | ((rest == half) & (kept & 1 == 1))
    rounded: Array = kept + up.astype(jnp.uint32)
    return rounded


def _part(x: UInt32[Array, "..."], by: Int32[Array, "..."]) -> UInt32[Array, "..."]:
    """Return the lowest 32 bits of numbers times a power of two, of either sign."""
    left = jnp.where((by >= 0) & (by < 32), x << jnp.clip(by, 0, 31).astype(jnp.uint32), 0)
    right = jnp.where((by < 0) & (by > -32), x >> jnp.clip(-by, 0, 31).astype(jnp.uint32), 0)
    part: Array = jnp.where(by >= 0, left, right)
    return part


def to_fp32(x: Int32[Array, "*rows 4 n"]) -> Float32[Array, "*rows n"]:
    """Round wide numbers once (RNE); an exact zero is +0. Needs 64-bit types.

    Fidelity:
        Exact, one rounding. Infinities and NaN as a sum of the terms in IEEE 754.
    """
    words = _split(x)
    number = words[-1] << 3  # its sign in the highest bit
    top = (lax.bitcast_convert_type(number, jnp.int32) >> 3).astype(jnp.int64)
    high = top << 32 | words[2].astype(jnp.int64)
    low = words[1].astype(jnp.uint64) << 32 | words[0].astype(jnp.uint64)
    negative = high < 0
    high = jnp.where(negative, ~high + (low == 0).astype(jnp.int64), high).astype(jnp.uint64)
    low = jnp.where(negative, ~low + jnp.uint64(1), low)
    rounded = round_leading(*_leading_bits(high, low), negative, "rne")
    return _with_specials(rounded, words[-1])


def _leading_bits(
    high: UInt64[Array, "..."], low: UInt64[Array, "..."]
) -> tuple[UInt64[Array, "..."], Int64[Array, "..."], UInt64[Array, "..."]]:
    """Return the top 64 bits of `high * 2**64 + low`, `high < 2**61`, from the leading one down.

    Returns:
        The bits (0 for zero), the exponent of the leading one as a value, and 1 where bits below
        are lost.
    """
    is_short = high == 0
    shift = lax.clz(jnp.where(is_short, low, high))
    inner = jnp.clip(shift, 1, 63)  # of a long number: at least 3
    long = high << inner | low >> (jnp.uint64(64) - inner)
    short = jnp.where(low == 0, low, low << jnp.minimum(shift, 63))
    lost = jnp.where(is_short, False, low << inner != 0).astype(jnp.uint64)
    exponent = jnp.where(is_short, 63, 127) - shift.astype(jnp.int64) + UNIT_EXPONENT
    return jnp.where(is_short, short, long), exponent, lost


def _with_specials(
    value: Float32[Array, "..."], top: UInt32[Array, "..."]
) -> Float32[Array, "..."]:
    plus, minus = (top & jnp.uint32(flag) != 0 for flag in (_PLUS_INF, _MINUS_INF))
    is_nan = (top & jnp.uint32(_NAN) != 0) | (plus & minus)
    value = jnp.where(plus, jnp.float32(jnp.inf), value)
    value = jnp.where(minus, jnp.float32(-jnp.inf), value)
    return jnp.where(is_nan, jnp.float32(jnp.nan), value)


# --- products -------------------------------------------------------------------------------------


def matmul(x: Num[Array, "... m k"], w: Num[Array, "... k n"]) -> Int32[Array, "... m 4 n"]:
    """Multiply matrices of fp16 numbers, or of types whose numbers are; needs 64-bit types.

    Forms are those of `accumulate.matmul`.

    Raises:
        LpuError: a sum of more than `MAX_K` products.

    Fidelity:
        Exact: fp16 numbers are cut into halves of 20 bits, whose products float64 adds exactly.
    """
    k = x.shape[-1]
    check_length(k, MAX_K, x, w)
    lead = w.shape[:-2]
    result_shape = (*lead, x.shape[-2], WORDS, w.shape[-1])
    if not k or 0 in result_shape:
        return jnp.zeros(result_shape, jnp.int32)
    x, w = (as_fp16(v).reshape(-1, *v.shape[-2:]) for v in (x, w))
    shape = (w.shape[0], x.shape[1], w.shape[2])
    rows = min(k, _EXACT_ROWS)
    x_rows = _in_runs(x.swapaxes(1, 2), rows).swapaxes(2, 3)  # [runs, gx, m, rows]

    def add(sums: Array, at: tuple[Array, Array]) -> tuple[Array, None]:
        return sums + _half_sums(*at), None

    zeros = jnp.zeros((3, *shape), jnp.int64)
    high, middle, low = lax.scan(add, zeros, (x_rows, _in_runs(w, rows)))[0]
    high, tail = joined_halves(high, middle, low)
    # `high * 2**40 + tail` units of 2**-48 are `high * 2**64 + tail * 2**24` of ours.
    low = tail.astype(jnp.uint64) << 24
    high_bits = lax.bitcast_convert_type(high, jnp.uint64)
    words = tuple(v.astype(jnp.uint32) for v in (low, low >> 32, high_bits, high_bits >> 32))
    ieee = product(_signs(x), _signs(w), jnp.float32)
    special = jnp.where(jnp.isfinite(ieee), jnp.float32(0), ieee)
    words = tuple(jnp.where(special == 0, word, jnp.uint32(0)) for word in words)
    return _joined((*words[:-1], _with_flags(words[-1], special))).reshape(result_shape)


def _in_runs(x: Num[Array, "g k n"], rows: int) -> Num[Array, "runs g rows n"]:
    """Cut the rows of matrices into runs; zeros fill up the last."""
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % rows), (0, 0)))
    return x.reshape(x.shape[0], -1, rows, x.shape[2]).swapaxes(0, 1)


def _half_sums(
    x: Num[Array, "gx m rows"], w: Num[Array, "g rows n"]
) -> Int64[Array, "three g m n"]:
    """Return sums of products: high with high, high with low, low with low halves."""
    x_high, x_low, w_high, w_low = (
        half.astype(jnp.float64)
        for units in (fp16_units(x), fp16_units(w))
        for half in (units >> _HALF_BITS, units & _HALF_MASK)
    )
    pairs = ((x_high, w_high), (x_high, w_low), (x_low, w_high), (x_low, w_low))
    high, *middle, low = (product(a, b, jnp.float64).astype(jnp.int64) for a, b in pairs)
    return jnp.stack([high, middle[0] + middle[1], low])


def _signs(x: Num[Array, "..."]) -> Float32[Array, "..."]:
    """Reduce finite numbers to their signs: which sums are not finite is decided by these."""
    x = x.astype(jnp.float32)
    return jnp.where(jnp.isfinite(x), jnp.sign(x), x)
