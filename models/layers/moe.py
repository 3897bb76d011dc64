"""The mixture-of-experts block in which every chip has every row: routing, experts, and their sum.

What runs in slots is in `experts`, sums whose bits no split moves are in `expert_sums`; `dispatch`
sends rows to the chips of their experts.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from lpu_jax.datapath import c2c, sxm, vxm
from lpu_jax.datapath.axis import Axis

from ..config import ModelConfig
from ..policy import Policy
from .expert_rows import joined_results, normed_rows, rounded, shared_alone
from .expert_sums import summed_by_tree, summed_exactly
from .experts import ExpertSizes as ExpertSizes
from .experts import InSlots, in_slots, local_experts, sum_of_experts
from .latent_experts import into_latent, out_of_latent
from .linear import Split, add_residual, linear, narrowed, project_out, summed
from .mlp import shared_activations
from .router import route, router_logits


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
            gathered and summed by ascending expert id, so that the split moves no rounding. `TREE`,
            `WIDE`: see `expert_sums`.
        sizes: slots, and rows of each.
        axes: `expert` and `tensor`, in the order of the mesh, outermost first.

    Returns:
        The new hidden state, replicated.

    Fidelity:
        Order-dependent, the order is fixed. A chip adds its experts' results by ascending expert
        id, then the shared expert's, in fp32; with a latent the shared expert's are a sum of their
        own (`latent_experts`). `ROW`: its sum is rounded to the format of the wire and
        added in chip order (`linear.summed`). `TREE` and `WIDE` have orders of their own, or none.
        The hidden state is added last. Where either kind of expert has norms of its own, their
        results cross chips apart, and are normalised and added in fp32.
    """
    moe = cfg.moe
    assert moe is not None
    b, t, d = x.shape
    # In the order of the mesh: its shares and its sums follow the numbers of the chips.
    across = c2c.joined(*(axis for name, axis in axes.items() if name in ("expert", "tensor")))
    normed = normed_rows(vxm.to_fp32(x.reshape(b * t, d)), weights, cfg)
    router_rows, expert_rows, shared_rows = rounded(normed, policy, "router", "expert", "shared")
    logits = router_logits(router_rows, weights, policy=policy)
    how: dict[str, Any] = {"cfg": cfg, "policy": policy}
    if moe.d_latent is not None:
        expert_rows = into_latent(shared_rows, weights, **how, across=across)
    # The shared expert needs no route: its products keep the matrix unit busy while experts are
    # chosen on the vector unit.
    shared = linear(shared_rows, weights["shared_gate_up"], policy=policy) if moe.n_shared else None
    ids, gate_weights = route(logits, weights, moe)
    h, beside = None, None
    if shared is not None:
        h = shared_activations(shared, router_rows, weights, policy, moe)
    if h is not None and (moe.d_latent is not None or moe.has_own_norms):  # needs no route either
        beside = shared_alone(h, weights, **how, split=split, across=across)
        h = None
    first = placement["first_expert"].reshape(())
    slots = partial(in_slots, expert_rows, ids, gate_weights, placement, moe=moe, sizes=sizes)
    if split is Split.TREE:
        out = summed_by_tree(slots(), h, ids, first, weights, **how, sizes=sizes, axes=axes)
    elif split is Split.WIDE:
        out = summed_exactly(slots(), h, ids, first, weights, **how, sizes=sizes, across=across)
    else:
        out = _summed_in_order(
            slots,
            h,
            ids,
            first,
            weights,
            **how,
            sizes=sizes,
            split=split,
            axes=axes,
            across=across,
        )
    if moe.d_latent is not None:
        out = out_of_latent(out, beside, weights, **how, across=across)
    elif beside is not None:
        out = joined_results(vxm.to_fp32(out), vxm.to_fp32(beside), weights, cfg)
    return add_residual(x, out.reshape(b, t, d), cfg, policy, weights)


def _summed_in_order(
    slots: Callable[[], InSlots],
    shared: Float[Array, "m f"] | None,
    ids: Int32[Array, "m k"],
    first: Int32[Array, ""],
    weights: Mapping[str, Any],
    *,
    cfg: ModelConfig,
    policy: Policy,
    sizes: ExpertSizes,
    split: Split,
    axes: Mapping[str, Axis],
    across: Axis,
) -> Float[Array, "m d"]:
    """Add the results of a row's experts by ascending id, then the shared expert's; see `mixture`.

    Args:
        slots: fills the slots, behind the shared expert's product.
        shared: rows that multiply the shared expert's `down`; None without one.
        ids: experts of each row.
        first: id of this chip's first expert.
        weights: as in `models.params`, of this chip.
        cfg: the model.
        policy: formats, and how products are made.
        sizes: slots, and rows of each.
        split: `ROW` or `COLUMN`.
        axes: `expert` and `tensor`.
        across: the chips of both.
    """
    assert cfg.moe is not None
    shared_out, d = None, cfg.d_routed
    if shared is not None and split is Split.ROW:
        shared_out = linear(shared, weights["shared_down"], policy=policy)
    elif shared is not None:
        down = weights["shared_down"]
        whole = project_out(
            shared, down, rows=1, policy=policy, split=split, axis=across, d_model=d
        )
        shared_out = vxm.to_fp32(whole)
    parts = local_experts(slots(), weights, moe=cfg.moe, policy=policy, split=split, axes=axes)
    n_chips = 1
    if split is Split.COLUMN:
        parts = _gathered(parts, axes, across, d, policy)
        first, n_chips = jnp.zeros((), jnp.int32), axes["expert"].size
    out = sum_of_experts(parts, ids, first, sizes, n_chips)
    if shared_out is not None:
        out = vxm.add(out, shared_out)
    return summed(out, across, policy) if split is Split.ROW else narrowed(out, policy)


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
