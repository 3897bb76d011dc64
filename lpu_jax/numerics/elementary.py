"""VXM functions: fp32, rounded at each operation, with bits that no compiler option can move.

Every operation follows the chip's rule (`arithmetic`): one rounding (RNE), subnormal results and
operands count as zeros of their sign (assumed), one NaN. Each is guarded, so that XLA can neither
contract a product and a sum into a fused multiply-add, nor fold constants through roundings, nor
merge divisions. Special functions are our own stated algorithms (`algorithms`). Not modelled: the
vendor's algorithms (not public), and sums in any order but the stated ones.

Error bounds are in ulp of the exact result, where that is a normal fp32 number. They were measured
once on CPU over every fp32 argument (tanh: a dense sweep; tests repeat a sample), and hold on every
backend, because all give the same bits.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from ..arguments import check_spread, checked
from ..errors import LpuError
from . import algorithms, arithmetic
from .arithmetic import on_backend

#: Lanes of a vector, which fixes the tree of `sum_lanes`.
LANES = 320
#: More vectors than this are added in a loop, which compiles in constant time.
_MAX_UNROLLED = 8


@checked
def add(a: Float32[Array, "..."], b: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Return `a + b`, rounded once. Fidelity: exact rounding (RNE), subnormals flushed."""
    check_spread("elementary.add", [a.shape, b.shape])
    return arithmetic.add(a, b)


@checked
def sub(a: Float32[Array, "..."], b: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Return `a - b`, rounded once. Fidelity: exact rounding (RNE), subnormals flushed."""
    check_spread("elementary.sub", [a.shape, b.shape])
    return arithmetic.sub(a, b)


@checked
def mul(a: Float32[Array, "..."], b: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Return `a * b`, rounded once. Fidelity: exact rounding (RNE), subnormals flushed."""
    check_spread("elementary.mul", [a.shape, b.shape])
    return on_backend(arithmetic.mul, a, b)


@checked
def div(a: Float32[Array, "..."], b: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Return `a / b`, rounded once, also where `b` is a compile-time constant.

    Fidelity:
        Exact rounding (RNE), subnormals flushed.
    """
    check_spread("elementary.div", [a.shape, b.shape])
    return on_backend(arithmetic.div, a, b)


@checked
def sqrt(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Return the square root, rounded once; NaN below zero, -0 for -0.

    Fidelity:
        Exact rounding (RNE), subnormals flushed.
    """
    return on_backend(arithmetic.sqrt, x)


@checked
def maximum(a: Float32[Array, "..."], b: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Return the larger, element by element: NaN wins, +0 is larger than -0. Fidelity: exact."""
    check_spread("elementary.maximum", [a.shape, b.shape])
    return arithmetic.maximum(a, b)


@checked
def minimum(a: Float32[Array, "..."], b: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Return the smaller, element by element: NaN wins, -0 is less than +0. Fidelity: exact."""
    check_spread("elementary.minimum", [a.shape, b.shape])
    return arithmetic.minimum(a, b)


@checked
def less_equal(a: Float32[Array, "..."], b: Float32[Array, "..."]) -> Bool[Array, "..."]:
    """Return where `a <= b`; false for NaN, subnormals are zeros. Fidelity: exact."""
    check_spread("elementary.less_equal", [a.shape, b.shape])
    return arithmetic.less_equal(a, b)


@checked
def reciprocal(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Return `1 / x`, rounded once. Fidelity: exact rounding (RNE), subnormals flushed."""
    return on_backend(algorithms.reciprocal, x)


@checked
def rsqrt(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Return `1 / sqrt(x)`, each rounded once: the compiler's own rsqrt is not used.

    Special cases: 0 gives inf, -0 gives -inf, inf gives 0; NaN below zero.

    Fidelity:
        Approximate: at most 1.5 ulp.
    """
    return on_backend(algorithms.rsqrt, x)


@checked
def exp(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Return the exponential of `x`.

    With `n = round(x / ln 2)` and `r = x - n ln 2 = high - low`: `exp(x) = 2**n * exp(r)`,
    `exp(r) = 1 + (high + (r**2 * q(r) - low))`, `q` a polynomial of degree 5 in Horner's form.

    Special cases: NaN gives NaN, -inf gives 0; results beyond the largest fp32 are inf, results
    below the smallest normal number 2**-126 are 0.

    Fidelity:
        Approximate: at most 0.90 ulp.

    Source:
        Range reduction and coefficients of Cephes `expf` (Moshier, 1992).
    """
    return on_backend(algorithms.exp, x)


@checked
def log(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Return the natural logarithm of `x`.

    With `x = 2**n (1 + f)` and `sqrt(1/2) <= 1 + f < sqrt(2)`: `n ln 2 + f - f**2 / 2 + f**3 p(f)`,
    `p` a polynomial of degree 8, the parts of `ln 2` added smallest first.

    Special cases: NaN below zero; 0 and -0 give -inf, inf gives inf, 1 gives +0.

    Fidelity:
        Approximate: at most 0.83 ulp.

    Source:
        Range reduction and coefficients of Cephes `logf` (Moshier, 1992).
    """
    return on_backend(algorithms.log, x)


@checked
def tanh(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Return the hyperbolic tangent of `x`.

    `x + x**3 p(x**2)` below 0.625, `p` a polynomial of degree 4; `1 - 2 / (exp(2 |x|) + 1)` from
    there, with the sign of `x`.

    Special cases: NaN gives NaN, infinities give +-1, zeros keep their sign.

    Fidelity:
        Approximate: at most 1.32 ulp.

    Source:
        Intervals and coefficients of Cephes `tanhf` (Moshier, 1992).
    """
    return on_backend(algorithms.tanh, x)


@checked
def sigmoid(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Return `1 / (1 + exp(-x))`.

    With `e = exp(-|x|)`: `1 / (1 + e)` for `x >= 0`, `e / (1 + e)` below, so that small results
    keep their precision and nothing overflows.

    Special cases: NaN gives NaN; below -87.3 the result is 0, as `exp`.

    Fidelity:
        Approximate: at most 2.41 ulp.
    """
    return on_backend(algorithms.sigmoid, x)


@checked
def silu(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Return `x * sigmoid(x)`.

    Special cases: NaN gives NaN; -inf gives NaN, as the product is; below -87.3 the result is -0,
    as `sigmoid`, where the exact one is smaller than 1.1e-36.

    Fidelity:
        Approximate: at most 3.32 ulp from -87.3 on.
    """
    return on_backend(algorithms.silu, x)


@checked
def gelu(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Return `x * Phi(x)`, the exact-erf form; `Phi` is the standard normal distribution.

    `Phi(-w) = exp(-w**2 / 2) t p(t)`, `t = 2 / (w + 2)`, with `w**2` in two parts, so that the
    small results of negative arguments keep their precision; `Phi(w) = 1 - Phi(-w)`.

    Special cases: NaN gives NaN, inf gives inf; -inf gives NaN, as the product is; zeros keep
    their sign; results below 2**-126 are zeros.

    Fidelity:
        Approximate: at most 6.0 ulp over the whole range, the tail included (0.8 on average).

    Source:
        Own fit, see `algorithms`.
    """
    return on_backend(algorithms.gelu, x)


@checked
def gelu_tanh(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Return `x / 2 * (1 + tanh(sqrt(2 / pi) (x + 0.044715 x**3)))`, as `x * sigmoid(...)`.

    The sigmoid avoids the cancellation of `1 + tanh`; what is left in the negative tail is the
    rounding of its argument, which an exponential magnifies.

    Special cases: NaN gives NaN, inf gives inf; -inf gives NaN, as the product is; zeros keep
    their sign; below -10.0 the result is -0, as `sigmoid`, where the exact one is smaller than
    1.3e-37.

    Fidelity:
        Approximate: at most 3.2 ulp from -1 on, 16 from -3, 36 from -5 and 215 from -10. The
        absolute error below 0 is at most 5.2e-8.
    """
    return on_backend(algorithms.gelu_tanh, x)


@checked
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
    x = _last("elementary.sum_lanes", x, axis)
    return algorithms.sum_lanes(x, lanes=LANES, max_unrolled=_MAX_UNROLLED)


@checked
def sum_leading(x: Float32[Array, "n ..."]) -> Float32[Array, "..."]:
    """Sum the leading axis in ascending order, starting from +0.

    Fidelity:
        Order-dependent: the order above; zeros anywhere in the list change no bit.
    """
    return algorithms.sum_leading(x, from_first=False)


@checked
def sum_chips(x: Float32[Array, "n ..."]) -> Float32[Array, "..."]:
    """Sum the leading axis in ascending order, starting from its first entry.

    Fidelity:
        Order-dependent: the order above; negative zeros anywhere in the list change no bit.
    """
    return algorithms.sum_leading(x, from_first=True)


@checked
def sum_tree(x: Float32[Array, "n ..."]) -> Float32[Array, "..."]:
    """Sum the leading axis by a binary tree: neighbours first, then their sums, and so on.

    An operand that is -0 counts as +0, so that the tree of a part is the part of the tree: zeros
    beside it change no bit.

    Raises:
        LpuError: the axis is no power of two long.

    Fidelity:
        Order-dependent: the order above, one rounding (RNE) per addition.
    """
    n = x.shape[0]
    if not n or n & n - 1:
        raise LpuError(
            f"elementary.sum_tree: an axis of {n} was given; its length must be a power of two."
        )
    return algorithms.sum_tree(x)


@checked
def max_lanes(x: Float32[Array, "..."], axis: int = -1) -> Float32[Array, "..."]:
    """Return the maximum along an axis, and drop the axis.

    NaN wins; an axis without elements gives -inf; -0 is returned as +0, so that no order of
    comparison shows and appended -inf change nothing.

    Fidelity:
        Exact: every tree of comparisons, `sum_lanes`' too, gives this value.
    """
    return algorithms.max_last(_last("elementary.max_lanes", x, axis))


def _last(caller: str, x: Float32[Array, "..."], axis: int) -> Float32[Array, "..."]:
    """Move an axis to the end."""
    if not -x.ndim <= axis < x.ndim:
        raise LpuError(
            f"{caller}: axis={axis} was given for an array of shape {x.shape}; it must be the "
            "number of one of its axes."
        )
    return jnp.moveaxis(x, axis, -1)
