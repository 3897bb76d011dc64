"""What the chips of a plan hold beside weights before a block runs: empty caches, who holds what.

Not here: weights (`load`), and what is in a cache later (`execute`).
"""

from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from models.blocks import Leaf, Sizes, is_leaf
from models.config import GqaConfig, ModelConfig
from models.layers.rotary import rotary_tables


def empty_state(
    cfg: ModelConfig,
    leaves: tuple[Any, ...],
    sizes: Sizes,
    held: tuple[int, ...] | None = None,
) -> tuple[Any, ...]:
    """Make everything a block's program takes beside its weights, in its order without them.

    Args:
        cfg: the model.
        leaves: descriptions of the program's arguments, weights included.
        sizes: of a chip's share.
        held: experts of a compact store, ascending; None: all of them.

    Returns:
        Global arrays, not yet padded: hidden state and cache are zero, positions begin at zero.
    """
    first, _, *others = leaves
    begin = partial(_beginning, cfg=cfg, sizes=sizes, held=held)
    values: tuple[Any, ...] = jax.tree.map(begin, (first, *others), is_leaf=is_leaf)
    return values


def _beginning(leaf: Leaf, *, cfg: ModelConfig, sizes: Sizes, held: tuple[int, ...] | None) -> Any:
    """Make what an argument holds before anything runs; see `Leaf.begins_as`."""
    (length, axis), *_ = leaf.dimensions
    match leaf.begins_as:
        case "zeros":
            return np.zeros(_whole_shape(leaf, sizes), leaf.dtype)
        case "first row" if axis is not None:
            return _first_rows(sizes, axis)
        case "chip" if axis is not None:
            return np.arange(sizes.ways[axis], dtype=np.int32)
        case "cos" | "sin" as name if leaf.rope is not None:
            return rotary_tables(leaf.rope, int(length))[name]
        case "warming" if isinstance(cfg.attention, GqaConfig) and cfg.attention.warming:
            return cfg.attention.warming.factors(int(length)).astype(np.float32)[:, None]
        case _:
            return _addresses(cfg, sizes, held)


def _whole_shape(leaf: Leaf, sizes: Sizes) -> tuple[int, ...]:
    return tuple(
        length * (sizes.ways.get(axis, 1) if axis else 1) for length, axis in leaf.dimensions
    )


def _first_rows(sizes: Sizes, axis: str) -> Int[np.ndarray, " chips"]:
    """Number of the first row of each chip's share."""
    return np.arange(sizes.ways[axis], dtype=np.int32) * np.int32(sizes.local[axis])


def _addresses(
    cfg: ModelConfig, sizes: Sizes, held: tuple[int, ...] | None
) -> Int[np.ndarray, "chips experts"]:
    """In which row of a chip's store each expert lies; -1 where the chip does not hold it."""
    moe = cfg.moe
    assert moe is not None
    number = np.arange(moe.n_experts, dtype=np.int32)
    within = number[None, :] - _first_rows(sizes, "experts")[:, None]
    is_here = (within >= 0) & (within < sizes.local["experts"])
    row = within
    if held is not None:
        of_expert = np.full(moe.n_experts, -1, np.int32)
        of_expert[list(held)] = np.arange(len(held), dtype=np.int32)
        row = np.broadcast_to(of_expert[None, :], within.shape)
    return np.where(is_here, row, -1).astype(np.int32)
