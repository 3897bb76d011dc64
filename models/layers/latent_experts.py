"""Experts that work in a narrower space: the ways into it, and back to the model's width.

Per-chip: both matrices are split by columns over the chips of the `expert` and `tensor` axes, whose
results are gathered, so that no split moves a bit of them. What is exchanged in between is as
narrow as the latent.
"""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Float

from lpu_jax.datapath import c2c, vxm
from lpu_jax.datapath.axis import Axis

from ..config import ModelConfig
from ..policy import Policy
from .linear import linear, narrowed, operand_rows
from .norm import rms_norm


def into_latent(
    rows: Float[Array, "m d"],
    weights: Mapping[str, Any],
    *,
    cfg: ModelConfig,
    policy: Policy,
    across: Axis,
) -> Float[Array, "m c"]:
    """Make the rows that routed experts take.

    Args:
        rows: normalised rows in the format that multiplies what every row passes.
        weights: `latent_in`, this chip's columns.
        cfg: the model.
        policy: formats, and how products are made.
        across: the chips that share the columns out.

    Returns:
        Rows in the format that multiplies expert weights, on every chip.

    Fidelity: see `linear`; one rounding to the format of the rows.
    """
    latent = operand_rows(linear(rows, weights["latent_in"], policy=policy), policy, "expert")
    return c2c.all_gather(latent, across, dim=-1, keep=cfg.d_routed)


def out_of_latent(
    total: Float[Array, "m c"],
    beside: Float[Array, "m d"] | None,
    weights: Mapping[str, Any],
    *,
    cfg: ModelConfig,
    policy: Policy,
    across: Axis,
) -> Float[Array, "m d"]:
    """Take the sum over experts back to the model's width, and add what stands beside it.

    Args:
        total: sums in the base format, on every chip.
        beside: the shared expert's result; None without one.
        weights: `latent_out`, this chip's columns; `latent_norm`, where the model has it.
        cfg: the model.
        policy: formats, and how products are made.
        across: the chips that share the columns out.

    Fidelity: see `linear`, and `rms_norm` where sums are normalised; one rounding to the base
    format, one more behind the fp32 addition.
    """
    sums = vxm.to_fp32(total)
    if "latent_norm" in weights:
        sums = rms_norm(sums, weights["latent_norm"], cfg.norm_eps)
    rows = operand_rows(sums, policy, "shared")
    out = narrowed(linear(rows, weights["latent_out"], policy=policy), policy)
    out = c2c.all_gather(out, across, dim=-1, keep=cfg.d_model)
    if beside is None:
        return out
    return narrowed(vxm.add(vxm.to_fp32(out), vxm.to_fp32(beside)), policy)
