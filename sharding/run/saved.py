"""Save a model's state under one plan and restore it under another, bit for bit.

A state is the weights of blocks in their stored formats and, if given, caches, the positions they
reach and the hidden state. Saved are whole arrays that no plan has padded or split; a plan pads
them again. One block is in memory at a time. Not built: several processes that save together, and
reading an array's shares straight to their chips.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from lpu_jax.errors import WeightsError
from lpu_jax.machine.system import System
from lpu_jax.numerics.quantized import QuantizedArray
from models.blocks import Block
from models.config import ModelConfig
from models.policy import Policy

from ..plan import Plan
from ..plan_file import plan_from_dict
from ..report import versions
from ..request import Request
from .execute import check_execution
from .load import LoadedBlock, StoredBlock
from .unplaced import CACHE_NAMES, BlockState, restored_block, weight_leaves

#: Changes when states that were saved before can no longer be read.
_FORMAT = "lpu_jax state 1"

Arrays = dict[str, Shaped[np.ndarray, "..."]]


@dataclass(frozen=True, kw_only=True)
class State:
    """What is saved. `blocks` may be made as they are asked for; they are asked for once."""

    cfg: ModelConfig
    policy: Policy
    blocks: Iterable[BlockState]
    plan: Plan | None = None  #: under which it ran, for the record
    positions: Int[np.ndarray, " b"] | None = None  #: tokens of each sequence in the caches
    hidden: Float[np.ndarray, "b t d"] | None = None


@dataclass(frozen=True, kw_only=True)
class RestoredState:
    """A state on the chips of a plan; `blocks` are read and placed as they are asked for."""

    step: int
    blocks: Iterator[tuple[Block, LoadedBlock]]
    saved_under: Plan | None
    positions: Int[np.ndarray, " b"] | None
    hidden: Float[np.ndarray, "b t d"] | None


# --- saving -------------------------------------------------------------------------------------


def save_state(folder: str | Path, state: State, *, step: int | None = None) -> int:
    """Save a state as a step of a folder: whole, or not at all.

    The last two steps stay; a save that is interrupted leaves them as they are.

    Args:
        folder: made if it is absent; one process at a time may save into it.
        state: its blocks are asked for one by one, and each is dropped once it is written.
        step: higher than those in the folder; None is the next number, from 0 on.

    Returns:
        The step.

    Raises:
        WeightsError: a step that is not higher, a folder that cannot be written, or a block that is
            repeated or belongs to another model or policy than the state.

    Fidelity: exact, to the bits of NaN and the sign of zero.
    """
    from . import orbax_steps  # slow to import

    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise WeightsError(f"{folder} is a file; a state is saved in a folder.")
    last = max(orbax_steps.steps(folder), default=-1)
    step = last + 1 if step is None else step
    if step <= last or step < 0:
        raise WeightsError(
            f"step {step} was given for {folder}; {last + 1} is the least that can be saved."
        )
    saving = _Saving(state)
    orbax_steps.write_step(folder, step, saving.items(), saving.description)
    return step


class _Saving:
    """The items of a state, noted as they are written."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.blocks: list[dict[str, Any]] = []

    def items(self) -> Iterator[tuple[str, Arrays]]:
        """Give name and arrays of one item after the other; of an earlier one nothing is kept."""
        blocks = iter(self.state.blocks)
        while (block := next(blocks, None)) is not None:
            arrays = self._arrays(block)
            self.blocks.append(self._noted(block, arrays))
            del block
            yield self.blocks[-1]["item"], arrays
            del arrays
        if self.state.hidden is not None:
            arrays = {"hidden": np.asarray(self.state.hidden)}
            yield "hidden", arrays

    def _arrays(self, block: BlockState) -> Arrays:
        stored = block.stored
        where = f"{stored.kind} block of layer {block.layer}"
        if stored.cfg != self.state.cfg or stored.policy != self.state.policy:
            raise WeightsError(f"{where}: it belongs to another model or policy than the state.")
        if any((stored.kind, block.layer) == (b["kind"], b["layer"]) for b in self.blocks):
            raise WeightsError(f"{where}: it is in the state twice.")
        if block.cache is not None and self.state.positions is None:
            raise WeightsError(f"{where}: it has a cache, but the state has no positions.")
        arrays = {}
        for name, weight in stored.weights.items():
            for part, values in _parts(name, weight).items():
                arrays[part] = np.asarray(values)
        for name, values in (block.cache or {}).items():
            arrays[f"cache.{name}"] = np.asarray(values)
        return arrays

    def _noted(self, block: BlockState, arrays: Arrays) -> dict[str, Any]:
        kind, layer = block.stored.kind, block.layer
        return {
            "item": f"{len(self.blocks):04d}-{kind}-{layer}",
            "kind": kind,
            "layer": layer,
            "held": _plain(block.stored.held),
            "arrays": sorted(arrays),
        }

    def description(self) -> dict[str, Any]:
        """What is written beside the items."""
        state = self.state
        positions = state.positions
        return {
            "format": _FORMAT,
            "model": _plain(state.cfg),
            "policy": _plain(state.policy),
            "plan": None if state.plan is None else state.plan.as_dict(),
            "positions": None if positions is None else [int(p) for p in positions],
            "versions": versions() | {"orbax-checkpoint": version("orbax-checkpoint")},
            "blocks": self.blocks,
            "hidden": state.hidden is not None,
        }


def _parts(name: str, weight: Any) -> dict[str, Any]:
    """Name the arrays of a weight."""
    if not isinstance(weight, QuantizedArray):
        return {f"weights.{name}": weight}
    parts = {"codes": weight.codes, "scales": weight.scales, "tensor_scale": weight.tensor_scale}
    return {f"weights.{name}.{part}": a for part, a in parts.items() if a is not None}


def _plain(value: Any) -> Any:
    """Turn a configuration into what JSON reads back as the same."""
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in sorted(value.items())}
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    return value


# --- restoring ----------------------------------------------------------------------------------


def restore_state(
    folder: str | Path,
    cfg: ModelConfig,
    system: System,
    plan: Plan,
    request: Request,
    *,
    policy: Policy,
    step: int | None = None,
    widen_once: bool = False,
    execution: str = "virtual",
) -> RestoredState:
    """Restore a saved state onto the chips of a plan: the one it was saved under, or any other.

    Args:
        folder: where `save_state` saved it.
        cfg: the model.
        system: its node and rack sizes fix the order of sums across chips.
        plan: how the blocks are split.
        request: batch, new tokens and allocated context. With caches the batch is that of the
            state, and the context has room for its positions.
        policy: the formats.
        step: None is the last one.
        widen_once: as for `load.place_block`.
        execution: as for `execute.run_block`; with devices, each chip's shares are put on its
            own.

    Returns:
        The state. Caches and positions are in the arguments of its blocks: `run_block` continues.

    Raises:
        WeightsError: as for `read_state`.
        UnknownNameError: there is no such execution.
        PlanError: when a block is asked for that the plan or the request does not fit.
        MeshError: likewise, if there are fewer devices than chips.

    Fidelity: exact: the bits of placing the same weights and caches under this plan.
    """
    check_execution(execution)
    step, state = read_state(folder, cfg, policy=policy, step=step)

    def placed() -> Iterator[tuple[Block, LoadedBlock]]:
        blocks = iter(state.blocks)
        while (block := next(blocks, None)) is not None:
            which = Block(kind=block.stored.kind, layer=block.layer)
            loaded = restored_block(
                block,
                system,
                plan,
                request,
                state.positions,
                widen_once=widen_once,
                execution=execution,
            )
            del block
            yield which, loaded
            del loaded

    return RestoredState(
        step=step,
        blocks=placed(),
        saved_under=state.plan,
        positions=state.positions,
        hidden=state.hidden,
    )


def read_state(
    folder: str | Path, cfg: ModelConfig, *, policy: Policy, step: int | None = None
) -> tuple[int, State]:
    """Read a saved state without placing it.

    Args:
        folder: where `save_state` saved it.
        cfg: the model.
        policy: the formats.
        step: None is the last one.

    Returns:
        The step and the state, whose blocks are read as they are asked for.

    Raises:
        WeightsError: no such step, a folder without a state, a state of another model or policy, a
            block that is missing; and, when it is asked for, a block whose files are damaged.

    Fidelity: exact: every array has the SHA-256 that was noted when it was saved.
    """
    from . import orbax_steps  # slow to import

    folder = Path(folder)
    there = orbax_steps.steps(folder)
    if not there:
        raise WeightsError(f"{folder} holds no saved state.")
    step = there[-1] if step is None else step
    if step not in there:
        raise WeightsError(
            f"{folder} has no step {step}; it has {', '.join(str(number) for number in there)}."
        )
    contents = orbax_steps.read_contents(folder, step)
    where, described = f"step {step} of {folder}", contents.description
    _check(where, described, cfg, policy)

    def read(name: str) -> Arrays:
        return orbax_steps.read_item(folder, step, name, contents)

    positions, plan = described["positions"], described["plan"]
    return step, State(
        cfg=cfg,
        policy=policy,
        blocks=(_block(noted, read(noted["item"]), cfg, policy) for noted in described["blocks"]),
        plan=None if plan is None else plan_from_dict(plan, where),
        positions=None if positions is None else np.asarray(positions, np.int32),
        hidden=read("hidden")["hidden"] if described["hidden"] else None,
    )


def _check(where: str, described: Any, cfg: ModelConfig, policy: Policy) -> None:
    """Refuse the state of another version, model or policy."""
    if not isinstance(described, dict) or described.get("format") != _FORMAT:
        raise WeightsError(f"{where} is not a saved state that this version can read.")
    # What a model is called depends on the folder that it lies in.
    named_alike = replace(cfg, name=described["model"]["name"])
    for what, ours in (("model", named_alike), ("policy", policy)):
        different = _difference(described[what], _plain(ours), what)
        if different is not None:
            raise WeightsError(f"{where} was saved with another {what}: {different}.")
    for noted in described["blocks"]:
        leaves = weight_leaves(cfg, noted["kind"], policy, _held(noted))
        known = {part for name, leaf in leaves.items() for part in _parts(name, leaf)}
        if known != {name for name in noted["arrays"] if not name.startswith("cache.")}:
            raise WeightsError(
                f"{where}: {noted['item']} has other parameters than this version; lpu_jax "
                f"{described['versions']['lpu_jax']} saved it."
            )


def _block(
    noted: Mapping[str, Any], arrays: Arrays, cfg: ModelConfig, policy: Policy
) -> BlockState:
    """Put a block together, in the formats of the policy."""
    kind, held = noted["kind"], _held(noted)
    weights = {
        name: _weight(name, leaf, arrays)
        for name, leaf in weight_leaves(cfg, kind, policy, held).items()
    }
    stored = StoredBlock(cfg=cfg, kind=kind, policy=policy, weights=weights, held=held)
    cache = {name: arrays[f"cache.{name}"] for name in CACHE_NAMES if f"cache.{name}" in arrays}
    return BlockState(layer=noted["layer"], stored=stored, cache=cache or None)


def _held(noted: Mapping[str, Any]) -> tuple[int, ...] | None:
    return None if noted["held"] is None else tuple(noted["held"])


def _weight(name: str, leaf: Any, arrays: Arrays) -> Any:
    """Put the arrays of a weight together, as `leaf` describes it."""
    parts = {path.rpartition(".")[2]: arrays[path] for path in _parts(name, leaf)}
    if not isinstance(leaf, QuantizedArray):
        return parts[name]
    return replace(
        leaf,
        codes=parts["codes"],
        scales=parts.get("scales"),
        tensor_scale=parts.get("tensor_scale"),
    )


def _difference(saved: Any, ours: Any, path: str) -> str | None:
    """Name the first value in which two trees of plain values differ."""
    if isinstance(saved, dict) and isinstance(ours, dict):
        for key in sorted(saved.keys() | ours.keys()):
            found = _difference(saved.get(key), ours.get(key), f"{path}.{key}")
            if found is not None:
                return found
        return None
    return None if saved == ours else f"{path} was {json.dumps(saved)} and is {json.dumps(ours)}"
