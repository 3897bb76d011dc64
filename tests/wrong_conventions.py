"""Wrong conventions, each injected at one place: a configuration, a weight, or a line of code.

What each does to the logits of the tiny model whose convention it breaks is in
`oracle/test_mutations.py`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from changes import in_array as _array
from changes import in_model as _model
from changes import in_part as _part
from mistakes import Arrays, Mistake
from wrong_indices import OF_INDICES
from wrong_kimi_k3 import KIMI_K3
from wrong_ling import LING
from wrong_local_layers import MISTAKES as OF_LOCAL_LAYERS
from wrong_nemotron import NEMOTRON

from lpu_jax.datapath import masks
from models.config import ModelConfig
from models.layers import grouped, mlp, recurrent, rotary, router
from models.reference_attention import GqaAttention, causal_softmax, rotate
from models.reference_mixture import Moe, of_experts
from models.reference_recurrence import (
    DeltaNet,
    convolve,
    linear_recurrence,
    unit_length,
)


def _scaling(**changes: Any) -> Callable[[ModelConfig], ModelConfig]:
    def change(cfg: ModelConfig) -> ModelConfig:
        scaling = dataclasses.replace(cfg.rope.scaling, **changes)
        return dataclasses.replace(cfg, rope=dataclasses.replace(cfg.rope, scaling=scaling))

    return change


def _temperature_once(cfg: ModelConfig) -> ModelConfig:
    return _part("attention", rope_temperature=cfg.attention.rope_temperature**0.5)(cfg)


def _both_attentions(**changes: Any) -> Callable[[ModelConfig], ModelConfig]:
    """Change the attention of all layers where sliding ones have their own."""
    return lambda cfg: _part("attention", **changes)(_part("sliding_attention", **changes)(cfg))


def _norms_as_stored(arrays: Arrays) -> Arrays:
    """Multiply by the weights of norms as Gemma's files hold them, less one."""
    return {
        name: values - np.float32(1) if name.endswith("norm") else values
        for name, values in arrays.items()
    }


def _norms_of_first_heads(arrays: Arrays) -> Arrays:
    """Take the part of the first head out of norms of all heads."""
    names = [name for name in ("q_norm", "k_norm") if name in arrays]
    return {name: arrays[name].reshape(-1, arrays[name].shape[-1])[0] for name in names}


def _halves(gate_up: np.ndarray) -> np.ndarray:
    """Take alternating gate and up columns `[d, 2, f]` for two halves."""
    in_file = np.moveaxis(gate_up, 1, 2).reshape(len(gate_up), -1)
    return in_file.reshape(gate_up.shape)


def _alternating(gate_up: np.ndarray) -> np.ndarray:
    """Take two halves `[d, 2, f]` for alternating gate and up columns."""
    d_model, _, width = gate_up.shape
    return np.moveaxis(gate_up.reshape(d_model, width, 2), 2, 1)


def _other_heads(q: np.ndarray) -> np.ndarray:
    """Take query heads `[d, kv, group, h]` for `[d, group, kv, h]`."""
    return q.swapaxes(1, 2).reshape(q.shape)


def _gates_in_halves(arrays: Arrays) -> Arrays:
    """Take a query head and its gate beside each other for all queries, then all gates."""
    if "gate" not in arrays:
        return arrays
    shape = arrays["q"].shape
    in_file = np.stack([arrays["q"], arrays["gate"]], axis=3).reshape(shape[0], 2, *shape[1:])
    return arrays | {"q": in_file[:, 0], "gate": in_file[:, 1]}


def _projected_in_order(arrays: Arrays) -> Arrays:
    """Take values and gates by key head `[d, 2, k, g, h]` for all values, then all gates."""
    if "vz" not in arrays:
        return arrays
    vz = arrays["vz"]
    return arrays | {"vz": np.moveaxis(vz, 1, 2).reshape(vz.shape)}


MISTAKES: dict[str, Mistake] = {
    # rotation
    "rope: neighbours turned instead of halves": Mistake(
        model="llama", config=_part("rope", interleaved=True)
    ),
    "rope: halves turned instead of neighbours": Mistake(
        model="deepseek_v3", config=_part("rope", interleaved=False)
    ),
    "rope: turned backwards": Mistake(
        model="llama",
        reference=(
            (
                rotate,
                "first * cos - second * sin, second * cos + first * sin",
                "first * cos + second * sin, second * cos - first * sin",
            ),
        ),
        layers=((rotary.rotate, "vxm.add(vxm.mul(x, cos)", "vxm.sub(vxm.mul(x, cos)"),),
    ),
    "rope: llama3 scaling ignored": Mistake(model="llama", config=_part("rope", scaling=None)),
    "rope: yarn ignored": Mistake(model="deepseek_v3", config=_part("rope", scaling=None)),
    "rope: yarn with another beta": Mistake(model="kimi_k2", config=_scaling(beta_fast=32.0)),
    "rope: yarn pairs truncated": Mistake(model="gpt_oss", config=_scaling(truncate=True)),
    "rope: yarn factor of cos and sin dropped": Mistake(
        model="gpt_oss", config=_scaling(mscale=1.0, mscale_all_dim=1.0)
    ),
    "rope: whole head turned, not its half": Mistake(
        model="glm4_moe", config=_part("rope", dim=16)
    ),
    "rope: whole head turned, not what phi3 says": Mistake(
        model="phi3", config=_part("rope", dim=8)
    ),
    "rope: whole head turned, not the half of minimax": Mistake(
        model="minimax_m2", config=_part("rope", dim=16)
    ),
    "rope: linear scaling ignored": Mistake(model="gemma3", config=_part("rope", scaling=None)),
    "rope: sliding layers turned as the others": Mistake(
        model="gemma3", config=_model(sliding_rope=None)
    ),
    "rope: every pair of global heads turned": Mistake(
        model="gemma4", config=_part("rope", dim=16, span=None)
    ),
    "rope: pairs of global heads within their first part": Mistake(
        model="gemma4", config=_part("rope", span=None)
    ),
    "rope: every layer turned": Mistake(model="smollm3", config=_model(unrotated_layers=())),
    "rope: layers marked with 1 not turned": Mistake(
        model="smollm3", config=_model(unrotated_layers=(0, 2))
    ),
    # attention
    "attention: m squared dropped from the scale": Mistake(
        model="deepseek_v3", config=_part("attention", rope_temperature=1.0)
    ),
    "attention: m instead of m squared": Mistake(model="kimi_k2", config=_temperature_once),
    "attention: eps of the model in latent norms": Mistake(
        model="deepseek_v3", config=_part("attention", latent_norm_eps=1e-5)
    ),
    "attention: keys and values of heads swapped": Mistake(
        model="llama", arrays=_array("kv", lambda kv: kv[:, :, ::-1])
    ),
    "attention: query heads grouped the other way": Mistake(
        model="llama", arrays=_array("q", _other_heads)
    ),
    "attention: q and k norms dropped": Mistake(
        model="qwen3", config=_part("attention", qk_norm=False)
    ),
    "attention: q and k normalised after rotation": Mistake(
        model="qwen3",
        reference=(
            ((GqaAttention, "__call__"), "self.q_norm(query), self.k_norm(key)", "query, key"),
            (
                (GqaAttention, "__call__"),
                "rotate(query, self.rope), rotate(key, self.rope)",
                "self.q_norm(rotate(query, self.rope)), self.k_norm(rotate(key, self.rope))",
            ),
        ),
        layers=(
            (grouped.new_heads, 'if "q_norm" in weights', "if False"),
            (grouped.new_heads, 'if "k_norm" in weights', "if False"),
            (
                grouped.grouped_attention,
                "rotated(q, 1, 1)",
                '_normed(rotated(q, 1, 1), weights["q_norm"], cfg.norm_eps, 4, axes["tensor"])',
            ),
            (
                grouped.grouped_attention,
                "rotated(key, 1)",
                '_normed(rotated(key, 1), weights["k_norm"], cfg.norm_eps, 2, axes["tensor"])',
            ),
        ),
    ),
    "attention: heads of minimax normalised one by one": Mistake(
        model="minimax_m2",
        config=_part("attention", is_qk_norm_joint=False),
        arrays=lambda arrays: arrays | _norms_of_first_heads(arrays),
    ),
    "attention: scores not capped": Mistake(model="gemma2", config=_part("attention", cap=None)),
    "attention: query_pre_attn_scalar taken for the width of a head": Mistake(
        model="gemma2", config=_part("attention", scale=None)
    ),
    "attention: values not normalised": Mistake(
        model="gemma4", config=_both_attentions(norms_values=False)
    ),
    "attention: scores of gemma4 multiplied": Mistake(
        model="gemma4", config=_both_attentions(scale=None)
    ),
    "attention: q, k and v biases dropped": Mistake(
        model="glm4_moe", config=_part("attention", qkv_bias=False)
    ),
    "attention: output bias dropped": Mistake(
        model="gpt_oss", config=_part("attention", o_bias=False)
    ),
    "attention: sinks dropped": Mistake(model="gpt_oss", config=_part("attention", sinks=False)),
    "attention: window one longer": Mistake(model="gpt_oss", config=_part("attention", window=6)),
    "attention: window one shorter": Mistake(model="gpt_oss", config=_part("attention", window=4)),
    "attention: window on the other layers": Mistake(
        model="gpt_oss", config=_model(sliding_layers=(1,))
    ),
    "attention: no window": Mistake(model="gpt_oss", config=_model(sliding_layers=())),
    "attention: no window of mistral": Mistake(model="mistral", config=_model(sliding_layers=())),
    "attention: window on the second layer alone": Mistake(
        model="mistral", config=_model(sliding_layers=(1,))
    ),
    "attention: window before max_window_layers too": Mistake(
        model="qwen2", config=_model(sliding_layers=(0, 1))
    ),
    "attention: window of qwen2 switched off": Mistake(
        model="qwen2", config=_model(sliding_layers=())
    ),
    "attention: biases of qwen2 dropped": Mistake(
        model="qwen2", config=_part("attention", qkv_bias=False)
    ),
    "attention: the next token is seen": Mistake(
        model="llama",
        reference=(
            (causal_softmax, "(distance >= 0) & (distance <", "(distance >= -1) & (distance <"),
        ),
        layers=(((masks, "causal_mask"), "(scores, positions,", "(scores, positions + 1,"),),
    ),
    "attention: multiplier taken for the root of a head": Mistake(
        model="granite", config=_part("attention", scale=None)
    ),
    "attention: gate dropped": Mistake(model="qwen3_next", config=_part("attention", gated=False)),
    "attention: queries and gates in halves, not by head": Mistake(
        model="qwen3_next", arrays=_gates_in_halves
    ),
    # recurrence
    "recurrence: projections in order, not by key head": Mistake(
        model="qwen3_next", arrays=_projected_in_order
    ),
    "recurrence: values and gates swapped": Mistake(
        model="qwen3_5", arrays=_array("vz", lambda vz: vz[:, ::-1])
    ),
    "recurrence: rates and decays swapped": Mistake(
        model="qwen3_next", arrays=_array("ba", lambda ba: ba[:, ::-1])
    ),
    "recurrence: bias of decays dropped": Mistake(
        model="qwen3_next", arrays=_array("fading_bias", np.zeros_like)
    ),
    "recurrence: logarithm taken for the fading": Mistake(
        model="qwen3_next", arrays=_array("fading", np.log)
    ),
    "recurrence: norm of results counts from one": Mistake(
        model="qwen3_next", arrays=_array("out_norm", lambda x: x + np.float32(1))
    ),
    "recurrence: taps reversed": Mistake(
        model="qwen3_next", arrays=_array("qk_taps", lambda taps: taps[::-1])
    ),
    "recurrence: taps one token late": Mistake(
        model="qwen3_next",
        reference=(
            (
                convolve,
                "padded[:, i : i + n_tokens]",
                "padded[:, max(i - 1, 0) :][:, :n_tokens]",
            ),
        ),
    ),
    "recurrence: keys not of length one": Mistake(
        model="qwen3_next",
        reference=((unit_length, "x * jax.lax.rsqrt(", "x * 1.0 + 0.0 * jax.lax.rsqrt("),),
        layers=((recurrent._columns, "rows = vxm.mul(rows, scale)", "pass"),),
    ),
    "recurrence: queries not divided by the root of a head": Mistake(
        model="qwen3_next",
        reference=(((DeltaNet, "__call__"), "query * self.net.key_dim**-0.5", "query"),),
        layers=((recurrent._columns, "float(h**-0.5)", "1.0"),),
    ),
    "recurrence: state not faded before it is corrected": Mistake(
        model="qwen3_next",
        reference=(
            (
                linear_recurrence,
                "state = state * a[..., None]",
                "before, state = state, state * a[..., None]",
            ),
            (
                linear_recurrence,
                'v - contract("bnkv,bnk->bnv", state, k)',
                'v - contract("bnkv,bnk->bnv", before, k)',
            ),
        ),
    ),
    "recurrence: state not corrected": Mistake(
        model="qwen3_next",
        reference=((linear_recurrence, 'v - contract("bnkv,bnk->bnv", state, k)', "v"),),
    ),
    "recurrence: read before it is written": Mistake(
        model="qwen3_next",
        reference=(
            (
                linear_recurrence,
                'return state, contract("bnkv,bnk->bnv", state, q)',
                "added = contract('bnk,bnv->bnkv', k, error * b[..., None])\n        "
                'return state, contract("bnkv,bnk->bnv", state - added, q)',
            ),
        ),
    ),
    "recurrence: gate before the norm": Mistake(
        model="qwen3_next",
        reference=(
            (
                (DeltaNet, "__call__"),
                "heads = rearrange(self.out_norm(read), ",
                'bent = rearrange(gate, "b t k g h -> b t (k g) h")\n    '
                "heads = rearrange(self.out_norm(read * bent), ",
            ),
            ((DeltaNet, "__call__"), "heads * gate", "heads"),
        ),
    ),
    "recurrence: sigmoid for silu in the gate": Mistake(
        model="qwen3_next",
        reference=(((DeltaNet, "_projected"), "jax.nn.silu(gate)", "jax.nn.sigmoid(gate)"),),
        layers=((recurrent.recurrent_layer, "gate = vxm.silu if", "gate = vxm.sigmoid if"),),
    ),
    "recurrence: one decay for all channels": Mistake(
        model="kimi_linear",
        reference=(
            (
                linear_recurrence,
                "state = state * a[..., None]",
                "state = state * jnp.mean(a, -1, keepdims=True)[..., None]",
            ),
        ),
    ),
    "recurrence: low ranks of decays and gates swapped": Mistake(
        model="kimi_linear", arrays=_array("fg_a", lambda x: x[:, ::-1])
    ),
    "recurrence: silu for sigmoid in the gate": Mistake(
        model="kimi_linear",
        reference=(((DeltaNet, "_projected"), "jax.nn.sigmoid(gate)", "jax.nn.silu(gate)"),),
        layers=((recurrent.recurrent_layer, "else vxm.sigmoid", "else vxm.silu"),),
    ),
    "rope: latent attention turned though its model says no": Mistake(
        model="kimi_linear", config=_model(unrotated_layers=())
    ),
    # router
    "router: softmax instead of sigmoid": Mistake(
        model="deepseek_v3", config=_part("moe", scoring="softmax")
    ),
    "router: sigmoid instead of softmax": Mistake(
        model="mixtral", config=_part("moe", scoring="sigmoid", correction_bias=False)
    ),
    "router: softmax before the choice": Mistake(
        model="gpt_oss", config=_part("moe", scoring="softmax", normalise=False)
    ),
    "router: softmax weights not renormalised": Mistake(
        model="qwen3_moe", config=_part("moe", normalise=False)
    ),
    "router: sigmoid weights not renormalised": Mistake(
        model="deepseek_v3", config=_part("moe", normalise=False)
    ),
    "router: correction of minimax ignored": Mistake(
        model="minimax_m2", config=_part("moe", correction_bias=False)
    ),
    "router: correction ignored": Mistake(
        model="kimi_k2", config=_part("moe", correction_bias=False)
    ),
    "router: correction in the weights too": Mistake(
        model="deepseek_v3",
        reference=(
            (
                (Moe, "_choose"),
                "jnp.take_along_axis(scores, ids, axis=-1)",
                "jnp.take_along_axis(scores + self.router_bias[None, None], ids, axis=-1)",
            ),
        ),
        layers=(
            (
                router.route,
                "best if ranking is scores else selection.take_lanes(scores, ids)",
                "best",
            ),
        ),
    ),
    "router: own bias dropped": Mistake(model="gpt_oss", config=_part("moe", router_offset=False)),
    "router: groups not limited": Mistake(model="deepseek_v3", config=_part("moe", topk_groups=4)),
    "router: groups ranked by their best expert": Mistake(
        model="ling",
        reference=(((Moe, "_best"), "top_k(grouped, 2)", "top_k(grouped, 1)"),),
        layers=((router._in_kept_groups, "top_k(grouped, 2)", "top_k(grouped, 1)"),),
    ),
    "router: scaling dropped": Mistake(model="kimi_k2", config=_part("moe", routed_scaling=1.0)),
    "router: one expert fewer": Mistake(model="qwen3_moe", config=_part("moe", top_k=2)),
    # experts
    "experts: gate and up swapped": Mistake(
        model="mixtral", arrays=_array("gate_up", lambda x: x[:, ::-1])
    ),
    "experts: columns taken for halves": Mistake(
        model="gpt_oss", arrays=_array("gate_up", _halves)
    ),
    "experts: halves taken to alternate": Mistake(
        model="qwen3_vl_moe", arrays=_array("gate_up", _alternating)
    ),
    "experts: not clamped": Mistake(model="gpt_oss", config=_part("moe", swiglu_limit=7.0)),
    "experts: plain SwiGLU": Mistake(model="gpt_oss", config=_part("moe", swiglu_limit=None)),
    "experts: alpha of one": Mistake(model="gpt_oss", config=_part("moe", swiglu_alpha=1.0)),
    "experts: up without the one": Mistake(
        model="gpt_oss",
        reference=((of_experts, "(up + 1.0) * gate", "up * gate"),),
        layers=((mlp.clamped_swiglu, "vxm.add(up, 1.0)", "up"),),
    ),
    "experts: gate clamped from below too": Mistake(
        model="gpt_oss",
        reference=(
            (
                of_experts,
                "jnp.minimum(gate, moe.swiglu_limit)",
                "jnp.clip(gate, -moe.swiglu_limit, moe.swiglu_limit)",
            ),
        ),
        layers=(
            (
                mlp.clamped_swiglu,
                "gate = vxm.minimum(gate, limit)",
                "gate = vxm.maximum(vxm.minimum(gate, limit), -limit)",
            ),
        ),
    ),
    "experts: biases dropped": Mistake(model="gpt_oss", config=_part("moe", expert_bias=False)),
    "experts: no shared expert": Mistake(model="deepseek_v3", config=_part("moe", n_shared=0)),
    "experts: shared expert not gated": Mistake(
        model="qwen3_next", config=_part("moe", gated_shared=False)
    ),
    "experts: shared expert scaled too": Mistake(
        model="kimi_k2", arrays=_array("shared_down", lambda x: x * np.float32(2.827))
    ),
    # dense MLP
    "dense: fused gate and up swapped": Mistake(
        model="phi3", arrays=_array("gate_up", lambda x: x[:, ::-1])
    ),
    "dense: fused columns taken to alternate": Mistake(
        model="phi3", arrays=_array("gate_up", _alternating)
    ),
    # norms and head
    "norm: eps of 1e-6 for 1e-5": Mistake(model="llama", config=_model(norm_eps=1e-6)),
    "norm: weights count from one": Mistake(
        model="llama", arrays=_array("norm", lambda x: x + np.float32(1))
    ),
    "norm: weights do not count from one": Mistake(
        model="qwen3_next", arrays=_array("norm", lambda x: x - np.float32(1))
    ),
    "embedding: multiplier dropped": Mistake(
        model="granite", config=_part("multipliers", embedding=1.0)
    ),
    "residual: multiplier dropped": Mistake(
        model="granite", config=_part("multipliers", residual=1.0)
    ),
    "head: logits multiplied, not divided": Mistake(
        model="granite", config=_part("multipliers", logits=1 / 0.6)
    ),
    "norm: results not normalised": Mistake(model="gemma3", config=_model(norms_results=False)),
    "residual: layers not scaled": Mistake(model="gemma4", config=_model(scales_layers=False)),
    "norm: one not added to weights": Mistake(model="gemma3", arrays=_norms_as_stored),
    "dense: silu instead of gelu": Mistake(model="gemma3", config=_model(activation="silu")),
    "embedding: root of the width dropped": Mistake(
        model="gemma3", config=_part("multipliers", embedding=1.0)
    ),
    "head: logits not capped": Mistake(model="gemma2", config=_model(logit_cap=None)),
    "head: norm dropped": Mistake(
        model="llama_tied",
        arrays=lambda a: a | ({"norm": np.ones_like(a["norm"])} if "out" in a else {}),
    ),
    **NEMOTRON,
    **LING,
    **KIMI_K3,
    **OF_LOCAL_LAYERS,
    # the index of sparse attention
    **OF_INDICES,
}
