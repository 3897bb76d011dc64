"""GGUF files of a tiny checkpoint, by the format's own writer."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file
from tiny_models import TINY

from models.hf_config import from_hf

CONFIG = from_hf(TINY / "llama_tied")
TENSORS = load_file(TINY / "llama_tied" / "model.safetensors")
PARTS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


def gguf_name(name: str) -> str:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    layer, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
    return f"blk.{layer}.{PARTS[part]}.weight"


def permuted(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """Copy of llama.cpp's converter (`LlamaModel.permute`)."""
    rows, columns = weight.shape
    split = weight.reshape(n_heads, 2, rows // n_heads // 2, columns)
    return split.swapaxes(1, 2).reshape(rows, columns)


def write_gguf(
    path: Path,
    architecture: str = "llama",
    leave_out: str = "",
    format_name: str = "Q8_0",
    big_endian: bool = False,
    keys: Mapping[str, Any] = MappingProxyType({}),
    **extra,
) -> Path:
    """Write the tiny checkpoint as GGUF, its matrices in `format_name` where 32 divides a row.

    `keys` replace keys of the metadata, by name behind the architecture's; None leaves one out.
    """
    storage = gguf.GGMLQuantizationType[format_name]
    endian = gguf.GGUFEndian.BIG if big_endian else gguf.GGUFEndian.LITTLE
    writer = gguf.GGUFWriter(path, architecture, endianess=endian)
    writer.add_chat_template(CHAT_TEMPLATE)
    writer.add_block_count(CONFIG.n_layers)
    writer.add_context_length(CONFIG.max_position)
    writer.add_embedding_length(CONFIG.d_model)
    writer.add_feed_forward_length(CONFIG.d_ff)
    writer.add_head_count(CONFIG.attention.n_heads)
    writer.add_head_count_kv(CONFIG.attention.n_kv_heads)
    writer.add_key_length(CONFIG.attention.head_dim)
    writer.add_rope_freq_base(CONFIG.rope.theta)
    writer.add_layer_norm_rms_eps(CONFIG.norm_eps)
    writer.add_vocab_size(CONFIG.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([f"token{number}" for number in range(CONFIG.vocab_size)])
    writer.add_token_types([1] * CONFIG.vocab_size)
    writer.add_token_merges(["a b"])
    set_keys(writer, architecture, keys)
    for name, tensor in (TENSORS | extra).items():
        values = tensor
        if name.endswith("q_proj.weight"):
            values = permuted(tensor, CONFIG.attention.n_heads)
        elif name.endswith("k_proj.weight"):
            values = permuted(tensor, CONFIG.attention.n_kv_heads)
        if name == leave_out:
            continue
        target = gguf_name(name) if name in TENSORS else name
        if values.ndim == 2 and values.shape[1] % 32 == 0:
            writer.add_tensor(target, gguf.quants.quantize(values, storage), raw_dtype=storage)
        else:
            writer.add_tensor(target, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def set_keys(writer: gguf.GGUFWriter, architecture: str, keys: Mapping[str, Any]) -> None:
    """Set keys of the metadata to whole numbers, numbers, booleans or strings."""
    kinds = gguf.GGUFValueType
    types = {bool: kinds.BOOL, int: kinds.UINT32, float: kinds.FLOAT32, str: kinds.STRING}
    for name, value in keys.items():
        key = name if name.startswith("tokenizer.") else f"{architecture}.{name}"
        writer.kv_data[0].pop(key, None)
        if value is not None:
            writer.add_key_value(key, value, types[type(value)])
