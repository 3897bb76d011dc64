"""Gated linear recurrences: heads with a state, which every token updates.

Gated DeltaNet, Kimi Delta Attention and Mamba2. Per-chip program: the `tensor` axis splits key
heads, `query` the value heads of one key head, `data` sequences; chips along `context` are copies,
for there are no positions to share out. A prompt passes token after token, in the time that takes;
the chunked form, which trades a longer program for products of the matrix unit, is not built.
"""

from collections.abc import Mapping
from math import prod
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int32

from lpu_jax.datapath import c2c, mem, recurrence, sxm, vxm
from lpu_jax.datapath.axis import Axis

from ..config import ModelConfig, RecurrentConfig
from ..leaves import rows_of_leaf
from ..policy import Policy
from .linear import Split, add_residual, linear, narrowed, operand_rows, project_out
from .norm import joint_rms_norm, rms_norm
from .softmax import Cache

#: Beside the sum of squares of queries and keys, whatever the eps of the model's norms.
_LENGTH_EPS = 1e-6


def recurrent_layer(
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
    net = cfg.recurrent
    assert net is not None
    b, k, g, key_dim, value_dim = cache["state"].shape
    t, d = x.shape[1], x.shape[2]
    sizes = {"b": b, "t": t, "k": k, "g": g}
    counts = mem.take_share(counts, share.reshape(()), b)
    mine = mem.take_share(x, share.reshape(()), b)
    y = rms_norm(vxm.to_fp32(mine.reshape(b * t, d)), weights["norm"], cfg.norm_eps)
    rows, gate_rows = operand_rows(y, policy, "attention", "router")

    qk = linear(rows, weights["qk"], policy=policy)
    v, z, decay, rates = _projected(rows, gate_rows, weights, sizes, net, policy)
    qk, qk_inputs = _convolved(qk, weights, "qk_taps", cache["qk_inputs"], counts, policy)
    v, v_inputs = _convolved(v, weights, "v_taps", cache["v_inputs"], counts, policy)
    queries, keys = _columns(qk, sizes | {"h": key_dim}, net)
    v = sxm.rearrange(v, "b t (k g h) -> (b k g) t h", **sizes, h=value_dim)

    read, state = recurrence.linear_recurrence(
        cache["state"].reshape(b * k * g, key_dim, value_dim),
        queries,
        keys,
        v,
        decay,
        rates,
        counts,
        corrects=net.rule == "delta",
    )
    z = sxm.rearrange(z, "(b t) (k g h) -> (b k g t) h", **sizes, h=value_dim)
    if net.rule == "mamba2":
        read = vxm.add(read, vxm.mul(v, _of_groups(weights["skip"], b)))
        heads = vxm.mul(read.reshape(-1, value_dim), vxm.silu(z))
        heads = _normed_together(heads, weights["out_norm"], sizes, cfg, axes["query"])
    else:
        heads = rms_norm(read.reshape(-1, value_dim), weights["out_norm"], cfg.norm_eps)
        gate = vxm.silu if not net.has_channel_decays else vxm.sigmoid
        heads = vxm.mul(heads, gate(z))
    heads = operand_rows(heads, policy, "attention")
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
    kept: Cache = {"state": state.reshape(cache["state"].shape)}
    kept |= {"qk_inputs": qk_inputs, "v_inputs": v_inputs}
    return add_residual(x, out, cfg, policy), kept


def _projected(
    rows: Float[Array, "m d"],
    gate_rows: Float[Array, "m d"],
    weights: Mapping[str, Any],
    sizes: Mapping[str, Any],
    net: RecurrentConfig,
    policy: Policy,
) -> tuple[
    Float32[Array, "m v"],
    Float32[Array, "m v"],
    Float32[Array, "channels t groups"],
    Float32[Array, "1 t groups"],
]:
    """Make values, what gates the results, decays and rates."""
    if net.channel_rank is not None and not net.is_gate_full:
        v = linear(rows, weights["v"], policy=policy)
        decay, z = _through_rank(rows, weights, sizes, net, policy)
        rates = vxm.sigmoid(linear(gate_rows, weights["b"], policy=policy))
        return v, z, decay, _by_token(rates, sizes)
    width = sizes["k"] * sizes["g"] * net.value_dim
    v, z = sxm.split(linear(rows, weights["vz"], policy=policy), (width, width))
    if net.rule == "mamba2":
        decay, rates = _steps(linear(rows, weights["b"], policy=policy), weights, sizes, net)
    elif net.has_channel_decays:
        if net.is_gate_full:
            low = operand_rows(linear(rows, weights["f_a"], policy=policy), policy, "attention")
            fade = linear(low, weights["f_b"], policy=policy)
        else:
            fade = linear(rows, weights["f"], policy=policy)
        decay = _of_channels(fade, weights, sizes, net)
        rates = _by_token(vxm.sigmoid(linear(gate_rows, weights["b"], policy=policy)), sizes)
    else:
        decay, rates = _gates(linear(gate_rows, weights["ba"], policy=policy), weights, sizes)
    return v, z, decay, rates


def _convolved(
    x: Float32[Array, "m c"],
    weights: Mapping[str, Any],
    name: str,
    before: Float[Array, "b kept ..."],
    counts: Int32[Array, " b"],
    policy: Policy,
) -> tuple[Float32[Array, "b t c"], Float[Array, "b kept ..."]]:
    """Convolve what was projected by taps of this name, add their bias if there is one, then SiLU.

    See `recurrence.short_convolution`.
    """
    b, n_kept, c = before.shape[0], before.shape[1], x.shape[-1]
    taps, bias = weights[name], weights.get(f"{name}_bias")
    y, last = recurrence.short_convolution(
        before.reshape(b, n_kept, c),
        narrowed(x, policy).reshape(b, -1, c),
        taps.reshape(taps.shape[0], c),
        counts,
    )
    if bias is not None:
        y = vxm.add(y, bias.reshape(1, 1, c))
    return vxm.silu(y), last.reshape(before.shape)


def _columns(
    qk: Float32[Array, "b t c"], sizes: Mapping[str, Any], net: RecurrentConfig
) -> tuple[Float32[Array, "h t groups"], Float32[Array, "h t groups"]]:
    """Turn queries and keys so that a channel is a vector; value heads of a key head share both.

    By the delta rule they have length one, and queries are then divided by the root of a head's
    width.
    """
    b, t, k, g, h = (sizes[name] for name in "btkgh")
    if net.rule == "delta":
        rows = sxm.rearrange(qk, "b t (two k h) -> (two b k t) h", two=2, b=b, t=t, k=k, h=h)
        scale = vxm.rsqrt(vxm.add(vxm.sum_lanes(vxm.mul(rows, rows)), _LENGTH_EPS))
        rows = vxm.mul(rows, scale)
        both = sxm.rearrange(rows, "(two b k t) h -> two h t b k", two=2, b=b, t=t, k=k, h=h)
    else:
        both = sxm.rearrange(qk, "b t (two k h) -> two h t b k", two=2, b=b, t=t, k=k, h=h)
    queries, keys = (lax.slice_in_dim(both, i, i + 1).reshape(h, t, b, k, 1) for i in (0, 1))
    if net.rule == "delta":
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


def _steps(
    steps: Float32[Array, "m n"],
    weights: Mapping[str, Any],
    sizes: Mapping[str, Any],
    net: RecurrentConfig,
) -> tuple[Float32[Array, "1 t groups"], Float32[Array, "1 t groups"]]:
    """Make the step `softplus(b + bias)` of each head, kept within limits, and its decay.

    The decay is `exp(-fading step)`; the step is the rate too.
    """
    n = prod(sizes[name] for name in "kg")
    steps = _softplus(vxm.add(steps, weights["fading_bias"].reshape(1, n)))
    if net.least_step:
        steps = vxm.maximum(steps, net.least_step)
    if net.most_step is not None:
        steps = vxm.minimum(steps, net.most_step)
    decay = vxm.exp(vxm.sub(0.0, vxm.mul(steps, weights["fading"].reshape(1, n))))
    return _by_token(decay, sizes), _by_token(steps, sizes)


def _of_groups(of_heads: Float32[Array, "k g"], b: Any) -> Float32[Array, "groups 1 1"]:
    """Lay a number of each value head beside the states of every sequence."""
    k, g = of_heads.shape
    return jnp.broadcast_to(of_heads.reshape(1, k, g), (b, k, g)).reshape(b * k * g, 1, 1)


def _normed_together(
    heads: Float32[Array, "rows h"],
    weight: Float32[Array, "k g h"],
    sizes: Mapping[str, Any],
    cfg: ModelConfig,
    axis: Axis,
) -> Float32[Array, "rows h"]:
    """Normalise the value heads of a key head together, though chips of an axis share them out."""
    net = cfg.recurrent
    assert net is not None
    b, t, k, g = (sizes[name] for name in "btkg")
    h = net.value_dim
    by_key = joint_rms_norm(
        heads.reshape(b * k, g, t, h),
        None,
        cfg.norm_eps,
        n_heads=net.value_heads_per_key,
        axis=axis,
    )
    normed = vxm.mul(by_key.reshape(b, k, g, t, h), weight.reshape(1, k, g, 1, h))
    return normed.reshape(-1, h)


def _by_token(
    gate: Float32[Array, "m n"], sizes: Mapping[str, Any]
) -> Float32[Array, "1 t groups"]:
    turned = sxm.rearrange(gate, "(b t) (k g) -> t (b k g)", **sizes)
    return turned.reshape(1, *turned.shape)


def _through_rank(
    rows: Float[Array, "m d"],
    weights: Mapping[str, Any],
    sizes: Mapping[str, Any],
    net: RecurrentConfig,
    policy: Policy,
) -> tuple[Float32[Array, "h t groups"], Float32[Array, "m n"]]:
    """Make the decays of every channel, and what gates the results, from few values each."""
    low = linear(rows, weights["fg_a"], policy=policy)
    rank = weights["fg_a"].shape[-1]
    of_decay, of_gate = (
        operand_rows(part, policy, "attention") for part in sxm.split(low, (rank, rank))
    )
    decay = _of_channels(linear(of_decay, weights["f_b"], policy=policy), weights, sizes, net)
    return decay, linear(of_gate, weights["g_b"], policy=policy)


def _of_channels(
    a: Float32[Array, "m n"],
    weights: Mapping[str, Any],
    sizes: Mapping[str, Any],
    net: RecurrentConfig,
) -> Float32[Array, "h t groups"]:
    """Make the decay of every key channel: `exp(-fading softplus(a + bias))`.

    With a bound it is `exp(bound sigmoid(fading (a + bias)))`.
    """
    k, g, h = sizes["k"], sizes["g"], net.key_dim
    a = vxm.add(a, weights["fading_bias"].reshape(1, k * g * h))
    fading = jnp.broadcast_to(weights["fading"].reshape(1, k * g, 1), (1, k * g, h))
    fading = fading.reshape(1, k * g * h)
    if net.decay_bound is None:
        lasting = vxm.sub(0.0, vxm.mul(_softplus(a), fading))
    else:
        lasting = vxm.mul(vxm.sigmoid(vxm.mul(a, fading)), float(net.decay_bound))
    return sxm.rearrange(vxm.exp(lasting), "(b t) (k g h) -> h t (b k g)", **sizes, h=h)


def _softplus(x: Float32[Array, "m n"]) -> Float32[Array, "m n"]:
    """Return `log(1 + exp(x))`, finite for every x: `max(x, 0) + log(1 + exp(-|x|))`."""
    rest = vxm.log(vxm.add(vxm.exp(vxm.sub(0.0, vxm.absolute(x))), 1.0))
    return vxm.add(vxm.maximum(x, 0.0), rest)
