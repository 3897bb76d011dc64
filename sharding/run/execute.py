"""Run placed blocks on virtual chips or on devices; blocks of one shape share one program.

Holds no arithmetic and no time: the block's own per-chip program is run as it is traced for the
cost reading.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int32

from lpu_jax.errors import PlanError, unknown
from lpu_jax.mesh import ChipMesh, most_devices, put_on_devices, run_nested, run_virtual
from models.blocks import BLOCK_KINDS, Kind, block_program
from models.config import ModelConfig
from models.layers.dispatch import Dispatch
from models.layers.linear import Split
from models.layers.moe import ExpertSizes
from models.policy import Policy

from ..axes import degrees, dispatch_of, split_of
from ..plan import Plan
from .load import LoadedBlock

#: Ways to run a block's program; all give the same bits.
EXECUTIONS = ("virtual", "devices", "nested")
#: Distinct programs kept compiled; a model has at most five kinds of block.
_PROGRAMS_KEPT = 64


@dataclass
class Relay:
    """Where the new tokens of a step attend: an indexed layer tells those that follow it."""

    positions: Any = None  #: the last result of `layers.indexed.indexed_attention`


def run_block(cfg: ModelConfig, block: LoadedBlock, *, execution: str = "virtual") -> Any:
    """Run a block's program on the chips of its plan.

    Args:
        cfg: the model.
        block: the placed block; see `with_inputs`.
        execution: `virtual` chips in one process, one chip on each of JAX's `devices`, or
            `nested`: virtual chips on each of as many devices as the plan can be spread over.

    Returns:
        The results of the block's program, as global arrays, padding included.

    Raises:
        UnknownNameError: there is no such execution.
        MeshError: there are fewer devices than chips.

    Fidelity: the same bits for every execution.
    """
    block = on_chips(block, execution)
    in_specs, in_tree = jax.tree.flatten(block.in_specs)
    out_specs, out_tree = jax.tree.flatten(block.out_specs)
    run = _compiled(
        cfg,
        block.kind,
        block.policy,
        block.split,
        block.mesh,
        (block.experts, block.dispatch),
        (tuple(in_specs), in_tree),
        (tuple(out_specs), out_tree),
        execution,
    )
    return run(*block.arguments)


@lru_cache(maxsize=_PROGRAMS_KEPT)
def _compiled(
    cfg: ModelConfig,
    kind: Kind,
    policy: Policy,
    split: Split,
    mesh: ChipMesh,
    experts: tuple[ExpertSizes | None, Dispatch],
    in_specs: tuple[tuple[Any, ...], Any],
    out_specs: tuple[tuple[Any, ...], Any],
    execution: str,
) -> Callable[..., Any]:
    sizes, dispatch = experts
    program = block_program(cfg, kind, policy, split, experts=sizes, dispatch=dispatch)
    specs, results = (jax.tree.unflatten(tree, leaves) for leaves, tree in (in_specs, out_specs))
    if execution == "virtual":
        return jax.jit(run_virtual(program, mesh, specs, results))
    return jax.jit(run_nested(program, mesh, _devices(mesh, execution), specs, results))


def check_execution(execution: str) -> None:
    """Refuse a way of running that does not exist.

    Raises:
        UnknownNameError: says which there are.
    """
    if execution not in EXECUTIONS:
        raise unknown("execution", str(execution), EXECUTIONS)


def on_chips(block: LoadedBlock, execution: str) -> LoadedBlock:
    """Put a block's arguments where its program will run; what is already there is not copied.

    Blocks of a plan may have meshes of other shapes, and so hold the hidden state otherwise.

    Args:
        block: the placed block.
        execution: as for `run_block`.

    Raises:
        UnknownNameError: there is no such execution.
        MeshError: there are fewer devices than chips.
    """
    check_execution(execution)
    if execution == "virtual":
        return block
    devices = _devices(block.mesh, execution)
    return replace(
        block, arguments=put_on_devices(block.arguments, block.mesh, block.in_specs, devices)
    )


def _devices(mesh: ChipMesh, execution: str) -> dict[str, int]:
    """Over how many devices the chips of each axis are spread."""
    return dict(mesh.axes) if execution == "devices" else most_devices(mesh)


def program_key(cfg: ModelConfig, kind: Kind, plan: Plan) -> tuple[Any, ...]:
    """Name the program that a plan needs for a kind of block, on a given system."""
    slots = None
    if kind == "moe" and plan.moe is not None:
        slots = plan.moe.capacity, plan.moe.slots is None  # what decides the rows of a slot
    ways = tuple(degrees(plan, kind, cfg).items())
    split, dispatch = split_of(plan, kind), dispatch_of(plan, kind)
    return kind, ways, split, plan.collective, slots, dispatch


def with_inputs(block: LoadedBlock, *inputs: Any) -> LoadedBlock:
    """Replace the leading inputs other than the weights.

    Args:
        block: the placed block.
        inputs: for `attention`: hidden state, cache, positions, and for `following` where to
            attend; for `recurrent`: hidden state, cache, counts; for `head`: hidden state, rows;
            else the first input.

    Raises:
        PlanError: an input has another shape than the block was placed for.
    """
    arguments = list(block.arguments)
    for slot, given in zip(BLOCK_KINDS[block.kind].inputs, inputs, strict=False):
        want, have = (jax.tree.map(np.shape, tree) for tree in (arguments[slot], given))
        if want != have:
            raise PlanError(f"{block.kind} block: an input of shape {have} was given, not {want}.")
        arguments[slot] = given
    return replace(block, arguments=tuple(arguments))


def run_attention(
    cfg: ModelConfig,
    block: LoadedBlock,
    hidden: Float[Array | np.ndarray, "b t d"],
    cache: Any,
    positions: Int32[Array | np.ndarray, " b"],
    counts: Int32[Array | np.ndarray, " b"] | None = None,
    *,
    relay: Relay | None = None,
    execution: str = "virtual",
) -> tuple[Float[Array, "b t d"], Any]:
    """Run an attention block on any number of sequences; the last data shares may stay empty.

    Args:
        cfg: the model.
        block: the placed block, of attention or what has its place.
        hidden: hidden state of the new tokens.
        cache: what the last call returned, or `block.arguments[2]`.
        positions: position of each sequence's first new token.
        counts: new tokens of each sequence that count, its first ones; None: all. A cache with
            positions needs no such number: the next token takes the place of one that does not.
        relay: of this step, for layers that attend where another does.
        execution: as for `run_block`.

    Returns:
        The new hidden state and the new cache.

    Raises:
        PlanError: the block follows an indexed one, which no relay tells of.
    """
    relay = Relay() if relay is None else relay
    missing = block.request.batch - hidden.shape[0]
    padded = np.pad(np.asarray(hidden), ((0, missing), (0, 0), (0, 0))) if missing else hidden
    told = positions
    if BLOCK_KINDS[block.kind].is_recurrent:
        everything = np.full(hidden.shape[0], hidden.shape[1], np.int32)
        told = everything if counts is None else counts
    told = np.pad(np.asarray(told), (0, missing)) if missing else told
    inputs: tuple[Any, ...] = (padded, cache, told)
    if BLOCK_KINDS[block.kind].positions == "told":
        if relay.positions is None:
            raise PlanError(
                f"{block.kind} block: where it attends is not known; run the last indexed block "
                "before it with the same relay."
            )
        inputs = (*inputs, relay.positions)
    out, cache, *chosen = run_block(cfg, with_inputs(block, *inputs), execution=execution)
    if chosen:
        relay.positions = chosen[0]
    return (out[: hidden.shape[0]] if missing else out), cache
