"""The weights of an index of sparse attention, from the tensors of a Hugging Face checkpoint.

Its rotated values come in the order in which the heads of the model rotate theirs: rows of queries
and keys change places alike, which changes no product of the two.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from einops import rearrange

from ..config import ModelConfig
from ..hf_families import TENSOR_NAMES
from ..params import block_params
from .stored import Matrix, Weight, laid_out, moved


def index_weights(
    cfg: ModelConfig,
    kind: str,
    prefix: str,
    matrix: Callable[[str], Matrix],
    vector: Callable[[str], np.ndarray],
) -> dict[str, Weight]:
    """Read what a block has beside latent attention: its index if it is "indexed", else nothing.

    Args:
        cfg: the model.
        kind: of the block.
        prefix: of the names of the layer's tensors.
        matrix: reads a matrix of a name without `.weight`.
        vector: reads a vector.
    """
    if kind != "indexed":
        return {}
    names, specs = TENSOR_NAMES[cfg.family], block_params(cfg, kind)
    n_heads = cfg.index.n_heads
    order: Callable[..., np.ndarray] = _as_they_are
    if names.is_index_halved:
        order = partial(_neighbours, rotary=cfg.rope.dim)
    q = moved(matrix(prefix + names.index_q), partial(order, n_heads=n_heads))
    k = moved(matrix(prefix + names.index_k), partial(order, n_heads=1))
    norm, bias = (vector(f"{prefix}{names.index_k_norm}.{part}") for part in ("weight", "bias"))
    of_heads = matrix(prefix + names.index_weights)
    return {
        "index_q": laid_out(q, specs["index_q"], "(n h) q -> q n h", n=n_heads),
        "index_k": laid_out(k, specs["index_k"], "h d -> d h"),
        "index_k_norm": order(norm, n_heads=1),
        "index_k_bias": order(bias, n_heads=1),
        "index_weights": laid_out(of_heads, specs["index_weights"], "n d -> d n"),
    }


def block_index_weights(
    cfg: ModelConfig,
    prefix: str,
    matrix: Callable[[str], Matrix],
    norm: Callable[[str], np.ndarray],
) -> dict[str, Weight]:
    """Read the index of blocks of a layer.

    Args:
        cfg: the model.
        prefix: of the names of the layer's tensors.
        matrix: reads a matrix of a name without `.weight`.
        norm: reads the weights of a norm, as what multiplies.
    """
    names, specs = TENSOR_NAMES[cfg.family], block_params(cfg, "blocked")
    q, k = matrix(prefix + names.index_q), matrix(prefix + names.index_k)
    n_heads = specs["index_q"].shape[1]
    return {
        "index_q": laid_out(q, specs["index_q"], "(n h) d -> d n h", n=n_heads),
        "index_k": laid_out(k, specs["index_k"], "h d -> d h"),
        "index_q_norm": norm(prefix + names.index_q_norm),
        "index_k_norm": norm(prefix + names.index_k_norm),
    }


def _as_they_are(rows: np.ndarray, *, n_heads: int) -> np.ndarray:
    del n_heads
    return rows


def _neighbours(rows: np.ndarray, *, n_heads: int, rotary: int) -> np.ndarray:
    """Put the members of each rotated pair, half of `rotary` apart in a head, side by side."""
    heads = rearrange(rows, "(n h) ... -> n h ...", n=n_heads)
    turned = rearrange(heads[:, :rotary], "n (two pair) ... -> n (pair two) ...", two=2)
    both = np.concatenate((turned, heads[:, rotary:]), axis=1)
    return np.ascontiguousarray(rearrange(both, "n h ... -> (n h) ..."))
