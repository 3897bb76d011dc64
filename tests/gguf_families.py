"""Tiny checkpoints written as GGUF files, as llama.cpp's converter does it.

What it does to tensors and keys is restated here from `conversion/gemma.py`,
`conversion/deepseek.py` and `conversion/base.py` of llama.cpp.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
import numpy as np
from gguf_files import set_keys
from safetensors.numpy import load_file
from tiny_models import TINY

from models.config import ModelConfig
from models.hf_config import from_hf
from models.weights.source import from_hf_tensors

NONE: Mapping[str, Any] = MappingProxyType({})
OF_ALL = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
GEMMA3_PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
DEEPSEEK_PARTS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.kv_b_proj": "attn_kv_b",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
}
EXPERT_PARTS = ("gate", "up", "down")


def write(path: Path, architecture: str, keys: Mapping[str, Any], tensors: Mapping[str, Any]):
    writer = gguf.GGUFWriter(path, architecture)
    set_keys(writer, architecture, {key: v for key, v in keys.items() if v is not None})
    for name, values in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def place(name: str) -> tuple[str, str]:
    """Return the number of a layer and the module of a tensor in it."""
    layer, _, module = name.removeprefix("model.layers.").partition(".")
    return layer, module.removesuffix(".weight")


# --- Gemma 3 --------------------------------------------------------------------------------------


def gemma3_source():
    """The tiny Gemma 3, its queries scaled by the width of a head: files cannot say otherwise."""
    keys = json.loads((TINY / "gemma3" / "config.json").read_text())
    keys["text_config"]["query_pre_attn_scalar"] = keys["text_config"]["head_dim"]
    config = from_hf(keys)
    tensors = load_file(TINY / "gemma3" / "model.safetensors")
    texts = {
        name.removeprefix("language_model.").replace("model.language_model.", "model."): tensor
        for name, tensor in tensors.items()
        if "vision" not in name and "projector" not in name
    }
    return from_hf_tensors(config, texts), texts


def gemma3_keys(config: ModelConfig) -> dict[str, Any]:
    gqa = config.attention
    return {
        "context_length": config.max_position,
        "embedding_length": config.d_model,
        "block_count": config.n_layers,
        "feed_forward_length": config.d_ff,
        "attention.head_count": gqa.n_heads,
        "attention.head_count_kv": gqa.n_kv_heads,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "attention.key_length": gqa.head_dim,
        "attention.value_length": gqa.head_dim,
        "attention.sliding_window": gqa.window,
        "attention.sliding_window_pattern": 3,
        "rope.freq_base": 1e6,
        "rope.scaling.type": "linear",
        "rope.scaling.factor": 8.0,
        "vocab_size": config.vocab_size,
        "tokenizer.ggml.bos_token_id": config.bos_token_id,
        "tokenizer.ggml.eos_token_id": config.eos_token_ids[0],
    }


def write_gemma3(path: Path, keys: Mapping[str, Any] = NONE, shift: float = 1.0) -> Path:
    source, texts = gemma3_source()
    tensors = {}
    for name, values in texts.items():
        layer, module = place(name)
        target = OF_ALL.get(name) or f"blk.{layer}.{GEMMA3_PARTS[module]}.weight"
        is_norm = name.endswith("norm.weight")
        tensors[target] = values.astype(np.float32) + np.float32(shift) if is_norm else values
    return write(path, "gemma3", gemma3_keys(source.config) | dict(keys), tensors)


# --- DeepSeek-V3 and Kimi K2 ----------------------------------------------------------------------


def deepseek2_keys(config: ModelConfig, is_split: bool) -> dict[str, Any]:
    mla, moe, yarn = config.attention, config.moe, config.rope.scaling
    keys = {
        "context_length": config.max_position,
        "embedding_length": config.d_model,
        "block_count": config.n_layers,
        "feed_forward_length": config.d_ff,
        "attention.head_count": mla.n_heads,
        "attention.head_count_kv": 1 if is_split else mla.n_heads,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "attention.q_lora_rank": mla.q_lora_rank,
        "attention.kv_lora_rank": mla.kv_lora_rank,
        "rope.dimension_count": mla.rope_head_dim,
        "rope.freq_base": config.rope.theta,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": yarn.factor,
        "rope.scaling.original_context_length": yarn.original_max_position,
        "rope.scaling.yarn_log_multiplier": 0.1 * yarn.mscale_all_dim,
        "rope.scaling.yarn_beta_fast": yarn.beta_fast,
        "rope.scaling.yarn_beta_slow": yarn.beta_slow,
        "expert_count": moe.n_experts,
        "expert_used_count": moe.top_k,
        "expert_shared_count": moe.n_shared,
        "expert_feed_forward_length": moe.d_expert,
        "expert_group_count": moe.n_groups,
        "expert_group_used_count": moe.topk_groups,
        "expert_weights_scale": moe.routed_scaling,
        "expert_weights_norm": moe.normalise or None,
        "expert_gating_func": 2,
        "leading_dense_block_count": moe.n_dense_layers,
        "vocab_size": config.vocab_size,
        "tokenizer.ggml.bos_token_id": config.bos_token_id,
        "tokenizer.ggml.eos_token_id": config.eos_token_ids[0],
    }
    if is_split:
        lengths = {
            "attention.key_length": mla.kv_lora_rank + mla.rope_head_dim,
            "attention.value_length": mla.kv_lora_rank,
            "attention.key_length_mla": mla.query_head_dim,
            "attention.value_length_mla": mla.v_head_dim,
        }
    else:
        lengths = {
            "attention.key_length": mla.query_head_dim,
            "attention.value_length": mla.v_head_dim,
        }
    return keys | lengths


def deepseek2_tensors(folder: str, config: ModelConfig, is_split: bool) -> dict[str, np.ndarray]:
    stored = load_file(TINY / folder / "model.safetensors")
    mla, tensors = config.attention, {}
    for name, values in stored.items():
        layer, module = place(name)
        if name in OF_ALL:
            tensors[OF_ALL[name]] = values
        elif int(layer) >= config.n_layers or ".experts." in module:
            continue
        elif module.endswith("e_score_correction_bias"):
            tensors[f"blk.{layer}.exp_probs_b.bias"] = values
        elif module == "self_attn.kv_b_proj" and is_split:
            both = values.reshape(mla.n_heads, mla.nope_head_dim + mla.v_head_dim, -1)
            keys, heads = np.split(both, [mla.nope_head_dim], axis=1)
            tensors[f"blk.{layer}.attn_k_b.weight"] = keys.swapaxes(1, 2)
            tensors[f"blk.{layer}.attn_v_b.weight"] = heads
        else:
            tensors[f"blk.{layer}.{DEEPSEEK_PARTS[module]}.weight"] = values
    for layer in range(config.moe.n_dense_layers, config.n_layers):
        for part in EXPERT_PARTS:
            names = (
                f"model.layers.{layer}.mlp.experts.{i}.{part}_proj.weight"
                for i in range(config.moe.n_experts)
            )
            tensors[f"blk.{layer}.ffn_{part}_exps.weight"] = np.stack([stored[n] for n in names])
    return tensors


def write_deepseek2(
    path: Path,
    folder: str = "deepseek_v3",
    *,
    is_split: bool = True,
    keys: Mapping[str, Any] = NONE,
    tensors: Mapping[str, Any] = NONE,
) -> Path:
    """Write a tiny DeepSeek-V3; tensors given replace its own, and None leaves one out."""
    config = from_hf(TINY / folder)
    stored = deepseek2_tensors(folder, config, is_split) | dict(tensors)
    stored = {name: values for name, values in stored.items() if values is not None}
    return write(path, "deepseek2", deepseek2_keys(config, is_split) | dict(keys), stored)
