"""VXM functions: fp32, rounded at each operation, with bits that no compiler option can move.

Each operation is guarded (`guarded`), so that XLA can neither contract a product and a sum into a
fused multiply-add, nor fold constants through roundings, nor merge divisions. exp, sigmoid and
silu are our own stated algorithms. Not modelled: the vendor's algorithms (not public), fp32
subnormals (backends disagree on flushing them), and sums in any order but the stated ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float32

#: Lanes of a vector, which fixes the tree of `sum_lanes`.
LANES = 320
_FOLDED_LANES = 512
#: More vectors than this are added in a loop, which compiles in constant time.
_MAX_UNROLLED = 8

#: ln 2 in two parts; the first has 9 bits, so that its product with an exponent is exact.
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
#: Of `(exp(r) - 1 - r) / r**2` on |r| <= ln(2)/2, highest power first.
_EXP_COEFFICIENTS = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)
#: Largest and smallest arguments whose exponentials are finite and normal fp32 numbers.
_EXP_LARGEST, _EXP_SMALLEST = 88.72283172607422, -87.33654022216797


def guarded(p: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Return `p` unchanged, as a value the compiler cannot see through; NaN stays NaN.

    `p == p` is false for NaN only, which a compiler without fast-math must respect, and a select
    between the operation and its user ends contraction, reassociation and constant folding.
    `lax.optimization_barrier` and `reduce_precision` do not.
    """
    return jnp.where(p == p, p, jnp.float32(jnp.nan))


def add(a: Float32[Array, "..."], b: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Return `a + b`, rounded once. Fidelity: exact rounding (RNE), subnormals as the backend."""
    return guarded(a + b)


def sub(a: Float32[Array, "..."], b: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Return `a - b`, rounded once. Fidelity: exact rounding (RNE), subnormals as the backend."""
    return guarded(a - b)


def mul(a: Float32[Array, "..."], b: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Return `a * b`, rounded once. Fidelity: exact rounding (RNE), subnormals as the backend."""
    return guarded(a * b)


def _opaque(constant: Float32[Array, "..."], like: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Return `constant` in a form that is not one to the compiler; NaN where `like` is NaN."""
    return jnp.where(like == like, constant, jnp.float32(jnp.nan))


def div(a: Float32[Array, "..."], b: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Return `a / b`, rounded once, also where `b` is a compile-time constant.

    XLA multiplies by the reciprocal of a constant divisor; where `a` is NaN the quotient is NaN
    whatever the divisor, so a divisor that depends on `a == a` stays one.

    Fidelity:
        Exact rounding (RNE) on CPU. On GPU the backend's own division, which may differ.
    """
    return guarded(a / _opaque(b, a))


def sqrt(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Return the square root, rounded once.

    Fidelity:
        Exact rounding (RNE) on CPU. On GPU the backend's own square root, which may differ.
    """
    return guarded(jnp.sqrt(x))


def rsqrt(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Return `1 / sqrt(x)`, each rounded; the guard keeps XLA from using its own rsqrt.

    Fidelity:
        Approximate: at most 1.5 ulp (two roundings; measured on 8 million arguments).
    """
    return div(jnp.ones_like(x), sqrt(x))


def exp(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Return the exponential of `x`.

    With `n = round(x / ln 2)` and `r = x - n ln 2 = high - low`: `exp(x) = 2**n * exp(r)`,
    `exp(r) = 1 + (high + (r**2 * q(r) - low))`, `q` a polynomial of degree 5 in Horner's form.

    Special cases: NaN gives NaN, -inf gives 0; results beyond the largest fp32 are inf, results
    below the smallest normal number 2**-126 are 0.

    Fidelity:
        Approximate: at most 0.90 ulp (measured: 14 million arguments over the whole range).

    Source:
        Range reduction and coefficients of Cephes `expf` (Moshier, 1992). The VXM's own algorithm
        is not public.
    """
    n = jnp.round(mul(x, _constant(1.44269504088896341, x)))
    high = sub(x, mul(n, _constant(_LN2_HIGH, x)))  # exact
    low = mul(n, _constant(_LN2_LOW, x))
    r = sub(high, low)
    q = _constant(_EXP_COEFFICIENTS[0], x)
    for coefficient in _EXP_COEFFICIENTS[1:]:
        q = add(mul(q, r), _constant(coefficient, x))
    tail = sub(mul(q, mul(r, r)), low)  # `high` and `low` again, not the rounded r
    power = add(add(high, tail), _constant(1.0, x))
    # power is in [0.7, 1.5]: adding n to its exponent field multiplies by 2**n.
    bits = lax.bitcast_convert_type(power, jnp.int32) + (n.astype(jnp.int32) << 23)
    scaled = lax.bitcast_convert_type(bits, jnp.float32)
    scaled = jnp.where(x > _EXP_LARGEST, jnp.float32(jnp.inf), scaled)
    scaled = jnp.where(x < _EXP_SMALLEST, jnp.float32(0), scaled)
    return jnp.where(x == x, scaled, x)


def sigmoid(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Return `1 / (1 + exp(-x))`.

    With `e = exp(-|x|)`: `1 / (1 + e)` for `x >= 0`, `e / (1 + e)` below, so that small results
    keep their precision and nothing overflows.

    Special cases: NaN gives NaN; below -87.3 the result is 0, as `exp`.

    Fidelity:
        Approximate: at most 2.4 ulp (measured: 14 million arguments over the whole range).
    """
    e = exp(-jnp.abs(x))
    one = _constant(1.0, x)
    return div(jnp.where(x >= 0, one, e), add(e, one))


def silu(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Return `x * sigmoid(x)`; NaN for -inf, as the product is.

    Fidelity:
        Approximate: at most 3.2 ulp (measured: 14 million arguments over the whole range).
    """
    return mul(x, sigmoid(x))


def sum_lanes(x: Float32[Array, "..."], axis: int = -1) -> Float32[Array, "..."]:
    """Sum along an axis in a stated order, and drop the axis.

    The axis is cut into vectors of 320 lanes, the last padded with zeros. Vectors are added in
    ascending order, lane by lane; the 320 lane sums, padded with zeros to 512, are then folded by
    halves: lane `i` and lane `i + 256`, then `i + 128`, ..., `i + 1`.

    Zeros appended to the axis do not change the result, nor does what is in other rows. An exact
    zero is +0.

    Args:
        x: values; they are guarded, so that products made anywhere may be given.
        axis: the axis to sum.

    Fidelity:
        Order-dependent: the order above, one rounding (RNE) per addition.

    Source:
        Order assumed: vectors stream through an accumulator, lanes are combined by rotations.
    """
    x = guarded(jnp.moveaxis(x, axis, -1))
    count = -(-x.shape[-1] // LANES)
    x = _pad_last(x, max(count, 1) * LANES)

    def vector(i: int | Array) -> Float32[Array, "..."]:
        return lax.dynamic_slice_in_dim(x, i * LANES, LANES, axis=-1)

    total = vector(0)
    if count <= _MAX_UNROLLED:
        for i in range(1, count):
            total = total + vector(i)
    else:
        total = lax.fori_loop(1, count, lambda i, acc: acc + vector(i), total)
    total = _pad_last(total, _FOLDED_LANES)
    while total.shape[-1] > 1:
        half = total.shape[-1] // 2
        total = total[..., :half] + total[..., half:]
    return total[..., 0]


def max_lanes(x: Float32[Array, "..."], axis: int = -1) -> Float32[Array, "..."]:
    """Return the maximum along an axis, and drop the axis.

    NaN wins; an axis without elements gives -inf; -0 is returned as +0, so that no order of
    comparison shows and appended -inf change nothing.

    Fidelity:
        Exact: every tree of comparisons, `sum_lanes`' too, gives this value.
    """
    # XLA:CPU's maximum over an axis loses NaN for some lengths (seen on JAX 0.10.2: 833).
    is_nan = x != x
    largest = jnp.where(is_nan, -jnp.inf, x).max(axis, initial=-jnp.inf)
    largest = jnp.where(largest == 0, jnp.float32(0), largest)
    return jnp.where(is_nan.any(axis), jnp.float32(jnp.nan), largest)


def _pad_last(x: Float32[Array, "..."], size: int) -> Float32[Array, "..."]:
    """Append zeros to the last axis up to `size`."""
    return jnp.pad(x, (*((0, 0),) * (x.ndim - 1), (0, size - x.shape[-1])))


def _constant(value: float, like: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Return an array of one value, rounded to fp32."""
    return jnp.full_like(like, value)


@dataclass(frozen=True, kw_only=True)
class AluCost:
    """ALU operations that a function takes per element.

    `operations` counts all of them, `depth` those on the longest chain, and `large` says that they
    must run on the large ALUs.
    """

    operations: int
    depth: int
    large: bool = False


_SIMPLE = AluCost(operations=1, depth=1)

#: What each function costs. The composed ones count the operations of the algorithms above
#: (guards, constants and bit reinterpretation are free), which a test compares with their jaxprs.
#: That each basic operation is one ALU operation, division and square root included, and that the
#: special functions need large ALUs, is assumed: the vendor's list is not public.
ALU_OPERATIONS: Mapping[str, AluCost] = MappingProxyType(
    {
        "add": _SIMPLE,
        "sub": _SIMPLE,
        "mul": _SIMPLE,
        "max": _SIMPLE,
        "min": _SIMPLE,
        "select": _SIMPLE,
        "compare": _SIMPLE,
        "convert": _SIMPLE,
        "div": AluCost(operations=1, depth=1, large=True),
        "sqrt": AluCost(operations=1, depth=1, large=True),
        "rsqrt": AluCost(operations=2, depth=2, large=True),
        "exp": AluCost(operations=30, depth=23, large=True),
        "sigmoid": AluCost(operations=36, depth=27, large=True),
        "silu": AluCost(operations=37, depth=28, large=True),
    }
)
