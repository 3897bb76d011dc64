"""Norms: RMS, of rows that a chip has whole or that chips share out by heads, and LayerNorm."""

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
from jaxtyping import Array, Float32

from lpu_jax.datapath import c2c, sxm, vxm
from lpu_jax.datapath.axis import Axis


def rms_norm(
    x: Float32[Array, "m d"], weight: Float32[Array, " d"] | None, eps: float
) -> Float32[Array, "m d"]:
    """Normalise rows: `x * rsqrt(mean(x^2) + eps) * weight`, or without a weight.

    Fidelity: approximate, order-dependent: the sum of squares is in the order of `vxm.sum_lanes`.
    """
    normed = vxm.mul(x, rms_scale(x, eps))
    return normed if weight is None else vxm.mul(normed, weight.reshape(1, x.shape[-1]))


def rms_scale(x: Float32[Array, "m d"], eps: float) -> Float32[Array, "m 1"]:
    """Return what normalises each row: `rsqrt(mean(x^2) + eps)`. Fidelity: see `rms_norm`."""
    mean = vxm.mul(vxm.sum_lanes(vxm.mul(x, x)), float(np.float32(1 / x.shape[-1])))
    return vxm.rsqrt(vxm.add(mean, eps))


def input_norm(
    x: Float32[Array, "m d"], weights: Mapping[str, Any], eps: float
) -> Float32[Array, "m d"]:
    """Normalise what a block is given; a model without such norms has rows as they are.

    Fidelity: see `rms_norm`.
    """
    return rms_norm(x, weights["norm"], eps) if "norm" in weights else x


def joint_rms_norm(
    x: Float32[Array, "b *heads t h"],
    weight: Float32[Array, "*heads h"] | None,
    eps: float,
    *,
    n_heads: int,
    axis: Axis,
) -> Float32[Array, "b *heads t h"]:
    """Normalise all heads of a token together, though chips share them out.

    Args:
        x: this chip's heads of every token; those that fill its share up are zeros.
        weight: of this chip's heads; None without.
        eps: as in `rms_norm`.
        n_heads: of all chips together.
        axis: the chips that share the heads out, in their order.

    Fidelity:
        Approximate, order-dependent: the sums of squares of heads are gathered in fp32 and added in
        the order of `vxm.sum_lanes`, so that no split moves a rounding.
    """
    b, *heads, t, h = x.shape
    sums = vxm.sum_lanes(vxm.mul(x, x)).reshape(b, prod(heads), t)
    sums = sxm.rearrange(sums, "b n t -> (b t) n", b=b, n=prod(heads), t=t)
    total = vxm.sum_lanes(c2c.all_gather(sums, axis, dim=-1, keep=n_heads))
    mean = vxm.mul(total, float(np.float32(1 / (n_heads * h))))
    scale = vxm.rsqrt(vxm.add(mean, eps)).reshape(b, *(1 for _ in heads), t, 1)
    normed = vxm.mul(x, scale)
    return normed if weight is None else vxm.mul(normed, weight.reshape(1, *heads, 1, h))


def layer_norm(
    x: Float32[Array, "m d"],
    weight: Float32[Array, " d"],
    bias: Float32[Array, " d"],
    eps: float,
) -> Float32[Array, "m d"]:
    """Normalise rows: `(x - mean) * rsqrt(mean((x - mean)^2) + eps) * weight + bias`.

    Fidelity: approximate, order-dependent: sums are in the order of `vxm.sum_lanes`.
    """
    d = x.shape[-1]
    share = float(np.float32(1 / d))
    centred = vxm.sub(x, vxm.mul(vxm.sum_lanes(x), share))
    variance = vxm.mul(vxm.sum_lanes(vxm.mul(centred, centred)), share)
    normed = vxm.mul(centred, vxm.rsqrt(vxm.add(variance, eps)))
    return vxm.add(vxm.mul(normed, weight.reshape(1, d)), bias.reshape(1, d))
