"""What a Hugging Face model type fixes without saying so in its `config.json`, names included.

One row per model type, read off the code that the type names: a type of known parts needs no more.
Holds no size. Not here: types with sparse layers other than those of an index over latents or over
blocks, or with recurrent ones other than Gated DeltaNet, Kimi Delta Attention and Mamba2, which
this program does not model.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from .hf_local_families import (
    EXAONE4,
    GEMMA2,
    GEMMA3,
    GEMMA4,
    LLAMA4,
    MIMO_V2,
    MINIMAX_M3,
    OLMO3,
    STEP,
)
from .hf_recurrent_families import (
    BAILING_HYBRID,
    KIMI_K3,
    KIMI_LINEAR,
    NEMOTRON_H,
    QWEN_3_5,
    QWEN_3_5_MOE,
    QWEN_NEXT,
)
from .hf_rules import Activation as Activation
from .hf_rules import ExpertRules as ExpertRules
from .hf_rules import FamilyRules as FamilyRules
from .hf_rules import Scoring as Scoring
from .hf_rules import up_matrices as up_matrices
from .tensor_names import TensorNames

_DEEPSEEK = FamilyRules(
    family="deepseek",
    architecture="DeepseekV3ForCausalLM",
    is_latent=True,
    is_interleaved=True,
    experts=ExpertRules(scoring="sigmoid", is_deepseek_like=True),
)
#: Source: models/modeling_bailing_moe_v2.py of github.com/inclusionAI/Ling-V2; for the tensors,
#: which transformers lacks, that of Ring-V2 and the converters of llama.cpp (second-hand).
_BAILING = FamilyRules(
    family="bailing_moe",
    architecture="BailingMoeV2ForCausalLM",
    is_partial=True,
    qk_norm="file",
    experts=ExpertRules(scoring="sigmoid", is_normalised=True, is_deepseek_like=True),
    names=TensorNames(
        embedding="model.word_embeddings",
        qkv=("attention.query_key_value",),
        q_norm="attention.query_layernorm",
        k_norm="attention.key_layernorm",
        output="attention.dense",
        correction_bias="mlp.gate.expert_bias",
    ),
)

_ROTATION = {"rope_theta": 10_000.0}
_NORM = {"rms_norm_eps": 1e-6}
_QWEN_WINDOWS = {"use_sliding_window": False, "sliding_window": 4096}

_QWEN2 = FamilyRules(
    family="qwen2",
    architecture="Qwen2ForCausalLM",
    biases="qkv",
    are_biases_fixed=True,
    windows="late",
    has_window_switch=True,
    defaults=_ROTATION
    | _NORM
    | _QWEN_WINDOWS
    | {"num_key_value_heads": 32, "max_window_layers": 28},
)

#: The text part, whose experts are fused.
_QWEN_VL = FamilyRules(
    family="qwen3_vl",
    architecture="Qwen3VLForConditionalGeneration",
    biases="all",
    qk_norm="yes",
    is_scaled=False,
    has_picture_axes=True,
    defaults=_NORM | {"rope_theta": 5e5, "num_key_value_heads": 32, "head_dim": 128},
    names=TensorNames(
        embedding="model.language_model.embed_tokens",
        final_norm="model.language_model.norm",
        layer="model.language_model.layers.{}.",
        expert="mlp.experts.",
        do_columns_alternate=False,
        beside=("model.visual.",),
    ),
)

#: By `model_type`. Source, where not said: the classes of Hugging Face transformers 5.24;
#: for tensor names, released files too. The classes of DeepSeek's types there and in the files'
#: own code have different defaults, so none are taken.
FAMILIES: Mapping[str, FamilyRules] = MappingProxyType(
    {
        "llama": FamilyRules(
            family="llama",
            architecture="LlamaForCausalLM",
            biases="all",
            defaults=_ROTATION | _NORM,
        ),
        "mistral": FamilyRules(
            family="mistral",
            architecture="MistralForCausalLM",
            windows="all",
            defaults=_ROTATION | _NORM | {"num_key_value_heads": 8, "sliding_window": 4096},
        ),
        "qwen2": _QWEN2,
        # Has windows too, on other layers; none is released with them.
        "qwen2_moe": replace(
            _QWEN2,
            family="qwen2_moe",
            architecture="Qwen2MoeForCausalLM",
            windows="none",
            experts=ExpertRules(scoring="softmax", has_gated_shared=True),
            defaults=_ROTATION
            | _NORM
            | _QWEN_WINDOWS
            | {"num_key_value_heads": 16, "max_window_layers": 28, "norm_topk_prob": False},
            names=TensorNames(shared="mlp.shared_expert."),
        ),
        # Qwen2's network (`MiMoForCausalLM` of its files is a Qwen2 with prediction layers).
        "mimo": replace(
            _QWEN2,
            family="mimo",
            architecture="MiMoForCausalLM",
            names=TensorNames(beside=("model.mtp_layers.",)),
        ),
        "qwen3": FamilyRules(
            family="qwen3",
            architecture="Qwen3ForCausalLM",
            biases="all",
            qk_norm="yes",
            windows="late",
            has_window_switch=True,
            defaults=_ROTATION
            | _NORM
            | _QWEN_WINDOWS
            | {"num_key_value_heads": 32, "head_dim": 128, "max_window_layers": 28},
        ),
        "qwen3_moe": FamilyRules(
            family="qwen3_moe",
            architecture="Qwen3MoeForCausalLM",
            biases="all",
            qk_norm="yes",
            windows="all",
            has_window_switch=True,
            experts=ExpertRules(scoring="softmax"),
            defaults=_ROTATION
            | _NORM
            | _QWEN_WINDOWS
            | {"num_key_value_heads": 4, "norm_topk_prob": False},
        ),
        "qwen3_vl_text": _QWEN_VL,
        # Its class divides weights by their sum, whatever `norm_topk_prob` says.
        "qwen3_vl_moe_text": replace(
            _QWEN_VL,
            architecture="Qwen3VLMoeForConditionalGeneration",
            experts=ExpertRules(scoring="softmax", is_normalised=True),
            defaults=_NORM | {"rope_theta": 5e5, "num_key_value_heads": 16},
        ),
        "qwen3_next": QWEN_NEXT,
        "qwen3_5_text": QWEN_3_5,
        "qwen3_5_moe_text": QWEN_3_5_MOE,
        "kimi_linear": KIMI_LINEAR,
        "kimi_k3_text": KIMI_K3,
        "bailing_hybrid": BAILING_HYBRID,
        "smollm3": FamilyRules(
            family="smollm3",
            architecture="SmolLM3ForCausalLM",
            biases="all",
            has_unrotated_layers=True,
            has_window_switch=True,
            defaults=_NORM
            | {
                "num_key_value_heads": 4,
                "rope_theta": 2e6,
                "tie_word_embeddings": True,
                "no_rope_layer_interval": 4,
            },
        ),
        "granite": FamilyRules(
            family="granite",
            architecture="GraniteForCausalLM",
            biases="all",
            has_multipliers=True,
            defaults=_ROTATION
            | _NORM
            | {
                "embedding_multiplier": 1.0,
                "residual_multiplier": 1.0,
                "attention_multiplier": 1.0,
                "logits_scaling": 1.0,
            },
        ),
        "gemma2": GEMMA2,
        "gemma3_text": GEMMA3,
        "gemma4_text": GEMMA4,
        "llama4_text": LLAMA4,
        "mimo_v2_flash": MIMO_V2,
        "step3p5": STEP,
        "step3p7": STEP,
        "phi3": FamilyRules(
            family="phi3",
            architecture="Phi3ForCausalLM",
            is_partial=True,
            is_scaled=False,
            windows="all",
            defaults=_ROTATION | {"rms_norm_eps": 1e-5, "partial_rotary_factor": 1.0},
            names=TensorNames(
                qkv=("self_attn.qkv_proj",), gate_up_down=("gate_up_proj", "down_proj")
            ),
        ),
        "mixtral": FamilyRules(
            family="mixtral",
            architecture="MixtralForCausalLM",
            windows="all",
            experts=ExpertRules(scoring="softmax", width="intermediate_size", is_normalised=True),
            defaults={"num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e6},
            names=TensorNames(
                router="block_sparse_moe.gate",
                expert="block_sparse_moe.experts.{}.",
                expert_gate_up_down=("w1", "w3", "w2"),
            ),
        ),
        "deepseek_v3": _DEEPSEEK,
        "kimi_k2": _DEEPSEEK,
        "deepseek_v32": replace(
            _DEEPSEEK,
            family="deepseek_v32",
            architecture="DeepseekV32ForCausalLM",
            has_index=True,
            names=TensorNames(is_index_halved=True),
        ),
        "glm_moe_dsa": replace(
            _DEEPSEEK,
            family="glm_moe_dsa",
            architecture="GlmMoeDsaForCausalLM",
            has_index=True,
            has_followers=True,
        ),
        "gpt_oss": FamilyRules(
            family="gpt_oss",
            architecture="GptOssForCausalLM",
            biases="all",
            has_sinks=True,
            windows="even",
            experts=ExpertRules(
                scoring="softmax_after_top_k",
                width="intermediate_size",
                is_normalised=True,
                has_biases=True,
                is_clamped=True,
            ),
            defaults={
                "num_key_value_heads": 8,
                "head_dim": 64,
                "attention_bias": True,
                "sliding_window": 128,
                "rms_norm_eps": 1e-5,
                "swiglu_limit": 7.0,
                "swiglu_alpha": 1.702,
                "rope_theta": 150_000.0,
            },
            scaling_by_default={
                "rope_type": "yarn",
                "factor": 32.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 4096,
            },
            names=TensorNames(router="mlp.router", expert="mlp.experts."),
        ),
        "glm4_moe": FamilyRules(
            family="glm4_moe",
            architecture="Glm4MoeForCausalLM",
            is_partial=True,
            biases="qkv",
            qk_norm="file",
            experts=ExpertRules(scoring="sigmoid", is_deepseek_like=True),
            defaults=_ROTATION
            | {
                "num_key_value_heads": 8,
                "rms_norm_eps": 1e-5,
                "partial_rotary_factor": 0.5,
                "use_qk_norm": False,
            },
        ),
        "glm4": FamilyRules(
            family="glm4",
            architecture="Glm4ForCausalLM",
            is_partial=True,
            is_interleaved=True,
            biases="qkv",
            norms_results=True,
            defaults=_ROTATION
            | {
                "num_key_value_heads": 2,
                "head_dim": 128,
                "rms_norm_eps": 1.5625e-7,
                "partial_rotary_factor": 0.5,
                "attention_bias": True,
            },
            names=TensorNames(
                attention_result_norm="post_self_attn_layernorm",
                mlp_result_norm="post_mlp_layernorm",
                gate_up_down=("gate_up_proj", "down_proj"),
            ),
        ),
        "olmo2": FamilyRules(
            family="olmo2",
            architecture="Olmo2ForCausalLM",
            biases="all",
            qk_norm="joint",
            norms_inputs=False,
            norms_results=True,
            defaults=_ROTATION | {"rms_norm_eps": 1e-5},
        ),
        "olmo3": OLMO3,
        "exaone4": EXAONE4,
        "minimax_m2": FamilyRules(
            family="minimax_m2",
            architecture="MiniMaxM2ForCausalLM",
            is_partial=True,
            qk_norm="joint",
            experts=ExpertRules(
                scoring="sigmoid", width="intermediate_size", is_normalised=True, is_corrected=True
            ),
            defaults=_NORM | {"num_key_value_heads": 8, "head_dim": 128, "rope_theta": 5e6},
            names=TensorNames(
                router="block_sparse_moe.gate",
                correction_bias="block_sparse_moe.e_score_correction_bias",
                expert="block_sparse_moe.experts.{}.",
                expert_gate_up_down=("w1", "w3", "w2"),
            ),
        ),
        "minimax_m3": MINIMAX_M3,
        "minimax_m3_vl_text": MINIMAX_M3,
        "nemotron_h": NEMOTRON_H,
        "bailing_moe": _BAILING,
        "bailing_moe_v2": _BAILING,
    }
)

#: By family.
TENSOR_NAMES: Mapping[str, TensorNames] = MappingProxyType(
    {rules.family: rules.names for rules in FAMILIES.values()}
)

#: Model types that wrap a model of the table above in `text_config`, beside a vision tower.
WRAPPERS = (
    *("kimi_k25", "kimi_k3", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"),
    *("gemma3", "gemma4", "llama4", "step3p7", "minimax_m3_vl"),
)
#: What is inside of wrappers whose text part may not say it.
TYPES_INSIDE: Mapping[str, str] = MappingProxyType({"minimax_m3_vl": "minimax_m3_vl_text"})
