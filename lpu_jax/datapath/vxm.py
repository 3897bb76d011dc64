"""VXM, the vector unit: fp32 arithmetic, one rounding per operation, sums in a stated order.

What it computes: element-wise operations from `numerics.elementary`, reductions along lanes,
comparisons and selections. What it costs: element-wise operations are chained through the 16 ALUs
of a lane; reductions pay lane rotations. Not modelled: 16-bit ALU modes, and the placement of an
operation on one of the 16 ALUs.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Float16, Float32, Int8, Int32

from ..numerics import elementary, rounding
from .primitive import AluChain, primitive
from .work import Machine, Quantity, Request, Unit, Work, ceil, ceil_div, largest, product, vectors

Scalar = float | int


def _element_wise(
    name: str, meaning: Callable[..., Array], dtype: Any = jnp.float32, alu: str | None = None
) -> Callable[..., Array]:
    """Make an element-wise primitive of equal shapes; `alu` is its row in the ALU table."""
    count = elementary.ALU_OPERATIONS[alu or name]
    row = AluChain(
        operations=count.operations,
        depth=count.depth,
        large=count.operations if count.large else 0,
    )
    return primitive(
        f"vxm_{name}",
        abstract=lambda *xs, **params: jax.ShapeDtypeStruct(xs[0].shape, dtype),
        meaning=meaning,
        chain=lambda params: row,
    )


def _spread(*operands: Array | Scalar) -> list[Array]:
    """Broadcast operands of equal rank, and Python numbers, to one shape."""
    arrays = [operand for operand in operands if not isinstance(operand, Scalar)]
    shape = tuple(
        next((size for size in sizes if not (isinstance(size, int) and size == 1)), 1)
        for sizes in zip(*(array.shape for array in arrays), strict=True)
    )
    return [
        jnp.broadcast_to(jnp.asarray(operand, arrays[0].dtype), shape)
        if isinstance(operand, Scalar)
        else operand
        if operand.shape == shape
        else jnp.broadcast_to(operand, shape)
        for operand in operands
    ]


_add = _element_wise("add", elementary.add)
_sub = _element_wise("sub", elementary.sub)
_mul = _element_wise("mul", elementary.mul)
_div = _element_wise("div", elementary.div)
_max = _element_wise("max", jnp.maximum)
_abs = _element_wise("abs", jnp.abs, alu="max")
_select = _element_wise("select", lambda mask, a, b: jnp.where(mask, a, b))
_less_equal = _element_wise("compare", lambda a, b: a <= b, jnp.bool_)
_exp = _element_wise("exp", elementary.exp)
_rsqrt = _element_wise("rsqrt", elementary.rsqrt)
_sigmoid = _element_wise("sigmoid", elementary.sigmoid)
_silu = _element_wise("silu", elementary.silu)
_to_fp16 = _element_wise("to_fp16", rounding.to_fp16, jnp.float16, alu="convert")
_to_fp32 = _element_wise("to_fp32", lambda x: x.astype(jnp.float32), jnp.float32, alu="convert")
_to_int8 = _element_wise(
    "to_int8",
    lambda x: jnp.clip(jnp.round(x), -127.0, 127.0).astype(jnp.int8),
    jnp.int8,
    alu="convert",
)


def add(x: Array | Scalar, y: Array | Scalar) -> Float32[Array, "..."]:
    """Add, rounded to fp32.

    Operands have equal rank (size-1 dimensions are spread) or are numbers. Fidelity: exact.
    """
    return _add(*_spread(x, y))


def sub(x: Array | Scalar, y: Array | Scalar) -> Float32[Array, "..."]:
    """Subtract, rounded to fp32. Fidelity: exact."""
    return _sub(*_spread(x, y))


def mul(x: Array | Scalar, y: Array | Scalar) -> Float32[Array, "..."]:
    """Multiply, rounded to fp32 and never contracted into a later addition. Fidelity: exact."""
    return _mul(*_spread(x, y))


def div(x: Array | Scalar, y: Array | Scalar) -> Float32[Array, "..."]:
    """Divide, correctly rounded on CPU. Fidelity: exact on CPU; other backends are not proven."""
    return _div(*_spread(x, y))


def maximum(x: Array | Scalar, y: Array | Scalar) -> Float32[Array, "..."]:
    """Take the larger, element by element. Fidelity: exact."""
    return _max(*_spread(x, y))


def absolute(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Drop the sign. Fidelity: exact."""
    return _abs(x)


def select(mask: Bool[Array, "..."], x: Array | Scalar, y: Array | Scalar) -> Float32[Array, "..."]:
    """Take `x` where `mask` holds, else `y`. Fidelity: exact."""
    x, y = _spread(x, y) if not (isinstance(x, Scalar) or isinstance(y, Scalar)) else (x, y)
    like = next(operand for operand in (x, y) if not isinstance(operand, Scalar))
    x, y = (
        jnp.broadcast_to(jnp.asarray(operand, like.dtype), like.shape)
        if isinstance(operand, Scalar)
        else operand
        for operand in (x, y)
    )
    if mask.shape != x.shape:
        mask = jnp.broadcast_to(mask, x.shape)
    return _select(mask, x, y)


def less_equal(x: Array | Scalar, y: Array | Scalar) -> Bool[Array, "..."]:
    """Compare, element by element. Fidelity: exact."""
    return _less_equal(*_spread(x, y))


def exp(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Exponential by the stated polynomial.

    Fidelity: approximate, see `numerics.elementary.exp`.
    """
    return _exp(x)


def rsqrt(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Reciprocal square root. Fidelity: approximate, see `numerics.elementary.rsqrt`."""
    return _rsqrt(x)


def sigmoid(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Logistic function. Fidelity: approximate, see `numerics.elementary.sigmoid`."""
    return _sigmoid(x)


def silu(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """`x * sigmoid(x)`. Fidelity: approximate, see `numerics.elementary.silu`."""
    return _silu(x)


def to_fp16(x: Float32[Array, "..."]) -> Float16[Array, "..."]:
    """Round to float16, RNE, overflow to infinity. Fidelity: exact."""
    return _to_fp16(x)


def to_fp32(x: Float[Array, "..."] | Int32[Array, "..."]) -> Float32[Array, "..."]:
    """Widen float16, or convert int32 with one rounding. Fidelity: exact."""
    return _to_fp32(x)


def to_int8(x: Float32[Array, "..."]) -> Int8[Array, "..."]:
    """Round to the nearest integer (ties to even), saturating at +-127. Fidelity: exact."""
    return _to_int8(x)


# --- reductions along lanes -----------------------------------------------------------------------


def _lane_fold_cycles(machine: Machine, rows: Quantity) -> Quantity:
    """Fold 320 lanes to one for each row: by rotations, or by a transpose and additions.

    Source: `9 * (9 + ceil(rows / 2) - 1)` for nine rotate-and-add steps over two hemispheres; a
    transpose moves fp32 vectors (4 byte-vectors each) through the SXM, then 320 vectors of `rows`
    lanes are added.
    """
    chip = machine.chip
    rotations = chip.lane_rotate_cycles * (chip.lane_rotate_cycles + ceil(rows / 2) - 1)
    transpose = rows * 4 / chip.sxm_vectors_per_cycle + chip.sxm_transpose_cycles
    additions = (chip.lanes - 1) * ceil_div(rows, chip.lanes) / chip.vxm_alus_per_lane
    across = transpose + additions + chip.vxm_entry_cycles + chip.alu_cycles * 9
    return -largest(-rotations, -across)


def reduction_cost(machine: Machine, request: Request) -> Work:
    """Cost a reduction of the last axis: add the vectors of a row, then fold its lanes."""
    chip = machine.chip
    (x,) = request.operands
    rows = product(x.shape[:-1])
    per_row = ceil_div(x.shape[-1], chip.lanes)
    across_vectors = largest(
        rows * (per_row - 1) / chip.vxm_alus_per_lane, rows * per_row / chip.vxm_stream_groups
    )
    return Work(
        unit=Unit.VXM,
        busy_cycles=across_vectors + _lane_fold_cycles(machine, rows),
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


def sum_lanes(x: Float32[Array, "*rows n"]) -> Float32[Array, "*rows 1"]:
    """Sum the last axis: 320-lane vectors in ascending order, then lanes by halves.

    Fidelity: order-dependent, the order is fixed; appended zeros change no bit.
    """
    return _sum_lanes(x)  # type: ignore[no-any-return]


def max_lanes(x: Float32[Array, "*rows n"]) -> Float32[Array, "*rows 1"]:
    """Take the largest of the last axis. Fidelity: exact."""
    return _max_lanes(x)  # type: ignore[no-any-return]


def _sum_leading_meaning(x: Array) -> Array:
    def step(total: Array, part: Array) -> tuple[Array, None]:
        return total + elementary.guarded(part), None

    return lax.scan(step, jnp.zeros(x.shape[1:], x.dtype), x)[0]


def _sum_leading_cost(machine: Machine, request: Request) -> Work:
    chip = machine.chip
    (x,) = request.operands
    total = vectors(x, chip)
    return Work(
        unit=Unit.VXM,
        busy_cycles=largest(total / chip.vxm_alus_per_lane, total / chip.vxm_stream_groups),
        latency_cycles=chip.vxm_entry_cycles + chip.alu_cycles * x.shape[0],
    )


_sum_leading = primitive(
    "vxm_sum_leading",
    abstract=lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype),
    meaning=_sum_leading_meaning,
    cost=_sum_leading_cost,
)


def sum_leading(x: Float32[Array, "n ..."]) -> Float32[Array, "..."]:
    """Sum the leading axis in ascending order, starting from +0.

    Fidelity: order-dependent, the order is fixed; zeros anywhere in the list change no bit.
    """
    return _sum_leading(x)  # type: ignore[no-any-return]


# --- comparisons with positions, selections -------------------------------------------------------


def _causal_mask_meaning(scores: Array, positions: Array, *, query_stride: int) -> Array:
    rows = jnp.arange(scores.shape[-2], dtype=jnp.int32) % query_stride
    last = positions[:, None] + rows[None, :]  # [b, rows]
    keys = jnp.arange(scores.shape[-1], dtype=jnp.int32)
    seen = keys[None, None, :] <= last[:, :, None]
    seen = jnp.repeat(seen, scores.shape[0] // positions.shape[0], axis=0)
    return jnp.where(seen, scores, -jnp.inf)


_causal_mask = primitive(
    "vxm_causal_mask",
    abstract=lambda scores, positions, *, query_stride: jax.ShapeDtypeStruct(
        scores.shape, scores.dtype
    ),
    meaning=_causal_mask_meaning,
    chain=lambda params: AluChain(operations=2, depth=2),
)


def causal_mask(
    scores: Float32[Array, "groups rows s"], positions: Int32[Array, " b"], n_new: Any
) -> Float32[Array, "groups rows s"]:
    """Set scores of keys that a query may not see to minus infinity.

    Args:
        scores: `groups` is a multiple of the batch, sequence by sequence; query `r` of a group is
            new token `r % n_new`.
        positions: position of the first new token of each sequence.
        n_new: new tokens per sequence.

    Fidelity: exact.
    """
    return _causal_mask(scores, positions, query_stride=n_new)  # type: ignore[no-any-return]


def _top_k_cost(machine: Machine, request: Request) -> Work:
    """Cost `k` selections after one transpose (assumed).

    Each is a maximum over the vectors of a row, and one masking operation.
    """
    chip = machine.chip
    (x,) = request.operands
    rows = product(x.shape[:-1])
    k = request.params["k"]
    passes = ceil_div(x.shape[-1] * ceil_div(rows, chip.lanes), chip.vxm_stream_groups)
    transpose = rows * ceil_div(x.shape[-1], chip.lanes) * 4 / chip.sxm_vectors_per_cycle
    per_selection = passes + chip.vxm_entry_cycles + 3 * chip.alu_cycles
    return Work(
        unit=Unit.VXM,
        busy_cycles=transpose + chip.sxm_transpose_cycles + k * per_selection,
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


def top_k(
    x: Float32[Array, "*rows n"], k: int
) -> tuple[Float32[Array, "*rows {k}"], Int32[Array, "*rows {k}"]]:
    """Take the `k` largest of each row with their places, descending; of equal values the first.

    Fidelity: exact.
    """
    return _top_k(x, k=k)  # type: ignore[no-any-return]


def _small_cost(operations: int) -> Callable[[Machine, Request], Work]:
    """Cost index arithmetic on short vectors (assumed).

    `operations` ALU operations run on each vector of the result.
    """

    def cost(machine: Machine, request: Request) -> Work:
        chip = machine.chip
        total = vectors(request.results[0], chip) * operations
        return Work(
            unit=Unit.VXM,
            busy_cycles=largest(
                total / chip.vxm_alus_per_lane,
                vectors(request.results[0], chip) / chip.vxm_stream_groups,
            ),
            latency_cycles=chip.vxm_entry_cycles + chip.alu_cycles * operations,
        )

    return cost


def _keep_groups_meaning(x: Array, groups: Array, *, n_groups: int) -> Array:
    size = x.shape[-1] // n_groups
    number = lax.broadcasted_iota(jnp.int32, (*groups.shape, n_groups), groups.ndim)
    kept = (groups[..., :, None] == number).any(-2)
    return jnp.where(jnp.repeat(kept, size, axis=-1), x, -jnp.inf)


_keep_groups = primitive(
    "vxm_keep_groups",
    abstract=lambda x, groups, *, n_groups: jax.ShapeDtypeStruct(x.shape, x.dtype),
    meaning=_keep_groups_meaning,
    cost=_small_cost(4),
)


def keep_groups(
    x: Float32[Array, "*rows n"], groups: Int32[Array, "*rows kept"], n_groups: int
) -> Float32[Array, "*rows n"]:
    """Set values outside the kept groups (equal runs of the last axis) to minus infinity.

    Fidelity: exact.
    """
    return _keep_groups(x, groups, n_groups=n_groups)  # type: ignore[no-any-return]


_take_lanes = primitive(
    "vxm_take_lanes",
    abstract=lambda x, ids: jax.ShapeDtypeStruct(ids.shape, x.dtype),
    meaning=lambda x, ids: jnp.take_along_axis(x, ids, axis=-1, mode="clip"),
    cost=_small_cost(2),
)


def take_lanes(
    x: Float32[Array, "*rows n"], ids: Int32[Array, "*rows k"]
) -> Float32[Array, "*rows k"]:
    """Select values of each row by their places. Fidelity: exact."""
    return _take_lanes(x, ids)  # type: ignore[no-any-return]


def _one_hot_gate_meaning(slot_ids: Array, ids: Array, weights: Array) -> Array:
    hits = (ids[None] == slot_ids[:, None, None]) & (slot_ids >= 0)[:, None, None]
    return jnp.where(hits, weights[None], 0.0).sum(-1)


_one_hot_gate = primitive(
    "vxm_one_hot_gate",
    abstract=lambda slot_ids, ids, weights: jax.ShapeDtypeStruct(
        (slot_ids.shape[0], ids.shape[0]), jnp.float32
    ),
    meaning=_one_hot_gate_meaning,
    cost=_small_cost(4),
)


def one_hot_gate(
    slot_ids: Int32[Array, " slots"], ids: Int32[Array, "m k"], weights: Float32[Array, "m k"]
) -> Float32[Array, "slots m"]:
    """Spread routing weights over slots: 0 where a row does not use the slot's expert.

    Fidelity: exact: a row names an expert at most once, so nothing is added.
    """
    return _one_hot_gate(slot_ids, ids, weights)  # type: ignore[no-any-return]


def _local_slots_meaning(ids: Array, first: Array, *, n_local: int, n_slots: int) -> Array:
    local = first + jnp.arange(n_local, dtype=jnp.int32)
    used = (ids.reshape(-1)[None, :] == local[:, None]).any(-1)
    place = jnp.cumsum(used.astype(jnp.int32), dtype=jnp.int32) - 1
    slots = jnp.full((n_slots,), -1, jnp.int32)
    return slots.at[jnp.where(used, place, n_slots)].set(local, mode="drop")


_local_slots = primitive(
    "vxm_local_slots",
    abstract=lambda ids, first, *, n_local, n_slots: jax.ShapeDtypeStruct((n_slots,), jnp.int32),
    meaning=_local_slots_meaning,
    cost=lambda machine, request: Work(
        unit=Unit.VXM,
        # one comparison per named expert, and a prefix sum of nine shift-and-add steps (assumed)
        busy_cycles=request.operands[0].size / machine.chip.vxm_alus_per_lane
        + 9 * machine.chip.lane_rotate_cycles,
        latency_cycles=machine.chip.vxm_entry_cycles,
        result_is_last=True,
    ),
)


def local_slots(
    ids: Int32[Array, "m k"], first: Int32[Array, ""], *, n_local: Any, n_slots: Any
) -> Int32[Array, " slots"]:
    """List the experts in use that this chip holds, ascending, in slots; empty slots are -1.

    Args:
        ids: experts each row uses.
        first: id of the chip's first expert; it holds `n_local` from there.
        n_local: experts held.
        n_slots: slots; must be at least `min(n_local, m * k)` or experts may be left out.

    Fidelity: exact.
    """
    return _local_slots(ids, first, n_local=n_local, n_slots=n_slots)  # type: ignore[no-any-return]


def _arg_max_meaning(x: Array, first: Array, *, n_valid: int) -> tuple[Array, Array]:
    columns = first + jnp.arange(x.shape[-1], dtype=jnp.int32)
    x = jnp.where(jnp.broadcast_to(columns < n_valid, x.shape), x, -jnp.inf)
    best = jnp.argmax(x, axis=-1, keepdims=True).astype(jnp.int32)
    return jnp.take_along_axis(x, best, axis=-1), first + best


def _arg_max_shapes(x: Any, first: Any, *, n_valid: int) -> tuple[Any, Any]:
    shape = (*x.shape[:-1], 1)
    return jax.ShapeDtypeStruct(shape, x.dtype), jax.ShapeDtypeStruct(shape, jnp.int32)


def _arg_max_cost(machine: Machine, request: Request) -> Work:
    return reduction_cost(machine, Request(operands=request.operands[:1], results=request.results))


_arg_max = primitive(
    "vxm_arg_max", abstract=_arg_max_shapes, meaning=_arg_max_meaning, cost=_arg_max_cost
)


def arg_max(
    x: Float32[Array, "m n"], first: Int32[Array, ""], n_valid: int
) -> tuple[Float32[Array, "m 1"], Int32[Array, "m 1"]]:
    """Find the largest value of each row and its global column; from `n_valid` on is padding.

    Args:
        x: a chip's share of the columns.
        first: global number of the share's first column.
        n_valid: number of real columns over all chips.

    Fidelity: exact; of equal values the first.
    """
    return _arg_max(x, first, n_valid=n_valid)  # type: ignore[no-any-return]


_take_best = primitive(
    "vxm_take_best",
    abstract=lambda values, labels: jax.ShapeDtypeStruct((values.shape[0], 1), labels.dtype),
    meaning=lambda values, labels: jnp.take_along_axis(
        labels, jnp.argmax(values, axis=-1, keepdims=True), axis=-1
    ),
    cost=lambda machine, request: reduction_cost(
        machine, Request(operands=request.operands[:1], results=request.results)
    ),
)


def take_best(values: Float32[Array, "m n"], labels: Int32[Array, "m n"]) -> Int32[Array, "m 1"]:
    """Take the label of the largest value of each row; of equal values the first.

    Fidelity: exact.
    """
    return _take_best(values, labels)  # type: ignore[no-any-return]
