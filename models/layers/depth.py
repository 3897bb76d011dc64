"""Attention residuals: what a block is given is a mean of the states that earlier blocks left.

The states of a token lie side by side in what passes from block to block: its embedding, and one
sum of what each block of layers added. A softmax over those that are there weighs them; its
queries are parameters, its keys the states themselves, RMS-normalised. Per-chip: every chip has
all states and does all of this. All states pass in every layer and over every hand-over, also
those of layers that are still to come, so that one program serves all layers: the time is that of
the last ones.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int32

from lpu_jax.datapath import masks, mem, sxm, vxm

from ..config import ModelConfig
from ..depth import NORM, QUERY, STATES
from ..policy import Policy
from .linear import narrowed
from .norm import rms_scale


def with_depth(layer: Callable[..., Any], cfg: ModelConfig, policy: Policy) -> Callable[..., Any]:
    """Make a program of all states of one that takes a mean of them and gives what it adds.

    Args:
        layer: of a block, which gives what it adds, alone or before its new cache.
        cfg: the model.
        policy: the base format.

    Returns:
        The block's program. Of its weights it takes `depth_norm`, `depth_query` and `depth_states`,
        the last state that is read and the one that grows.

    Fidelity: one fp32 addition to that state, one rounding to the base format; `mean_of_states`.
    """

    def program(
        hidden: Float[Array, "b t states_d"], weights: Mapping[str, Any], *others: Any, **axes: Any
    ) -> Any:
        b, t, width = hidden.shape
        last, own = (lax.slice_in_dim(weights[STATES], i, i + 1) for i in (0, 1))
        states = hidden.reshape(b * t, cfg.n_states, cfg.d_model)
        given = mean_of_states(states, weights, cfg, last)
        result = layer(given.reshape(b, t, cfg.d_model), weights, *others, **axes)
        added, *kept = result if isinstance(result, tuple) else (result,)
        rows = jnp.broadcast_to(own, (b * t,))
        grown = vxm.add(
            vxm.to_fp32(mem.take_rows(states, rows)),
            vxm.to_fp32(added.reshape(b * t, 1, cfg.d_model)),
        )
        states = mem.append(states, narrowed(grown, policy), rows, axis=1)
        return (states.reshape(b, t, width), *kept) if kept else states.reshape(b, t, width)

    return program


def mean_of_states(
    states: Float[Array, "m n d"],
    weights: Mapping[str, Any],
    cfg: ModelConfig,
    last: Int32[Array, " 1"] | None = None,
) -> Float32[Array, "m d"]:
    """Weigh the states of each row by a softmax over them, and add them up.

    Args:
        states: of each row.
        weights: `depth_norm` and `depth_query`.
        cfg: the model.
        last: the last state that is read; None: all are.

    Fidelity:
        Approximate, order-dependent: scores are sums in the order of `vxm.sum_lanes`; see
        `vxm.softmax` and `vxm.weighted_sum`, which adds from the first state on.

    Source:
        "Attention Residuals" (arXiv 2603.15031), in blocks; `ops/attn_res.py` of Kimi K3 in vLLM
        0.33.
    """
    m, n, d = states.shape
    wide = vxm.to_fp32(sxm.rearrange(states, "m n d -> n m d", m=m, n=n, d=d))
    rows = wide.reshape(n * m, d)
    query = vxm.mul(weights[NORM], weights[QUERY]).reshape(1, d)
    scores = vxm.mul(vxm.sum_lanes(vxm.mul(rows, query)), rms_scale(rows, cfg.norm_eps))
    scores = sxm.rearrange(scores.reshape(n, m), "n m -> m n", m=m, n=n).reshape(1, m, n)
    if last is not None:
        scores = masks.causal_mask(scores, last, 1)
    shares = sxm.rearrange(vxm.softmax(scores).reshape(m, n), "m n -> n m", m=m, n=n)
    mean: Array = vxm.weighted_sum(wide, shares.reshape(n, m, 1))
    return mean


def first_states(
    embedding: Float[Array, "b t d"], cfg: ModelConfig
) -> Float[Array, "b t states_d"]:
    """Put the sums that layers will make, zeros so far, beside the embedding. Fidelity: exact."""
    b, t, d = embedding.shape
    return sxm.join(embedding, jnp.zeros((b, t, cfg.hidden_width - d), embedding.dtype))
