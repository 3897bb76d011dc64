"""Configurations of the tiny models that `make_oracle.py` makes, one for each family.

Small enough to commit, yet with every feature of the family in a size that shows a mistake: heads
wider than `hidden_size / num_attention_heads`, a window shorter than the prompt, a clamp that
clamps, groups of experts of which some are dropped.
"""

from tiny_common import COMMON, GROUPED, WIDE_HEADS, Fields
from tiny_local import (
    EXAONE4,
    GEMMA2,
    GEMMA3,
    GEMMA4,
    GEMMA4_MOE,
    LLAMA4,
    MIMO_V2,
    MINIMAX_M3,
    OLMO3,
    STEP,
)

LLAMA: Fields = GROUPED | {
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}
LLAMA_TIED: Fields = COMMON | {
    "num_hidden_layers": 1,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}
#: The first layer sees all keys, the second the last ones.
QWEN2: Fields = GROUPED | {
    "use_sliding_window": True,
    "sliding_window": 5,
    "max_window_layers": 1,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}
#: A shared expert three times as wide as the others; weights are as the softmax gives them.
QWEN2_MOE: Fields = GROUPED | {
    "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 24,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "norm_topk_prob": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}
#: Qwen2's class computes what MiMo's does: it is a Qwen2 beside its prediction layers.
MIMO: Fields = GROUPED | {
    "head_dim": 16,
    "rope_parameters": {"rope_type": "default", "rope_theta": 6.4e5},
}
#: Neighbours of the first half of a head turn; norms before and behind blocks.
GLM4: Fields = GROUPED | {
    "head_dim": 16,
    "attention_bias": True,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e4,
        "partial_rotary_factor": 0.5,
    },
}
#: No norm before a block, one of all heads together, and one behind a block.
OLMO2: Fields = GROUPED | {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
MISTRAL: Fields = GROUPED | {
    "head_dim": 16,
    "sliding_window": 5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}
#: The second of three layers has no rotation.
SMOLLM3: Fields = GROUPED | {
    "num_hidden_layers": 3,
    "no_rope_layer_interval": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}
#: Multipliers far from one; `attention_multiplier` is not one over the root of a head's width.
GRANITE: Fields = GROUPED | {
    "attention_bias": True,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.4,
    "attention_multiplier": 0.2,
    "logits_scaling": 0.6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}
PHI3: Fields = GROUPED | {
    "sliding_window": None,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e4,
        "partial_rotary_factor": 0.5,
    },
}
QWEN3: Fields = WIDE_HEADS | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
QWEN3_MOE: Fields = QWEN3 | {
    "moe_intermediate_size": 8,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
#: A tower for pictures, which is left out; the text has positions on three equal axes.
QWEN3_VL: Fields = {
    "text_config": WIDE_HEADS
    | {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [4, 2, 2],
            "mrope_interleaved": True,
        }
    },
    "vision_config": {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 8,
        "num_heads": 2,
        "patch_size": 2,
        "out_hidden_size": 32,
        "num_position_embeddings": 4,
        "deepstack_visual_indexes": [0],
    },
    "image_token_id": 61,
    "video_token_id": 62,
    "vision_start_token_id": 63,
    "vision_end_token_id": 60,
    "tie_word_embeddings": False,
}
QWEN3_VL_MOE: Fields = QWEN3_VL | {
    "text_config": QWEN3_VL["text_config"]
    | {
        "moe_intermediate_size": 8,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
}
#: Two recurrent layers, of two key heads with two value heads each, around one of attention, which
#: is the second of each interval of two; a shared expert twice as wide as the others.
QWEN3_NEXT: Fields = WIDE_HEADS | {
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "full_attention_interval": 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "linear_conv_kernel_dim": 4,
    "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 16,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "norm_topk_prob": True,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e6,
        "partial_rotary_factor": 0.25,
    },
}
_QWEN3_5_TEXT: Fields = {
    key: value
    for key, value in QWEN3_NEXT.items()
    if key not in ("norm_topk_prob", "moe_intermediate_size", "full_attention_interval")
    and "expert" not in key
} | {
    "rope_parameters": QWEN3_NEXT["rope_parameters"]
    | {"mrope_section": [1, 1, 0], "mrope_interleaved": True}
}
QWEN3_5: Fields = QWEN3_VL | {"text_config": _QWEN3_5_TEXT}
QWEN3_5_MOE: Fields = QWEN3_VL | {
    "text_config": {k: v for k, v in _QWEN3_5_TEXT.items() if k != "intermediate_size"}
    | {
        "moe_intermediate_size": 8,
        "shared_expert_intermediate_size": 8,
        "num_experts": 8,
        "num_experts_per_tok": 3,
    },
}
#: Mamba2, attention and MLPs one by one; two groups of two heads each. Prompts pass three chunks.
#: Steps are kept from a limit, which the class takes from `time_step_min`.
NEMOTRON_H: Fields = GROUPED | {
    "num_hidden_layers": 5,
    "layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp", "linear_attention"],
    "head_dim": 16,
    "layer_norm_epsilon": 1e-5,
    "mlp_hidden_act": "relu2",
    "mamba_num_heads": 4,
    "mamba_head_dim": 12,
    "ssm_state_size": 8,
    "n_groups": 2,
    "conv_kernel": 4,
    "chunk_size": 8,
    "time_step_min": 0.6,
    "time_step_limit": [0.6, 1e308],
}
#: Experts work in a space half as wide; the shared one is twice as wide as another.
NEMOTRON_H_MOE: Fields = NEMOTRON_H | {
    "layers_block_type": ["linear_attention", "moe", "full_attention", "moe", "mlp"],
    "moe_intermediate_size": 8,
    "moe_shared_expert_intermediate_size": 16,
    "moe_latent_size": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "routed_scaling_factor": 2.5,
    # As released, there is no limit.
    "time_step_min": 1e-9,
    "time_step_limit": [0.0, 1e308],
}
MIXTRAL: Fields = GROUPED | {
    "intermediate_size": 12,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}
YARN: Fields = {
    "rope_type": "yarn",
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 64,
}
LATENT: Fields = COMMON | {
    "intermediate_size": 24,
    "moe_intermediate_size": 4,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "first_k_dense_replace": 1,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "rope_interleave": True,
    "rms_norm_eps": 1e-5,
}
DEEPSEEK: Fields = LATENT | {
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
    "rope_parameters": YARN | {"rope_theta": 1e4, "factor": 40.0, "beta_fast": 32, "beta_slow": 1},
}
#: Of 20 positions a token attends to 6. So many index heads that no two scores are both zero.
INDEX: Fields = {"index_n_heads": 8, "index_head_dim": 16, "index_topk": 6}
DEEPSEEK_V32: Fields = DEEPSEEK | INDEX
#: The second and the fourth layer attend where the one before does.
GLM_DSA: Fields = (
    LATENT
    | INDEX
    | {
        "num_hidden_layers": 4,
        "indexer_types": ["full", "shared", "full", "shared"],
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 2.5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    }
)
#: Queries come from the hidden state by one matrix, as in Moonlight.
DEEPSEEK_NO_LATENT: Fields = DEEPSEEK | {"q_lora_rank": None, "n_group": 1, "topk_group": 1}
KIMI: Fields = LATENT | {
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 4,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 2.827,
    # So long an original context that its equal betas fall on a pair between the first and last.
    "rope_parameters": YARN
    | {
        "rope_theta": 5e4,
        "factor": 32.0,
        "beta_fast": 1.0,
        "beta_slow": 1.0,
        "original_max_position_embeddings": 1024,
    },
}
#: A dense layer, then experts; the second of three layers attends. Keys of `linear_attn_config`, by
#: which the hub writes them, are those of transformers here.
KIMI_LINEAR: Fields = LATENT | {
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_head_dim": 8,
    "linear_num_heads": 4,
    "linear_conv_kernel_dim": 4,
    "q_lora_rank": None,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 3,
    "num_local_experts": 8,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 2.446,
}
#: A dense layer, then experts in groups; the last of each two layers attends, and of its heads some
#: values turn, which are not as many as a recurrent head has. So slow a fading that early tokens
#: matter.
BAILING_HYBRID: Fields = {
    key: value
    for key, value in LATENT.items()
    if key not in ("n_routed_experts", "rope_interleave")
} | {
    "num_hidden_layers": 3,
    "layer_group_size": 2,
    "head_dim": 10,
    "kda_lower_bound": -0.8,
    "q_lora_rank": None,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_experts_per_tok": 3,
    "num_local_experts": 8,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 6e6},
}
GPT_OSS: Fields = GROUPED | {
    "intermediate_size": 16,
    "head_dim": 16,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": 5,
    "layer_types": ["sliding_attention", "full_attention"],
    # At 7, as released, small activations are never clamped.
    "swiglu_limit": 0.5,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 150000.0,
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 512,
    },
}
GLM4_MOE: Fields = GROUPED | {
    "head_dim": 16,
    "moe_intermediate_size": 8,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 1,
    "use_qk_norm": True,
    "attention_bias": True,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e6,
        "partial_rotary_factor": 0.5,
    },
}
#: One norm for all query heads together, one for all key heads; half a head is rotated.
MINIMAX_M2: Fields = GROUPED | {
    "head_dim": 16,
    "intermediate_size": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 3,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 5e6,
        "partial_rotary_factor": 0.5,
    },
}
#: GLM's class computes what Ling's does, without biases and with groups of experts.
LING: Fields = GLM4_MOE | {"attention_bias": False, "n_group": 4, "topk_group": 2}
#: Two blocks of 128 rows, the second not full, in the dense layer.
DEEPSEEK_FP8: Fields = DEEPSEEK | {"intermediate_size": 160}
#: Two groups of 32 in the experts' down projections.
KIMI_INT4: Fields = KIMI | {"moe_intermediate_size": 64, "n_routed_experts": 6}
GPT_OSS_MXFP4: Fields = GPT_OSS | {"intermediate_size": 64}

#: Class prefix in transformers, configuration, and the form in which the weights are written.
#: transformers has no kimi_k2 class; Moonshot's guide runs the model as deepseek_v3. Nor has it one
#: for Ling; see `make_oracle.as_ling`.
CASES: dict[str, tuple[str, Fields, str]] = {
    "llama": ("Llama", LLAMA, "f32"),
    "llama_tied": ("Llama", LLAMA_TIED, "f32"),
    "llama_bf16": ("Llama", LLAMA, "bf16"),
    "mistral": ("Mistral", MISTRAL, "f32"),
    "qwen2": ("Qwen2", QWEN2, "f32"),
    "qwen2_moe": ("Qwen2Moe", QWEN2_MOE, "f32"),
    "mimo": ("Qwen2", MIMO, "f32"),
    "mimo_v2_flash": ("MiMoV2Flash", MIMO_V2, "f32"),
    "step3p7": ("Step3p7", STEP, "f32"),
    "glm4": ("Glm4", GLM4, "f32"),
    "olmo2": ("Olmo2", OLMO2, "f32"),
    "olmo3": ("Olmo3", OLMO3, "f32"),
    "exaone4": ("Exaone4", EXAONE4, "f32"),
    "phi3": ("Phi3", PHI3, "f32"),
    "smollm3": ("SmolLM3", SMOLLM3, "f32"),
    "granite": ("Granite", GRANITE, "f32"),
    "qwen3": ("Qwen3", QWEN3, "f32"),
    "qwen3_moe": ("Qwen3Moe", QWEN3_MOE, "f32"),
    "qwen3_vl": ("Qwen3VL", QWEN3_VL, "f32"),
    "qwen3_vl_moe": ("Qwen3VLMoe", QWEN3_VL_MOE, "f32"),
    "qwen3_next": ("Qwen3Next", QWEN3_NEXT, "f32"),
    "qwen3_5": ("Qwen3_5", QWEN3_5, "f32"),
    "qwen3_5_moe": ("Qwen3_5Moe", QWEN3_5_MOE, "f32"),
    "gemma2": ("Gemma2", GEMMA2, "f32"),
    "gemma4": ("Gemma4", GEMMA4, "f32"),
    "gemma4_moe": ("Gemma4", GEMMA4_MOE, "f32"),
    "gemma3": ("Gemma3", GEMMA3, "f32"),
    "nemotron_h": ("NemotronH", NEMOTRON_H, "f32"),
    "nemotron_h_moe": ("NemotronH", NEMOTRON_H_MOE, "f32"),
    "llama4": ("Llama4", LLAMA4, "f32"),
    "mixtral": ("Mixtral", MIXTRAL, "f32"),
    "deepseek_v3": ("DeepseekV3", DEEPSEEK, "f32"),
    "deepseek_v3_fp8": ("DeepseekV3", DEEPSEEK_FP8, "fp8"),
    "deepseek_v3_plain_queries": ("DeepseekV3", DEEPSEEK_NO_LATENT, "f32"),
    "deepseek_v32": ("DeepseekV32", DEEPSEEK_V32, "f32"),
    "glm_moe_dsa": ("GlmMoeDsa", GLM_DSA, "f32"),
    "kimi_k2": ("DeepseekV3", KIMI, "f32"),
    "kimi_k2_int4": ("DeepseekV3", KIMI_INT4, "int4"),
    "kimi_linear": ("KimiLinear", KIMI_LINEAR, "f32"),
    "bailing_hybrid": ("BailingHybrid", BAILING_HYBRID, "f32"),
    "gpt_oss": ("GptOss", GPT_OSS, "f32"),
    "gpt_oss_mxfp4": ("GptOss", GPT_OSS_MXFP4, "mxfp4"),
    "glm4_moe": ("Glm4Moe", GLM4_MOE, "f32"),
    "minimax_m3": ("MiniMaxM3VL", MINIMAX_M3, "f32"),
    "minimax_m2": ("MiniMaxM2", MINIMAX_M2, "f32"),
    "ling": ("Glm4Moe", LING, "f32"),
}
