"""The MXM's arithmetic: exact sums within a K tile, one rounding, tiles added in order.

These are meanings: they use float64 and must run inside `with jax.enable_x64(True)`, which the
caller (the lowering of a primitive) opens once. Not modelled: bf16 operands (their products span
more binades than the vendor's accumulator holds, and no source says what it does with them).

fp16 needs 88 bits and float64 has 53, so each tile's float64 sum comes with a proof, or is redone:

1. Certificate. Let `a`, `b` be a row and a column of the tile, both multiples of the powers of two
   `p` and `q`. If `|a|_2 |b|_2 <= 2**53 p q`, every partial sum, in any order, is a multiple of
   `p q` below `2**53` of them (Cauchy-Schwarz): nothing was rounded.
2. Rounding test. Otherwise the sum is within `(k + 4) 2**-53 |a|_2 |b|_2` of the exact one; if
   both ends of that interval round to the same fp32 number, the rounding is decided.
3. Repair. The few outputs that are left are computed again in integers (`repair`).

No product can reach an fp32 addition here (tile sums are rounded from float64 first), so the
additions across tiles need no guard against contraction into fused multiply-adds.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float32, Float64, Int8, Int32, Num

from ..arguments import Positive, checked, described
from ..errors import LpuError
from . import residues
from .certificate import (
    as_fp16,
    largest_magnitude,
    norm_and_span,
    sum_of_squares,
    to_fp32,
    unproven,
)
from .repair import MAX_K_TILE, SumRounding, repair
from .tiles import check_length, only_new, product

#: What exact sums of fp16 numbers are made of: float64 products with a proof, or int8 products
#: (`residues`) for devices that are slow in float64. Both give the same bits.
Engine = Literal["float64", "int8"]

#: How sums of K tiles are added: in fp32, or without rounding until the last.
Carry = Literal["fp32", "exact"]

#: Rows of one weight tile by kind of product.
#: Source: Abts et al., ISCA 2022 (read second-hand): [1 x K] x [K x 320] sub-operations, K = 160
#: for fp16, 320 for int8. For fp8 assumed equal to the other 8-bit type.
K_TILES = {"fp16": 160, "int8": 320, "fp8": 320}
State = TypeVar("State")  #: arrays that a loop carries, or a block gives
_FP8 = ("float8_e4m3fn", "float8_e5m2")
#: Kind of product by operand types. fp16 takes narrower numbers as they are: each of them is an
#: fp16 number too.
PRODUCT_KINDS = {
    **{(x, w): "fp8" for x in _FP8 for w in _FP8},
    **{("float16", w): "fp16" for w in ("float16", *_FP8, "int8")},
    **{(x, "float16"): "fp16" for x in _FP8},
    ("int8", "int8"): "int8",
}

#: Longest contraction whose int8 products cannot leave int32: `k * 128 * 128 <= 2**31 - 1`.
MAX_K_INT8 = (2**31 - 1) // 128**2
#: Longest sum of e4m3 products that float64 holds: multiples of 2**-18 below 2**18.
MAX_K_E4M3 = 2**17
#: A float32 sum of this many int8 products is exact: `512 * 2**14 < 2**24`.
_INT8_ROWS = 512
#: Rows that a sum over all of `k` adds before it adds the next ones: short chains, small errors.
_EXACT_CARRY_ROWS = 256
#: Widened weights that are worked on at once, in bytes: what stays in a core's cache.
_BLOCK_BYTES = 2**22


@checked
def product_kind(x_dtype: str | np.dtype[Any], w_dtype: str | np.dtype[Any]) -> str:
    """Return the MXM's mode for two operand types: "fp16", "fp8" or "int8".

    Raises:
        LpuError: if the unit does not take the pair.
    """
    x_name, w_name = (d if isinstance(d, str) else d.name for d in (x_dtype, w_dtype))
    names = x_name, w_name
    if names not in PRODUCT_KINDS:
        hint = (
            " bf16 has fp32's exponents, so an exact sum would need more than 500 bits; round it "
            "to float16."
            if "bfloat16" in names
            else ""
        )
        shown = " and ".join(described(n).strip("'") for n in names)
        raise LpuError(
            f"mxm.matmul: operands {shown} were given; allowed are float16 with "
            "float16, float8_e4m3fn, float8_e5m2 or int8, the two float8 types with themselves, "
            f"each other and float16, and int8 with int8.{hint}"
        )
    return PRODUCT_KINDS[names]


@checked
def matmul(
    x: Num[Array, "... m k"],
    w: Num[Array, "... k n"],
    *,
    k_tile: Positive | None = None,
    rounding: SumRounding = "rne",
    carry: Carry = "fp32",
    engine: Engine = "float64",
) -> Num[Array, "... m n"]:
    """Multiply as the MXM does.

    Forms: `[m, k] @ [k, n]`, `[m, k] @ [g, k, n]` and `[g, m, k] @ [g, k, n]`, the last two with
    result `[g, m, n]`. The last tile is padded with zeros. Exact zero sums are +0. Infinities and
    NaN follow IEEE 754.

    Args:
        x: activations.
        w: weights; `product_kind` says which pairs of types are allowed.
        k_tile: rows of a weight tile; by default the kind's own (`K_TILES`).
        rounding: of a tile's exact sum to fp32, "rne" or "rz". int8 sums are not rounded.
        carry: "fp32": tile sums are added in fp32 in ascending order. "exact": the sum over all of
            `k` is rounded once.
        engine: how; changes no bit. int8 operands need neither.

    Returns:
        int32 for two int8 operands, else float32.

    Raises:
        LpuError: if the types are not allowed together, or a sum is too long to be exact.

    Fidelity:
        Exact within a tile, one rounding. With carry "fp32" order-dependent across tiles. The
        result does not depend on `m`, `n`, `g`, on the order within a tile, on threads or device.

    Source:
        One rounding per tile and additions across tiles in fp32 are assumed; public sources
        say that the accumulation inside is lossless. Rounding test: Ziv, ACM TOMS 17, 1991.
    """
    kind = product_kind(x.dtype, w.dtype)
    if x.ndim not in (2, 3) or w.ndim not in (2, 3) or x.shape[-1] != w.shape[-2]:
        raise LpuError(
            f"accumulate.matmul: shapes {x.shape} and {w.shape} were given; they must be [m, k] or "
            "[g, m, k], and [k, n] or [g, k, n]."
        )
    if x.ndim == 3 and (w.ndim == 2 or x.shape[0] != w.shape[0]):
        raise LpuError(
            f"accumulate.matmul: shapes {x.shape} and {w.shape} were given; x must be one matrix, "
            "or as many as w."
        )
    assert jax.config.jax_enable_x64, "accumulate runs inside jax.enable_x64(True)"  # type: ignore[attr-defined]
    k, k_tile = x.shape[-1], K_TILES[kind] if k_tile is None else k_tile
    shape = (*w.shape[:-2], x.shape[-2], w.shape[-1])
    if not k or not math.prod(shape):
        return jnp.zeros(shape, jnp.int32 if kind == "int8" else jnp.float32)
    x, w = (v.reshape(-1, *v.shape[-2:]) for v in (x, w))
    exact_carry = carry == "exact"
    if kind == "int8":
        check_length(k, MAX_K_INT8, x, w)
        return _int8_sums(x, w).reshape(shape)
    k_tile = min(k, k_tile)
    if engine == "int8":
        total = residues.tile_sums(x, w, k_tile=k_tile, rounding=rounding, exact_carry=exact_carry)
        return total.reshape(shape)
    always_exact = x.dtype == w.dtype == jnp.float8_e4m3fn
    limit = MAX_K_E4M3 if always_exact else MAX_K_TILE
    check_length(k if exact_carry else k_tile, limit, x, w)
    sums = _exact_sums if exact_carry else partial(_tile_sums, k_tile=k_tile)
    total, undecided = sums(x, w, rounding=rounding, proven=always_exact)
    if not always_exact:
        # A sum of finite operands is below 2**62, so a non-finite total has a non-finite operand:
        # the float64 sum followed IEEE 754, and the test, which no NaN passes, does not matter.
        undecided &= jnp.isfinite(total)
        total = repair(
            total, undecided, x, w, k_tile=k_tile, rounding=rounding, exact_carry=exact_carry
        )
    return total.reshape(shape)


# --- sums -----------------------------------------------------------------------------------------


def _int8_sums(x: Int8[Array, "gx m k"], w: Int8[Array, "g k n"]) -> Int32[Array, "g m n"]:
    """Return exact sums; float32 products of few rows are exact and the fastest there are."""

    def sums(block: "_Block") -> Array:
        def add(total: Array, at: _Rows) -> Array:
            x_rows, w_rows = block.rows(x, w, at)
            part = product(x_rows.astype(jnp.float32), w_rows.astype(jnp.float32), jnp.float32)
            return total + part.astype(jnp.int32)

        zeros = jnp.zeros((block.count, x.shape[1], w.shape[2]), jnp.int32)
        return _over_rows(x.shape[2], _INT8_ROWS, add, zeros)

    return _by_block(sums, w, _INT8_ROWS)


def _tile_sums(
    x: Num[Array, "gx m k"],
    w: Num[Array, "g k n"],
    *,
    k_tile: int,
    rounding: SumRounding,
    proven: bool,
) -> tuple[Float32[Array, "g m n"], Bool[Array, "g m n"]]:
    """Return sums of rounded tile sums, and where a rounding is not proven."""
    gx, m, k = x.shape
    # Once for all matrices of `w`, outside of every loop.
    tiles = jnp.pad(as_fp16(x), ((0, 0), (0, 0), (0, -k % k_tile))).reshape(gx, m, -1, k_tile)
    row_norm, row_span = (v.transpose(2, 0, 1) for v in norm_and_span(tiles, axis=3))  # [t, gx, m]

    def sums(block: "_Block") -> tuple[Array, Array]:
        def add(state: tuple[Array, Array], at: _Rows) -> tuple[Array, Array]:
            total, undecided = state
            x_rows, w_rows = block.rows(x, w, at)
            exact = _float64_dot(x_rows, w_rows)
            if not proven:
                norm, span = (block.of_x(v[at.number]) for v in (row_norm, row_span))

                def columns() -> tuple[Array, Array]:
                    # Sliced again: what a branch takes from outside of it is copied.
                    return norm_and_span(as_fp16(block.rows(x, w, at)[1]), axis=1)

                undecided = undecided | unproven(
                    exact, norm, span, at.count, at.count, largest_magnitude(w_rows), rounding,
                    columns,
                )  # fmt: skip
            return total + to_fp32(exact, rounding), undecided

        # Starting from +0 equals starting from the first tile: tile sums are never -0.
        shape = (block.count, m, w.shape[2])
        return _over_rows(k, k_tile, add, (jnp.zeros(shape, jnp.float32), jnp.zeros(shape, bool)))

    return _by_block(sums, w, k_tile)


def _exact_sums(
    x: Num[Array, "gx m k"], w: Num[Array, "g k n"], *, rounding: SumRounding, proven: bool
) -> tuple[Float32[Array, "g m n"], Bool[Array, "g m n"]]:
    """Return sums over all of `k`, rounded once, and where the rounding is not proven."""
    k = x.shape[2]
    row_norm, row_span = norm_and_span(as_fp16(x), axis=2)

    def sums(block: "_Block") -> tuple[Array, Array]:
        def add(state: tuple[Array, Array], at: _Rows) -> tuple[Array, Array]:
            total, largest = state
            x_rows, w_rows = block.rows(x, w, at)
            total = total + _float64_dot(x_rows, w_rows)
            return total, jnp.maximum(largest, largest_magnitude(w_rows))

        def columns() -> tuple[Array, Array]:
            def join(total: Array, at: _Rows) -> Array:
                return total + sum_of_squares(as_fp16(block.rows(x, w, at)[1]), axis=1)

            zeros = jnp.zeros((block.count, w.shape[2]), jnp.float64)
            norm = jnp.sqrt(_over_rows(k, _EXACT_CARRY_ROWS, join, zeros)).astype(jnp.float32)
            # Spans are costly, and of little use: long sums are seldom near a tie.
            return norm, jnp.full_like(norm, jnp.inf)

        shape = (block.count, x.shape[1], w.shape[2])
        start = (jnp.zeros(shape, jnp.float64), jnp.zeros((block.count, w.shape[2]), jnp.float32))
        exact, largest = _over_rows(k, _EXACT_CARRY_ROWS, add, start)
        undecided = jnp.zeros(shape, bool)
        if not proven:
            additions = _EXACT_CARRY_ROWS + -(-k // _EXACT_CARRY_ROWS)
            norm, span = block.of_x(row_norm), block.of_x(row_span)
            undecided = unproven(exact, norm, span, k, additions, largest, rounding, columns)
        return to_fp32(exact, rounding), undecided

    return _by_block(sums, w, _EXACT_CARRY_ROWS)


def _float64_dot(x: Num[Array, "gx m k"], w: Num[Array, "g k n"]) -> Float64[Array, "g m n"]:
    """Multiply matrices of narrow numbers in float64: products are exact, sums maybe."""
    return product(x.astype(jnp.float64), w.astype(jnp.float64), jnp.float64)


# --- loops ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Block:
    """`count` matrices of `w` from `first` on, and the matrices of `x` that go with them."""

    first: Any
    count: int

    def of_x(self, values: Array) -> Array:
        """Take the entries of the leading axis that belong to the block; one entry is for all."""
        if values.shape[0] == 1:
            return values
        return lax.dynamic_slice_in_dim(values, self.first, self.count)

    def rows(self, x: Array, w: Array, at: "_Rows") -> tuple[Array, Array]:
        """Take columns of `x` and the rows of `w` that they multiply.

        One slice of the whole operand, which a conversion reads in place; a copy of all tiles, as
        `lax.scan` makes, doubles the time of a product.
        """
        gx = min(self.count, x.shape[0])
        x_first = self.first if x.shape[0] > 1 else 0
        x_rows = lax.dynamic_slice(x, (x_first, 0, at.start), (gx, x.shape[1], at.count))
        w_rows = lax.dynamic_slice(w, (self.first, at.start, 0), (self.count, at.count, w.shape[2]))
        # Selecting 8-bit floats is slow, and so is converting them straight to float64.
        x_rows, w_rows = (as_fp16(v) if v.dtype.name in _FP8 else v for v in (x_rows, w_rows))
        if at.is_new is None:
            return x_rows, w_rows
        return only_new(x_rows, w_rows, at.is_new)


@dataclass(frozen=True)
class _Rows:
    """Rows `start` to `start + count`, of which those count that are new."""

    start: Array | int
    count: int
    number: Array | int  #: of the tile
    is_new: Bool[Array, " count"] | None  #: None: all are


def _over_rows(k: int, count: int, step: Callable[[State, "_Rows"], State], state: State) -> State:
    """Run `step(state, rows)` over blocks of `count` rows in ascending order.

    The last block is moved back to fit, and rows that were there before count as zeros: a block of
    another shape would be compiled a second time.
    """
    if k <= count:
        return step(state, _Rows(0, k, 0, None))

    def body(i: Array, state: State) -> State:
        start = jnp.minimum(i * count, k - count)
        is_new = start + lax.iota(jnp.int32, count) >= i * count if k % count else None
        return step(state, _Rows(start, count, i, is_new))

    final: State = lax.fori_loop(0, -(-k // count), body, state)
    return final


def _by_block(sums: Callable[[_Block], State], w: Array, rows: int) -> State:
    """Run `sums(block)` over as many matrices at once as stay in a core's cache when widened.

    Large blocks of small matrices cost one loop step and one conditional instead of many.
    """
    g, _, n = w.shape
    count = max(1, min(g, _BLOCK_BYTES // (8 * rows * n)))
    if count == g:
        return sums(_Block(0, g))
    shapes = jax.eval_shape(lambda: sums(_Block(0, count)))
    results = jax.tree.map(lambda s: jnp.zeros((g, *s.shape[1:]), s.dtype), shapes)

    def step(i: Array, results: Any) -> Any:
        # The last block is moved back to fit and computes some matrices again, to the same bits.
        first = jnp.minimum(i * count, g - count)
        return jax.tree.map(
            lambda whole, part: lax.dynamic_update_slice_in_dim(whole, part, first, 0),
            results,
            sums(_Block(first, count)),
        )

    final: State = lax.fori_loop(0, -(-g // count), step, results)
    return final
