"""The matrix unit's exact fp16 products from int8 matrix products, for devices slow in float64.

A twin of `accumulate`, to the same bits; which is faster depends on the device, and the choice is
not made here. Not modelled: operands wider than fp16, and sums of int8 operands, which need no
more than one int8 product.

An fp16 number is an integer of 40 bits times 2**-24. In each K tile the powers of two common to a
row of `x` and to a column of `w` are taken out; what is left are smaller integers, whose dot
products `s` obey `|s| <= |row|_2 |column|_2` (Cauchy-Schwarz). Integers of that size are known by
their residues modulo a few coprime numbers up to 256 (the Chinese remainder theorem), and each
residue of a dot product takes one product of int8 matrices with int32 sums. How many moduli a tile
needs depends on its data only through that bound: products of e4m3 numbers take 5, normally
distributed activations and weights of fp16 mostly 7, any operands whatever 12, or 13 in sums of
12,880 products and more.

Source: Ozaki scheme II, arXiv 2504.08009, here without its approximate scaling: nothing is cut off.
"""

import math
from dataclasses import dataclass
from functools import cache, partial, reduce
from operator import add

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float16, Float32, Int8, Int32, Int64, Num

from ..errors import LpuError
from . import tiles
from .certificate import as_fp16
from .repair import MAX_K_TILE, SumRounding, fp16_units, round_limbs

#: Pairwise coprime, taken greedily from 256 down: residues centred on zero fit int8.
MODULI = (256, 255, 253, 251, 247, 241, 239, 233, 229, 227, 223, 217, 211)
#: Numbers of moduli that a tile chooses from, before as many as any operands need. Each is code
#: of its own: more of them compile longer.
_LEVELS = (5, 6, 7, 8)
#: Sums below this share of the moduli's product are told apart. Of the 10 % to one half, float32
#: norms of up to 2**20 elements take 7 %, and the fixed-point quotient of `_rounded_sum` 0.01 %.
_SHARE = 0.45
#: Largest magnitude of an fp16 number, in units of 2**-24.
_LARGEST_UNITS = 2047 << 29
#: Rows of one int8 product: far from `2**31 / 128**2` where int32 ends, small for memory.
_CHUNK_ROWS = 1024
_HALF_BITS = 20
_HALF_MASK = (1 << _HALF_BITS) - 1
#: Fraction bits of the quotient in `_rounded_sum`: 13 terms below 1 stay below 2**31.
_QUOTIENT_BITS = 26
#: A number is rounded from a high part and this many low bits.
_LIMB_BITS = 2 * _HALF_BITS
_LIMB_MASK = (1 << _LIMB_BITS) - 1
_bits = lax.bitcast_convert_type


def tile_sums(
    x: Num[Array, "gx m k"],
    w: Num[Array, "g k n"],
    *,
    k_tile: int,
    rounding: SumRounding,
    exact_carry: bool,
) -> Float32[Array, "g m n"]:
    """Multiply as `accumulate.matmul` does, in integers; runs inside `jax.enable_x64(True)`.

    Works on all `g` matrices at once: beside the operands it holds about 8 bytes for each number
    of a tile, and 4 bytes times the number of moduli for each output.

    Args:
        x: activations, one matrix for all or one for each matrix of `w`; float16 or a type whose
            numbers are fp16 numbers.
        w: weights, likewise.
        k_tile: rows of a K tile.
        rounding: of each tile, or of the whole sum: "rne" or "rz".
        exact_carry: round the sum over all of `k` once instead of each tile.

    Returns:
        Sums of rounded tile sums, added in fp32 in ascending order, or rounded exact sums. Exact
        zero sums are +0; infinities and NaN follow IEEE 754.

    Raises:
        LpuError: if a sum is longer than what is proven exact, or `k_tile` is not positive.

    Fidelity:
        Exact within a tile, one rounding. Bits equal those of `accumulate.matmul`, on any device.
    """
    assert jax.config.jax_enable_x64, "residues runs inside jax.enable_x64(True)"  # type: ignore[attr-defined]
    if k_tile < 1:
        raise LpuError(f"mxm.matmul: k_tile={k_tile} was given; it must be at least 1.")
    k = x.shape[2]
    rows = k if exact_carry else min(k, k_tile)
    tiles.check_length(rows, MAX_K_TILE, x, w)
    total = jnp.zeros((w.shape[0], x.shape[1], w.shape[2]), jnp.float32)
    if total.size == 0 or k == 0:
        return total

    def add_tile(i: Array, total: Array) -> Array:
        # No rounding can be lost to a fused multiply-add: scaling by powers of two is exact.
        return total + _tile_sum(x, w, i * rows, rows, rounding)

    total = lax.fori_loop(0, -(-k // rows), add_tile, total)
    return _with_special_values(total, x, w)


@dataclass(frozen=True, kw_only=True)
class _Basis:
    """What reconstructing a number from its residues takes; integers of any size."""

    moduli: tuple[int, ...]
    product: int
    cofactors: tuple[int, ...]  #: the product without each modulus
    inverses: tuple[int, ...]  #: of each cofactor, to its modulus


@cache
def _basis(count: int) -> _Basis:
    """Return the basis of the `count` largest moduli."""
    moduli = MODULI[:count]
    product = math.prod(moduli)
    cofactors = tuple(product // modulus for modulus in moduli)
    inverses = tuple(pow(c, -1, modulus) for c, modulus in zip(cofactors, moduli, strict=True))
    return _Basis(moduli=moduli, product=product, cofactors=cofactors, inverses=inverses)


def _levels(rows: int) -> tuple[int, ...]:
    """Return the numbers of moduli for sums of `rows` products; the last holds all of them."""
    largest = rows * _LARGEST_UNITS**2
    full = next(i for i in range(1, len(MODULI) + 1) if _SHARE * _basis(i).product > largest)
    return (*(level for level in _LEVELS if level < full), full)


# --- one tile -------------------------------------------------------------------------------------


def _tile_sum(
    x: Num[Array, "gx m k"],
    w: Num[Array, "g k n"],
    start: Array,
    rows: int,
    rounding: SumRounding,
) -> Float32[Array, "g m n"]:
    """Return exact sums over the rows from `start` on, rounded once."""
    # Infinities and NaN become some integer: all sums that they enter are replaced in the end.
    x_tile, w_tile = (as_fp16(v) for v in _rows_from(x, w, start, rows))
    x_shift, x_norm = _shift_and_norm(x_tile, axis=2)
    w_shift, w_norm = _shift_and_norm(w_tile, axis=1)
    levels = _levels(rows)
    limits = jnp.array([_SHARE * _basis(level).product for level in levels[:-1]], jnp.float32)
    chosen = (x_norm * w_norm > limits).sum(dtype=jnp.int32)
    branches = [partial(_integer_sums, _basis(level), rounding) for level in levels]
    integers: Array = lax.switch(chosen, branches, x_tile, w_tile, x_shift, w_shift)
    return integers * _power_of_two(x_shift) * _power_of_two(w_shift)


def _rows_from(
    x: Num[Array, "gx m k"], w: Num[Array, "g k n"], start: Array, rows: int
) -> tuple[Num[Array, "gx m rows"], Num[Array, "g rows n"]]:
    """Take columns of `x` from `start` on and the rows of `w` that they multiply.

    What is too close to the end is moved back to fit, and rows before `start` become zeros.
    """
    first = jnp.minimum(start, x.shape[2] - rows)
    x = lax.dynamic_slice_in_dim(x, first, rows, axis=2)
    w = lax.dynamic_slice_in_dim(w, first, rows, axis=1)
    is_new: Bool[Array, " rows"] = first + lax.iota(jnp.int32, rows) >= start
    return tiles.only_new(x, w, is_new)


def _shift_and_norm(
    x: Float16[Array, "..."], axis: int
) -> tuple[Int64[Array, "..."], Float32[Array, ""]]:
    """Return the power of two common to integers along an axis, and the largest norm without it.

    Returns:
        The largest `s` for which 2**s divides all of them, 0 for zeros; the largest Euclidean norm
        of what 2**s leaves.
    """
    units = fp16_units(x)
    bits = lax.expand_dims(lax.reduce_or(units, (axis,)), (axis,))
    shift = jnp.where(bits == 0, jnp.int64(0), 63 - lax.clz(bits & -bits))
    values = (units >> shift).astype(jnp.float32)
    return shift, jnp.sqrt((values * values).sum(axis).max())


def _power_of_two(exponent: Int64[Array, "..."]) -> Float32[Array, "..."]:
    return _bits((exponent.astype(jnp.int32) + 127) << 23, jnp.float32)


# --- residues -------------------------------------------------------------------------------------


def _integer_sums(
    basis: _Basis,
    rounding: SumRounding,
    x: Float16[Array, "gx m k"],
    w: Float16[Array, "g k n"],
    x_shift: Int64[Array, "gx m 1"],
    w_shift: Int64[Array, "g 1 n"],
) -> Float32[Array, "g m n"]:
    """Return sums of products of the integers that the shifts leave, times 2**-48, rounded.

    Args:
        basis: its product must be large enough for the sums.
        rounding: "rne" or "rz".
        x: fp16 numbers.
        w: likewise.
        x_shift: powers of two that divide rows of `x`, as integers of 2**-24.
        w_shift: likewise, columns of `w`.
    """
    k = x.shape[2]
    rows = min(k, _CHUNK_ROWS)

    def add_rows(i: Array, digits: list[Array]) -> list[Array]:
        x_part, w_part = _rows_from(x, w, i * rows, rows)
        x_units, w_units = fp16_units(x_part) >> x_shift, fp16_units(w_part) >> w_shift
        joined = []
        for digit, modulus, inverse in zip(digits, basis.moduli, basis.inverses, strict=True):
            x_rest, w_rest = _residues(x_units, modulus, inverse), _residues(w_units, modulus, 1)
            digit = digit + tiles.product(x_rest, w_rest, jnp.int32)
            joined.append(lax.rem(digit, jnp.int32(modulus)))
        return joined

    zeros = jnp.zeros((w.shape[0], x.shape[1], w.shape[2]), jnp.int32)
    digits = [zeros] * len(basis.moduli)
    digits = lax.fori_loop(0, -(-k // rows), add_rows, digits)
    return _rounded_sum(digits, basis, rounding)


def _residues(units: Int64[Array, "..."], modulus: int, factor: int) -> Int8[Array, "..."]:
    """Return `units * factor` modulo a number up to 256, centred on zero."""
    high = (units >> _HALF_BITS).astype(jnp.int32)
    low = (units & _HALF_MASK).astype(jnp.int32)
    # Both terms are below 2**28 in magnitude; the multiple of the modulus makes the sum positive.
    value = high * (factor * 2**_HALF_BITS % modulus) + low * factor + (modulus << 22)
    # A remainder by a constant takes fewer instructions unsigned.
    rest = lax.rem(value.astype(jnp.uint32), jnp.uint32(modulus)).astype(jnp.int32)
    return jnp.where(rest >= modulus - modulus // 2, rest - modulus, rest).astype(jnp.int8)


def _rounded_sum(
    digits: list[Int32[Array, "..."]], basis: _Basis, rounding: SumRounding
) -> Float32[Array, "..."]:
    """Return numbers, times 2**-48, rounded once to fp32.

    With `P` the product of the moduli, each number is `sum(digit * P / modulus) - q P` for the `q`
    that makes it smallest.

    Args:
        digits: the numbers times the basis's inverses, modulo each modulus, of either sign.
        basis: `_SHARE` of its product must exceed the numbers.
        rounding: "rne" or "rz".
    """
    fractions = [round(2**_QUOTIENT_BITS / modulus) for modulus in basis.moduli]
    q = _weighted_sum(digits, fractions) + (1 << _QUOTIENT_BITS - 1) >> _QUOTIENT_BITS
    # Terms of the high part may leave 64 bits, their sum does not: unsigned, overflow is defined.
    wide = [_bits(v.astype(jnp.int64), jnp.uint64) for v in (*digits, q)]
    weights = (*basis.cofactors, -basis.product)
    low, high = (
        _bits(_weighted_sum(wide, parts), jnp.int64)
        for parts in ([v & _LIMB_MASK for v in weights], [v >> _LIMB_BITS for v in weights])
    )
    return round_limbs(high, low >> _HALF_BITS, low & _HALF_MASK, rounding)


def _weighted_sum(values: list[Array], weights: list[int]) -> Array:
    """Return a sum of integers times constants, modulo the values' type."""
    dtype = values[0].dtype
    modulus = 1 << 8 * dtype.itemsize
    terms = [v * dtype.type(weight % modulus) for v, weight in zip(values, weights, strict=True)]
    total: Array = reduce(add, terms)
    return total


# --- infinities and NaN ---------------------------------------------------------------------------


def _with_special_values(
    total: Float32[Array, "g m n"], x: Num[Array, "gx m k"], w: Num[Array, "g k n"]
) -> Float32[Array, "g m n"]:
    """Return `total` with IEEE's result where an operand is infinite or NaN.

    Finite sums are below 2**62, so only such an operand makes a sum infinite or NaN, and which of
    them depends on the signs of the numbers it multiplies, on zeros among them, and on nothing
    else: a float product of signs, infinities and NaN finds it.
    """

    def replace() -> Array:
        ieee = tiles.product(_signs(x), _signs(w), jnp.float32)
        return jnp.where(jnp.isfinite(ieee), total, ieee)

    finite = jnp.isfinite(as_fp16(x)).all() & jnp.isfinite(as_fp16(w)).all()
    result: Array = lax.cond(finite, lambda: total, replace)
    return result


def _signs(x: Num[Array, "..."]) -> Float32[Array, "..."]:
    x = x.astype(jnp.float32)
    return jnp.where(jnp.isfinite(x), jnp.sign(x), x)
