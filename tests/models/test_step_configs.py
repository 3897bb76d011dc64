"""Step 3.7: layers with heads and rotations of their own in all spellings, and what is refused."""

import pytest

from lpu_jax.errors import ConfigError
from models.config import GqaConfig
from models.hf_config import from_hf
from models.params import n_active, n_parameters
from models.rope import Llama3Scaling

_KINDS = [
    "sliding_attention" if layer % 4 else "full_attention" for layer in range(48)
]  # three of them predict
#: config.json of stepfun-ai/Step-3.7-Flash-FP8 as the PyPI package aiconfigurator-core 0.12.0 ships
#: it, which leaves out much of what the model's own says.
FLASH = {
    "architectures": ["Step3p7FlashForCausalLM"],
    "model_type": "step3p7",
    "num_hidden_layers": 45,
    "hidden_size": 4096,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128896,
    "max_position_embeddings": 65536,
    "torch_dtype": "bfloat16",
    "intermediate_size": 11264,
    "sliding_window": 512,
    "layer_types": _KINDS[:45],
    "first_k_dense_replace": 3,
    "num_experts": 288,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 1280,
    "share_expert_dim": 1280,
    "n_shared_experts": 1,
    "scoring_func": "sigmoid",
    "num_nextn_predict_layers": 3,
    "quantization_config": {
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
        "activation_scheme": "dynamic",
    },
    "use_moe_router_bias": True,
    "moe_router_scaling_factor": 3.0,
}
_RENAMED = {
    "num_key_value_heads": "num_attention_groups",
    "num_experts": "moe_num_experts",
    "num_experts_per_tok": "moe_top_k",
}
_SCALING = {
    "rope_type": "llama3",
    "factor": 2.0,
    "original_max_position_embeddings": 131072,
    "low_freq_factor": 1.0,
    "high_freq_factor": 32.0,
}
#: The keys of the hub that the class of transformers reads, with values that tell kinds apart.
HUB = {
    _RENAMED.get(key, key): value
    for key, value in FLASH.items()
    if key not in ("first_k_dense_replace", "architectures", "n_shared_experts", "scoring_func")
} | {
    "max_position_embeddings": 262144,
    "layer_types": _KINDS,
    "moe_layers_enum": ",".join(map(str, range(3, 45))),
    "attention_other_setting": {
        "attention_type": "sliding_attention",
        "num_attention_heads": 96,
        "num_attention_groups": 8,
        "head_dim": 128,
        "true_head_dim": 128,
    },
    "rope_theta": [5e6 if kind == "full_attention" else 1e4 for kind in _KINDS],
    "partial_rotary_factors": [0.5 if kind == "full_attention" else 1.0 for kind in _KINDS],
    "rope_scaling": _SCALING,
    "yarn_only_types": ["full_attention"],
    "swiglu_limits": [0.0] * 48,
    "swiglu_limits_shared": [None] * 48,
    "use_head_wise_attn_gate": True,
}
#: The same as transformers 5.24 writes it.
MODERN = {
    key: value
    for key, value in HUB.items()
    if key
    not in (
        *("moe_layers_enum", "attention_other_setting", "rope_theta", "partial_rotary_factors"),
        *("rope_scaling", "yarn_only_types", "use_head_wise_attn_gate", "layer_types"),
        *("swiglu_limits", "swiglu_limits_shared"),
    )
} | {
    "layer_types": _KINDS[:45],
    "mtp_layer_types": _KINDS[45:],
    "mlp_layer_types": ["dense"] * 3 + ["sparse"] * 42,
    "num_sliding_attention_heads": 96,
    "per_layer_config": {str(i): {"num_attention_heads": 96} for i in range(45) if i % 4},
    "query_pre_attn_scalar": 128,
    "rope_parameters": {
        "full_attention": _SCALING | {"rope_theta": 5e6, "partial_rotary_factor": 0.5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
}


def test_counts_equal_those_of_transformers():
    # `Step3p7TextModel` of transformers 5.24 on the meta device, made of these fields, and a head.
    flash = from_hf(FLASH)
    assert n_parameters(flash) == 195_844_508_736
    assert (n_active(flash), n_active(flash, include_embedding=True)) == (
        10_347_744_320,
        10_875_702_336,
    )
    # Likewise of the hub's keys: 32 more heads in each of 33 layers, and their gates.
    hub = from_hf(HUB)
    more = 33 * 4096 * (32 * 128 * 2 + 32)
    assert n_parameters(hub) == n_parameters(flash) + more == 196_956_130_368


def test_what_a_file_leaves_out_is_that_of_the_class():
    cfg = from_hf(FLASH)
    full, local = cfg.attention_of("attention"), cfg.attention_of("sliding")
    assert isinstance(full, GqaConfig)
    assert isinstance(local, GqaConfig)
    assert (full.n_heads, local.n_heads, full.window, local.window) == (64, 64, None, 512)
    assert (full.head_gated, full.qk_norm, full.scale) == (True, True, None)
    assert [i for i in range(45) if i not in cfg.sliding_layers] == list(range(0, 45, 4))
    assert (cfg.rope.theta, cfg.rope.dim, cfg.rope_of("sliding").dim) == (1e4, 128, 128)
    moe = cfg.moe
    assert moe is not None
    assert (moe.n_dense_layers, moe.n_shared, moe.routed_scaling) == (3, 1, 3.0)
    assert (moe.correction_bias, moe.normalise, moe.scoring) == (True, True, "sigmoid")
    assert (cfg.released_format, cfg.released_roles, cfg.n_prediction_layers) == ("fp8", None, 3)


def test_both_spellings_of_all_that_a_file_can_say():
    cfg = from_hf(HUB)
    full, local = cfg.attention_of("attention"), cfg.attention_of("sliding")
    assert isinstance(full, GqaConfig)
    assert isinstance(local, GqaConfig)
    assert (full.n_heads, local.n_heads, local.n_kv_heads) == (64, 96, 8)
    assert (cfg.rope.theta, cfg.rope.dim, cfg.rope_of("sliding").theta) == (5e6, 64, 1e4)
    assert isinstance(cfg.rope.scaling, Llama3Scaling)
    assert (cfg.rope_of("sliding").dim, cfg.rope_of("sliding").scaling) == (128, None)
    assert from_hf(MODERN) == cfg
    inside = MODERN | {"model_type": "step3p5"}
    assert from_hf({"model_type": "step3p7", "text_config": inside}) == from_hf(inside)


@pytest.mark.parametrize(
    ("fields", "change", "message"),
    [
        (FLASH, {"first_k_dense_replace": 1}, "'first_k_dense_replace' must be 3"),
        (FLASH, {"use_moe_router_bias": False}, "'use_moe_router_bias' must be true"),
        (FLASH, {"layer_types": _KINDS[:44]}, "a list with a value for each of 45 layers"),
        (FLASH, {"layer_types": ["chunked"] * 45}, "'layer_types' must be a list of"),
        (FLASH, {"sliding_window": None}, "'sliding_window' must be a whole number"),
        (FLASH, {"share_expert_dim": 1000}, "a multiple of the width of an expert"),
        (FLASH, {"use_qk_norm": False}, "'use_qk_norm' must be true"),
        (HUB, {"swiglu_limits": [0.0] * 43 + [7.0] * 2}, "clamped MLPs are not modelled"),
        (HUB, {"swiglu_limits_shared": [16.0] * 45}, "clamped MLPs are not modelled"),
        (HUB, {"moe_layers_enum": "1,3"}, "experts in all layers but the first ones"),
        (HUB, {"moe_layers_enum": "a"}, "'moe_layers_enum' must be numbers of layers"),
        (HUB, {"mlp_layer_types": ["sparse"] * 45}, "must be that of 'mlp_layer_types'"),
        (HUB, {"rope_theta": [float(i + 1) for i in range(45)]}, "the same for all layers of one"),
        (HUB, {"yarn_only_types": []}, "'yarn_only_types' must be"),
        (HUB, {"attention_other_setting": {"head_dim": 64}}, "'head_dim' must be 128"),
        (HUB, {"use_head_wise_attn_gate": False}, "'use_head_wise_attn_gate' must be true"),
        (MODERN, {"per_layer_config": {"1": {}}}, "96 heads for each sliding layer"),
        (MODERN, {"use_bidirectional_attention": True}, "'use_bidirectional_attention'"),
    ],
)
def test_what_is_not_modelled_is_refused_by_name(fields, change, message):
    with pytest.raises(ConfigError, match=message):
        from_hf(fields | change)
