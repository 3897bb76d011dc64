"""The gated MLP (SwiGLU), dense or as one matrix of many."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Float16, Float32

from lpu_jax.datapath import sxm, vxm
from lpu_jax.datapath.c2c import Axis

from ..config import ModelConfig
from .linear import Split, add_residual, linear, project_out
from .norm import rms_norm


def swiglu(gate_up: Float32[Array, "*rows two_f"], width: Any) -> Float16[Array, "*rows f"]:
    """Combine gate and up projections that lie side by side: `silu(gate) * up`, rounded to fp16.

    Fidelity: approximate, see `vxm.silu`.
    """
    gate, up = sxm.split(gate_up, (width, width))
    return vxm.to_fp16(vxm.mul(vxm.silu(gate), up))


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
    h = swiglu(linear(y, weights["gate_up"]), weights["gate_up"].shape[2])
    out = project_out(h, weights["down"], rows=1, split=split, axis=axes["tensor"], d_model=d)
    return add_residual(x, out.reshape(b, t, d))
