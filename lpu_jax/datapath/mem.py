"""MEM, the memory slices: addresses computed at run time, and caches: whole, in runs, in rings.

What it computes: reads of rows by address, and writes of new keys and values in place; no value
changes. What it costs: an access per address, which reaches the vectors of a row in several slices.
Not modelled: conflicts between the two banks of a slice; weights and state are read while they are
used.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int32, Num

from ..arguments import Count, Positive, check_not_empty, check_within, checked, described
from ..errors import LpuError
from ..predicates import exceeds, may_equal
from .primitive import free, primitive
from .work import Call, Hardware, Operand, Quantity, Unit, Work, ceil_div, product

#: A cache, a ring of one and a chip's run of positions are whole vectors of so many lanes.
POSITIONS_STEP = 320


def access_cost(machine: Hardware, n_accesses: Quantity, moved: Operand) -> Work:
    """Access run-time addresses, some per cycle (assumed)."""
    chip = machine.chip
    busy = n_accesses / chip.mem_accesses_per_cycle
    return Work(
        unit=Unit.MEM,
        busy_cycles=busy,
        limits={"accesses": busy},
        latency_cycles=chip.mem_slices / 2 / chip.mem_slices_per_hop,
        moved_bytes=moved.size_bytes,
    )


def row_accesses(machine: Hardware, rows: Operand) -> Quantity:
    """Accesses to rows that each begin at an address of their own.

    The vectors of a row lie in neighbouring slices, several of which one address reaches.
    """
    chip = machine.chip
    row_vectors = ceil_div(rows.shape[-1] * rows.bits / 8, chip.vector_bytes)
    return product(rows.shape[:-1]) * ceil_div(row_vectors, chip.mem_slices_per_address)


def _lookup_meaning(table: Array, ids: Array, first: Array, *, missing: int) -> Array:
    local = ids - first
    held = (local >= 0) & (local < table.shape[0])
    rows = jnp.take(table, jnp.where(held, local, 0), axis=0)
    # Added to what the chip that has a row sends, a negative zero changes no number, nor its sign.
    is_number = jnp.issubdtype(rows.dtype, jnp.floating)
    absent = jnp.full((), -0.0 if is_number and not missing else missing, rows.dtype)
    return jnp.where(jnp.broadcast_to(held[..., None], rows.shape), rows, absent)


_lookup = primitive(
    "mem_lookup",
    abstract=lambda table, ids, first, **_: jax.ShapeDtypeStruct(
        (*ids.shape, *table.shape[1:]), table.dtype
    ),
    meaning=_lookup_meaning,
    cost=lambda machine, call: access_cost(
        machine, row_accesses(machine, call.results[0]), call.results[0]
    ),
)


@checked
def lookup(
    table: Num[Array, "n d"],
    ids: Int32[Array, "..."],
    first: Int32[Array, ""] | None = None,
    missing: int = 0,
) -> Num[Array, "... d"]:
    """Read rows of a chip's share of a table; rows that it lacks come filled with one number.

    Args:
        table: rows `first .. first + n`.
        ids: global row numbers.
        first: global number of the share's first row; None: the chip holds the whole table.
        missing: that number; in a table of floats 0 means -0, which changes no sum over chips.

    Raises:
        LpuError: the table's type has no such number.

    Fidelity: exact.
    """
    check_not_empty("mem.lookup", "table", table)
    if not _holds(table.dtype, missing):
        raise LpuError(
            f"mem.lookup: missing={described(missing)} was given for a table of "
            f"{table.dtype.name}; it must be a number of that type."
        )
    first = jnp.zeros((), jnp.int32) if first is None else first
    return _lookup(table, ids, first, missing=missing)  # type: ignore[no-any-return]


def _holds(dtype: Any, number: int) -> bool:
    """Whether a type has a whole number; none of those in use has one beyond 32 bits."""
    if abs(number) >= 2**32:
        return False
    with np.errstate(over="ignore"):
        held = np.asarray(number, np.int64).astype(dtype)
    return complex(held) == number


_address = primitive(
    "mem_address",
    abstract=lambda table, ids: jax.ShapeDtypeStruct(ids.shape, jnp.int32),
    meaning=lambda table, ids: jnp.where(ids >= 0, table[jnp.maximum(ids, 0)], -1),
    cost=lambda machine, call: access_cost(machine, call.results[0].size, call.results[0]),
)


@checked
def select_expert(
    table: Int32[Array, " experts"], ids: Int32[Array, " slots"]
) -> Int32[Array, " slots"]:
    """Find where the experts in use are stored: the one place where data chooses an address.

    Args:
        table: store row of every expert, -1 where this chip does not hold it.
        ids: experts in use, -1 for empty slots.

    Returns:
        Store rows for `mxm.matmul(..., rows=)`, -1 for empty slots.

    Raises:
        LpuError: an expert that the table lacks, where `ids` are known.

    Fidelity: exact.
    """
    check_not_empty("mem.select_expert", "table", table)
    check_within("mem.select_expert", "ids", ids, -1, table.shape[0] - 1, "the table")
    return _address(table, ids)  # type: ignore[no-any-return]


def _check_axis(caller: str, cache: Array, axis: int) -> None:
    if not 0 < axis < cache.ndim:
        raise LpuError(
            f"{caller}: axis={axis} was given for an array of shape {cache.shape}; it must be "
            f"1 to {cache.ndim - 1}, the number of the axis of positions."
        )


def _check_entries(caller: str, cache: Array, new: Array, axis: int) -> None:
    """Refuse new entries whose type is not the cache's, or whose shape is not, but for `axis`.

    Raises:
        LpuError: with both.
    """
    _check_axis(caller, cache, axis)
    new_shape = (*new.shape[:axis], cache.shape[axis], *new.shape[axis + 1 :])
    if not may_equal(new_shape, cache.shape) or new.dtype != cache.dtype:
        raise LpuError(
            f"{caller}: new={described(new)} was given for a cache of {described(cache)}; its type "
            f"and shape must be the same but for axis {axis}."
        )


def _check_room(caller: str, cache: Array, new: Array, axis: int) -> None:
    """Refuse more new entries than the cache has positions."""
    if exceeds(new.shape[axis], cache.shape[axis]):
        raise LpuError(
            f"{caller}: {new.shape[axis]} new entries were given for a cache of "
            f"{cache.shape[axis]} positions; there must be at most that many."
        )


def _append_meaning(cache: Array, new: Array, positions: Array, *, axis: int) -> Array:
    def one(cache: Array, new: Array, position: Array) -> Array:
        return lax.dynamic_update_slice_in_dim(cache, new, position, axis=axis - 1)

    return jax.vmap(one)(cache, new, positions)


def _append_cost(machine: Hardware, call: Call) -> Work:
    """New rows are written whole; new columns are one narrow write in every row they cross."""
    new = call.operands[1]
    return access_cost(machine, row_accesses(machine, new), new)


_append = primitive(
    "mem_append",
    abstract=lambda cache, new, positions, *, axis: jax.ShapeDtypeStruct(cache.shape, cache.dtype),
    meaning=_append_meaning,
    cost=_append_cost,
)


@checked
def append(
    cache: Num[Array, "b ..."], new: Num[Array, "b ..."], positions: Int32[Array, " b"], axis: int
) -> Num[Array, "b ..."]:
    """Write new entries of each sequence into its cache, in place.

    Args:
        cache: allocated for the whole context along `axis`.
        new: the same shape but for `axis`.
        positions: where each sequence's new entries begin; the caller keeps `position + new` within
            the cache.
        axis: positive number of the context axis.

    Fidelity: exact.
    """
    _check_entries("mem.append", cache, new, axis)
    _check_room("mem.append", cache, new, axis)
    last = cache.shape[axis] - new.shape[axis]
    check_within("mem.append", "positions", positions, 0, last, "the cache")
    return _append(cache, new, positions, axis=axis)  # type: ignore[no-any-return]


def _write(cache: Array, new: Array, places: Array, axis: int) -> Array:
    """Write the entries of each sequence at its places; places beyond the cache are dropped."""

    def one(cache: Array, new: Array, places: Array) -> Array:
        at = (*(slice(None),) * (axis - 1), places)
        return cache.at[at].set(new, mode="drop")

    return jax.vmap(one)(cache, new, places)


def _following(positions: Array, n: int) -> Array:
    """Positions `[b, n]` of the entries that begin there."""
    return positions[:, None] + jnp.arange(n, dtype=jnp.int32)[None, :]


def _append_run_meaning(
    cache: Array, new: Array, positions: Array, first: Array, *, axis: int
) -> Array:
    places = _following(positions, new.shape[axis]) - first[None, :]
    # A negative place would count from the end.
    return _write(cache, new, jnp.where(places < 0, cache.shape[axis], places), axis)


_append_run = primitive(
    "mem_append_run",
    abstract=lambda cache, new, positions, first, *, axis: jax.ShapeDtypeStruct(
        cache.shape, cache.dtype
    ),
    meaning=_append_run_meaning,
    cost=_append_cost,
)


@checked
def append_run(
    cache: Num[Array, "b ..."],
    new: Num[Array, "b ..."],
    positions: Int32[Array, " b"],
    first: Int32[Array, " 1"],
    axis: int,
) -> Num[Array, "b ..."]:
    """Write new entries into a cache that holds a run of positions, in place; drop all others.

    Args:
        cache: a run of positions along `axis`.
        new: the same shape but for `axis`.
        positions: where each sequence's new entries begin.
        first: the first position that the cache holds.
        axis: positive number of the context axis.

    Fidelity: exact. Takes the time of `append`, wherever the entries go.
    """
    _check_entries("mem.append_run", cache, new, axis)
    return _append_run(cache, new, positions, first, axis=axis)  # type: ignore[no-any-return]


_append_ring = primitive(
    "mem_append_ring",
    abstract=lambda cache, new, positions, *, axis: jax.ShapeDtypeStruct(cache.shape, cache.dtype),
    meaning=lambda cache, new, positions, *, axis: _write(
        cache,
        new,
        _following(positions, new.shape[axis]) % cache.shape[axis],
        axis,
    ),
    cost=_append_cost,
)


@checked
def append_ring(
    cache: Num[Array, "b ..."], new: Num[Array, "b ..."], positions: Int32[Array, " b"], axis: int
) -> Num[Array, "b ..."]:
    """Write new entries into a ring of `n` positions, in place: position `p` lies at `p % n`.

    Args:
        cache: the ring along `axis`; at most `n` entries are new.
        new: the same shape but for `axis`.
        positions: where each sequence's new entries begin.
        axis: positive number of the context axis.

    Fidelity: exact.
    """
    _check_entries("mem.append_ring", cache, new, axis)
    _check_room("mem.append_ring", cache, new, axis)
    return _append_ring(cache, new, positions, axis=axis)  # type: ignore[no-any-return]


@checked
def ring_length(window: Positive, n_new: Positive, context: Positive) -> int:
    """Positions of the shortest ring for a window, in whole vectors; the context if that is less.

    Args:
        window: positions that a query sees, its own included.
        n_new: new positions of a step: all of them and the windows of all lie in the ring.
        context: positions in all.
    """
    # The first of so many positions may lie anywhere in its vector.
    n_vectors = 1 - -(window + n_new - 2) // POSITIONS_STEP
    return min(context, n_vectors * POSITIONS_STEP)


_ring_start = primitive(
    "mem_ring_start",
    abstract=lambda positions, **_: jax.ShapeDtypeStruct(positions.shape, jnp.int32),
    meaning=lambda positions, *, window, n_positions: (
        jnp.maximum(positions - (window - 1), 0) // POSITIONS_STEP * POSITIONS_STEP
    ),
    cost=lambda machine, call: access_cost(
        machine,
        call.operands[0].size * ceil_div(call.params["n_positions"], POSITIONS_STEP),
        call.results[0],
    ),
)


@checked
def ring_start(
    positions: Int32[Array, " b"], *, window: Count, n_positions: Count
) -> Int32[Array, " b"]:
    """Find from which position each sequence's ring is read: the first vector that a query sees.

    Reads one address per vector of positions (assumed; heads lie at fixed distances).

    Args:
        positions: position of the first new token of each sequence.
        window: positions that a query sees, its own included.
        n_positions: length of the ring.

    Returns:
        Multiples of 320, so that sums over positions are cut at the same places whatever the
        length of the ring.

    Fidelity: exact.
    """
    return _ring_start(positions, window=window, n_positions=n_positions)  # type: ignore[no-any-return]


def _ring_view_meaning(ring: Array, starts: Array, *, axis: int) -> Array:
    n = ring.shape[axis]

    def one(ring: Array, start: Array) -> Array:
        places = (start + jnp.arange(n, dtype=jnp.int32)) % n
        return jnp.take(ring, places, axis=axis - 1)

    return jax.vmap(one)(ring, starts)


_ring_view = primitive(
    "mem_ring_view",
    abstract=lambda ring, starts, *, axis: jax.ShapeDtypeStruct(ring.shape, ring.dtype),
    meaning=_ring_view_meaning,
    cost=free,
)


@checked
def ring_view(
    ring: Num[Array, "b ..."], starts: Int32[Array, " b"], axis: int
) -> Num[Array, "b ..."]:
    """Read a ring by ascending position: its vectors at the addresses that `ring_start` finds.

    Free: the matrix unit installs the vectors from where they lie. Fidelity: exact.

    Args:
        ring: as `append_ring` fills it.
        starts: position of each sequence's first entry.
        axis: positive number of the context axis.
    """
    _check_axis("mem.ring_view", ring, axis)
    return _ring_view(ring, starts, axis=axis)  # type: ignore[no-any-return]


_take_share = primitive(
    "mem_take_share",
    abstract=lambda x, index, *, n_local: jax.ShapeDtypeStruct((n_local, *x.shape[1:]), x.dtype),
    meaning=lambda x, index, *, n_local: lax.dynamic_slice_in_dim(
        x, index * n_local, n_local, axis=0
    ),
    cost=free,
)


@checked
def take_share(
    x: Num[Array, "n ..."], index: Int32[Array, ""], n_local: Count
) -> Num[Array, "..."]:
    """Take share `index` of the leading axis, `n_local` long: each chip reads its own addresses.

    Free.

    Raises:
        LpuError: a share that `x` lacks, where `index` is known.

    Fidelity: exact.
    """
    if isinstance(x.shape[0], int) and isinstance(n_local, int):
        n_shares = x.shape[0] // n_local
        check_within("mem.take_share", "index", index, 0, n_shares - 1, f"{n_shares} shares")
    return _take_share(x, index, n_local=n_local)  # type: ignore[no-any-return]


_pad_rows = primitive(
    "mem_pad_rows",
    abstract=lambda x, *, n: jax.ShapeDtypeStruct((n, *x.shape[1:]), x.dtype),
    meaning=lambda x, *, n: jnp.pad(x, [(0, n - x.shape[0])] + [(0, 0)] * (x.ndim - 1)),
    cost=free,
)


@checked
def pad_rows(x: Num[Array, "m ..."], n: Count) -> Num[Array, "padded ..."]:
    """Append zeros along the leading axis up to `n` rows: the addresses read one vector of zeros.

    Free (assumed). Fidelity: exact.
    """
    if exceeds(x.shape[0], n):
        raise LpuError(
            f"mem.pad_rows: n={n} was given for {x.shape[0]} rows; it must be at least that."
        )
    return _pad_rows(x, n=n)  # type: ignore[no-any-return]


_take_rows = primitive(
    "mem_take_rows",
    abstract=lambda x, rows: jax.ShapeDtypeStruct((x.shape[0], 1, *x.shape[2:]), x.dtype),
    meaning=lambda x, rows: jax.vmap(
        lambda one, row: lax.dynamic_slice_in_dim(one, row, 1, axis=0)
    )(x, rows),
    cost=lambda machine, call: access_cost(
        machine, row_accesses(machine, call.results[0]), call.results[0]
    ),
)


@checked
def take_rows(x: Num[Array, "b t d"], rows: Int32[Array, " b"]) -> Num[Array, "b 1 d"]:
    """Read one row of each sequence by address.

    Raises:
        LpuError: a row that `x` lacks, where `rows` are known.

    Fidelity: exact.
    """
    check_within("mem.take_rows", "rows", rows, 0, x.shape[1] - 1, "x")
    return _take_rows(x, rows)  # type: ignore[no-any-return]


_gather_rows = primitive(
    "mem_gather_rows",
    abstract=lambda table, positions, *, n_new: jax.ShapeDtypeStruct(
        (positions.shape[0], n_new, *table.shape[1:]), table.dtype
    ),
    meaning=lambda table, positions, *, n_new: jax.vmap(
        lambda position: lax.dynamic_slice_in_dim(table, position, n_new, axis=0)
    )(positions),
    cost=lambda machine, call: access_cost(
        machine, row_accesses(machine, call.results[0]), call.results[0]
    ),
)


@checked
def rows_from(
    table: Num[Array, "n d"], positions: Int32[Array, " b"], n_new: Count
) -> Num[Array, "b n_new d"]:
    """Read `n_new` consecutive rows from each position, for tables computed in advance.

    Raises:
        LpuError: rows that the table lacks, where `positions` are known.

    Fidelity: exact.
    """
    check_within("mem.rows_from", "positions", positions, 0, table.shape[0] - n_new, "the table")
    return _gather_rows(table, positions, n_new=n_new)  # type: ignore[no-any-return]
