"""VXM, the vector unit: fp32 arithmetic, one rounding per operation, sums in a stated order.

What it computes: element-wise operations from `numerics.elementary`, reductions along lanes,
comparisons and selections. What it costs: element-wise operations are chained through the 16 ALUs
of a lane; reductions pay lane rotations. Not modelled: 16-bit ALU modes, and the placement of an
operation on one of the 16 ALUs.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float8e4m3fn, Float16, Float32, Int8, Int32

from ..arguments import check_spread, checked, described
from ..errors import LpuError
from ..numerics import elementary, fused, rounding
from ..predicates import may_equal
from .alu import ALU
from .primitive import primitive
from .work import (
    Call,
    Hardware,
    Quantity,
    Unit,
    Work,
    ceil,
    ceil_div,
    largest,
    product,
    smallest,
    vectors,
)

Scalar = float | int | np.number
#: An operand of an operation that takes numbers too.
Operand = Float32[Array, "..."] | Scalar

_LARGEST = float(np.finfo(np.float32).max)


def _element_wise(
    name: str,
    meaning: Callable[..., Array],
    dtype: Any = jnp.float32,
    alu: str | None = None,
    *,
    needs_x64: bool = False,
) -> Callable[..., Array]:
    """Make an element-wise primitive of equal shapes; `alu` is its row in the ALU table."""
    row = ALU[alu or name]
    return primitive(
        f"vxm_{name}",
        abstract=lambda *xs, **params: jax.ShapeDtypeStruct(xs[0].shape, dtype),
        meaning=meaning,
        chain=lambda params: row,
        needs_x64=needs_x64,
    )


def _spread(name: str, *operands: Array | Scalar) -> list[Array]:
    """Broadcast operands of equal rank, and numbers, to one shape.

    Raises:
        LpuError: no operand is an array, their ranks or lengths do not agree, or fp32 has no such
            number.
    """
    shapes = [operand.shape for operand in operands if not isinstance(operand, Scalar)]
    if not shapes:
        raise LpuError(
            f"vxm.{name}: the numbers {', '.join(map(described, operands))} were given; at least "
            "one operand must be an array."
        )
    check_spread(f"vxm.{name}", shapes)
    shape = shapes[0]
    if any(other != shape for other in shapes):
        shape = tuple(
            next((size for size in sizes if not (isinstance(size, int) and size == 1)), 1)
            for sizes in zip(*shapes, strict=True)
        )
    return [
        jnp.broadcast_to(jnp.asarray(_constant(name, operand), jnp.float32), shape)
        if isinstance(operand, Scalar)
        else operand
        if operand.shape == shape
        else jnp.broadcast_to(operand, shape)
        for operand in operands
    ]


def _constant(name: str, value: Any) -> Scalar:
    """Return a number that fp32 has: a fraction may be rounded, a whole number must not be.

    Raises:
        LpuError: the number is whole and would be rounded, or is too large.
    """
    if isinstance(value, int | np.integer):
        is_held = abs(int(value)) <= _LARGEST and int(np.float32(value)) == value
    else:
        is_held = not math.isfinite(value) or abs(value) <= _LARGEST
    if not is_held:
        raise LpuError(
            f"vxm.{name}: the number {described(value)} was given; it must be at most "
            f"{_LARGEST:.8g} in magnitude and, if whole, one that fp32 holds exactly."
        )
    number: Scalar = value
    return number


_add = _element_wise("add", elementary.add)
_sub = _element_wise("sub", elementary.sub)
_mul = _element_wise("mul", elementary.mul)
_div = _element_wise("div", elementary.div)
_fma = _element_wise("fma", fused.fma, needs_x64=True)
_max = _element_wise("max", elementary.maximum)
_min = _element_wise("min", elementary.minimum)
_abs = _element_wise("abs", jnp.abs, alu="max")
_select = _element_wise("select", lambda mask, a, b: jnp.where(mask, a, b))
_less_equal = _element_wise("compare", elementary.less_equal, jnp.bool_)
_sqrt = _element_wise("sqrt", elementary.sqrt)
_reciprocal = _element_wise("reciprocal", elementary.reciprocal)
_rsqrt = _element_wise("rsqrt", elementary.rsqrt)
_exp = _element_wise("exp", elementary.exp)
_log = _element_wise("log", elementary.log)
_tanh = _element_wise("tanh", elementary.tanh)
_sigmoid = _element_wise("sigmoid", elementary.sigmoid)
_silu = _element_wise("silu", elementary.silu)
_gelu = _element_wise("gelu", elementary.gelu)
_gelu_tanh = _element_wise("gelu_tanh", elementary.gelu_tanh)
_to_fp16 = _element_wise("to_fp16", rounding.to_fp16, jnp.float16, alu="convert")
_to_fp8 = _element_wise("to_fp8", rounding.to_e4m3fn, jnp.float8_e4m3fn, alu="convert")
_to_fp32 = _element_wise("to_fp32", lambda x: x.astype(jnp.float32), alu="convert")
_to_int8 = _element_wise(
    "to_int8",
    lambda x: jnp.where(x == x, jnp.clip(jnp.round(x), -127.0, 127.0), 0.0).astype(jnp.int8),
    jnp.int8,
    alu="convert",
)


@checked
def add(x: Operand, y: Operand) -> Float32[Array, "..."]:
    """Add, rounded to fp32.

    Operands have equal rank (size-1 dimensions are spread) or are numbers. Fidelity: exact.
    """
    return _add(*_spread("add", x, y))


@checked
def sub(x: Operand, y: Operand) -> Float32[Array, "..."]:
    """Subtract, rounded to fp32. Fidelity: exact."""
    return _sub(*_spread("sub", x, y))


@checked
def mul(x: Operand, y: Operand) -> Float32[Array, "..."]:
    """Multiply, rounded to fp32 and never contracted into a later addition. Fidelity: exact."""
    return _mul(*_spread("mul", x, y))


@checked
def div(x: Operand, y: Operand) -> Float32[Array, "..."]:
    """Divide, rounded to fp32. Fidelity: exact."""
    return _div(*_spread("div", x, y))


@checked
def fma(x: Operand, y: Operand, z: Operand) -> Float32[Array, "..."]:
    """Multiply and add, `x * y + z`, rounded once: nothing else fuses. Fidelity: exact."""
    return _fma(*_spread("fma", x, y, z))


@checked
def maximum(x: Operand, y: Operand) -> Float32[Array, "..."]:
    """Take the larger, element by element; NaN wins. Fidelity: exact."""
    return _max(*_spread("maximum", x, y))


@checked
def minimum(x: Operand, y: Operand) -> Float32[Array, "..."]:
    """Take the smaller, element by element; NaN wins. Fidelity: exact."""
    return _min(*_spread("minimum", x, y))


@checked
def absolute(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Drop the sign; a subnormal stays one. Fidelity: exact."""
    return _abs(x)


@checked
def select(mask: Bool[Array, "..."], x: Operand, y: Operand) -> Float32[Array, "..."]:
    """Take `x` where `mask` holds, else `y`. Fidelity: exact."""
    return _select(*_spread("select", mask, x, y))


@checked
def less_equal(x: Operand, y: Operand) -> Bool[Array, "..."]:
    """Compare, element by element. Fidelity: exact."""
    return _less_equal(*_spread("less_equal", x, y))


@checked
def sqrt(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Square root, rounded to fp32. Fidelity: exact."""
    return _sqrt(x)


@checked
def reciprocal(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """`1 / x`, rounded to fp32. Fidelity: exact."""
    return _reciprocal(x)


@checked
def rsqrt(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Reciprocal square root. Fidelity: approximate, see `numerics.elementary.rsqrt`."""
    return _rsqrt(x)


@checked
def exp(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Exponential. Fidelity: approximate, see `numerics.elementary.exp`."""
    return _exp(x)


@checked
def log(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Natural logarithm. Fidelity: approximate, see `numerics.elementary.log`."""
    return _log(x)


@checked
def tanh(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Hyperbolic tangent. Fidelity: approximate, see `numerics.elementary.tanh`."""
    return _tanh(x)


@checked
def sigmoid(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Logistic function. Fidelity: approximate, see `numerics.elementary.sigmoid`."""
    return _sigmoid(x)


@checked
def silu(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """`x * sigmoid(x)`. Fidelity: approximate, see `numerics.elementary.silu`."""
    return _silu(x)


@checked
def gelu(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """`x * Phi(x)`, exact-erf form. Fidelity: approximate, see `numerics.elementary.gelu`."""
    return _gelu(x)


@checked
def gelu_tanh(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """GELU in tanh form. Fidelity: approximate, see `numerics.elementary.gelu_tanh`."""
    return _gelu_tanh(x)


@checked
def to_fp16(x: Float32[Array, "..."]) -> Float16[Array, "..."]:
    """Round to float16, RNE, overflow to infinity. Fidelity: exact."""
    return _to_fp16(x)


@checked
def to_fp8(x: Float32[Array, "..."]) -> Float8e4m3fn[Array, "..."]:
    """Round to float8_e4m3fn, RNE, saturating at +-448. Fidelity: exact."""
    return _to_fp8(x)


@checked
def to_fp32(
    x: Float[Array, "..."] | Int8[Array, "..."] | Int32[Array, "..."],
) -> Float32[Array, "..."]:
    """Widen float16 or int8, or convert int32 with one rounding. Fidelity: exact."""
    return _to_fp32(x)


@checked
def to_int8(x: Float32[Array, "..."]) -> Int8[Array, "..."]:
    """Round to the nearest integer (ties to even), saturating at +-127; NaN is 0. Exact."""
    return _to_int8(x)


# --- reductions along lanes -----------------------------------------------------------------------


def lane_fold_cycles(machine: Hardware, rows: Quantity) -> Quantity:
    """Fold 320 lanes to one for each row: by rotations, or by a transpose and additions.

    Source: `9 * (9 + ceil(rows / 2) - 1)` for nine rotate-and-add steps over two hemispheres; a
    transpose moves fp32 vectors (4 byte-vectors each) through the SXM, then 320 vectors of `rows`
    lanes are added.
    """
    chip = machine.chip
    steps = math.ceil(math.log2(chip.lanes))
    rotations = steps * (chip.lane_rotate_cycles + ceil(rows / 2) - 1)
    transpose = rows * 4 / chip.sxm_vectors_per_cycle + chip.sxm_transpose_cycles
    additions = (chip.lanes - 1) * ceil_div(rows, chip.lanes) / chip.vxm_alus_per_lane
    across = transpose + additions + chip.vxm_entry_cycles + chip.alu_cycles * steps
    return smallest(rotations, across)


def reduction_cost(machine: Hardware, call: Call) -> Work:
    """Cost a reduction of the last axis: add the vectors of a row, then fold its lanes."""
    chip = machine.chip
    (x,) = call.operands
    rows = product(x.shape[:-1])
    per_row = ceil_div(x.shape[-1], chip.lanes)
    across_vectors = {
        "ALUs": rows * (per_row - 1) / chip.vxm_alus_per_lane,
        "streams in": rows * per_row / chip.vxm_stream_groups,
    }
    fold = lane_fold_cycles(machine, rows)
    return Work(
        unit=Unit.VXM,
        busy_cycles=largest(*across_vectors.values()) + fold,
        limits={**across_vectors, "lane fold": fold},
        latency_cycles=chip.vxm_entry_cycles + chip.alu_cycles,
        result_is_last=True,
    )


def _reduced(x: Any) -> Any:
    return jax.ShapeDtypeStruct((*x.shape[:-1], 1), x.dtype)


_sum_lanes = primitive(
    "vxm_sum_lanes",
    abstract=_reduced,
    meaning=lambda x: jnp.expand_dims(elementary.sum_lanes(x), -1),
    cost=reduction_cost,
)
_max_lanes = primitive(
    "vxm_max_lanes",
    abstract=_reduced,
    meaning=lambda x: jnp.expand_dims(elementary.max_lanes(x), -1),
    cost=reduction_cost,
)


@checked
def sum_lanes(x: Float32[Array, "*rows n"]) -> Float32[Array, "*rows 1"]:
    """Sum the last axis: 320-lane vectors in ascending order, then lanes by halves.

    Fidelity: order-dependent, the order is fixed; appended zeros change no bit.
    """
    return _sum_lanes(x)  # type: ignore[no-any-return]


@checked
def max_lanes(x: Float32[Array, "*rows n"]) -> Float32[Array, "*rows 1"]:
    """Take the largest of the last axis. Fidelity: exact."""
    return _max_lanes(x)  # type: ignore[no-any-return]


def _sum_leading_cost(machine: Hardware, call: Call) -> Work:
    chip = machine.chip
    (x,) = call.operands
    total = vectors(x, chip)
    limits = {
        "ALUs": total / chip.vxm_alus_per_lane,
        "streams in": total / chip.vxm_stream_groups,
    }
    return Work(
        unit=Unit.VXM,
        busy_cycles=largest(*limits.values()),
        limits=limits,
        latency_cycles=chip.vxm_entry_cycles + chip.alu_cycles * x.shape[0],
    )


_sum_leading = primitive(
    "vxm_sum_leading",
    abstract=lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype),
    meaning=elementary.sum_leading,
    cost=_sum_leading_cost,
)


@checked
def sum_leading(x: Float32[Array, "n ..."]) -> Float32[Array, "..."]:
    """Sum the leading axis in ascending order, starting from +0.

    Fidelity: order-dependent, the order is fixed; zeros anywhere in the list change no bit.
    """
    return _sum_leading(x)  # type: ignore[no-any-return]


def _weighted_sum_cost(machine: Hardware, call: Call) -> Work:
    """Cost a multiplication and an addition of every value, as they come in."""
    chip = machine.chip
    x, weights = call.operands
    limits = {
        "ALUs": 2 * vectors(x, chip) / chip.vxm_alus_per_lane,
        "streams in": (vectors(x, chip) + vectors(weights, chip)) / chip.vxm_stream_groups,
    }
    return Work(
        unit=Unit.VXM,
        busy_cycles=largest(*limits.values()),
        limits=limits,
        # What came in before the last part has been added by then.
        latency_cycles=chip.vxm_entry_cycles + 2 * chip.alu_cycles,
        result_is_last=True,
    )


_weighted_sum = primitive(
    "vxm_weighted_sum",
    abstract=lambda x, weights: jax.ShapeDtypeStruct(x.shape[1:], x.dtype),
    meaning=lambda x, weights: elementary.sum_leading(
        elementary.mul(x, jnp.broadcast_to(weights, x.shape))
    ),
    cost=_weighted_sum_cost,
)


@checked
def weighted_sum(
    x: Float32[Array, "n ..."], weights: Float32[Array, "n ..."]
) -> Float32[Array, "..."]:
    """Multiply each entry of the leading axis by its weight, and add them in ascending order.

    Args:
        x: the entries.
        weights: as many dimensions, each as long or 1.

    Raises:
        LpuError: shapes that do not fit.

    Fidelity:
        Order-dependent, the order is fixed: one rounding of each product, then fp32 additions from
        +0; zeros anywhere in the list change no bit.
    """
    fits = len(weights.shape) == len(x.shape) and all(
        may_equal(given, length) or may_equal(given, 1)
        for given, length in zip(weights.shape, x.shape, strict=True)
    )
    if not fits:
        raise LpuError(
            f"vxm.weighted_sum: weights {described(weights)} were given for x {described(x)}; each "
            "length must be that of x or 1."
        )
    return _weighted_sum(x, weights)  # type: ignore[no-any-return]


_max_leading = primitive(
    "vxm_max_leading",
    abstract=lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype),
    meaning=lambda x: elementary.max_lanes(x, axis=0),
    cost=_sum_leading_cost,
)


@checked
def max_leading(x: Float32[Array, "n ..."]) -> Float32[Array, "..."]:
    """Take the largest along the leading axis; NaN wins. Fidelity: exact."""
    return _max_leading(x)  # type: ignore[no-any-return]


@checked
def softmax(x: Float32[Array, "*rows n"]) -> Float32[Array, "*rows n"]:
    """Softmax of the last axis: `e / sum(e)` with `e = exp(x - max(x))`.

    The sum is that of `sum_lanes`, the quotient a division. A row with NaN or inf, and a row of
    -inf only, is NaN; a value of -inf beside others gives 0, and appended ones change no bit.

    Fidelity:
        Approximate, order-dependent: composed of operations that are each rounded to fp32.
    """
    weights = exp(sub(x, max_lanes(x)))
    return div(weights, sum_lanes(weights))
