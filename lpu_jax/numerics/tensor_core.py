"""The arithmetic of tensor cores, by the rules of `tensor_core_rules`, bit for bit.

Whole matrices, in blocks of columns; `tensor_core_steps` is what one step does, and
`tensor_core_plain` a faster form for exponents that allow it. These are meanings: they run inside
`jax.enable_x64(True)` where operands are fp4 with block scales. Zeros appended to K change no bit:
a product that is zero is aligned to nothing. Not modelled: see `tensor_core_rules`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float32, Int32, Num

from ..arguments import checked, described
from ..errors import LpuError
from . import quantized
from .formats import BF16, E2M1, E4M3FN, E5M2, E8M0, FP16, Format
from .quantized import QuantizedArray
from .schemes import Scheme
from .tensor_core_plain import is_plain, plain_sums
from .tensor_core_rules import Generation, Kind, Rule, rule_of
from .tensor_core_steps import (
    INF_BITS,
    MAGNITUDE,
    NAN_BITS,
    Side,
    group_step,
    groups,
    has_specials,
    over_rows,
    product_step,
    products,
    side_of,
)

_FORMATS: dict[str, Format] = {
    "float16": FP16,
    "bfloat16": BF16,
    "float8_e4m3fn": E4M3FN,
    "float8_e5m2": E5M2,
}
#: Outputs of one turn of the loop at least, and columns at most that stay in a core's cache: of
#: single products, and of groups, which are fewer.
_TURN, _COLUMNS, _GROUP_COLUMNS = 1 << 13, 128, 512


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
    one, two = (side_of(v, _FORMATS[v.dtype.name]) for v in (x, w))
    return _sums(start, one, two, rule)


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
    rule = rule_of(generation, scaled_kind_of(x.scheme, w.scheme))
    start = _start(c, x.codes.shape[0], w.codes.shape[1])
    one, two = (
        side_of(q.codes, q.scheme.format, q.scales, q.scheme.scale_format or E8M0) for q in (x, w)
    )
    return _sums(start, one, two, rule)


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
    return jnp.where((bits & MAGNITUDE) > INF_BITS, NAN_BITS, bits)


def _sums(start: Int32[Array, "m n"], x: Side, w: Side, rule: Rule) -> Float32[Array, "m n"]:
    """Add all steps to the sums that the accumulators begin with."""
    bits = start
    if x.codes.size and w.codes.size:
        of_x, of_w = (over_rows(jnp.maximum, side.codes, side.fmt) for side in (x, w))
        is_finite = ~has_specials(x, of_x) & ~has_specials(w, of_w)
        plain = jnp.bool_(False)
        if rule.group == 1:
            plain = is_finite & is_plain(start, x, w, (of_x, of_w))
            bits = plain_sums(start, x, w, rule, plain)
        bits = _any_sums(bits, x, w, rule, is_finite, ~plain)
    return lax.bitcast_convert_type(bits, jnp.float32)


def _any_sums(
    start: Int32[Array, "m n"], x: Side, w: Side, rule: Rule, is_finite: Array, is_wanted: Array
) -> Int32[Array, "m n"]:
    """Add all steps to the sums that the accumulators begin with, or none if it is not wanted."""
    prepare: Callable[[Side, int, Rule], Any] = products if rule.group == 1 else groups
    is_finite &= jnp.all((start & MAGNITUDE) < INF_BITS)
    step = partial(product_step if rule.group == 1 else group_step, rule=rule, is_finite=is_finite)

    def of_columns(first: Any, count: int) -> Any:
        return prepare(w.columns(first, count), -2, rule)

    count = _COLUMNS if rule.group == 1 else _GROUP_COLUMNS
    return _over_columns(start, prepare(x, -1, rule), of_columns, step, count, is_wanted)


def _over_columns(
    start: Int32[Array, "m n"],
    rows: Any,
    of_columns: Callable[[Any, int], Any],
    step: Callable[[Array, Any, Any], Array],
    count: int,
    is_wanted: Array,
) -> Int32[Array, "m n"]:
    """Run all steps for blocks of columns, whose operands stay in a core's cache.

    The last block is moved back to fit, and computes some columns again, to the same bits.
    """
    m, n = start.shape
    steps = jax.tree.leaves(rows)[0].shape[0]
    count = min(n, max(count, _TURN // m))

    def block(i: Array, sums: Array) -> Array:
        first = jnp.minimum(i * count, n - count)
        columns = of_columns(first, count)

        def body(s: Array, part: Array) -> Array:
            at = partial(lax.dynamic_index_in_dim, index=s, keepdims=False)
            return step(part, jax.tree.map(at, rows), jax.tree.map(at, columns))

        part = lax.dynamic_slice_in_dim(start, first, count, axis=1)
        part = lax.fori_loop(jnp.int32(0), jnp.int32(steps), body, part)
        return lax.dynamic_update_slice_in_dim(sums, part, first, axis=1)

    turns = jnp.where(is_wanted, jnp.int32(-(-n // count)), jnp.int32(0))
    sums: Array = lax.fori_loop(jnp.int32(0), turns, block, start)
    return sums
