"""fp32 product, quotient and root with the chip's bits on a backend that promises less.

Such a backend may keep subnormals, and may divide and take roots with an error of a few ulp (GPUs
do both). Integers decide every rounding here; the backend's quotient or root is only a first
estimate. Operands are flushed: no subnormals. Not modelled: exception flags and NaN payloads.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float32, Int32, UInt32

_SIGN, _EXPONENT, _SIGNIFICAND = 0x8000_0000, 0x7F80_0000, 0x007F_FFFF
_INFINITY, _NAN = 0x7F80_0000, 0x7FC0_0000
_HIDDEN_BIT, _SMALLEST_NORMAL = 0x0080_0000, 0x0080_0000
_BIAS, _SIGNIFICAND_BITS = 127, 23
#: Shifts a product near 2**-126 far from it, and its smaller operand to no infinity.
_RESCALE = 2.0**64
_RESCALED_SMALLEST_NORMAL = (_BIAS - 126 + 64) << _SIGNIFICAND_BITS

Bits = UInt32[Array, "..."]


def bits_of(x: Float32[Array, "..."]) -> Bits:
    """Reinterpret fp32 values as their bits."""
    return lax.bitcast_convert_type(x, jnp.uint32)


def value_of(bits: Bits) -> Float32[Array, "..."]:
    """Reinterpret bits as fp32 values."""
    return lax.bitcast_convert_type(bits, jnp.float32)


def is_small(bits: Bits) -> Bool[Array, "..."]:
    """Tell where bits are those of a zero or a subnormal."""
    small: Array = (bits & jnp.uint32(_EXPONENT)) == 0
    return small


def flushed(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Replace subnormals by zeros of the same sign. Fidelity: exact, in integer operations."""
    bits = bits_of(x)
    return value_of(jnp.where(is_small(bits), bits & jnp.uint32(_SIGN), bits))


def flushed_operand(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Flush as `flushed` does, for values that other operations use more than once.

    It ends in a select of the values. XLA computes a producer once if its last operation has
    several operands, and again in every consumer if it has one, as the reinterpretation that ends
    `flushed`: softmax would take eight times as long.

    Fidelity:
        Exact.
    """
    bits = bits_of(x)
    return jnp.where(is_small(bits), value_of(bits & jnp.uint32(_SIGN)), x)


def hidden(x: Float32[Array, "..."], other: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Return `x` so that XLA's rules for constant or repeated operands do not see one.

    XLA rewrites an operation one of whose operands is constant, or one number repeated, before it
    folds those that are constant altogether. Bits of the `other` operand and of the place, flipped
    twice, hide `x` from the rules, and not from folding, which gives the operation's own result.
    LLVM drops both flips: they cost no time.
    """
    flips = bits_of(other)
    if x.ndim:
        longest = max(range(x.ndim), key=x.shape.__getitem__)
        flips = flips ^ lax.broadcasted_iota(jnp.uint32, x.shape, longest)
    return value_of(bits_of(x) ^ flips ^ flips)


def one_nan(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Give every NaN the same bits. Fidelity: exact."""
    return jnp.where(x == x, x, jnp.float32(jnp.nan))


def mul(a: Float32[Array, "..."], b: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Return `a * b`, rounded to 24 bits as if no exponent were too small, then flushed.

    A backend that keeps subnormals rounds products just below 2**-126 up to it, from where they
    can no longer be told apart; the product of rescaled operands shows which they are.
    """
    product = a * b
    a_is_smaller = jnp.abs(a) < jnp.abs(b)
    smaller, larger = jnp.where(a_is_smaller, a, b), jnp.where(a_is_smaller, b, a)
    rescaled = _magnitude(flushed(smaller * jnp.float32(_RESCALE)) * larger)
    tiny = jnp.where(
        rescaled < jnp.uint32(_RESCALED_SMALLEST_NORMAL),
        jnp.uint32(0),
        jnp.uint32(_SMALLEST_NORMAL),
    )
    bits = bits_of(product)
    is_tiny = _magnitude(product) <= jnp.uint32(_SMALLEST_NORMAL)
    return value_of(jnp.where(is_tiny, tiny | (bits & jnp.uint32(_SIGN)), bits))


def div(a: Float32[Array, "..."], b: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Return `a / b`, rounded once (RNE). Fidelity: exact for any estimate within 32 ulp."""
    sign = (bits_of(a) ^ bits_of(b)) & jnp.uint32(_SIGN)
    n, d = _integer_significand(a), _integer_significand(b)
    below_one = n < d
    exponent = _exponent_field(a) - _exponent_field(b) + _BIAS - below_one.astype(jnp.int32)
    n = jnp.where(below_one, n << 1, n)
    # [1, 2), as an integer with one bit more than a significand
    estimate = n.astype(jnp.float32) / d.astype(jnp.float32)
    quotient = (estimate * jnp.float32(2.0**24)).astype(jnp.int32)
    quotient, _ = corrected_quotient(quotient, n, d)
    # Half up is nearest even: an odd quotient of 25 bits is not exact, as d has no factor 2**24.
    bits = _assembled(exponent, (quotient + 1) >> 1)
    bits = jnp.where((_magnitude(a) == 0) | _is_infinite(b), jnp.uint32(0), bits)
    bits = jnp.where((_magnitude(b) == 0) | _is_infinite(a), jnp.uint32(_INFINITY), bits)
    both_zero = (_magnitude(a) | _magnitude(b)) == 0
    undefined = both_zero | (_is_infinite(a) & _is_infinite(b)) | (a != a) | (b != b)
    return value_of(jnp.where(undefined, jnp.uint32(_NAN), bits | sign))


def corrected_quotient(
    estimate: Int32[Array, "..."], n: Int32[Array, "..."], d: Int32[Array, "..."]
) -> tuple[Int32[Array, "..."], Int32[Array, "..."]]:
    """Return `floor(n * 2**24 / d)` and the remainder, from an estimate of the quotient.

    The remainder is taken modulo 2**32, where it fits as long as the estimate is off by less than
    64; a floating-point correction leaves it off by one, which is put right.

    Args:
        estimate: within 64 of the quotient.
        n: dividend, `d <= n < 2 d`.
        d: divisor, 24 bits.
    """
    remainder = (n << 24) - estimate * d
    step = jnp.floor(remainder.astype(jnp.float32) / d.astype(jnp.float32)).astype(jnp.int32)
    quotient, remainder = estimate + step, remainder - step * d
    for _ in range(2):
        off = (remainder >= d).astype(jnp.int32) - (remainder < 0).astype(jnp.int32)
        quotient, remainder = quotient + off, remainder - off * d
    return quotient, remainder


def sqrt(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Return the root, rounded once (RNE). Fidelity: exact for any estimate within 8 ulp."""
    field = _exponent_field(x)
    is_even = (field & 1) == 0  # the biased exponent: the exponent itself is odd
    n = jnp.where(is_even, _integer_significand(x) << 1, _integer_significand(x))
    exponent = (field + _BIAS - is_even.astype(jnp.int32)) >> 1
    # [2**24, 2**25): the root of n * 2**25, one bit more than a significand
    estimate = jnp.sqrt(n.astype(jnp.float32) * jnp.float32(2.0**-23)) * jnp.float32(2.0**24)
    root, _ = corrected_root(estimate.astype(jnp.int32), n)
    # Half up is nearest even: the square of an odd root is odd, and n * 2**25 is not.
    bits = _assembled(exponent, (root + 1) >> 1)
    bits = jnp.where((_magnitude(x) == 0) | _is_infinite(x), bits_of(x), bits)
    undefined = (x != x) | (bits_of(x) > jnp.uint32(_SIGN))
    return value_of(jnp.where(undefined, jnp.uint32(_NAN), bits))


def corrected_root(
    estimate: Int32[Array, "..."], n: Int32[Array, "..."]
) -> tuple[Int32[Array, "..."], Int32[Array, "..."]]:
    """Return `floor(sqrt(n * 2**25))` and the remainder, from an estimate of the root.

    Args:
        estimate: within 16 of the root, so that the remainder fits modulo 2**32.
        n: 23 to 25 bits.
    """
    remainder = (n << 25) - estimate * estimate
    twice = 2.0 * estimate.astype(jnp.float32)
    root = estimate + jnp.floor(remainder.astype(jnp.float32) / twice).astype(jnp.int32)
    remainder = (n << 25) - root * root
    for _ in range(2):
        off = (remainder > 2 * root).astype(jnp.int32) - (remainder < 0).astype(jnp.int32)
        root = root + off
        remainder = (n << 25) - root * root
    return root, remainder


def _is_infinite(x: Float32[Array, "..."]) -> Array:
    """Return where `x` is an infinity of either sign."""
    infinite: Array = _magnitude(x) == jnp.uint32(_INFINITY)
    return infinite


def _magnitude(x: Float32[Array, "..."]) -> Bits:
    magnitude: Bits = bits_of(x) & jnp.uint32(~_SIGN & 0xFFFF_FFFF)
    return magnitude


def _exponent_field(x: Float32[Array, "..."]) -> Int32[Array, "..."]:
    return (_magnitude(x) >> _SIGNIFICAND_BITS).astype(jnp.int32)


def _integer_significand(x: Float32[Array, "..."]) -> Int32[Array, "..."]:
    """24 bits, the highest of them set, also for zeros (whose results are selected later)."""
    bits: Bits = (bits_of(x) & jnp.uint32(_SIGNIFICAND)) | jnp.uint32(_HIDDEN_BIT)
    return bits.astype(jnp.int32)


def _assembled(exponent: Int32[Array, "..."], significand: Int32[Array, "..."]) -> Bits:
    """Put a biased exponent and a significand of 24 bits together; flush below, overflow above."""
    bits = ((exponent << _SIGNIFICAND_BITS) + (significand - _HIDDEN_BIT)).astype(jnp.uint32)
    bits = jnp.where(exponent <= 0, jnp.uint32(0), bits)
    return jnp.where(exponent >= 2 * _BIAS + 1, jnp.uint32(_INFINITY), bits)
