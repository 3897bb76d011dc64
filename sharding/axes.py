"""From a plan's degrees to lengths and specs: logical axes onto mesh axes, shares rounded up.

Lengths may be numbers, arrays with one entry per plan, or symbols, so that the search, a single
plan and the symbolic trace of a block use the same rules. The order of a block's mesh axes decides
which chips are neighbours.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from math import prod
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from lpu_jax.datapath.mem import POSITIONS_STEP, ring_length
from lpu_jax.machine.system import System
from lpu_jax.mesh import ChipMesh
from models.blocks import BLOCK_KINDS, Kind, Leaf, Sizes, is_leaf
from models.config import GqaConfig, ModelConfig
from models.layers.dispatch import Dispatch
from models.layers.linear import Split
from models.leaves import axis_lengths as axis_lengths
from models.leaves import granules as granules
from models.leaves import leaves
from models.policy import Policy

from .plan import AXES, PARTS, Plan, PlanAxis, Shard, VocabShard
from .request import Request


@cache
def _ordered(part: str, order: tuple[str, ...]) -> tuple[PlanAxis, ...]:
    """The axes of a part of a plan in an order."""
    return tuple(sorted(AXES[part], key=lambda axis: order.index(axis.name)))


def _axes_of_kind(kind: Kind) -> tuple[PlanAxis, ...]:
    """Axes over which a kind of block lies on its group, in the default order, outermost first."""
    part = PARTS[BLOCK_KINDS[kind].part]
    axes = _ordered(part.part, part.order)
    return tuple(one for axis in axes for one in (axis, axis.inner) if one is not None)


def _logical(kind: Kind) -> Mapping[str, tuple[str, ...]]:
    split: dict[str, tuple[str, ...]] = {}
    for axis in _axes_of_kind(kind):
        for logical in (name for name in axis.splits if name not in BLOCK_KINDS[kind].whole):
            split[logical] = (*split.get(logical, ()), axis.name)
    return MappingProxyType(split)


#: Mesh axes of each kind of block, outermost first: neighbouring chips are along the last. A plan
#: may order them otherwise (`degrees`).
MESH_AXES: Mapping[Kind, tuple[str, ...]] = MappingProxyType(
    {kind: tuple(axis.name for axis in _axes_of_kind(kind)) for kind in BLOCK_KINDS}
)
#: Logical axes of each kind, and the mesh axes that split them.
LOGICAL: Mapping[Kind, Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {kind: _logical(kind) for kind in BLOCK_KINDS}
)
#: Axes of each kind that round whatever the split.
MOVING: Mapping[Kind, tuple[str, ...]] = MappingProxyType(
    {kind: tuple(axis.name for axis in _axes_of_kind(kind) if axis.moves) for kind in BLOCK_KINDS}
)


def allocated_positions(plan: Plan, n_positions: int = 1) -> int:
    """Return the positions of a cache that has room for `n_positions` under a plan.

    They are whole vectors, at least one for each chip that shares them out; more change no bit of
    a plan that does not share them out.
    """
    return max(-(-n_positions // POSITIONS_STEP), plan.attention.context) * POSITIONS_STEP


def shard_of(plan: Plan, kind: Kind) -> Shard:
    """The part of a plan that splits a kind of block, which the plan's model has."""
    shard: Shard | None = getattr(plan, BLOCK_KINDS[kind].part)
    if shard is None:
        assert BLOCK_KINDS[kind].part == VocabShard.part
        return VocabShard(tensor=plan.group_chips)
    return shard


def dispatch_of(plan: Plan, kind: Kind) -> Dispatch:
    """How rows reach the chips of their experts; blocks without experts have them everywhere."""
    return plan.moe.dispatch if kind == "moe" and plan.moe is not None else Dispatch.REPLICATED


def split_of(plan: Plan, kind: Kind) -> Split:
    """How a kind of block splits its output projection; by columns where it has none."""
    return shard_of(plan, kind).split


def degrees(plan: Plan, kind: Kind, cfg: ModelConfig) -> dict[str, int]:
    """Chips along each mesh axis of a kind of block, in the order of the mesh, outermost first.

    An inner axis lies just inside its own: `query` inside `tensor`.
    """
    shard = shard_of(plan, kind)
    ways: dict[str, int] = {}
    for axis in _ordered(shard.part, shard.order):
        ways[axis.name] = getattr(shard, axis.name)
        if axis.inner is not None:
            ways[axis.name], ways[axis.inner.name] = split_heads(cfg, kind, ways[axis.name])
    return ways


def strides(ways_by_axis: Mapping[str, Any]) -> dict[str, Any]:
    """Chips from one chip of each mesh axis to the next.

    Args:
        ways_by_axis: chips along each axis, outermost first: numbers, or arrays of them.
    """
    found: dict[str, Any] = {}
    inside: Any = 1
    for axis in reversed(list(ways_by_axis)):
        found[axis] = inside
        inside = inside * ways_by_axis[axis]
    return found


def shared_heads(cfg: ModelConfig, kind: Kind) -> int | None:
    """Heads of which each has several inside: of keys and values, or of the keys of a recurrence.

    None where every head is its own.
    """
    if BLOCK_KINDS[kind].is_recurrent:
        return None if cfg.recurrent is None else cfg.recurrent.n_key_heads
    attention = cfg.attention_of(kind)
    return attention.n_kv_heads if isinstance(attention, GqaConfig) else None


def split_heads(cfg: ModelConfig, kind: Kind, tensor: int) -> tuple[int, int]:
    """Split a tensor degree into ways over the heads that have several inside, and over these."""
    heads = shared_heads(cfg, kind)
    if heads is not None and tensor > heads:
        return heads, tensor // heads
    return tensor, 1


def sizes(
    cfg: ModelConfig,
    kind: Kind,
    policy: Policy,
    ways_by_axis: Mapping[str, Any],
    request: Request,
    split: Split = Split.ROW,
) -> Sizes:
    """Lengths on one chip: shares are rounded up to whole pieces, as on the fullest chip.

    Args:
        cfg: the model.
        kind: the kind of block.
        policy: formats of the weights.
        ways_by_axis: chips along each mesh axis: numbers, or arrays with one entry per plan.
        request: batch, tokens and context.
        split: of the output projection; a tree takes whole leaves.
    """
    ways = logical_ways(kind, ways_by_axis)
    pieces = granules(cfg, kind, policy)
    local: dict[str, Any] = {
        axis: -(-length // (ways[axis] * pieces.get(axis, 1))) * pieces.get(axis, 1)
        for axis, length in axis_lengths(cfg, kind).items()
        if axis in ways
    }
    cut = leaves(cfg, kind, policy) if split is Split.TREE else {}
    local |= {axis: leaf.of_chip(ways[axis]) for axis, leaf in cut.items() if axis in ways}
    local |= {"batch": request.batch, "tokens": request.tokens, "context": request.context}
    splits_context = bool(np.max(ways.get("kv_length", 1)) > 1)
    if BLOCK_KINDS[kind].has_cache:
        local["batch_local"] = -(-request.batch // ways["batch_local"])
        local["kv_length"] = request.context
    if splits_context:
        runs = -(-request.context // POSITIONS_STEP)
        local["kv_length"] = -(-runs // ways["kv_length"]) * POSITIONS_STEP
    if BLOCK_KINDS[kind].positions == "chosen":
        runs = -(-request.context // POSITIONS_STEP)
        local["index_length"] = -(-runs // ways["index_length"]) * POSITIONS_STEP
    attention = cfg.attention_of(kind)
    if kind == "sliding" and isinstance(attention, GqaConfig):
        assert attention.window is not None
        local["window"] = ring_length(attention.window, request.longest_step, request.context)
    return Sizes(
        local=local,
        ways=ways,
        splits_context=splits_context,
        steps={axis: leaf.length for axis, leaf in cut.items()},
    )


def logical_ways(kind: Kind, ways_by_axis: Mapping[str, Any]) -> dict[str, Any]:
    """Over how many chips each logical axis is shared out: numbers, arrays or symbols."""
    return {
        logical: prod((ways_by_axis[axis] for axis in axes), start=1)
        for logical, axes in LOGICAL[kind].items()
    }


def moving_axes(kind: Kind, ways_by_axis: Mapping[str, Any]) -> tuple[str, ...]:
    """Axes with chips, in all of the plans or in none, that round whatever the split.

    A block that has them runs another program than one that has not.
    """
    return tuple(axis for axis in MOVING[kind] if np.max(ways_by_axis[axis]) > 1)


def chip_mesh(ways_by_axis: Mapping[str, int], system: System, collective: str) -> ChipMesh:
    """Lay a block's axes onto the chips of its group, in the order given, outermost first."""
    return ChipMesh(
        axes=tuple(ways_by_axis.items()), topology=system.topology, algorithm=collective
    )


def partition_specs(kind: Kind, arguments: Any, order: Sequence[str]) -> Any:
    """How arguments of a block are split over its mesh axes, from their logical axes.

    Args:
        kind: the kind of block.
        arguments: tree of `Leaf`.
        order: mesh axes, outermost first: shares of a dimension that several axes split follow the
            numbers of the chips.
    """

    def spec(leaf: Leaf) -> P:
        return P(*(_ordered_axes(kind, axis, order) for _, axis in leaf.dimensions))

    return jax.tree.map(spec, arguments, is_leaf=is_leaf)


def _ordered_axes(kind: Kind, axis: str | None, order: Sequence[str]) -> tuple[str, ...] | None:
    """Mesh axes that split a logical one, outermost first; None where none does."""
    if axis is None or axis not in LOGICAL[kind]:
        return None
    if axis == "index_length":  # gathered axis by axis, the inner one first, however chips lie
        return LOGICAL[kind][axis]
    return tuple(sorted(LOGICAL[kind][axis], key=order.index))


def global_shapes(arguments: Any, sizes: Sizes) -> Any:
    """Whole shapes of the arguments, padding included."""

    def whole(leaf: Leaf) -> jax.ShapeDtypeStruct:
        shape = tuple(
            length * (1 if axis is None else sizes.ways.get(axis, 1))
            for length, axis in leaf.dimensions
        )
        return jax.ShapeDtypeStruct(shape, leaf.dtype)

    return jax.tree.map(whole, arguments, is_leaf=is_leaf)


def result_specs(kind: Kind, arguments: Any, order: Sequence[str]) -> Any:
    """How a block's results are split; arguments are those of `partition_specs`."""
    if BLOCK_KINDS[kind].has_cache:
        results = P(), partition_specs(kind, arguments[2], order)
        if BLOCK_KINDS[kind].positions == "chosen":
            return *results, P(_ordered_axes(kind, "batch_local", order))
        return results
    if kind == "head":
        return P(), P(None, LOGICAL[kind]["vocab"])
    return P()
