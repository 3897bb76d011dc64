"""Exact recomputation of the outputs whose rounding the float64 sum of `accumulate` left open.

Everything is integer arithmetic: an fp16 number is an integer of 40 bits times 2**-24; cut into two
halves of 20 bits, all sums of products of halves fit 64 bits, and the three sums together are the
exact result, which is rounded once. Only finite operands are handled; like `accumulate` it runs
inside `jax.enable_x64(True)`.
"""

from typing import Literal

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float16, Float32, Int64, Num, UInt64

#: Rounding of an exact sum: to nearest, ties to even, or towards zero.
SumRounding = Literal["rne", "rz"]

#: Longest sum: `k` products of two halves, twice, stay below 2**62.
MAX_K_TILE = 2**20
#: Outputs recomputed at once.
_CHUNK = 32
_HALF_BITS = 20
_HALF_MASK = (1 << _HALF_BITS) - 1
#: Products are integers times 2**-48.
_UNIT_EXPONENT = -48


def repair(
    total: Float32[Array, "g m n"],
    undecided: Bool[Array, "g m n"],
    x: Num[Array, "gx m k"],
    w: Num[Array, "g k n"],
    *,
    k_tile: int,
    rounding: SumRounding,
    exact_carry: bool,
) -> Float32[Array, "g m n"]:
    """Return `total` with the undecided outputs replaced by exact ones.

    Args:
        total: sums over all tiles.
        undecided: where `total` is not proven; only where all operands are finite.
        x: activations, one matrix for all or one for each matrix of `w`; float16 or a type whose
            numbers are fp16 numbers.
        w: weights, likewise.
        k_tile: rows of a K tile.
        rounding: of each tile, or of the whole sum: "rne" or "rz".
        exact_carry: round the whole sum once instead of each tile.

    Fidelity:
        Exact within each tile (or over all), one rounding; fp32 additions across tiles in order.
    """
    _, m, n = total.shape
    positions = lax.iota(jnp.int32, total.size)

    def step(state: tuple[Array, Array]) -> tuple[Array, Array]:
        flat, open_ = state
        # One output from each residue class of positions: neighbours are repaired together.
        marked = jnp.where(open_, positions, jnp.int32(-1))
        found = jnp.pad(marked, (0, -total.size % _CHUNK), constant_values=-1)
        found = found.reshape(-1, _CHUNK).max(0)
        inside = jnp.maximum(found, 0)
        matrix, row, column = inside // (m * n), inside // n % m, inside % n
        exact = _dot_each(
            x[jnp.zeros_like(matrix) if x.shape[0] == 1 else matrix, row],
            w[matrix, :, column],
            k_tile=k_tile,
            rounding=rounding,
            exact_carry=exact_carry,
        )
        at = jnp.where(found < 0, jnp.int32(total.size), found)  # dropped when stored
        return flat.at[at].set(exact, mode="drop"), open_.at[at].set(False, mode="drop")

    start = (total.reshape(-1), undecided.reshape(-1))
    flat, _ = lax.while_loop(lambda state: state[1].any(), step, start)
    return flat.reshape(total.shape)


def _dot_each(
    x: Num[Array, "c k"],
    w: Num[Array, "c k"],
    *,
    k_tile: int,
    rounding: SumRounding,
    exact_carry: bool,
) -> Float32[Array, " c"]:
    """Return dot products of pairs of rows."""
    padding = ((0, 0), (0, -x.shape[1] % k_tile))
    x_units, w_units = (
        jnp.pad(fp16_units(v.astype(jnp.float16)), padding).reshape(v.shape[0], -1, k_tile)
        for v in (x, w)
    )
    x_high, x_low = x_units >> _HALF_BITS, x_units & _HALF_MASK
    w_high, w_low = w_units >> _HALF_BITS, w_units & _HALF_MASK
    sums = (x_high * w_high, x_high * w_low + x_low * w_high, x_low * w_low)
    high, middle, low = (v.sum(-1) for v in sums)  # [c, tiles]
    if exact_carry:
        return round_limbs(high.sum(-1), middle.sum(-1), low.sum(-1), rounding)
    tile_sums = round_limbs(high, middle, low, rounding)
    zero = jnp.zeros(x.shape[0], jnp.float32)
    return lax.scan(lambda acc, tile: (acc + tile, None), zero, tile_sums.T)[0]


def fp16_units(x: Float16[Array, "..."]) -> Int64[Array, "..."]:
    """Return fp16 numbers as integers of 2**-24."""
    bits = lax.bitcast_convert_type(x, jnp.uint16).astype(jnp.int64)
    field, fraction = bits >> 10 & 31, bits & 1023
    significand = jnp.where(field > 0, fraction | 1024, fraction)
    magnitude = significand << jnp.maximum(field - 1, 0)
    return jnp.where(bits >> 15 == 1, -magnitude, magnitude)


def round_limbs(
    high: Int64[Array, "..."],
    middle: Int64[Array, "..."],
    low: Int64[Array, "..."],
    rounding: SumRounding,
) -> Float32[Array, "..."]:
    """Return `(high * 2**40 + middle * 2**20 + low) * 2**-48` rounded once; an exact zero is +0.

    The result is a normal fp32 number or zero: it is a multiple of 2**-48 below 2**62.
    """
    high, tail = joined_halves(high, middle, low)
    # Sign and magnitude of the number `high * 2**40 + tail`, 0 <= tail < 2**40.
    negative = high < 0
    high = jnp.where(negative, ~high + (tail == 0).astype(jnp.int64), high)
    tail = jnp.where(negative, -tail & (1 << 2 * _HALF_BITS) - 1, tail)
    leading, exponent, lost = _leading_bits(high.astype(jnp.uint64), tail.astype(jnp.uint64))
    return round_leading(leading, exponent + _UNIT_EXPONENT, lost, negative, rounding)


def joined_halves(
    high: Int64[Array, "..."], middle: Int64[Array, "..."], low: Int64[Array, "..."]
) -> tuple[Int64[Array, "..."], Int64[Array, "..."]]:
    """Return `high * 2**40 + middle * 2**20 + low` as `high * 2**40 + tail`, 0 <= tail < 2**40."""
    middle = middle + (low >> _HALF_BITS)
    high = high + (middle >> _HALF_BITS)
    return high, (middle & _HALF_MASK) << _HALF_BITS | (low & _HALF_MASK)


def round_leading(
    leading: UInt64[Array, "..."],
    exponent: Int64[Array, "..."],
    lost: UInt64[Array, "..."],
    negative: Bool[Array, "..."],
    rounding: SumRounding,
) -> Float32[Array, "..."]:
    """Round numbers to fp32 once; an exact zero is +0.

    Args:
        leading: 64 bits from the leading one down; 0 for zero.
        exponent: of the leading one; that of a normal fp32 number.
        lost: 1 where bits below are set.
        negative: where the number is below zero.
        rounding: "rne" or "rz".
    """
    kept, rest = leading >> 40, leading & jnp.uint64((1 << 40) - 1) | lost
    half = jnp.uint64(1 << 39)
    up = (rest > half) | ((rest == half) & (kept & 1 == 1))  # RNE
    code = kept if rounding == "rz" else kept + up.astype(jnp.uint64)
    # The leading one of `kept` adds 1 to the exponent field, and so does a carry out of it.
    field = (exponent + (127 - 1)) << 23
    bits = jnp.where(leading == 0, jnp.int64(0), field + code.astype(jnp.int64))
    bits = jnp.where(negative, bits | 1 << 31, bits)
    return lax.bitcast_convert_type(bits.astype(jnp.uint32), jnp.float32)


def _leading_bits(
    high: UInt64[Array, "..."], tail: UInt64[Array, "..."]
) -> tuple[UInt64[Array, "..."], Int64[Array, "..."], UInt64[Array, "..."]]:
    """Return the top 64 bits of `high * 2**40 + tail` from the leading one down.

    Returns:
        The bits (0 for zero), the exponent of the leading one, and 1 where bits below are lost.
    """
    is_short = high == 0
    shift = lax.clz(jnp.where(is_short, tail, high))
    missing = jnp.uint64(40) - jnp.minimum(shift, jnp.uint64(40))  # bits of `tail` that are lost
    joined = high << shift | jnp.where(
        shift > 40, tail << (shift - jnp.uint64(40)), tail >> missing
    )
    lost = tail & ((jnp.uint64(1) << missing) - jnp.uint64(1))
    exponent = 63 - shift.astype(jnp.int64) + jnp.where(is_short, 0, 40)
    leading = jnp.where(is_short, tail << shift, joined)
    return leading, exponent, jnp.where(is_short, False, lost != 0).astype(jnp.uint64)
