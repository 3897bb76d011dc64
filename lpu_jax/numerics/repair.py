"""Exact recomputation of the outputs whose rounding the float64 sum of `accumulate` left open.

A fp16 number is an integer of 40 bits times 2**-24. Cut into halves of 20 bits, all sums of
products of halves are exact in float64; they are joined into one pair of float64 numbers that
holds the exact sum, which is rounded to odd and then to fp32: together one correct rounding.
Only finite operands are handled; like `accumulate` it runs inside `jax.enable_x64(True)`.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float16, Float32, Float64, Int32

#: Sums of products of 21-bit integers stay below 2**53.
MAX_K_TILE = 2**11
#: Outputs repaired at once.
_CHUNK = 32
_HALF_BITS = 20


def exact_dot(a: Float64[Array, "m k"], b: Float64[Array, "k n"]) -> Float64[Array, "m n"]:
    """Multiply float64 matrices; exact whenever every partial sum fits 53 bits."""
    return lax.dot_general(
        a,
        b,
        (((1,), (0,)), ((), ())),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float64,
    )


def repair(
    total: Float32[Array, "m n"],
    undecided: Bool[Array, "m n"],
    x_tiles: Float16[Array, "t m k"],
    w_tiles: Float16[Array, "t k n"],
    cap: int,
) -> Float32[Array, "m n"]:
    """Return `total` with the undecided outputs replaced by exact ones.

    Args:
        total: sums over all tiles.
        undecided: where `total` is not proven; only where all operands are finite.
        x_tiles: activations by K tile.
        w_tiles: weights by K tile.
        cap: up to this many undecided outputs are recomputed one by one, above it all at once.

    Fidelity:
        Exact within each tile, one rounding (RNE); fp32 additions across tiles in order.
    """
    count = undecided.sum(dtype=jnp.int32)

    def repair_all() -> Float32[Array, "m n"]:
        def add_tile(
            acc: Float32[Array, "m n"], tile: tuple[Array, Array]
        ) -> tuple[Float32[Array, "m n"], None]:
            return acc + _sliced_dot(*tile), None

        exact, _ = lax.scan(add_tile, jnp.zeros_like(total), (x_tiles, w_tiles))
        return jnp.where(undecided, exact, total)

    repaired: Array = lax.cond(
        count == 0,
        lambda: total,
        lambda: lax.cond(
            count <= cap,
            lambda: _repair_each(total, undecided, count, x_tiles, w_tiles, min(cap, total.size)),
            repair_all,
        ),
    )
    return repaired


def _repair_each(
    total: Float32[Array, "m n"],
    undecided: Bool[Array, "m n"],
    count: Int32[Array, ""],
    x_tiles: Float16[Array, "t m k"],
    w_tiles: Float16[Array, "t k n"],
    cap: int,
) -> Float32[Array, "m n"]:
    """Recompute `count <= cap` outputs, a chunk at a time."""
    n = total.shape[1]
    # Sorting the positions compiles ten times faster than `jnp.nonzero` and runs only here.
    positions = lax.iota(jnp.int32, total.size)
    found = lax.sort(jnp.where(undecided.reshape(-1), positions, jnp.int32(total.size)))
    found = jnp.pad(found[:cap], (0, _CHUNK), constant_values=total.size)

    def step(state: tuple[Array, Array]) -> tuple[Array, Array]:
        done, flat = state
        index = lax.dynamic_slice(found, (done,), (_CHUNK,))
        inside = jnp.minimum(index, total.size - 1)  # fill values are dropped when stored
        x = jnp.take(x_tiles, inside // n, axis=1)  # [t, chunk, k]
        w = jnp.take(w_tiles, inside % n, axis=2).transpose(
            0, 2, 1
        )  # [t, k, chunk] -> [t, chunk, k]
        exact = _dot_each(x, w)
        return done + _CHUNK, flat.at[index].set(exact, mode="drop")

    start = (jnp.int32(0), total.reshape(-1))
    _, flat = lax.while_loop(lambda state: state[0] < count, step, start)
    return flat.reshape(total.shape)


def _dot_each(x: Float16[Array, "t c k"], w: Float16[Array, "t c k"]) -> Float32[Array, " c"]:
    """Return dot products of pairs of rows, tile by tile."""
    x_high, x_low = _halves(x)
    w_high, w_low = _halves(w)
    tile_sums = _join(
        (x_high * w_high).sum(-1),
        (x_high * w_low + x_low * w_high).sum(-1),
        (x_low * w_low).sum(-1),
    )
    zero = jnp.zeros(x.shape[1], jnp.float32)
    return lax.scan(lambda acc, tile: (acc + tile, None), zero, tile_sums)[0]


def _sliced_dot(x: Float16[Array, "m k"], w: Float16[Array, "k n"]) -> Float32[Array, "m n"]:
    """Return the exact product of one tile rounded once, from three GEMMs (Karatsuba)."""
    x_high, x_low = _halves(x)
    w_high, w_low = _halves(w)
    high, low = exact_dot(x_high, w_high), exact_dot(x_low, w_low)
    crossed = exact_dot(x_high + x_low, w_high + w_low)
    return _join(high, crossed - high - low, low)


def _halves(x: Float16[Array, "..."]) -> tuple[Float64[Array, "..."], Float64[Array, "..."]]:
    """Return integers with `x * 2**24 == high * 2**20 + low`, both at most 2**20 in magnitude."""
    units = x.astype(jnp.float64) * 2.0**24
    high = jnp.round(units * 2.0**-_HALF_BITS)
    return high, units - high * 2.0**_HALF_BITS


def _join(
    high: Float64[Array, "..."], middle: Float64[Array, "..."], low: Float64[Array, "..."]
) -> Float32[Array, "..."]:
    """Return `(high * 2**40 + middle * 2**20 + low) * 2**-48` rounded once to fp32.

    The three are exact integers below 2**53. The two error terms are integers small enough for
    their sum to be exact, so the last pair holds the exact value.
    """
    upper, upper_error = _two_sum(high * 2.0 ** (2 * _HALF_BITS), middle * 2.0**_HALF_BITS)
    whole, whole_error = _two_sum(upper, low)
    head, tail = _two_sum(whole, upper_error + whole_error)
    rounded = (_round_to_odd(head, tail) * 2.0**-48).astype(jnp.float32)
    return jnp.where(rounded == 0, jnp.float32(0), rounded)


def _two_sum(
    a: Float64[Array, "..."], b: Float64[Array, "..."]
) -> tuple[Float64[Array, "..."], Float64[Array, "..."]]:
    """Return the rounded sum and its exact error (Knuth, TAOCP 2, §4.2.2)."""
    total = a + b
    b_part = total - a
    return total, (a - (total - b_part)) + (b - b_part)


def _round_to_odd(
    head: Float64[Array, "..."], tail: Float64[Array, "..."]
) -> Float64[Array, "..."]:
    """Return `head + tail` truncated, with the last bit set if anything was lost.

    A later rounding to at most 51 bits then equals a single rounding.

    Source:
        Boldo and Melquiond, IEEE Trans. Computers 57 (2008): emulation of FMA and correctly
        rounded sums by rounding to odd.
    """
    bits = lax.bitcast_convert_type(head, jnp.int64)
    away = (tail > 0) == (head > 0)
    step = jnp.where(away, jnp.int64(1), jnp.int64(-1))
    odd = jnp.where((tail != 0) & (bits & 1 == 0), bits + step, bits)
    return lax.bitcast_convert_type(odd, jnp.float64)
