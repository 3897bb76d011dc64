"""What the chips of a plan hold beside weights before a block runs: empty caches, who holds what.

Not here: weights (`load`), and what is in a cache later (`execute`).
"""

from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from models.blocks import Kind, Leaf, Sizes, is_leaf
from models.config import ModelConfig
from models.layers.rotary import rotary_tables


def empty_state(
    cfg: ModelConfig,
    kind: Kind,
    leaves: tuple[Any, ...],
    local: Sizes,
    data: int,
    held: tuple[int, ...] | None = None,
) -> tuple[Any, ...]:
    """Make everything a block's program takes beside its weights, in its order without them.

    Args:
        cfg: the model.
        kind: the kind of block.
        leaves: descriptions of the program's arguments, weights included.
        local: sizes of a chip's share.
        data: chips that share out the sequences.
        held: experts of a compact store, ascending; None: all of them.

    Returns:
        Global arrays, not yet padded: hidden state and cache are zero, positions begin at zero.
    """
    hidden = _zeros(leaves[0], local)
    match kind:
        case "embed":
            return hidden, _firsts(local, "vocab")
        case "attention" | "sliding":
            cache = jax.tree.map(partial(_zeros, sizes=local), leaves[2], is_leaf=is_leaf)
            return (
                hidden,
                cache,
                rotary_tables(cfg.rope, int(local.local["context"])),
                np.zeros(local.local["batch"], np.int32),
                np.arange(data, dtype=np.int32),
                *([_firsts(local, "kv_length")] if local.splits_context else []),
            )
        case "dense":
            return (hidden,)
        case "moe":
            placement = _placement(cfg, local, held)
            if "share" in leaves[2]:
                placement["share"] = np.arange(local.ways["experts"], dtype=np.int32)
            return hidden, placement
        case "head":
            return hidden, np.zeros(local.local["batch"], np.int32), _firsts(local, "vocab")


def _zeros(leaf: Leaf, sizes: Sizes) -> Any:
    shape = tuple(
        length * (sizes.ways.get(axis, 1) if axis else 1) for length, axis in leaf.dimensions
    )
    return np.zeros(shape, leaf.dtype)


def _firsts(local: Sizes, axis: str) -> Int[np.ndarray, " chips"]:
    """Number of the first row of each chip's share."""
    return np.arange(local.ways[axis], dtype=np.int32) * np.int32(local.local[axis])


def _placement(
    cfg: ModelConfig, local: Sizes, held: tuple[int, ...] | None
) -> dict[str, Int[np.ndarray, "..."]]:
    """Which experts a chip holds, and in which row of the store each of them lies."""
    moe = cfg.moe
    assert moe is not None
    first = _firsts(local, "experts")
    number = np.arange(moe.n_experts, dtype=np.int32)
    within = number[None, :] - first[:, None]
    is_here = (within >= 0) & (within < local.local["experts"])
    row = within
    if held is not None:
        of_expert = np.full(moe.n_experts, -1, np.int32)
        of_expert[list(held)] = np.arange(len(held), dtype=np.int32)
        row = np.broadcast_to(of_expert[None, :], within.shape)
    return {"first_expert": first, "address": np.where(is_here, row, -1).astype(np.int32)}
