"""Which states of a model with attention residuals a block reads, and to which it adds.

States are numbered: 0 is the embedding, then comes the sum of what the layers of each block added.
Those of layers that are still to come are zeros, and are not read. A layer that begins a block
reads finished states alone.
"""

from collections.abc import Mapping
from typing import TypeVar

import numpy as np
from jaxtyping import Int32

from .config import ModelConfig

Value = TypeVar("Value")

#: What the parameters of a block are called that it has beside those of models without: the norm of
#: states as keys, the query that all tokens share, and the two numbers of `states_of`.
NORM, QUERY, STATES = "depth_norm", "depth_query", "depth_states"


def states_of(cfg: ModelConfig, kind: str, layer: int) -> Int32[np.ndarray, " 2"]:
    """Return the last state that a block of a layer reads, and that to which it adds.

    Args:
        cfg: a model with attention residuals.
        kind: of the block; the first of a layer's two reads what is there before the layer.
        layer: its layer, from 0.
    """
    assert cfg.residual_block is not None
    own = 1 + layer // cfg.residual_block
    begins = layer % cfg.residual_block == 0 and kind not in ("dense", "moe")
    return np.array([own - begins, own], np.int32)


def with_states(
    cfg: ModelConfig, kind: str, layer: int, arrays: Mapping[str, Value]
) -> dict[str, Value | np.ndarray]:
    """Put these numbers beside the arrays of a layer's block, in a model that has them."""
    if cfg.residual_block is None or kind in ("embed", "head"):
        return dict(arrays)
    return {**arrays, STATES: states_of(cfg, kind, layer)}
