"""Attention blocks: grouped queries (GQA) and the absorbed form of latent attention (MLA).

Per-chip programs: the `tensor` axis splits key/value heads (or latent heads), `query` splits the
query heads of one key/value head, `data` splits sequences. The cache is the stationary operand of
the matrix unit, keys as `[head_dim, context]` and values as `[context, head_dim]`; both lie in
memory in that layout. Not built: sliding windows, attention sinks, a split of the context.
"""

from collections.abc import Mapping
from typing import Any

from jax import lax
from jaxtyping import Array, Float, Float32, Int32

from lpu_jax.datapath import c2c, mem, mxm, sxm, vxm
from lpu_jax.datapath.c2c import Axis

from ..config import GqaConfig, MlaConfig, ModelConfig
from ..policy import Policy
from .linear import Split, add_residual, linear, narrowed, operand_rows, product, project_out
from .norm import rms_norm
from .rotary import rotate

Cache = dict[str, Array]


def attend(
    q: Float[Array, "groups rows h"],
    keys: Float[Array, "groups h s"],
    values: Float[Array, "groups s v"],
    positions: Int32[Array, " b"],
    n_new: Any,
    policy: Policy,
) -> Float32[Array, "groups rows v"]:
    """Softmax attention of each group of rows over its own context; `q` is already scaled.

    Fidelity:
        Approximate, order-dependent; a longer allocated context changes no bit, because masked keys
        contribute exact zeros and K tiles of the second product start at position 0.
    """
    scores = vxm.causal_mask(mxm.matmul(q, keys, **policy.products), positions, n_new)
    weights = vxm.exp(vxm.sub(scores, vxm.max_lanes(scores)))
    total = vxm.sum_lanes(weights)
    return vxm.div(mxm.matmul(narrowed(weights, policy), values, **policy.products), total)


def grouped_attention(
    x: Float[Array, "b t d"],
    weights: Mapping[str, Any],
    cache: Mapping[str, Array],
    tables: Mapping[str, Array],
    positions: Int32[Array, " b"],
    share: Int32[Array, " 1"],
    *,
    cfg: ModelConfig,
    policy: Policy,
    split: Split,
    axes: Mapping[str, Axis],
) -> tuple[Float[Array, "b t d"], Cache]:
    """Grouped-query attention of new tokens over the cache.

    Args:
        x: hidden state, replicated in the group.
        weights: `norm`, `q`, `kv`, `o` (`models.params`), this chip's heads.
        cache: `keys` `[b, k, h, s]` and `values` `[b, k, s, h]` of this chip's sequences and heads.
        tables: `cos` and `sin`, `[s, h]`.
        positions: position of the first new token of each sequence.
        share: number of this chip along the data axis.
        cfg: the model.
        policy: formats, and how products are made.
        split: how the output projection is split.
        axes: `data`, `tensor` and `query`.

    Returns:
        The new hidden state, replicated, and the new cache.
    """
    assert isinstance(cfg.attention, GqaConfig)
    b, k, h, s = cache["keys"].shape
    t, d = x.shape[1], x.shape[2]
    g = weights["q"].shape[2]
    heads_axis = c2c.joined(axes["tensor"], axes["query"])
    positions = mem.take_share(positions, share.reshape(()), b)
    mine = mem.take_share(x, share.reshape(()), b)
    y = rms_norm(vxm.to_fp32(mine.reshape(b * t, d)), weights["norm"], cfg.norm_eps)
    y = operand_rows(y, policy, "attention")
    cos, sin = (mem.rows_from(tables[name], positions, t) for name in ("cos", "sin"))

    q = sxm.rearrange(
        linear(y, weights["q"], policy=policy),
        "(b t) (k g h) -> b k g t h",
        b=b,
        t=t,
        k=k,
        g=g,
        h=h,
    )
    kv = linear(y, weights["kv"], policy=policy)
    kv = sxm.rearrange(kv, "(b t) (k two h) -> two b k t h", b=b, t=t, k=k, two=2, h=h)
    key, value = (lax.slice_in_dim(kv, i, i + 1).reshape(b, k, t, h) for i in (0, 1))

    def rotated(x: Array, shape: tuple[Any, ...]) -> Array:
        return rotate(x, cos.reshape(shape), sin.reshape(shape), interleaved=cfg.rope.interleaved)

    q = narrowed(vxm.mul(rotated(q, (b, 1, 1, t, h)), cfg.attention.softmax_scale), policy)
    key = narrowed(rotated(key, (b, 1, t, h)), policy)
    keys = mem.append(
        cache["keys"],
        sxm.rearrange(key, "b k t h -> b k h t", b=b, k=k, t=t, h=h),
        positions,
        axis=3,
    )
    values = mem.append(cache["values"], narrowed(value, policy), positions, axis=2)

    heads = attend(
        q.reshape(b * k, g * t, h),
        keys.reshape(b * k, h, s),
        values.reshape(b * k, s, h),
        positions,
        t,
        policy,
    )
    heads = sxm.rearrange(
        operand_rows(heads, policy, "attention"),
        "(b k) (g t) h -> (b t) (k g h)",
        b=b,
        k=k,
        g=g,
        t=t,
        h=h,
    )
    out = project_out(
        heads, weights["o"], rows=3, policy=policy, split=split, axis=heads_axis, d_model=d
    )
    out = c2c.all_gather(out.reshape(b, t, d), axes["data"], dim=-3)
    return add_residual(x, out, policy), {"keys": keys, "values": values}


def latent_attention(
    x: Float[Array, "b t d"],
    weights: Mapping[str, Any],
    cache: Mapping[str, Array],
    tables: Mapping[str, Array],
    positions: Int32[Array, " b"],
    share: Int32[Array, " 1"],
    *,
    cfg: ModelConfig,
    policy: Policy,
    split: Split,
    axes: Mapping[str, Axis],
) -> tuple[Float[Array, "b t d"], Cache]:
    """Multi-head latent attention in absorbed form.

    Queries are taken into the latent space, values out of it.

    Args:
        x: hidden state, replicated in the group.
        weights: `norm`, `a`, `q_norm`, `kv_norm`, `q_b`, `k_b`, `v_b`, `o` (`models.params`), this
            chip's heads.
        cache: `keys` `[b, latent + rope, s]` and `values` `[b, s, latent]`: the latent lies in
            memory in both layouts.
        tables: `cos` and `sin`, `[s, rope]`.
        positions: position of the first new token of each sequence.
        share: number of this chip along the data axis.
        cfg: the model.
        policy: formats, and how products are made.
        split: how the output projection is split.
        axes: `data`, `tensor` and `query`.

    Returns:
        The new hidden state, replicated, and the new cache.
    """
    mla = cfg.attention
    assert isinstance(mla, MlaConfig)
    b = cache["keys"].shape[0]
    t, d = x.shape[1], x.shape[2]
    n = weights["q_b"].shape[1]
    latent, rope, nope = mla.kv_lora_rank, mla.rope_head_dim, mla.nope_head_dim
    heads_axis = c2c.joined(axes["tensor"], axes["query"])
    positions = mem.take_share(positions, share.reshape(()), b)
    mine = mem.take_share(x, share.reshape(()), b)
    y = rms_norm(vxm.to_fp32(mine.reshape(b * t, d)), weights["norm"], cfg.norm_eps)
    y = operand_rows(y, policy, "attention")
    cos, sin = (mem.rows_from(tables[name], positions, t) for name in ("cos", "sin"))

    q_low, kv_low, key_rope = sxm.split(
        linear(y, weights["a"], policy=policy), (mla.q_lora_rank, latent, rope)
    )
    kv_low = narrowed(rms_norm(kv_low, weights["kv_norm"], mla.latent_norm_eps), policy)
    key_rope = rotate(key_rope.reshape(b, t, rope), cos, sin, interleaved=cfg.rope.interleaved)
    new = sxm.join(kv_low.reshape(b, t, latent), narrowed(key_rope, policy))
    keys = mem.append(
        cache["keys"],
        sxm.rearrange(new, "b t c -> b c t", b=b, t=t, c=latent + rope),
        positions,
        axis=2,
    )
    values = mem.append(cache["values"], kv_low.reshape(b, t, latent), positions, axis=1)

    q_low = rms_norm(q_low, weights["q_norm"], mla.latent_norm_eps)
    q = linear(operand_rows(q_low, policy, "attention"), weights["q_b"], policy=policy)
    q = sxm.rearrange(q, "m (n h) -> n m h", n=n, h=nope + rope, m=b * t)
    q_nope, q_rope = sxm.split(q, (nope, rope))
    q_rope = rotate(
        q_rope.reshape(n, b, t, rope),
        cos.reshape(1, b, t, rope),
        sin.reshape(1, b, t, rope),
        interleaved=cfg.rope.interleaved,
    )
    q_latent = product(operand_rows(q_nope, policy, "attention"), weights["k_b"], policy=policy)
    q = sxm.join(
        narrowed(vxm.mul(q_latent, mla.softmax_scale), policy),
        narrowed(vxm.mul(q_rope.reshape(n, b * t, rope), mla.softmax_scale), policy),
    )
    q = sxm.rearrange(q, "n (b t) c -> b (n t) c", n=n, b=b, t=t, c=latent + rope)

    mixed = attend(q, keys, values, positions, t, policy)
    mixed = operand_rows(mixed, policy, "attention")
    mixed = sxm.rearrange(mixed, "b (n t) c -> n (b t) c", n=n, b=b, t=t, c=latent)
    heads = product(mixed, weights["v_b"], policy=policy)
    heads = sxm.rearrange(
        operand_rows(heads, policy, "attention"), "n m v -> m (n v)", n=n, m=b * t, v=mla.v_head_dim
    )
    out = project_out(
        heads, weights["o"], rows=2, policy=policy, split=split, axis=heads_axis, d_model=d
    )
    out = c2c.all_gather(out.reshape(b, t, d), axes["data"], dim=-3)
    return add_residual(x, out, policy), {"keys": keys, "values": values}
