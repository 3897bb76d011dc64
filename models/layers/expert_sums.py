"""Sums over experts and their columns whose bits no number of chips moves: by trees, or exact.

Per-chip: the `expert` axis splits experts, `tensor` their columns, both together the columns of the
shared expert. Not modelled: rows that travel (`dispatch`), whose sums are rounded on their way.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int32

from lpu_jax.datapath import c2c, expert_slots, matrix_blocks, mem, tree_sums, vxm, wide_sums
from lpu_jax.datapath.axis import Axis
from lpu_jax.errors import LpuError
from lpu_jax.numerics.quantized import QuantizedArray

from ..config import ModelConfig
from ..leaves import expert_leaves, rows_of_leaf
from ..policy import Policy
from .experts import (
    ExpertSizes,
    InSlots,
    activations,
    biased,
    biases,
    result_places,
    weighted_results,
)
from .linear import leaf_products, narrowed, operand_rows, tree_sum, wide_product, wide_total


def summed_by_tree(
    held: InSlots,
    shared: Float[Array, "m f"] | None,
    ids: Int32[Array, "m k"],
    first: Int32[Array, ""],
    weights: Mapping[str, Any],
    *,
    cfg: ModelConfig,
    policy: Policy,
    sizes: ExpertSizes,
    axes: Mapping[str, Axis],
) -> Float[Array, "m d"]:
    """Add the results of experts, and the shared expert's, by binary trees.

    An expert's columns come first, the shared expert's beside them: leaves of this chip, then, as
    each chip of the tensor axis is left its share of the result, across chips. An expert's result,
    biased and weighted, is added by the tree over expert ids, on this chip and then over the expert
    axis; so is what the chips of the expert axis have of the shared expert. Both are added, rounded
    and gathered.

    Args:
        held: the slots.
        shared: rows that multiply the shared expert's `down`; None without one.
        ids: experts of each row.
        first: id of this chip's first expert.
        weights: as in `models.params`, of this chip; columns of `down` are padded to whole shares.
        cfg: the model.
        policy: formats, and how products are made.
        sizes: slots, and rows of each.
        axes: `expert` and `tensor`; the tensor axis lies inside.

    Raises:
        MeshError: the expert axis lies inside the tensor axis.

    Fidelity:
        Order-dependent, the orders are fixed: no slot, capacity or power of two of chips moves a
        bit. fp32 sums, one rounding to the base format.
    """
    moe, m = cfg.moe, ids.shape[0]
    assert moe is not None
    # The shared expert's columns are added over the tensor axis first, as neighbours are.
    c2c.joined(axes["expert"], axes["tensor"])
    flat, n_parts = _whole_columns(
        held, shared, weights, cfg=cfg, policy=policy, axis=axes["tensor"]
    )
    n_slots = held.addresses.shape[0]
    parts = _rows(flat, 0, n_parts).reshape(n_slots, -1, flat.shape[-1])
    parts = weighted_results(biased(parts, weights.get("down_bias"), held.addresses), held, moe)
    total = _sum_by_id(parts, held, ids, first, sizes, moe.n_experts)
    if shared is not None:
        total = matrix_blocks.stacked_rows(total, _rows(flat, n_parts, n_parts + m))
    total = c2c.tree_all_reduce(total, axes["expert"])
    if shared is not None:
        total = vxm.add(_rows(total, 0, m), _rows(total, m, m + m))
    return c2c.all_gather(narrowed(total, policy), axes["tensor"], dim=-1, keep=cfg.d_routed)


def _whole_columns(
    held: InSlots,
    shared: Float[Array, "m f"] | None,
    weights: Mapping[str, Any],
    *,
    cfg: ModelConfig,
    policy: Policy,
    axis: Axis,
) -> tuple[Float32[Array, "rows d_own"], Any]:
    """Add the columns of experts over the chips of an axis; each is left a share of the results.

    Returns:
        The rows of all slots, and behind them what this chip adds of the shared expert; and how
        many rows the slots have.
    """
    moe = cfg.moe
    assert moe is not None
    leaf = partial(rows_of_leaf, cfg, "moe", policy)
    own = None
    if shared is not None:
        own = tree_sum(shared, weights["shared_down"], policy=policy, leaf=leaf("shared_down"))
    h = operand_rows(activations(held, weights, moe=moe, policy=policy), policy, "expert")
    parts = tree_sums.sum_tree(
        leaf_products(h, weights["down"], policy=policy, leaf=leaf("down"), slots=held.addresses)
    )
    flat = parts.reshape(parts.shape[0] * parts.shape[1], parts.shape[2])
    n_parts = flat.shape[0]
    if own is not None:
        flat = matrix_blocks.stacked_rows(flat, own)
    return c2c.tree_reduce_scatter(flat, axis, dim=-1), n_parts


def _rows(x: Float32[Array, "m d"], first: Any, end: Any) -> Float32[Array, "rows d"]:
    """Read some rows: a range of addresses."""
    return lax.slice_in_dim(x, first, end)


def _sum_by_id(
    parts: Float32[Array, "slots rows d"],
    held: InSlots,
    ids: Int32[Array, "m k"],
    first: Int32[Array, ""],
    sizes: ExpertSizes,
    n_experts: int,
) -> Float32[Array, "m d"]:
    """Add each row's results by the tree over expert ids."""
    cut = expert_leaves(n_experts)
    if sizes.capacity is None:
        n_slots, m = parts.shape[:2]
        places = jnp.broadcast_to(held.ids.reshape(n_slots, 1), (n_slots, m))
    else:
        found = result_places(ids, first, sizes)
        parts = mem.lookup(parts.reshape(-1, parts.shape[-1]), found)
        places = expert_slots.ascending(ids)
    return tree_sums.sum_by_id(parts, places, leaf=cut.length, leaves=cut.count)


def summed_exactly(
    held: InSlots,
    shared: Float[Array, "m f"] | None,
    ids: Int32[Array, "m k"],
    first: Int32[Array, ""],
    weights: Mapping[str, Any],
    *,
    cfg: ModelConfig,
    policy: Policy,
    sizes: ExpertSizes,
    across: Axis,
) -> Float[Array, "m d"]:
    """Add the results of experts, and the shared expert's, without rounding.

    A gate weights the rows that multiply `down`, before they are rounded to their format, so that
    all experts of a row are one contraction over experts and columns: its sum, weighted biases
    included, crosses chips in wide numbers, once.

    Args:
        held: the slots.
        shared: rows that multiply the shared expert's `down`; None without one.
        ids: experts of each row.
        first: id of this chip's first expert.
        weights: as in `models.params`, of this chip.
        cfg: the model.
        policy: formats, and how products are made.
        sizes: slots, and rows of each.
        across: the chips of both axes.

    Raises:
        LpuError: experts with a scale of a whole matrix, which cannot follow a sum of several.

    Fidelity:
        Exact sums of products, of weighted biases (see `wide_sums.sum_terms`) and of scaled blocks
        (`linear.wide_product`); one rounding to fp32, one to the base format. A shared expert with
        scales that follow its products is rounded by itself, and added in fp32.

    Source:
        Gates before the second projection: the weighted activations of Megatron-Core's experts.
    """
    moe = cfg.moe
    assert moe is not None
    down = weights["down"]
    if isinstance(down, QuantizedArray) and down.scheme.is_two_level:
        raise LpuError(
            f"moe: split wide adds experts before scales follow, and weights format "
            f"{down.scheme.name} has a scale of a whole matrix; choose another split."
        )
    h = weighted_results(activations(held, weights, moe=moe, policy=policy), held, moe)
    h = operand_rows(h, policy, "expert")
    parts = wide_product(h, down, policy=policy, slots=held.addresses)
    if "down_bias" in weights:
        n_slots, n_rows, n_words, d = parts.shape
        bias = biases(weights["down_bias"], held.addresses, d)
        terms = vxm.mul(bias, held.gates.reshape(n_slots, n_rows, 1))
        parts = wide_sums.add(parts, wide_sums.sum_terms(terms.reshape(1, n_slots, n_rows, d)))
    if sizes.capacity is not None:
        *_, n_words, d = parts.shape
        places = result_places(ids, first, sizes)
        parts = mem.lookup(parts.reshape(-1, n_words * d), places)
        parts = parts.reshape(*places.shape, n_words, d)
    total = wide_sums.sum_leading(parts)
    alone = None  #: the shared expert's result, where it cannot be part of the sum
    if shared is not None:
        shared_down = weights["shared_down"]
        if _is_scaled_after(shared_down):
            alone = wide_total(shared, shared_down, policy=policy, axis=across)
        else:
            total = wide_sums.add(total, wide_product(shared, shared_down, policy=policy))
    out = wide_sums.to_fp32(c2c.wide_all_reduce(total, across))
    return narrowed(out if alone is None else vxm.add(out, alone), policy)


def _is_scaled_after(w: Any) -> bool:
    """Whether scales follow the products with a matrix."""
    return isinstance(w, QuantizedArray) and (w.scheme.multiplies_bare or w.scheme.is_two_level)
