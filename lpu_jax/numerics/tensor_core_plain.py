"""Sums by the rules of tensor cores where nothing but products has to be aligned and cut.

`is_plain` proves from the operands' exponents that no sum of a whole product can overflow, lose
bits as a subnormal, or be infinite or NaN. Then a sum is a plain fp32 number between two steps:

- A zero needs no exponent of its own. It is taken for `2**-127`, which every step shifts out,
  because no step is aligned to less than `_LOWEST`; and all that is not zero is larger.
- Cutting to 24 bits is one conversion. Behind the bit `2**n` of a whole number below `2**32`, the
  bits to drop begin at `n - 24`: `v & ~(v >> 24)` clears that one, so the nearest number of 24
  bits is the one below.

A step is done for many tiles of columns at once, which is work for several cores. Each tile is a
block of memory, which stays in a core's first cache while all rows pass over it.
"""

import math
from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float32, Int32

from .formats import E8M0, Format
from .tensor_core_rules import Rule
from .tensor_core_steps import (
    MAGNITUDE,
    NOTHING,
    Factors,
    Side,
    at_most_31,
    bit_patterns,
    factors,
    over_rows,
    sign_bits,
    significand_and_exponent,
    sum_of_terms,
    term,
)

#: Smallest exponent that steps are aligned to: the unit `2**(_LOWEST - 25)` of a step, raised by
#: the significand's 2**25, is a normal number, and a zero taken for `2**-127` is shifted out.
_LOWEST = -101
#: Exponents of sums lie below.
_HIGHEST = 100
#: Columns of a tile, tiles of a turn at most, and outputs of a turn at most beyond one tile.
_COLUMNS, _TILES, _OUTPUTS = 128, 32, 1 << 18


def is_plain(
    start: Int32[Array, "m n"], x: Side, w: Side, largest: tuple[Array, Array]
) -> Bool[Array, ""]:
    """Whether every sum that begins with `start` stays within `2**_LOWEST` and `2**_HIGHEST`.

    Args:
        start: bits of fp32 numbers.
        x: an operand without infinities and NaN.
        w: the other.
        largest: the largest code of a magnitude in each.
    """
    (x_low, x_high), (w_low, w_high) = (_exponents(*s) for s in zip((x, w), largest, strict=True))
    # A sum of k products, each below 4 times its power of two, and of `start`.
    carries = 3 + math.ceil(math.log2(x.codes.shape[1]))
    in_range = (x_low + w_low >= _LOWEST) & (x_high + w_high + carries <= _HIGHEST)
    magnitude = start & MAGNITUDE
    # Not even the last of 23 bits of `start` lies below 2**_LOWEST.
    low, high = (exponent + 127 << 23 for exponent in (_LOWEST + 23, _HIGHEST))
    in_range &= jnp.all((magnitude == 0) | ((magnitude >= low) & (magnitude < high)))
    proven: Array = in_range
    return proven


def _exponents(side: Side, largest: Array) -> tuple[Any, Any]:
    """Return the exponents of the lowest bit that a finite element may have set, and the largest.

    What the format says, which is enough but for bf16 and block scales.
    """
    fmt = side.fmt
    low: Any = 1 - fmt.bias
    high: Any = (fmt.max_code >> fmt.mantissa_bits) - fmt.bias
    if fmt.exponent_bits > 5:
        # Less one, a zero is the largest number.
        least = over_rows(jnp.minimum, side.codes, fmt, less=1) + 1
        low, high = (_field(code, fmt) - fmt.bias for code in (least, largest))
    low = low - fmt.mantissa_bits
    if side.scales is not None:
        least, most = (over_rows(f, side.scales, E8M0) for f in (jnp.minimum, jnp.maximum))
        low = low + (least.astype(jnp.int32) - E8M0.bias)
        high = high + (most.astype(jnp.int32) - E8M0.bias)
    return low, high


def _field(code: Array, fmt: Format) -> Array:
    return jnp.maximum(code.astype(jnp.int32) >> fmt.mantissa_bits, 1)


def plain_sums(
    start: Int32[Array, "m n"], x: Side, w: Side, rule: Rule, is_wanted: Array
) -> Int32[Array, "m n"]:
    """Add all steps to the sums that the accumulators begin with, or none if it is not wanted.

    The last of several turns is moved back to fit, and computes some columns again, to the same
    bits.
    """
    m, n = start.shape
    count = min(n, _COLUMNS)
    turns = -(-n // (count * max(1, min(_TILES, _OUTPUTS // (m * count)))))
    tiles = -(-n // (turns * count))
    width = tiles * count
    is_narrow = _is_narrow(x, w, rule)
    raised = 29 - x.fmt.mantissa_bits - w.fmt.mantissa_bits
    row_raised, column_raised = (raised, 0) if is_narrow else (None, None)
    rows = _rows(_padded(_each(jnp.transpose, x), rule.step, m), rule.step, row_raised)
    steps = -(-x.codes.shape[1] // rule.step)
    columns, start = _padded(w, rule.step, width), _zeros_behind(start, m, width)

    def turn(i: Array, sums: Array) -> Array:
        first = jnp.minimum(i * width, start.shape[1] - width)

        def cut(values: Array, row: Array, rows: int) -> Array:
            part = bit_patterns(lax.dynamic_slice(values, (row, first), (rows, width)))
            return part.reshape(rows, tiles, count).transpose(1, 0, 2)

        def step(s: Array, part: Array) -> Array:
            def of_step(values: Array) -> Array:
                rows = len(values) // steps
                # Without the barrier XLA leaves columns where they are, and their rows collide in
                # the cache: their distance is a power of two.
                codes: Array = lax.optimization_barrier(cut(values, s * rows, rows))
                return codes

            given = _factors(_each(of_step, columns), column_raised)
            return _step(part, rows, s, given, rule, is_narrow)

        part = lax.bitcast_convert_type(cut(start, jnp.int32(0), m), jnp.float32)
        part = lax.fori_loop(jnp.int32(0), jnp.int32(steps), step, part)
        bits = lax.bitcast_convert_type(part, jnp.int32).transpose(1, 0, 2).reshape(m, width)
        return lax.dynamic_update_slice_in_dim(sums, bits, first, axis=1)

    wanted = jnp.where(is_wanted, jnp.int32(turns), jnp.int32(0))
    sums: Array = lax.fori_loop(jnp.int32(0), wanted, turn, start)[:, :n]
    return sums


class _Rows(NamedTuple):
    """Factors of rows, `[k, m]`, and their signs as bits of one number, `[steps, m]`."""

    factors: Factors
    signs: Array


def _each(change: Callable[[Array], Array], side: Side) -> Side:
    """Change the codes and the block scales of an operand."""
    scales = None if side.scales is None else change(side.scales)
    return side._replace(codes=change(side.codes), scales=scales)


def _padded(side: Side, step: int, width: int) -> Side:
    """Append zeros to the contraction, which leads, up to whole steps, and columns up to a width.

    A block scale is one step's.
    """
    steps = -(-side.codes.shape[0] // step)
    scales = None if side.scales is None else _zeros_behind(side.scales, steps, width)
    return side._replace(codes=_zeros_behind(side.codes, steps * step, width), scales=scales)


def _zeros_behind(values: Array, rows: int, columns: int) -> Array:
    more = [(0, max(0, of - n)) for of, n in zip((rows, columns), values.shape, strict=True)]
    return jnp.pad(values, more) if any(count for _, count in more) else values


def _is_narrow(x: Side, w: Side, rule: Rule) -> bool:
    """Whether significands of columns are below the smallest shift of a term (`_narrow`)."""
    return w.fmt.mantissa_bits + 1 <= 29 - rule.alignment_bits and x.fmt.bits <= 8


def _factors(side: Side, raised: int | None) -> Factors:
    """Take codes apart, whose contraction is their last axis but one; a block scale is a step's."""
    codes = bit_patterns(side.codes).astype(jnp.int32)
    parts = factors(codes, side.fmt) if raised is None else _narrow(codes, side.fmt, raised)
    if side.scales is None:
        return parts
    scales = side.scales.astype(jnp.int32) - E8M0.bias
    block = side.codes.shape[-2] // side.scales.shape[-2]
    return parts._replace(exponent=parts.exponent + jnp.repeat(scales, block, axis=-2))


def _narrow(codes: Int32[Array, "..."], fmt: Format, raised: int) -> Factors:
    """Return whole significands with their signs; those of rows raised, and one more.

    A product of integers is one operation less than `term`. The one more makes it the product
    and a significand of a column, which has the product's sign and is less than every shift drops:
    negative terms are then as if complemented, without a look at their signs.
    """
    whole, exponent = significand_and_exponent(codes, fmt)
    sign = -(codes >> (fmt.bits - 1) & 1)
    value = (whole << raised) + 1 if raised else whole
    return Factors(
        significand=(value ^ sign) - sign,
        exponent=jnp.where(whole == 0, NOTHING, exponent),
        sign=sign,
    )


def _rows(side: Side, step: int, raised: int | None) -> _Rows:
    parts = _factors(side, raised)
    signs = sign_bits(parts.sign.reshape(-1, step, side.codes.shape[1]), 1)
    return _Rows(parts, signs[:, 0])


def _step(
    sums: Float32[Array, "t m c"],
    rows: _Rows,
    s: Array,
    columns: Factors,
    rule: Rule,
    is_narrow: bool,
) -> Float32[Array, "t m c"]:
    """Add the products of a step to the sums of tiles of columns."""

    def of_rows(values: Array, at: Array) -> Array:
        # One row of the array where it is used: XLA reads it in place.
        row: Array = lax.dynamic_index_in_dim(values, at, keepdims=False)[None, :, None]
        return row

    pairs = [
        (
            Factors(*(of_rows(part, s * rule.step + k) for part in rows.factors)),
            Factors(*(part[:, k][:, None] for part in columns)),
        )
        for k in range(rule.step)
    ]
    bits = lax.bitcast_convert_type(sums, jnp.int32)
    exponent, sign = (bits >> 23 & 255) - 127, bits >> 31
    exponents = [one.exponent + two.exponent for one, two in pairs]
    largest = reduce(jnp.maximum, exponents, jnp.maximum(exponent, _LOWEST))
    kept = (bits & 0x7FFFFF | 0x800000) << max(0, rule.alignment_bits - 23)
    kept = kept >> at_most_31(largest - exponent + max(0, 23 - rule.alignment_bits))
    of_x, of_w = of_rows(rows.signs, s), columns.sign
    if is_narrow:  # a product of a zero is not complemented
        is_used = -(columns.significand != 0).astype(jnp.int32)
        of_x, of_w = of_x & sign_bits(is_used, 1), of_w & is_used
        terms = [one.significand * two.significand for one, two in pairs]
    else:
        terms = [term(one, two) for one, two in pairs]
    kept = (kept ^ sign) + (lax.population_count(of_x ^ sign_bits(of_w, 1)) - sign)
    total, sign = sum_of_terms(kept, terms, exponents, largest + (29 - rule.alignment_bits))
    total &= ~lax.shift_right_logical(total, jnp.int32(24))
    unit = lax.bitcast_convert_type(largest + (127 - rule.alignment_bits) << 23, jnp.float32)
    value = total.astype(jnp.uint32).astype(jnp.float32) * unit
    bits = lax.bitcast_convert_type(value, jnp.int32) & (-1 << 23 - rule.result_bits)
    after: Array = lax.bitcast_convert_type(bits | sign << 31, jnp.float32)
    return after
