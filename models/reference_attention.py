"""Attention blocks of the float32 reference: grouped queries and latent attention.

Whole prompts, causally: no cache, no sharding. Latent attention always expands its keys and values
(the naive form), whichever parameters it is given.
"""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float32

from .config import GqaConfig, MlaConfig, ModelConfig
from .reference_parts import Hidden, Params, Result, RmsNorm, capped, contract, input_norm, param
from .rope import RopeConfig


def rotate(
    x: Float32[Array, "b t *heads dim"], rope: RopeConfig
) -> Float32[Array, "b t *heads dim"]:
    """Rotate pairs of the first `rope.width` values by their position (0, 1, … along `t`).

    Args:
        x: queries or keys; values beyond `rope.width` stay as they are.
        rope: frequencies, and which two values form a pair.

    Returns:
        Rotated values, in the order they came.

    Fidelity:
        Approximate: angles in float64, their cos and sin rounded to float32.
    """
    frequencies = np.zeros(rope.width // 2)  # of pairs that do not turn
    frequencies[: rope.dim // 2] = rope.inverse_frequencies()
    angles = np.outer(np.arange(x.shape[1]), frequencies)  # [t, pairs]
    shape = (1, x.shape[1], *(1 for _ in x.shape[2:-1]), angles.shape[1])
    cos, sin = (
        jnp.asarray(rope.attention_factor * turn(angles), dtype=jnp.float32).reshape(shape)
        for turn in (np.cos, np.sin)
    )
    pairs = (
        "... (pair two) -> two ... pair" if rope.interleaved else "... (two pair) -> two ... pair"
    )
    turned, kept = jnp.split(x, [rope.width], axis=-1)
    first, second = rearrange(turned, pairs, two=2)
    rotated = jnp.stack((first * cos - second * sin, second * cos + first * sin))
    source, target = pairs.split(" -> ")
    return jnp.concatenate((rearrange(rotated, f"{target} -> {source}"), kept), axis=-1)


def causal_softmax(
    scores: Float32[Array, "b *heads t s"],
    window: int | None = None,
    sinks: Float32[Array, "*heads"] | None = None,
    *,
    is_chunked: bool = False,
) -> Float32[Array, "b *heads t s"]:
    """Return softmax over the keys that each query sees.

    Args:
        scores: scaled products of queries and keys; position 0 first on both axes.
        window: how many keys a query sees, its own the last; None for all past ones.
        sinks: a logit of each head that takes part in the softmax and is dropped afterwards.
        is_chunked: a query sees the keys of its own chunk of `window` positions, up to its own.
    """
    queries, keys = np.arange(scores.shape[-2])[:, None], np.arange(scores.shape[-1])[None]
    distance = queries - keys
    is_seen = (distance >= 0) & (distance < (np.inf if window is None else window))
    if window is not None and is_chunked:
        is_seen = (distance >= 0) & (queries // window == keys // window)
    is_seen = is_seen.reshape((1,) * (scores.ndim - 2) + is_seen.shape)
    scores = jnp.where(jnp.asarray(is_seen), scores, -jnp.inf)
    if sinks is None:
        return jax.nn.softmax(scores, axis=-1)
    column = jnp.broadcast_to(sinks[None, ..., None, None], (*scores.shape[:-1], 1))
    return jax.nn.softmax(jnp.concatenate((scores, column), axis=-1), axis=-1)[..., :-1]


class GqaAttention(nnx.Module):
    """Grouped-query attention block: `x + attention(norm(x))`.

    `window` is for a sliding layer, `rope` None for one without rotation.
    """

    def __init__(
        self,
        model_cfg: ModelConfig,
        gqa: GqaConfig,
        params: Params,
        *,
        window: int | None,
        rope: RopeConfig | None,
    ) -> None:
        self.norm = input_norm(model_cfg, params)
        self.q, self.kv, self.o = (param(params, name) for name in ("q", "kv", "o"))
        if gqa.gated:
            self.gate = param(params, "gate")
        if gqa.head_gated:
            self.gate = param(params, "head_gate")
        if gqa.qkv_bias:
            self.q_bias, self.kv_bias = param(params, "q_bias"), param(params, "kv_bias")
        if gqa.qk_norm:
            self.q_norm = RmsNorm(params, "q_norm", model_cfg.norm_eps)
            self.k_norm = RmsNorm(params, "k_norm", model_cfg.norm_eps)
        if gqa.sinks:
            self.sinks = param(params, "sinks")
        if gqa.o_bias:
            self.o_bias = param(params, "o_bias")
        self.gqa, self.rope, self.window, self.eps = gqa, rope, window, model_cfg.norm_eps
        self.result = Result(model_cfg, params)

    def __call__(self, x: Hidden) -> Hidden:
        """Run the block on a whole prompt, causally."""
        gqa, normed = self.gqa, self.norm(x)
        query = contract("btd,dkgh->btkgh", normed, self.q[...])
        joint = gqa.value_dim is not None
        both = contract("btd,dke->btke" if joint else "btd,dkch->btkch", normed, self.kv[...])
        if gqa.qkv_bias:
            query, both = query + self.q_bias[None, None], both + self.kv_bias[None, None]
        if joint:
            key, value = jnp.split(both, [gqa.head_dim], axis=-1)
        else:
            key, value = both[:, :, :, 0], both[:, :, :, -1]
        value = gqa.value_scale * value
        if gqa.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        if gqa.norms_values:
            value = self._unweighted(value)
        if self.rope is not None:
            query, key = rotate(query, self.rope), rotate(key, self.rope)
            if gqa.norms_rotated:
                query, key = self._unweighted(query), self._unweighted(key)
        elif gqa.warming is not None:
            warmth = jnp.asarray(gqa.warming.factors(x.shape[1]), jnp.float32)
            query = query * warmth[None, :, None, None, None]
        scores = contract("btkgh,bskh->bkgts", query, key) * gqa.softmax_scale
        scores = self.chosen(capped(scores, gqa.cap), normed)
        sinks = self.sinks[...] if gqa.sinks else None
        seen = causal_softmax(scores, self.window, sinks, is_chunked=gqa.is_chunked)
        mixed = contract("bkgts,bskh->btkgh", seen, value)
        if gqa.gated:
            mixed = mixed * jax.nn.sigmoid(contract("btd,dkgh->btkgh", normed, self.gate[...]))
        if gqa.head_gated:
            gate = jax.nn.sigmoid(contract("btd,dkg->btkg", normed, self.gate[...]))
            mixed = mixed * gate[..., None]
        out = contract("btkgh,kghd->btd", mixed, self.o[...])
        return self.result(x, out + self.o_bias[None] if gqa.o_bias else out)

    def chosen(
        self, scores: Float32[Array, "b k g t s"], normed: Hidden
    ) -> Float32[Array, "b k g t s"]:
        """Leave of all scores those of keys that an index chooses; here there is none."""
        del normed
        return scores

    def _unweighted(self, heads: Float32[Array, "*rows h"]) -> Float32[Array, "*rows h"]:
        """RMS-normalise every head, without weights."""
        return heads / jnp.sqrt(jnp.mean(heads**2, axis=-1, keepdims=True) + self.eps)


class MlaAttention(nnx.Module):
    """Latent attention block, keys and values expanded per head: `x + attention(norm(x))`.

    `rope` is None for one without rotation.
    """

    def __init__(
        self, model_cfg: ModelConfig, mla: MlaConfig, params: Params, *, rope: RopeConfig | None
    ) -> None:
        self.norm = RmsNorm(params, "norm", model_cfg.norm_eps)
        if mla.q_lora_rank is not None:
            self.q_norm = RmsNorm(params, "q_norm", mla.latent_norm_eps)
        self.kv_norm = RmsNorm(params, "kv_norm", mla.latent_norm_eps)
        self.a, self.q_b, self.o = (param(params, name) for name in ("a", "q_b", "o"))
        if mla.form == "expanded":
            self.kv_b = param(params, "kv_b")
        else:
            self.k_b, self.v_b = param(params, "k_b"), param(params, "v_b")
        if mla.gated or mla.gates_values:
            self.gate = param(params, "gate")
        self.mla, self.rope = mla, rope
        self.result = Result(model_cfg, params)

    def __call__(self, x: Hidden) -> Hidden:
        """Run the block on a whole prompt, causally."""
        normed = self.norm(x)
        of_query, latent, key_rope = self.narrow(normed)
        gate = None
        if self.mla.gated:
            gate = jax.nn.sigmoid(contract("btd,dn->btn", normed, self.gate[...]))[..., None]
        if self.mla.gates_values:
            gate = jax.nn.sigmoid(contract("btd,dnv->btnv", normed, self.gate[...]))
        return self.result(x, self.mixed(of_query, latent, key_rope, None, gate))

    def narrow(
        self, normed: Hidden
    ) -> tuple[Float32[Array, "b t q"], Float32[Array, "b t c"], Float32[Array, "b t rope"]]:
        """Make what queries come from, the latent, and the key that all heads share."""
        mla = self.mla
        columns = contract("btd,dc->btc", normed, self.a[...])
        n_query = mla.q_lora_rank or 0
        cuts = [n_query, n_query + mla.kv_lora_rank]
        query_latent, latent, key_rope = jnp.split(columns, cuts, axis=-1)
        of_query = normed if mla.q_lora_rank is None else self.q_norm(query_latent)
        return of_query, latent, key_rope

    def mixed(
        self,
        of_query: Float32[Array, "b t q"],
        latent: Float32[Array, "b t c"],
        key_rope: Float32[Array, "b t rope"],
        seen: Bool[Array, "b t s"] | None,
        gate: Float32[Array, "b t n _"] | None = None,
    ) -> Hidden:
        """Attend, to all past keys or to those that are seen alone; project the gated heads."""
        mla = self.mla
        query = contract("btq,qne->btne", of_query, self.q_b[...])
        query_nope, query_rope = jnp.split(query, [mla.nope_head_dim], axis=-1)
        if self.rope is not None:
            query_rope, key_rope = (rotate(part, self.rope) for part in (query_rope, key_rope))
        query = jnp.concatenate((query_nope, query_rope), axis=-1)

        key_nope, value = self._of_latent(self.kv_norm(latent))
        # [b, s, rope], shared by all heads
        shared = jnp.broadcast_to(key_rope[:, :, None, :], (*key_nope.shape[:3], mla.rope_head_dim))
        key = jnp.concatenate((key_nope, shared), axis=-1)

        scores = contract("btne,bsne->bnts", query, key) * mla.softmax_scale
        if seen is not None:
            scores = jnp.where(seen[:, None], scores, -jnp.inf)
        mixed = contract("bnts,bsnv->btnv", causal_softmax(scores), value)
        mixed = mixed if gate is None else mixed * gate
        return contract("btnv,nvd->btd", mixed, self.o[...])

    def _of_latent(
        self, latent: Float32[Array, "b s c"]
    ) -> tuple[Float32[Array, "b s n nope"], Float32[Array, "b s n v"]]:
        """Make keys without position and values of every head."""
        if self.mla.form == "expanded":
            both = contract("bsc,cne->bsne", latent, self.kv_b[...])
            key, value = jnp.split(both, [self.mla.nope_head_dim], axis=-1)
            return key, value
        key = contract("bsc,npc->bsnp", latent, self.k_b[...])
        return key, contract("bsc,ncv->bsnv", latent, self.v_b[...])
