"""The chip's fp32 arithmetic on two kinds of backend, and the choice between them.

The chip's rule: every operation is rounded once (RNE) to 24 bits; a result that is then below
2**-126 becomes a zero of its sign, and a subnormal operand counts as such a zero; every NaN is the
same NaN. That the chip flushes is assumed (not public). Not modelled: other rounding directions,
exception flags.

What XLA folds beforehand it computes by IEEE 754, with subnormals, and it rewrites operations with
one constant operand. So operands and results are flushed in integers, on every backend, and the
few operations that a constant could still change say how they prevent it: programs of constants
give the same bits as programs of arguments. Cost, measured on one core with AVX-512: none for
single operations, 1.3 times the time of a chain of them, 1.1 times that of a model's step.

`X86` leaves rounding to the processor: XLA runs with both flushing modes on, in which x86 decides
what is tiny after rounding, as the chip's rule does (a canary test watches this). `PORTABLE` takes
nothing for granted but correctly rounded products and sums of normal numbers. Both give the same
bits, which tests show; algorithms are written once, over either.
"""

import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float32

from . import portable
from .portable import flushed, flushed_operand, hidden, one_nan

Values = Float32[Array, "..."]
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """Operations on fp32 operands that are not subnormal; neither are their results.

    Results are `flushed`, which is also a wall to the compiler: a select of integers between an
    operation and its user ends contraction into fused multiply-adds, reassociation and constant
    folding. The select must not hang on NaN: `where(p == p, p, nan)` is no wall where the compiler
    knows that `p` is a number, as in a constant times a converted integer. Nor are
    `lax.optimization_barrier` and `reduce_precision`.
    """

    mul: Callable[[Values, Values], Values]
    #: for products whose users give the same bits for 0 and for 2**-126
    plain_mul: Callable[[Values, Values], Values]
    div: Callable[[Values, Values], Values]
    sqrt: Callable[[Values], Values]

    def add(self, a: Values, b: Values) -> Values:
        """Return `a + b`, rounded once; with a constant 0, -0 may be left as it is (see `add`)."""
        return flushed(a + b)

    def sub(self, a: Values, b: Values) -> Values:
        """Return `a - b`, rounded once."""
        return flushed(a - b)


def _multiplied(a: Values, b: Values) -> Values:
    """Return `a * b`, also where XLA computes it beforehand, with subnormals.

    It would then round products just below 2**-126 up to it, where the processor and the chip's
    rule round to 24 bits and flush. The product with one factor rescaled shows which are small; it
    overflows only where the factor is large, and then no product is.
    """
    product = a * b
    rescaled = portable.bits_of((a * jnp.float32(2.0**64)) * b)
    is_small = (rescaled & jnp.uint32(0x7FFF_FFFF)) < jnp.uint32((127 - 62) << 23)
    bits = portable.bits_of(product)
    return portable.value_of(jnp.where(is_small, bits & jnp.uint32(0x8000_0000), bits))


def _divided(a: Values, b: Values) -> Values:
    """Return `a / b`, also where `b` is one number, by whose reciprocal XLA would multiply."""
    return flushed(a / hidden(b, a))


X86 = Arithmetic(
    mul=_multiplied,
    plain_mul=lambda a, b: flushed(a * b),
    div=_divided,
    sqrt=lambda x: flushed(jnp.sqrt(x)),
)

PORTABLE = Arithmetic(
    mul=portable.mul,
    plain_mul=portable.mul,
    div=portable.div,
    sqrt=portable.sqrt,
)

#: Processors that round products at 2**-126 by the chip's rule. ARM's flushing mode decides before
#: rounding, and so differs for products just below.
X86_PROCESSORS = ("x86_64", "AMD64")


def traced_once(function: Function) -> Function:
    """Keep the traces of a module's function for each shape; its operations stay in the program."""
    return cast(Function, jax.jit(function, inline=True))


@cache  # JAX knows functions by identity
def _over(arithmetic: Arithmetic, function: Callable[..., Values]) -> Callable[..., Values]:
    """Bind a function to an arithmetic, with flushed operands and one NaN."""

    def run(*operands: Values) -> Values:
        return one_nan(function(arithmetic, *map(flushed_operand, operands)))

    return traced_once(run)


def on_backend(function: Callable[..., Values], *operands: Values) -> Values:
    """Run `function(arithmetic, *operands)` with the arithmetic that suits the backend.

    The choice is made when the program is lowered for a platform, so that one process can use a
    CPU and a GPU. Operands are flushed first; a NaN comes out as the one NaN.

    Args:
        function: a module's function, since traces of it are kept.
        operands: fp32 values.
    """
    portable_run = _over(PORTABLE, function)
    if platform.machine() not in X86_PROCESSORS:
        result: Values = portable_run(*operands)
    else:
        native_run = _over(X86, function)
        result = lax.platform_dependent(*operands, cpu=native_run, default=portable_run)
    return result


def mul(arithmetic: Arithmetic, a: Values, b: Values) -> Values:
    """Return `a * b`."""
    return arithmetic.mul(a, b)


def div(arithmetic: Arithmetic, a: Values, b: Values) -> Values:
    """Return `a / b`."""
    return arithmetic.div(a, b)


def sqrt(arithmetic: Arithmetic, x: Values) -> Values:
    """Return the root of `x`."""
    return arithmetic.sqrt(x)


# --- the same on every backend --------------------------------------------------------------------


@traced_once
def add(a: Values, b: Values) -> Values:
    """Return `a + b`; a small operand is put in as a zero, and a sum of zeros is made of signs.

    For XLA takes -0 + 0 to be -0 where one is a constant.
    """
    a_bits, b_bits = portable.bits_of(a), portable.bits_of(b)
    a_is_small, b_is_small = portable.is_small(a_bits), portable.is_small(b_bits)
    total = portable.bits_of(flushed(a + b))
    zero = a_bits & b_bits & jnp.uint32(0x8000_0000)
    of_b_alone = jnp.where(b_is_small, zero, b_bits)
    of_both = jnp.where(b_is_small, a_bits, total)
    return one_nan(portable.value_of(jnp.where(a_is_small, of_b_alone, of_both)))


@traced_once
def sub(a: Values, b: Values) -> Values:
    """Return `a - b`, which is the sum of `a` and `-b` in zeros too."""
    return add(a, -b)


@traced_once
def maximum(a: Values, b: Values) -> Values:
    """Return the larger: NaN wins, and +0 is larger than -0. Exact."""
    a, b = flushed_operand(a), flushed_operand(b)
    # Equal values have equal bits, but for zeros: these join to +0 unless both are negative.
    joined = portable.value_of(portable.bits_of(a) & portable.bits_of(b))
    either = jnp.where(a == b, joined, jnp.float32(jnp.nan))
    return jnp.where(a > b, a, jnp.where(b > a, b, either))


@traced_once
def minimum(a: Values, b: Values) -> Values:
    """Return the smaller: NaN wins, and -0 is smaller than +0. Exact."""
    a, b = flushed_operand(a), flushed_operand(b)
    # As in `maximum`; zeros join to -0 unless both are positive.
    joined = portable.value_of(portable.bits_of(a) | portable.bits_of(b))
    either = jnp.where(a == b, joined, jnp.float32(jnp.nan))
    return jnp.where(a < b, a, jnp.where(b < a, b, either))


@traced_once
def less_equal(a: Values, b: Values) -> Bool[Array, "..."]:
    """Return where `a <= b`; false for NaN. Exact."""
    return flushed_operand(a) <= flushed_operand(b)
