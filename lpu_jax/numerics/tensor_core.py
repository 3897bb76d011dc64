"""The arithmetic of tensor cores, by the rules of `tensor_core_rules`, bit for bit.

A step of K adds its products and the accumulator as whole numbers: every term is a significand
shifted to the unit of the largest exponent, and what is shifted out is lost. These are meanings, in
integers but for two exact uses of fp32:

- A product of two significands lies in [0, 4) and is a multiple of 2**-20. Added to 8 it is a float
  whose last 23 bits are that product, so that no conversion is needed (XLA clamps conversions).
- Sums of a group of fp4 products are multiples of 1/4 up to 576: one small matrix product.

Truncation towards zero of negative terms is an arithmetic shift of the one's complement, which is
one less; the count of negative terms is added back (`_Products.signs`).

Zeros appended to K change no bit: a product that is zero is aligned to nothing. Not modelled: see
`tensor_core_rules`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float32, Int32, Num

from ..arguments import checked, described
from ..errors import LpuError
from . import quantized
from .formats import BF16, E2M1, E4M3FN, E5M2, E8M0, FP16, Format
from .quantized import QuantizedArray
from .schemes import Scheme
from .tensor_core_rules import Generation, Kind, Rule, rule_of
from .tiles import product

_FORMATS: dict[str, Format] = {
    "float16": FP16,
    "bfloat16": BF16,
    "float8_e4m3fn": E4M3FN,
    "float8_e5m2": E5M2,
}
_INF_BITS, _NAN_BITS, _MAGNITUDE = 0x7F800000, 0x7FFFFFFF, 0x7FFFFFFF
#: Exponent of an infinite sum: everything added to it vanishes.
_INFINITE = 1 << 20
#: Exponent of a zero factor: below all others, so that it is aligned to nothing.
_NOTHING = -(1 << 12)
#: fp4 values are halves of whole numbers; significands of their block scales are eighths.
_GROUP_FRACTION_BITS = 2 + 6
#: Outputs of one turn of the loop at least, and columns at most that stay in a core's cache.
_TURN, _COLUMNS = 1 << 13, 128


@checked
def kind_of(x_dtype: str | np.dtype[Any], w_dtype: str | np.dtype[Any]) -> Kind:
    """Return the kind of a product of two operand types.

    Raises:
        LpuError: a pair that tensor cores do not take.
    """
    names = [d if isinstance(d, str) else d.name for d in (x_dtype, w_dtype)]
    if names[0] == names[1] and names[0] in ("float16", "bfloat16"):
        return "fp16" if names[0] == "float16" else "bf16"
    if all(name.startswith("float8_") and name in _FORMATS for name in names):
        return "fp8"
    shown = " and ".join(described(name).strip("'") for name in names)
    raise LpuError(
        f"tensor_core.matmul: operands {shown} were given; allowed are float16 or bfloat16 with "
        "itself, and float8_e4m3fn and float8_e5m2 with each other."
    )


@checked
def scaled_kind_of(x: Scheme, w: Scheme) -> Kind:
    """Return the kind of a product of two arrays with block scales.

    Raises:
        LpuError: a pair that tensor cores do not take.
    """
    formats = x.format, w.format
    blocks = {(scheme.block_rows, scheme.scale_format) for scheme in (x, w)}
    if blocks == {(16, E4M3FN)} and formats == (E2M1, E2M1):
        return "nvfp4"
    is_float = not any(fmt.is_integer or fmt.bits > 8 for fmt in formats)
    if blocks == {(32, E8M0)} and is_float:
        return "mxfp4" if formats == (E2M1, E2M1) else "mxfp8"
    raise LpuError(
        f"tensor_core.matmul: schemes {x.name} and {w.name} were given; allowed are nvfp4 with "
        "itself, and mxfp8, mxfp6 and mxfp4 with each other."
    )


@checked
def matmul(
    x: Num[Array, "m k"],
    w: Num[Array, "k n"],
    *,
    generation: Generation,
    c: Float32[Array, "m n"] | None = None,
) -> Float32[Array, "m n"]:
    """Multiply as a tensor core does: `x @ w + c`, steps of K in ascending order.

    Args:
        x: float16, bfloat16, or an 8-bit float.
        w: of the same kind.
        generation: whose rule; see `tensor_core_rules.RULES`.
        c: what the accumulators begin with; by default +0.

    Returns:
        fp32 sums. A zero is +0; NaN has the code 0x7FFFFFFF.

    Raises:
        LpuError: if the types are not allowed together, or not on the generation.

    Fidelity:
        The bits of the rule, whatever `m`, `n`, and zeros appended to `k`. A model of the chip, not
        measured on it.

    Source:
        `tensor_core_rules`.
    """
    rule = rule_of(generation, kind_of(x.dtype, w.dtype))
    start = _start(c, x.shape[0], w.shape[1])
    formats = _FORMATS[x.dtype.name], _FORMATS[w.dtype.name]
    codes = _codes(x), _codes(w)
    is_finite = jnp.isfinite(lax.bitcast_convert_type(start, jnp.float32)).all()
    for side, fmt in zip(codes, formats, strict=True):
        is_finite &= ~_is_special(side, fmt).any()

    def sums(has_specials: bool) -> Array:
        rows = _products(codes[0], formats[0], None, -1, rule)

        def of_columns(first: Any, count: int) -> Any:
            columns = lax.dynamic_slice_in_dim(codes[1], first, count, axis=1)
            return _products(columns, formats[1], None, -2, rule)

        step = partial(_product_step, rule=rule, has_specials=has_specials)
        return _over_columns(start, rows, of_columns, step)

    bits = lax.cond(is_finite, lambda: sums(False), lambda: sums(True))
    return lax.bitcast_convert_type(bits, jnp.float32)


@checked
def scaled_matmul(
    x: QuantizedArray,
    w: QuantizedArray,
    *,
    generation: Generation,
    c: Float32[Array, "m n"] | None = None,
) -> Float32[Array, "m n"]:
    """Multiply arrays with block scales as a tensor core does: `x @ w + c`.

    Args:
        x: rows `[m, k]`, with blocks along `k` (`axis=-1`).
        w: columns `[k, n]`, with blocks along `k` (`axis=-2`).
        generation: whose rule.
        c: what the accumulators begin with; by default +0.

    Returns:
        fp32 sums, as for `matmul`. The scale of a whole matrix (`nvfp4`) is left for the caller;
        the sign of a block scale is ignored, as the chip ignores it.

    Raises:
        LpuError: if the schemes are not allowed together, or not on the generation.

    Fidelity:
        As for `matmul`. fp4 with fp4 runs inside `jax.enable_x64(True)`.

    Source:
        `tensor_core_rules`.
    """
    kind = scaled_kind_of(x.scheme, w.scheme)
    rule = rule_of(generation, kind)
    is_grouped = rule.group > 1
    prepare = _groups if is_grouped else _products
    step = partial(_group_step, rule=rule) if is_grouped else partial(
        _product_step, rule=rule, has_specials=True
    )  # fmt: skip
    w_codes, w_scales = _codes(w.codes), _codes(w.scales)
    rows = prepare(_codes(x.codes), x.scheme.format, _codes(x.scales), -1, rule)

    def of_columns(first: Any, count: int) -> Any:
        codes, scales = (
            lax.dynamic_slice_in_dim(v, first, count, axis=1) for v in (w_codes, w_scales)
        )
        return prepare(codes, w.scheme.format, scales, -2, rule)

    start = _start(c, x.codes.shape[0], w.codes.shape[1])
    bits = _over_columns(start, rows, of_columns, step)
    return lax.bitcast_convert_type(bits, jnp.float32)


def check_scaled(x: QuantizedArray, w: QuantizedArray) -> None:
    """Raise unless blocks of both run along the contraction.

    Raises:
        LpuError: with the axes that were given.
    """
    for q in (x, w):
        quantized.check_operand(q)
    if (x.axis, w.axis) != (-1, -2):
        raise LpuError(
            f"tensor_core.matmul: blocks along axes {x.axis} of x and {w.axis} of w were given; "
            "they must run along -1 and -2, the contraction."
        )


# --- loops ----------------------------------------------------------------------------------------


def _start(c: Array | None, m: int, n: int) -> Int32[Array, "m n"]:
    if c is None:
        return jnp.zeros((m, n), jnp.int32)
    bits = lax.bitcast_convert_type(c, jnp.int32)
    return jnp.where((bits & _MAGNITUDE) > _INF_BITS, _NAN_BITS, bits)


def _over_columns(
    start: Int32[Array, "m n"],
    rows: Any,
    of_columns: Callable[[Any, int], Any],
    step: Callable[[Array, Any, Any], Array],
) -> Int32[Array, "m n"]:
    """Run all steps for blocks of columns, whose operands stay in a core's cache.

    The last block is moved back to fit, and computes some columns again, to the same bits.
    """
    m, n = start.shape
    steps = jax.tree.leaves(rows)[0].shape[0]
    if not m or not n or not steps:
        return start
    count = min(n, max(_COLUMNS, _TURN // m))

    def block(i: Array, sums: Array) -> Array:
        first = jnp.minimum(i * count, n - count)
        columns = of_columns(first, count)

        def body(s: Array, part: Array) -> Array:
            at = partial(lax.dynamic_index_in_dim, index=s, keepdims=False)
            return step(part, jax.tree.map(at, rows), jax.tree.map(at, columns))

        part = lax.dynamic_slice_in_dim(start, first, count, axis=1)
        part = lax.fori_loop(0, steps, body, part)
        return lax.dynamic_update_slice_in_dim(sums, part, first, axis=1)

    return lax.fori_loop(0, -(-n // count), block, start)


# --- operands in parts ----------------------------------------------------------------------------


class _Products(NamedTuple):
    """Factors of single products: `[steps, m, step]` of rows, `[steps, step, n]` of columns."""

    significand: Any  #: magnitude in [0, 2), fp32
    exponent: Any
    sign: Any  #: 0, or -1 for negative ones
    signs: Any  #: the signs of a step as bits of one number
    special: Any  #: infinity, NaN, or the sign of a finite factor


class _Groups(NamedTuple):
    """Factors of groups: `[steps, groups, m, group]` of rows, `[steps, groups, group, n]`."""

    doubled: Any  #: twice the values, whole numbers in fp32
    is_used: Any  #: 1 where a value is not zero, fp32
    scale: Any  #: significand of the block scale in eighths; `[steps, groups, m, 1]`
    exponent: Any  #: of the block scale
    is_nan: Any  #: of the block scale


def _codes(x: Array) -> Array:
    """Return bit patterns as int32."""
    if not jnp.issubdtype(x.dtype, jnp.integer):
        x = lax.bitcast_convert_type(x, jnp.uint16 if x.dtype.itemsize == 2 else jnp.uint8)
    return x.astype(jnp.int32)


def _is_special(codes: Array, fmt: Format) -> Bool[Array, "..."]:
    """Whether codes are infinity or NaN: those beyond the largest number."""
    return (codes & ((1 << (fmt.bits - 1)) - 1)) > fmt.max_code


def _special_values(codes: Array, fmt: Format) -> Float32[Array, "..."]:
    """Return infinities and NaN; finite numbers become 1, 0 or -1."""
    magnitude = codes & ((1 << (fmt.bits - 1)) - 1)
    value = jnp.where(magnitude > 0, jnp.float32(1), jnp.float32(0))
    value = jnp.where(magnitude > fmt.max_code, jnp.float32(jnp.nan), value)
    if fmt.inf_code is not None:
        value = jnp.where(magnitude == fmt.inf_code, jnp.float32(jnp.inf), value)
    return jnp.where(codes >> (fmt.bits - 1) & 1 > 0, -value, value)


def _significand_and_exponent(codes: Array, fmt: Format) -> tuple[Array, Array]:
    """Return significands as whole numbers, and exponents; subnormals have the smallest one."""
    field = codes >> fmt.mantissa_bits & ((1 << fmt.exponent_bits) - 1)
    fraction = codes & ((1 << fmt.mantissa_bits) - 1)
    significand = fraction + (jnp.minimum(field, 1) << fmt.mantissa_bits)
    return significand, jnp.maximum(field, 1) - fmt.bias


def _in_steps(values: Array, axis: int, size: int) -> Array:
    """Cut the contraction into runs of `size`, which lead; zeros fill the last one."""
    k = values.shape[axis]
    pad = [(0, 0), (0, 0)]
    pad[axis] = (0, -k % size)
    values = jnp.pad(values, pad)
    if axis == -2:
        return values.reshape(-1, size, values.shape[1])
    return values.reshape(values.shape[0], -1, size).transpose(1, 0, 2)


def _products(codes: Array, fmt: Format, scales: Array | None, axis: int, rule: Rule) -> _Products:
    """Take codes apart into factors of products, block scales (powers of two) included."""
    codes = _in_steps(codes, axis, rule.step)
    whole, exponent = _significand_and_exponent(codes, fmt)
    exponent = jnp.where(whole == 0, _NOTHING, exponent)
    special = _special_values(codes, fmt)
    if scales is not None:  # a step is a block
        scales = _in_steps(scales, axis, 1)
        exponent = exponent + (scales - E8M0.bias)
        special = jnp.where(scales == E8M0.nan_code, jnp.float32(jnp.nan), special)
    sign = -(codes >> (fmt.bits - 1) & 1)
    place = jnp.expand_dims(jnp.arange(rule.step, dtype=jnp.int32), -3 - axis)
    return _Products(
        significand=whole.astype(jnp.float32) * jnp.float32(2.0**-fmt.mantissa_bits),
        exponent=exponent,
        sign=sign,
        signs=(-sign << place).sum(axis, keepdims=True, dtype=jnp.int32),
        special=special,
    )


def _groups(codes: Array, fmt: Format, scales: Array, axis: int, rule: Rule) -> _Groups:
    """Take fp4 codes and their block scales apart into factors of groups."""
    groups = rule.step // rule.group

    def in_groups(values: Array, size: int) -> Array:
        # [steps, m, groups size] or [steps, groups size, n] -> [steps, groups, ...]
        values = _in_steps(values, axis, groups * size)
        if axis == -2:
            return values.reshape(len(values), groups, size, -1)
        return values.reshape(*values.shape[:2], groups, size).transpose(0, 2, 1, 3)

    whole, exponent = _significand_and_exponent(in_groups(codes, rule.group), fmt)
    doubled = whole << exponent  # of a whole number of halves; exponents are 0 to 2
    is_negative = in_groups(codes, rule.group) >> (fmt.bits - 1) & 1 > 0
    scales = in_groups(jnp.repeat(scales, rule.block // rule.group, axis=axis), 1)
    if rule.block == 32:
        eighths, scale_exponent = jnp.full_like(scales, 8), scales - E8M0.bias
        is_nan = scales == E8M0.nan_code
    else:
        scales &= _MAGNITUDE_E4M3
        eighths, scale_exponent = _significand_and_exponent(scales, E4M3FN)
        is_nan = scales == E4M3FN.nan_code
    return _Groups(
        doubled=jnp.where(is_negative, -doubled, doubled).astype(jnp.float32),
        is_used=(doubled > 0).astype(jnp.float32),
        scale=eighths,
        exponent=scale_exponent,
        is_nan=is_nan,
    )


_MAGNITUDE_E4M3 = 0x7F


# --- steps ----------------------------------------------------------------------------------------


def _decoded(bits: Array, rule: Rule) -> tuple[Array, Array, Array]:
    """Take fp32 sums apart: magnitude of the significand, exponent, and 0 or -1 for the sign."""
    magnitude = bits & _MAGNITUDE
    field = magnitude >> 23
    exponent = jnp.maximum(field, 1) - 127
    exponent = jnp.where(magnitude == 0, rule.zero_exponent, exponent)
    exponent = jnp.where(field == 255, _INFINITE, exponent)
    return (magnitude & 0x7FFFFF) + (jnp.minimum(field, 1) << 23), exponent, bits >> 31


def _truncated(magnitude: Array, sign: Array, unit: Array, rule: Rule) -> Array:
    """Return the fp32 number next to a sum towards zero: `magnitude * 2**unit` with a sign."""
    width = 8 * magnitude.dtype.itemsize
    zeros = lax.clz(magnitude)
    leading = magnitude << jnp.minimum(zeros, width - 1)
    significand = lax.shift_right_logical(leading, jnp.full_like(leading, width - 24))
    significand = significand.astype(jnp.int32)
    exponent = unit + (width - 1) - zeros.astype(jnp.int32)
    below = jnp.clip(-126 - exponent, 0, 31)
    bits = jnp.where(
        exponent < -126,
        lax.shift_right_logical(significand, below),
        significand + (exponent + 126 << 23),
    )
    bits &= -1 << 23 - rule.result_bits
    bits = jnp.where(exponent > 127, _INF_BITS, bits)
    bits = jnp.where(magnitude == 0, 0, bits)
    # A zero is +0, also one that truncation made.
    return bits | jnp.where(bits == 0, 0, sign << 31)


def _product_step(
    bits: Int32[Array, "m n"], x: _Products, w: _Products, *, rule: Rule, has_specials: bool
) -> Int32[Array, "m n"]:
    """Add the products of a step to sums; terms and sums of half a step fit 32 bits."""
    magnitude, exponent, sign = _decoded(bits, rule)
    exponents = [x.exponent[:, k : k + 1] + w.exponent[k : k + 1] for k in range(rule.step)]
    largest = exponent
    for one in exponents:
        largest = jnp.maximum(largest, one)
    kept = magnitude << rule.alignment_bits - 23 if rule.alignment_bits >= 23 else magnitude
    below = largest - exponent + max(0, 23 - rule.alignment_bits)
    kept = lax.shift_right_logical(kept, jnp.minimum(below, 31))
    negatives = lax.population_count(x.signs ^ w.signs) - sign
    halves = [(kept ^ sign) + negatives, jnp.zeros_like(bits)]
    lowest = largest + (29 - rule.alignment_bits)  # a product of 1 is 2**29
    for k in range(rule.step):
        raised = x.significand[:, k : k + 1] * w.significand[k : k + 1] + jnp.float32(8)
        term = lax.bitcast_convert_type(raised, jnp.int32) << 9
        term = (term ^ w.sign[k : k + 1]) ^ x.sign[:, k : k + 1]
        halves[2 * k // rule.step] += term >> jnp.minimum(lowest - exponents[k], 31)
    one, two = halves
    total = one + two  # may leave 32 bits by one: then both halves have its sign
    sign = ((one & two) | ((one | two) & total)) >> 31
    after = _truncated((total ^ sign) - sign, sign, largest - rule.alignment_bits, rule)
    if not has_specials:
        return after
    special = product(x.special[None], w.special[None], jnp.float32)[0]
    return _with_specials(after, bits, special)


def _with_specials(after: Array, before: Array, special: Array) -> Array:
    """Let infinities and NaN among the terms, or in the sum before, decide."""
    is_special = (before & _MAGNITUDE) >= _INF_BITS
    value = lax.bitcast_convert_type(jnp.where(is_special, before, 0), jnp.float32)
    special = special + value
    bits = lax.bitcast_convert_type(special, jnp.int32)
    bits = jnp.where(jnp.isnan(special), _NAN_BITS, bits)
    return jnp.where(jnp.isfinite(special), after, bits)


def _group_step(
    bits: Int32[Array, "m n"], x: _Groups, w: _Groups, *, rule: Rule
) -> Int32[Array, "m n"]:
    """Add the groups of a step to sums, in 64-bit integers."""
    assert jax.config.jax_enable_x64, "fp4 products run inside jax.enable_x64(True)"  # type: ignore[attr-defined]
    magnitude, exponent, sign = _decoded(bits, rule)
    quarters = product(x.doubled, w.doubled, jnp.float32).astype(jnp.int32)
    is_used = (product(x.is_used, w.is_used, jnp.float32) > 0) & (x.scale * w.scale > 0)
    exponents = jnp.where(is_used, x.exponent + w.exponent, _NOTHING)
    largest = jnp.maximum(exponent, exponents.max(0))

    def aligned(value: Array, fraction_bits: int, exponent: Array) -> Array:
        raised = jnp.abs(value).astype(jnp.int64) << rule.alignment_bits - fraction_bits
        return raised >> jnp.minimum(largest - exponent, 63).astype(jnp.int64)

    total = jnp.where(sign < 0, -1, 1) * aligned(magnitude, 23, exponent)
    for group in range(exponents.shape[0]):
        value = quarters[group] * (x.scale[group] * w.scale[group])
        term = aligned(value, _GROUP_FRACTION_BITS, exponents[group])
        total = total + jnp.where(value < 0, -term, term)
    sign = (total >> 63).astype(jnp.int32)
    after = _truncated(jnp.abs(total), sign, largest - rule.alignment_bits, rule)
    is_nan = (x.is_nan | w.is_nan).any(0)
    return _with_specials(after, bits, jnp.where(is_nan, jnp.float32(jnp.nan), jnp.float32(0)))
