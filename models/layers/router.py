"""The routers of all families: which experts a row uses, and with which weights.

Everything is fp32 on the vector unit behind one product. Not modelled: noise, hash layers, and
limits on how many rows an expert takes.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int32

from lpu_jax.datapath import selection, vxm

from ..config import ModelConfig, MoeConfig
from ..depth import STATES
from ..policy import Policy
from .depth import mean_of_states
from .linear import linear, operand_rows
from .norm import rms_norm

#: Added to the sum that divides chosen scores, as DeepSeek-V3 does: sigmoids may all vanish. The
#: sum of softmax scores is at least 1 / experts, of which it changes no bit.
_LEAST_SUM = 1e-20


def router_logits(
    rows: Float[Array, "m d"], weights: Mapping[str, Any], *, policy: Policy
) -> Float32[Array, "m e"]:
    """Score every expert for every row.

    Args:
        rows: normalised rows in the format that multiplies the router's weights.
        weights: `router`, and `router_offset` where the model has it.
        policy: how products are made.

    Fidelity: see `linear`; the offset is one fp32 addition.
    """
    logits = linear(rows, weights["router"], policy=policy)
    if "router_offset" not in weights:
        return logits
    return vxm.add(logits, weights["router_offset"].reshape(1, -1))


def route(
    logits: Float32[Array, "m e"], weights: Mapping[str, Any], moe: MoeConfig
) -> tuple[Int32[Array, "m k"], Float32[Array, "m k"]]:
    """Choose experts from their logits, and weight them.

    Experts are ranked by their corrected scores, or by their logits where scores are made
    afterwards. Groups are ranked by the sum of their two best experts; the best experts of the kept
    groups are taken.

    Args:
        logits: as `router_logits` gives them.
        weights: `router_bias` where the model corrects its scores, `expert_scale` where it scales
            their weights.
        moe: the router's rules.

    Returns:
        Experts of each row, best first, and their weights: scores without correction, or the
        softmax or the sigmoids of the chosen logits, normalised and scaled as `moe` says.

    Fidelity: approximate; of experts that rank alike the lower comes first.

    Source:
        modeling_deepseek_v3.py, modeling_mixtral.py, modeling_qwen3_moe.py, modeling_gpt_oss.py,
        modeling_llama4.py and modeling_gemma4.py of Hugging Face transformers.
    """
    scores, ranking = _scored(logits, weights, moe)
    best, ids = selection.top_k(_in_kept_groups(ranking, moe), moe.top_k)
    chosen = best if ranking is scores else selection.take_lanes(scores, ids)
    if moe.scoring == "softmax_after_top_k":
        chosen = vxm.softmax(chosen)
    elif moe.scoring == "sigmoid_after_top_k":
        chosen = vxm.sigmoid(chosen)
    elif moe.normalise:
        chosen = vxm.div(chosen, vxm.add(vxm.sum_lanes(chosen), _LEAST_SUM))
    if "expert_scale" in weights:
        factors = jnp.broadcast_to(weights["expert_scale"].reshape(1, -1), logits.shape)
        chosen = vxm.mul(chosen, selection.take_lanes(factors, ids))
    return ids, chosen if moe.routed_scaling == 1.0 else vxm.mul(chosen, moe.routed_scaling)


def choose_experts(
    hidden: Float[Array, "m d"], weights: Mapping[str, Any], *, cfg: ModelConfig, policy: Policy
) -> tuple[Int32[Array, "m k"], Float32[Array, "m k"]]:
    """Route rows of the hidden state without running experts: the choices that the block makes.

    Args:
        hidden: rows as they enter the block.
        weights: `norm`, or the router's own, and what `router_logits` and `route` take.
        cfg: the model.
        policy: formats, and how products are made.

    Returns:
        What `route` returns.
    """
    assert cfg.moe is not None
    norm = weights.get("router_norm", weights["norm"])
    if cfg.residual_block is None:
        given = vxm.to_fp32(hidden)
    else:
        states = hidden.reshape(-1, cfg.n_states, cfg.d_model)
        given = mean_of_states(states, weights, cfg, lax.slice_in_dim(weights[STATES], 0, 1))
    rows = operand_rows(rms_norm(given, norm, cfg.norm_eps), policy, "router")
    return route(router_logits(rows, weights, policy=policy), weights, cfg.moe)


def _scored(
    logits: Float32[Array, "m e"], weights: Mapping[str, Any], moe: MoeConfig
) -> tuple[Float32[Array, "m e"], Float32[Array, "m e"]]:
    """Give the scores that weigh experts, and those that rank them: the same unless corrected."""
    match moe.scoring:
        case "sigmoid":
            scores = vxm.sigmoid(logits)
        case "softmax":
            scores = vxm.softmax(logits)
        case "softmax_after_top_k" | "sigmoid_after_top_k":
            scores = logits
    if "router_bias" not in weights:
        return scores, scores
    return scores, vxm.add(scores, weights["router_bias"].reshape(1, -1))


def _in_kept_groups(ranking: Float32[Array, "m e"], moe: MoeConfig) -> Float32[Array, "m e"]:
    """Set experts outside the best groups to minus infinity."""
    if moe.n_groups == 1:
        return ranking
    m = ranking.shape[0]
    grouped = ranking.reshape(m, moe.n_groups, moe.experts_per_group)
    best_two, _ = selection.top_k(grouped, 2)
    group_scores = vxm.sum_lanes(best_two).reshape(m, moe.n_groups)
    _, groups = selection.top_k(group_scores, moe.topk_groups)
    return selection.keep_groups(ranking, groups, moe.n_groups)
