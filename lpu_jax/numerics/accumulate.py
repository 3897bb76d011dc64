"""The MXM's arithmetic: exact sums within a K tile, one rounding per tile, tiles added in order.

These are meanings: they use float64 and must run inside `with jax.enable_x64(True)`, which the
caller (the lowering of a primitive) opens once. Operands are two-dimensional; batches are the
caller's loop. Not modelled: accumulators that carry more than fp32 from tile to tile.

fp16 needs 88 bits and float64 has 53, so each tile's float64 sum comes with a proof, or is redone:

1. Certificate. Let `a`, `b` be a row and a column of the tile, both multiples of the powers of two
   `p` and `q`. If `|a|_2 |b|_2 <= 2**53 p q`, every partial sum, in any order, is a multiple of
   `p q` below `2**53` of them (Cauchy-Schwarz): nothing was rounded.
2. Rounding test. Otherwise the sum is within `(k + 4) 2**-53 |a|_2 |b|_2` of the exact one; if
   both ends of that interval round to the same fp32 number, the rounding is decided.
3. Repair. The few outputs that are left are computed again from 20-bit halves (`repair`).

No product can reach an fp32 addition here (tile sums are rounded from float64 first), so the
additions across tiles need no guard against contraction into fused multiply-adds.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Float16, Float32, Float64, Int8, Int32, Num, UInt8

from ..errors import LpuError
from . import repair

#: Rows of one weight tile by operand type.
#: Source: Abts et al., ISCA 2022 (read second-hand): [1 x K] x [K x 320] sub-operations, K = 160
#: for fp16, 320 for int8. For fp8 assumed equal to the other 8-bit type.
K_TILES = {"float16": 160, "int8": 320, "float8_e4m3fn": 320}
#: Longest contraction whose int8 products cannot leave int32: `k * 128 * 128 <= 2**31 - 1`.
MAX_K_INT8 = (2**31 - 1) // 128**2
#: Flagged outputs beyond this number make one pass of three GEMMs cheaper than single repairs.
REPAIR_CAP = 1024
#: Covers the roundings made while computing norms and bounds (about `k * 2**-53 + 2**-22`).
_SLACK = 1.0 + 2.0**-20
#: All fp16 numbers are multiples of `2**-24`.
_LOWEST_EXPONENT = -24


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What the exactness proof needs to know of the vectors of each tile.

    `norm` is the Euclidean norm and `span` the norm in units of the lowest bit set in any element
    (0 for a zero vector); both float32 `[t, n]` for `t` tiles and `n` vectors. For weights it can
    be made once (`weight_certificate`) and passed to `matmul_fp16` at each call; it exists only
    in the emulator, the machine neither stores nor moves it.
    """

    norm: Any  # arrays, tracers or a tree of shardings, so not checked
    span: Any


def matmul(
    x: Num[Array, "m k"], w: Num[Array, "k n"], k_tile: int | None = None
) -> Float32[Array, "m n"] | Int32[Array, "m n"]:
    """Multiply as the MXM does for the operands' type: fp16, int8 or e4m3.

    Args:
        x: activations, float16, int8 or float8_e4m3fn.
        w: weights of the same type.
        k_tile: rows of a weight tile; by default the type's own (`K_TILES`).

    Returns:
        int32 for int8 operands, else float32.

    Raises:
        LpuError: if the types differ or are not among the three.

    Fidelity:
        As the function of the type: `matmul_fp16`, `matmul_int8`, `matmul_e4m3`.
    """
    if x.dtype != w.dtype or x.dtype.name not in K_TILES:
        raise LpuError(
            f"matmul: operands {x.dtype.name} and {w.dtype.name} were given; both must be one of "
            f"{', '.join(K_TILES)}."
        )
    tile = K_TILES[x.dtype.name] if k_tile is None else k_tile
    if x.dtype == jnp.float16:
        return matmul_fp16(x, w, tile)
    return matmul_int8(x, w, tile) if x.dtype == jnp.int8 else matmul_e4m3(x, w, tile)


def matmul_fp16(
    x: Float16[Array, "m k"],
    w: Float16[Array, "k n"],
    k_tile: int = K_TILES["float16"],
    certificate: Certificate | None = None,
    repair_cap: int = REPAIR_CAP,
) -> Float32[Array, "m n"]:
    """Multiply fp16 by fp16: each K tile summed exactly and rounded once to fp32 (RNE).

    Tiles are added in fp32 in ascending order; the last one is padded with zeros. Exact zero sums
    are +0. Infinities and NaN follow IEEE 754.

    Args:
        x: activations `[m, k]`.
        w: weights `[k, n]`.
        k_tile: rows of a weight tile.
        certificate: `weight_certificate(w, k_tile)`, if it was made before.
        repair_cap: number of outputs repaired singly (see `REPAIR_CAP`); does not change values.

    Raises:
        LpuError: if `k_tile` is too large for the exactness proof.

    Fidelity:
        Exact within a tile, order-dependent across tiles. The result does not depend on `m`, `n`,
        the other rows or columns, the GEMM library or the backend, provided that float64 products
        and sums are IEEE 754 ones (an emulated float64 GEMM voids the proof).

    Source:
        One rounding to fp32 per tile and fp32 additions between tiles: assumed, public sources
        say only that the accumulation inside is lossless. Rounding test: Ziv, ACM TOMS 17, 1991.
    """
    _require_x64()
    k_tile = _tile_rows(x.shape[1], k_tile)
    if k_tile > repair.MAX_K_TILE:
        raise LpuError(
            f"matmul_fp16: k_tile={k_tile} was given; tile sums are proven exact for k_tile <= "
            f"{repair.MAX_K_TILE}."
        )
    x_tiles, w_tiles = _split_rows(x, k_tile), _split_weights(w, k_tile)
    given = () if certificate is None else (certificate.norm, certificate.span)
    largest = _largest_magnitude(w_tiles)
    error_scale = (k_tile + 4) * 2.0**-53 * _SLACK

    def add_tile(
        carry: tuple[Float32[Array, "m n"], Bool[Array, "m n"]], tile: tuple[Array, ...]
    ) -> tuple[tuple[Float32[Array, "m n"], Bool[Array, "m n"]], None]:
        total, undecided = carry
        x_tile, w_tile, largest_weight, *known = tile
        sums = repair.exact_dot(x_tile.astype(jnp.float64), w_tile.astype(jnp.float64))
        row_norm, row_span = _norm_and_span(x_tile, axis=1)
        # Cheap and usually enough: no column's norm exceeds sqrt(k) * largest weight, and all
        # weights are multiples of 2**-24. The columns are only looked at where this fails.
        bound = row_span.max() * (largest_weight * (math.sqrt(k_tile) * 2.0**-_LOWEST_EXPONENT))
        all_exact = bound * _SLACK <= 2.0**53

        def test() -> Bool[Array, "m n"]:
            norm, span = known if known else _norm_and_span(w_tile, axis=0)
            certified = _outer(row_span, span) * _SLACK <= 2.0**53
            error = jnp.where(certified, 0.0, _outer(row_norm, norm) * error_scale)
            low, high = (sums - error).astype(jnp.float32), (sums + error).astype(jnp.float32)
            return undecided | (low != high)

        undecided = lax.cond(all_exact, lambda: undecided, test)
        return (total + _positive_zero(sums.astype(jnp.float32)), undecided), None

    shape = (x.shape[0], w.shape[1])
    # Starting from +0 equals starting from the first tile: tile sums are never -0.
    start = (jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.bool_))
    (total, undecided), _ = lax.scan(add_tile, start, (x_tiles, w_tiles, largest, *given))
    # A sum of finite operands is below 2**41, so a non-finite total has a non-finite operand: the
    # float64 sum followed IEEE 754, and the test, which no NaN passes, does not matter.
    undecided &= jnp.isfinite(total)
    return repair.repair(total, undecided, x_tiles, w_tiles, repair_cap)


def weight_certificate(w: Float16[Array, "k n"], k_tile: int = K_TILES["float16"]) -> Certificate:
    """Return the certificate of every column of every K tile of a weight matrix.

    Args:
        w: weights `[k, n]`.
        k_tile: rows of a weight tile, as given to `matmul_fp16`.

    Returns:
        Arrays `[ceil(k / k_tile), n]`.
    """
    _require_x64()
    tiles = _split_weights(w, _tile_rows(w.shape[0], k_tile))
    norm, span = lax.map(lambda tile: _norm_and_span(tile, axis=0), tiles)
    return Certificate(norm=norm, span=span)


def matmul_int8(
    x: Int8[Array, "m k"], w: Int8[Array, "k n"], k_tile: int = K_TILES["int8"]
) -> Int32[Array, "m n"]:
    """Multiply int8 by int8, accumulating in int32.

    Args:
        x: activations `[m, k]`.
        w: weights `[k, n]`.
        k_tile: rows of a weight tile; it cannot change an exact sum.

    Raises:
        LpuError: if the contraction is so long that int32 could wrap.

    Fidelity:
        Exact: integer addition is associative, so no tile or order shows.
    """
    _require_x64()
    k = x.shape[1]
    if k > MAX_K_INT8:
        raise LpuError(
            f"matmul_int8: a contraction of {k} can wrap int32; the exact limit is {MAX_K_INT8}."
        )
    del k_tile
    return lax.dot_general(x, w, (((1,), (0,)), ((), ())), preferred_element_type=jnp.int32)


def matmul_e4m3(
    x: Float[Array, "m k"] | UInt8[Array, "m k"],
    w: Float[Array, "k n"] | UInt8[Array, "k n"],
    k_tile: int = K_TILES["float8_e4m3fn"],
) -> Float32[Array, "m n"]:
    """Multiply e4m3 by e4m3: each K tile summed exactly and rounded once to fp32 (RNE).

    Args:
        x: activations `[m, k]`, float8_e4m3fn or its codes as uint8.
        w: weights `[k, n]`, likewise.
        k_tile: rows of a weight tile.

    Raises:
        LpuError: if `k_tile` is too large for one float64 sum to be exact.

    Fidelity:
        Exact within a tile (products are multiples of 2**-18 below 2**18: a float64 holds the sum
        of 2**17 of them), order-dependent across tiles: fp32 additions in ascending order.
    """
    _require_x64()
    k_tile = _tile_rows(x.shape[1], k_tile)
    if k_tile > 2**17:
        raise LpuError(f"matmul_e4m3: k_tile={k_tile} was given; sums are exact up to {2**17}.")
    x, w = (
        lax.bitcast_convert_type(v, jnp.float8_e4m3fn) if v.dtype == jnp.uint8 else v
        for v in (x, w)
    )

    def add_tile(
        total: Float32[Array, "m n"], tile: tuple[Array, Array]
    ) -> tuple[Float32[Array, "m n"], None]:
        sums = repair.exact_dot(tile[0].astype(jnp.float64), tile[1].astype(jnp.float64))
        return total + _positive_zero(sums.astype(jnp.float32)), None

    start = jnp.zeros((x.shape[0], w.shape[1]), jnp.float32)
    total, _ = lax.scan(add_tile, start, (_split_rows(x, k_tile), _split_weights(w, k_tile)))
    return total


def _positive_zero(tile_sums: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Give zero sums a plus sign: whether a GEMM starts from +0 or returns -0 is its choice."""
    return jnp.where(tile_sums == 0, jnp.float32(0), tile_sums)


def _require_x64() -> None:
    """Stop where float64 would silently become float32 and exactness would be lost."""
    assert jax.config.jax_enable_x64, "numerics.accumulate runs inside jax.enable_x64(True)"  # type: ignore[attr-defined]


def _tile_rows(k: int, k_tile: int) -> int:
    """Return the rows of a tile, no more than there are."""
    return min(k, k_tile)


def _split_rows(x: Num[Array, "m k"], k_tile: int) -> Num[Array, "t m kt"]:
    """Cut rows into K tiles; zeros pad the last one."""
    m, k = x.shape
    x = jnp.pad(x, ((0, 0), (0, -k % k_tile)))
    return x.reshape(m, -1, k_tile).transpose(1, 0, 2)  # [m, t, kt] -> [t, m, kt]


def _split_weights(w: Num[Array, "k n"], k_tile: int) -> Num[Array, "t kt n"]:
    """Cut columns into K tiles; zeros pad the last one."""
    k, n = w.shape
    return jnp.pad(w, ((0, -k % k_tile), (0, 0))).reshape(-1, k_tile, n)


def _largest_magnitude(w_tiles: Float16[Array, "t kt n"]) -> Float32[Array, " t"]:
    """Return the largest magnitude of each tile; infinity or NaN if there is one.

    fp16 magnitudes are ordered like their bit patterns, and the maximum of 16-bit integers is the
    cheapest pass over a weight there is.
    """
    bits = lax.bitcast_convert_type(w_tiles, jnp.uint16) & jnp.uint16(0x7FFF)
    return lax.bitcast_convert_type(bits.max((1, 2)), jnp.float16).astype(jnp.float32)


def _norm_and_span(
    tile: Float16[Array, "a b"], axis: int
) -> tuple[Float32[Array, " n"], Float32[Array, " n"]]:
    """Return norm and span (see `Certificate`) of the rows (axis 1) or columns (axis 0)."""
    values = tile.astype(jnp.float64)
    norm = jnp.sqrt((values * values).sum(axis)).astype(jnp.float32)
    lowest = _lowest_bit_exponent(tile).min(axis)
    # 2**-lowest from its bits: lowest is in [-24, 64].
    unit = lax.bitcast_convert_type((127 - lowest) << 23, jnp.float32)
    return norm, norm * unit


def _lowest_bit_exponent(x: Float16[Array, "..."]) -> Int32[Array, "..."]:
    """Return the exponent of the lowest set bit of each number; 64 for zero."""
    bits = lax.bitcast_convert_type(x, jnp.uint16).astype(jnp.int32)
    field, fraction = bits >> 10 & 31, bits & 1023
    significand = jnp.where(field > 0, fraction | 1024, fraction)
    trailing_zeros = 31 - lax.clz(significand & -significand)
    return jnp.where(significand == 0, 64, trailing_zeros + jnp.maximum(field, 1) - 25)


def _outer(a: Float32[Array, " m"], b: Float32[Array, " n"]) -> Float64[Array, "m n"]:
    """Return all products of two vectors in float64."""
    return a.astype(jnp.float64)[:, None] * b.astype(jnp.float64)[None, :]
