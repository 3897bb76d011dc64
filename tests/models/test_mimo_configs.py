"""MiMo: two kinds of layer with heads of their own, and what is refused of it."""

import pytest

from lpu_jax.errors import ConfigError
from models.config import GqaConfig
from models.hf_config import from_hf
from models.params import n_active, n_parameters

#: config.json of XiaomiMiMo/MiMo-V2-Flash as the PyPI package aiconfigurator-core 0.12.0 ships it.
FLASH = {
    "architectures": ["MiMoV2FlashForCausalLM"],
    "model_type": "mimo_v2_flash",
    "num_hidden_layers": 48,
    "hidden_size": 4096,
    "num_attention_heads": 64,
    "num_key_value_heads": 4,
    "head_dim": 192,
    "v_head_dim": 128,
    "intermediate_size": 16384,
    "vocab_size": 152576,
    "max_position_embeddings": 262144,
    "rope_theta": 5000000,
    "swa_rope_theta": 10000,
    "partial_rotary_factor": 0.334,
    "sliding_window": 128,
    "sliding_window_size": 128,
    "attention_chunk_size": 128,
    "swa_num_attention_heads": 64,
    "swa_num_key_value_heads": 8,
    "swa_head_dim": 192,
    "swa_v_head_dim": 128,
    "hybrid_layer_pattern": [int(i > 0 and (i + 1) % 6 != 0) for i in range(48)],
    "moe_layer_freq": [0] + [1] * 47,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": None,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "scoring_func": "sigmoid",
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "routed_scaling_factor": None,
    "hidden_act": "silu",
    "layernorm_epsilon": 1e-05,
    "attention_bias": False,
    "attention_value_scale": 0.707,
    "add_swa_attention_sink_bias": True,
    "add_full_attention_sink_bias": False,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
}
#: The same of XiaomiMiMo/MiMo-7B-Base.
SMALL = {
    "architectures": ["MiMoForCausalLM"],
    "model_type": "mimo",
    "num_hidden_layers": 36,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 11008,
    "vocab_size": 151680,
    "max_position_embeddings": 32768,
    "rope_theta": 640000,
    "rms_norm_eps": 1e-05,
    "hidden_act": "silu",
    "attention_bias": True,
    "sliding_window": 32768,
    "max_window_layers": 32,
    "use_sliding_window": False,
    "use_mrope": False,
    "num_nextn_predict_layers": 1,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def test_counts_equal_those_of_transformers():
    # `data/count_oracle.py` on these files; MiMo-7B built as Qwen2, of which its class is one.
    flash, small = from_hf(FLASH), from_hf(SMALL)
    assert n_parameters(flash) == 308_778_780_864
    assert (n_active(flash), n_active(flash, include_embedding=True)) == (
        14_820_985_024,
        15_445_936_320,
    )
    assert (n_parameters(small), n_active(small)) == (7_622_619_136, 7_001_337_856)
    assert small.n_prediction_layers == 1


def test_layers_of_flash():
    cfg = from_hf(FLASH)
    full, local = cfg.attention_of("attention"), cfg.attention_of("sliding")
    assert isinstance(full, GqaConfig)
    assert isinstance(local, GqaConfig)
    assert [i for i in range(48) if i not in cfg.sliding_layers] == [0, *range(5, 48, 6)]
    # A query sees its own key and 128 before it.
    assert (full.window, local.window) == (None, 129)
    assert (full.n_kv_heads, local.n_kv_heads, full.sinks, local.sinks) == (4, 8, False, True)
    assert (full.head_dim, full.value_width, full.value_scale) == (192, 128, 0.707)
    assert (cfg.rope.theta, cfg.rope.dim) == (5e6, 64)
    assert (cfg.rope_of("sliding").theta, cfg.rope_of("sliding").dim) == (1e4, 64)
    assert (cfg.n_moe_layers, cfg.norm_eps, cfg.released_format) == (47, 1e-5, "fp8")
    # Nine layers of 4 heads and 39 of 8, a key and a value of each, two bytes a value.
    assert cfg.kv_bytes_per_token() == 2 * (9 * 4 + 39 * 8) * (192 + 128)


def test_what_the_class_fixes_may_be_left_out():
    told = ("hybrid_layer_pattern", "attention_value_scale", "v_head_dim", "swa_rope_theta")
    repeated = ("swa_head_dim", "swa_v_head_dim", "swa_num_key_value_heads", "moe_layer_freq")
    left = {k: v for k, v in FLASH.items() if k not in (*told, *repeated, "partial_rotary_factor")}
    assert from_hf(left) == from_hf(FLASH)
    kinds = ["sliding_attention" if mark else "full_attention" for mark in hybrid()]
    assert from_hf(left | {"layer_types": kinds}) == from_hf(FLASH)


def hybrid() -> list[int]:
    return list(FLASH["hybrid_layer_pattern"])


@pytest.mark.parametrize(
    ("fields", "change", "message"),
    [
        (FLASH, {"swa_num_key_value_heads": 4}, "'swa_num_key_value_heads' must be 8"),
        (FLASH, {"add_full_attention_sink_bias": True}, "'add_full_attention_sink_bias' must be"),
        (FLASH, {"attention_chunk_size": 64}, "'attention_chunk_size' must be 128"),
        (FLASH, {"hybrid_layer_pattern": [0, 1]}, "a list of 0 or 1 for each of 48 layers"),
        (FLASH, {"layer_types": ["full_attention"] * 48}, "must be that of 'layer_types'"),
        (FLASH, {"moe_layer_freq": [0, 1, 0] * 16}, "'moe_layer_freq' must be"),
        (FLASH, {"n_shared_experts": 1}, "'n_shared_experts' = 1"),
        (SMALL, {"attention_bias": False}, "'attention_bias' must be true"),
        (SMALL, {"use_mrope": True}, "'use_mrope'"),
    ],
)
def test_what_is_not_modelled_is_refused_by_name(fields, change, message):
    with pytest.raises(ConfigError, match=message):
        from_hf(fields | change)
