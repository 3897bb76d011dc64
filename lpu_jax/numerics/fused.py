"""The fused multiply-add: `a * b + c` with one rounding, by an error-free float64 method.

Uses float64 and 64-bit integers, so it must run inside `with jax.enable_x64(True)`, which the
caller (the lowering of a primitive) opens. Not modelled: fusing anywhere but where it is asked for.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float32, Float64

from ..arguments import check_spread, checked
from ..errors import LpuError
from .portable import flushed_operand, one_nan, value_of

_EXPONENT64, _SIGN64 = 0x7FF0_0000_0000_0000, -(2**63)
#: Bits of a float64 significand that fp32 has no room for.
_EXTRA_BITS = 52 - 23
#: Difference of the two formats' exponent biases.
_REBIAS = 1023 - 127


@checked
def fma(
    a: Float32[Array, "..."], b: Float32[Array, "..."], c: Float32[Array, "..."]
) -> Float32[Array, "..."]:
    """Return `a * b + c`, rounded once to 24 bits (RNE), then flushed.

    The float64 product is exact (48 bits). TwoSum gives the float64 sum and its exact error; where
    that is not zero, the sum is made odd (truncated, last bit set), which keeps 53 bits from
    hiding on which side of an fp32 midpoint the exact value lies. Integers round it to 24 bits.

    Raises:
        LpuError: 64-bit types are off: `vxm.fma` turns them on around it.

    Special cases: as IEEE 754: an invalid product or a difference of infinities gives NaN; an
    exact zero is +0 unless product and `c` are both negative zeros.

    Fidelity:
        Exact rounding (RNE), subnormal operands and results flushed.

    Source:
        Round to odd: Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008.
    """
    if not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise LpuError(
            "fused.fma: 64-bit types are off, so that products are not exact; call vxm.fma, or "
            "this under `with jax.enable_x64(True)`."
        )
    check_spread("fused.fma", [a.shape, b.shape, c.shape])
    a, b, c = flushed_operand(a), flushed_operand(b), flushed_operand(c)
    product = _walled(a.astype(jnp.float64) * b.astype(jnp.float64))
    addend = _walled(c.astype(jnp.float64))
    total = _sum_of_zeros_or(product, addend, _walled(product + addend))
    virtual = _walled(total - product)
    error = _walled(product - _walled(total - virtual)) + _walled(addend - virtual)
    bits = lax.bitcast_convert_type(total, jnp.int64)
    is_odd = (bits & 1) == 1
    # towards zero where the error points back, then odd
    points_back = (error < 0) == (total > 0)
    odd = jnp.where(is_odd, bits, jnp.where(points_back, bits - 1, bits + 1))
    inexact = (error != 0) & (error == error)
    narrow = _narrowed(jnp.where(inexact, odd, bits))
    special = one_nan(total.astype(jnp.float32))  # an infinity or NaN
    return jnp.where((bits & _EXPONENT64) == _EXPONENT64, special, narrow)


def _sum_of_zeros_or(
    a: Float64[Array, "..."], b: Float64[Array, "..."], total: Float64[Array, "..."]
) -> Float64[Array, "..."]:
    """Return `a + b` where both are zeros, for which XLA takes -0 + 0 to be -0, else `total`."""
    a_bits, b_bits, bits = (lax.bitcast_convert_type(v, jnp.int64) for v in (a, b, total))
    bits = jnp.where((a_bits | b_bits) << 1 == 0, a_bits & b_bits, bits)
    return lax.bitcast_convert_type(bits, jnp.float64)


def _walled(x: Float64[Array, "..."]) -> Float64[Array, "..."]:
    """Return `x` as a value the compiler cannot see through, as `arithmetic` does for fp32.

    Subnormals become zeros: no float64 here is one.
    """
    bits = lax.bitcast_convert_type(x, jnp.int64)
    bits = jnp.where((bits & _EXPONENT64) == 0, bits & _SIGN64, bits)
    return lax.bitcast_convert_type(bits, jnp.float64)


def _narrowed(bits: Array) -> Float32[Array, "..."]:
    """Round the bits of a finite float64 to fp32 (RNE), flush below and overflow above."""
    magnitude = bits & ~_SIGN64
    last = (magnitude >> _EXTRA_BITS) & 1
    rounded = (magnitude + ((1 << (_EXTRA_BITS - 1)) - 1) + last) >> _EXTRA_BITS
    rebiased = rounded - (_REBIAS << 23)
    rebiased = jnp.where(rebiased < 1 << 23, 0, rebiased)
    rebiased = jnp.where(rebiased > 0x7F80_0000, 0x7F80_0000, rebiased)
    sign = jnp.where(bits < 0, jnp.uint32(0x8000_0000), jnp.uint32(0))
    return value_of(rebiased.astype(jnp.uint32) | sign)
