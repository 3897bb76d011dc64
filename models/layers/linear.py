"""Products with stored weights, and the join of partial results over chips.

Holds only datapath operations and free layout. A weight keeps the dimensions of its logical axes
until it is used; here it becomes a matrix. How the chips of an axis join their results is the
plan's choice (`Split`).
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float32, Int32

from lpu_jax.datapath import (
    c2c,
    matrix_blocks,
    mem,
    mxm,
    tensor_core,
    tree_sums,
    vxm,
    wide_sums,
    wires,
)
from lpu_jax.datapath.axis import Axis
from lpu_jax.datapath.scaled import fp8_product, int8_product, wide_fp8_product
from lpu_jax.errors import LpuError
from lpu_jax.numerics.quantized import QuantizedArray, output_scale
from lpu_jax.predicates import may_equal

from ..config import ModelConfig
from ..param_spec import Role
from ..policy import Policy
from .norm import rms_norm

Weight = Array | QuantizedArray


class Split(StrEnum):
    """How an output projection is split over the chips of its axis."""

    #: each chip holds rows; partial sums are added by an all-reduce: roundings move with the split
    ROW = "row"
    #: each chip holds columns; inputs and outputs are gathered: no rounding moves
    COLUMN = "column"
    #: each chip holds rows; partial sums are added in fp32 by a binary tree whose leaves no plan
    #: moves (`models.leaves`): the same bits for every power of two of chips
    TREE = "tree"
    #: each chip holds rows; partial sums cross chips without rounding (`numerics.wide`): the same
    #: bits for any number of chips
    WIDE = "wide"

    @property
    def rules_one_chip(self) -> bool:
        """Whether it is a rule of how sums are made on one chip too, where nothing is split."""
        return self in (Split.TREE, Split.WIDE)


def as_matrix(w: Weight, *, rows: int, batch: int = 0) -> Weight:
    """Join the dimensions of a weight into `[*batch, k, n]`: a reshape, free."""
    if isinstance(w, QuantizedArray):
        # Codes and scales have the same dimensions, so each leaf is joined on its own.
        matrix: QuantizedArray = jax.tree.map(lambda leaf: _flat(leaf, rows, batch), w)
        return matrix
    return _flat(w, rows, batch)


def _flat(x: Array, rows: int, batch: int) -> Array:
    k: Any = 1
    for size in x.shape[batch : batch + rows]:
        k = k * size
    n: Any = 1
    for size in x.shape[batch + rows :]:
        n = n * size
    return x.reshape(*x.shape[:batch], k, n)


def narrowed(x: Float32[Array, "..."], policy: Policy) -> Float[Array, "..."]:
    """Round to the base format, in which values cross blocks and chips and lie in the cache.

    Fidelity: one rounding (RNE) to fp16, overflow to infinity; none for a base of fp32.
    """
    return vxm.to_fp16(x) if policy.base == "fp16" else x


def operand_rows(x: Float32[Array, "*rows k"], policy: Policy, *roles: Role) -> Any:
    """Round rows to the format in which they multiply weights of each role.

    Args:
        x: rows.
        policy: formats of rows.
        roles: of the weights.

    Returns:
        Rows in the base format or float8_e4m3fn: one array, or a tuple for several roles, which
        share what they can.

    Fidelity: one rounding (RNE); fp16 overflows to infinity, fp8 saturates.
    """
    formats = [policy.rows.get(role, policy.base) for role in roles]
    round_to = {"fp32": lambda x: x, "fp16": vxm.to_fp16, "fp8": vxm.to_fp8}
    rounded = {name: round_to[name](x) for name in dict.fromkeys(formats)}
    return rounded[formats[0]] if len(roles) == 1 else tuple(rounded[name] for name in formats)


def multiplied(
    x: Float[Array, "..."],
    w: Weight,
    policy: Policy,
    rows: Int32[Array, " g"] | None = None,
) -> Float32[Array, "..."]:
    """Multiply rows in the unit that a policy names: the matrix unit, or a GPU's tensor cores.

    Args:
        x: rows; forms are those of `mxm.matmul`.
        w: weights.
        policy: how products are made.
        rows: addresses of matrices in a store.

    Fidelity: that of `mxm.matmul`, or of `tensor_core.matmul`.
    """
    if policy.generation is not None:
        return tensor_core.matmul(x, w, rows=rows, generation=policy.generation)
    found: Array = mxm.matmul(x, w, rows=rows, **policy.products)
    return found


def linear(
    x: Float[Array, "m k"], w: Weight, *, policy: Policy, rows: int = 1
) -> Float32[Array, "m n"]:
    """Multiply by a stored matrix.

    float16 weights and narrow formats that are widened to float16 multiply the activations as they
    are; a tensor scale is applied to the sums. int8 weights with a scale per column or matrix
    multiply int8 activations, scaled per row by `max |x| / 127`. float8 rows multiply float8
    weights block by block where blocks are long.

    Args:
        x: activations, as `operand_rows` gives them.
        w: weights; `rows` leading dimensions form `k`, the others `n`.
        policy: how products are made.
        rows: see `w`.

    Fidelity:
        Exact in each K tile, see `mxm.matmul`; for int8 weights the rows, rounded before to their
        format, are rounded once more.
    """
    matrix = as_matrix(w, rows=rows)
    if isinstance(matrix, QuantizedArray) and matrix.scheme.multiplies_bare:
        return int8_product(vxm.to_fp32(x), matrix)
    if isinstance(matrix, QuantizedArray) and _in_blocks(x, matrix):
        return fp8_product(x, matrix, **policy.products)
    return _scaled(multiplied(x, matrix, policy), matrix, None)


def product(
    x: Float[Array, "..."],
    store: Weight,
    *,
    policy: Policy,
    slots: Int32[Array, " slots"] | None = None,
) -> Float32[Array, "n m d_out"]:
    """Multiply by several stored matrices `[n, k, ...]`, all of them or those in the slots.

    Args:
        x: activations `[m, k]` for all matrices, or `[n, m, k]`.
        store: the matrices; dimensions after `k` are columns.
        policy: how products are made.
        slots: which matrices, -1 for none; see `mxm.matmul`.

    Fidelity:
        Exact in each K tile, see `mxm.matmul`.
    """
    matrices = as_matrix(store, rows=1, batch=1)
    if slots is not None and isinstance(matrices, QuantizedArray) and _in_blocks(x, matrices):
        return fp8_product(x, matrices, rows=slots, **policy.products)
    return _scaled(multiplied(x, matrices, policy, slots), matrices, slots)


def _in_blocks(x: Float[Array, "..."], w: QuantizedArray) -> bool:
    """Whether rows and weights are both of 8 bits, and their blocks fill an 8-bit array best.

    Blocks that end with a head narrower than they are long do not follow each other.
    """
    if not w.scheme.multiplies_in_blocks or x.dtype.itemsize != 1:
        return False
    n_blocks = -(-w.codes.shape[-2] // w.scheme.row_granule)
    return may_equal(w.scales.shape[-2], n_blocks)


def _scaled(
    y: Float32[Array, "..."], w: Weight, slots: Int32[Array, " slots"] | None
) -> Float32[Array, "..."]:
    """Apply what the scales of a weight leave for its products: the scale of a whole matrix."""
    scale = output_scale(w) if isinstance(w, QuantizedArray) else None
    if scale is None:
        return y
    if slots is not None:
        scale = mem.lookup(scale.reshape(-1, 1), slots)
        scale = scale.reshape(-1, 1, 1)
    return vxm.mul(y, scale)


def leaf_products(
    x: Float[Array, "*n m k"],
    w: Weight,
    *,
    policy: Policy,
    leaf: int,
    slots: Int32[Array, " n"] | None = None,
) -> Float32[Array, "leaves *n m d_out"]:
    """Multiply by a stored matrix, or by those in slots, leaf by leaf of the contraction.

    Args:
        x: rows `[m, k]`, or those of each slot.
        w: a matrix `[k, d]`, or a store of them `[e, k, d]`.
        policy: how products are made.
        leaf: rows of a leaf, of which there are whole ones.
        slots: which matrices of a store.

    Fidelity: that of `linear`, or of `product`, for each leaf by itself.
    """
    n_slots = () if slots is None else (slots.shape[0],)
    runs = matrix_blocks.column_blocks(x, leaf)  # [leaves, (slots,) m, leaf]
    store = _in_leaves(w, leaf)
    n_leaves, m = runs.shape[0], runs.shape[-2]
    runs = runs.reshape(-1, m, leaf)
    if slots is None and isinstance(store, QuantizedArray) and store.scheme.multiplies_bare:
        return int8_product(vxm.to_fp32(runs), store)
    addresses = None
    if slots is not None or (isinstance(store, QuantizedArray) and _in_blocks(runs, store)):
        # Leaves are matrices of a store, at addresses of their own.
        first = jnp.zeros(1, jnp.int32) if slots is None else slots
        addresses = matrix_blocks.block_addresses(first, n_leaves).reshape(-1)
    y = product(runs, store, policy=policy, slots=addresses)
    return y.reshape(n_leaves, *n_slots, m, y.shape[-1])


def _in_leaves(w: Weight, leaf: int) -> Weight:
    """Cut the rows of matrices into leaves: `[(e,) k, d] -> [(e) leaves, leaf, d]`."""
    if not isinstance(w, QuantizedArray):
        return _leaves_in_front(matrix_blocks.row_blocks(w, leaf))
    codes = matrix_blocks.row_blocks(w.codes, leaf)
    n_leaves = codes.shape[-3]

    def cut(scales: Array | None, *, of_all_rows: bool) -> Array | None:
        if scales is None:
            return None
        if of_all_rows:
            shape = (*scales.shape[:-2], n_leaves, *scales.shape[-2:])
            return _leaves_in_front(jnp.broadcast_to(jnp.expand_dims(scales, -3), shape))
        return _leaves_in_front(matrix_blocks.row_blocks(scales, scales.shape[-2] // n_leaves))

    return QuantizedArray(
        codes=_leaves_in_front(codes),
        scales=cut(w.scales, of_all_rows=w.scheme.block_rows is None),
        tensor_scale=cut(w.tensor_scale, of_all_rows=True),
        scheme=w.scheme,
        axis=w.axis,
    )


def _leaves_in_front(blocks: Array) -> Array:
    return blocks.reshape(-1, *blocks.shape[-2:])


def wide_product(
    x: Float[Array, "*n m k"],
    w: Weight,
    *,
    policy: Policy,
    slots: Int32[Array, " n"] | None = None,
) -> Int32[Array, "*n m 4 d_out"]:
    """Multiply by a stored matrix, or by those in slots, without rounding the sums.

    Args:
        x: rows `[m, k]`, or those of each slot.
        w: a matrix `[k, d]`, or a store of them `[e, k, d]`; its scale of a whole matrix is not
            applied.
        policy: how products are made.
        slots: which matrices of a store.

    Fidelity:
        Exact for rows that multiply weights widened to float16; see `scaled.wide_fp8_product`.
    """
    if policy.generation is not None:
        raise LpuError(
            f"policy {policy.name}: tensor cores round every sum, so that no split 'wide' adds "
            "without rounding; use another split."
        )
    if isinstance(w, QuantizedArray) and _in_blocks(x, w):
        return wide_fp8_product(x, w, rows=slots, fidelity=policy.fidelity)
    return mxm.wide_matmul(x, w, rows=slots, fidelity=policy.fidelity)


def tree_sum(
    x: Float[Array, "m k"], w: Weight, *, policy: Policy, leaf: int, rows: int = 1
) -> Float32[Array, "m d_out"]:
    """Multiply by what a chip holds of a matrix, and add its leaves by the tree: a part of it."""
    parts = leaf_products(x, as_matrix(w, rows=rows), policy=policy, leaf=leaf)
    return tree_sums.sum_tree(parts)


def wide_total(
    x: Float[Array, "m k"], w: Weight, *, policy: Policy, axis: Axis, rows: int = 1
) -> Float32[Array, "m d_out"]:
    """Multiply by a matrix whose rows chips share out; the sum of all of them is rounded once.

    Fidelity:
        As one chip: exact sums, one rounding, then the scales that follow products.
    """
    matrix = as_matrix(w, rows=rows)
    if isinstance(matrix, QuantizedArray) and matrix.scheme.multiplies_bare:
        return int8_product(vxm.to_fp32(x), matrix, over=axis)
    total = c2c.wide_all_reduce(wide_product(x, matrix, policy=policy), axis)
    return _scaled(wide_sums.to_fp32(total), matrix, None)


def project_out(
    x: Float[Array, "m k"],
    w: Weight,
    *,
    rows: int,
    policy: Policy,
    split: Split,
    axis: Axis,
    d_model: int,
    leaf: int = 0,
    bias: Float32[Array, "n d_out"] | None = None,
) -> Float[Array, "m d"]:
    """Multiply what the chips of an axis hold by the output projection; the result is on all.

    Args:
        x: a chip's share of the columns.
        w: its share of the matrix: of columns for `Split.COLUMN`, else of rows.
        rows: leading dimensions of `w` that form its rows.
        policy: how products are made.
        split: how the matrix is split.
        axis: the chips.
        d_model: columns of the whole result.
        leaf: rows of a leaf of the matrix, which `Split.TREE` needs.
        bias: added before the result is rounded, its first row. `ROW`: zeros but on the first chip;
            `COLUMN`: the rows of all chips, of which the first is not zeros.

    Fidelity:
        `COLUMN`: the same bits for any number of chips. `ROW`: order-dependent, partial sums are
        rounded for the wire and added in chip order (`summed`). `TREE`: order-dependent, leaves
        are added in fp32 by a binary tree on chips and across them; the same bits for every power
        of two of chips. `WIDE`: exact sums; the same bits for any number of chips. Both round once
        to the base format, after the bias.
    """
    if split is Split.COLUMN:
        x = c2c.all_gather(x, axis, dim=-1)
    if split is Split.TREE:
        part = tree_sum(x, w, policy=policy, leaf=leaf, rows=rows)
        y = c2c.tree_all_reduce(part, axis)
    elif split is Split.WIDE:
        y = wide_total(x, w, policy=policy, axis=axis, rows=rows)
    else:
        y = linear(x, w, policy=policy, rows=rows)
    if bias is not None:
        y = vxm.add(y, lax.slice_in_dim(bias, 0, 1))
    if split is Split.ROW:
        return summed(y, axis, policy)
    y = narrowed(y, policy)
    return c2c.all_gather(y, axis, dim=-1, keep=d_model) if split is Split.COLUMN else y


def summed(y: Float32[Array, "m d"], axis: Axis, policy: Policy) -> Float[Array, "m d"]:
    """Add the partial sums of chips as they cross in the format of a policy's wire.

    Args:
        y: of one chip.
        axis: the chips.
        policy: formats of the wire, and of the result.

    Fidelity:
        The base format: partial sums are rounded to it, and sums by `c2c.all_reduce`. Another: that
        of `wires.all_reduce`, then one rounding to the base format; on one chip that one alone.
    """
    if policy.wire == "base":
        return c2c.all_reduce(narrowed(y, policy), axis)
    return narrowed(wires.all_reduce(y, axis, wire=policy.wire), policy)


def add_residual(
    x: Float[Array, "b t d"],
    y: Float[Array, "b t d"],
    cfg: ModelConfig,
    policy: Policy,
    weights: Mapping[str, Any] = MappingProxyType({}),
) -> Float[Array, "b t d"]:
    """Add a block's result to the hidden state, which leaves every block in the base format.

    With attention residuals the result alone is given back, which `depth` adds to one of the
    states.

    Args:
        x: hidden state.
        y: the result.
        cfg: the model.
        policy: the base format.
        weights: of the block: `result_norm` and `layer_scale`, where it has them.

    Fidelity: one fp32 addition, one rounding to the base format; before them one fp32 product, in
    a model that scales what its blocks add, or the operations of `rms_norm`; between them another
    product, in a model that scales its layers.
    """
    if cfg.residual_block is not None:
        return y if y.dtype == policy.dtype else narrowed(y, policy)
    # The hidden state is there first: units work in the order of the program.
    before = vxm.to_fp32(x)
    return with_result(before, vxm.to_fp32(y), cfg, policy, weights)


def with_result(
    before: Float32[Array, "*rows d"],
    added: Float32[Array, "*rows d"],
    cfg: ModelConfig,
    policy: Policy,
    weights: Mapping[str, Any],
) -> Float[Array, "*rows d"]:
    """Add rows of a block's result to those of the hidden state; see `add_residual`."""
    if cfg.residual_block is not None:
        return narrowed(added, policy)
    if "result_norm" in weights:
        rows = added.reshape(-1, added.shape[-1])
        added = rms_norm(rows, weights["result_norm"], cfg.norm_eps).reshape(added.shape)
    total = vxm.add(before, scaled_by(added, cfg.multipliers.residual))
    if "layer_scale" in weights:
        total = vxm.mul(total, weights["layer_scale"].reshape((1,) * total.ndim))
    return narrowed(total, policy)


def capped(x: Float32[Array, "..."], cap: float | None) -> Float32[Array, "..."]:
    """Keep values within a cap on either side, smoothly: `cap * tanh(x / cap)`; None does nothing.

    Fidelity: approximate, see `vxm.tanh`; a product with the fp32 number nearest to one over the
    cap before it, one with the cap after it.
    """
    if cap is None:
        return x
    return vxm.mul(vxm.tanh(vxm.mul(x, float(np.float32(1 / cap)))), cap)


def scaled_by(x: Float32[Array, "..."], factor: float) -> Float32[Array, "..."]:
    """Multiply by a constant of the model; nothing is done for 1."""
    return x if factor == 1.0 else vxm.mul(x, factor)
