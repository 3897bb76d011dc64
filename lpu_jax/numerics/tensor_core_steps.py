"""One step of a tensor core: operands in parts, and sums of their aligned products.

Every term of a step is a significand shifted to the unit of the largest exponent; what is shifted
out is lost. All of it is integers but for exact uses of floats:

- A product of two significands lies in [0, 4) and is a multiple of 2**-20. Added to 8 it is a float
  whose last 23 bits are that product, so that no conversion is needed (XLA clamps conversions).
- Sums of a group of fp4 products are multiples of 1/4 up to 576: one small matrix product. Their
  terms have up to 49 bits: whole numbers in float64.

Truncation towards zero of negative terms is an arithmetic shift of the one's complement, which is
one less; the count of negative terms is added back (`Products.signs`).
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float32, Int32

from .formats import E8M0, Format
from .tensor_core_rules import Rule
from .tiles import product

INF_BITS, NAN_BITS, MAGNITUDE = 0x7F800000, 0x7FFFFFFF, 0x7FFFFFFF
#: Exponent of an infinite sum: everything added to it vanishes.
_INFINITE = 1 << 20
#: Exponent of a zero factor: below all others, so that it is aligned to nothing.
NOTHING = -(1 << 12)
#: fp4 values are halves of whole numbers; significands of their block scales are eighths.
_GROUP_FRACTION_BITS = 2 + 6
_USED = 0.125
#: Exponent that marks a block scale that is NaN.
_NAN = 1 << 12
#: Rows of codes that are compared with others at once.
_RUN = 64


class Side(NamedTuple):
    """One operand: its elements and block scales, bit patterns or fp16, and their formats."""

    codes: Array
    fmt: Format
    scales: Array | None = None
    scale_fmt: Format = E8M0

    def columns(self, first: Any, count: int) -> "Side":
        """Take some columns."""
        take = partial(lax.dynamic_slice_in_dim, start_index=first, slice_size=count, axis=1)
        scales = None if self.scales is None else take(self.scales)
        return self._replace(codes=take(self.codes), scales=scales)


# --- operands in parts ----------------------------------------------------------------------------


class Factors(NamedTuple):
    """Numbers in parts."""

    significand: Any  #: magnitude in [0, 2), fp32
    exponent: Any  #: subnormals have the smallest one, zeros a far smaller one
    sign: Any  #: 0, or -1 for negative ones


class Products(NamedTuple):
    """Factors of single products: `[steps, m, step]` of rows, `[steps, step, n]` of columns."""

    factors: Factors
    signs: Any  #: the signs of a step as bits of one number
    special: Any  #: infinity, NaN, or the sign of a finite factor


class Groups(NamedTuple):
    """Factors of groups of rows and columns."""

    #: Twice the values of a group, whole numbers in fp32, and behind them for each an eighth if it
    #: is not zero: a sum of `group` products of these is below 1/2. `[steps, groups, m, 2 group]`
    #: of rows, `[steps, groups, 2 group, n]` of columns.
    values: Any
    #: Significands of the block scales of groups in eighths, and behind them their exponents:
    #: `[steps, m, 2 groups]`, `[steps, 2 groups, n]`.
    scales: Any


def side_of(
    codes: Array, fmt: Format, scales: Array | None = None, scale_fmt: Format = E8M0
) -> Side:
    """Return an operand.

    fp16 is left as it is: its bit patterns are taken of a part at a time, without a copy of the
    whole. Slices of other floats are slow on a CPU, where XLA widens them first.
    """
    if codes.dtype != jnp.float16:
        codes = bit_patterns(codes)
    return Side(codes, fmt, None if scales is None else bit_patterns(scales), scale_fmt)


def bit_patterns(x: Array) -> Array:
    """Return bit patterns in unsigned integers of their width; they are widened where used."""
    if not jnp.issubdtype(x.dtype, jnp.integer):
        x = lax.bitcast_convert_type(x, jnp.uint16 if x.dtype.itemsize == 2 else jnp.uint8)
    return x


def has_specials(side: Side, largest: Array) -> Bool[Array, ""]:
    """Whether any element, of which the largest code is given, or block scale is not finite."""
    found = is_special(largest, side.fmt)
    if side.scales is not None:
        found |= is_special(over_rows(jnp.maximum, side.scales, side.scale_fmt), side.scale_fmt)
    return found


def over_rows(
    join: Callable[[Array, Array], Array], values: Array, fmt: Format, less: int = 0
) -> Array:
    """Return the largest or smallest code of magnitudes, less a number; values are not empty.

    Runs of rows are joined first, which is one pass at the speed of memory; XLA's own reduction is
    ten times slower.
    """
    run = min(len(values), _RUN)

    def magnitudes(first: Array) -> Array:
        rows = lax.dynamic_slice_in_dim(values, first, run)
        return without_sign(bit_patterns(rows), fmt) - jnp.asarray(less, bit_patterns(rows).dtype)

    def body(i: Array, total: Array) -> Array:
        return join(total, magnitudes(jnp.minimum(i * run, len(values) - run)))

    runs = jnp.int32(-(-len(values) // run))
    total = lax.fori_loop(jnp.int32(1), runs, body, magnitudes(jnp.int32(0)))
    found: Array = total.max() if join is jnp.maximum else total.min()
    return found


def without_sign(codes: Array, fmt: Format) -> Array:
    """Return the codes of magnitudes, in the same type."""
    mask = codes.dtype.type((1 << (fmt.bits - fmt.is_signed)) - 1)
    return jnp.bitwise_and(codes, mask)


def is_special(codes: Array, fmt: Format) -> Bool[Array, "..."]:
    """Whether codes are infinity or NaN: those beyond the largest number."""
    beyond: Array = without_sign(codes, fmt) > codes.dtype.type(fmt.max_code)
    return beyond


def _special_values(codes: Array, fmt: Format) -> Float32[Array, "..."]:
    """Return infinities and NaN; finite numbers become 1, 0 or -1."""
    magnitude = codes & ((1 << (fmt.bits - 1)) - 1)
    value = jnp.where(magnitude > 0, jnp.float32(1), jnp.float32(0))
    value = jnp.where(magnitude > fmt.max_code, jnp.float32(jnp.nan), value)
    if fmt.inf_code is not None:
        value = jnp.where(magnitude == fmt.inf_code, jnp.float32(jnp.inf), value)
    return jnp.where(codes >> (fmt.bits - 1) & 1 > 0, -value, value)


def significand_and_exponent(codes: Array, fmt: Format) -> tuple[Array, Array]:
    """Return significands as whole numbers, and exponents; subnormals have the smallest one."""
    field = codes >> fmt.mantissa_bits & ((1 << fmt.exponent_bits) - 1)
    fraction = codes & ((1 << fmt.mantissa_bits) - 1)
    significand = fraction + (jnp.minimum(field, 1) << fmt.mantissa_bits)
    return significand, jnp.maximum(field, 1) - fmt.bias


def factors(codes: Int32[Array, "..."], fmt: Format) -> Factors:
    """Take codes apart."""
    whole, exponent = significand_and_exponent(codes, fmt)
    return Factors(
        significand=whole.astype(jnp.float32) * jnp.float32(2.0**-fmt.mantissa_bits),
        exponent=jnp.where(whole == 0, NOTHING, exponent),
        sign=-(codes >> (fmt.bits - 1) & 1),
    )


def sign_bits(sign: Int32[Array, "..."], axis: int) -> Int32[Array, "..."]:
    """Return the signs along an axis, that of a step, as bits of one number."""
    shape = [1] * sign.ndim
    shape[axis] = -1
    place = jnp.arange(sign.shape[axis], dtype=jnp.int32).reshape(shape)
    return (-sign << place).sum(axis, keepdims=True, dtype=jnp.int32)


def _in_steps(values: Array, axis: int, size: int) -> Array:
    """Cut the contraction into runs of `size`, which lead; zeros fill the last one."""
    k = values.shape[axis]
    pad = [(0, 0), (0, 0)]
    pad[axis] = (0, -k % size)
    values = jnp.pad(values, pad)
    if axis == -2:
        return values.reshape(-1, size, values.shape[1])
    return values.reshape(values.shape[0], -1, size).transpose(1, 0, 2)


def products(side: Side, axis: int, rule: Rule) -> Products:
    """Take codes apart into factors of products, block scales (powers of two) included."""
    codes, fmt, scales, _ = side
    codes = _in_steps(bit_patterns(codes).astype(jnp.int32), axis, rule.step)
    parts = factors(codes, fmt)
    special = _special_values(codes, fmt)
    if scales is not None:  # a step is a block
        scales = _in_steps(scales.astype(jnp.int32), axis, 1)
        parts = parts._replace(exponent=parts.exponent + (scales - E8M0.bias))
        special = jnp.where(scales == E8M0.nan_code, jnp.float32(jnp.nan), special)
    return Products(parts, sign_bits(parts.sign, axis), special)


def groups(side: Side, axis: int, rule: Rule) -> Groups:
    """Take fp4 codes and their block scales apart into factors of groups."""
    codes, fmt, scales, scale_fmt = side
    assert scales is not None
    n_groups = rule.step // rule.group

    def in_groups(values: Array, size: int) -> Array:
        # [steps, m, groups size] or [steps, groups size, n] -> [steps, groups, ...]
        values = _in_steps(bit_patterns(values).astype(jnp.int32), axis, n_groups * size)
        if axis == -2:
            return values.reshape(len(values), n_groups, size, -1)
        return values.reshape(*values.shape[:2], n_groups, size).transpose(0, 2, 1, 3)

    codes = in_groups(codes, rule.group)
    whole, exponent = significand_and_exponent(codes, fmt)
    doubled = (whole << exponent).astype(jnp.float32)  # exponents are 0 to 2
    doubled = jnp.where(codes >> (fmt.bits - 1) & 1 > 0, -doubled, doubled)
    is_used = jnp.where(whole > 0, jnp.float32(_USED), jnp.float32(0))
    scales = jnp.repeat(scales.astype(jnp.int32), rule.block // rule.group, axis=axis)
    scales = _in_steps(scales, axis, n_groups)
    is_nan = is_special(scales, scale_fmt)
    if scale_fmt == E8M0:
        eighths, exponent = jnp.full_like(scales, 8), scales - E8M0.bias
    else:  # without its sign, which the chip ignores
        unsigned = scales & ((1 << (scale_fmt.bits - 1)) - 1)
        eighths, exponent = significand_and_exponent(unsigned, scale_fmt)
    exponent = jnp.where(is_nan, _NAN, exponent)
    return Groups(
        values=jnp.concatenate([doubled, is_used], axis=axis),
        scales=jnp.concatenate([eighths, exponent], axis=axis),
    )


# --- steps ----------------------------------------------------------------------------------------


def _decoded(bits: Array, rule: Rule) -> tuple[Array, Array, Array]:
    """Take fp32 sums apart: magnitude of the significand, exponent, and 0 or -1 for the sign."""
    magnitude = bits & MAGNITUDE
    field = magnitude >> 23
    exponent = jnp.maximum(field, 1) - 127
    exponent = jnp.where(magnitude == 0, rule.zero_exponent, exponent)
    exponent = jnp.where(field == 255, _INFINITE, exponent)
    return (magnitude & 0x7FFFFF) + (jnp.minimum(field, 1) << 23), exponent, bits >> 31


def at_most_31(shift: Array) -> Array:
    """Bound counts of bits that are not negative by what a shift may take.

    As unsigned numbers: the shift of x86 takes any count, and LLVM then leaves the bound out.
    """
    bounded: Array = jnp.minimum(shift.astype(jnp.uint32), jnp.uint32(31)).astype(jnp.int32)
    return bounded


def _packed(significand: Array, exponent: Array, sign: Array, rule: Rule) -> Array:
    """Return the fp32 number `significand * 2**(exponent - 23)`, cut to the bits of the result.

    Args:
        significand: 24 bits, the first of them 1; or 0.
        exponent: of the number.
        sign: 0, or -1 for negative ones.
        rule: how many bits are kept.
    """
    below = jnp.clip(-126 - exponent, 0, 31)
    bits = jnp.where(
        exponent < -126,
        lax.shift_right_logical(significand, below),
        significand + (exponent + 126 << 23),
    )
    bits &= -1 << 23 - rule.result_bits
    bits = jnp.where(exponent > 127, INF_BITS, bits)
    bits = jnp.where(significand == 0, 0, bits)
    # A zero is +0, also one that truncation made.
    return bits | jnp.where(bits == 0, 0, sign << 31)


def term(x: Factors, w: Factors) -> Array:
    """Return a product in units of 2**-29, which fits 32 bits; its complement if negative."""
    raised = x.significand * w.significand + jnp.float32(8)
    magnitude = lax.bitcast_convert_type(raised, jnp.int32) << 9
    signed: Array = (magnitude ^ w.sign) ^ x.sign
    return signed


def sum_of_terms(
    kept: Array, terms: Sequence[Array], exponents: Sequence[Array], lowest: Array
) -> tuple[Array, Array]:
    """Add products, cut to the unit of a step, to what is kept of the sum before.

    Args:
        kept: the sum before in units, and what complements lack.
        terms: products in units of 2**-29 of their power of two.
        exponents: of the products.
        lowest: exponent of a product that is not shifted.

    Returns:
        Magnitudes, and 0 or -1 for signs. Terms and sums of half a step fit 32 bits.
    """
    halves = [kept, jnp.zeros_like(kept)]
    for k, (one, exponent) in enumerate(zip(terms, exponents, strict=True)):
        halves[2 * k // len(terms)] += one >> at_most_31(lowest - exponent)
    first, second = halves
    total = first + second  # may leave 32 bits by one: then both halves have its sign
    sign = ((first & second) | ((first | second) & total)) >> 31
    return (total ^ sign) - sign, sign


def product_step(
    bits: Int32[Array, "m n"], x: Products, w: Products, *, rule: Rule, is_finite: Array
) -> Int32[Array, "m n"]:
    """Add the products of a step to sums."""
    magnitude, exponent, sign = _decoded(bits, rule)
    pairs = [
        (
            Factors(*(part[:, k : k + 1] for part in x.factors)),
            Factors(*(part[k : k + 1] for part in w.factors)),
        )
        for k in range(rule.step)
    ]
    exponents = [a.exponent + b.exponent for a, b in pairs]
    largest = reduce(jnp.maximum, exponents, exponent)
    kept = magnitude << rule.alignment_bits - 23 if rule.alignment_bits >= 23 else magnitude
    below = largest - exponent + max(0, 23 - rule.alignment_bits)
    kept = lax.shift_right_logical(kept, jnp.minimum(below, 31)) ^ sign
    negatives = lax.population_count(x.signs ^ w.signs) - sign
    terms = [term(*pair) for pair in pairs]
    lowest = largest + (29 - rule.alignment_bits)
    total, sign = sum_of_terms(kept + negatives, terms, exponents, lowest)
    zeros = lax.clz(total)
    leading = lax.shift_right_logical(total << jnp.minimum(zeros, 31), jnp.int32(8))
    after = _packed(leading, largest + (31 - rule.alignment_bits) - zeros, sign, rule)

    def with_specials() -> Array:
        special = product(x.special[None], w.special[None], jnp.float32)[0]
        return _with_specials(after, bits, special)

    result: Array = lax.cond(is_finite, lambda: after, with_specials)
    return result


def _with_specials(after: Array, before: Array, special: Array) -> Array:
    """Let infinities and NaN among the terms, or in the sum before, decide."""
    was_special = (before & MAGNITUDE) >= INF_BITS
    value = lax.bitcast_convert_type(jnp.where(was_special, before, 0), jnp.float32)
    special = special + value
    bits = lax.bitcast_convert_type(special, jnp.int32)
    bits = jnp.where(jnp.isnan(special), NAN_BITS, bits)
    return jnp.where(jnp.isfinite(special), after, bits)


def group_step(
    bits: Int32[Array, "m n"], x: Groups, w: Groups, *, rule: Rule, is_finite: Array
) -> Int32[Array, "m n"]:
    """Add the groups of a step to sums."""
    assert jax.config.jax_enable_x64, "fp4 products run inside jax.enable_x64(True)"  # type: ignore[attr-defined]
    sums = product(x.values, w.values, jnp.float32)  # exact: 12 bits, and 6 behind the point

    def finite() -> Array:
        return _group_sums(bits, sums, x.scales, w.scales, rule)

    def with_specials() -> Array:
        exponents = slice(rule.step // rule.group, None)
        marked = jnp.maximum(
            x.scales[:, exponents].max(1, keepdims=True),
            w.scales[exponents].max(0, keepdims=True),
        )
        special = jnp.where(marked == _NAN, jnp.float32(jnp.nan), jnp.float32(0))
        return _with_specials(finite(), bits, special)

    # Branches of their own also keep the choice of a step out of the loop over outputs, which XLA
    # does not vectorise otherwise.
    result: Array = lax.cond(is_finite, finite, with_specials)
    return result


def _group_sums(bits: Array, sums: Array, x: Array, w: Array, rule: Rule) -> Array:
    """Align groups by their scales and add them: whole numbers below 2**49, in float64."""
    magnitude, exponent, sign = _decoded(bits, rule)
    n_groups = rule.step // rule.group
    largest, terms = exponent, []
    for i, j in zip(range(n_groups), range(n_groups, 2 * n_groups), strict=True):
        whole = lax.floor(sums[i])
        scale = x[:, i : i + 1] * w[i : i + 1]
        of_scale = x[:, j : j + 1] + w[j : j + 1]
        one = jnp.where((sums[i] > whole) & (scale > 0), of_scale, NOTHING)
        largest = jnp.maximum(largest, one)
        terms.append((whole * scale.astype(jnp.float32), one))

    def aligned(value: Array, fraction_bits: int, exponent: Array) -> Array:
        power = 127 - jnp.minimum(largest - exponent, 63) << 23
        scale = lax.bitcast_convert_type(power, jnp.float32).astype(jnp.float64)
        raised = value.astype(jnp.float64) * (scale * 2.0 ** (rule.alignment_bits - fraction_bits))
        return lax.floor(jnp.abs(raised))

    total = jnp.where(sign < 0, -1.0, 1.0) * aligned(magnitude, 23, exponent)
    for value, one in terms:
        term = aligned(value, _GROUP_FRACTION_BITS, one)
        total = total + jnp.where(value < 0, -term, term)
    total_bits = lax.bitcast_convert_type(jnp.abs(total), jnp.int64)
    field, fraction = ((total_bits >> place).astype(jnp.int32) for place in (52, 29))
    significand = (fraction & 0x7FFFFF) | jnp.minimum(field, 1) << 23
    unit = largest - rule.alignment_bits
    return _packed(significand, unit + (field - 1023), -(total < 0).astype(jnp.int32), rule)
