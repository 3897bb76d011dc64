"""Block-sparse grouped attention: a token attends to the blocks of positions that an index finds.

Every head of keys and values has an index query; index keys, one of each position, serve all heads.
A block counts as its best position, the token's own block is always among the chosen, and every
head attends to its own choice. Per-chip program, split as `grouped` says: chips that share the
positions out exchange scores, and every chip has the index keys of its positions, whichever heads
it has. Not modelled: that positions of a block lie side by side, so that fewer addresses could
reach them; nor shares of the index keys for chips with other heads.
"""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Float, Float32, Int32

from lpu_jax.datapath import c2c, masks, mem, sparse, sxm, vxm
from lpu_jax.datapath.axis import Axis
from lpu_jax.predicates import shorter

from ..config import BlockIndexConfig, GqaConfig, ModelConfig
from ..policy import Policy
from ..rope import RopeConfig
from .caching import Entries, as_read, cached, gathered, turned
from .grouped import new_heads, with_heads
from .linear import Split, linear, multiplied, narrowed, operand_rows
from .norm import input_norm, rms_norm
from .rotary import rotate_first
from .softmax import Cache, Held, attend


def blocked_attention(
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
    """Attend to the blocks of positions that this layer's index finds best.

    Args:
        x: hidden state, replicated in the group.
        weights: as in `models.params`, this chip's heads.
        cache: of this chip's sequences and positions: `key_rows` `[b, k, s, h]` and `value_rows`
            `[b, k, s, v]` of its heads, which are read by address, and `index_keys`
            `[b, index_dim, s]`.
        tables: `cos` and `sin`, `[context, rotary]`.
        positions: position of the first new token of each sequence.
        share: number of this chip along the data axis.
        first: the first position that this chip holds, where the context is split.
        cfg: the model.
        policy: formats, and how products are made.
        split: how the output projection is split.
        axes: `data`, `context`, `tensor` and `query`.

    Returns:
        The new hidden state, replicated, and the new cache.

    Fidelity:
        As `grouped`'s, where all blocks are chosen the same bits as of attention to all positions.
        Of equal scores the first blocks are taken.

    Source:
        `MiniMaxM3VLAttention` of Hugging Face transformers 5.24.
    """
    gqa = cfg.attention
    assert isinstance(gqa, GqaConfig)
    assert gqa.block_index is not None
    b, k, s, h = cache["key_rows"].shape
    t, d, v = x.shape[1], x.shape[2], cache["value_rows"].shape[-1]
    g = weights["q"].shape[2]
    positions = mem.take_share(positions, share.reshape(()), b)
    mine = mem.take_share(x, share.reshape(()), b)
    y = input_norm(vxm.to_fp32(mine.reshape(b * t, d)), weights, cfg.norm_eps)
    y = operand_rows(y, policy, "attention")
    turn = {name: mem.rows_from(table, positions, t) for name, table in tables.items()}
    lengths = {"b": b, "t": t, "k": k, "g": g, "h": h, "v": v}

    held = Held.of(positions, s, window=None, first=first, context=axes["context"])
    index_keys, scores = _scores(
        y, weights, cache["index_keys"], positions, turn, held, cfg=cfg, policy=policy, k=k
    )
    scores = c2c.all_gather(scores, axes["context"], dim=-1)
    chosen = _chosen(scores, positions, t, gqa.block_index)

    q, key, value = new_heads(y, weights, cfg, gqa, policy, lengths, axes)
    q = narrowed(vxm.mul(_rotated(q, turn, cfg.rope), gqa.softmax_scale), policy)
    new = cached(_rotated(key, turn, cfg.rope), policy)
    key_rows, _ = held.append(cache["key_rows"], new, positions, axis=2)
    value_rows, _ = held.append(cache["value_rows"], cached(value, policy), positions, axis=2)

    if held.first is not None:
        chosen = sparse.held_addresses(chosen, held.first, s)
    m, n = b * k * t, chosen.shape[-1]
    # Every token has keys of its own for each head of keys: they are installed for its queries.
    keys, values = (gathered(rows, chosen, b * k) for rows in (key_rows, value_rows))
    keys = turned(keys, "m n h -> m h n", m=m, n=n)
    q = sxm.rearrange(q, "b k g t h -> (b k t) g h", b=b, k=k, g=g, t=t, h=h)
    own = Held(addresses=chosen.reshape(m, n), context=held.context)
    heads = attend(q, keys, values, positions, t, policy, held=own, cap=gqa.cap)
    heads = sxm.rearrange(
        operand_rows(heads, policy, "attention"),
        "(b k t) g v -> (b t) (k g v)",
        b=b,
        k=k,
        t=t,
        g=g,
        v=v,
    )
    out = with_heads(x, heads, weights, cfg, policy, split=split, axes=axes, kind="blocked")
    return out, {"key_rows": key_rows, "value_rows": value_rows, "index_keys": index_keys}


def _scores(
    y: Float[Array, "m d"],
    weights: Mapping[str, Any],
    index_keys: Entries,
    positions: Int32[Array, " b"],
    turn: Mapping[str, Array],
    held: Held,
    *,
    cfg: ModelConfig,
    policy: Policy,
    k: Any,
) -> tuple[Entries, Float32[Array, "groups t s"]]:
    """Score a chip's positions for its heads of keys; return the new index keys before that."""
    b, i, s = index_keys.shape
    t, eps = turn["cos"].shape[1], cfg.norm_eps
    key = rms_norm(linear(y, weights["index_k"], policy=policy), weights["index_k_norm"], eps)
    new = cached(_rotated(key.reshape(b, t, i), turn, cfg.rope), policy)
    new = turned(new, "b t i -> b i t", b=b, t=t)
    index_keys, keys = held.append(index_keys, new, positions, axis=2)
    q = linear(y, weights["index_q"], policy=policy)
    q = rms_norm(q.reshape(b * t * k, i), weights["index_q_norm"], eps)
    q = sxm.rearrange(q, "(b t k) i -> b k t i", b=b, t=t, k=k, i=i)
    q = narrowed(_rotated(q, turn, cfg.rope), policy)
    scores = multiplied(q.reshape(b, k * t, i), as_read(keys, policy), policy)
    return index_keys, scores.reshape(b * k, t, s)


def _chosen(
    scores: Float32[Array, "groups t s"],
    positions: Int32[Array, " b"],
    n_new: Any,
    index: BlockIndexConfig,
) -> Int32[Array, "groups t n"]:
    """Choose the positions that each token attends to, of all, for every head of keys."""
    block = index.block_size
    scores = masks.causal_mask(scores, positions, n_new)
    of_blocks = sparse.block_scores(scores, positions, n_new, block, index.local_blocks)
    best = sparse.best_positions(of_blocks, shorter(index.top_blocks, of_blocks.shape[-1]))
    return sparse.positions_of_blocks(best, positions, n_new, block)


def _rotated(
    x: Float32[Array, "b *heads t h"], turn: Mapping[str, Array], rope: RopeConfig
) -> Float32[Array, "b *heads t h"]:
    """Rotate the first values of heads, or of index heads alike."""
    shape = (x.shape[0], *(1 for _ in x.shape[1:-2]), x.shape[-2], rope.dim)
    rows = {name: row.reshape(shape) for name, row in turn.items()}
    found: Array = rotate_first(x, **rows, rope=rope)
    return found
