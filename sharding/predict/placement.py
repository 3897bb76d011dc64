"""What a chip must hold: weights, cache, tables and activations, as the matrix unit streams them.

Bytes come from the storage format of the arguments of a block's program. The rows of a matrix are
padded to whole vectors after sharding, as they stream (`ChipSpec.stored_columns`); the fullest chip
decides. All lengths may be arrays, one entry per plan.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from lpu_jax.cost.memory import live_ranges, peak_bytes
from lpu_jax.cost.program import Program
from lpu_jax.cost.schedule import Timing
from lpu_jax.datapath.work import Length, Quantity, product
from lpu_jax.machine.gpu import Accelerator
from models.blocks import Leaf, is_leaf


@dataclass(frozen=True, kw_only=True)
class BlockBytes:
    """Bytes that a block adds to the fullest chip of its stage."""

    weights: Quantity
    cache: Quantity
    cached: Quantity  #: bytes of the cache's values, each once and without padding
    tables: Quantity  #: constants that blocks of one kind share
    activations: Quantity  #: live at once, at most


def block_bytes(
    arguments: Any,
    program: Program,
    timing: Timing,
    symbols: Mapping[str, Length],
    chip: Accelerator,
) -> BlockBytes:
    """Measure a block: its arguments as stored, and the values that live over its schedule.

    Args:
        arguments: tree of `Leaf` with lengths as numbers or arrays.
        program: the block's program.
        timing: its schedule.
        symbols: values of the program's symbols.
        chip: the padding of its memory.
    """
    cached: Quantity = 0.0
    held: dict[str, Quantity] = {
        "weights": 0.0,
        "cache": 0.0,
        "tables": 0.0,
        "scales": 0.0,
        "state": 0.0,
    }
    for leaf in jax.tree.leaves(arguments, is_leaf=is_leaf):
        held[leaf.kind] = held[leaf.kind] + padded_bytes(leaf, chip)
        if leaf.kind == "cache" and not leaf.is_copy:
            cached = cached + product(leaf.shape) * leaf.bits / 8
    return BlockBytes(
        weights=held["weights"],
        cache=held["cache"],
        cached=cached,
        tables=held["tables"],
        activations=peak_bytes(live_ranges(program, timing, symbols, chip.vector_bytes))
        + held["state"],
    )


def padded_bytes(leaf: Leaf, chip: Accelerator) -> Quantity:
    """Stored bytes of an argument: a vector, or each row of a matrix, fills the chip's vectors."""
    columns: Quantity
    if not leaf.rows:
        columns = chip.stored_columns(product(leaf.shape))
        return columns * leaf.bits / 8
    first_row, first_column = leaf.batch, leaf.batch + leaf.rows
    matrices = product(leaf.shape[:first_row])
    rows: Quantity = chip.stored_rows(product(leaf.shape[first_row:first_column]))
    columns = chip.stored_columns(product(leaf.shape[first_column:]))
    return matrices * rows * columns * leaf.bits / 8


def usable_bytes(chip: Accelerator) -> float:
    """Memory of a chip without what is reserved: for instructions, or a GPU's runtime."""
    return chip.memory_bytes * (1 - chip.reserved_fraction)


@dataclass(frozen=True, kw_only=True)
class Cuts:
    """A chain of blocks cut into stages; one entry per plan."""

    fullest_bytes: Float[np.ndarray, " plans"]  #: weights and cache of the fullest stage's chip
    fullest_stage_cache_bytes: Float[np.ndarray, " plans"]  #: the cache part of these
    fullest_cache_bytes: Float[np.ndarray, " plans"]  #: cache of the stage that holds most of it
    slowest_cycles: Float[np.ndarray, " plans"]
    stage_of_block: Int[np.ndarray, "blocks plans"]

    @property
    def busy_stages(self) -> Int[np.ndarray, " plans"]:
        """Stages that hold a block; where blocks are coarse the last stages stay empty."""
        return np.asarray(self.stage_of_block[-1] + 1)


def cut_stages(
    weights: Sequence[Quantity],
    cache: Sequence[Quantity],
    cycles: Sequence[Quantity],
    n_stages: Int[np.ndarray, " plans"],
) -> Cuts:
    """Cut the chain between any two blocks so that the fullest stage holds as little as possible.

    Args:
        weights: bytes of each block, a number or one per plan.
        cache: the same for the cache.
        cycles: time of each block.
        n_stages: stages of each plan.

    Returns:
        The cuts, found by bisection on the capacity to one part in 10^6; stages are filled in
        order.
    """
    plans = n_stages.shape
    held = np.stack([np.broadcast_to(w + c, plans) for w, c in zip(weights, cache, strict=True)])
    low, high = np.maximum(held.max(0), held.sum(0) / n_stages), held.sum(0)
    while np.any(high - low > 1e-6 * high + 1):
        middle = (low + high) / 2
        fits = _stages_needed(held, middle) <= n_stages
        low, high = np.where(fits, low, middle), np.where(fits, middle, high)
    stage_of_block = _fill(held, high)
    kept = np.stack([np.broadcast_to(c, plans) for c in cache])
    time = np.stack([np.broadcast_to(c, plans) for c in cycles])
    fullest, cache_there = _fullest_stage(held, kept, stage_of_block)
    return Cuts(
        fullest_bytes=fullest,
        fullest_stage_cache_bytes=cache_there,
        fullest_cache_bytes=_fullest_stage(kept, kept, stage_of_block)[0],
        slowest_cycles=_fullest_stage(time, time, stage_of_block)[0],
        stage_of_block=stage_of_block,
    )


def _stages_needed(
    held: Float[np.ndarray, "blocks plans"], capacity: Float[np.ndarray, " plans"]
) -> Any:
    return _fill(held, capacity)[-1] + 1


def _fill(held: Float[np.ndarray, "blocks plans"], capacity: Float[np.ndarray, " plans"]) -> Any:
    """Put blocks into the current stage while they fit; return the stage of each block."""
    stage = np.zeros(held.shape, np.int64)
    filled = np.zeros(held.shape[1])
    current = np.zeros(held.shape[1], np.int64)
    for i, block in enumerate(held):
        filled = filled + block
        over = filled > capacity
        current = current + over
        filled = np.where(over, block, filled)
        stage[i] = current
    return stage


def _fullest_stage(
    values: Float[np.ndarray, "blocks plans"],
    beside: Float[np.ndarray, "blocks plans"],
    stage: Int[np.ndarray, "blocks plans"],
) -> tuple[Any, Any]:
    """Largest sum of `values` of a stage, and the sum of `beside` in that stage."""
    best, best_beside = np.zeros((2, values.shape[1]))
    running, running_beside = np.zeros((2, values.shape[1]))
    previous = stage[0]
    for value, other, place in zip(values, beside, stage, strict=True):
        same = place == previous
        running = np.where(same, running, 0.0) + value
        running_beside = np.where(same, running_beside, 0.0) + other
        better = running > best
        best = np.where(better, running, best)
        best_beside = np.where(better, running_beside, best_beside)
        previous = place
    return best, best_beside
