"""Recurrences in the float32 reference: whole prompts, a state that steps from token to token.

Plain ones, as their papers write them: no cache, no sharding, no chunks.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float32

from .config import ModelConfig, RecurrentConfig
from .reference_parts import Hidden, Params, Result, RmsNorm, contract, param


def convolve(
    x: Float32[Array, "b t ..."], taps: Float32[Array, "taps ..."]
) -> Float32[Array, "b t ..."]:
    """Convolve each channel along the tokens, causally; the last tap is that of the token itself.

    Args:
        x: of every token, position 0 first; zeros before it.
        taps: of each channel.
    """
    n_taps, n_tokens = taps.shape[0], x.shape[1]
    before = [(0, 0), (n_taps - 1, 0)] + [(0, 0)] * (x.ndim - 2)
    padded = jnp.pad(x, before)
    lead = (None, None)
    return sum(
        (padded[:, i : i + n_tokens] * taps[i][lead] for i in range(n_taps)), jnp.zeros_like(x)
    )


def unit_length(x: Float32[Array, "*rows width"]) -> Float32[Array, "*rows width"]:
    """Divide each vector by its length."""
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-6)


def linear_recurrence(
    query: Float32[Array, "b t n key"],
    key: Float32[Array, "b t n key"],
    value: Float32[Array, "b t n value"],
    decay: Float32[Array, "b t n channels"],
    rate: Float32[Array, "b t n"],
    *,
    corrects: bool,
) -> Float32[Array, "b t n value"]:
    """Return what each token reads of the state of each head, which begins as zeros.

    A decay is one for all key channels, or one for each. By the delta rule a value is corrected by
    what the state holds of its key.

    Source:
        Yang, Kautz, Hatamizadeh, "Gated Delta Networks" (arXiv 2412.06464), equation 10; Dao, Gu,
        "Transformers are SSMs" (arXiv 2405.21060).
    """

    def step(state: Array, token: tuple[Array, ...]) -> tuple[Array, Array]:
        q, k, v, a, b = token
        state = state * a[..., None]
        error = v - contract("bnkv,bnk->bnv", state, k) if corrects else v
        state = state + contract("bnk,bnv->bnkv", k, error * b[..., None])
        return state, contract("bnkv,bnk->bnv", state, q)

    batch, _, heads, width = query.shape
    begin = jnp.zeros((batch, heads, width, value.shape[-1]), jnp.float32)
    by_token = tuple(jnp.moveaxis(x, 1, 0) for x in (query, key, value, decay, rate))
    return jnp.moveaxis(jax.lax.scan(step, begin, by_token)[1], 0, 1)


class DeltaNet(nnx.Module):
    """Gated DeltaNet or Kimi Delta Attention block: `x + recurrence(norm(x))`."""

    def __init__(self, model_cfg: ModelConfig, net: RecurrentConfig, params: Params) -> None:
        self.norm = RmsNorm(params, "norm", model_cfg.norm_eps)
        self.out_norm = RmsNorm(params, "out_norm", model_cfg.norm_eps)
        names: tuple[str, ...] = ("vz", "ba")
        if net.is_full_rank:
            names = ("vz", "f", "b")
        elif net.is_gate_full:
            names = ("vz", "f_a", "f_b", "b")
        elif net.channel_rank is not None:
            names = ("v", "fg_a", "f_b", "g_b", "b")
        self.of_gates = nnx.Dict({name: param(params, name) for name in names})
        self.qk = param(params, "qk")
        self.qk_taps, self.v_taps = param(params, "qk_taps"), param(params, "v_taps")
        self.fading, self.fading_bias = param(params, "fading"), param(params, "fading_bias")
        self.o = param(params, "o")
        self.net = net
        self.result = Result(model_cfg, params)

    def __call__(self, x: Hidden) -> Hidden:
        """Run the block on a whole prompt."""
        normed = self.norm(x)
        qk = contract("btd,dckh->btckh", normed, self.qk[...])
        value, gate, rate, fade = self._projected(normed)
        query, key = rearrange(
            jax.nn.silu(convolve(qk, self.qk_taps[...])), "b t c k h -> c b t k h"
        )
        value = jax.nn.silu(convolve(value, self.v_taps[...]))
        inside = self.net.value_heads_per_key
        query, key = (jnp.repeat(unit_length(part), inside, axis=2) for part in (query, key))
        fade = fade + self.fading_bias[...].reshape(1, 1, *fade.shape[2:])
        read = linear_recurrence(
            query * self.net.key_dim**-0.5,
            key,
            rearrange(value, "b t k g h -> b t (k g) h"),
            self._decay(fade),
            jax.nn.sigmoid(rate),
            corrects=True,
        )
        heads = rearrange(self.out_norm(read), "b t (k g) h -> b t k g h", g=inside)
        out = contract("btkgh,kghd->btd", heads * gate, self.o[...])
        return self.result(x, out)

    def _decay(self, fade: Float32[Array, "b t n channels"]) -> Float32[Array, "b t n channels"]:
        fading, bound = self.fading[...].reshape(1, 1, -1, 1), self.net.decay_bound
        if bound is None:
            return jnp.exp(-fading * jax.nn.softplus(fade))
        return jnp.exp(bound * jax.nn.sigmoid(fading * fade))

    def _projected(self, x: Hidden) -> tuple[Array, Array, Array, Array]:
        """Make values and bent gates `[b, t, k, g, h]`, rates and what decays come of."""
        given = {name: values[...] for name, values in self.of_gates.items()}
        if "vz" in given:
            value, gate = jnp.moveaxis(contract("btd,dckgh->btckgh", x, given["vz"]), 2, 0)
        if not self.net.has_channel_decays:
            both = contract("btd,dckg->btckg", x, given["ba"])
            rate, fade = rearrange(both, "b t c k g -> c b t (k g)")
            return value, jax.nn.silu(gate), rate, fade[..., None]
        if self.net.is_full_rank:
            fade = contract("btd,dkgh->btkgh", x, given["f"])
        elif self.net.is_gate_full:
            low = contract("btd,dr->btr", x, given["f_a"])
            fade = contract("btr,rkgh->btkgh", low, given["f_b"])
        else:
            value = contract("btd,dkgh->btkgh", x, given["v"])
            of_decay, of_gate = jnp.moveaxis(contract("btd,dcr->btcr", x, given["fg_a"]), 2, 0)
            fade = contract("btr,rkgh->btkgh", of_decay, given["f_b"])
            gate = contract("btr,rkgh->btkgh", of_gate, given["g_b"])
        rate = rearrange(contract("btd,dkg->btkg", x, given["b"]), "b t k g -> b t (k g)")
        return value, jax.nn.sigmoid(gate), rate, rearrange(fade, "b t k g h -> b t (k g) h")


class Mamba2(nnx.Module):
    """Mamba2 block: `x + recurrence(norm(x))`."""

    def __init__(self, model_cfg: ModelConfig, net: RecurrentConfig, params: Params) -> None:
        self.norm = RmsNorm(params, "norm", model_cfg.norm_eps)
        self.qk, self.vz, self.b = (param(params, name) for name in ("qk", "vz", "b"))
        self.qk_taps, self.v_taps = param(params, "qk_taps"), param(params, "v_taps")
        self.qk_bias, self.v_bias = param(params, "qk_taps_bias"), param(params, "v_taps_bias")
        self.fading, self.fading_bias = param(params, "fading"), param(params, "fading_bias")
        self.skip, self.out_norm = param(params, "skip"), param(params, "out_norm")
        self.o = param(params, "o")
        self.net, self.eps = net, model_cfg.norm_eps
        self.multiplier = model_cfg.multipliers.residual

    def __call__(self, x: Hidden) -> Hidden:
        """Run the block on a whole prompt."""
        normed, inside = self.norm(x), self.net.value_heads_per_key
        qk = contract("btd,dckh->btckh", normed, self.qk[...])
        value, gate = jnp.moveaxis(contract("btd,dckgh->btckgh", normed, self.vz[...]), 2, 0)
        qk = jax.nn.silu(convolve(qk, self.qk_taps[...]) + self.qk_bias[...][None, None])
        value = jax.nn.silu(convolve(value, self.v_taps[...]) + self.v_bias[...][None, None])
        step = contract("btd,dkg->btkg", normed, self.b[...]) + self.fading_bias[...][None, None]
        step = jnp.clip(jax.nn.softplus(step), self.net.least_step, self.net.most_step)
        decay = jnp.exp(-self.fading[...][None, None] * step)
        query, key = (
            jnp.repeat(part, inside, axis=2) for part in rearrange(qk, "b t c k h -> c b t k h")
        )
        read = linear_recurrence(
            query,
            key,
            rearrange(value, "b t k g h -> b t (k g) h"),
            rearrange(decay, "b t k g -> b t (k g) 1"),
            rearrange(step, "b t k g -> b t (k g)"),
            corrects=False,
        )
        read = rearrange(read, "b t (k g) h -> b t k g h", g=inside)
        read = read + self.skip[...][None, None, :, :, None] * value
        heads = self._normed(read * jax.nn.silu(gate))
        return x + self.multiplier * contract("btkgh,kghd->btd", heads, self.o[...])

    def _normed(self, heads: Float32[Array, "b t k g h"]) -> Float32[Array, "b t k g h"]:
        """Normalise the value heads of a key head together."""
        mean_square = jnp.mean(jnp.square(heads), axis=(-2, -1), keepdims=True)
        return heads * jax.lax.rsqrt(mean_square + self.eps) * self.out_norm[...][None, None]
