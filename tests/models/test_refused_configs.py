"""Configurations that are wrong: one clear sentence each."""

import pytest
from released_configs import hub_fields

from lpu_jax.errors import ConfigError
from models.config import GqaConfig, MoeConfig
from models.hf_config import from_hf

LLAMA_MISTAKES = [
    ({"model_type": "gpt2"}, "'model_type' must be one of gpt_oss .*; got 'gpt2'"),
    ({"model_type": None}, "'model_type' must be a string of printable characters; got None"),
    ({"architectures": ["AquilaForCausalLM"]}, r"'architectures' must be \['LlamaForCausalLM'\]"),
    (
        {"hidden_size": "wide"},
        "'hidden_size' must be a whole number from 1 to 1099511627776; got 'wide'",
    ),
    (
        {"hidden_size": True},
        "'hidden_size' must be a whole number from 1 to 1099511627776; got True",
    ),
    ({"num_hidden_layers": None}, "'num_hidden_layers' must be a whole number"),
    ({"rms_norm_eps": 0}, "'rms_norm_eps' must be a number from 1e-20 to .*; got 0"),
    ({"rms_norm_eps": float("nan")}, "'rms_norm_eps' must be a number from .*; got nan"),
    ({"rope_theta": float("inf")}, "'rope_theta' must be a number from .*; got inf"),
    ({"rope_theta": 10**400}, "'rope_theta' must be a number from 1e-20 to 1099511627776"),
    ({"vocab_size": 2**40 + 1}, "'vocab_size' must be a whole number from 1 to"),
    ({"hidden_size": 10**5000}, "got a int too large to print"),
    ({"num_hidden_layers": 10_001}, "from 1 to 10000; got 10001"),
    ({"eos_token_id": [2, -1]}, "'eos_token_id' must be a token number or a list"),
    ({"eos_token_id": "stop"}, "'eos_token_id' must be a token number or a list"),
    ({"_name_or_path": "a\x1b[31m"}, r"printable characters; got 'a\\x1b\[31m'"),
    ({"torch_dtype": "a\nb"}, r"'torch_dtype' must be a string .*; got 'a\\nb'"),
    ({"dtype": "float16"}, "'dtype' must be 'bfloat16', as 'torch_dtype' says; got 'float16'"),
    ({"a\n": 3}, r"key 'a\\n' = 3 is not known"),
    ({"hidden_act": "gelu"}, "'hidden_act' must be \"silu\""),
    ({"mlp_bias": True}, "'mlp_bias' must be false"),
    ({"sliding_window": 4096}, "'sliding_window' must be null"),
    ({"partial_rotary_factor": 0.5}, "'partial_rotary_factor' must be 1.0"),
    ({"rope_interleave": True}, "'rope_interleave' must be false"),
    ({"index_topk": 2048}, "'index_topk' = 2048 is not known"),
    ({"attention_chunk_size": 8192}, "'attention_chunk_size' = 8192 is not known"),
    ({"compress_ratios": [4, 128]}, "'compress_ratios' = .* is not known"),
    ({"no_rope_layers": [1, 0]}, "'no_rope_layers' = .* is not known"),
    ({"final_logit_softcapping": 30.0}, "'final_logit_softcapping' = 30.0 is not known"),
    ({"position_embedding_type": "alibi"}, "'position_embedding_type' = 'alibi' is not known"),
    ({"layer_types": ["full_attention"]}, "'layer_types' must be a list of 32 kinds"),
    ({"layer_types": ["linear_attention"] * 32}, "'layer_types' must be a list of \"full_attent"),
    ({"layer_types": ["sliding_attention"] * 32}, "'layer_types' must be full attention only"),
    ({"layer_types": [1] * 32}, "'layer_types' must be a list of strings"),
    ({"use_qk_norm": True}, "'use_qk_norm' must be false"),
    ({"hidden_size": 2050}, "'hidden_size' must be a multiple of num_attention_heads .32. without"),
    ({"use_sliding_window": True}, "'use_sliding_window' must be false"),
    ({"n_routed_experts": 8}, "'n_routed_experts' = 8 is not known"),
    ({"rope_scaling": {"rope_type": "dynamic"}}, "rope_scaling: key 'rope_type' must be one"),
    ({"rope_scaling": {"type": "yarn"}}, "rope_scaling: key 'factor' .* it is missing"),
    ({"rope_scaling": [1]}, "'rope_scaling' must be an object or null"),
    ({"rope_parameters": {"rope_theta": 1e4}}, "'rope_scaling' must be absent beside"),
    ({"num_key_value_heads": 7}, "n_heads must be a multiple of n_kv_heads, got 32 and 7"),
    ({"text_config": 3}, "'text_config' must be an object; got 3"),
]
MISTAKES = [
    *(("llama-3.1-8b", change, message) for change, message in LLAMA_MISTAKES),
    ("deepseek-v3", {"q_lora_rank": 0}, "'q_lora_rank' must be a whole number"),
    ("deepseek-v3", {"attention_bias": True}, "'attention_bias' must be false"),
    ("deepseek-v3", {"topk_method": "greedy"}, "'topk_method' must be \"noaux_tc\""),
    ("deepseek-v3", {"scoring_func": "softmax"}, "'scoring_func' must be \"sigmoid\""),
    ("deepseek-v3", {"moe_layer_freq": 2}, "'moe_layer_freq' must be 1"),
    ("deepseek-v3", {"num_key_value_heads": 8}, "'num_key_value_heads' must be 128"),
    ("deepseek-v3", {"first_k_dense_replace": 62}, "from 0 to 61; got 62"),
    ("deepseek-v3", {"num_experts": 8}, "'num_experts' must be 256, as 'n_routed_experts' says"),
    ("deepseek-v3.2", {"index_topk": None}, "'index_topk' must be a whole number"),
    ("deepseek-v3.2", {"index_n_heads": 0}, "'index_n_heads' must be a whole number"),
    ("deepseek-v3.2", {"index_head_dim": 32}, "at most the width of an index head 32, got 64"),
    ("deepseek-v3.2", {"indexer_rope_interleave": True}, "'indexer_rope_interleave' must be false"),
    ("deepseek-v3.2", {"indexer_types": ["full"] * 61}, "'indexer_types' = .* is not known"),
    ("deepseek-v3.2", {"layer_types": ["full_attention"]}, "'layer_types' must be a list of deep"),
    ("deepseek-v3.2", {"q_lora_rank": None}, "sparse latent attention must have a latent of"),
    ("glm-5", {"indexer_rope_interleave": False}, "'indexer_rope_interleave' must be true"),
    ("glm-5.2", {"indexer_types": ["full"] * 77}, '"full" or "shared" for each of 78 layers'),
    ("glm-5.2", {"indexer_types": ["shared"] * 78}, '"full" for the first'),
    ("glm-5", {"index_topk_pattern": "FX" * 39}, "'index_topk_pattern' must be .* each of 78"),
    ("glm-5", {"index_topk_freq": 0}, "'index_topk_freq' must be a whole number from 1"),
    ("glm-5.2", {"moe_router_dtype": "bfloat16"}, "'moe_router_dtype' must be"),
    ("qwen3-235b-a22b", {"decoder_sparse_step": 2}, "'decoder_sparse_step' must be 1"),
    ("qwen3-235b-a22b", {"layer_types": ["linear_attention"] * 94}, "'layer_types' must be a list"),
    ("qwen3-next-80b-a3b", {"layer_types": ["linear_attention"] * 47}, "a list of 48 of"),
    ("kimi-linear-48b-a3b", {"linear_attn_config": None}, "'linear_attn_config' must be an object"),
    ("kimi-linear-48b-a3b", {"mla_use_nope": False}, "'mla_use_nope' must be true"),
    ("kimi-linear-48b-a3b", {"num_hidden_layers": 26}, "'kda_layers' must be the layers from 1"),
    ("qwen3-next-80b-a3b", {"layer_types": ["sliding_attention"] * 48}, "or 'full_attention'"),
    (
        "qwen3-next-80b-a3b",
        {"layer_types": ["linear_attention", "full_attention"] * 24},
        "'full_attention_interval' must be that of 'layer_types'",
    ),
    ("qwen3-next-80b-a3b", {"linear_num_key_heads": None}, "'linear_num_key_heads' must be a"),
    ("qwen3-next-80b-a3b", {"linear_num_value_heads": 24}, "a multiple of the 16 key heads"),
    ("qwen3-next-80b-a3b", {"linear_conv_kernel_dim": 1}, "a whole number from 2 to"),
    ("qwen3-next-80b-a3b", {"shared_expert_intermediate_size": 500}, "a multiple of the width of"),
    ("qwen3-next-80b-a3b", {"attn_output_gate": False}, "'attn_output_gate' must be true"),
    ("qwen3-next-80b-a3b", {"attention_bias": True}, "'attention_bias' must be false"),
    ("qwen3-next-80b-a3b", {"mamba_ssm_dtype": "bfloat16"}, "'mamba_ssm_dtype' must be"),
    ("qwen3-235b-a22b", {"decoder_sparse_step": True}, "'decoder_sparse_step' must be 1"),
    ("qwen3-235b-a22b", {"mlp_only_layers": [3]}, "'mlp_only_layers' must be the first layers"),
    ("qwen3-235b-a22b", {"mlp_only_layers": [-1]}, "must be a list of whole numbers, 0 or more"),
    ("qwen3-235b-a22b", {"norm_topk_prob": None}, "'norm_topk_prob' must be true or false"),
    ("qwen3-235b-a22b", {"n_shared_experts": 1}, "'n_shared_experts' = 1 is not known"),
    ("qwen2.5-7b", {"attention_bias": False}, "'attention_bias' must be true"),
    ("qwen2.5-7b", {"use_qk_norm": True}, "'use_qk_norm' must be false"),
    ("qwen2.5-7b", {"rope_scaling": {"type": "mrope"}}, "'type' must be one of default, llama3"),
    ("qwen3-32b", {"use_qk_norm": False}, "'use_qk_norm' must be true"),
    ("mistral-7b", {"layer_types": ["full_attention"] * 32}, "'layer_types' must be sliding atte"),
    ("phi-4", {"rope_scaling": {"type": "longrope"}}, "'type' must be \"default\", the only rule"),
    (
        "phi-4",
        {"rope_scaling": {"rope_type": "yarn", "factor": 4}},
        "'rope_type' must be \"default",
    ),
    (
        "smollm3-3b",
        {"no_rope_layers": [1, 0]},
        "'no_rope_layers' must be a list of 0 or 1 for each",
    ),
    ("smollm3-3b", {"no_rope_layers": [2] * 36}, "'no_rope_layers' must be a list of 0 or 1"),
    ("smollm3-3b", {"no_rope_layer_interval": 0}, "'no_rope_layer_interval' must be a whole"),
    ("smollm3-3b", {"use_sliding_window": True}, "'use_sliding_window' must be false"),
    ("mixtral-8x7b", {"attention_bias": True}, "'attention_bias' must be false"),
    ("mixtral-8x7b", {"norm_topk_prob": False}, "'norm_topk_prob' must be true"),
    ("gpt-oss-20b", {"sliding_window": None}, "'layer_types' must be full attention only"),
    ("gpt-oss-20b", {"swiglu_limit": None}, "'swiglu_limit' must be a number"),
    ("gpt-oss-20b", {"experts_per_token": 8}, "'experts_per_token' must be 4, as"),
    ("gpt-oss-20b", {"initial_context_length": 8}, "'initial_context_length' must be 4096"),
    ("glm-4.6", {"partial_rotary_factor": None}, "'partial_rotary_factor' must be a number"),
    ("glm-4.6", {"partial_rotary_factor": 1.5}, "rope.dim must be at most the head width 128"),
    ("ling-1t", {"architectures": ["BailingMoeForCausalLM"]}, "'architectures' must be"),
    ("ling-1t", {"partial_rotary_factor": 1.0}, "'rotary_dim' must be 128"),
    ("ling-1t", {"use_qkv_bias": True}, "'use_qkv_bias' must be false"),
    ("ling-1t", {"use_rmsnorm": False}, "'use_rmsnorm' must be true"),
    ("ling-1t", {"moe_shared_expert_intermediate_size": 4096}, "must be 2048"),
]


@pytest.mark.parametrize(("name", "change", "message"), MISTAKES)
def test_a_bad_key_is_refused_by_name(name, change, message):
    with pytest.raises(ConfigError, match=message):
        from_hf(hub_fields(name) | change)


def test_every_size_of_the_deepseek_file_is_needed():
    """Removing any size must fail or change the result: nothing is read and dropped."""
    fields = hub_fields("deepseek-v3")
    whole = from_hf(fields)
    sizes = [key for key, value in fields.items() if type(value) is int]
    derived = {"bos_token_id", "ep_size", "num_nextn_predict_layers", "num_key_value_heads"}
    for key in set(sizes) - derived - {"moe_layer_freq"}:
        rest = {other: value for other, value in fields.items() if other != key}
        try:
            is_noticed = from_hf(rest) != whole
        except ConfigError:
            is_noticed = True
        assert is_noticed, key


def test_a_broken_file_is_named(tmp_path):
    broken = tmp_path / "config.json"
    broken.write_text('{"model_type": "llama",')
    with pytest.raises(ConfigError, match=r"config\.json: not valid JSON"):
        from_hf(tmp_path)
    broken.write_text("[1]")
    with pytest.raises(ConfigError, match="must hold a JSON object, got list"):
        from_hf(broken)
    broken.write_text("[" * 100_000)
    with pytest.raises(ConfigError, match=r"config\.json: not valid JSON: nested too deeply"):
        from_hf(broken)
    broken.write_text('{"hidden_size": ' + "9" * 5000 + "}")
    with pytest.raises(ConfigError, match=r"config\.json: not valid JSON"):
        from_hf(broken)
    with pytest.raises(ConfigError, match=r"absent\.json: cannot be read"):
        from_hf(tmp_path / "absent.json")
    with pytest.raises(ConfigError, match=r"cannot be read: File name too long"):
        from_hf(tmp_path / ("x" * 300))
    with pytest.raises(ConfigError, match=r"bell\\x07\.json'.* printable"):
        from_hf(tmp_path / "bell\a.json")


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match=r"GqaConfig\.head_dim must be above 0, got 0"):
        GqaConfig(n_heads=4, n_kv_heads=2, head_dim=0)
    with pytest.raises(ConfigError, match="top_k must fit in the chosen groups"):
        MoeConfig(n_experts=8, top_k=5, n_shared=0, d_expert=4, n_groups=4, topk_groups=2)
