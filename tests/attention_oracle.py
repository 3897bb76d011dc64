"""Attention in NumPy float64, written from the published formulas: shares no code with the layers.

Everything is computed for a whole sequence at once, without a cache.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from models.config import GqaConfig, MlaConfig, ModelConfig

Values = NDArray[np.float64]
Rounding = Callable[[Values], Values]


def as_it_is(x: Values) -> Values:
    return x


def attention(
    cfg: ModelConfig,
    weights: Mapping[str, NDArray[np.float32]],
    x: Values,
    window: int | None,
    kept: Rounding = as_it_is,
) -> Values:
    """The change of the hidden state `[b, t, d]`; queries see `window` keys, or all before them.

    `kept` rounds what a cache would hold.
    """
    w = {name: np.asarray(values, np.float64) for name, values in weights.items()}
    y = _rms(x, w["norm"], cfg.norm_eps)
    if isinstance(cfg.attention, GqaConfig):
        return _grouped(cfg, cfg.attention, w, y, window, kept)
    return _latent(cfg, cfg.attention, w, y, kept)


def _grouped(
    cfg: ModelConfig,
    gqa: GqaConfig,
    w: Mapping[str, Values],
    y: Values,
    window: int | None,
    kept: Rounding,
) -> Values:
    q = np.einsum("btd,dkgh->btkgh", y, w["q"]) + w.get("q_bias", 0.0)
    kv = np.einsum("btd,dkzh->btkzh", y, w["kv"]) + w.get("kv_bias", 0.0)
    key, value = kv[:, :, :, 0], kv[:, :, :, 1]
    if gqa.qk_norm:
        q, key = _rms(q, w["q_norm"], cfg.norm_eps), _rms(key, w["k_norm"], cfg.norm_eps)
    q, key, value = _turned(cfg, q), kept(_turned(cfg, key)), kept(value)
    scores = np.einsum("btkgh,bskh->bkgts", q, key) / np.sqrt(gqa.head_dim)
    sinks = w["sinks"][None, :, :, None, None] if gqa.sinks else None
    heads = np.einsum("bkgts,bskh->btkgh", _softmax(scores, window, sinks), value)
    return np.asarray(np.einsum("btkgh,kghd->btd", heads, w["o"]) + w.get("o_bias", 0.0))


def _latent(
    cfg: ModelConfig, mla: MlaConfig, w: Mapping[str, Values], y: Values, kept: Rounding
) -> Values:
    edges = np.cumsum([mla.q_lora_rank, mla.kv_lora_rank])
    q_low, kv_low, key_rope = np.split(y @ w["a"], edges, axis=-1)
    q = np.einsum("btr,rnc->btnc", _rms(q_low, w["q_norm"], 1e-6), w["q_b"])
    latent = _rms(kv_low, w["kv_norm"], 1e-6)
    if mla.form == "expanded":
        kv = np.einsum("btr,rnc->btnc", latent, w["kv_b"])
        key_nope, value = kept(kv[..., : mla.nope_head_dim]), kept(kv[..., mla.nope_head_dim :])
    else:
        latent = kept(latent)
        key_nope = np.einsum("btr,nhr->btnh", latent, w["k_b"])
        value = np.einsum("btr,nrv->btnv", latent, w["v_b"])
    q_nope, q_rope = q[..., : mla.nope_head_dim], _turned(cfg, q[..., mla.nope_head_dim :])
    scores = np.einsum("btnh,bsnh->bnts", q_nope, key_nope)
    scores = scores + np.einsum("btnh,bsh->bnts", q_rope, kept(_turned(cfg, key_rope)))
    scale = (mla.nope_head_dim + mla.rope_head_dim) ** -0.5 * mla.rope_temperature**2
    heads = np.einsum("bnts,bsnv->btnv", _softmax(scores * scale, None, None), value)
    return np.asarray(np.einsum("btnv,nvd->btd", heads, w["o"]))


def _rms(x: Values, weight: Values, eps: float) -> Values:
    return np.asarray(x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight)


def _turned(cfg: ModelConfig, x: Values) -> Values:
    """Rotate the first values of heads `[b, t, ..., h]` as complex numbers."""
    rotary, positions = cfg.rope.dim, np.arange(x.shape[1])
    angle = positions[:, None] * np.asarray(cfg.rope.inverse_frequencies())[None, :]
    turn = np.exp(1j * angle) * cfg.rope.attention_factor
    turn = turn.reshape(1, x.shape[1], *(1,) * (x.ndim - 3), rotary // 2)
    part, rest = x[..., :rotary], x[..., rotary:]
    if cfg.rope.interleaved:
        turned = (part[..., 0::2] + 1j * part[..., 1::2]) * turn
        out = np.stack([turned.real, turned.imag], -1).reshape(part.shape)
    else:
        turned = (part[..., : rotary // 2] + 1j * part[..., rotary // 2 :]) * turn
        out = np.concatenate([turned.real, turned.imag], -1)
    return np.concatenate([out, rest], -1)


def _softmax(scores: Values, window: int | None, sinks: Values | None) -> Values:
    query, key = np.indices(scores.shape[-2:])
    seen = (key <= query) & (True if window is None else key > query - window)
    scores = np.where(seen, scores, -np.inf)
    if sinks is not None:
        extra = np.broadcast_to(sinks, (*scores.shape[:-1], 1))
        scores = np.concatenate([scores, extra], -1)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights = weights / weights.sum(-1, keepdims=True)
    return np.asarray(weights[..., : seen.shape[-1]])
