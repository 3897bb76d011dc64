"""A plain float32 transformer in Flax NNX: the independent answer the emulator is compared with.

Every module maps a whole prompt to a whole prompt, norm and residual included. No cache, no
rounding to chip formats, no sharding; latent attention expands its keys and values (the naive
form) where the emulated layers absorb them.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float32, Int

from lpu_jax.errors import ConfigError

from .config import GqaConfig, MlaConfig, ModelConfig, MoeConfig
from .params import block_params, expert_params
from .rope import RopeConfig
from .weights.source import WeightSource

Hidden = Float32[Array, "b t d"]
Params = Mapping[str, np.ndarray]


def _contract(pattern: str, *operands: Array) -> Array:
    """Return a float32 einsum that no backend may run in a narrower format."""
    return jnp.einsum(
        pattern,
        *operands,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def _param(params: Params, name: str) -> nnx.Param[Array]:
    return nnx.Param(jnp.asarray(params[name], dtype=jnp.float32))


class RmsNorm(nnx.Module):
    """`x / sqrt(mean(x²) + eps) * weight` over the last axis."""

    def __init__(self, params: Params, name: str, eps: float) -> None:
        self.weight = _param(params, name)
        self.eps = eps

    def __call__(self, x: Float32[Array, "b t width"]) -> Float32[Array, "b t width"]:
        """Normalise each vector of the last axis."""
        mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        return x * jax.lax.rsqrt(mean_square + self.eps) * self.weight[None, None, :]


def rotate(
    x: Float32[Array, "b t *heads dim"], rope: RopeConfig
) -> Float32[Array, "b t *heads dim"]:
    """Rotate each pair of the last axis by its position (0, 1, … along `t`).

    Args:
        x: queries or keys, `dim` being `rope.dim`.
        rope: frequencies, and which two values form a pair.

    Returns:
        Rotated values, in the order they came.

    Fidelity:
        Approximate: angles in float64, their cos and sin rounded to float32.
    """
    angles = np.outer(np.arange(x.shape[1]), rope.inverse_frequencies())  # [t, pairs]
    shape = (1, x.shape[1], *(1 for _ in x.shape[2:-1]), angles.shape[1])
    cos, sin = (
        jnp.asarray(rope.attention_factor * turn(angles), dtype=jnp.float32).reshape(shape)
        for turn in (np.cos, np.sin)
    )
    pairs = (
        "... (pair two) -> two ... pair" if rope.interleaved else "... (two pair) -> two ... pair"
    )
    first, second = rearrange(x, pairs, two=2)
    rotated = jnp.stack((first * cos - second * sin, second * cos + first * sin))
    source, target = pairs.split(" -> ")
    return rearrange(rotated, f"{target} -> {source}")


def _causal_softmax(scores: Float32[Array, "b *heads t s"]) -> Float32[Array, "b *heads t s"]:
    """Return softmax over keys no later than the query."""
    is_past = jnp.tri(scores.shape[-2], dtype=jnp.bool_)
    is_past = is_past.reshape((1,) * (scores.ndim - 2) + is_past.shape)
    return jax.nn.softmax(jnp.where(is_past, scores, -jnp.inf), axis=-1)


class GqaAttention(nnx.Module):
    """Grouped-query attention block: `x + attention(norm(x))`."""

    def __init__(self, model_cfg: ModelConfig, gqa: GqaConfig, params: Params) -> None:
        self.norm = RmsNorm(params, "norm", model_cfg.norm_eps)
        self.q, self.kv, self.o = (_param(params, name) for name in ("q", "kv", "o"))
        self.gqa = gqa
        self.rope = model_cfg.rope

    def __call__(self, x: Hidden) -> Hidden:
        """Run the block on a whole prompt, causally."""
        normed = self.norm(x)
        query = rotate(_contract("btd,dkgh->btkgh", normed, self.q[...]), self.rope)
        key, value = rearrange(
            _contract("btd,dkch->btkch", normed, self.kv[...]), "b t k c h -> c b t k h"
        )
        key = rotate(key, self.rope)
        scores = _contract("btkgh,bskh->bkgts", query, key) * self.gqa.softmax_scale
        mixed = _contract("bkgts,bskh->btkgh", _causal_softmax(scores), value)
        return x + _contract("btkgh,kghd->btd", mixed, self.o[...])


class MlaAttention(nnx.Module):
    """Latent attention block, keys and values expanded per head: `x + attention(norm(x))`."""

    def __init__(self, model_cfg: ModelConfig, mla: MlaConfig, params: Params) -> None:
        self.norm = RmsNorm(params, "norm", model_cfg.norm_eps)
        self.q_norm = RmsNorm(params, "q_norm", mla.latent_norm_eps)
        self.kv_norm = RmsNorm(params, "kv_norm", mla.latent_norm_eps)
        self.a, self.q_b, self.o = (_param(params, name) for name in ("a", "q_b", "o"))
        self.k_b, self.v_b = (_param(params, name) for name in ("k_b", "v_b"))
        self.mla = mla
        self.rope = model_cfg.rope

    def __call__(self, x: Hidden) -> Hidden:
        """Run the block on a whole prompt, causally."""
        mla = self.mla
        columns = _contract("btd,dc->btc", self.norm(x), self.a[...])
        cuts = [mla.q_lora_rank, mla.q_lora_rank + mla.kv_lora_rank]
        query_latent, latent, key_rope = jnp.split(columns, cuts, axis=-1)
        latent = self.kv_norm(latent)

        query = _contract("btq,qne->btne", self.q_norm(query_latent), self.q_b[...])
        query_nope, query_rope = jnp.split(query, [mla.nope_head_dim], axis=-1)
        query = jnp.concatenate((query_nope, rotate(query_rope, self.rope)), axis=-1)

        key_nope = _contract("bsc,npc->bsnp", latent, self.k_b[...])
        key_rope = rotate(key_rope, self.rope)  # [b, s, rope], shared by all heads
        shared = jnp.broadcast_to(key_rope[:, :, None, :], (*key_nope.shape[:3], mla.rope_head_dim))
        key = jnp.concatenate((key_nope, shared), axis=-1)
        value = _contract("bsc,ncv->bsnv", latent, self.v_b[...])

        scores = _contract("btne,bsne->bnts", query, key) * mla.softmax_scale
        mixed = _contract("bnts,bsnv->btnv", _causal_softmax(scores), value)
        return x + _contract("btnv,nvd->btd", mixed, self.o[...])


def _swiglu(x: Hidden, gate_up: Float32[Array, "d 2 f"], down: Float32[Array, "f d"]) -> Hidden:
    gate, up = rearrange(_contract("btd,dcf->btcf", x, gate_up), "b t c f -> c b t f")
    return _contract("btf,fd->btd", jax.nn.silu(gate) * up, down)


class Mlp(nnx.Module):
    """Dense SwiGLU block: `x + mlp(norm(x))`."""

    def __init__(self, model_cfg: ModelConfig, params: Params) -> None:
        self.norm = RmsNorm(params, "norm", model_cfg.norm_eps)
        self.gate_up, self.down = (_param(params, name) for name in ("gate_up", "down"))

    def __call__(self, x: Hidden) -> Hidden:
        """Run the block on every token."""
        return x + _swiglu(self.norm(x), self.gate_up[...], self.down[...])


class Moe(nnx.Module):
    """Mixture-of-experts block: `x + shared(norm(x)) + routed(norm(x))`.

    Holds the experts `held`, stacked in that order. A token's choice that is not held adds
    nothing, so a caller holds what `route` returns, or all.
    """

    def __init__(
        self, model_cfg: ModelConfig, moe: MoeConfig, params: Params, held: tuple[int, ...]
    ) -> None:
        if len(held) != params["gate_up"].shape[0] or len(held) != params["down"].shape[0]:
            raise ConfigError(
                f"a moe block needs as many stacked experts as ids held ({len(held)}), got "
                f"{params['gate_up'].shape[0]} and {params['down'].shape[0]}."
            )
        self.norm = RmsNorm(params, "norm", model_cfg.norm_eps)
        self.router, self.router_bias, self.gate_up, self.down = (
            _param(params, name) for name in ("router", "router_bias", "gate_up", "down")
        )
        if moe.n_shared:
            self.shared_gate_up = _param(params, "shared_gate_up")
            self.shared_down = _param(params, "shared_down")
        self.moe = moe
        self.held = held

    def route(self, x: Hidden) -> tuple[Int[Array, "b t k"], Float32[Array, "b t k"]]:
        """Return the experts each token chooses, best first, and their weights.

        Source:
            DeepSeek-V3's `noaux_tc` gate: groups are ranked by the sum of their two best biased
            scores, experts by biased score; weights are the unbiased scores.
        """
        return self._choose(self.norm(x), None)

    def __call__(self, x: Hidden, forced_ids: Int[Array, "b t k"] | None = None) -> Hidden:
        """Run the block; `forced_ids` replaces the router's choice, not its weights."""
        normed = self.norm(x)
        ids, weights = self._choose(normed, forced_ids)
        total = x
        if self.moe.n_shared:
            total = total + _swiglu(normed, self.shared_gate_up[...], self.shared_down[...])
        for slot, expert_id in enumerate(self.held):
            weight = jnp.sum(jnp.where(ids == expert_id, weights, 0.0), axis=-1, keepdims=True)
            total = total + weight * _swiglu(normed, self.gate_up[slot], self.down[slot])
        return total

    def _choose(
        self, normed: Hidden, forced_ids: Int[Array, "b t k"] | None
    ) -> tuple[Int[Array, "b t k"], Float32[Array, "b t k"]]:
        moe = self.moe
        scores = jax.nn.sigmoid(_contract("btd,de->bte", normed, self.router[...]))
        ids = self._best(scores) if forced_ids is None else forced_ids
        weights = jnp.take_along_axis(scores, ids, axis=-1)
        if moe.normalise:
            weights = weights / (jnp.sum(weights, axis=-1, keepdims=True) + 1e-20)
        return ids, weights * moe.routed_scaling

    def _best(self, scores: Float32[Array, "b t e"]) -> Int[Array, "b t k"]:
        moe = self.moe
        biased = scores + self.router_bias[None, None, :]
        if moe.n_groups > 1:
            grouped = rearrange(biased, "b t (group e) -> b t group e", group=moe.n_groups)
            group_scores = jnp.sum(jax.lax.top_k(grouped, 2)[0], axis=-1)
            best_groups = jax.lax.top_k(group_scores, moe.topk_groups)[1]
            is_kept = jnp.any(jax.nn.one_hot(best_groups, moe.n_groups, dtype=jnp.bool_), axis=-2)
            grouped = jnp.where(is_kept[..., None], grouped, -jnp.inf)
            biased = rearrange(grouped, "b t group e -> b t (group e)")
        return jax.lax.top_k(biased, moe.top_k)[1]


class Embed(nnx.Module):
    """Token numbers to hidden states."""

    def __init__(self, params: Params) -> None:
        self.table = _param(params, "table")

    def __call__(self, tokens: Int[Array, "b t"]) -> Hidden:
        """Look up each token."""
        return self.table[tokens]


class Head(nnx.Module):
    """Hidden states to logits, final norm included."""

    def __init__(self, model_cfg: ModelConfig, params: Params) -> None:
        self.norm = RmsNorm(params, "norm", model_cfg.norm_eps)
        self.out = _param(params, "out")

    def __call__(self, x: Hidden) -> Float32[Array, "b t vocab"]:
        """Return the logits of every position."""
        return _contract("btd,dv->btv", self.norm(x), self.out[...])


Module = Embed | GqaAttention | MlaAttention | Mlp | Moe | Head


def reference_block(
    model_cfg: ModelConfig, kind: str, params: Params, held: tuple[int, ...] | None = None
) -> Module:
    """Build one block from a weight source's arrays.

    Args:
        model_cfg: the model.
        kind: "embed", "attention", "dense", "moe" or "head".
        params: the block's arrays; for "moe" with `gate_up` and `down` of the held experts
            stacked on a leading axis.
        held: for "moe": ids of those experts, default all.

    Returns:
        The module.

    Raises:
        UnknownNameError: if `kind` is not a block kind.
        ConfigError: if a parameter is missing or the stacked experts do not match `held`.
    """
    missing = set(block_params(model_cfg, kind)).difference(params)
    if missing:
        raise ConfigError(f"a {kind} block needs parameter {min(missing)!r}; it is missing.")
    attention, moe = model_cfg.attention, model_cfg.moe
    match kind:
        case "embed":
            return Embed(params)
        case "attention" if isinstance(attention, MlaConfig):
            return MlaAttention(model_cfg, attention, params)
        case "attention" if isinstance(attention, GqaConfig):
            return GqaAttention(model_cfg, attention, params)
        case "dense":
            return Mlp(model_cfg, params)
        case "moe" if moe is not None:
            ids = tuple(range(moe.n_experts)) if held is None else held
            return Moe(model_cfg, moe, params, ids)
        case _:
            return Head(model_cfg, params)


def with_experts(source: WeightSource, layer: int, held: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Return a moe block's arrays with the experts `held` stacked, as `reference_block` wants."""
    model_cfg = source.config
    assert model_cfg.moe is not None
    names = expert_params(model_cfg.d_model, model_cfg.moe)
    experts = [source.expert(layer, expert_id) for expert_id in held]
    stacks = {name: np.stack([expert[name] for expert in experts]) for name in names}
    return source.block("moe", layer) | stacks


class Transformer(nnx.Module):
    """The whole model: token numbers to logits, everything held in float32."""

    def __init__(self, source: WeightSource) -> None:
        model_cfg = source.config

        def build(kind: str, layer: int = 0) -> Module:
            if kind == "moe" and model_cfg.moe is not None:
                held = tuple(range(model_cfg.moe.n_experts))
                return reference_block(model_cfg, kind, with_experts(source, layer, held), held)
            return reference_block(model_cfg, kind, source.block(kind, layer))

        self.embed = build("embed")
        self.blocks = nnx.List(
            [
                build(kind, layer)
                for layer in range(model_cfg.n_layers)
                for kind in ("attention", "moe" if model_cfg.is_moe_layer(layer) else "dense")
            ]
        )
        self.head = build("head")

    def __call__(self, tokens: Int[Array, "b t"]) -> Float32[Array, "b t vocab"]:
        """Return the logits of every position.

        Args:
            tokens: `[b, t]` token numbers, positions from 0, no padding.

        Fidelity:
            Order-dependent: float32 throughout at the highest precision of the backend; within
            2e-5 of Hugging Face's float32 logits on tiny models.
        """
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)
