"""The gated MLP (SwiGLU), dense or as one matrix of many."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Float16, Float32

from lpu_jax.datapath import sxm, vxm
from lpu_jax.datapath.c2c import Axis
from models.config import ModelConfig

from .linear import Split, add_residual, linear, project_out
from .norm import rms_norm


def swiglu(gate_up: Float32[Array, "*rows two_f"], width: Any) -> Float16[Array, "*rows f"]:
    """Combine gate and up projections that lie side by side: `silu(gate) * up`, rounded to fp16.

    Fidelity: approximate, see `vxm.silu`.
    """
    gate, up = sxm.split(gate_up, (width, width))
    return vxm.to_fp16(vxm.mul(vxm.silu(gate), up))


def gated_mlp(
    y: Float16[Array, "m d"], gate_up: Any, down: Any, *, split: Split, axis: Axis
) -> Float16[Array, "m d"]:
    """Apply a gated MLP whose width is split over `axis`; the result is on all chips.

    Args:
        y: normalised rows.
        gate_up: `[d, 2, f]`, this chip's share of `f`.
        down: `[f, d]`, this chip's share of rows or columns, as `split` says.
        split: how `down` is split.
        axis: the chips.
    """
    h = swiglu(linear(y, gate_up), gate_up.shape[2])
    return project_out(h, down, rows=1, split=split, axis=axis, d_model=y.shape[-1])


def dense_mlp(
    x: Float16[Array, "b t d"],
    weights: Mapping[str, Any],
    *,
    cfg: ModelConfig,
    split: Split,
    axes: Mapping[str, Axis],
) -> Float16[Array, "b t d"]:
    """Dense feed-forward block.

    Args:
        x: hidden state, replicated in the group.
        weights: `norm`, `gate_up`, `down` (`models.params`), this chip's share.
        cfg: the model.
        split: how `down` is split.
        axes: `tensor`.

    Returns:
        The new hidden state, replicated.
    """
    b, t, d = x.shape
    y = rms_norm(vxm.to_fp32(x.reshape(b * t, d)), weights["norm"], cfg.norm_eps)
    out = gated_mlp(y, weights["gate_up"], weights["down"], split=split, axis=axes["tensor"])
    return add_residual(x, out.reshape(b, t, d))
