"""Products of 8-bit codes that scales follow: matrix unit and vector unit together."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32, Num

from ..arguments import checked, described
from ..errors import LpuError
from ..numerics import quantized
from ..numerics.accumulate import MAX_K_INT8, Carry
from ..numerics.quantized import QuantizedArray, output_scale
from ..predicates import exceeds, may_equal
from . import c2c, matrix_blocks, mem, mxm, vxm, wide_sums
from .axis import Axis
from .mxm import Fidelity

#: Smallest row maximum that rows are scaled by: a row of zeros stays zero (assumed).
SMALLEST_MAXIMUM = 1e-30


@checked
def int8_product(
    x: Float32[Array, "*rows k"], w: QuantizedArray, *, over: Axis | None = None
) -> Float32[Array, "..."]:
    """Multiply rows, rounded to int8, by bare int8 codes, and the exact sums by both scales.

    Args:
        x: rows; each is scaled by `max |x| / 127`.
        w: weights with one scale per column or matrix (`Scheme.multiplies_bare`).
        over: chips that share out the contraction: the maximum of a row, which travels first, and
            the exact sums are those of all of them, and so is the result.

    Raises:
        LpuError: weights of another scheme.

    Fidelity:
        Rows are rounded once (RNE), sums are exact, over chips too; two roundings of scales and two
        of products.

    Source:
        Symmetric int8: Abts et al., ISCA 2020; that rows are scaled as they are made is assumed.
    """
    quantized.check_operand(w)
    if not w.scheme.multiplies_bare:
        raise LpuError(
            f"scaled.int8_product: w of scheme {w.scheme.name} was given; it must be int8 codes "
            "with one scale per column or matrix."
        )
    column_scales = output_scale(w, of_codes=True)
    assert column_scales is not None
    if over is not None:
        _check_whole(x, over)
    largest = vxm.max_lanes(vxm.absolute(x))
    if over is not None:
        every = c2c.all_gather(largest.reshape(1, *largest.shape), over, dim=-largest.ndim - 1)
        largest = vxm.max_leading(every)
    largest = vxm.maximum(largest, SMALLEST_MAXIMUM)
    codes = vxm.to_int8(vxm.mul(x, vxm.div(127.0, largest)))
    sums = mxm.matmul(codes, w)
    if over is not None:
        sums = c2c.whole_all_reduce(sums, over)
    y = vxm.to_fp32(sums)
    return vxm.mul(vxm.mul(y, vxm.mul(largest, float(np.float32(1 / 127)))), column_scales)


def _check_whole(x: Array, over: Axis) -> None:
    """Refuse sums over chips that may leave int32."""
    if exceeds(x.shape[-1] * over.size, MAX_K_INT8):
        raise LpuError(
            f"scaled.int8_product: a sum of {x.shape[-1] * over.size} products over {over.size} "
            f"chips was asked for; up to {MAX_K_INT8} are numbers of int32."
        )


@checked
def fp8_product(
    x: Num[Array, "..."],
    w: QuantizedArray,
    *,
    rows: Int32[Array, " g"] | None = None,
    carry: Carry = "fp32",
    fidelity: Fidelity = "faithful",
) -> Float32[Array, "..."]:
    """Multiply float8 rows by float8 codes block by block, and add the scaled sums of the blocks.

    Args:
        x: float8 rows `[m, k]`, or `[g, m, k]` for as many matrices.
        w: weights `[k, n]`, or a store of them `[e, k, n]`, whose scheme `multiplies_in_blocks`.
        rows: addresses of matrices in a store, as for `mxm.matmul`; only for a store.
        carry: as for `mxm.matmul`, within a block.
        fidelity: as for `mxm.matmul`.

    Raises:
        LpuError: weights of another scheme, a store without addresses, or shapes that do not fit.

    Fidelity:
        Order-dependent, the order is fixed: the sum of a block is that of `mxm.matmul`, exact and
        rounded once to fp32; times its scale, one rounding; blocks are added in ascending order.

    Source:
        The order of DeepSeek-V3's own fp8 products (technical report, section 3.3: blocks of 128
        along the contraction, scaled and added in fp32); that the unit does the same is assumed.
    """
    return vxm.weighted_sum(*_block_terms(x, w, rows, carry, fidelity))


@checked
def wide_fp8_product(
    x: Num[Array, "..."],
    w: QuantizedArray,
    *,
    rows: Int32[Array, " g"] | None = None,
    fidelity: Fidelity = "faithful",
) -> Int32[Array, "..."]:
    """Multiply as `fp8_product` does, and add the scaled sums of the blocks to wide numbers.

    Args:
        x: float8 rows, as for `fp8_product`.
        w: weights, likewise.
        rows: addresses of matrices in a store.
        fidelity: as for `mxm.matmul`.

    Returns:
        Four words for each value of a row: `[..., m, 4, n]`.

    Raises:
        LpuError: as for `fp8_product`.

    Fidelity:
        The sum of a block is exact and rounded once to fp32; times its scale, one rounding; their
        sum is that of `wide_sums.sum_terms`, which is exact, whichever chips have the blocks.
    """
    sums, scale = _block_terms(x, w, rows, "exact", fidelity)
    return wide_sums.sum_terms(vxm.mul(sums, scale))


def _block_terms(
    x: Array, w: QuantizedArray, rows: Array | None, carry: Carry, fidelity: Fidelity
) -> tuple[Array, Array]:
    """Return the sums of blocks, blocks first, and the scale of each, in as many dimensions."""
    quantized.check_operand(w)
    if not w.scheme.multiplies_in_blocks or w.axis != -2 or w.scales is None:
        raise LpuError(
            f"scaled.fp8_product: w of scheme {w.scheme.name} was given; it must be float8 codes "
            "with floating point scales of long blocks along the contraction."
        )
    if (w.codes.ndim == 3) != (rows is not None):
        raise LpuError(
            f"scaled.fp8_product: w of shape {w.codes.shape} was given with rows "
            f"{described(rows)}; a store [e, k, n] needs addresses, one matrix has none."
        )
    if x.ndim not in ((2,) if rows is None else (2, 3)) or not may_equal(
        x.shape[-1], w.codes.shape[-2]
    ):
        raise LpuError(
            f"scaled.fp8_product: x {described(x)} was given for w of shape {w.codes.shape}; it "
            "must be [m, k], or [g, m, k] for g addresses, with as many columns as w has rows."
        )
    size = w.scheme.row_granule
    tiles = matrix_blocks.row_blocks(w.codes, size)  # [(g,) blocks, size, n]
    runs = matrix_blocks.column_blocks(x, size)  # [blocks, (g,) m, size]
    n_blocks, m, n = runs.shape[0], x.shape[-2], tiles.shape[-1]
    if rows is None:
        y = mxm.matmul(runs, tiles, carry=carry, fidelity=fidelity)
        return y, w.scales.reshape(n_blocks, 1, n)
    store = tiles.reshape(-1, size, n)
    groups = rows.shape[0]
    addresses = matrix_blocks.block_addresses(rows, n_blocks).reshape(-1)
    if x.ndim == 2:
        runs = jnp.broadcast_to(runs[:, None], (n_blocks, groups, m, size))
    y = mxm.matmul(runs.reshape(-1, m, size), store, rows=addresses, carry=carry, fidelity=fidelity)
    scale = mem.lookup(w.scales.reshape(-1, n), addresses)
    return y.reshape(n_blocks, groups, m, n), scale.reshape(n_blocks, groups, 1, n)
