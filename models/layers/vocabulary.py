"""The two ends of a model: embedding table and output head, both split over the vocabulary."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Float, Float32, Int32

from lpu_jax.datapath import c2c, mem, selection, vxm
from lpu_jax.datapath.axis import Axis

from ..config import ModelConfig
from ..policy import Policy
from .depth import first_states, mean_of_states
from .linear import capped, linear, narrowed, operand_rows, scaled_by
from .norm import rms_norm


def embed(
    tokens: Int32[Array, "b t"],
    weights: Mapping[str, Any],
    first: Int32[Array, " 1"],
    *,
    cfg: ModelConfig,
    policy: Policy,
    axes: Mapping[str, Axis],
) -> Float[Array, "b t d"]:
    """Look tokens up: the chip that holds a row sends it to all; the others send zeros.

    With attention residuals the embedding is the first state of those that pass through the model.

    Args:
        tokens: token ids.
        weights: `table`, this chip's rows.
        first: number of its first row.
        cfg: the model.
        policy: format of the hidden state.
        axes: `tensor`.

    Fidelity: exact; a model that scales its embeddings rounds a product in fp32, then to the base
    format.
    """
    rows = c2c.all_reduce(mem.lookup(weights["table"], tokens, first.reshape(())), axes["tensor"])
    factor = cfg.multipliers.embedding
    if factor != 1.0:
        rows = narrowed(scaled_by(vxm.to_fp32(rows), factor), policy)
    return rows if cfg.residual_block is None else first_states(rows, cfg)


def head(
    x: Float[Array, "b t d"],
    weights: Mapping[str, Any],
    rows: Int32[Array, " b"],
    first: Int32[Array, " 1"],
    *,
    cfg: ModelConfig,
    policy: Policy,
    axes: Mapping[str, Axis],
) -> tuple[Int32[Array, "b 1"], Float32[Array, "b v"]]:
    """Compute logits of one row of each sequence and the most likely token.

    Args:
        x: hidden state.
        weights: `norm`, and `out` `[d, v]`, this chip's columns; what `depth` takes.
        rows: the row of each sequence that is asked for.
        first: number of the chip's first column.
        cfg: the model.
        policy: formats, and how products are made.
        axes: `tensor`.

    Returns:
        Token ids (on all chips), and this chip's logits.
    """
    y = mem.take_rows(x, rows)
    if cfg.residual_block is None:
        y = vxm.to_fp32(y.reshape(y.shape[0], y.shape[2]))
    else:
        y = mean_of_states(y.reshape(y.shape[0], cfg.n_states, cfg.d_model), weights, cfg)
    y = rms_norm(y, weights["norm"], cfg.norm_eps)
    logits = linear(operand_rows(y, policy, "head"), weights["out"], policy=policy)
    if cfg.multipliers.logits != 1.0:
        logits = vxm.div(logits, cfg.multipliers.logits)
    logits = capped(logits, cfg.logit_cap)
    best, token = selection.arg_max(logits, first.reshape(()), cfg.vocab_size)
    best = c2c.all_gather(best, axes["tensor"], dim=-1)
    token = c2c.all_gather(token, axes["tensor"], dim=-1)
    return selection.take_best(best, token), logits
