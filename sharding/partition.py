"""A plan as JAX's own shardings: a mesh for every kind of block, a spec for every parameter.

For programs that are not ours, on devices. Ours take their specs with all other arguments of a
block from `axes`. Not modelled: stages; each is a group of devices with meshes of its own.
"""

from pathlib import Path
from typing import Any

from jax.sharding import PartitionSpec

from lpu_jax.errors import PlanError
from models.blocks import Kind, block_arguments, block_kinds
from models.config import ModelConfig
from models.layers.linear import Split
from models.policy import POLICIES
from models.zoo import model as named_model

from . import axes
from .axes import shard_of
from .legal import attention_reason, check_parts, tree_reason
from .plan import Plan, check_is_plan
from .request import NEXT_TOKEN


def mesh_axes(plan: Plan, model: str | Path | ModelConfig) -> dict[Kind, dict[str, int]]:
    """Return the mesh of every kind of block: the chips along its axes, outermost first.

    Each kind splits a stage's chips its own way, so each has its own mesh over the same devices.

    Args:
        plan: the plan.
        model: a zoo name, the path of a `config.json`, or a configuration.

    Raises:
        PlanError: the plan lacks a part for the model's blocks, its parts are of other groups, it
            cuts heads, or a tree is not over a power of two.
        LpuError: no such model.

    Example:
        >>> mesh_axes(Plan.parse("1x8 a:2d·4r f:8t row"), "smollm2-135m")["dense"]
        {'replica': 1, 'tensor': 8}
    """
    check_is_plan("mesh_axes", plan)
    cfg = model if isinstance(model, ModelConfig) else named_model(model)
    check_parts(plan, cfg)
    reasons = [attention_reason(cfg, plan.attention.tensor)]
    for shard in dict.fromkeys(shard_of(plan, kind) for kind in block_kinds(cfg)):
        if shard.split is Split.TREE:
            ways = shard.degrees
            reasons += [tree_reason(shard.part, axis, ways[axis.name]) for axis in shard.axes]
    for reason in filter(None, reasons):
        raise PlanError(reason.sentence)
    return {kind: axes.degrees(plan, kind, cfg) for kind in block_kinds(cfg)}


def partition_specs(
    plan: Plan, model: str | Path | ModelConfig
) -> dict[Kind, dict[str, PartitionSpec]]:
    """Return how every parameter of every kind of block is split over the mesh of its kind.

    Parameters have the names and dimensions of `models.params.block_params`. A dimension that is no
    whole number of shares must first be filled up with zeros at its end; JAX refuses it otherwise.
    Behind a split `tree` the shares of this package are whole leaves (`models.leaves`).
    So must the single row of a bias behind partial sums: the first chip adds it, the others zeros.

    Args:
        plan: the plan.
        model: as for `mesh_axes`.

    Raises:
        LpuError: as for `mesh_axes`.

    Example:
        >>> specs = partition_specs(Plan.parse("1x8 a:2d·4r f:8t row"), "smollm2-135m")
        >>> specs["dense"]["down"] == PartitionSpec("tensor", None)
        True
    """
    cfg = model if isinstance(model, ModelConfig) else named_model(model)
    return {kind: _specs(plan, kind, cfg, ways) for kind, ways in mesh_axes(plan, cfg).items()}


def _specs(plan: Plan, kind: Kind, cfg: ModelConfig, ways: dict[str, int]) -> Any:
    """Read the specs off the arguments of the block's program, whatever the format of weights."""
    policy, split = POLICIES["float32"], axes.split_of(plan, kind)
    lengths = axes.sizes(cfg, kind, policy, ways, NEXT_TOKEN, split)
    weights = block_arguments(cfg, kind, policy, split, lengths)[1]
    specs = axes.partition_specs(kind, weights, list(ways))
    return {name: specs[name] for name in weights}  # in the order in which a token meets them
