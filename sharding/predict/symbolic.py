"""One symbolic trace per kind of block: the program that every plan shares.

The per-chip program is traced once with a symbol for each length that a plan decides. Not per plan:
plans are rows of numbers for these symbols.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
from jax.export import symbolic_shape

from lpu_jax.cost.program import Program, read
from lpu_jax.datapath.axis import Axis
from lpu_jax.datapath.work import Length
from models.blocks import Kind, Sizes, block_arguments, block_program, shapes
from models.config import ModelConfig
from models.layers.dispatch import Dispatch
from models.layers.linear import Split
from models.layers.moe import ExpertSizes
from models.leaves import leaves
from models.policy import Policy

from ..axes import LOGICAL, MESH_AXES, MOVING, axis_lengths, logical_ways

#: Lengths of every block that do not come from an axis of its weights.
_COMMON = ("batch_local", "tokens", "context", "kv_length", "index_length", "window")
#: Lengths of a mixture that a plan decides, beside its shares of the experts.
_OF_SLOTS = ("slots", "capacity", "sent")


@dataclass(frozen=True, kw_only=True)
class BlockTrace:
    """A block's program in symbols: local lengths by logical axis, degrees by mesh axis."""

    kind: Kind
    program: Program


@cache
def trace_block(
    cfg: ModelConfig,
    kind: Kind,
    policy: Policy,
    split: Split,
    collective: str,
    order: tuple[str, ...] | None = None,
    dispatch: Dispatch = Dispatch.REPLICATED,
    moving: tuple[str, ...] = (),
    gathers: bool = False,
) -> BlockTrace:
    """Trace a kind of block with symbols for everything a plan decides.

    Args:
        cfg: the model.
        kind: the kind of block.
        policy: formats of the weights.
        split: how output projections are split.
        collective: algorithm of its collectives.
        order: mesh axes, outermost first, as far as the program asks: a mixture adds over two of
            them, the inner one last; None for `MESH_AXES`.
        dispatch: how rows reach the chips of their experts.
        moving: the axes with chips among those that round whatever the split; without chips,
            there is no such axis.
        gathers: slots of a mixture hold a number of rows, gathered by address; if not, all rows.

    Raises:
        CostError: the block holds something other than datapath operations and free layout.
    """
    lengths = [*_COMMON, *(_OF_SLOTS if kind == "moe" else ())]
    names = [*axis_lengths(cfg, kind), *lengths, *_of_axes(kind)]
    symbol: dict[str, Any] = dict(zip(names, symbolic_shape(",".join(names)), strict=True))
    absent = set(MOVING[kind]).difference(moving)
    ways = {axis: 1 if axis in absent else symbol[_ways_of(axis)] for axis in MESH_AXES[kind]}
    splits_context = not absent.issuperset(LOGICAL[kind].get("kv_length", ()))
    n_data = ways.get("data", 1)
    local = {name: symbol[name] for name in axis_lengths(cfg, kind)}
    # Replicated lengths of one chip: a dimension that is never split keeps its number.
    local = {
        name: s for name, s in local.items() if not absent.issuperset(LOGICAL[kind].get(name, ()))
    }
    if "once" in local:
        local["once"] = 1
    cut = leaves(cfg, kind, policy) if split is Split.TREE else {}
    steps = {axis: leaf.length for axis, leaf in cut.items()}
    local |= {name: steps[name] * length for name, length in local.items() if name in steps}
    local |= {
        "batch": symbol["batch_local"] * n_data,
        "batch_local": symbol["batch_local"],
        "tokens": symbol["tokens"],
        "context": symbol["context"],
        "kv_length": symbol["kv_length" if splits_context else "context"],
        "index_length": symbol["index_length"],
        "window": symbol["window"],
    }
    sizes = Sizes(
        local=local, ways=logical_ways(kind, ways), splits_context=splits_context, steps=steps
    )
    arguments = block_arguments(cfg, kind, policy, split, sizes, dispatch)
    experts = None
    if kind == "moe":
        experts = ExpertSizes(
            n_local=local["experts"],
            slots=symbol["slots"],
            capacity=symbol["capacity"] if gathers else None,
            sent=symbol["sent"],
        )
    program = block_program(cfg, kind, policy, split, experts=experts, dispatch=dispatch)
    axes_of_chip = {
        axis: Axis(
            names=(), size=n, tiers=(), algorithm=collective, stride=symbol[_stride_of(axis)]
        )
        for axis, n in ((axis, ways[axis]) for axis in order or MESH_AXES[kind])
    }
    jaxpr = jax.make_jaxpr(lambda *args: program(*args, axes=axes_of_chip))(*shapes(arguments))
    return BlockTrace(kind=kind, program=read(jaxpr, strict=True))


def _of_axes(kind: Kind) -> list[str]:
    """Symbols of the chips along each mesh axis, and from one of them to the next."""
    return [name(axis) for axis in MESH_AXES[kind] for name in (_ways_of, _stride_of)]


def _ways_of(axis: str) -> str:
    return f"n_{axis}"


def _stride_of(axis: str) -> str:
    return f"s_{axis}"


def symbol_values(
    sizes: Sizes,
    ways_by_axis: Mapping[str, Length],
    strides: Mapping[str, Length],
    slots: Mapping[str, Length],
) -> dict[str, Length]:
    """Numbers for the symbols of a block's trace; `slots` are those of a mixture."""
    values = {
        name: value // sizes.steps.get(name, 1)
        for name, value in sizes.local.items()
        if name != "batch"
    }
    values.setdefault("batch_local", sizes.local["batch"])
    return {
        **values,
        **{_ways_of(axis): n for axis, n in ways_by_axis.items()},
        **{_stride_of(axis): n for axis, n in strides.items()},
        **slots,
    }
