"""MiniMax-M3: layers that attend to blocks, in both spellings, and what is refused of it."""

import dataclasses

import pytest
from released_configs import hub_fields

from lpu_jax.errors import ConfigError
from models.config import BlockIndexConfig, GqaConfig
from models.hf_config import from_hf
from models.params import n_parameters
from models.zoo import model

M3 = hub_fields("minimax-m3")
_MARKS = [0] * 3 + [1] * 57
#: The text part as transformers 5.24 writes it.
MODERN = {
    key: value
    for key, value in M3.items()
    if key
    not in (
        *("sparse_attention_config", "moe_layer_freq", "architectures", "rope_theta"),
        *("partial_rotary_factor", "num_mtp_modules", "use_gemma_norm"),
    )
} | {
    "model_type": "minimax_m3_vl_text",
    "hidden_act": "silu",
    "layer_types": ["minimax_m3_sparse" if mark else "full_attention" for mark in _MARKS],
    "mlp_layer_types": ["sparse" if mark else "dense" for mark in _MARKS],
    "index_n_heads": 4,
    "index_head_dim": 128,
    "index_block_size": 128,
    "index_topk_blocks": 16,
    "index_local_blocks": 1,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 5000000,
        "partial_rotary_factor": 0.5,
    },
}
SPARSE = M3["sparse_attention_config"]


def test_layers_of_the_released_model():
    cfg = model("minimax-m3")
    gqa, moe = cfg.attention, cfg.moe
    assert isinstance(gqa, GqaConfig)
    assert moe is not None
    assert cfg.blocked_layers == tuple(range(3, 60))
    assert cfg.kind_counts == {"attention": 3, "blocked": 57, "dense": 3, "moe": 57}
    assert gqa.block_index == BlockIndexConfig(
        head_dim=128, block_size=128, top_blocks=16, local_blocks=1
    )
    assert (gqa.n_heads, gqa.n_kv_heads, gqa.head_dim, gqa.qk_norm, cfg.rope.dim) == (
        *(64, 4, 128, True, 64),
    )
    assert (cfg.d_ff, moe.d_expert, moe.d_shared, moe.n_dense_layers) == (12288, 3072, 3072, 3)
    assert (moe.scoring, moe.correction_bias, moe.routed_scaling) == ("sigmoid", True, 2.0)
    assert (moe.swiglu_limit, moe.swiglu_alpha, cfg.clamps_dense) == (7.0, 1.702, True)
    # A key and a value of each of 4 heads in 60 layers, an index key in 57, two bytes a value.
    assert cfg.kv_bytes_per_token() == 2 * (60 * 2 * 4 * 128 + 57 * 128)


def test_both_spellings_and_the_wrapper_are_one_model():
    plain = from_hf(M3)
    assert dataclasses.replace(from_hf(MODERN), name=plain.name) == plain
    # NVIDIA's file does not say the type of its text part.
    inside = {key: value for key, value in M3.items() if key != "model_type"}
    whole = {
        "model_type": "minimax_m3_vl",
        "text_config": inside,
        "vision_config": {"hidden_size": 1280},
        "img_token_compression_config": {"spatial_merge_size": 2},
        "multimodal_projector_bias": True,
        "process_image_mode": "dynamic_res",
    }
    assert dataclasses.replace(from_hf(whole), name=plain.name) == plain


def test_layers_without_marks_attend_to_all():
    """As transformers 5.24 reads such a file: `layer_types` of its class is full attention."""
    left = {key: v for key, v in M3.items() if key != "sparse_attention_config"}
    cfg = from_hf(left)
    assert (cfg.blocked_layers, cfg.attention.block_index) == ((), None)
    # In 57 layers queries of four index heads, a key, and two norms less.
    less = 57 * (6144 * 5 * 128 + 2 * 128)
    assert n_parameters(cfg) == n_parameters(model("minimax-m3")) - less


@pytest.mark.parametrize(
    ("fields", "change", "message"),
    [
        (M3, {"use_gemma_norm": False}, "'use_gemma_norm' must be true"),
        (M3, {"attention_output_gate": True}, "'attention_output_gate' must be false"),
        (M3, {"qk_norm_type": "per_layer"}, "'qk_norm_type' must be \"per_head\""),
        (M3, {"hidden_act": "gelu"}, "'hidden_act' must be"),
        (M3, {"first_k_dense_replace": 1}, "'first_k_dense_replace' must be 3"),
        (M3, {"n_shared_experts": 2}, "'n_shared_experts' must be 1"),
        (M3, {"moe_intermediate_size": 1024}, "'moe_intermediate_size' must be 3072"),
        (M3, {"use_routing_bias": False}, "'use_routing_bias' must be true"),
        (M3, {"rotary_dim": 32}, "'rotary_dim' must be 64"),
        (M3, {"index_topk_blocks": 8}, "'index_topk_blocks' must be 16"),
        (M3, {"layer_types": ["full_attention"] * 60}, "'sparse_attention_freq' must be"),
        (M3, {"sparse_attention_config": SPARSE | {"sparse_init_block": 1}}, "'sparse_init_block'"),
        (M3, {"sparse_attention_config": SPARSE | {"sparse_score_type": "mean"}}, "score_type"),
        (M3, {"sparse_attention_config": SPARSE | {"sparse_num_index_heads": 2}}, "must be 4"),
        (M3, {"sparse_attention_config": SPARSE | {"sparse_local_block": 17}}, "at most top_bl"),
        (
            M3,
            {"sparse_attention_config": SPARSE | {"sparse_disable_index_value": [0] * 60}},
            "'sparse_disable_index_value' must be",
        ),
        (
            M3,
            {"sparse_attention_config": SPARSE | {"sparse_attention_freq": [1]}},
            "0 or 1 for each of 60 layers",
        ),
        (MODERN, {"layer_types": ["sliding_attention"] * 60}, "for each of 60 layers"),
        (MODERN, {"index_n_heads": 8}, "'index_n_heads' must be 4"),
    ],
)
def test_what_is_not_modelled_is_refused_by_name(fields, change, message):
    with pytest.raises(ConfigError, match=message):
        from_hf(fields | change)
