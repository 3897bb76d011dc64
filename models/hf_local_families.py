"""Rows of `hf_families` of which some layers see near keys, or blocks of keys, and others all.

Both kinds of layer may differ in heads and rotation; tables of `hf_families` say what rules mean.
"""

from dataclasses import replace

from .hf_rules import ExpertRules, FamilyRules
from .tensor_names import TensorNames

GEMMA2 = FamilyRules(
    family="gemma2",
    architecture="Gemma2ForCausalLM",
    biases="all",
    windows="even",
    activation="gelu_tanh",
    is_gemma=True,
    has_query_scalar=True,
    caps=frozenset(("logits", "scores")),
    defaults={
        "vocab_size": 256_000,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
        "rope_theta": 10_000.0,
    },
    names=TensorNames(mlp_norm="pre_feedforward_layernorm", are_norms_centred=True),
)
#: Scores and logits are never capped: no class caps the former, that with pictures not the latter.
GEMMA3 = replace(
    GEMMA2,
    family="gemma3",
    architecture="Gemma3ForCausalLM",
    qk_norm="yes",
    windows="most",
    caps=frozenset(),
    has_local_rotation=True,
    defaults={
        "vocab_size": 262_208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "rope_theta": 1e6,
        "rope_local_base_freq": 10_000.0,
    },
)

#: The text part; its classes gate, cap and normalise as those of Gemma 2.
GEMMA4 = replace(
    GEMMA3,
    family="gemma4",
    architecture="Gemma4ForConditionalGeneration",
    has_query_scalar=False,
    caps=frozenset(("logits",)),
    has_global_heads=True,
    experts=ExpertRules(scoring="softmax", is_normalised=True, has_own_norms=True),
    defaults={
        "num_key_value_heads": 4,
        "head_dim": 256,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "sliding_window": 512,
        "rope_theta": 1e6,
        "rope_local_base_freq": 10_000.0,
        "global_head_dim": 512,
        "attention_k_eq_v": False,
        "hidden_size_per_layer_input": 256,
    },
    scaling_by_default={"rope_type": "proportional", "partial_rotary_factor": 0.25},
    names=TensorNames(
        embedding="model.language_model.embed_tokens",
        final_norm="model.language_model.norm",
        layer="model.language_model.layers.{}.",
        mlp_norm="pre_feedforward_layernorm",
        router="router.proj",
        expert="experts.",
        do_columns_alternate=False,
        are_fused_turned=True,
        shared="mlp.",
        beside=("model.vision_", "model.embed_vision.", "model.audio_", "model.embed_audio."),
    ),
)

#: The text part, whose experts are fused.
LLAMA4 = FamilyRules(
    family="llama4",
    architecture="Llama4ForConditionalGeneration",
    is_interleaved=True,
    biases="all",
    is_llama4=True,
    has_unrotated_layers=True,
    experts=ExpertRules(scoring="sigmoid_after_top_k", width="intermediate_size", weighs_rows=True),
    defaults={
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5e5,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 1,
        "use_qk_norm": True,
        "no_rope_layer_interval": 4,
        "attention_chunk_size": 8192,
        "floor_scale": 8192,
        "attn_scale": 0.1,
    },
    names=TensorNames(
        mlp="feed_forward.",
        router="feed_forward.router",
        expert="feed_forward.experts.",
        do_columns_alternate=False,
        shared="feed_forward.shared_expert.",
        beside=("vision_model.",),
    ),
)

#: Dense layers and all sizes by the hub's own keys; see `hf_mimo`.
MIMO_V2 = FamilyRules(
    family="mimo_v2_flash",
    architecture="MiMoV2FlashForCausalLM",
    is_partial=True,
    is_scaled=False,
    biases="qkv",
    has_local_rotation=True,
    is_mimo_v2=True,
    experts=ExpertRules(scoring="sigmoid", is_deepseek_like=True, is_mimo_v2=True),
    defaults={
        "num_key_value_heads": 4,
        "head_dim": 192,
        "v_head_dim": 128,
        "rms_norm_eps": 1e-5,
        "sliding_window": 129,
        "attention_value_scale": 0.707,
        "rope_theta": 5e6,
        "rope_local_base_freq": 10_000.0,
        "partial_rotary_factor": 0.334,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
    },
    names=TensorNames(sinks="self_attn.attention_sink_bias", beside=("model.mtp.",)),
)

#: OLMo 2 with windows; the rotation of sliding layers has the same base, and is never scaled.
OLMO3 = FamilyRules(
    family="olmo3",
    architecture="Olmo3ForCausalLM",
    biases="all",
    qk_norm="joint",
    windows="most",
    norms_inputs=False,
    norms_results=True,
    has_local_rotation=True,
    defaults={
        "rms_norm_eps": 1e-5,
        "rope_theta": 5e5,
        "sliding_window": 4096,
        "sliding_window_pattern": 4,
    },
)

EXAONE4 = FamilyRules(
    family="exaone4",
    architecture="Exaone4ForCausalLM",
    qk_norm="yes",
    windows="most",
    turns_sliding_alone=True,
    norms_inputs=False,
    norms_results=True,
    defaults={
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "sliding_window": 4096,
        "sliding_window_pattern": 4,
    },
)

#: The text part, whose experts are fused in three tensors; see `hf_step`. Copies of its file have
#: it alone, under the name of the whole.
STEP = FamilyRules(
    family="step3p7",
    architecture="Step3p7ForConditionalGeneration",
    other_architectures=("Step3p7FlashForCausalLM",),
    is_partial=True,
    qk_norm="yes",
    has_local_rotation=True,
    is_step=True,
    experts=ExpertRules(scoring="sigmoid", is_normalised=True, is_step=True),
    defaults={
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "rope_local_base_freq": 10_000.0,
        "partial_rotary_factor": 1.0,
        "moe_router_scaling_factor": 1.0,
    },
    names=TensorNames(
        are_norms_centred=True,
        router="moe.gate",
        correction_bias="moe.router_bias",
        expert="moe.",
        fused_gate_up_down=("gate_proj.weight", "up_proj.weight", "down_proj.weight"),
        do_columns_alternate=False,
        are_fused_turned=True,
        shared="share_expert.",
        beside=("vision_model.", "vit_large_projector."),
    ),
)

#: The text part; see `hf_minimax`. Files of it call their class by several names.
MINIMAX_M3 = FamilyRules(
    family="minimax_m3",
    architecture="MiniMaxM3SparseForConditionalGeneration",
    other_architectures=(
        *("MiniMaxM3ForCausalLM", "MiniMaxM3SparseForCausalLM"),
        "MiniMaxM3VLForCausalLM",
    ),
    is_partial=True,
    qk_norm="yes",
    is_minimax_m3=True,
    experts=ExpertRules(
        scoring="sigmoid",
        width="intermediate_size",
        is_normalised=True,
        is_corrected=True,
        is_clamped=True,
        is_minimax_m3=True,
    ),
    defaults={
        "num_key_value_heads": 4,
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 5e6,
        "routed_scaling_factor": 2.0,
        "swiglu_limit": 7.0,
        "swiglu_alpha": 1.702,
        "index_head_dim": 128,
        "index_block_size": 128,
        "index_topk_blocks": 16,
        "index_local_blocks": 1,
    },
    names=TensorNames(
        are_norms_centred=True,
        index_q="self_attn.index_q_proj",
        index_k="self_attn.index_k_proj",
        index_q_norm="self_attn.index_q_norm",
        index_k_norm="self_attn.index_k_norm",
        router="block_sparse_moe.gate",
        correction_bias="block_sparse_moe.e_score_correction_bias",
        expert="block_sparse_moe.experts.{}.",
        expert_gate_up_down=("w1", "w3", "w2"),
        shared="block_sparse_moe.shared_experts.",
        beside=("patch_merge_mlp.", "mtp.", "model.mtp."),
    ),
)
