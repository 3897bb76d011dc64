"""Rows of `hf_families` some of whose layers are recurrent; its tables say what rules mean."""

from dataclasses import replace

from .hf_rules import ExpertRules, FamilyRules
from .tensor_names import TensorNames

_ROTATION = {"rope_theta": 10_000.0}
_NORM = {"rms_norm_eps": 1e-6}

_QWEN_NEXT_NAMES = TensorNames(
    are_norms_centred=True, shared="mlp.shared_expert.", beside=("mtp.",)
)
QWEN_NEXT = FamilyRules(
    family="qwen3_next",
    architecture="Qwen3NextForCausalLM",
    is_partial=True,
    qk_norm="yes",
    has_recurrent_layers=True,
    experts=ExpertRules(scoring="softmax", has_gated_shared=True),
    defaults=_ROTATION
    | _NORM
    | {
        "num_key_value_heads": 2,
        "head_dim": 256,
        "partial_rotary_factor": 0.25,
        "full_attention_interval": 4,
        "norm_topk_prob": True,
    },
    names=_QWEN_NEXT_NAMES,
)
#: The text part, whose experts are fused.
QWEN_3_5 = replace(
    QWEN_NEXT,
    family="qwen3_5",
    architecture="Qwen3_5ForConditionalGeneration",
    is_scaled=False,
    has_picture_axes=True,
    experts=None,
    # Weights are always divided by their sum: there is no key.
    defaults={
        **{key: v for key, v in QWEN_NEXT.defaults.items() if key != "norm_topk_prob"},
        "num_key_value_heads": 4,
    },
    names=replace(
        _QWEN_NEXT_NAMES,
        embedding="model.language_model.embed_tokens",
        final_norm="model.language_model.norm",
        layer="model.language_model.layers.{}.",
        recurrent=tuple(f"linear_attn.in_proj_{part}" for part in ("qkv", "z", "b", "a")),
        expert="mlp.experts.",
        do_columns_alternate=False,
        are_fused_turned=True,
        beside=("mtp.", "model.visual."),
    ),
)
# Its class divides weights by their sum, whatever `norm_topk_prob` says.
QWEN_3_5_MOE = replace(
    QWEN_3_5,
    architecture="Qwen3_5MoeForConditionalGeneration",
    experts=ExpertRules(scoring="softmax", is_normalised=True, has_gated_shared=True),
    are_all_layers_mixtures=True,
    defaults={**QWEN_3_5.defaults, "num_key_value_heads": 2},
)

KIMI_LINEAR = FamilyRules(
    family="kimi_linear",
    architecture="KimiLinearForCausalLM",
    is_latent=True,
    has_recurrent_layers=True,
    is_kimi_linear=True,
    experts=ExpertRules(scoring="sigmoid", is_deepseek_like=True),
    names=TensorNames(
        recurrent=tuple(
            f"self_attn.{part}_proj" for part in ("q", "k", "v", "f_a", "f_b", "g_a", "g_b", "b")
        ),
        recurrent_taps=tuple(f"self_attn.{part}_conv1d" for part in "qkv"),
        recurrent_fading="self_attn.A_log",
        recurrent_fading_bias="self_attn.dt_bias",
        recurrent_norm="self_attn.o_norm",
        recurrent_output="self_attn.o_proj",
        router="block_sparse_moe.gate",
        correction_bias="block_sparse_moe.gate.e_score_correction_bias",
        expert="block_sparse_moe.experts.{}.",
        expert_gate_up_down=("w1", "w3", "w2"),
        shared="block_sparse_moe.shared_experts.",
    ),
)
#: Kimi K3's text part, whose files have the type of Kimi Linear. Source: `models/kimi_k3` of vLLM
#: 0.33; that no format narrows the ways into the experts' space and back is read off it too.
KIMI_K3 = replace(
    KIMI_LINEAR,
    family="kimi_k3",
    is_kimi_k3=True,
    activation="situ",
    experts=ExpertRules(scoring="sigmoid", is_deepseek_like=True, is_kimi_k3=True),
    names=replace(
        KIMI_LINEAR.names,
        recurrent=tuple(
            f"self_attn.{part}_proj" for part in ("q", "k", "v", "f_a", "f_b", "g", "b")
        ),
        latent_in="block_sparse_moe.routed_expert_down_proj",
        latent_norm="block_sparse_moe.routed_expert_norm",
        latent_out="block_sparse_moe.routed_expert_up_proj",
    ),
)

#: Ling 3. Files of Ling 2.5 and 2.6 have this type too, and layers of another recurrence: they name
#: another class, and keys that are not read. Source of the names: `conversion_mapping` of
#: transformers 5.24, which turns those of the hub into its own.
BAILING_HYBRID = FamilyRules(
    family="bailing_hybrid",
    architecture="BailingHybridForCausalLM",
    is_latent=True,
    is_interleaved=True,
    has_recurrent_layers=True,
    is_bailing_hybrid=True,
    experts=ExpertRules(scoring="sigmoid", is_deepseek_like=True),
    defaults={
        "rms_norm_eps": 1e-6,
        "rope_theta": 6e6,
        "q_lora_rank": None,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "v_head_dim": 128,
        "first_k_dense_replace": 2,
        "num_expert_group": 8,
        "topk_group": 4,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "num_shared_experts": 1,
        "layer_group_size": 6,
        "short_conv_kernel_size": 4,
        "kda_safe_gate": True,
        "kda_lower_bound": -5.0,
    },
    names=TensorNames(
        embedding="model.word_embeddings",
        recurrent=tuple(f"attention.{part}_proj" for part in ("q", "k", "v", "f", "g", "b")),
        recurrent_taps=tuple(f"attention.{part}_conv1d" for part in "qkv"),
        recurrent_fading="attention.A_log",
        recurrent_fading_bias="attention.dt_bias",
        recurrent_norm="attention.o_norm",
        recurrent_output="attention.dense",
        q="attention.q_proj",
        q_a="attention.q_a_proj",
        q_a_norm="attention.q_a_layernorm",
        q_b="attention.q_b_proj",
        kv_a="attention.kv_a_proj_with_mqa",
        kv_a_norm="attention.kv_a_layernorm",
        kv_b="attention.kv_b_proj",
        latent_gate="attention.g_proj",
        output="attention.dense",
        correction_bias="mlp.gate.expert_bias",
    ),
)

NEMOTRON_H = FamilyRules(
    family="nemotron_h",
    architecture="NemotronHForCausalLM",
    has_single_blocks=True,
    is_scaled=False,
    activation="relu2",
    experts=ExpertRules(scoring="sigmoid", is_nemotron_like=True),
    defaults=_ROTATION
    | {
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "n_shared_experts": 1,
    },
    names=TensorNames(
        embedding="backbone.embeddings",
        final_norm="backbone.norm_f",
        layer="backbone.layers.{}.",
        attention_norm="norm",
        qkv=("mixer.q_proj", "mixer.k_proj", "mixer.v_proj"),
        output="mixer.o_proj",
        recurrent=("mixer.in_proj",),
        recurrent_taps=("mixer.conv1d",),
        recurrent_fading="mixer.A_log",
        recurrent_fading_bias="mixer.dt_bias",
        recurrent_norm="mixer.norm",
        recurrent_output="mixer.out_proj",
        recurrent_skip="mixer.D",
        mlp_norm="norm",
        mlp="mixer.",
        gate_up_down=("up_proj", "down_proj"),
        router="mixer.gate",
        correction_bias="mixer.gate.e_score_correction_bias",
        expert="mixer.experts.{}.",
        expert_gate_up_down=("up_proj", "down_proj"),
        latent_in="mixer.fc1_latent_proj",
        latent_out="mixer.fc2_latent_proj",
        shared="mixer.shared_experts.",
        beside=("mtp.",),
    ),
)
