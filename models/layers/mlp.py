"""MLPs: gated (SwiGLU, GeGLU, SiTU) or not, dense or as one matrix of many."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Float, Float32

from lpu_jax.datapath import sxm, vxm
from lpu_jax.datapath.axis import Axis

from ..config import ModelConfig, MoeConfig, Situ
from ..hf_families import Activation
from ..leaves import rows_of_leaf
from ..policy import Policy
from .linear import Split, add_residual, capped, linear, operand_rows, project_out
from .norm import input_norm


def activated(
    gate_up: Float32[Array, "*rows n_f"],
    width: Any,
    activation: Activation,
    situ: Situ | None = None,
) -> Float32[Array, "*rows f"]:
    """Combine gate and up projections that lie side by side, `silu(gate) * up`; or bend the latter.

    Without gates there are up projections alone, of which the activation is `max(up, 0)²`.

    Args:
        gate_up: the projections.
        width: columns of each.
        activation: what gates go through.
        situ: the numbers of that activation.

    Fidelity: approximate, see `vxm.silu`, or `vxm.gelu_tanh` for that activation, `vxm.tanh` and
    `vxm.sigmoid` for SiTU; without gates two operations in fp32.
    """
    if activation == "relu2":
        above = vxm.maximum(gate_up, 0.0)
        return vxm.mul(above, above)
    gate, up = sxm.split(gate_up, (width, width))
    if situ is not None:
        bent = vxm.mul(capped(gate, situ.limit), vxm.sigmoid(gate))
        return vxm.mul(bent, capped(up, situ.up_limit))
    return vxm.mul(vxm.silu(gate) if activation == "silu" else vxm.gelu_tanh(gate), up)


def clamped_swiglu(
    gate_up: Float32[Array, "*rows two_f"], width: Any, *, limit: float, alpha: float
) -> Float32[Array, "*rows f"]:
    """Combine projections as gpt-oss does: `(up + 1) * gate * sigmoid(alpha * gate)`.

    Args:
        gate_up: gate and up projections side by side.
        width: columns of each.
        limit: the most that gate may be, and up on either side of zero; NaN stays.
        alpha: see above.

    Fidelity: approximate, see `vxm.sigmoid`; every other operation is rounded once to fp32.

    Source: modeling_gpt_oss.py of Hugging Face transformers, `GptOssExperts`.
    """
    gate, up = sxm.split(gate_up, (width, width))
    gate = vxm.minimum(gate, limit)
    up = vxm.maximum(vxm.minimum(up, limit), -limit)
    return vxm.mul(vxm.add(up, 1.0), vxm.mul(gate, vxm.sigmoid(vxm.mul(gate, alpha))))


def expert_activations(
    gate_up: Float32[Array, "*rows n_f"], width: Any, moe: MoeConfig
) -> Float32[Array, "*rows f"]:
    """Combine projections as the experts of a mixture do: `clamped_swiglu`, or `activated`."""
    if moe.swiglu_limit is None:
        return activated(gate_up, width, moe.activation, moe.situ)
    return clamped_swiglu(gate_up, width, limit=moe.swiglu_limit, alpha=moe.swiglu_alpha)


def shared_activations(
    gate_up: Float32[Array, "m n_f"],
    rows: Any,
    weights: Mapping[str, Any],
    policy: Policy,
    moe: MoeConfig,
) -> Float[Array, "m f"]:
    """Make the rows that multiply the shared experts' `down`.

    Args:
        gate_up: gate and up projections side by side, or the latter alone.
        rows: normalised rows in the router's format, of a model that gates the shared experts.
        weights: `shared_gate_up`, and `shared_gate` where the model has it.
        policy: formats, and how products are made.
        moe: the experts' activation.

    Fidelity:
        As `expert_activations`. A gate, the same for a whole row, multiplies before `down` instead
        of after it.
    """
    h = expert_activations(gate_up, weights["shared_gate_up"].shape[2], moe)
    if "shared_gate" in weights:
        h = vxm.mul(h, vxm.sigmoid(linear(rows, weights["shared_gate"], policy=policy)))
    found: Array = operand_rows(h, policy, "shared")
    return found


def dense_mlp(
    x: Float[Array, "b t d"],
    weights: Mapping[str, Any],
    *,
    cfg: ModelConfig,
    policy: Policy,
    split: Split,
    axes: Mapping[str, Axis],
) -> Float[Array, "b t d"]:
    """Dense feed-forward block.

    Args:
        x: hidden state, replicated in the group.
        weights: `norm`, `gate_up`, `down` and others (`models.params`), this chip's share.
        cfg: the model.
        policy: formats, and how products are made.
        split: how `down` is split.
        axes: `tensor`.

    Returns:
        The new hidden state, replicated.
    """
    b, t, d = x.shape
    y = input_norm(vxm.to_fp32(x.reshape(b * t, d)), weights, cfg.norm_eps)
    y = linear(operand_rows(y, policy, "dense"), weights["gate_up"], policy=policy)
    width = weights["gate_up"].shape[2]
    if cfg.clamps_dense and cfg.moe is not None:
        h = expert_activations(y, width, cfg.moe)
    else:
        h = activated(y, width, cfg.activation, cfg.situ)
    h = operand_rows(h, policy, "dense")
    out = project_out(
        h,
        weights["down"],
        rows=1,
        policy=policy,
        split=split,
        axis=axes["tensor"],
        d_model=d,
        leaf=rows_of_leaf(cfg, "dense", policy, "down"),
    )
    return add_residual(x, out.reshape(b, t, d), cfg, policy, weights)
