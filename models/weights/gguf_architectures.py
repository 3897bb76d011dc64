"""What GGUF files of each architecture hold: names of tensors, and a Hugging Face configuration.

A file's metadata become the keys of a `config.json` of the same network, which `hf_config` reads:
the rules of a family are kept in one place. Where a key is absent the value is llama.cpp's default
(`src/llama-model.cpp`, second-hand). Not read: mixtures of the llama architecture, rotation that is
scaled by metadata.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from lpu_jax.errors import WeightsError

from ..hf_keys import MOST_LAYERS
from ..rope import Llama3Scaling
from .gguf_metadata import Metadata

_LLAMA_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_QK_NORM = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_DENSE = ("ffn_gate", "ffn_up", "ffn_down")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """How a GGUF architecture names the tensors of a layer, and what it fixes.

    Attributes:
        model_type: of the same network in a Hugging Face configuration.
        layer: `blk.{i}.NAME.weight` to the Hugging Face name of the module.
        biases: those of `layer` that have a `.bias` too.
        experts: the same of tensors that hold one matrix for each expert.
        is_permuted: rows of queries and keys stand in the order of neighbouring pairs.
    """

    model_type: str
    layer: Mapping[str, str]
    biases: tuple[str, ...] = ()
    experts: Mapping[str, str] = field(default_factory=dict)
    is_permuted: bool = False


#: By `general.architecture`.
ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "llama": Architecture(model_type="llama", layer=_LLAMA_LAYER, is_permuted=True),
        "qwen2": Architecture(
            model_type="qwen2", layer=_LLAMA_LAYER, biases=("attn_q", "attn_k", "attn_v")
        ),
        "qwen3": Architecture(model_type="qwen3", layer=_LLAMA_LAYER | _QK_NORM),
        "qwen3moe": Architecture(
            model_type="qwen3_moe",
            layer={name: to for name, to in _LLAMA_LAYER.items() if name not in _DENSE}
            | _QK_NORM
            | {"ffn_gate_inp": "mlp.gate"},
            experts={
                "ffn_gate_exps": "mlp.experts.{}.gate_proj",
                "ffn_up_exps": "mlp.experts.{}.up_proj",
                "ffn_down_exps": "mlp.experts.{}.down_proj",
            },
        ),
    }
)

#: Llama 3.1's rule, which its files give as a table of divisors, one for each pair of a head.
_LLAMA3_FACTORS = (8.0, 32.0)
#: Divisors are float32.
_CLOSE = 1e-6


def config_keys(
    name: str, metadata: Metadata, *, is_tied: bool, divisors: np.ndarray | None
) -> dict[str, Any]:
    """Write the metadata of a file as the keys of a `config.json`.

    Args:
        name: of the architecture.
        metadata: of the file.
        is_tied: whether the file has no matrix of the head.
        divisors: of the frequencies of rotation, if the file has a table of them.

    Raises:
        WeightsError: a key is missing, of the wrong type, or asks for what is not modelled.
    """
    d_model = metadata.integer(f"{name}.embedding_length")
    n_heads = metadata.integer(f"{name}.attention.head_count")
    head_dim = metadata.integer(f"{name}.attention.key_length", default=max(1, d_model // n_heads))
    theta = metadata.float32(f"{name}.rope.freq_base", default=10_000.0)
    _check_heads(name, metadata, head_dim)
    _check_rotation(name, metadata)
    bos, eos = (metadata.token_id(f"tokenizer.ggml.{end}_token_id") for end in ("bos", "eos"))
    keys = {
        "model_type": ARCHITECTURES[name].model_type,
        "num_hidden_layers": metadata.integer(f"{name}.block_count", most=MOST_LAYERS),
        "hidden_size": d_model,
        "intermediate_size": metadata.integer(f"{name}.feed_forward_length"),
        "num_attention_heads": n_heads,
        "num_key_value_heads": metadata.integer(f"{name}.attention.head_count_kv", default=n_heads),
        "head_dim": head_dim,
        "vocab_size": _vocab_size(name, metadata),
        "max_position_embeddings": metadata.integer(f"{name}.context_length"),
        "rms_norm_eps": metadata.float32(f"{name}.attention.layer_norm_rms_epsilon"),
        "rope_theta": theta,
        "rope_scaling": _scaling(metadata, theta, head_dim, divisors),
        "tie_word_embeddings": is_tied,
        "bos_token_id": bos,
        "eos_token_id": eos,
    }
    if ARCHITECTURES[name].experts:
        keys |= _expert_keys(name, metadata)
    else:
        metadata.must_be(f"{name}.expert_count", 0)
        metadata.must_be(f"{name}.expert_used_count", 0)
    return keys


def _check_heads(name: str, metadata: Metadata, head_dim: int) -> None:
    """Refuse heads whose values are of other lengths, or of which a part is rotated."""
    for key in ("attention.value_length", "rope.dimension_count"):
        metadata.must_be(f"{name}.{key}", head_dim)
    metadata.must_be(f"{name}.attention.causal", True)


def _check_rotation(name: str, metadata: Metadata) -> None:
    """Refuse rotation that metadata scale: where no rule is named, llama.cpp's is "linear"."""
    metadata.must_be(f"{name}.rope.scaling.type", "none")
    metadata.must_be(f"{name}.rope.scaling.factor", 0.0, 1.0)
    metadata.must_be(f"{name}.rope.scale_linear", 0.0, 1.0)
    metadata.must_be(f"{name}.rope.scaling.attn_factor", 1.0)
    for harmless in ("finetuned", "original_context_length"):  # of a rule that is not in use
        metadata.get(f"{name}.rope.scaling.{harmless}")


def _vocab_size(name: str, metadata: Metadata) -> int:
    """Return the size of the vocabulary: said, or that of the tokenizer's list."""
    key = f"{name}.vocab_size"
    if metadata.get(key) is not None:
        return metadata.integer(key)
    return len(metadata.texts("tokenizer.ggml.tokens", "a list of tokens"))


def _expert_keys(name: str, metadata: Metadata) -> dict[str, Any]:
    metadata.must_be(f"{name}.expert_shared_count", 0)
    metadata.must_be(f"{name}.expert_weights_scale", 0.0, 1.0)
    metadata.must_be(f"{name}.expert_weights_norm", True)
    return {
        "num_experts": metadata.integer(f"{name}.expert_count"),
        "num_experts_per_tok": metadata.integer(f"{name}.expert_used_count"),
        "moe_intermediate_size": metadata.integer(f"{name}.expert_feed_forward_length"),
        "norm_topk_prob": True,  # as llama.cpp does for this architecture
    }


def _scaling(
    metadata: Metadata, theta: float, head_dim: int, divisors: np.ndarray | None
) -> dict[str, Any] | None:
    """Find the rule behind a table of divisors; only Llama 3.1's has one."""
    if divisors is None:
        return None
    frequencies = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    for factor in _LLAMA3_FACTORS:
        numbers = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
        rule = Llama3Scaling(factor=factor, original_max_position=8192, **numbers)
        wanted = frequencies / rule.apply(frequencies)
        if divisors.shape == wanted.shape and np.allclose(divisors, wanted, rtol=_CLOSE, atol=0):
            original = {"original_max_position_embeddings": rule.original_max_position}
            return {"rope_type": "llama3", "factor": factor, **numbers, **original}
    raise WeightsError(
        f"{metadata.path}: tensor 'rope_freqs.weight' must be the table of Llama 3.1's rule with "
        f"a factor of {' or '.join(f'{f:g}' for f in _LLAMA3_FACTORS)}, the only one supported."
    )
