"""What router and experts of a mixture are given, and how results with norms of their own join."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Float, Float32

from lpu_jax.datapath import sxm, vxm
from lpu_jax.datapath.axis import Axis

from ..config import ModelConfig
from ..leaves import rows_of_leaf
from ..param_spec import Role
from ..policy import Policy
from .linear import Split, operand_rows, project_out
from .norm import rms_norm

#: What the router, the experts and the shared experts are given: the same rows but in Gemma 4.
Normed = tuple[Float32[Array, "m d"], Float32[Array, "m d"], Float32[Array, "m d"]]


def normed_rows(x: Float32[Array, "m d"], weights: Mapping[str, Any], cfg: ModelConfig) -> Normed:
    """Normalise rows for the router, the experts and the shared experts.

    Args:
        x: rows of the hidden state.
        weights: `norm`; `router_norm` and `expert_norm` where these have their own.
        cfg: the model.

    Fidelity: see `rms_norm`; rows are normalised once, and multiplied by the weights of each.
    """
    if "expert_norm" not in weights:
        y = rms_norm(x, weights["norm"], cfg.norm_eps)
        return y, y, y
    y = rms_norm(x, None, cfg.norm_eps)
    router, expert, shared = (
        vxm.mul(y, weights[name].reshape(1, -1)) for name in ("router_norm", "expert_norm", "norm")
    )
    return router, expert, shared


def rounded(
    normed: tuple[Float32[Array, "m d"], ...], policy: Policy, *roles: Role
) -> tuple[Any, ...]:
    """Round such rows to the format in which they multiply weights of each role.

    Fidelity: see `operand_rows`; equal rows share what they can.
    """
    if normed[0] is normed[1]:
        found: tuple[Any, ...] = operand_rows(normed[0], policy, *roles)
        return found
    return tuple(operand_rows(y, policy, role) for y, role in zip(normed, roles, strict=True))


def joined_results(
    routed: Float32[Array, "m d"],
    shared: Float32[Array, "m d"],
    weights: Mapping[str, Any],
    cfg: ModelConfig,
) -> Float32[Array, "m d"]:
    """Add the results of experts and of shared experts, which are normalised first if they are.

    Fidelity: see `rms_norm`; one fp32 addition.
    """
    if "expert_result_norm" in weights:
        routed = rms_norm(routed, weights["expert_result_norm"], cfg.norm_eps)
        shared = rms_norm(shared, weights["shared_result_norm"], cfg.norm_eps)
    return vxm.add(routed, shared)


def shared_alone(
    rows: Float[Array, "m f"],
    weights: Mapping[str, Any],
    *,
    cfg: ModelConfig,
    policy: Policy,
    split: Split,
    across: Axis,
) -> Float[Array, "m d"]:
    """Finish shared experts whose result is not added to that of others as it is.

    Args:
        rows: what multiplies their `down`.
        weights: `shared_down`, this chip's share.
        cfg: the model.
        policy: formats, and how products are made.
        split: how it is split.
        across: the chips that share it out.

    Fidelity: see `linear.project_out`.
    """
    whole = project_out(
        rows,
        weights["shared_down"],
        rows=1,
        policy=policy,
        split=split,
        axis=across,
        d_model=cfg.d_model,
        leaf=rows_of_leaf(cfg, "moe", policy, "shared_down"),
    )
    return sxm.keep_columns(whole, cfg.d_model)  # columns of a tree are padded
