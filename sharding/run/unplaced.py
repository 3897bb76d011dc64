"""Take blocks off the chips of one plan, and put their caches onto those of another.

A block without a plan has whole, unpadded arrays; its cache holds, in order of position, what a
later token can see. Not here: files (`saved`), and placing of weights (`load`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from lpu_jax.errors import PlanError
from lpu_jax.machine.system import System
from lpu_jax.numerics.quantized import QuantizedArray
from models.blocks import BLOCK_KINDS, CACHING_KINDS, Leaf, block_arguments, is_leaf
from models.config import GqaConfig, ModelConfig
from models.layers.linear import Split
from models.params import Kind, expert_params
from models.policy import Policy

from ..axes import MESH_AXES, axis_lengths, sizes
from ..plan import Plan
from ..request import Request
from .execute import on_chips
from .load import LoadedBlock, StoredBlock, place_block

#: Which dimension of a cache counts positions; that of a sliding layer is a ring.
_POSITIONS_AXIS = {
    "keys": -1,
    "values": -2,
    "latents": -2,
    "key_rows": -2,
    "value_rows": -2,
    "index_keys": -1,
}
#: Scales lie as their codes do; `keys.scales` are those of `keys`.
_SCALES = ".scales"
_POSITIONS_AXIS |= {f"{name}{_SCALES}": axis for name, axis in _POSITIONS_AXIS.items()}
#: The arrays of a cache: by position, or what recurrent layers keep.
CACHE_NAMES = (*_POSITIONS_AXIS, "state", "qk_inputs", "v_inputs")


@dataclass(frozen=True, kw_only=True)
class BlockState:
    """One block of a state: no plan has padded or split it."""

    layer: int
    stored: StoredBlock
    #: entries in order of position, such as `keys` and `values`, codes apart from `keys.scales`;
    #: None if no later token can see any. Of a recurrent layer its states and the last inputs of
    #: its convolutions
    cache: Mapping[str, Shaped[np.ndarray, "..."]] | None = None


def block_state(
    cfg: ModelConfig,
    block: LoadedBlock,
    layer: int,
    *,
    cache: Mapping[str, Any] | None = None,
    positions: Int[np.ndarray, " b"] | None = None,
    stored: StoredBlock | None = None,
) -> BlockState:
    """Take a block off the chips of its plan: padding goes, shares are joined.

    Args:
        cfg: the model.
        block: the placed block, its arrays global or spread over devices.
        layer: its layer.
        cache: what `execute.run_attention` returned last, if it is to be kept.
        positions: with a cache, how many tokens of each sequence it holds. What padding of a prompt
            wrote behind them is dropped.
        stored: the block's weights, if they are at hand. They must be given if the block was placed
            with `widen_once`, for then its own are no longer in their stored formats.

    Returns:
        The block without a plan.

    Raises:
        PlanError: widened weights without the stored ones, a cache that is not of an attention
            block, or positions that it does not have.

    Fidelity: exact.
    """
    if stored is None:
        stored = _stored(cfg, block, layer)
    if cache is None:
        return BlockState(layer=layer, stored=stored)
    if positions is None or block.kind not in CACHING_KINDS:
        raise PlanError(
            f"{block.kind} block of layer {layer}: a cache was given; it needs an attention block "
            "and positions."
        )
    _check_room(block, layer, positions, block.request)
    shapes = _arrays(
        cache_leaves(cfg, block.kind, block.policy, replace(block.request, batch=len(positions)))
    )
    cache = _arrays(cache)
    if BLOCK_KINDS[block.kind].is_recurrent:
        spans = {name: tuple(map(slice, leaf.shape)) for name, leaf in shapes.items()}
        states = {name: np.asarray(cache[name])[span] for name, span in spans.items()}
        return BlockState(layer=layer, stored=stored, cache=states)
    at, is_kept = _kept_positions(cfg, block.kind, positions)
    kept = {}
    for name, leaf in shapes.items():
        by_position = np.moveaxis(np.asarray(cache[name]), _POSITIONS_AXIS[name], 1)
        whole = list(leaf.shape)
        del whole[_POSITIONS_AXIS[name]]
        inside = tuple(slice(length) for length in whole[1:])
        sequence = np.arange(len(positions))[:, None]
        values = by_position[(sequence, at % by_position.shape[1], *inside)]
        values[~is_kept] = 0
        kept[name] = np.moveaxis(values, 1, _POSITIONS_AXIS[name])
    return BlockState(layer=layer, stored=stored, cache=kept if is_kept.size else None)


def _stored(cfg: ModelConfig, block: LoadedBlock, layer: int) -> StoredBlock:
    """Cut the padding off a placed block's weights."""
    held = _held_experts(cfg, block)
    leaves = weight_leaves(cfg, block.kind, block.policy, held)

    def whole(leaf: Leaf, values: Any) -> Shaped[np.ndarray, "..."]:
        if np.dtype(values.dtype) != np.dtype(leaf.dtype):
            raise PlanError(
                f"{block.kind} block of layer {layer}: its weights were widened when it was "
                "placed; give the stored ones too."
            )
        return np.asarray(values)[tuple(slice(length) for length in leaf.shape)]

    given = block.arguments[1]
    weights = {}
    for name, leaf in leaves.items():
        if isinstance(leaf, QuantizedArray) and not isinstance(given[name], QuantizedArray):
            leaf = leaf.codes
        weights[name] = jax.tree.map(whole, leaf, given[name], is_leaf=is_leaf)
    return StoredBlock(cfg=cfg, kind=block.kind, policy=block.policy, weights=weights, held=held)


def _held_experts(cfg: ModelConfig, block: LoadedBlock) -> tuple[int, ...] | None:
    """Experts that a compact store has, from the address tables of all chips; None: all."""
    if block.kind != "moe":
        return None
    assert cfg.moe is not None
    held = np.flatnonzero(np.asarray(block.arguments[2]["address"]).max(0) >= 0)
    return None if len(held) == cfg.moe.n_experts else tuple(int(i) for i in held)


def restored_block(
    state: BlockState,
    system: System,
    plan: Plan,
    request: Request,
    positions: Int[np.ndarray, " b"] | None,
    *,
    widen_once: bool = False,
    execution: str = "virtual",
) -> LoadedBlock:
    """Place a block that has no plan on the chips of one, its cache included.

    Args:
        state: the block.
        system: its node and rack sizes fix the order of sums across chips.
        plan: how the block is split.
        request: batch, new tokens and allocated context.
        positions: tokens of each sequence in the cache.
        widen_once: as for `load.place_block`.
        execution: as for `execute.run_block`; with devices, each chip's shares are put on its
            own.

    Raises:
        UnknownNameError: there is no such execution.
        PlanError: the plan does not describe this kind of block, the request is for another batch
            than the cache has, or its context is too short.
        MeshError: there are fewer devices than chips.

    Fidelity: exact.
    """
    block = place_block(state.stored, system, plan, request, widen_once=widen_once)
    if positions is not None and block.kind in CACHING_KINDS:
        if request.batch != len(positions):
            raise PlanError(
                f"the state has {len(positions)} sequences; a batch of {request.batch} was asked "
                "for."
            )
        _check_room(block, state.layer, positions, request)
        arguments = list(block.arguments)
        if state.cache is not None:
            arguments[2] = _placed_cache(state, arguments[2], positions)
        if not BLOCK_KINDS[block.kind].is_recurrent:
            starts = np.pad(positions, (0, block.request.batch - len(positions)))
            arguments[4] = starts.astype(np.int32)
        block = replace(block, arguments=tuple(arguments))
    return on_chips(block, execution)


def _placed_cache(
    state: BlockState, empty: Mapping[str, Any], positions: Int[np.ndarray, " b"]
) -> dict[str, Any]:
    """Write what a later token can see into the empty cache of a placed block."""
    assert state.cache is not None
    if BLOCK_KINDS[state.stored.kind].is_recurrent:
        return {name: _padded(values, empty[name]) for name, values in state.cache.items()}
    at, is_kept = _kept_positions(state.stored.cfg, state.stored.kind, positions)
    sequence, column = np.nonzero(is_kept)
    placed = _arrays(empty)
    for name, values in state.cache.items():
        cache = np.zeros(placed[name].shape, placed[name].dtype)
        by_position = np.moveaxis(cache, _POSITIONS_AXIS[name], 1)
        kept = np.moveaxis(values, _POSITIONS_AXIS[name], 1)
        inside = tuple(slice(length) for length in kept.shape[2:])
        slot = at[sequence, column] % by_position.shape[1]
        by_position[(sequence, slot, *inside)] = kept[sequence, column]
        placed[name] = cache
    return {name: _joined(name, entries, placed) for name, entries in empty.items()}


def _arrays(cache: Mapping[str, Any]) -> dict[str, Any]:
    """Name the arrays of a cache, or their descriptions: scales apart from their codes."""
    found = {}
    for name, entries in cache.items():
        if isinstance(entries, QuantizedArray):
            found[name], found[f"{name}{_SCALES}"] = entries.codes, entries.scales
        else:
            found[name] = entries
    return found


def _joined(name: str, entries: Any, arrays: Mapping[str, Any]) -> Any:
    """Put the arrays of a cache's entries together again, as an empty one has them."""
    if not isinstance(entries, QuantizedArray):
        return arrays[name]
    return replace(entries, codes=arrays[name], scales=arrays[f"{name}{_SCALES}"])


def _padded(values: Float[np.ndarray, "..."], empty: Any) -> Float[np.ndarray, "..."]:
    """Append zeros to every dimension up to those of an empty array."""
    padded = np.zeros(empty.shape, empty.dtype)
    padded[tuple(map(slice, values.shape))] = values
    return padded


def _kept_positions(
    cfg: ModelConfig, kind: Kind, positions: Int[np.ndarray, " b"]
) -> tuple[Int[np.ndarray, "b kept"], Bool[np.ndarray, "b kept"]]:
    """Positions that the next token can see of each sequence, and which of them there are."""
    n_kept = int(positions.max(initial=0))
    if kind == "sliding":
        attention = cfg.attention_of(kind)
        assert isinstance(attention, GqaConfig)
        assert attention.window is not None
        n_kept = min(n_kept, attention.window - 1)  # its own key is the last of the window
    first = np.maximum(positions - n_kept, 0)
    at = first[:, None] + np.arange(n_kept)[None, :]
    return at, at < positions[:, None]


def _check_room(
    block: LoadedBlock, layer: int, positions: Int[np.ndarray, " b"], request: Request
) -> None:
    """Refuse positions that a request does not allocate."""
    if positions.max(initial=0) > request.context or positions.min(initial=0) < 0:
        raise PlanError(
            f"{block.kind} block of layer {layer}: its cache has {request.context} positions; "
            f"{', '.join(str(number) for number in positions)} were given."
        )


def weight_leaves(
    cfg: ModelConfig, kind: Kind, policy: Policy, held: tuple[int, ...] | None
) -> dict[str, Any]:
    """Describe the whole weights of a block: a tree of `Leaf`, as no plan has padded it."""
    leaves: dict[str, Any] = dict(_arguments(cfg, kind, policy, Request(context=1))[1])
    if held is None:
        return leaves
    assert cfg.moe is not None
    for name in expert_params(cfg.d_model, cfg.moe):
        if not held:
            del leaves[name]
            continue
        leaves[name] = jax.tree.map(
            lambda leaf: replace(leaf, dimensions=((len(held), None), *leaf.dimensions[1:])),
            leaves[name],
            is_leaf=is_leaf,
        )
    return leaves


def cache_leaves(cfg: ModelConfig, kind: Kind, policy: Policy, request: Request) -> dict[str, Any]:
    """Describe the whole cache of an attention block."""
    leaves: dict[str, Any] = _arguments(cfg, kind, policy, request)[2]
    return leaves


def _arguments(cfg: ModelConfig, kind: Kind, policy: Policy, request: Request) -> tuple[Any, ...]:
    """Describe a block's arguments on one chip, without the padding to groups that share scales."""
    one = sizes(cfg, kind, policy, dict.fromkeys(MESH_AXES[kind], 1), request)
    whole = replace(one, local={**one.local, **axis_lengths(cfg, kind)})
    return block_arguments(cfg, kind, policy, Split.ROW, whole)
