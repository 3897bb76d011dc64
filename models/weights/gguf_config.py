"""Write the metadata of a GGUF file as the keys of a `config.json` of the same network.

`hf_config` reads these: the rules of a family are kept in one place. Where a key is absent the
value is llama.cpp's default (`src/llama-model.cpp`, second-hand). Not read: rotation that is scaled
by metadata, but for Gemma 3's and DeepSeek's.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lpu_jax.errors import WeightsError

from ..hf_keys import MOST_LAYERS
from ..rope import Llama3Scaling
from .gguf_architectures import ARCHITECTURES
from .gguf_metadata import Metadata

#: Llama 3.1's rule, which its files give as a table of divisors, one for each pair of a head.
_LLAMA3_FACTORS = (8.0, 32.0)
#: Divisors are float32.
_CLOSE = 1e-6
#: Layers of Gemma 3 27B, by which llama.cpp knows it.
_LAYERS_OF_27B = 62
#: `expert_gating_func` of a router that takes the sigmoid of its logits.
_SIGMOID = 2


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
    keys = _common(name, metadata) | {"tie_word_embeddings": is_tied}
    if name in _OWN_RULES:
        if divisors is not None:
            raise WeightsError(
                f"{metadata.path}: tensor 'rope_freqs.weight' does not go with a {name} model."
            )
        return keys | _OWN_RULES[name](metadata, keys)
    head_dim = _head_dim(name, metadata, keys)
    theta = _theta(name, metadata)
    _check_heads(name, metadata, head_dim)
    _check_rotation(name, metadata)
    keys |= {
        "num_key_value_heads": _kv_heads(name, metadata, keys),
        "head_dim": head_dim,
        "rope_theta": theta,
        "rope_scaling": _scaling(metadata, theta, head_dim, divisors),
    }
    if ARCHITECTURES[name].experts:
        return keys | _expert_keys(name, metadata)
    _check_no_experts(name, metadata)
    return keys


def _common(name: str, metadata: Metadata) -> dict[str, Any]:
    """Return what the files of all architectures say alike."""
    bos, eos = (metadata.token_id(f"tokenizer.ggml.{end}_token_id") for end in ("bos", "eos"))
    return {
        "model_type": ARCHITECTURES[name].model_type,
        "num_hidden_layers": metadata.integer(f"{name}.block_count", most=MOST_LAYERS),
        "hidden_size": metadata.integer(f"{name}.embedding_length"),
        "intermediate_size": metadata.integer(f"{name}.feed_forward_length"),
        "num_attention_heads": metadata.integer(f"{name}.attention.head_count"),
        "vocab_size": _vocab_size(name, metadata),
        "max_position_embeddings": metadata.integer(f"{name}.context_length"),
        "rms_norm_eps": metadata.float32(f"{name}.attention.layer_norm_rms_epsilon"),
        "bos_token_id": bos,
        "eos_token_id": eos,
    }


def _head_dim(name: str, metadata: Metadata, keys: Mapping[str, Any]) -> int:
    """Return the width of a head, by default an equal share of the model's width."""
    share = max(1, keys["hidden_size"] // keys["num_attention_heads"])
    return metadata.integer(f"{name}.attention.key_length", default=share)


def _kv_heads(name: str, metadata: Metadata, keys: Mapping[str, Any]) -> int:
    default = keys["num_attention_heads"]
    return metadata.integer(f"{name}.attention.head_count_kv", default=default)


def _theta(name: str, metadata: Metadata) -> float:
    return metadata.float32(f"{name}.rope.freq_base", default=10_000.0)


def _gemma3_keys(metadata: Metadata, keys: Mapping[str, Any]) -> dict[str, Any]:
    """Read what Gemma 3 adds.

    Without a window no layer slides. Files do not say by what queries are scaled: by the width of a
    head, but in the 27B model, which is known by its 62 layers, by a share of the model's width.
    Source: `llama_model_gemma3::load_arch_hparams`.
    """
    name = "gemma3"
    head_dim = _head_dim(name, metadata, keys)
    _check_heads(name, metadata, head_dim)
    _check_no_experts(name, metadata)
    is_27b = keys["num_hidden_layers"] == _LAYERS_OF_27B
    share = keys["hidden_size"] // keys["num_attention_heads"]
    window = metadata.get(f"{name}.attention.sliding_window") or None
    if window is not None:
        window = metadata.integer(f"{name}.attention.sliding_window")
    period = metadata.integer(f"{name}.attention.sliding_window_pattern", default=6)
    near = {
        "rope_type": "default",
        "rope_theta": metadata.float32(f"{name}.rope.freq_base_swa", default=10_000.0),
    }
    factor = _linear_factor(name, metadata)
    far: dict[str, Any] = {"rope_type": "default"}
    if factor is not None:
        far = {"rope_type": "linear", "factor": factor}
    return {
        "num_key_value_heads": _kv_heads(name, metadata, keys),
        "head_dim": head_dim,
        "query_pre_attn_scalar": share if is_27b else head_dim,
        "sliding_window": window,
        "sliding_window_pattern": None if window is None else period,
        "rope_parameters": {
            "full_attention": far | {"rope_theta": _theta(name, metadata)},
            "sliding_attention": near,
        },
    }


def _deepseek2_keys(metadata: Metadata, keys: Mapping[str, Any]) -> dict[str, Any]:
    """Read what DeepSeek-V3 and Kimi K2 add.

    `key_length` is the width of a head, in files whose keys are made of the latent for all heads in
    one matrix; else that of the latent with the rotated part, and `key_length_mla` has the former.
    Source: `DeepseekV2Model` of llama.cpp's converter.
    """
    name = "deepseek2"
    of_heads = f"{name}.attention"
    rank = metadata.integer(f"{of_heads}.kv_lora_rank")
    rotated = metadata.integer(f"{name}.rope.dimension_count")
    is_mla = metadata.get(f"{of_heads}.key_length_mla") is not None
    suffix = "_mla" if is_mla else ""
    head_dim = metadata.integer(f"{of_heads}.key_length{suffix}")
    value_dim = metadata.integer(f"{of_heads}.value_length{suffix}")
    if head_dim <= rotated:
        wanted = f"more than the rotated part of a head, {rotated}"
        raise metadata.complain(f"{of_heads}.key_length{suffix}", wanted, head_dim)
    if is_mla:
        metadata.must_be(f"{of_heads}.key_length", rank + rotated)
        metadata.must_be(f"{of_heads}.value_length", rank)
    metadata.must_be(f"{of_heads}.head_count_kv", 1 if is_mla else keys["num_attention_heads"])
    metadata.must_be(f"{of_heads}.causal", True)
    q_rank = f"{of_heads}.q_lora_rank"
    has_latent_queries = bool(metadata.get(q_rank))
    return {
        "q_lora_rank": metadata.integer(q_rank) if has_latent_queries else None,
        "kv_lora_rank": rank,
        "qk_nope_head_dim": head_dim - rotated,
        "qk_rope_head_dim": rotated,
        "v_head_dim": value_dim,
        "rope_theta": _theta(name, metadata),
        "rope_scaling": _yarn(name, metadata, keys["max_position_embeddings"]),
        **_deepseek2_experts(name, metadata),
    }


def _deepseek2_experts(name: str, metadata: Metadata) -> dict[str, Any]:
    """Read a router that chooses by sigmoid; llama.cpp's default is the softmax of DeepSeek-V2."""
    gating = f"{name}.expert_gating_func"
    if metadata.get(gating) != _SIGMOID:
        wanted = f"{_SIGMOID}, for a sigmoid, which is all that is supported"
        raise metadata.complain(gating, wanted, metadata.get(gating))
    scale, norm = f"{name}.expert_weights_scale", f"{name}.expert_weights_norm"
    metadata.must_be(norm, True, False)
    return {
        "n_routed_experts": metadata.integer(f"{name}.expert_count"),
        "num_experts_per_tok": metadata.integer(f"{name}.expert_used_count"),
        "n_shared_experts": metadata.integer(f"{name}.expert_shared_count"),
        "moe_intermediate_size": metadata.integer(f"{name}.expert_feed_forward_length"),
        "first_k_dense_replace": _whole_or_zero(metadata, f"{name}.leading_dense_block_count"),
        "n_group": _whole_or_zero(metadata, f"{name}.expert_group_count") or 1,
        "topk_group": _whole_or_zero(metadata, f"{name}.expert_group_used_count") or 1,
        "routed_scaling_factor": metadata.float32(scale) if metadata.get(scale) else 1.0,
        "norm_topk_prob": bool(metadata.get(norm)),
    }


def _whole_or_zero(metadata: Metadata, key: str) -> int:
    """Return a whole number; 0 is as good as none."""
    value = metadata.get(key)
    is_zero = value is None or (value == 0 and type(value) is int)
    return 0 if is_zero else metadata.integer(key)


def _yarn(name: str, metadata: Metadata, n_positions: int) -> dict[str, Any] | None:
    """Read DeepSeek's YaRN, of which files store a tenth of `mscale_all_dim`.

    llama.cpp takes `mscale` for equal to it, so that cos and sin are not scaled; without the number
    it would scale both scores and cos and sin, as no released network does.
    Source: `llm_build_deepseek2`, and `llama_context` of llama.cpp.
    """
    scaling = f"{name}.rope.scaling"
    metadata.get(f"{scaling}.finetuned")  # how the model came to be
    if metadata.get(f"{scaling}.type") != "yarn":
        _check_rotation(name, metadata)
        for key in ("log_multiplier", "beta_fast", "beta_slow"):  # of a rule that is not in use
            metadata.get(f"{scaling}.yarn_{key}")
        return None
    for key in ("attn_factor", "yarn_attn_factor", "yarn_ext_factor"):
        metadata.must_be(f"{scaling}.{key}", 1.0)
    tenth = metadata.float32(f"{scaling}.yarn_log_multiplier")
    mscale = round(10 * tenth, 6)  # the nearest decimal to a tenth in float32, times ten
    return {
        "type": "yarn",
        "factor": metadata.float32(f"{scaling}.factor"),
        "original_max_position_embeddings": metadata.integer(
            f"{scaling}.original_context_length", default=n_positions
        ),
        "beta_fast": metadata.float32(f"{scaling}.yarn_beta_fast", default=32.0),
        "beta_slow": metadata.float32(f"{scaling}.yarn_beta_slow", default=1.0),
        "mscale": mscale,
        "mscale_all_dim": mscale,
    }


def _linear_factor(name: str, metadata: Metadata) -> float | None:
    """Return by how much positions are divided; where no rule is named, it is "linear"."""
    scaling = f"{name}.rope.scaling"
    metadata.must_be(f"{scaling}.type", "none", "linear")
    metadata.must_be(f"{name}.rope.scale_linear", 0.0, 1.0)
    metadata.must_be(f"{scaling}.attn_factor", 1.0)
    for harmless in ("finetuned", "original_context_length"):
        metadata.get(f"{scaling}.{harmless}")
    factor = metadata.get(f"{scaling}.factor")
    if metadata.get(f"{scaling}.type") == "none" or factor is None or factor in (0.0, 1.0):
        return None
    return metadata.float32(f"{scaling}.factor")


def _check_no_experts(name: str, metadata: Metadata) -> None:
    metadata.must_be(f"{name}.expert_count", 0)
    metadata.must_be(f"{name}.expert_used_count", 0)


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


#: Architectures of which more than the common rules is read, by name.
_OWN_RULES: Mapping[str, Callable[[Metadata, Mapping[str, Any]], dict[str, Any]]] = {
    "gemma3": _gemma3_keys,
    "deepseek2": _deepseek2_keys,
}
