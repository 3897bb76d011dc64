"""Multi-head latent attention (MLA): keys and values of all heads come from one latent per token.

Absorbed: queries are taken into the latent space and values out of it, so that the cache holds one
latent per token. Expanded: the cache holds keys and values of every head. Per-chip programs: the
`tensor` axis splits heads, `data` sequences, `context` cached positions. The cache is the
stationary operand of the matrix unit and lies in memory as it installs it. Not modelled: sliding
windows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from lpu_jax.datapath import c2c, mem, sxm, vxm
from lpu_jax.datapath.axis import Axis

from ..config import MlaConfig, ModelConfig
from ..leaves import rows_of_leaf
from ..policy import Policy
from .caching import Entries, bare, cached, first_columns, in_groups, turned
from .linear import (
    Split,
    add_residual,
    linear,
    narrowed,
    operand_rows,
    product,
    project_out,
)
from .norm import rms_norm
from .rotary import rotate
from .softmax import Cache, Held, attend


@dataclass(frozen=True, kw_only=True)
class LatentRows:
    """New tokens of a chip's sequences: the low-rank parts, and what their heads need."""

    b: Any
    t: Any
    normed: Float[Array, "m d"]  #: the input of the projections
    q_low: Float[Array, "m q_rank"]  #: of which queries are made; without a latent, the input
    kv_low: Float32[Array, "m latent"]  #: normalised
    key_rope: Float32[Array, "m rope"]
    turn: tuple[Float32[Array, "b t rope"], ...]  #: cos and sin; none where nothing is rotated
    positions: Int32[Array, " b"]
    cfg: ModelConfig
    policy: Policy


def latent_attention(
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
) -> tuple[Float[Array, "b t d"], Cache]:
    """Multi-head latent attention of new tokens over the cache, in the form that the model names.

    Args:
        x: hidden state, replicated in the group.
        weights: as in `models.params`, this chip's heads.
        cache: of this chip's sequences and positions. Absorbed: `keys` `[b, latent + rope, s]` and
            `values` `[b, s, latent]`, the latent in both layouts. Expanded, of this chip's heads:
            `keys` `[b, n, nope + rope, s]` and `values` `[b, n, s, v]`.
        tables: `cos` and `sin`, `[context, rope]`; none of a layer without rotation.
        positions: position of the first new token of each sequence.
        share: number of this chip along the data axis.
        first: the first position that this chip holds, where the context is split.
        cfg: the model.
        policy: formats, and how products are made.
        split: how the output projection is split.
        axes: `data`, `context`, `tensor` and `query`.

    Returns:
        The new hidden state, replicated, and the new cache.
    """
    mla = cfg.attention
    assert isinstance(mla, MlaConfig)
    rows = latent_rows(
        x,
        weights,
        tables,
        positions,
        share,
        n_sequences=cache["keys"].shape[0],
        cfg=cfg,
        policy=policy,
    )
    held = Held.of(
        rows.positions, cache["keys"].shape[-1], window=None, first=first, context=axes["context"]
    )
    form = _expanded if mla.form == "expanded" else _absorbed
    heads, cache = form(rows, weights, cache, held, mla)
    return with_heads(x, heads, rows, weights, split=split, axes=axes), cache


def latent_rows(
    x: Float[Array, "b t d"],
    weights: Mapping[str, Any],
    tables: Mapping[str, Array],
    positions: Int32[Array, " b"],
    share: Int32[Array, " 1"],
    *,
    n_sequences: Any,
    cfg: ModelConfig,
    policy: Policy,
) -> LatentRows:
    """Take a chip's sequences, normalise them and make what is narrow of queries and keys.

    Args:
        x: as for `latent_attention`, like all but one.
        weights: likewise.
        tables: likewise.
        positions: likewise.
        share: likewise.
        n_sequences: of this chip.
        cfg: likewise.
        policy: likewise.
    """
    mla = cfg.attention
    assert isinstance(mla, MlaConfig)
    b, (t, d) = n_sequences, x.shape[1:]
    positions = mem.take_share(positions, share.reshape(()), b)
    mine = mem.take_share(x, share.reshape(()), b)
    y = rms_norm(vxm.to_fp32(mine.reshape(b * t, d)), weights["norm"], cfg.norm_eps)
    y = operand_rows(y, policy, "attention")
    turn = tuple(mem.rows_from(tables[name], positions, t) for name in tables)

    widths = (mla.kv_lora_rank, mla.rope_head_dim)
    narrow = linear(y, weights["a"], policy=policy)
    if mla.q_lora_rank is None:
        q_low, (kv_low, key_rope) = y, sxm.split(narrow, widths)
    else:
        q_low, kv_low, key_rope = sxm.split(narrow, (mla.q_lora_rank, *widths))
    return LatentRows(
        b=b,
        t=t,
        normed=y,
        q_low=q_low,
        kv_low=rms_norm(kv_low, weights["kv_norm"], mla.latent_norm_eps),
        key_rope=key_rope,
        turn=turn,
        positions=positions,
        cfg=cfg,
        policy=policy,
    )


def with_heads(
    x: Float[Array, "b t d"],
    heads: Float[Array, "m heads_v"],
    rows: LatentRows,
    weights: Mapping[str, Any],
    *,
    split: Split,
    axes: Mapping[str, Axis],
) -> Float[Array, "b t d"]:
    """Project the heads of a chip's tokens and add them to the hidden state, on every chip."""
    cfg, policy, d = rows.cfg, rows.policy, x.shape[2]
    out = project_out(
        heads,
        weights["o"],
        rows=2,
        policy=policy,
        split=split,
        axis=c2c.joined(axes["tensor"], axes["query"]),
        d_model=d,
        leaf=rows_of_leaf(cfg, "attention", policy, "o"),
    )
    out = c2c.all_gather(out.reshape(rows.b, rows.t, d), axes["data"], dim=-3)
    return add_residual(x, out, cfg, policy)


def _absorbed(
    rows: LatentRows,
    weights: Mapping[str, Any],
    cache: Mapping[str, Entries],
    held: Held,
    mla: MlaConfig,
) -> tuple[Float[Array, "m heads_v"], Cache]:
    """Attend in the latent space; return the heads side by side, and the cache."""
    b, t, policy = rows.b, rows.t, rows.policy
    latent, rope = mla.kv_lora_rank, mla.rope_head_dim
    n = weights["q_b"].shape[1]
    new, new_values = new_latents(rows, mla)
    new = turned(new, "b t c -> b c t", b=b, t=t)
    new_keys, keys = held.append(cache["keys"], new, rows.positions, axis=2)
    new_values, values = held.append(cache["values"], new_values, rows.positions, axis=1)

    q = latent_queries(rows, query_latent(rows, weights, mla), weights, mla)
    q = sxm.rearrange(q, "n (b t) c -> b (n t) c", n=n, b=b, t=t, c=latent + rope)

    mixed = attend(q, keys, values, rows.positions, t, policy, held=held)
    mixed = operand_rows(mixed, policy, "attention")
    mixed = sxm.rearrange(mixed, "b (n t) c -> n (b t) c", n=n, b=b, t=t, c=latent)
    return heads_of_latents(mixed, rows, weights, mla), {"keys": new_keys, "values": new_values}


def new_latents(rows: LatentRows, mla: MlaConfig) -> tuple[Entries, Entries]:
    """Put the latent of each new token beside its rotated key, in the format of the cache.

    A format with scales takes both for one vector.

    Args:
        rows: the new tokens.
        mla: lengths.

    Returns:
        Latents with keys, `[b, t, latent + rope]`, and the latents of these alone.
    """
    policy, latent = rows.policy, mla.kv_lora_rank
    if policy.has_scaled_cache:
        low = rows.kv_low.reshape(rows.b, rows.t, latent)
        both = cached(sxm.join(low, _rotated_key(rows, mla)), policy)
        return both, first_columns(both, latent)
    low = bare(rows.kv_low, policy).reshape(rows.b, rows.t, latent)
    return sxm.join(low, bare(_rotated_key(rows, mla), policy)), low


def latent_queries(
    rows: LatentRows, q_low: Float[Array, "m q_rank"], weights: Mapping[str, Any], mla: MlaConfig
) -> Float[Array, "n m whole"]:
    """Make every head's query and take it into the latent space, scaled."""
    q_nope, q_rope = _queries(rows, q_low, weights, mla)
    q_nope = operand_rows(q_nope, rows.policy, "attention")
    q_latent = product(q_nope, weights["k_b"], policy=rows.policy)
    return _scaled_queries(q_latent, q_rope, rows.policy, mla)


def heads_of_latents(
    mixed: Float[Array, "n m latent"],
    rows: LatentRows,
    weights: Mapping[str, Any],
    mla: MlaConfig,
) -> Float[Array, "m heads_v"]:
    """Take mixed latents out of the latent space; return the heads side by side."""
    n, m = weights["q_b"].shape[1], rows.b * rows.t
    heads = product(mixed, weights["v_b"], policy=rows.policy)
    if "gate" in weights:
        v = _width_of_gates(weights)
        gate = sxm.rearrange(_gates(rows, weights), "m (n v) -> n m v", n=n, m=m, v=v)
        heads = vxm.mul(heads, gate)
    heads = operand_rows(heads, rows.policy, "attention")
    return sxm.rearrange(heads, "n m v -> m (n v)", n=n, m=m, v=mla.v_head_dim)


def _expanded(
    rows: LatentRows,
    weights: Mapping[str, Any],
    cache: Mapping[str, Entries],
    held: Held,
    mla: MlaConfig,
) -> tuple[Float[Array, "m heads_v"], Cache]:
    """Make keys and values of every head and attend; return heads side by side, and the cache."""
    b, t, policy = rows.b, rows.t, rows.policy
    nope, v = mla.nope_head_dim, mla.v_head_dim
    n, c = weights["q_b"].shape[1], mla.query_head_dim
    kv = linear(operand_rows(rows.kv_low, policy, "attention"), weights["kv_b"], policy=policy)
    kv = sxm.rearrange(kv, "(b t) (n h) -> b n t h", b=b, t=t, n=n, h=nope + v)
    key_nope, value = sxm.split(kv, (nope, v))
    new = turned(_expanded_keys(rows, key_nope, mla), "b n t c -> b n c t", b=b, n=n, t=t)
    new_keys, keys = held.append(cache["keys"], new, rows.positions, axis=3)
    new_values, values = held.append(cache["values"], cached(value, policy), rows.positions, axis=2)

    q_low = query_latent(rows, weights, mla)
    q = _scaled_queries(*_queries(rows, q_low, weights, mla), policy, mla)
    q = sxm.rearrange(q, "n (b t) c -> (b n) t c", n=n, b=b, t=t, c=c)
    heads = attend(
        q,
        in_groups(keys, b * n),
        in_groups(values, b * n),
        rows.positions,
        t,
        policy,
        held=held,
    )
    if "gate" in weights:
        lengths = {"b": b, "t": t, "n": n, "v": _width_of_gates(weights)}
        gate = sxm.rearrange(_gates(rows, weights), "(b t) (n v) -> (b n) t v", **lengths)
        heads = vxm.mul(heads, gate)
    heads = sxm.rearrange(
        operand_rows(heads, policy, "attention"), "(b n) t v -> (b t) (n v)", b=b, n=n, t=t, v=v
    )
    return heads, {"keys": new_keys, "values": new_values}


def _expanded_keys(
    rows: LatentRows, key_nope: Float32[Array, "b n t nope"], mla: MlaConfig
) -> Entries:
    """Put the rotated part, which all heads share, beside each head's own, as they are cached."""
    b, n, t, _ = key_nope.shape
    policy, shape = rows.policy, (b, n, t, mla.rope_head_dim)
    key_rope = _rotated_key(rows, mla)
    if policy.has_scaled_cache:
        shared = jnp.broadcast_to(key_rope.reshape(b, 1, *shape[2:]), shape)
        return cached(sxm.join(key_nope, shared), policy)
    key_rope = bare(key_rope, policy).reshape(b, 1, *shape[2:])
    both: Array = sxm.join(bare(key_nope, policy), jnp.broadcast_to(key_rope, shape))
    return both


def _gates(rows: LatentRows, weights: Mapping[str, Any]) -> Float32[Array, "m n_v"]:
    """Make what multiplies the result of every head, one number of each or one of each value."""
    gates: Array = vxm.sigmoid(linear(rows.normed, weights["gate"], policy=rows.policy))
    return gates


def _width_of_gates(weights: Mapping[str, Any]) -> int:
    """Count the gates of a head."""
    return prod(weights["gate"].shape[2:])


def _rotated_key(rows: LatentRows, mla: MlaConfig) -> Float32[Array, "b t rope"]:
    """Rotate the part of the keys that all heads share."""
    key_rope = rows.key_rope.reshape(rows.b, rows.t, mla.rope_head_dim)
    if not rows.turn:
        return key_rope
    return rotate(key_rope, *rows.turn, interleaved=rows.cfg.rope.interleaved)


def query_latent(
    rows: LatentRows, weights: Mapping[str, Any], mla: MlaConfig
) -> Float[Array, "m q_rank"]:
    """Normalise the latent of the queries; without one, queries come from the input itself."""
    if mla.q_lora_rank is None:
        return rows.q_low
    q_low = rms_norm(rows.q_low, weights["q_norm"], mla.latent_norm_eps)
    rounded: Array = operand_rows(q_low, rows.policy, "attention")
    return rounded


def _queries(
    rows: LatentRows, q_low: Float[Array, "m q_rank"], weights: Mapping[str, Any], mla: MlaConfig
) -> tuple[Float32[Array, "n m nope"], Float32[Array, "n m rope"]]:
    """Make every head's query: the part without position, and the rotated part."""
    b, t, rope = rows.b, rows.t, mla.rope_head_dim
    n = weights["q_b"].shape[1]
    q = linear(q_low, weights["q_b"], policy=rows.policy)
    q = sxm.rearrange(q, "m (n h) -> n m h", n=n, h=mla.query_head_dim, m=b * t)
    q_nope, q_rope = sxm.split(q, (mla.nope_head_dim, rope))
    if not rows.turn:
        return q_nope, q_rope
    q_rope = rotate(
        q_rope.reshape(n, b, t, rope),
        *(row.reshape(1, b, t, rope) for row in rows.turn),
        interleaved=rows.cfg.rope.interleaved,
    )
    return q_nope, q_rope.reshape(n, b * t, rope)


def _scaled_queries(
    q: Float32[Array, "n m c"], q_rope: Float32[Array, "n m rope"], policy: Policy, mla: MlaConfig
) -> Float[Array, "n m whole"]:
    """Scale both parts of the queries, round them and put them side by side."""
    return sxm.join(
        narrowed(vxm.mul(q, mla.softmax_scale), policy),
        narrowed(vxm.mul(q_rope, mla.softmax_scale), policy),
    )
