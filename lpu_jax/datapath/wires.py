"""Partial sums that cross chips in another format than the hidden state's: narrower, or exactly.

What it computes: operands in fp32 are rounded to the format of the wire on the vector unit, added
in the orders of `c2c`, and rounded to it again after each level. What it costs: a conversion, and
the links for as many bits, scales included. On one chip nothing crosses, and nothing is rounded.
Not modelled: conversions between levels, like all that chips do on the way.
"""

from dataclasses import replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from ..arguments import checked
from ..numerics.schemes import MXFP8_E4M3
from . import c2c, wide_sums
from .alu import ALU
from .axis import Axis
from .block_scales import quantize_cost
from .chip_sums import WireFormat, to_wire
from .primitive import primitive

#: `bf16`; `fp8`: e4m3 codes with a power of two for 32 values of a row, as MXFP8; `fp32`; `exact`:
#: wide numbers of 16 bytes.
Wire = Literal["bf16", "fp8", "fp32", "exact"]
SharedWire = Literal["bf16", "fp8", "fp32"]


def _to_wire_meaning(x: Array, *, wire: Any, size: Any) -> Array:
    return x if size == 1 else to_wire(x, wire)


def _same_shape(x: Any, **_: Any) -> Any:
    return jax.ShapeDtypeStruct(x.shape, jnp.float32)


#: Values of the wire's format, in fp32: the type is the same where nothing crosses.
_to_wire = primitive(
    "vxm_to_wire",
    abstract=_same_shape,
    meaning=_to_wire_meaning,
    chain=lambda params: ALU["convert"],
)
_to_scaled_wire = primitive(
    "vxm_to_scaled_wire",
    abstract=_same_shape,
    meaning=_to_wire_meaning,
    cost=lambda machine, call: quantize_cost(
        machine, replace(call, params={"scheme": MXFP8_E4M3, **call.params})
    ),
)


@checked
def all_reduce(
    x: Float32[Array, "*rows n"], axis: Axis, *, wire: Wire
) -> Float32[Array, "*rows n"]:
    """Add the partial sums of all chips of `axis` as they cross in a format; every chip gets them.

    Args:
        x: a chip's partial sums.
        axis: the chips.
        wire: the format.

    Returns:
        The sums in fp32. One chip's operand is its result, bit for bit.

    Raises:
        CostError: the algorithm has an order of its own and the run is longer than a node.

    Fidelity:
        `bf16`, `fp8`: order-dependent, the order is fixed: that of `c2c.all_reduce`, with one
        rounding of each operand and one after each level. `fp32`: that of `c2c.all_reduce`.
        `exact`: that of `wide_sums.sum_terms`, and one rounding to fp32: no order, no number of
        levels and no algorithm changes a bit.
    """
    match wire:
        case "fp32":
            return c2c.all_reduce(x, axis)
        case "exact":
            return _exact(x, axis)
    return c2c.all_reduce(_rounded(x, axis, wire), axis, wire=wire)


@checked
def reduce_scatter(
    x: Float32[Array, "*rows n"], axis: Axis, *, dim: int, wire: SharedWire
) -> Float32[Array, "*rows_own n_own"]:
    """Add partial sums as `all_reduce` does; leave each chip its share along `dim` (negative).

    Args:
        x: a chip's partial sums.
        axis: the chips.
        dim: which dimension is shared out.
        wire: the format; not `exact`: wide numbers have no reduce-scatter.

    Raises:
        CostError: as for `all_reduce`.

    Fidelity: that of `all_reduce`; a `ring` sums the shares along `dim`.
    """
    if wire == "fp32":
        return c2c.reduce_scatter(x, axis, dim=dim)
    return c2c.reduce_scatter(_rounded(x, axis, wire), axis, dim=dim, wire=wire)


def _rounded(x: Array, axis: Axis, wire: WireFormat) -> Array:
    bind = _to_scaled_wire if wire == "fp8" else _to_wire
    found: Array = bind(x, wire=wire, size=axis.size)
    return found


def _exact(x: Array, axis: Axis) -> Array:
    """Add without rounding; a number that is its own sum keeps the sign of its zero."""
    if isinstance(axis.size, int) and axis.size == 1:
        return x
    terms = wide_sums.sum_terms(x.reshape(1, *x.shape))
    total: Array = wide_sums.to_fp32(c2c.wide_all_reduce(terms, axis))
    return total
