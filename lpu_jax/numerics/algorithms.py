"""The VXM's special functions as stated algorithms over a given arithmetic.

Each takes the `Arithmetic` first and flushed fp32 values after it, but for sums and maxima, which
are the same on every backend and take any values. Entry points, error bounds and
special cases are in `elementary`. Not modelled: the vendor's algorithms, which are not public.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from . import portable
from .arithmetic import Arithmetic, Values, add, traced_once
from .portable import flushed, flushed_operand

#: ln 2 in two parts; the first has 9 bits, so that its product with an exponent is exact.
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
#: Of `(exp(r) - 1 - r) / r**2` on |r| <= ln(2)/2, highest power first (Cephes `expf`).
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

#: Of `(log(1 + f) - f + f**2 / 2) / f**3` on sqrt(1/2) - 1 <= f < sqrt(2) - 1 (Cephes `logf`).
_LOG_COEFFICIENTS = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
#: Bits of the fp32 number nearest to sqrt(1/2), where the significand of a logarithm begins.
_SQRT_HALF_BITS = 0x3F35_04F3

#: Of `(tanh(x) - x) / x**3` in x**2 on |x| <= 0.625 (Cephes `tanhf`).
_TANH_COEFFICIENTS = (
    -5.70498872745e-3,
    2.06390887954e-2,
    -5.37397155531e-2,
    1.33314422036e-1,
    -3.33332819422e-1,
)
_TANH_POLYNOMIAL_END = 0.625
_SIGN = 0x8000_0000

#: Of `Phi(-w) * exp(w**2 / 2) / t` in `1 - 2 t`, with `t = 2 / (w + 2)` and `Phi` the normal
#: distribution, on 0 <= w <= 13.4. Own minimax fit of degree 10: least squares on 3000 Chebyshev
#: nodes, weights multiplied by the relative error until it is level (Lawson), 2.0e-8 before the
#: coefficients are rounded.
_NORMAL_TAIL_COEFFICIENTS = (
    -3.4660913954e-05,
    2.0554937092e-05,
    3.5919302130e-04,
    4.3593137639e-04,
    -9.4488355188e-04,
    -3.3733126357e-03,
    -2.4150058414e-04,
    1.8360428158e-02,
    1.4399179758e-02,
    -1.6570226720e-01,
    3.3620399672e-01,
)
#: From here on the tail is 0 in fp32.
_NORMAL_TAIL_END = 14.0
#: Clears the lower half of a significand: what is left has an exact square.
_UPPER_HALF = 0xFFFF_F000

#: Maxima of fewer values are padded: XLA:CPU unrolls such short loops, and takes minutes to compile
#: them where a special function makes the values (seen on JAX 0.10.2: 16 and 24 values).
_LEAST_REDUCED = 64

#: `2 sqrt(2 / pi)` and 0.044715 times it: tanh-gelu is `x * sigmoid(x * (c0 + c1 x**2))`.
_GELU_TANH_LINEAR, _GELU_TANH_CUBIC = 1.5957691216057308, 0.07135481627159879


def constant(value: float, like: Values) -> Values:
    """Return an array of one value, rounded to fp32."""
    return jnp.full_like(like, value)


def _polynomial(u: Arithmetic, coefficients: tuple[float, ...], x: Values) -> Values:
    """Evaluate by Horner's rule, highest power first."""
    total = constant(coefficients[0], x)
    for coefficient in coefficients[1:]:
        total = u.add(u.plain_mul(total, x), constant(coefficient, x))
    return total


def reciprocal(u: Arithmetic, x: Values) -> Values:
    """`1 / x`."""
    return u.div(jnp.ones_like(x), x)


def rsqrt(u: Arithmetic, x: Values) -> Values:
    """`1 / sqrt(x)`."""
    return u.div(jnp.ones_like(x), u.sqrt(x))


def exp(u: Arithmetic, x: Values) -> Values:
    """`2**n` times a polynomial of the rest, `n = round(x / ln 2)`."""
    n = jnp.round(u.plain_mul(x, constant(1.44269504088896341, x)))
    high = u.sub(x, u.plain_mul(n, constant(_LN2_HIGH, x)))  # exact
    low = u.plain_mul(n, constant(_LN2_LOW, x))
    return _in_range(x, _exp_reduced(u, n, high, low))


def _exp_reduced(u: Arithmetic, n: Values, high: Values, low: Values) -> Values:
    """`2**n * exp(high - low)` for an argument of at most ln(2)/2."""
    r = u.sub(high, low)
    q = _polynomial(u, _EXP_COEFFICIENTS, r)
    tail = u.sub(
        u.plain_mul(q, u.plain_mul(r, r)), low
    )  # `high` and `low` again, not the rounded r
    power = u.add(u.add(high, tail), constant(1.0, r))
    # power is in [0.7, 1.5]: adding n to its exponent field multiplies by 2**n.
    bits = lax.bitcast_convert_type(power, jnp.int32) + (n.astype(jnp.int32) << 23)
    return lax.bitcast_convert_type(bits, jnp.float32)


def _in_range(x: Values, power: Values) -> Values:
    """Select the exponential's results outside its range."""
    power = jnp.where(x > _EXP_LARGEST, jnp.float32(jnp.inf), power)
    power = jnp.where(x < _EXP_SMALLEST, jnp.float32(0), power)
    return jnp.where(x == x, power, x)


def sigmoid(u: Arithmetic, x: Values) -> Values:
    """`1 / (1 + e)` for `x >= 0`, `e / (1 + e)` below, `e = exp(-|x|)`."""
    e = exp(u, -jnp.abs(x))
    one = constant(1.0, x)
    return u.div(jnp.where(x >= 0, one, e), u.add(e, one))


def silu(u: Arithmetic, x: Values) -> Values:
    """`x * sigmoid(x)`."""
    return u.mul(x, sigmoid(u, x))


def log(u: Arithmetic, x: Values) -> Values:
    """`n ln 2` and a polynomial in `f`, for `x = 2**n (1 + f)`."""
    # Subtracting the bits of sqrt(1/2) leaves n in the exponent field, rounded as wanted.
    offset = lax.bitcast_convert_type(x, jnp.int32) - jnp.int32(_SQRT_HALF_BITS)
    n = offset >> 23
    bits = (offset & jnp.int32(0x007F_FFFF)) + jnp.int32(_SQRT_HALF_BITS)
    f = u.sub(lax.bitcast_convert_type(bits, jnp.float32), constant(1.0, x))  # exact
    n = n.astype(jnp.float32)
    square = u.plain_mul(f, f)
    tail = u.plain_mul(u.plain_mul(_polynomial(u, _LOG_COEFFICIENTS, f), f), square)
    tail = u.add(tail, u.plain_mul(n, constant(_LN2_LOW, x)))
    tail = u.sub(tail, u.plain_mul(square, constant(0.5, x)))
    total = u.add(u.add(f, tail), u.plain_mul(n, constant(_LN2_HIGH, x)))
    total = jnp.where(x == 0, jnp.float32(-jnp.inf), total)
    total = jnp.where(x < 0, jnp.float32(jnp.nan), total)
    return jnp.where(x < jnp.inf, total, x)  # infinity and NaN are themselves


def tanh(u: Arithmetic, x: Values) -> Values:
    """`x + x**3 p(x**2)` for small `|x|`, else `1 - 2 / (exp(2 |x|) + 1)` with the sign of `x`."""
    w = jnp.abs(x)
    square = u.plain_mul(w, w)
    small = u.add(
        u.plain_mul(u.plain_mul(_polynomial(u, _TANH_COEFFICIENTS, square), square), w), w
    )
    one = constant(1.0, x)
    large = u.sub(one, u.div(constant(2.0, x), u.add(exp(u, u.add(w, w)), one)))
    bits = portable.bits_of(jnp.where(w >= _TANH_POLYNOMIAL_END, large, small))
    return portable.value_of(bits | (portable.bits_of(x) & jnp.uint32(_SIGN)))


def gelu(u: Arithmetic, x: Values) -> Values:
    """`x (1 - Phi(-x))` for `x > 0`, `x Phi(-|x|)` below.

    `Phi(-w) = exp(-w**2 / 2) * t * p(1 - 2 t)` with `t = 2 / (w + 2)`. `w**2` is needed to twice
    fp32's precision, because its error is the exponential's relative error: with `w = a + b` and
    `a` the upper half of `w`, it is `a**2`, which is exact, and `b (w + a)`.
    """
    w = jnp.abs(x)
    w = jnp.where(w < _NORMAL_TAIL_END, w, jnp.float32(_NORMAL_TAIL_END))
    upper = portable.value_of(portable.bits_of(w) & jnp.uint32(_UPPER_HALF))
    lower = u.sub(w, upper)
    half = constant(-0.5, x)
    first = u.plain_mul(u.plain_mul(upper, upper), half)
    second = u.plain_mul(u.plain_mul(lower, u.add(w, upper)), half)
    n = jnp.round(u.plain_mul(u.add(first, second), constant(1.44269504088896341, x)))
    high = u.sub(first, u.plain_mul(n, constant(_LN2_HIGH, x)))  # exact
    low = u.sub(u.plain_mul(n, constant(_LN2_LOW, x)), second)
    power = _in_range(first, _exp_reduced(u, n, high, low))
    t = u.div(constant(2.0, x), u.add(w, constant(2.0, x)))
    p = _polynomial(u, _NORMAL_TAIL_COEFFICIENTS, u.sub(constant(1.0, x), u.add(t, t)))
    tail = u.plain_mul(t, p)
    above = u.sub(constant(1.0, x), u.plain_mul(power, tail))
    is_positive = x > 0
    scaled = jnp.where(is_positive, x, u.mul(x, tail))  # before the power, which may be tiny
    return u.mul(scaled, jnp.where(is_positive, above, power))


def gelu_tanh(u: Arithmetic, x: Values) -> Values:
    """`x * sigmoid(x * (c0 + c1 x**2))`, which is `x / 2 * (1 + tanh(...))`."""
    cubic = u.plain_mul(u.plain_mul(x, x), constant(_GELU_TANH_CUBIC, x))
    return u.mul(x, sigmoid(u, u.plain_mul(x, u.add(cubic, constant(_GELU_TANH_LINEAR, x)))))


def sum_lanes(x: Values, *, lanes: int, max_unrolled: int) -> Values:
    """Sum the last axis: vectors of `lanes` in ascending order, then lanes by halves."""
    x = flushed_operand(x)  # also the wall between products and sums
    count = -(-x.shape[-1] // lanes)
    x = _pad_last(x, max(count, 1) * lanes)

    def vector(i: int | Array) -> Values:
        return lax.dynamic_slice_in_dim(x, i * lanes, lanes, axis=-1)

    total = vector(0)
    if count <= max_unrolled:
        for i in range(1, count):
            total = flushed(total + vector(i))
    else:
        total = lax.fori_loop(1, count, lambda i, acc: flushed(acc + vector(i)), total)
    # Padding makes every sum of zeros +0; without -0 XLA may take x + 0 to be x.
    total = jnp.where(portable.is_small(portable.bits_of(total)), jnp.float32(0), total)
    total = _pad_last(total, 1 << (lanes - 1).bit_length())
    while total.shape[-1] > 1:
        half = total.shape[-1] // 2
        total = flushed(total[..., :half] + total[..., half:])
    return portable.one_nan(total[..., 0])


def sum_leading(x: Values, *, from_first: bool) -> Values:
    """Sum the leading axis in ascending order, starting from +0 or from the first entry."""
    start = -0.0 if from_first else 0.0  # what is added to -0 keeps its sign
    return lax.scan(_add_part, jnp.full(x.shape[1:], start, x.dtype), x)[0]


def sum_tree(x: Values) -> Values:
    """Sum the leading axis, a power of two long, by pairs of neighbours; -0 counts as +0."""
    x = jnp.where(portable.is_small(portable.bits_of(x)), jnp.float32(0), x)
    while x.shape[0] > 1:
        x = add(x[0::2], x[1::2])
    return x[0]


def _add_part(total: Values, part: Values) -> tuple[Values, None]:
    return add(total, part), None


@traced_once
def max_last(x: Values) -> Values:
    """Take the maximum of the last axis; NaN wins, -0 becomes +0, no elements give -inf."""
    if 0 < x.shape[-1] < _LEAST_REDUCED:
        x = _pad_last(x, _LEAST_REDUCED, -jnp.inf)
    # XLA:CPU's maximum over an axis loses NaN for some lengths (seen on JAX 0.10.2: 833).
    is_nan = x != x
    largest = portable.bits_of(jnp.where(is_nan, -jnp.inf, x).max(-1, initial=-jnp.inf))
    largest = jnp.where(portable.is_small(largest), jnp.uint32(0), largest)
    return jnp.where(is_nan.any(-1), jnp.float32(jnp.nan), portable.value_of(largest))


def _pad_last(x: Values, size: int, value: float = 0.0) -> Values:
    """Append a value to the last axis up to `size`."""
    widths = (*((0, 0),) * (x.ndim - 1), (0, size - x.shape[-1]))
    return jnp.pad(x, widths, constant_values=value)
