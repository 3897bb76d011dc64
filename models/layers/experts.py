"""Experts in static slots: which rows and weights a slot has, what it computes, and the plain sum.

The chip cannot run a data-dependent number of instructions: data chooses from which address weights
stream and which rows they multiply, the number of slots and the rows of each are fixed. How many
slots a step needs is the plan's question; a program with too few leaves rows out, so what runs has
the worst case. Not here: what crosses chips (`moe`, `expert_sums`, `dispatch`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Array, Float, Float32, Int32

from lpu_jax.datapath import c2c, expert_slots, mem, sxm, vxm
from lpu_jax.datapath.axis import Axis

from ..config import MoeConfig
from ..policy import Policy
from .linear import Split, operand_rows, product
from .mlp import expert_activations


@dataclass(frozen=True, kw_only=True)
class ExpertSizes:
    """Lengths that a mixture's program has on each chip; all may be symbolic.

    Attributes:
        n_local: experts of each chip, padding included.
        slots: slots of each chip. An expert takes one, or as many as its rows fill.
        capacity: rows that a slot multiplies, gathered by address; None: each slot multiplies all
            rows where they are.
        sent: rows that a chip can send to each other chip (all-to-all dispatch only); None: as
            many as it has.
    """

    n_local: Any
    slots: Any
    capacity: Any = None
    sent: Any = None


@dataclass(frozen=True, kw_only=True)
class InSlots:
    """What a chip's slots hold for a step: data names it, the program does not change."""

    #: normalised rows in the format that multiplies expert weights: for all slots, or of each
    rows: Float[Array, "..."]
    ids: Int32[Array, " slots"]  #: the expert of each slot, ascending; -1 for an empty one
    addresses: Int32[Array, " slots"]  #: where in the store it lies; -1 for an empty slot
    #: weight of each slot for each of its rows, 0 where the row does not use it
    gates: Float32[Array, "slots m"]


def in_slots(
    y: Float[Array, "m d"],
    ids: Int32[Array, "m k"],
    gate_weights: Float32[Array, "m k"],
    placement: Mapping[str, Array],
    *,
    moe: MoeConfig,
    sizes: ExpertSizes,
) -> InSlots:
    """Fill a chip's slots with those of the rows' experts that it holds, by ascending expert id.

    Args:
        y: normalised rows in the format that multiplies expert weights.
        ids: experts of each row; -1 for none.
        gate_weights: their weights.
        placement: as for `moe.mixture`.
        moe: how many experts there are.
        sizes: slots, and rows of each.
    """
    first = placement["first_expert"].reshape(())
    if sizes.capacity is None:
        slots = expert_slots.local_slots(ids, first, n_local=sizes.n_local, n_slots=sizes.slots)
        gates = expert_slots.one_hot_gate(slots, ids, gate_weights)
    else:
        slots, rows, pairs = expert_slots.fill_slots(
            ids, first, n_local=sizes.n_local, n_slots=sizes.slots, capacity=sizes.capacity
        )
        y = mem.lookup(y, rows)
        gates = mem.lookup(gate_weights.reshape(-1, 1), pairs)
        gates = gates.reshape(*pairs.shape)
    addresses = mem.select_expert(placement["address"].reshape(moe.n_experts), slots)
    return InSlots(rows=y, ids=slots, addresses=addresses, gates=gates)


def activations(
    held: InSlots, weights: Mapping[str, Any], *, moe: MoeConfig, policy: Policy
) -> Float32[Array, "n m f"]:
    """Multiply the rows of each slot by gate and up projections, and combine these.

    Args:
        held: the slots.
        weights: `gate_up` `[held, d, n, f]`; with biases `gate_up_bias` `[held, n, f]`; `n` is 2,
            or 1 without gates.
        moe: the experts' activation.
        policy: formats, and how products are made.

    Fidelity:
        See `linear.product`; a bias is one fp32 addition. Where weights multiply what experts are
        given, they multiply the products instead, in fp32, which is the same but for roundings.
    """
    gate_up, bias = weights["gate_up"], weights.get("gate_up_bias")
    h = product(held.rows, gate_up, policy=policy, slots=held.addresses)
    h = biased(h, bias, held.addresses)
    if moe.weighs_rows:
        h = weighted(h, held.gates)
    return expert_activations(h, gate_up.shape[3], moe)


def biased(
    out: Float32[Array, "n m d_out"],
    store: Float32[Array, "held rows columns"] | None,
    addresses: Int32[Array, " slots"],
) -> Float32[Array, "n m d_out"]:
    """Add the bias of each slot's expert, the first row of its store; an empty slot has none."""
    if store is None:
        return out
    return vxm.add(out, biases(store, addresses, out.shape[-1]))


def biases(
    store: Float32[Array, "held rows columns"], addresses: Int32[Array, " slots"], width: Any
) -> Float32[Array, "slots 1 width"]:
    """Look up the bias of each slot's expert."""
    held, n_rows, n_columns = store.shape
    table = sxm.keep_columns(store.reshape(held, n_rows * n_columns), width)
    return mem.lookup(table, addresses).reshape(addresses.shape[0], 1, width)


def weighted_results(
    out: Float32[Array, "n m d_out"], held: InSlots, moe: MoeConfig
) -> Float32[Array, "n m d_out"]:
    """Weight results, unless what experts were given was weighted: others are zeros already."""
    return out if moe.weighs_rows else weighted(out, held.gates)


def weighted(
    out: Float32[Array, "n m d_out"], gates: Float32[Array, "n m"]
) -> Float32[Array, "n m d_out"]:
    """Weight results by their gates; exact zeros where a row does not use the slot's expert."""
    gate = gates.reshape(*gates.shape, 1)
    return vxm.select(vxm.less_equal(gate, 0.0), 0.0, vxm.mul(out, gate))


def local_experts(
    held: InSlots,
    weights: Mapping[str, Any],
    *,
    moe: MoeConfig,
    policy: Policy,
    split: Split,
    axes: Mapping[str, Axis],
) -> Float32[Array, "n rows d_out"]:
    """Run the experts in a chip's slots and weight their results.

    Args:
        held: the slots.
        weights: stores as for `activations`, and `down` `[held, f, d]`; with biases `down_bias`
            `[held, n, d]`, whose first row counts.
        moe: the experts' activation, and what weights multiply.
        policy: formats, and how products are made.
        split: how `down` is split over the tensor axis: `ROW` or `COLUMN`.
        axes: `expert` and `tensor`.

    Returns:
        Weighted results of each slot: of all rows, or with a capacity of its own. For `Split.ROW` a
        bias of `down` is part of the partial sums of the chip that holds it.

    Fidelity: see `linear.product`; a bias is one fp32 addition to the product, before the weight.
    """
    h = operand_rows(activations(held, weights, moe=moe, policy=policy), policy, "expert")
    if split is Split.COLUMN:
        h = c2c.all_gather(h, axes["tensor"], dim=-1)
    out = product(h, weights["down"], policy=policy, slots=held.addresses)
    return weighted_results(biased(out, weights.get("down_bias"), held.addresses), held, moe)


def sum_of_experts(
    parts: Float[Array, "n rows d"],
    ids: Int32[Array, "m k"],
    first: Int32[Array, ""],
    sizes: ExpertSizes,
    n_chips: Any = 1,
) -> Float32[Array, "m d"]:
    """Add each row's results by ascending expert id.

    Args:
        parts: what `local_experts` returns, of as many chips, laid end to end.
        ids: experts of each row; -1 for none.
        first: id of the first chip's first expert.
        sizes: slots, and rows of each.
        n_chips: chips.

    Fidelity: order-dependent fp32 sums, the order is fixed: no slot, capacity or chip moves a bit.
    """
    if sizes.capacity is None:
        return vxm.sum_leading(vxm.to_fp32(parts))
    places = result_places(ids, first, sizes, n_chips)
    found = mem.lookup(parts.reshape(-1, parts.shape[-1]), places)
    return vxm.sum_leading(vxm.to_fp32(found))


def result_places(
    ids: Int32[Array, "m k"], first: Int32[Array, ""], sizes: ExpertSizes, n_chips: Any = 1
) -> Int32[Array, "k m"]:
    """Find where the results of each row's experts lie, by ascending expert id."""
    return expert_slots.result_places(
        ids,
        first,
        n_chips=n_chips,
        n_local=sizes.n_local,
        n_slots=sizes.slots,
        capacity=sizes.capacity,
    )
