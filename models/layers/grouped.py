"""Grouped-query attention (GQA): several query heads share one key and value head.

Per-chip program: the `tensor` axis splits key/value heads, `query` the query heads of one
key/value head, `data` sequences, `context` cached positions. The cache is the stationary operand of
the matrix unit, keys as `[head_dim, positions]` and values as `[positions, head_dim]`; both lie in
memory in that layout. Not modelled: a split of the short cache of a sliding layer.
"""

from collections.abc import Mapping
from math import prod
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int32

from lpu_jax.datapath import c2c, mem, sxm, vxm
from lpu_jax.datapath.axis import Axis

from ..config import GqaConfig, ModelConfig
from ..leaves import rows_of_leaf
from ..params import Kind
from ..policy import Policy
from .caching import Entries, cached, in_groups, turned
from .linear import (
    Split,
    add_residual,
    linear,
    narrowed,
    operand_rows,
    project_out,
    scaled_by,
)
from .norm import input_norm, joint_rms_norm, rms_norm
from .rotary import rotate_first
from .softmax import Cache, Held, attend


def grouped_attention(
    x: Float[Array, "b t d"],
    weights: Mapping[str, Any],
    cache: Mapping[str, Entries],
    tables: Mapping[str, Array],
    positions: Int32[Array, " b"],
    share: Int32[Array, " 1"],
    first: Int32[Array, " 1"] | None = None,
    *,
    cfg: ModelConfig,
    policy: Policy,
    split: Split,
    axes: Mapping[str, Axis],
    kind: Kind = "attention",
) -> tuple[Float[Array, "b t d"], Cache]:
    """Grouped-query attention of new tokens over the cache.

    Args:
        x: hidden state, replicated in the group.
        weights: as in `models.params`, this chip's heads.
        cache: `keys` `[b, k, h, s]` and `values` `[b, k, s, v]` of this chip's sequences and heads,
            for its positions: all, a run of them, or a ring of the last ones.
        tables: `cos` and `sin`, `[context, rotary]`; of a layer without rotation none, or `warming`
            of queries, `[context, 1]`.
        positions: position of the first new token of each sequence.
        share: number of this chip along the data axis.
        first: the first position that this chip holds, where the context is split.
        cfg: the model.
        policy: formats, and how products are made.
        split: how the output projection is split.
        axes: `data`, `context`, `tensor` and `query`.
        kind: of the block: the cache of a sliding one is a ring of the window.

    Returns:
        The new hidden state, replicated, and the new cache.
    """
    gqa, rope = cfg.attention_of(kind), cfg.rope_of(kind)
    assert isinstance(gqa, GqaConfig)
    b, k, h, s = cache["keys"].shape
    t, d, v = x.shape[1], x.shape[2], cache["values"].shape[-1]
    g = weights["q"].shape[2]
    positions = mem.take_share(positions, share.reshape(()), b)
    mine = mem.take_share(x, share.reshape(()), b)
    y = input_norm(vxm.to_fp32(mine.reshape(b * t, d)), weights, cfg.norm_eps)
    y = operand_rows(y, policy, "attention")
    turn = {name: mem.rows_from(table, positions, t) for name, table in tables.items()}

    lengths = {"b": b, "t": t, "k": k, "g": g, "h": h, "v": v}
    q, key, value = new_heads(y, weights, cfg, gqa, policy, lengths, axes)

    def rotated(x: Array, *ones: int) -> Array:
        if "cos" not in turn:
            return x
        shape = (b, *ones, t, rope.dim)
        rows = {name: row.reshape(shape) for name, row in turn.items()}
        x = rotate_first(x, **rows, rope=rope)
        return _normed(x, None, cfg.norm_eps, 1, axes["tensor"]) if gqa.norms_rotated else x

    q = rotated(q, 1, 1)
    if "warming" in turn:
        q = vxm.mul(q, turn["warming"].reshape(b, 1, 1, t, 1))
    q = narrowed(vxm.mul(q, gqa.softmax_scale), policy)
    new = cached(rotated(key, 1), policy)
    window = gqa.window if kind == "sliding" else None
    held = Held.of(
        positions,
        s,
        window=window,
        is_chunked=gqa.is_chunked,
        first=first,
        context=axes["context"],
    )
    new = turned(new, "b k t h -> b k h t", b=b, k=k, t=t)
    new_keys, keys = held.append(cache["keys"], new, positions, axis=3)
    new_values, values = held.append(cache["values"], cached(value, policy), positions, axis=2)

    heads = attend(
        q.reshape(b * k, g * t, h),
        in_groups(keys, b * k),
        in_groups(values, b * k),
        positions,
        t,
        policy,
        held=held,
        sinks=_sinks(weights, b, t),
        cap=gqa.cap,
    )
    if "gate" in weights:
        gate = vxm.sigmoid(linear(y, weights["gate"], policy=policy))
        gate = sxm.rearrange(gate, "(b t) (k g h) -> (b k) (g t) h", b=b, t=t, k=k, g=g, h=h)
        heads = vxm.mul(heads, gate)
    elif "head_gate" in weights:
        gate = vxm.sigmoid(linear(y, weights["head_gate"], policy=policy))
        gate = sxm.rearrange(gate, "(b t) (k g) -> (b k) (g t)", b=b, t=t, k=k, g=g)
        heads = vxm.mul(heads, gate.reshape(b * k, g * t, 1))
    heads = sxm.rearrange(
        operand_rows(heads, policy, "attention"),
        "(b k) (g t) v -> (b t) (k g v)",
        b=b,
        k=k,
        g=g,
        t=t,
        v=v,
    )
    out = with_heads(x, heads, weights, cfg, policy, split=split, axes=axes, kind=kind)
    return out, {"keys": new_keys, "values": new_values}


def with_heads(
    x: Float[Array, "b t d"],
    heads: Float[Array, "m heads_v"],
    weights: Mapping[str, Any],
    cfg: ModelConfig,
    policy: Policy,
    *,
    split: Split,
    axes: Mapping[str, Axis],
    kind: Kind,
) -> Float[Array, "b t d"]:
    """Project a chip's heads out, bring sequences together, and add the hidden state.

    Args:
        x: hidden state of all sequences.
        heads: results of this chip's heads, side by side, of each token of its sequences.
        weights: `o`, and `o_bias` where the model has it.
        cfg: the model.
        policy: formats, and how products are made.
        split: how the projection is split.
        axes: as for `grouped_attention`.
        kind: of the block.
    """
    _, t, d = x.shape
    out = project_out(
        heads,
        weights["o"],
        rows=3,
        policy=policy,
        split=split,
        axis=c2c.joined(axes["tensor"], axes["query"]),
        d_model=d,
        leaf=rows_of_leaf(cfg, kind, policy, "o"),
        bias=weights.get("o_bias"),
    )
    out = c2c.all_gather(out.reshape(-1, t, d), axes["data"], dim=-3)
    return add_residual(x, out, cfg, policy, weights)


def new_heads(
    y: Float[Array, "m d"],
    weights: Mapping[str, Any],
    cfg: ModelConfig,
    gqa: GqaConfig,
    policy: Policy,
    lengths: Mapping[str, Any],
    axes: Mapping[str, Axis],
) -> tuple[Float32[Array, "b k g t h"], Float32[Array, "b k t h"], Float32[Array, "b k t v"]]:
    """Make queries, keys and values: biases added and heads normalised, nothing rotated."""
    b, t, k, h, v = (lengths[name] for name in "btkhv")
    q = _biased(linear(y, weights["q"], policy=policy), weights.get("q_bias"))
    q = sxm.rearrange(q, "(b t) (k g h) -> b k g t h", b=b, t=t, k=k, g=lengths["g"], h=h)
    tensor, eps = axes["tensor"], cfg.norm_eps
    if "q_norm" in weights:
        q = _normed(q, weights["q_norm"], eps, gqa.n_heads, c2c.joined(tensor, axes["query"]))
    kv = _biased(linear(y, weights["kv"], policy=policy), weights.get("kv_bias"))
    if gqa.value_dim is None:
        both = weights["kv"].shape[2]
        kv = sxm.rearrange(kv, "(b t) (k two h) -> two b k t h", b=b, t=t, k=k, two=both, h=h)
        key, value = (lax.slice_in_dim(kv, i, i + 1).reshape(b, k, t, h) for i in (0, both - 1))
    else:
        kv = sxm.rearrange(kv, "(b t) (k e) -> b k t e", b=b, t=t, k=k, e=h + v)
        key, value = sxm.split(kv, (h, v))
    if "k_norm" in weights:
        key = _normed(key, weights["k_norm"], eps, gqa.n_kv_heads, tensor)
    if gqa.norms_values:
        value = _normed(value, None, eps, gqa.n_kv_heads, tensor)
    return q, key, scaled_by(value, gqa.value_scale)


def _sinks(
    weights: Mapping[str, Any], n_sequences: Any, n_new: Any
) -> Float32[Array, "groups rows 1"] | None:
    """Repeat the sink of each query head for its rows; None for a model without."""
    if "sinks" not in weights:
        return None
    k, g = weights["sinks"].shape
    logits = jnp.broadcast_to(weights["sinks"].reshape(1, k, g, 1), (n_sequences, k, g, n_new))
    return logits.reshape(n_sequences * k, g * n_new, 1)


def _biased(y: Float32[Array, "m n"], bias: Float32[Array, "..."] | None) -> Float32[Array, "m n"]:
    return y if bias is None else vxm.add(y, bias.reshape(1, y.shape[-1]))


def _normed(
    x: Float32[Array, "..."],
    weight: Float32[Array, "*heads h"] | None,
    eps: float,
    n_heads: int,
    axis: Axis,
) -> Float32[Array, "..."]:
    """Normalise every head alone, or all of a token where the weight is one of all heads."""
    if weight is not None and weight.ndim > 1:
        return joint_rms_norm(x, weight, eps, n_heads=n_heads, axis=axis)
    rows = prod(x.shape[:-1])  # symbols too
    return rms_norm(x.reshape(rows, x.shape[-1]), weight, eps).reshape(x.shape)
