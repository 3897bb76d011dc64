"""Bring weights into a plan: stored in the policy's formats, then padded to whole shares.

Arrays stay global: `lpu_jax.mesh` cuts them. Not done here: reading checkpoints, packing of narrow
codes, and the order in which a real machine would fill its memory.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from lpu_jax.errors import PlanError
from lpu_jax.machine.mixed import Machine
from lpu_jax.machine.system import System
from lpu_jax.mesh import ChipMesh
from lpu_jax.numerics.quantized import QuantizedArray, dequantize, quantize, widen
from lpu_jax.numerics.schemes import FP16_PLAIN
from models.blocks import Kind, Leaf, Sizes, block_arguments, is_leaf
from models.config import ModelConfig
from models.layers.dispatch import Dispatch
from models.layers.linear import Split
from models.layers.moe import ExpertSizes
from models.param_spec import ParamSpec
from models.params import block_params, expert_params
from models.policy import Policy
from models.weights.source import WeightSource
from models.weights.stored import dequantised, one_of_batch, ones_shape, scales_shape

from ..axes import (
    chip_mesh,
    degrees,
    dispatch_of,
    global_shapes,
    partition_specs,
    result_specs,
    sizes,
    split_of,
)
from ..plan import Plan
from ..request import Request
from ..scenario import Scenario, require_values, system_of_kind
from ..slots.sizes import slots_of_values
from .placed_state import empty_state


@dataclass(frozen=True, kw_only=True)
class StoredBlock:
    """The whole weights of a block in their stored formats: no plan has padded or split them."""

    cfg: ModelConfig
    kind: Kind
    policy: Policy
    weights: Mapping[str, Any]  #: arrays or `QuantizedArray`s, in the dimensions of `models.params`
    held: tuple[int, ...] | None = None  #: experts of a compact store, ascending; None: all of them


@dataclass(frozen=True, kw_only=True)
class LoadedBlock:
    """A block placed on the chips of one plan: what `sharding.run.execute.run_block` runs."""

    kind: Kind
    policy: Policy
    split: Split
    arguments: tuple[Any, ...]  #: of the block's program, as global arrays, padding included
    in_specs: tuple[Any, ...]
    out_specs: Any
    mesh: ChipMesh
    request: Request  #: batch rounded up to whole shares of the data axis
    experts: ExpertSizes | None = None  #: of a mixture: slots, and rows of each
    dispatch: Dispatch = Dispatch.REPLICATED


def load_block(
    source: WeightSource,
    system: Machine,
    plan: Plan,
    kind: Kind,
    layer: int,
    request: Request,
    *,
    policy: Policy,
    held_experts: Sequence[int] | None = None,
) -> LoadedBlock:
    """Read a block's weights, store them in the policy's formats and place them on a plan's chips.

    Args:
        source: where the weights come from.
        system: its node and rack sizes fix the order of sums across chips. GPUs beside LPUs add in
            the order of their numbers (assumed).
        plan: how the block is split.
        kind: the kind of block.
        layer: its layer.
        request: batch, new tokens and allocated context.
        policy: formats of the weights.
        held_experts: keep only these experts, in a store that every chip addresses; a chip's
            address table names only the experts that it would hold, so that the block computes the
            same values. None keeps all.

    Returns:
        The block, its caches empty and its hidden state zero.

    Raises:
        LpuError: GPUs alone hold no values.
        PlanError: the plan does not describe this kind of block, or the policy's groups do not fit
            the model's heads.
        MeshError: the plan has more chips than the system.

    Fidelity: exact but for the storage formats, each rounded as `quantized.quantize` says.
    """
    stored = store_block(source, kind, layer, policy, held_experts=held_experts)
    return place_block(stored, system, plan, request)


# --- stored form, common to all plans ---------------------------------------------------------


def store_block(
    source: WeightSource,
    kind: Kind,
    layer: int,
    policy: Policy,
    *,
    held_experts: Sequence[int] | None = None,
    known_experts: dict[int, dict[str, Any]] | None = None,
) -> StoredBlock:
    """Read a block's weights and quantise the whole, unpadded matrices.

    Args:
        source: where the weights come from.
        kind: the kind of block.
        layer: its layer.
        policy: formats.
        held_experts: as for `load_block`.
        known_experts: stored experts of this layer by number; those that are missing are added.
    """
    cfg = source.config
    specs = block_params(cfg, kind)
    weights = {
        name: store_weight(values, specs[name], policy)
        for name, values in source.block(kind, layer).items()
    }
    if kind != "moe":
        return StoredBlock(cfg=cfg, kind=kind, policy=policy, weights=weights)
    assert cfg.moe is not None
    held = None if held_experts is None else tuple(sorted(set(held_experts)))
    known = {} if known_experts is None else known_experts
    chosen = range(cfg.moe.n_experts) if held is None else held
    for number in chosen:
        if number not in known:
            known[number] = store_expert(source, layer, number, policy)
    if chosen:
        names = expert_params(cfg.d_model, cfg.moe)
        weights |= {name: _stacked([known[i][name] for i in chosen]) for name in names}
    return StoredBlock(cfg=cfg, kind=kind, policy=policy, weights=weights, held=held)


def _stacked(experts: list[Any]) -> Any:
    """Put stored experts into one store, in their order."""
    return jax.tree.map(lambda *parts: np.stack(parts), *experts)


def store_expert(
    source: WeightSource, layer: int, expert_id: int, policy: Policy
) -> dict[str, Any]:
    """Read one routed expert and quantise it."""
    specs = block_params(source.config, "moe")
    return {
        name: store_weight(values, one_of_batch(specs[name]), policy)
        for name, values in source.expert(layer, expert_id).items()
    }


def store_weight(
    weight: Float32[np.ndarray, "..."] | QuantizedArray, spec: ParamSpec, policy: Policy
) -> Any:
    """Round a weight to its stored format; codes and scales keep the dimensions of `spec`.

    Codes of a file that already are in this format stay bit for bit what they are.

    Raises:
        PlanError: a group of rows that share a scale would reach from one head into the next.
    """
    if spec.is_number:
        return weight
    scheme = policy.scheme(spec)
    if isinstance(weight, QuantizedArray) and weight.scheme == scheme:
        return weight
    values = dequantised(weight)
    if scheme is None:
        return values
    if scheme == FP16_PLAIN:
        with np.errstate(over="ignore"):  # to infinity, as the format defines
            return values.astype(np.float16)
    last_row = spec.shape[spec.batch + spec.rows - 1]
    if spec.rows > 1 and last_row % scheme.row_granule:
        raise PlanError(
            f"weights format {scheme.name} shares scales over {scheme.row_granule} rows, which "
            f"does not divide a head's {last_row} rows; choose another weights format."
        )
    matrix = values.reshape(*spec.shape[: spec.batch], *spec.matrix_shape[1:])
    stored = _quantize(matrix, scheme)
    return replace(
        stored,
        codes=np.asarray(stored.codes).reshape(spec.shape),
        scales=_reshaped(stored.scales, scales_shape(spec, scheme)),
        tensor_scale=_reshaped(stored.tensor_scale, ones_shape(spec)),
    )


_quantize = jax.jit(quantize, static_argnums=1)
_widen = jax.jit(widen)
_dequantize = jax.jit(dequantize)


def _reshaped(leaf: Any, shape: tuple[int, ...]) -> Any:
    return None if leaf is None else np.asarray(leaf).reshape(shape)


def _as_matrices(weight: QuantizedArray, spec: ParamSpec) -> QuantizedArray:
    """Join the rows and the columns of a stored weight: `[*batch, k, n]`."""
    first_column = spec.batch + spec.rows

    def joined(leaf: Any) -> Any:
        lead, rows = leaf.shape[: spec.batch], leaf.shape[spec.batch : first_column]
        return leaf.reshape(*lead, prod(rows), prod(leaf.shape[first_column:]))

    matrices: QuantizedArray = jax.tree.map(joined, weight)
    return matrices


def stored_values(weight: Any, spec: ParamSpec) -> Float32[np.ndarray, "..."]:
    """Return the values that a stored weight stands for, in float32.

    Fidelity: as `quantized.dequantize`.
    """
    if isinstance(weight, QuantizedArray):
        return np.asarray(_dequantize(_as_matrices(weight, spec))).reshape(weight.codes.shape)
    return np.asarray(weight, np.float32)


def widened(weight: Any, spec: ParamSpec) -> Any:
    """Widen a narrow stored weight to float16 once, as the matrix unit does at each use.

    Others are returned as they are. int8 matrices that multiply int8 activations keep their codes,
    and two-level weights theirs, for their tensor scale is applied to the products.

    Fidelity: the same bits as widening at the matrix unit.
    """
    if not isinstance(weight, QuantizedArray):
        return weight
    scheme = weight.scheme
    if scheme.is_two_level or (scheme.multiplies_bare and not spec.batch):
        return weight
    return np.asarray(_widen(_as_matrices(weight, spec))).reshape(weight.codes.shape)


# --- placed on the chips of a plan ------------------------------------------------------------


def place_block(
    stored: StoredBlock,
    system: Machine,
    plan: Plan,
    request: Request,
    *,
    widen_once: bool = False,
) -> LoadedBlock:
    """Pad a stored block to whole shares of a plan and add what else its program takes.

    Args:
        stored: the weights.
        system: its node and rack sizes fix the order of sums across chips. GPUs beside LPUs add in
            the order of their numbers (assumed).
        plan: how the block is split.
        request: batch, new tokens and allocated context.
        widen_once: hold narrow weights as the float16 values that the matrix unit makes of them:
            the same bits, and faster when a block runs more than once.

    Raises:
        LpuError: GPUs alone hold no values.
        PlanError: the plan does not describe this kind of block.
        MeshError: the plan has more chips than the system.
    """
    require_values(system, "a block's values")
    own = system_of_kind(system, stored.kind)
    cfg, kind, policy = stored.cfg, stored.kind, stored.policy
    if kind == "moe" and plan.moe is None:
        raise PlanError(f"plan {plan.name!r} does not say how mixture-of-experts blocks are split.")
    split = split_of(plan, kind)
    ways = degrees(plan, kind, cfg)
    data = ways.get("data", 1)
    request = replace(request, batch=-(-request.batch // data) * data)
    local = sizes(cfg, kind, policy, ways, request, split)
    dispatch = dispatch_of(plan, kind)
    hidden, leaf_weights, *rest = block_arguments(cfg, kind, policy, split, local, dispatch)
    weights, specs = dict(stored.weights), block_params(cfg, kind)
    if widen_once:
        weights = {name: widened(weight, specs[name]) for name, weight in weights.items()}
    described = {
        name: _described(leaf_weights[name], weight, stored, name)
        for name, weight in weights.items()
    }
    leaves = (hidden, described, *rest)
    first_state, *more_state = empty_state(cfg, leaves, local, stored.held)
    arguments = (first_state, weights, *more_state)
    whole = global_shapes(leaves, local)
    return LoadedBlock(
        kind=kind,
        policy=policy,
        split=split,
        arguments=jax.tree.map(_padded, arguments, whole),
        in_specs=partition_specs(kind, leaves, list(ways)),
        out_specs=result_specs(kind, leaves, list(ways)),
        mesh=chip_mesh(ways, own, plan.collective),
        request=request,
        dispatch=dispatch,
        experts=_expert_sizes(stored, plan, own, request, local),
    )


def _described(leaf: Any, weight: Any, stored: StoredBlock, name: str) -> Any:
    """Change the description of a weight that was widened, or is a store that no axis splits."""
    if isinstance(leaf, QuantizedArray) and not isinstance(weight, QuantizedArray):
        leaf = replace(leaf.codes, dtype=jnp.float16, bits=16)
    moe = stored.cfg.moe
    if stored.held is None or moe is None or name not in expert_params(stored.cfg.d_model, moe):
        return leaf
    n_held = len(jax.tree.leaves(weight)[0])  # rows behind those of `stored.held` are not used

    def compact(part: Leaf) -> Leaf:
        return replace(part, dimensions=((n_held, None), *part.dimensions[1:]))

    return jax.tree.map(compact, leaf, is_leaf=is_leaf)


def _expert_sizes(
    stored: StoredBlock, plan: Plan, system: System, request: Request, local: Sizes
) -> ExpertSizes | None:
    """Size a mixture's program: what the plan asks for and the rest of the worst case.

    No row is ever left out; empty slots run nothing.
    """
    if plan.moe is None or stored.kind != "moe":
        return None
    scenario = Scenario(stored.cfg, system, request, policy=stored.policy)
    sized = slots_of_values(plan.moe, scenario)
    return ExpertSizes(
        n_local=local.local["experts"],
        slots=sized.worst.slots,
        capacity=sized.capacity,
        sent=sized.worst.sent,
    )


def _padded(values: Any, whole: jax.ShapeDtypeStruct) -> Any:
    """Append zeros to every dimension until it has whole shares."""
    missing = [want - have for want, have in zip(whole.shape, values.shape, strict=True)]
    assert min(missing, default=0) >= 0
    assert np.dtype(values.dtype) == np.dtype(whole.dtype), (values.dtype, whole.dtype)
    if not any(missing):
        return jnp.asarray(values)  # no copy of what is a JAX array already: plans share it
    out = np.zeros(whole.shape, values.dtype)
    out[tuple(slice(length) for length in values.shape)] = values
    return jnp.asarray(out)
