"""Rotary position embedding from tables that lie in memory."""

from typing import Any

import numpy as np
from jaxtyping import Array, Float32
from numpy.typing import NDArray

from lpu_jax.datapath import sxm, vxm

from ..rope import RopeConfig


def rotary_tables(rope: RopeConfig, n_positions: int) -> dict[str, NDArray[np.float32]]:
    """Compute the tables of cosines and signed sines in advance, in float64, rounded once to fp32.

    Args:
        rope: frequencies and pairing.
        n_positions: allocated context.

    Returns:
        `cos` and `sin`, `[n_positions, rope.dim]`; `sin` is negative on the first member of a
        pair.
    """
    frequencies = np.asarray(rope.inverse_frequencies(), np.float64)
    angles = np.arange(n_positions, dtype=np.float64)[:, None] * frequencies[None, :]
    cos, sin = np.cos(angles) * rope.attention_factor, np.sin(angles) * rope.attention_factor
    if rope.interleaved:
        tables = (
            np.repeat(cos, 2, axis=1),
            np.stack([-sin, sin], axis=-1).reshape(n_positions, -1),
        )
    else:
        tables = (np.concatenate([cos, cos], axis=1), np.concatenate([-sin, sin], axis=1))
    return {"cos": tables[0].astype(np.float32), "sin": tables[1].astype(np.float32)}


def rotate(
    x: Float32[Array, "..."], cos: Any, sin: Any, *, interleaved: bool
) -> Float32[Array, "..."]:
    """Rotate pairs of the last axis: `x * cos + swap(x) * sin`.

    Args:
        x: heads, last axis `rotary_dim`.
        cos: table rows, broadcast to `x` over dimensions of length one.
        sin: the same, signed.
        interleaved: pairs are neighbours.

    Fidelity: two products and one sum, each rounded to fp32.
    """
    swapped = sxm.swap_pairs(x, interleaved=interleaved)
    return vxm.add(vxm.mul(x, cos), vxm.mul(swapped, sin))


def rotate_first(
    x: Float32[Array, "..."], cos: Any, sin: Any, *, rope: RopeConfig
) -> Float32[Array, "..."]:
    """Rotate the first values of every head, as many as the tables have; the others stay.

    Args:
        x: heads.
        cos: table rows, broadcast to `x` over dimensions of length one but for the last.
        sin: the same, signed.
        rope: which values make a pair; with a span, the first of each of its halves.

    Fidelity: see `rotate`.
    """
    rotary, width, interleaved = cos.shape[-1], x.shape[-1], rope.interleaved
    if rope.span is not None and rope.span != rotary:
        half, still = rotary // 2, (rope.span - rotary) // 2
        rest = (width - rope.span,) if width > rope.span else ()
        first, between, second, *others = sxm.split(x, (half, still, half, still, *rest))
        turned = rotate(sxm.join(first, second), cos, sin, interleaved=interleaved)
        first, second = sxm.split(turned, (half, half))
        return sxm.join(first, between, second, *others)
    if rotary == width:
        return rotate(x, cos, sin, interleaved=interleaved)
    turned, kept = sxm.split(x, (rotary, width - rotary))
    return sxm.join(rotate(turned, cos, sin, interleaved=interleaved), kept)
