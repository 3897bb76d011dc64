"""The mixture-of-experts block: routing, experts in static slots, and their ordered sum.

The chip cannot run a data-dependent number of instructions: data chooses from which address weights
stream and which rows they multiply, the number of slots and the rows of each are fixed. The block
is cut at that place: `route`, `mem.select_expert`, `experts`. Here every chip has every row;
`dispatch` sends rows to the chips of their experts. How many slots a step needs is the plan's
question; a program with too few leaves rows out, so what runs has the worst case.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from lpu_jax.datapath import c2c, expert_slots, mem, sxm, vxm
from lpu_jax.datapath.axis import Axis

from ..config import ModelConfig, MoeConfig
from ..policy import Policy
from .linear import Split, add_residual, linear, narrowed, operand_rows, product, project_out
from .mlp import clamped_swiglu, swiglu
from .norm import rms_norm
from .router import route, router_logits


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


def experts(
    y: Float[Array, "..."],
    weights: Mapping[str, Any],
    rows: Int32[Array, " slots"],
    gates: Float32[Array, "slots m"],
    *,
    moe: MoeConfig,
    policy: Policy,
    split: Split,
    axes: Mapping[str, Axis],
) -> Float32[Array, "n m d_out"]:
    """Run the experts in the slots over their rows and weight the results.

    Args:
        y: normalised rows in the format that multiplies expert weights: `[m, d]` for all slots, or
            those of each, `[slots, m, d]`.
        weights: stores `gate_up` `[held, d, 2, f]` and `down` `[held, f, d]`; with biases
            `gate_up_bias` `[held, 2, f]` and `down_bias` `[held, n, d]`, whose first row counts.
        rows: where in the store each slot's expert lies, -1 for an empty slot.
        gates: weight of each slot for each row, 0 where the row does not use it.
        moe: the experts' activation.
        policy: formats, and how products are made.
        split: how `down` is split over the tensor axis.
        axes: `expert` and `tensor`.

    Returns:
        Weighted results of each slot; exact zeros where a row does not use it. For `Split.ROW` a
        bias of `down` is part of the partial sums of the chip that holds it.

    Fidelity: see `product`; a bias is one fp32 addition to the product, before the weight.
    """
    gate_up = weights["gate_up"]
    h = _biased(product(y, gate_up, policy=policy, slots=rows), weights.get("gate_up_bias"), rows)
    if moe.swiglu_limit is None:
        h = swiglu(h, gate_up.shape[3])
    else:
        h = clamped_swiglu(h, gate_up.shape[3], limit=moe.swiglu_limit, alpha=moe.swiglu_alpha)
    h = operand_rows(h, policy, "expert")
    if split is Split.COLUMN:
        h = c2c.all_gather(h, axes["tensor"], dim=-1)
    out = product(h, weights["down"], policy=policy, slots=rows)
    out = _biased(out, weights.get("down_bias"), rows)
    gate = gates.reshape(*gates.shape, 1)
    return vxm.select(vxm.less_equal(gate, 0.0), 0.0, vxm.mul(out, gate))


def _biased(
    out: Float32[Array, "n m d_out"],
    store: Float32[Array, "held rows columns"] | None,
    rows: Int32[Array, " slots"],
) -> Float32[Array, "n m d_out"]:
    """Add the bias of each slot's expert; an empty slot has none."""
    if store is None:
        return out
    n_slots, _, width = out.shape
    held, n_rows, n_columns = store.shape
    table = sxm.keep_columns(store.reshape(held, n_rows * n_columns), width)
    bias = mem.lookup(table, rows)
    return vxm.add(out, bias.reshape(n_slots, 1, width))


def local_experts(
    y: Float[Array, "m d"],
    ids: Int32[Array, "m k"],
    gate_weights: Float32[Array, "m k"],
    weights: Mapping[str, Any],
    placement: Mapping[str, Array],
    *,
    moe: MoeConfig,
    policy: Policy,
    split: Split,
    sizes: ExpertSizes,
    axes: Mapping[str, Axis],
) -> Float32[Array, "n rows d_out"]:
    """Run those of the rows' experts that this chip holds, in slots by ascending expert id.

    Args:
        y: normalised rows in the format that multiplies expert weights.
        ids: experts of each row; -1 for none.
        gate_weights: their weights.
        weights: as for `experts`.
        placement: as for `mixture`.
        moe: the experts' activation.
        policy: formats, and how products are made.
        split: how `down` is split over the tensor axis.
        sizes: slots, and rows of each.
        axes: `expert` and `tensor`.

    Returns:
        What `experts` returns: of each slot the results of all rows, or with a capacity of its own.
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
    return experts(y, weights, addresses, gates, moe=moe, policy=policy, split=split, axes=axes)


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
    places = expert_slots.result_places(
        ids,
        first,
        n_chips=n_chips,
        n_local=sizes.n_local,
        n_slots=sizes.slots,
        capacity=sizes.capacity,
    )
    found = mem.lookup(parts.reshape(-1, parts.shape[-1]), places)
    return vxm.sum_leading(vxm.to_fp32(found))


def mixture(
    x: Float[Array, "b t d"],
    weights: Mapping[str, Any],
    placement: Mapping[str, Array],
    *,
    cfg: ModelConfig,
    policy: Policy,
    split: Split,
    sizes: ExpertSizes,
    axes: Mapping[str, Axis],
) -> Float[Array, "b t d"]:
    """Mixture-of-experts block in which every chip routes every row.

    Args:
        x: hidden state, replicated in the group.
        weights: as in `models.params`, this chip's experts and its share of their width.
        placement: `first_expert` `[1]`, and `address` `[1, e]`: the store row of every expert.
        cfg: the model.
        policy: formats, and how products are made.
        split: `ROW`: partial sums are added by an all-reduce. `COLUMN`: every expert's result is
            gathered and summed by ascending expert id, so that the split moves no rounding.
        sizes: slots, and rows of each.
        axes: `expert` and `tensor`, in the order of the mesh, outermost first.

    Returns:
        The new hidden state, replicated.

    Fidelity:
        Order-dependent, the order is fixed. A chip adds its experts' results by ascending expert
        id, then the shared expert's, in fp32. `ROW`: its sum is rounded to the base format and
        added in chip order (`c2c.all_reduce`). The hidden state is added last.
    """
    moe = cfg.moe
    assert moe is not None
    b, t, d = x.shape
    # In the order of the mesh: its shares and its sums follow the numbers of the chips.
    everywhere = c2c.joined(*(axis for name, axis in axes.items() if name in ("expert", "tensor")))
    y = rms_norm(vxm.to_fp32(x.reshape(b * t, d)), weights["norm"], cfg.norm_eps)
    router_rows, expert_rows, shared_rows = operand_rows(y, policy, "router", "expert", "shared")
    logits = router_logits(router_rows, weights, policy=policy)
    # The shared expert needs no route: its products keep the matrix unit busy while experts are
    # chosen on the vector unit.
    shared = linear(shared_rows, weights["shared_gate_up"], policy=policy) if moe.n_shared else None
    ids, gate_weights = route(logits, weights, moe)
    shared_out = None
    if shared is not None:
        h = operand_rows(swiglu(shared, weights["shared_gate_up"].shape[2]), policy, "shared")
        down = weights["shared_down"]
        if split is Split.ROW:
            shared_out = linear(h, down, policy=policy)
        else:
            whole = project_out(
                h, down, rows=1, policy=policy, split=split, axis=everywhere, d_model=d
            )
            shared_out = vxm.to_fp32(whole)
    parts = local_experts(
        expert_rows,
        ids,
        gate_weights,
        weights,
        placement,
        moe=moe,
        policy=policy,
        split=split,
        sizes=sizes,
        axes=axes,
    )
    if split is Split.COLUMN:
        parts = _gathered(parts, axes, everywhere, d, policy)
        out = sum_of_experts(
            parts, ids, jnp.zeros((), jnp.int32), sizes, n_chips=axes["expert"].size
        )
    else:
        out = sum_of_experts(parts, ids, placement["first_expert"].reshape(()), sizes)
    if shared_out is not None:
        out = vxm.add(out, shared_out)
    out = narrowed(out, policy)
    if split is Split.ROW:
        out = c2c.all_reduce(out, everywhere)
    return add_residual(x, out.reshape(b, t, d), policy)


def _gathered(
    parts: Float32[Array, "slots rows d_out"],
    axes: Mapping[str, Axis],
    everywhere: Axis,
    d_model: int,
    policy: Policy,
) -> Float[Array, "n rows d"]:
    """Bring the experts' results of all chips together, by ascending expert id."""
    n_slots, m, width = parts.shape
    chips, ways = axes["expert"].size, axes["tensor"].size
    gathered = c2c.all_gather(narrowed(parts, policy), everywhere, dim=-3)
    # Chips come in the order of the mesh: c of the expert axis, w of the tensor axis.
    chip = " ".join({"expert": "c", "tensor": "w"}.get(axis, "") for axis in axes)
    by_expert = sxm.rearrange(
        gathered,
        f"({chip} s) m d -> (c s) m (w d)",
        c=chips,
        w=ways,
        s=n_slots,
        m=m,
        d=width,
    )
    return sxm.keep_columns(by_expert, d_model)
