"""From a plan's degrees to lengths and specs: logical axes onto mesh axes, shares rounded up.

Lengths may be numbers, arrays with one entry per plan, or symbols, so that the search, a single
plan and the symbolic trace of a block use the same rules. The order of a block's mesh axes decides
which chips are neighbours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from lpu_jax.mesh import ChipMesh
from models.blocks import Kind, Leaf, Sizes, is_leaf
from models.config import GqaConfig, ModelConfig
from models.params import block_params
from models.policy import Policy

from .plan import Plan

#: Mesh axes of each kind of block, outermost first: neighbouring chips are along the last.
MESH_AXES: Mapping[Kind, tuple[str, ...]] = {
    "embed": ("tensor",),
    "attention": ("replica", "data", "tensor", "query"),
    "dense": ("replica", "tensor"),
    "moe": ("replica", "expert", "tensor"),
    "head": ("tensor",),
}
#: Logical axes of each kind, and the mesh axes that split them.
LOGICAL: Mapping[Kind, Mapping[str, tuple[str, ...]]] = {
    "embed": {"vocab": ("tensor",)},
    "attention": {
        "batch_local": ("data",),
        "kv_heads": ("tensor",),
        "heads": ("tensor", "query"),
        "q_per_kv": ("query",),
        "d_out": ("tensor", "query"),
    },
    "dense": {"mlp": ("tensor",), "d_out": ("tensor",)},
    "moe": {
        "experts": ("expert",),
        "expert_mlp": ("tensor",),
        "d_out": ("tensor",),
        "shared_mlp": ("expert", "tensor"),
        "shared_d_out": ("expert", "tensor"),
    },
    "head": {"vocab": ("tensor",)},
}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the model is asked to do at once."""

    batch: int = 1
    tokens: int = 1  #: new tokens per sequence
    context: int = 1  #: allocated positions


def degrees(plan: Plan, kind: Kind, cfg: ModelConfig) -> dict[str, int]:
    """Chips along each mesh axis of a kind of block."""
    match kind:
        case "embed" | "head":
            return {"tensor": plan.group_chips}
        case "attention":
            shard = plan.attention
            tensor, query = split_heads(cfg, shard.tensor)
            return {"replica": shard.replica, "data": shard.data, "tensor": tensor, "query": query}
        case "dense":
            return {"replica": plan.mlp.replica, "tensor": plan.mlp.tensor}
        case "moe":
            assert plan.moe is not None
            moe = plan.moe
            return {"replica": moe.replica, "expert": moe.expert, "tensor": moe.tensor}


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
    if kind == "attention":
        local["batch_local"] = -(-request.batch // ways["batch_local"])
    return Sizes(local=local, ways=ways)


def chip_mesh(
    kind: Kind, ways_by_axis: Mapping[str, int], tiers: tuple[int, ...], collective: str
) -> ChipMesh:
    """Lay a block's axes onto the chips of its group."""
    return ChipMesh(
        axes=tuple((axis, ways_by_axis[axis]) for axis in MESH_AXES[kind]),
        tiers=tiers,
        algorithm=collective,
    )


def partition_specs(kind: Kind, arguments: Any) -> Any:
    """How arguments of a block are split over its mesh axes, from their logical axes."""

    def spec(leaf: Leaf) -> P:
        return P(*(LOGICAL[kind].get(axis) if axis else None for _, axis in leaf.dimensions))

    return jax.tree.map(spec, arguments, is_leaf=is_leaf)


def global_shapes(kind: Kind, arguments: Any, sizes: Sizes) -> Any:
    """Whole shapes of the arguments, padding included."""

    def whole(leaf: Leaf) -> jax.ShapeDtypeStruct:
        shape = tuple(
            length * (1 if axis is None else sizes.ways.get(axis, 1))
            for length, axis in leaf.dimensions
        )
        return jax.ShapeDtypeStruct(shape, leaf.dtype)

    return jax.tree.map(whole, arguments, is_leaf=is_leaf)


def result_specs(kind: Kind, arguments: Any) -> Any:
    """How a block's results are split."""
    match kind:
        case "attention":
            return P(), partition_specs(kind, arguments[2])
        case "head":
            return P(), P(None, ("tensor",))
        case _:
            return P()
