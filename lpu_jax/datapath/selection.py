"""VXM selections: top-k, groups of columns, and arg-max.

What it computes: comparisons and selections; no value changes. What it costs: passes over vectors
and index arithmetic on short ones, all assumed. Not modelled: sorting networks.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float32, Int32

from ..arguments import Positive, check_not_empty, check_within, checked
from ..errors import LpuError
from ..predicates import divides, exceeds
from .primitive import primitive
from .vxm import reduction_cost
from .work import Call, Hardware, Unit, Work, ceil_div, largest, product, vectors


def _top_k_cost(machine: Hardware, call: Call) -> Work:
    """Cost `k` selections after one transpose (assumed).

    Each is a maximum over the vectors of a row, and one masking operation.
    """
    chip = machine.chip
    (x,) = call.operands
    rows = product(x.shape[:-1])
    k = call.params["k"]
    passes = ceil_div(x.shape[-1] * ceil_div(rows, chip.lanes), chip.vxm_stream_groups)
    transpose = rows * ceil_div(x.shape[-1], chip.lanes) * 4 / chip.sxm_vectors_per_cycle
    per_selection = passes + chip.vxm_entry_cycles + 3 * chip.alu_cycles
    limits = {"transpose": transpose + chip.sxm_transpose_cycles, "selections": k * per_selection}
    return Work(
        unit=Unit.VXM,
        busy_cycles=limits["transpose"] + limits["selections"],
        limits=limits,
        latency_cycles=chip.vxm_entry_cycles,
        result_is_last=True,
    )


def _top_k_shapes(x: Any, *, k: int) -> tuple[Any, Any]:
    shape = (*x.shape[:-1], k)
    return jax.ShapeDtypeStruct(shape, x.dtype), jax.ShapeDtypeStruct(shape, jnp.int32)


def _top_k_meaning(x: Array, *, k: int) -> tuple[Array, Array]:
    values, ids = lax.top_k(x, k)
    return values, ids.astype(jnp.int32)


_top_k = primitive("vxm_top_k", abstract=_top_k_shapes, meaning=_top_k_meaning, cost=_top_k_cost)


@checked
def top_k(
    x: Float32[Array, "*rows n"], k: Positive
) -> tuple[Float32[Array, "*rows {k}"], Int32[Array, "*rows {k}"]]:
    """Take the `k` largest of each row with their places, descending; of equal values the first.

    Fidelity: exact.
    """
    if exceeds(k, x.shape[-1]):
        raise LpuError(
            f"selection.top_k: k={k} was given for rows of {x.shape[-1]} values; it must be 1 to "
            f"{x.shape[-1]}."
        )
    return _top_k(x, k=k)  # type: ignore[no-any-return]


def small_cost(machine: Hardware, call: Call, *, operations: int) -> Work:
    """Cost index arithmetic on short vectors (assumed).

    `operations` ALU operations run on each vector of the result.
    """
    chip = machine.chip
    made = vectors(call.results[0], chip)
    limits = {
        "ALUs": made * operations / chip.vxm_alus_per_lane,
        "streams out": made / chip.vxm_stream_groups,
    }
    return Work(
        unit=Unit.VXM,
        busy_cycles=largest(*limits.values()),
        limits=limits,
        latency_cycles=chip.vxm_entry_cycles + chip.alu_cycles * operations,
    )


def _keep_groups_meaning(x: Array, groups: Array, *, n_groups: int) -> Array:
    size = x.shape[-1] // n_groups
    number = lax.broadcasted_iota(jnp.int32, (*groups.shape, n_groups), groups.ndim)
    kept = (groups[..., :, None] == number).any(-2)
    return jnp.where(jnp.repeat(kept, size, axis=-1), x, -jnp.inf)


_keep_groups = primitive(
    "vxm_keep_groups",
    abstract=lambda x, groups, *, n_groups: jax.ShapeDtypeStruct(x.shape, x.dtype),
    meaning=_keep_groups_meaning,
    cost=partial(small_cost, operations=4),
)


@checked
def keep_groups(
    x: Float32[Array, "*rows n"], groups: Int32[Array, "*rows kept"], n_groups: Positive
) -> Float32[Array, "*rows n"]:
    """Set values outside the kept groups (equal runs of the last axis) to minus infinity.

    Fidelity: exact.
    """
    if not divides(n_groups, x.shape[-1]):
        raise LpuError(
            f"selection.keep_groups: n_groups={n_groups} was given for rows of {x.shape[-1]} "
            "values; it must divide them."
        )
    check_within("selection.keep_groups", "groups", groups, 0, n_groups - 1, f"{n_groups} groups")
    return _keep_groups(x, groups, n_groups=n_groups)  # type: ignore[no-any-return]


_take_lanes = primitive(
    "vxm_take_lanes",
    abstract=lambda x, ids: jax.ShapeDtypeStruct(ids.shape, x.dtype),
    meaning=lambda x, ids: jnp.take_along_axis(x, ids, axis=-1, mode="clip"),
    cost=partial(small_cost, operations=2),
)


@checked
def take_lanes(
    x: Float32[Array, "*rows n"], ids: Int32[Array, "*rows k"]
) -> Float32[Array, "*rows k"]:
    """Select values of each row by their places.

    Raises:
        LpuError: a place that a row lacks, where `ids` are known.

    Fidelity: exact.
    """
    check_within("selection.take_lanes", "ids", ids, 0, x.shape[-1] - 1, "a row")
    return _take_lanes(x, ids)  # type: ignore[no-any-return]


def _arg_max_meaning(x: Array, first: Array, *, n_valid: int) -> tuple[Array, Array]:
    columns = first + jnp.arange(x.shape[-1], dtype=jnp.int32)
    x = jnp.where(jnp.broadcast_to(columns < n_valid, x.shape), x, -jnp.inf)
    best = jnp.argmax(x, axis=-1, keepdims=True).astype(jnp.int32)
    return jnp.take_along_axis(x, best, axis=-1), first + best


def _arg_max_shapes(x: Any, first: Any, *, n_valid: int) -> tuple[Any, Any]:
    shape = (*x.shape[:-1], 1)
    return jax.ShapeDtypeStruct(shape, x.dtype), jax.ShapeDtypeStruct(shape, jnp.int32)


def _arg_max_cost(machine: Hardware, call: Call) -> Work:
    return reduction_cost(machine, Call(operands=call.operands[:1], results=call.results))


_arg_max = primitive(
    "vxm_arg_max", abstract=_arg_max_shapes, meaning=_arg_max_meaning, cost=_arg_max_cost
)


@checked
def arg_max(
    x: Float32[Array, "m n"], first: Int32[Array, ""], n_valid: Positive
) -> tuple[Float32[Array, "m 1"], Int32[Array, "m 1"]]:
    """Find the largest value of each row and its global column; from `n_valid` on is padding.

    Args:
        x: a chip's share of the columns.
        first: global number of the share's first column.
        n_valid: number of real columns over all chips.

    Fidelity: exact; of equal values the first.
    """
    check_not_empty("selection.arg_max", "x", x)
    return _arg_max(x, first, n_valid=n_valid)  # type: ignore[no-any-return]


_take_best = primitive(
    "vxm_take_best",
    abstract=lambda values, labels: jax.ShapeDtypeStruct((values.shape[0], 1), labels.dtype),
    meaning=lambda values, labels: jnp.take_along_axis(
        labels, jnp.argmax(values, axis=-1, keepdims=True), axis=-1
    ),
    cost=lambda machine, call: reduction_cost(
        machine, Call(operands=call.operands[:1], results=call.results)
    ),
)


@checked
def take_best(values: Float32[Array, "m n"], labels: Int32[Array, "m n"]) -> Int32[Array, "m 1"]:
    """Take the label of the largest value of each row; of equal values the first.

    Fidelity: exact.
    """
    check_not_empty("selection.take_best", "values", values)
    return _take_best(values, labels)  # type: ignore[no-any-return]
