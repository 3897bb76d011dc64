"""The lists that send rows to experts: slots of a chip, places in them, and rows for other chips.

A statically scheduled chip cannot run a data-dependent number of instructions: a mixture has a
fixed number of slots, each with room for a fixed number of rows, and data names what they hold.
What it computes: whole numbers, and gates that no operation changes. What it costs: comparisons,
counts and prefix sums on the vector unit, all assumed. Which sizes are enough is the caller's.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

from ..arguments import Count, checked
from .primitive import primitive
from .selection import small_cost
from .work import Call, Hardware, Quantity, Unit, Work, ceil_div, vectors


def _one_hot_gate_meaning(slot_ids: Array, ids: Array, weights: Array) -> Array:
    hits = (ids[None] == slot_ids[:, None, None]) & (slot_ids >= 0)[:, None, None]
    return jnp.where(hits, weights[None], 0.0).sum(-1)


_one_hot_gate = primitive(
    "vxm_one_hot_gate",
    abstract=lambda slot_ids, ids, weights: jax.ShapeDtypeStruct(
        (slot_ids.shape[0], ids.shape[0]), jnp.float32
    ),
    meaning=_one_hot_gate_meaning,
    cost=partial(small_cost, operations=4),
)


@checked
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


#: Shift-and-add steps of a prefix sum over the lanes of a vector.
_PREFIX_STEPS = 9


def listing_work(machine: Hardware, n_operations: Quantity, write_cycles: Quantity = 0.0) -> Work:
    """Cost operations on vectors, with the shifts of one prefix sum over lanes (assumed)."""
    chip = machine.chip
    limits = {
        "ALUs": n_operations / chip.vxm_alus_per_lane,
        "lane shifts": float(_PREFIX_STEPS) * chip.lane_rotate_cycles,
        "writes": write_cycles,
    }
    return Work(
        unit=Unit.VXM,
        busy_cycles=limits["ALUs"] + limits["lane shifts"] + limits["writes"],
        limits=limits,
        latency_cycles=chip.vxm_entry_cycles,
        result_is_last=True,
    )


def _local_slots_cost(machine: Hardware, call: Call) -> Work:
    """Cost a comparison per named expert and a prefix sum (assumed)."""
    return listing_work(machine, call.operands[0].size)


_local_slots = primitive(
    "vxm_local_slots",
    abstract=lambda ids, first, *, n_local, n_slots: jax.ShapeDtypeStruct((n_slots,), jnp.int32),
    meaning=_local_slots_meaning,
    cost=_local_slots_cost,
)


@checked
def local_slots(
    ids: Int32[Array, "m k"], first: Int32[Array, ""], *, n_local: Count, n_slots: Count
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


def _seats(
    ids: Array, first: Array, *, n_experts: int, n_local: int, n_slots: int, capacity: int
) -> tuple[Array, Array]:
    """Give each pair of a row and its expert a place in the slots of the expert's chip.

    Returns:
        Of each pair, by ascending row, its expert counted from `first` (`n_experts` where it is
        none of them), and its place in the lists of all chips laid end to end, -1 without one.
    """
    n_chips = n_experts // n_local
    chosen = ids.reshape(-1)
    expert = chosen - first
    is_held = (chosen >= 0) & (expert >= 0) & (expert < n_experts)
    expert = jnp.where(is_held, expert, n_experts)
    count = jnp.zeros(n_experts + 1, jnp.int32).at[expert].add(1)
    # Rank among the pairs of the same expert: their distance in a stable order by expert.
    order = jnp.argsort(expert, stable=True)
    begin = jnp.cumsum(count, dtype=jnp.int32) - count
    pair = jnp.arange(expert.size, dtype=jnp.int32)
    rank = jnp.zeros_like(pair).at[order].set(pair - begin[expert[order]])
    taken = (-(-count[:n_experts] // capacity)).reshape(n_chips, n_local)
    slot_of_expert = (jnp.cumsum(taken, axis=1, dtype=jnp.int32) - taken).reshape(-1)
    held = jnp.minimum(expert, n_experts - 1)
    slot = slot_of_expert[held] + rank // capacity
    place = ((held // n_local) * n_slots + slot) * capacity + rank % capacity
    return expert, jnp.where(is_held & (slot < n_slots), place, -1)


def _fill_slots_meaning(
    ids: Array, first: Array, *, n_local: int, n_slots: int, capacity: int
) -> tuple[Array, Array, Array]:
    expert, places = _seats(
        ids, first, n_experts=n_local, n_local=n_local, n_slots=n_slots, capacity=capacity
    )
    pair = jnp.arange(places.size, dtype=jnp.int32)
    n_places = n_slots * capacity
    at = jnp.where(places < 0, n_places, places)
    pairs = jnp.full(n_places, -1, jnp.int32).at[at].set(pair, mode="drop")
    slots = jnp.full(n_slots, -1, jnp.int32).at[at // capacity].set(first + expert, mode="drop")
    rows = jnp.where(pairs < 0, -1, pairs // ids.shape[1])
    shape = (n_slots, capacity)
    return slots, rows.reshape(shape), pairs.reshape(shape)


def _fill_slots_shapes(
    ids: Any, first: Any, *, n_slots: Any, capacity: Any, **_: Any
) -> tuple[Any, Any, Any]:
    del ids, first
    lists = jax.ShapeDtypeStruct((n_slots, capacity), jnp.int32)
    return jax.ShapeDtypeStruct((n_slots,), jnp.int32), lists, lists


def _fill_slots_cost(machine: Hardware, call: Call) -> Work:
    """Cost counts of experts, a prefix sum of their slots, and a write per pair (assumed).

    Experts lie along lanes: each pair is a comparison and an addition to running counts.
    """
    ids, lists = call.operands[0], call.results[1]
    counted = 2 * ids.size * ceil_div(call.params["n_local"], machine.chip.lanes)
    written = ids.size / machine.chip.mem_accesses_per_cycle
    return listing_work(machine, counted + 4 * vectors(lists, machine.chip), written)


_fill_slots = primitive(
    "vxm_fill_slots",
    abstract=_fill_slots_shapes,
    meaning=_fill_slots_meaning,
    cost=_fill_slots_cost,
)


@checked
def fill_slots(
    ids: Int32[Array, "m k"],
    first: Int32[Array, ""],
    *,
    n_local: Count,
    n_slots: Count,
    capacity: Count,
) -> tuple[Int32[Array, " slots"], Int32[Array, "slots rows"], Int32[Array, "slots rows"]]:
    """List the experts in use that this chip holds, and which rows each multiplies.

    Args:
        ids: experts each row uses, each at most once; -1 for none.
        first: id of the chip's first expert; it holds `n_local` from there.
        n_local: experts held.
        n_slots: slots; an expert takes as many as its rows fill. Rows that find none are left out.
        capacity: rows of a slot.

    Returns:
        The expert of each slot, ascending, -1 for an empty one; its rows, ascending, -1 in empty
        places; and which pair of a row and an expert each is, `row * k + number in ids`.

    Fidelity: exact.
    """
    return _fill_slots(  # type: ignore[no-any-return]
        ids, first, n_local=n_local, n_slots=n_slots, capacity=capacity
    )


def _places_meaning(
    ids: Array, first: Array, *, n_chips: int, n_local: int, n_slots: int, capacity: int
) -> Array:
    sizes = {"n_local": n_local, "n_slots": n_slots, "capacity": capacity}
    _, places = _seats(ids, first, n_experts=n_chips * n_local, **sizes)
    by_expert = jnp.argsort(ids, axis=-1, stable=True)
    return jnp.take_along_axis(places.reshape(ids.shape), by_expert, axis=-1).T


def _places_cost(machine: Hardware, call: Call) -> Work:
    """Cost what `fill_slots` counts, and each row's order by comparing its experts (assumed)."""
    ids = call.operands[0]
    experts = call.params["n_chips"] * call.params["n_local"]
    counted = 2 * ids.size * ceil_div(experts, machine.chip.lanes)
    ordered = 2 * ids.shape[-1] * vectors(ids, machine.chip)
    return listing_work(machine, counted + ordered)


_places = primitive(
    "vxm_result_places",
    abstract=lambda ids, first, **_: jax.ShapeDtypeStruct(ids.shape[::-1], jnp.int32),
    meaning=_places_meaning,
    cost=_places_cost,
)


@checked
def result_places(
    ids: Int32[Array, "m k"],
    first: Int32[Array, ""],
    *,
    n_chips: Count,
    n_local: Count,
    n_slots: Count,
    capacity: Count,
) -> Int32[Array, "k m"]:
    """Find where the results of each row's experts lie, by ascending expert id.

    Args:
        ids: experts each row uses, each at most once; -1 for none.
        first: id of the first expert.
        n_chips: chips that hold `n_local` experts each, from `first` on.
        n_local: experts of a chip.
        n_slots: slots of a chip, filled as by `fill_slots`.
        capacity: rows of a slot.

    Returns:
        Places in the slots of all chips laid end to end; -1 where no chip has the expert.

    Fidelity: exact.
    """
    return _places(  # type: ignore[no-any-return]
        ids, first, n_chips=n_chips, n_local=n_local, n_slots=n_slots, capacity=capacity
    )


_ascending = primitive(
    "vxm_ascending",
    abstract=lambda ids: jax.ShapeDtypeStruct(ids.shape[::-1], jnp.int32),
    meaning=lambda ids: jnp.sort(ids, axis=-1).T,
    cost=partial(small_cost, operations=2),
)


@checked
def ascending(ids: Int32[Array, "m k"]) -> Int32[Array, "k m"]:
    """Order the experts of each row as `result_places` does, in whose time they were compared.

    Fidelity: exact.
    """
    return _ascending(ids)  # type: ignore[no-any-return]


def _rows_by_chip_meaning(
    ids: Array, share: Array, *, n_rows: int, n_chips: int, n_local: int, n_places: int
) -> tuple[Array, Array]:
    n_own = ids.shape[0]
    row = jnp.arange(n_own, dtype=jnp.int32)
    chip = jnp.arange(n_chips, dtype=jnp.int32)
    is_row = share * n_own + row < n_rows
    used = ((ids // n_local)[None] == chip[:, None, None]).any(-1) & is_row[None]
    place = jnp.cumsum(used.astype(jnp.int32), axis=1, dtype=jnp.int32) - 1
    used &= place < n_places
    spread = jnp.broadcast_to(row[None], used.shape)
    sent = jnp.full((n_chips, n_places), -1, jnp.int32)
    sent = sent.at[chip[:, None], jnp.where(used, place, n_places)].set(spread, mode="drop")
    return sent, jnp.where(used, chip[:, None] * n_places + place, -1)


def _rows_by_chip_shapes(
    ids: Any, share: Any, *, n_chips: Any, n_places: Any, **_: Any
) -> tuple[Any, Any]:
    del share
    return (
        jax.ShapeDtypeStruct((n_chips, n_places), jnp.int32),
        jax.ShapeDtypeStruct((n_chips, ids.shape[0]), jnp.int32),
    )


def _rows_by_chip_cost(machine: Hardware, call: Call) -> Work:
    """Cost a comparison of each named expert with all chips, and a prefix sum (assumed).

    Chips lie along lanes for the comparisons; the prefix sum is over the rows of each chip, and one
    selection makes each list.
    """
    chip = machine.chip
    ids, made = call.operands[0], call.results[1]
    compared = ids.size * ceil_div(made.shape[0], chip.lanes)
    summed = _PREFIX_STEPS * made.shape[0] * ceil_div(made.shape[1], chip.lanes)
    return listing_work(machine, compared + summed + 2 * vectors(made, chip))


_rows_by_chip = primitive(
    "vxm_rows_by_chip",
    abstract=_rows_by_chip_shapes,
    meaning=_rows_by_chip_meaning,
    cost=_rows_by_chip_cost,
)


@checked
def rows_by_chip(
    ids: Int32[Array, "m k"],
    share: Int32[Array, ""],
    *,
    n_rows: Count,
    n_chips: Count,
    n_local: Count,
    n_places: Count,
) -> tuple[Int32[Array, "chips places"], Int32[Array, "chips m"]]:
    """List, for every chip, which of a share's rows use an expert that it holds.

    Args:
        ids: experts that each row of the share uses.
        share: number of the share: its first row is `share * m` of all rows.
        n_rows: rows of all shares that count; the rest are padding and in no list.
        n_chips: chips; chip c holds `n_local` experts from `c * n_local`.
        n_local: experts of a chip.
        n_places: places of a list; `m` have room for all rows, fewer leave the last ones out.

    Returns:
        The rows for each chip, ascending, from the first place on, -1 in empty places; and where
        each row is in the lists laid end to end, -1 where it is not.

    Fidelity: exact.
    """
    return _rows_by_chip(  # type: ignore[no-any-return]
        ids, share, n_rows=n_rows, n_chips=n_chips, n_local=n_local, n_places=n_places
    )
