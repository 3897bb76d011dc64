"""Sums by a fixed binary tree: a part of the tree is the tree of a part.

What it computes: fp32 sums on the vector unit whose order no share of the work decides: pieces that
lie one after another are added in pairs, then the pairs, and so on, here and across chips
(`c2c.tree_all_reduce`). What it costs: an addition for each piece but one. Not modelled: additions
that start before all pieces are there.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float32, Int32

from ..arguments import Positive, checked
from ..errors import LpuError
from ..numerics import arithmetic, elementary
from .expert_slots import listing_work
from .primitive import primitive
from .work import Call, Hardware, Quantity, Unit, Work, ceil_div, choose, largest, product, vectors


def _sum_tree_cost(machine: Hardware, call: Call) -> Work:
    chip = machine.chip
    (x,) = call.operands
    n = x.shape[0]
    total = choose(n > 1, vectors(x, chip), 0.0)
    limits = {
        "ALUs": total * (n - 1) / n / chip.vxm_alus_per_lane,
        "streams in": total / chip.vxm_stream_groups,
    }
    depth = np.ceil(np.log2(n))
    return Work(
        unit=Unit.VXM,
        busy_cycles=largest(*limits.values()),
        limits=limits,
        latency_cycles=choose(n > 1, chip.vxm_entry_cycles + chip.alu_cycles * depth, 0.0),
        absent=n <= 1,
    )


_sum_tree = primitive(
    "vxm_sum_tree",
    abstract=lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype),
    meaning=elementary.sum_tree,
    cost=_sum_tree_cost,
)


@checked
def sum_tree(x: Float32[Array, "n ..."]) -> Float32[Array, "..."]:
    """Sum the leading axis by pairs of neighbours, then their sums, and so on; -0 counts as +0.

    Raises:
        LpuError: its length is known, and no power of two.

    Fidelity: order-dependent, the order is fixed; whole subtrees of zeros change no bit.
    """
    n = x.shape[0]
    if isinstance(n, int) and (not n or n & n - 1):
        raise LpuError(
            f"tree_sums.sum_tree: a leading axis of {n} was given; its length must be a power of "
            "two."
        )
    return _sum_tree(x)  # type: ignore[no-any-return]


# --- entries with places in a tree ----------------------------------------------------------------


def _sum_by_id_meaning(x: Array, ids: Array, *, leaf: int, leaves: int) -> Array:
    x = elementary.add(x, jnp.zeros_like(x))  # -0 becomes +0
    place = jnp.where(ids < 0, -1, ids // leaf)
    for level in range(leaves.bit_length()):
        x = _runs_summed(x, place >> level)
    # All that is not zero has come together in one entry of each row.
    return elementary.sum_leading(x)


def _runs_summed(x: Array, place: Array) -> Array:
    """Add entries of equal places that follow each other, in order; the last gets the sum."""
    ends = jnp.concatenate([place[1:] != place[:-1], jnp.ones_like(place[:1], bool)])

    def step(
        state: tuple[Array, Array], at: tuple[Array, ...]
    ) -> tuple[tuple[Array, Array], Array]:
        total, before = state
        value, here, is_end = at
        total = jnp.where((here == before)[:, None], arithmetic.add(total, value), value)
        return (total, here), jnp.where(is_end[:, None], total, jnp.float32(0))

    start = (jnp.zeros_like(x[0]), jnp.full_like(place[0], -2))
    summed: Array = lax.scan(step, start, (x, place, ends))[1]
    return summed


def _sum_by_id_cost(machine: Hardware, call: Call) -> Work:
    """Cost an addition for each entry but one, its operands at run-time addresses (assumed).

    The order of additions is a list for each row, found by comparing neighbouring places.
    """
    chip = machine.chip
    x, ids = call.operands
    n, rows = x.shape[0], product(x.shape[1:-1])
    row_vectors = ceil_div(x.shape[-1] * 4, chip.vector_bytes)
    accesses = 2 * (n - 1) * rows * ceil_div(row_vectors, chip.mem_slices_per_address)
    added: Quantity = (n - 1) * vectors(call.results[0], chip)
    listed = listing_work(machine, 4 * vectors(ids, chip))
    limits = {
        "ALUs": added / chip.vxm_alus_per_lane,
        "streams in": 2 * added / chip.vxm_stream_groups,
        "addresses": accesses / chip.mem_accesses_per_cycle,
    }
    return Work(
        unit=Unit.VXM,
        busy_cycles=largest(*limits.values()) + listed.busy_cycles,
        limits={**limits, "order of additions": listed.busy_cycles},
        latency_cycles=chip.vxm_entry_cycles + chip.alu_cycles * n,
        result_is_last=True,
    )


_sum_by_id = primitive(
    "vxm_sum_by_id",
    abstract=lambda x, ids, **_: jax.ShapeDtypeStruct(x.shape[1:], x.dtype),
    meaning=_sum_by_id_meaning,
    cost=_sum_by_id_cost,
)


@checked
def sum_by_id(
    x: Float32[Array, "n m d"], ids: Int32[Array, "n m"], *, leaf: Positive, leaves: Positive
) -> Float32[Array, "m d"]:
    """Sum entries by a binary tree over their ids, of which each row has few.

    `leaf` ids that follow each other form a leaf, whose entries are added in ascending order;
    leaves are added as by `sum_tree`. Ids without an entry count as zeros, which need no addition.

    Args:
        x: entries of each row.
        ids: of the entries, by ascending `n`, -1 for zeros before or behind the others.
        leaf: ids of a leaf.
        leaves: a power of two; ids are below `leaf * leaves`.

    Raises:
        LpuError: a number of leaves that is no power of two.

    Fidelity:
        Order-dependent, the order is fixed: whichever of the entries are left out as zeros, and
        summed elsewhere as a whole subtree, the sum of both has the same bits.
    """
    if leaves & leaves - 1:
        raise LpuError(
            f"tree_sums.sum_by_id: leaves={leaves} was given; it must be a power of two."
        )
    return _sum_by_id(x, ids, leaf=leaf, leaves=leaves)  # type: ignore[no-any-return]
