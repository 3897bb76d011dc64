"""Products with stored weights, and the join of partial results over chips.

Holds only datapath operations and free layout. A weight keeps the dimensions of its logical axes
until it is used; here it becomes a matrix. How the chips of an axis join their results is the
plan's choice (`Split`).
"""

from enum import StrEnum
from typing import Any

import numpy as np
from jaxtyping import Array, Float16, Float32

from lpu_jax.datapath import c2c, mxm, vxm
from lpu_jax.datapath.c2c import Axis
from lpu_jax.numerics.quantized import QuantizedArray

Weight = Array | QuantizedArray

#: Smallest row maximum that int8 activations are scaled by: a row of zeros stays zero.
SMALLEST_MAXIMUM = 1e-30


class Split(StrEnum):
    """How an output projection is split over the chips of its axis."""

    #: each chip holds rows; partial sums are added by an all-reduce: roundings move with the split
    ROW = "row"
    #: each chip holds columns; inputs and outputs are gathered: no rounding moves
    COLUMN = "column"


def as_matrix(w: Weight, *, rows: int, batch: int = 0) -> Weight:
    """Join the dimensions of a weight into `[*batch, k, n]`: a reshape, free."""
    if isinstance(w, QuantizedArray):
        return QuantizedArray(
            codes=_flat(w.codes, rows, batch), scales=_flat(w.scales, rows, batch), scheme=w.scheme
        )
    return _flat(w, rows, batch)


def _flat(x: Array, rows: int, batch: int) -> Array:
    k: Any = 1
    for size in x.shape[batch : batch + rows]:
        k = k * size
    n: Any = 1
    for size in x.shape[batch + rows :]:
        n = n * size
    return x.reshape(*x.shape[:batch], k, n)


def linear(x: Float16[Array, "m k"], w: Weight, *, rows: int = 1) -> Float32[Array, "m n"]:
    """Multiply by a stored matrix.

    float16 weights and narrow formats that are widened to float16 multiply the activations as they
    are. int8 weights multiply int8 activations, scaled per row by `max |x| / 127`.

    Args:
        x: activations.
        w: weights; `rows` leading dimensions form `k`, the others `n`.
        rows: see `w`.

    Fidelity:
        Exact in each K tile, see `mxm.matmul`; int8 activations are rounded once.
    """
    matrix = as_matrix(w, rows=rows)
    if isinstance(matrix, QuantizedArray) and matrix.scheme == "int8":
        return _linear_int8(x, matrix)
    return mxm.matmul(x, matrix)


def _linear_int8(x: Float16[Array, "m k"], w: QuantizedArray) -> Float32[Array, "m n"]:
    wide = vxm.to_fp32(x)
    largest = vxm.maximum(vxm.max_lanes(vxm.absolute(wide)), SMALLEST_MAXIMUM)
    codes = vxm.to_int8(vxm.mul(wide, vxm.div(127.0, largest)))
    y = vxm.to_fp32(mxm.matmul(codes, w))
    # both scales are applied to the sum: per row, then per column
    return vxm.mul(vxm.mul(y, vxm.mul(largest, float(np.float32(1 / 127)))), w.scales)


def project_out(
    x: Float16[Array, "m k"], w: Weight, *, rows: int, split: Split, axis: Axis, d_model: int
) -> Float16[Array, "m d"]:
    """Multiply what the chips of an axis hold by the output projection; the result is on all.

    Args:
        x: a chip's share of the columns.
        w: its share of the matrix: of rows for `Split.ROW`, of columns for `Split.COLUMN`.
        rows: leading dimensions of `w` that form its rows.
        split: how the matrix is split.
        axis: the chips.
        d_model: columns of the whole result.

    Fidelity:
        `COLUMN`: the same bits for any number of chips. `ROW`: order-dependent, partial sums are
        rounded to fp16 for the wire and added in chip order.
    """
    if split is Split.ROW:
        return c2c.all_reduce(vxm.to_fp16(linear(x, w, rows=rows)), axis)
    whole = c2c.all_gather(x, axis, dim=-1)
    y = vxm.to_fp16(linear(whole, w, rows=rows))
    return c2c.all_gather(y, axis, dim=-1, keep=d_model)


def add_residual(x: Float16[Array, "b t d"], y: Float16[Array, "b t d"]) -> Float16[Array, "b t d"]:
    """Add a block's result to the hidden state, which leaves every block in the wire format.

    Fidelity: one fp32 addition, one rounding to fp16.
    """
    return vxm.to_fp16(vxm.add(vxm.to_fp32(x), vxm.to_fp32(y)))
