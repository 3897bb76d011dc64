"""The mixture-of-experts block: routing, experts in static slots, and their ordered sum.

The chip cannot run a data-dependent number of instructions: data chooses from which address weights
stream, the number of slots is fixed. The block is cut at that place: `route`, `mem.select_expert`,
`experts`. Not built: capacity below the worst case, softmax routing, experts with biases.
"""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Float, Float32, Int32

from lpu_jax.datapath import c2c, mem, selection, sxm, vxm
from lpu_jax.datapath.c2c import Axis

from ..config import ModelConfig, MoeConfig
from ..policy import Policy
from .linear import Split, add_residual, linear, narrowed, operand_rows, product, project_out
from .mlp import swiglu
from .norm import rms_norm


def route(
    logits: Float32[Array, "m e"], bias: Float32[Array, " e"], moe: MoeConfig
) -> tuple[Int32[Array, "m k"], Float32[Array, "m k"]]:
    """Choose experts by the sigmoid router with a correction bias and limited groups.

    Every chip routes every row.

    Args:
        logits: normalised rows times the router's matrix.
        bias: added to the scores to choose, not to weigh.
        moe: the router's numbers.

    Returns:
        Experts of each row by falling biased score, and their weights: the unbiased scores,
        normalised and scaled.

    Fidelity: approximate; a choice between equal scores takes the lower expert.
    """
    m = logits.shape[0]
    scores = vxm.sigmoid(logits)
    biased = vxm.add(scores, bias.reshape(1, moe.n_experts))
    if moe.n_groups > 1:
        grouped = biased.reshape(m, moe.n_groups, moe.experts_per_group)
        best_two, _ = selection.top_k(grouped, 2)
        group_scores = vxm.sum_lanes(best_two).reshape(m, moe.n_groups)
        _, groups = selection.top_k(group_scores, moe.topk_groups)
        biased = selection.keep_groups(biased, groups, moe.n_groups)
    _, ids = selection.top_k(biased, moe.top_k)
    weights = selection.take_lanes(scores, ids)
    if moe.normalise:
        weights = vxm.div(weights, vxm.add(vxm.sum_lanes(weights), 1e-20))
    return ids, vxm.mul(weights, moe.routed_scaling)


def experts(
    y: Float[Array, "m d"],
    gate_up: Any,
    down: Any,
    rows: Int32[Array, " slots"],
    gates: Float32[Array, "slots m"],
    *,
    policy: Policy,
    split: Split,
    axes: Mapping[str, Axis],
) -> Float32[Array, "n m d_out"]:
    """Run the experts in the slots over all rows and weigh their results.

    Args:
        y: normalised rows in the format that multiplies expert weights.
        gate_up: store `[held, d, 2, f]`.
        down: store `[held, f, d]`.
        rows: where in the store each slot's expert lies, -1 for an empty slot.
        gates: weight of each slot for each row, 0 where the row does not use it.
        policy: formats, and how products are made.
        split: how `down` is split over the tensor axis.
        axes: `expert` and `tensor`.

    Returns:
        Weighed results of each slot; exact zeros where a row does not use it.
    """
    h = product(y, gate_up, policy=policy, slots=rows)
    h = operand_rows(swiglu(h, gate_up.shape[3]), policy, "expert")
    if split is Split.COLUMN:
        h = c2c.all_gather(h, axes["tensor"], dim=-1)
    out = product(h, down, policy=policy, slots=rows)
    gate = gates.reshape(*gates.shape, 1)
    return vxm.select(vxm.less_equal(gate, 0.0), 0.0, vxm.mul(out, gate))


def mixture(
    x: Float[Array, "b t d"],
    weights: Mapping[str, Any],
    placement: Mapping[str, Array],
    *,
    cfg: ModelConfig,
    policy: Policy,
    split: Split,
    n_local: Any,
    n_slots: Any,
    axes: Mapping[str, Axis],
) -> Float[Array, "b t d"]:
    """Mixture-of-experts block with a shared expert.

    Args:
        x: hidden state, replicated in the group.
        weights: as in `models.params`, this chip's experts and its share of their width.
        placement: `first_expert` `[1]`, and `address` `[1, e]`: the store row of every expert.
        cfg: the model.
        policy: formats, and how products are made.
        split: `ROW`: partial sums are added by an all-reduce. `COLUMN`: every expert's result is
            gathered and summed by ascending expert id, so that the split moves no rounding.
        n_local: experts of each chip, padding included.
        n_slots: static slots; `min(n_local, rows * top_k)` cannot overflow.
        axes: `expert` and `tensor`, in the order of the mesh, outermost first.

    Returns:
        The new hidden state, replicated.
    """
    moe = cfg.moe
    assert moe is not None
    b, t, d = x.shape
    # In the order of the mesh: its shares and its sums follow the numbers of the chips.
    everywhere = c2c.joined(*(axis for name, axis in axes.items() if name in ("expert", "tensor")))
    y = rms_norm(vxm.to_fp32(x.reshape(b * t, d)), weights["norm"], cfg.norm_eps)
    router_rows, expert_rows, shared_rows = operand_rows(y, policy, "router", "expert", "shared")
    logits = linear(router_rows, weights["router"], policy=policy)
    # The shared expert needs no route: its products keep the matrix unit busy while experts are
    # chosen on the vector unit.
    shared = linear(shared_rows, weights["shared_gate_up"], policy=policy) if moe.n_shared else None
    ids, gate_weights = route(logits, weights["router_bias"], moe)
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
    slots = selection.local_slots(
        ids, placement["first_expert"].reshape(()), n_local=n_local, n_slots=n_slots
    )
    rows = mem.select_expert(placement["address"].reshape(moe.n_experts), slots)
    gates = selection.one_hot_gate(slots, ids, gate_weights)
    parts = experts(
        expert_rows,
        weights["gate_up"],
        weights["down"],
        rows,
        gates,
        policy=policy,
        split=split,
        axes=axes,
    )
    if split is Split.COLUMN:
        parts = _gathered(parts, axes, everywhere, d, policy)
    out = vxm.sum_leading(parts)
    if shared_out is not None:
        out = vxm.add(out, shared_out)
    out = narrowed(out, policy)
    if split is Split.ROW:
        out = c2c.all_reduce(out, everywhere)
    return add_residual(x, out.reshape(b, t, d), policy)


def _gathered(
    parts: Float32[Array, "slots m d_out"],
    axes: Mapping[str, Axis],
    everywhere: Axis,
    d_model: int,
    policy: Policy,
) -> Float32[Array, "n m d"]:
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
    return vxm.to_fp32(sxm.keep_columns(by_expert, d_model))
