"""Which float64 sums of fp16 products are proven to round as the exact sum would.

The proof that `accumulate` describes: certificate and rounding test, from the norms and the lowest
bits of rows and columns. Runs inside `jax.enable_x64(True)`.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float16, Float32, Float64, Int32, Num

from .repair import SumRounding

#: Covers the roundings made while computing norms and bounds (about `k * 2**-53 + 2**-22`).
_SLACK = 1.0 + 2.0**-20
#: All fp16 numbers are multiples of `2**-24`.
_LOWEST_EXPONENT = -24
#: Exponent that stands for "no bit set": a zero.
_NO_BIT = 64


def unproven(
    exact: Float64[Array, "g m n"],
    row_norm: Float32[Array, "gx m"],
    row_span: Float32[Array, "gx m"],
    k: int,
    additions: int,
    largest: Float32[Array, "g n"],
    rounding: SumRounding,
    columns: Callable[[], tuple[Array, Array]],
) -> Bool[Array, "g m n"]:
    """Tell where a float64 sum of `k` products may round to another fp32 number than the exact sum.

    Args:
        exact: the sums.
        row_norm: norms of the rows of `x`.
        row_span: their spans (`norm_and_span`).
        k: products of a sum.
        additions: how many additions a product passes at most; bounds the error of the sum.
        largest: largest magnitude of each column of the weights.
        rounding: to fp32.
        columns: gives norms and spans of the columns `[g, n]`; called only where it is needed. An
            infinite span leaves the decision to the rounding test.
    """
    # Cheap and usually enough: no column's norm exceeds sqrt(k) * largest weight, and all weights
    # are multiples of 2**-24.
    bound = largest * (math.sqrt(k) * 2.0**-_LOWEST_EXPONENT * _SLACK)
    all_certified = (bound * row_span.max() <= 2.0**53).all()

    def test() -> Bool[Array, "g m n"]:
        norm, span = columns()
        certified = _outer(row_span, span) * _SLACK <= 2.0**53
        error = _outer(row_norm, norm) * ((additions + 4) * 2.0**-53 * _SLACK)
        error = jnp.where(certified, 0.0, error)
        return to_fp32(exact - error, rounding) != to_fp32(exact + error, rounding)

    undecided: Array = lax.cond(all_certified, lambda: jnp.zeros(exact.shape, bool), test)
    return undecided


def as_fp16(x: Num[Array, "..."]) -> Float16[Array, "..."]:
    """Return numbers of a narrow type as fp16, exactly."""
    return x.astype(jnp.float16)


def largest_magnitude(w: Num[Array, "g k n"]) -> Float32[Array, "g n"]:
    """Return the largest magnitude of each column; infinity or NaN if there is one.

    fp16 magnitudes are ordered like their bit patterns, and the maximum of 16-bit integers over
    rows is the cheapest pass over a weight there is: a maximum over everything is three times
    slower on CPU.
    """
    bits = lax.bitcast_convert_type(as_fp16(w), jnp.uint16) & jnp.uint16(0x7FFF)
    return lax.bitcast_convert_type(bits.max(1), jnp.float16).astype(jnp.float32)


def norm_and_span(
    x: Float16[Array, "..."], axis: int
) -> tuple[Float32[Array, "..."], Float32[Array, "..."]]:
    """Return Euclidean norms along an axis, and the norms in units of the lowest bit set.

    The span of a zero vector is 0.
    """
    norm = jnp.sqrt(sum_of_squares(x, axis)).astype(jnp.float32)
    lowest = _lowest_bit_exponent(x).min(axis)
    # 2**-lowest from its bits: lowest is in [-24, 64].
    return norm, norm * lax.bitcast_convert_type((127 - lowest) << 23, jnp.float32)


def sum_of_squares(x: Float16[Array, "..."], axis: int) -> Float64[Array, "..."]:
    """Return sums of squares along an axis."""
    values = x.astype(jnp.float64)
    return (values * values).sum(axis)


def _lowest_bit_exponent(x: Float16[Array, "..."]) -> Int32[Array, "..."]:
    """Return the exponent of the lowest set bit of each number; `_NO_BIT` for zero."""
    bits = lax.bitcast_convert_type(x, jnp.uint16).astype(jnp.int32)
    field, fraction = bits >> 10 & 31, bits & 1023
    significand = jnp.where(field > 0, fraction | 1024, fraction)
    trailing_zeros = 31 - lax.clz(significand & -significand)
    return jnp.where(significand == 0, _NO_BIT, trailing_zeros + jnp.maximum(field, 1) - 25)


def _outer(a: Float32[Array, "gx m"], b: Float32[Array, "g n"]) -> Float64[Array, "g m n"]:
    """Return all products of two vectors, or of each pair of a batch, in float64."""
    return a.astype(jnp.float64)[:, :, None] * b.astype(jnp.float64)[:, None, :]


def to_fp32(exact: Float64[Array, "..."], rounding: SumRounding) -> Float32[Array, "..."]:
    """Round to fp32; a zero is +0: whether a GEMM starts from +0 or returns -0 is its choice."""
    near = exact.astype(jnp.float32)
    if rounding == "rz":
        beyond = jnp.abs(near.astype(jnp.float64)) > jnp.abs(exact)
        # One less in the bits is one step towards zero, whatever the sign.
        bits = lax.bitcast_convert_type(near, jnp.int32) - beyond.astype(jnp.int32)
        near = lax.bitcast_convert_type(bits, jnp.float32)
    return jnp.where(near == 0, jnp.float32(0), near)
