"""Tiny configurations of models whose layers see less than the whole context, each in its way."""

from tiny_common import GROUPED, WIDE_HEADS, Fields

#: A dense layer that sees all keys, a sliding one with experts, and one more that sees all. Values
#: are narrower than keys, of which half turns.
MIMO_V2: Fields = GROUPED | {
    "num_hidden_layers": 3,
    "head_dim": 16,
    "v_head_dim": 12,
    "num_key_value_heads": 1,
    "sliding_window": 5,
    "attention_value_scale": 0.707,
    "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    "mlp_layer_types": ["dense", "sparse", "sparse"],
    "moe_intermediate_size": 8,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "rope_parameters": {
        kind: {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": 0.5}
        for kind, theta in (("full_attention", 5e6), ("sliding_attention", 1e4))
    },
}
#: Caps at which scores and logits bend; `query_pre_attn_scalar` is not the width of a head.
GEMMA2: Fields = WIDE_HEADS | {
    "sliding_window": 5,
    "query_pre_attn_scalar": 9,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 1.5,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}
#: A tower for pictures, which is left out. Two layers slide, the last one sees all keys.
GEMMA3: Fields = {
    "text_config": WIDE_HEADS
    | {
        "num_hidden_layers": 3,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 9,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
        "vision_use_head": False,
    },
    "mm_tokens_per_image": 4,
    "image_token_index": 61,
    "boi_token_index": 62,
    "eoi_token_index": 63,
    "tie_word_embeddings": True,
}
#: Layers that do not slide have wider heads and fewer of keys, which are values too; a quarter of
#: their pairs turns.
GEMMA4: Fields = {
    "text_config": WIDE_HEADS
    | {
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "num_global_key_value_heads": 2,
        "head_dim": 8,
        "global_head_dim": 16,
        "attention_k_eq_v": True,
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": 64,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "final_logit_softcapping": 2.0,
        "use_bidirectional_attention": "vision",
        "tie_word_embeddings": True,
        "rope_parameters": {
            "full_attention": {
                "rope_type": "proportional",
                "rope_theta": 1e6,
                "partial_rotary_factor": 0.25,
            },
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "global_head_dim": 8,
        "patch_size": 4,
        "position_embedding_size": 16,
    },
    "audio_config": None,
    "image_token_id": 61,
    "video_token_id": 62,
    "audio_token_id": 63,
    "tie_word_embeddings": True,
}
#: The dense MLP of a layer is twice as wide as an expert.
GEMMA4_MOE: Fields = GEMMA4 | {
    "text_config": GEMMA4["text_config"]
    | {
        "num_hidden_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"],
        "intermediate_size": 16,
        "enable_moe_block": True,
        "moe_intermediate_size": 8,
        "num_experts": 8,
        "top_k_experts": 3,
    },
}
#: A tower for pictures, which is left out. Two layers see chunks, the last has no rotation; the
#: second has experts. Queries without rotation grow every four positions.
LLAMA4: Fields = {
    "text_config": WIDE_HEADS
    | {
        "num_hidden_layers": 3,
        "intermediate_size": 8,
        "intermediate_size_mlp": 24,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 2,
        "no_rope_layer_interval": 3,
        "attention_chunk_size": 6,
        "use_qk_norm": True,
        "attn_temperature_tuning": True,
        "floor_scale": 4,
        "attn_scale": 0.5,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 16.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 1.0,
            "original_max_position_embeddings": 16,
        },
    },
    "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
        "vision_output_dim": 16,
        "projector_input_dim": 16,
        "projector_output_dim": 16,
    },
    "image_token_index": 61,
    "boi_token_index": 62,
    "eoi_token_index": 63,
    "tie_word_embeddings": False,
}
#: A sliding layer, whose rotation is not scaled, and one that sees all keys, whose is.
OLMO3: Fields = GROUPED | {
    "sliding_window": 5,
    "layer_types": ["sliding_attention", "full_attention"],
    "rope_parameters": {
        "full_attention": {
            "rope_type": "yarn",
            "rope_theta": 5e5,
            "factor": 8.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "original_max_position_embeddings": 64,
        },
        "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
    },
}
#: A sliding layer, and one that sees all keys and has no rotation.
EXAONE4: Fields = GROUPED | {
    "head_dim": 16,
    "sliding_window": 5,
    "sliding_window_pattern": 2,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 1e6,
        "factor": 16.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}
#: A tower for pictures, which is left out. A dense layer that sees all keys, a sliding one with
#: more query heads, and one more that sees all, both with experts; half of a head turns, slowed, in
#: those that see all.
STEP: Fields = {
    "text_config": WIDE_HEADS
    | {
        "num_hidden_layers": 3,
        "num_sliding_attention_heads": 8,
        "sliding_window": 5,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "moe_intermediate_size": 8,
        "share_expert_dim": 16,
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "moe_router_scaling_factor": 3.0,
        "rope_parameters": {
            "full_attention": {
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "partial_rotary_factor": 0.5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    "vision_config": {
        "hidden_size": 4,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": 8,
        "patch_size": 4,
        "mlp_ratio": 1.0,
        "max_position_embeddings": 4,
    },
    "image_token_id": 61,
    "tie_word_embeddings": False,
}
#: A tower for pictures, which is left out. A dense layer that sees all keys, then two with experts
#: that see two of up to five blocks, of four keys each: the token's own and another.
MINIMAX_M3: Fields = {
    "text_config": WIDE_HEADS
    | {
        "num_hidden_layers": 3,
        "intermediate_size": 8,
        "dense_intermediate_size": 24,
        "shared_intermediate_size": 16,
        "num_local_experts": 8,
        "num_experts_per_tok": 3,
        "routed_scaling_factor": 2.0,
        "swiglu_limit": 0.5,
        "layer_types": ["full_attention", "minimax_m3_sparse", "minimax_m3_sparse"],
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "index_n_heads": 2,
        "index_head_dim": 8,
        "index_block_size": 4,
        "index_topk_blocks": 2,
        "index_local_blocks": 1,
        "rotary_dim": 8,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5e6,
            "partial_rotary_factor": 0.5,
        },
    },
    "vision_config": {
        "hidden_size": 4,
        "intermediate_size": 4,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": 8,
        "patch_size": 4,
        "temporal_patch_size": 1,
        "spatial_merge_size": 1,
    },
    "projector_hidden_size": 8,
    "image_token_index": 61,
    "video_token_index": 62,
    "tie_word_embeddings": False,
}
