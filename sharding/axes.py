"""From a plan's degrees to lengths and specs: logical axes onto mesh axes, shares rounded up.

Lengths may be numbers, arrays with one entry per plan, or symbols, so that the search, a single
plan and the symbolic trace of a block use the same rules. The order of a block's mesh axes decides
which chips are neighbours.
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from lpu_jax.datapath.mem import POSITIONS_STEP, ring_length
from lpu_jax.machine.system import System
from lpu_jax.mesh import ChipMesh
from models.blocks import CACHING_KINDS, Kind, Leaf, Sizes, is_leaf
from models.config import GqaConfig, ModelConfig
from models.layers.dispatch import Dispatch
from models.params import block_params
from models.policy import Policy

from .plan import Plan
from .request import Request

#: Mesh axes of each kind of block, outermost first: neighbouring chips are along the last. A plan
#: may order them otherwise (`mesh_order`).
MESH_AXES: Mapping[Kind, tuple[str, ...]] = {
    "embed": ("tensor",),
    "attention": ("replica", "data", "context", "tensor", "query"),
    "sliding": ("replica", "data", "context", "tensor", "query"),
    "dense": ("replica", "tensor"),
    "moe": ("replica", "expert", "tensor"),
    "head": ("tensor",),
}
#: Logical axes of attention; of a sliding layer's short cache every chip of `context` holds all.
_ATTENTION: Mapping[str, tuple[str, ...]] = {
    "batch_local": ("data",),
    "kv_heads": ("tensor",),
    "heads": ("tensor", "query"),
    "q_per_kv": ("query",),
    "d_out": ("tensor", "query"),
    "once": ("tensor", "query"),
}
#: Logical axes of each kind, and the mesh axes that split them.
LOGICAL: Mapping[Kind, Mapping[str, tuple[str, ...]]] = {
    "embed": {"vocab": ("tensor",)},
    "attention": {**_ATTENTION, "kv_length": ("context",)},
    "sliding": _ATTENTION,
    "dense": {"mlp": ("tensor",), "d_out": ("tensor",)},
    "moe": {
        "experts": ("expert",),
        "expert_mlp": ("tensor",),
        "d_out": ("tensor",),
        "once": ("tensor",),
        "shared_mlp": ("expert", "tensor"),
        "shared_d_out": ("expert", "tensor"),
    },
    "head": {"vocab": ("tensor",)},
}


def allocated_positions(plan: Plan, n_positions: int = 1) -> int:
    """Return the positions of a cache that has room for `n_positions` under a plan.

    They are whole vectors, at least one for each chip that shares them out; more change no bit of
    a plan that does not share them out.
    """
    return max(-(-n_positions // POSITIONS_STEP), plan.attention.context) * POSITIONS_STEP


def mesh_order(plan: Plan, kind: Kind) -> tuple[str, ...]:
    """Mesh axes of a kind of block in a plan, outermost first; `query` lies inside `tensor`."""
    match kind:
        case "attention" | "sliding":
            order = plan.attention.order
            at = order.index("tensor") + 1
            return (*order[:at], "query", *order[at:])
        case "dense":
            return plan.mlp.order
        case "moe":
            assert plan.moe is not None
            return plan.moe.order
        case _:
            return MESH_AXES[kind]


def dispatch_of(plan: Plan, kind: Kind) -> Dispatch:
    """How rows reach the chips of their experts; blocks without experts have them everywhere."""
    return plan.moe.dispatch if kind == "moe" and plan.moe is not None else Dispatch.REPLICATED


def degrees(plan: Plan, kind: Kind, cfg: ModelConfig) -> dict[str, int]:
    """Chips along each mesh axis of a kind of block, in the order of the mesh, outermost first."""
    match kind:
        case "embed" | "head":
            return {"tensor": plan.group_chips}
        case "attention" | "sliding":
            shard = plan.attention
            tensor, query = split_heads(cfg, shard.tensor)
            ways = {
                "replica": shard.replica,
                "data": shard.data,
                "context": shard.context,
                "tensor": tensor,
                "query": query,
            }
        case "dense":
            ways = {"replica": plan.mlp.replica, "tensor": plan.mlp.tensor}
        case "moe":
            assert plan.moe is not None
            moe = plan.moe
            ways = {"replica": moe.replica, "expert": moe.expert, "tensor": moe.tensor}
    return {axis: ways[axis] for axis in mesh_order(plan, kind)}


def split_heads(cfg: ModelConfig, tensor: int) -> tuple[int, int]:
    """Split a tensor degree into ways over key/value heads and over the query heads of one."""
    if isinstance(cfg.attention, GqaConfig) and tensor > cfg.attention.n_kv_heads:
        return cfg.attention.n_kv_heads, tensor // cfg.attention.n_kv_heads
    return tensor, 1


def axis_lengths(cfg: ModelConfig, kind: Kind) -> dict[str, int]:
    """Whole lengths of the logical axes of a kind of block."""
    lengths: dict[str, int] = {}
    for name, spec in block_params(cfg, kind).items():
        for axis, length in zip(spec.axes, spec.shape, strict=True):
            if axis is not None:
                shared = axis == "d_out" and name.startswith("shared")
                lengths["shared_d_out" if shared else axis] = length
    return lengths


def granules(cfg: ModelConfig, kind: Kind, policy: Policy) -> dict[str, int]:
    """Smallest pieces of the logical axes: rows that share a scale stay on one chip."""
    pieces: dict[str, int] = {}
    for spec in block_params(cfg, kind).values():
        scheme = policy.scheme(spec)
        last_row = spec.axes[spec.batch + spec.rows - 1] if spec.rows else None
        if scheme is not None and scheme.row_granule > 1 and last_row is not None:
            pieces[last_row] = scheme.row_granule
    return pieces


def sizes(
    cfg: ModelConfig,
    kind: Kind,
    policy: Policy,
    ways_by_axis: Mapping[str, Any],
    request: Request,
) -> Sizes:
    """Lengths on one chip: shares are rounded up to whole pieces, as on the fullest chip.

    Args:
        cfg: the model.
        kind: the kind of block.
        policy: formats of the weights.
        ways_by_axis: chips along each mesh axis: numbers, or arrays with one entry per plan.
        request: batch, tokens and context.
    """
    ways = {
        logical: prod((ways_by_axis[axis] for axis in axes), start=1)
        for logical, axes in LOGICAL[kind].items()
    }
    pieces = granules(cfg, kind, policy)
    local: dict[str, Any] = {
        axis: -(-length // (ways[axis] * pieces.get(axis, 1))) * pieces.get(axis, 1)
        for axis, length in axis_lengths(cfg, kind).items()
        if axis in ways
    }
    local |= {"batch": request.batch, "tokens": request.tokens, "context": request.context}
    is_split = kind == "attention" and splits_context(ways_by_axis)
    if kind in CACHING_KINDS:
        local["batch_local"] = -(-request.batch // ways["batch_local"])
        local["kv_length"] = request.context
    if is_split:
        runs = -(-request.context // POSITIONS_STEP)
        local["kv_length"] = -(-runs // ways["kv_length"]) * POSITIONS_STEP
    if kind == "sliding" and isinstance(cfg.attention, GqaConfig):
        assert cfg.attention.window is not None
        local["window"] = ring_length(cfg.attention.window, request.longest_step, request.context)
    return Sizes(local=local, ways=ways, splits_context=is_split)


def splits_context(ways_by_axis: Mapping[str, Any]) -> bool:
    """Whether chips share out the positions of a cache, in all of the plans or in none."""
    return bool(np.max(ways_by_axis.get("context", 1)) > 1)


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

    def split_over(axis: str | None) -> tuple[str, ...] | None:
        if axis is None or axis not in LOGICAL[kind]:
            return None
        return tuple(sorted(LOGICAL[kind][axis], key=order.index))

    def spec(leaf: Leaf) -> P:
        return P(*(split_over(axis) for _, axis in leaf.dimensions))

    return jax.tree.map(spec, arguments, is_leaf=is_leaf)


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
    match kind:
        case "attention" | "sliding":
            return P(), partition_specs(kind, arguments[2], order)
        case "head":
            return P(), P(None, ("tensor",))
        case _:
            return P()
