"""Gated DeltaNet and Kimi Delta Attention: heads with a state, which every token updates.

Per-chip program: the `tensor` axis splits key heads, `query` the value heads of one key head,
`data` sequences; chips along `context` are copies, for there are no positions to share out. A
prompt passes token after token, in the time that takes; the chunked form, which trades a longer
program for products of the matrix unit, is not built.
"""

from collections.abc import Mapping
from math import prod
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int32

from lpu_jax.datapath import c2c, mem, recurrence, sxm, vxm
from lpu_jax.datapath.axis import Axis

from ..config import ModelConfig
from ..leaves import rows_of_leaf
from ..policy import Policy
from .linear import Split, add_residual, linear, narrowed, operand_rows, project_out
from .norm import rms_norm
from .softmax import Cache

#: Beside the sum of squares of queries and keys, whatever the eps of the model's norms.
_LENGTH_EPS = 1e-6


def delta_net(
    x: Float[Array, "b t d"],
    weights: Mapping[str, Any],
    cache: Mapping[str, Array],
    counts: Int32[Array, " b"],
    share: Int32[Array, " 1"],
    *,
    cfg: ModelConfig,
    policy: Policy,
    split: Split,
    axes: Mapping[str, Axis],
) -> tuple[Float[Array, "b t d"], Cache]:
    """Update the states by new tokens, and read them.

    Args:
        x: hidden state, replicated in the group.
        weights: as in `models.params`, this chip's heads.
        cache: `state` `[b, k, g, key, value]` in fp32, and the last inputs of the convolutions,
            `qk_inputs` `[b, taps - 1, 2, k, key]` and `v_inputs` `[b, taps - 1, k, g, value]`, of
            this chip's sequences and heads.
        counts: new tokens of each sequence that count, its first ones; the others change nothing
            that is kept.
        share: number of this chip along the data axis.
        cfg: the model.
        policy: formats, and how products are made.
        split: how the output projection is split.
        axes: `data`, `tensor` and `query`.

    Returns:
        The new hidden state, replicated, and the new cache.

    Fidelity:
        Order-dependent; tokens one by one give the bits of a prompt at once. Inputs of convolutions
        are rounded to the base format, the state stays in fp32. The logarithm of 1 + exp(-|x|) in
        a decay has an absolute error of 6e-8.
    """
    assert cfg.recurrent is not None
    b, k, g, key_dim, value_dim = cache["state"].shape
    t, d = x.shape[1], x.shape[2]
    sizes = {"b": b, "t": t, "k": k, "g": g}
    counts = mem.take_share(counts, share.reshape(()), b)
    mine = mem.take_share(x, share.reshape(()), b)
    y = rms_norm(vxm.to_fp32(mine.reshape(b * t, d)), weights["norm"], cfg.norm_eps)
    rows, gate_rows = operand_rows(y, policy, "attention", "router")

    qk = linear(rows, weights["qk"], policy=policy)
    width = k * g * value_dim
    if cfg.recurrent.channel_rank is None:
        v, z = sxm.split(linear(rows, weights["vz"], policy=policy), (width, width))
        decay, rates = _gates(linear(gate_rows, weights["ba"], policy=policy), weights, sizes)
        gate = vxm.silu
    else:
        v = linear(rows, weights["v"], policy=policy)
        decay, z = _through_rank(rows, weights, sizes | {"h": key_dim}, policy)
        rates = _by_token(vxm.sigmoid(linear(gate_rows, weights["b"], policy=policy)), sizes)
        gate = vxm.sigmoid
    qk, qk_inputs = _convolved(qk, weights["qk_taps"], cache["qk_inputs"], counts, policy)
    v, v_inputs = _convolved(v, weights["v_taps"], cache["v_inputs"], counts, policy)
    queries, keys = _columns(qk, sizes | {"h": key_dim})

    read, state = recurrence.delta_rule(
        cache["state"].reshape(b * k * g, key_dim, value_dim),
        queries,
        keys,
        sxm.rearrange(v, "b t (k g h) -> (b k g) t h", **sizes, h=value_dim),
        decay,
        rates,
        counts,
    )
    heads = rms_norm(read.reshape(-1, value_dim), weights["out_norm"], cfg.norm_eps)
    z = sxm.rearrange(z, "(b t) (k g h) -> (b k g t) h", **sizes, h=value_dim)
    heads = operand_rows(vxm.mul(heads, gate(z)), policy, "attention")
    out = project_out(
        sxm.rearrange(heads, "(b k g t) h -> (b t) (k g h)", **sizes, h=value_dim),
        weights["o"],
        rows=3,
        policy=policy,
        split=split,
        axis=c2c.joined(axes["tensor"], axes["query"]),
        d_model=d,
        leaf=rows_of_leaf(cfg, "recurrent", policy, "o"),
    )
    out = c2c.all_gather(out.reshape(b, t, d), axes["data"], dim=-3)
    kept = {"state": state.reshape(cache["state"].shape)}
    kept |= {"qk_inputs": qk_inputs, "v_inputs": v_inputs}
    return add_residual(x, out, cfg, policy), kept


def _convolved(
    x: Float32[Array, "m c"],
    taps: Float32[Array, "taps ..."],
    before: Float[Array, "b kept ..."],
    counts: Int32[Array, " b"],
    policy: Policy,
) -> tuple[Float32[Array, "b t c"], Float[Array, "b kept ..."]]:
    """Convolve what was projected, and bend it by SiLU; see `recurrence.short_convolution`."""
    b, n_kept, c = before.shape[0], before.shape[1], x.shape[-1]
    y, last = recurrence.short_convolution(
        before.reshape(b, n_kept, c),
        narrowed(x, policy).reshape(b, -1, c),
        taps.reshape(taps.shape[0], c),
        counts,
    )
    return vxm.silu(y), last.reshape(before.shape)


def _columns(
    qk: Float32[Array, "b t c"], sizes: Mapping[str, Any]
) -> tuple[Float32[Array, "h t groups"], Float32[Array, "h t groups"]]:
    """Give queries and keys length one, and turn them so that a channel is a vector.

    Queries are then divided by the root of a head's width. The value heads of a key head share
    both.
    """
    b, t, k, g, h = (sizes[name] for name in "btkgh")
    rows = sxm.rearrange(qk, "b t (two k h) -> (two b k t) h", two=2, b=b, t=t, k=k, h=h)
    scale = vxm.rsqrt(vxm.add(vxm.sum_lanes(vxm.mul(rows, rows)), _LENGTH_EPS))
    rows = vxm.mul(rows, scale)
    both = sxm.rearrange(rows, "(two b k t) h -> two h t b k", two=2, b=b, t=t, k=k, h=h)
    queries, keys = (lax.slice_in_dim(both, i, i + 1).reshape(h, t, b, k, 1) for i in (0, 1))
    queries = vxm.mul(queries, float(h**-0.5))
    shape = (h, t, b, k, g)
    found = [jnp.broadcast_to(part, shape).reshape(h, t, b * k * g) for part in (queries, keys)]
    return found[0], found[1]


def _gates(
    ba: Float32[Array, "m n"], weights: Mapping[str, Any], sizes: Mapping[str, Any]
) -> tuple[Float32[Array, "1 t groups"], Float32[Array, "1 t groups"]]:
    """Make the decay `exp(-fading softplus(a + bias))` and the rate `sigmoid(b)` of each head."""
    n = prod(sizes[name] for name in "kg")
    b, a = sxm.split(ba, (n, n))
    a = vxm.add(a, weights["fading_bias"].reshape(1, n))
    lasting = vxm.mul(_softplus(a), weights["fading"].reshape(1, n))
    decay = vxm.exp(vxm.sub(0.0, lasting))
    return _by_token(decay, sizes), _by_token(vxm.sigmoid(b), sizes)


def _by_token(
    gate: Float32[Array, "m n"], sizes: Mapping[str, Any]
) -> Float32[Array, "1 t groups"]:
    turned = sxm.rearrange(gate, "(b t) (k g) -> t (b k g)", **sizes)
    return turned.reshape(1, *turned.shape)


def _through_rank(
    rows: Float[Array, "m d"], weights: Mapping[str, Any], sizes: Mapping[str, Any], policy: Policy
) -> tuple[Float32[Array, "h t groups"], Float32[Array, "m n"]]:
    """Make the decays of every channel, and what gates the results, from few values each."""
    low = linear(rows, weights["fg_a"], policy=policy)
    rank = weights["fg_a"].shape[-1]
    of_decay, of_gate = (
        operand_rows(part, policy, "attention") for part in sxm.split(low, (rank, rank))
    )
    k, g, h = (sizes[name] for name in "kgh")
    a = linear(of_decay, weights["f_b"], policy=policy)
    a = vxm.add(a, weights["fading_bias"].reshape(1, k * g * h))
    fading = jnp.broadcast_to(weights["fading"].reshape(1, k * g, 1), (1, k * g, h))
    lasting = vxm.mul(_softplus(a), fading.reshape(1, k * g * h))
    decay = sxm.rearrange(vxm.exp(vxm.sub(0.0, lasting)), "(b t) (k g h) -> h t (b k g)", **sizes)
    return decay, linear(of_gate, weights["g_b"], policy=policy)


def _softplus(x: Float32[Array, "m n"]) -> Float32[Array, "m n"]:
    """Return `log(1 + exp(x))`, finite for every x: `max(x, 0) + log(1 + exp(-|x|))`."""
    rest = vxm.log(vxm.add(vxm.exp(vxm.sub(0.0, vxm.absolute(x))), 1.0))
    return vxm.add(vxm.maximum(x, 0.0), rest)
