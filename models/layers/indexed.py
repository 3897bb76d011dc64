"""Sparse latent attention (DSA): a token attends to the positions that an index finds best.

The lightning indexer scores every position by a few heads over a short key of its own; the latents
of the best ones are read by address. Layers may also follow: they attend where the last layer with
an index did. Per-chip programs, split as `latent` says; index keys are shared out by position over
the chips of `context`, and inside of it over those of `tensor`, which hold all the index's weights.
Not modelled: latents expanded into heads, and the 8-bit index keys with scales of released kernels.
"""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Float, Float32, Int32

from lpu_jax.datapath import c2c, masks, sparse, sxm, vxm
from lpu_jax.datapath.axis import Axis
from lpu_jax.predicates import shorter

from ..config import MlaConfig, ModelConfig
from ..index_config import IndexConfig
from ..policy import Policy
from .caching import Entries, as_read, cached, first_columns, gathered, turned
from .latent import (
    LatentRows,
    heads_of_latents,
    latent_queries,
    latent_rows,
    new_latents,
    query_latent,
    with_heads,
)
from .linear import Split, linear, multiplied, narrowed, operand_rows
from .norm import layer_norm
from .rotary import rotate_first
from .softmax import Cache, Held, attend

#: Of the index keys' norm, whatever the model's norms use: Hugging Face's class fixes it.
_KEY_NORM_EPS = 1e-6


def indexed_attention(
    x: Float[Array, "b t d"],
    weights: Mapping[str, Any],
    cache: Mapping[str, Entries],
    tables: Mapping[str, Array],
    positions: Int32[Array, " b"],
    share: Int32[Array, " 1"],
    first_key: Int32[Array, " 1"],
    first: Int32[Array, " 1"] | None = None,
    *,
    cfg: ModelConfig,
    policy: Policy,
    split: Split,
    axes: Mapping[str, Axis],
) -> tuple[Float[Array, "b t d"], Cache, Int32[Array, "b_local t k"]]:
    """Attend to the positions that this layer's index finds best.

    Args:
        x: hidden state, replicated in the group.
        weights: as in `models.params`, this chip's heads, and the whole index.
        cache: of this chip's sequences and positions: `latents` `[b, s, latent + rope]` and
            `index_keys` `[b, index_dim, s_index]`.
        tables: `cos` and `sin`, `[context, rope]`.
        positions: position of the first new token of each sequence.
        share: number of this chip along the data axis.
        first_key: the first position whose index key this chip holds.
        first: the first position that this chip holds, where the context is split.
        cfg: the model.
        policy: formats, and how products are made.
        split: how the output projection is split.
        axes: `data`, `context`, `tensor` and `query`.

    Returns:
        The new hidden state, replicated, the new cache, and the positions that each new token of
        this chip's sequences attends to, ascending, -1 behind the last.

    Fidelity:
        As `latent`'s, where all positions are chosen the same bits as of attention to all of them.
        Of equal scores the first positions are taken, however chips share positions out.
    """
    mla = cfg.attention
    assert isinstance(mla, MlaConfig)
    assert mla.index is not None
    rows, held, latents = _begun(
        x, weights, cache, tables, positions, share, first, cfg, policy, axes
    )
    q_low = query_latent(rows, weights, mla)
    scores, index_keys = _scores(rows, q_low, weights, cache["index_keys"], first_key, mla.index)
    for axis in (axes["tensor"], axes["context"]):
        scores = c2c.all_gather(scores, axis, dim=-1)
    n_positions = latents.shape[1] * axes["context"].size
    chosen = sparse.best_positions(scores, shorter(mla.index.top_k, n_positions))
    heads = _attended(rows, q_low, weights, latents, chosen, held, mla)
    out = with_heads(x, heads, rows, weights, split=split, axes=axes)
    return out, {"latents": latents, "index_keys": index_keys}, chosen


def following_attention(
    x: Float[Array, "b t d"],
    weights: Mapping[str, Any],
    cache: Mapping[str, Entries],
    tables: Mapping[str, Array],
    positions: Int32[Array, " b"],
    share: Int32[Array, " 1"],
    chosen: Int32[Array, "b_local t k"],
    first: Int32[Array, " 1"] | None = None,
    *,
    cfg: ModelConfig,
    policy: Policy,
    split: Split,
    axes: Mapping[str, Axis],
) -> tuple[Float[Array, "b t d"], Cache]:
    """Attend to the positions that the last layer with an index has chosen.

    Args:
        x: as for `indexed_attention`, like all but two.
        weights: likewise, without an index.
        cache: `latents` only.
        tables: likewise.
        positions: likewise.
        share: likewise.
        chosen: the last result of `indexed_attention`.
        first: likewise.
        cfg: likewise.
        policy: likewise.
        split: likewise.
        axes: likewise.

    Returns:
        The new hidden state, replicated, and the new cache.
    """
    mla = cfg.attention
    assert isinstance(mla, MlaConfig)
    rows, held, latents = _begun(
        x, weights, cache, tables, positions, share, first, cfg, policy, axes
    )
    q_low = query_latent(rows, weights, mla)
    heads = _attended(rows, q_low, weights, latents, chosen, held, mla)
    return with_heads(x, heads, rows, weights, split=split, axes=axes), {"latents": latents}


def _begun(
    x: Float[Array, "b t d"],
    weights: Mapping[str, Any],
    cache: Mapping[str, Entries],
    tables: Mapping[str, Array],
    positions: Int32[Array, " b"],
    share: Int32[Array, " 1"],
    first: Int32[Array, " 1"] | None,
    cfg: ModelConfig,
    policy: Policy,
    axes: Mapping[str, Axis],
) -> tuple[LatentRows, Held, Entries]:
    """Make the rows of a chip's tokens, and write their latents into the cache."""
    mla, latents = cfg.attention, cache["latents"]
    assert isinstance(mla, MlaConfig)
    b, s, _ = latents.shape
    rows = latent_rows(x, weights, tables, positions, share, n_sequences=b, cfg=cfg, policy=policy)
    held = Held.of(rows.positions, s, window=None, first=first, context=axes["context"])
    new, _ = new_latents(rows, mla)
    latents, _ = held.append(latents, new, rows.positions, axis=1)
    return rows, held, latents


def _scores(
    rows: LatentRows,
    q_low: Float[Array, "m q_rank"],
    weights: Mapping[str, Any],
    index_keys: Entries,
    first_key: Int32[Array, " 1"],
    index: IndexConfig,
) -> tuple[Float32[Array, "b t s"], Entries]:
    """Score the positions whose keys a chip holds; return the new keys too."""
    b, t, policy, n, h = rows.b, rows.t, rows.policy, index.n_heads, index.head_dim
    s = index_keys.shape[-1]
    key = linear(rows.normed, weights["index_k"], policy=policy)
    key = layer_norm(key, weights["index_k_norm"], weights["index_k_bias"], _KEY_NORM_EPS)
    new = cached(_rotated_first(key.reshape(b, t, h), rows, 0), policy)
    new = turned(new, "b t h -> b h t", b=b, t=t)
    _, keys = Held(first=first_key).append(index_keys, new, rows.positions, axis=2)

    q = linear(q_low, weights["index_q"], policy=policy)
    q = sxm.rearrange(q, "(b t) (n h) -> b n t h", b=b, t=t, n=n, h=h)
    q = narrowed(_rotated_first(q, rows, 1), policy)
    per_head = multiplied(q.reshape(b, n * t, h), as_read(keys, policy), policy).reshape(b, n, t, s)
    importance = vxm.mul(linear(rows.normed, weights["index_weights"], policy=policy), index.scale)
    importance = sxm.rearrange(importance, "(b t) n -> b n t", b=b, t=t, n=n)
    scores = sparse.index_scores(per_head, importance.reshape(b, n, t, 1))
    return masks.key_mask(scores, rows.positions, first_key, t), keys


def _rotated_first(
    x: Float32[Array, "b *heads t h"], rows: LatentRows, n_head_axes: int
) -> Float32[Array, "b *heads t h"]:
    """Rotate the first values of index queries or keys, as many as are rotated elsewhere."""
    rope = rows.cfg.rope
    shape = (rows.b, *(1,) * n_head_axes, rows.t, rope.dim)
    cos, sin = (row.reshape(shape) for row in rows.turn)
    return rotate_first(x, cos, sin, rope=rope)


def _attended(
    rows: LatentRows,
    q_low: Float[Array, "m q_rank"],
    weights: Mapping[str, Any],
    latents: Entries,
    chosen: Int32[Array, "b t k"],
    held: Held,
    mla: MlaConfig,
) -> Float[Array, "m heads_v"]:
    """Attend to the chosen positions that a chip holds; return the heads side by side."""
    m, policy, latent = rows.b * rows.t, rows.policy, mla.kv_lora_rank
    n, whole = weights["q_b"].shape[1], latents.shape[-1]
    if held.first is not None:
        chosen = sparse.held_addresses(chosen, held.first, latents.shape[1])
    k = chosen.shape[-1]
    # Every token has keys of its own: they are installed for its heads alone.
    read = gathered(latents, chosen, rows.b)
    keys = turned(read, "m k c -> m c k", m=m, k=k)
    values = first_columns(read, latent)

    q = latent_queries(rows, q_low, weights, mla)
    q = sxm.rearrange(q, "n m c -> m n c", n=n, m=m, c=whole)
    own = Held(addresses=chosen.reshape(m, k), context=held.context)
    mixed = attend(q, keys, values, rows.positions, rows.t, policy, held=own)
    mixed = operand_rows(mixed, policy, "attention")
    mixed = sxm.rearrange(mixed, "m n c -> n m c", n=n, m=m, c=latent)
    return heads_of_latents(mixed, rows, weights, mla)
