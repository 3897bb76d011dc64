"""Reading a Hugging Face configuration: right values, and one clear sentence when it is wrong."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from released_configs import CONFIGS, hub_fields

from lpu_jax.errors import ConfigError
from models.config import GqaConfig, MoeConfig, Multipliers, RecurrentConfig
from models.hf_config import from_hf
from models.params import n_parameters

DATA = Path(__file__).parent / "data"
ROPE_FACTS = json.loads((DATA / "rope.json").read_text())

# transformers evaluates the same formulas in float32: a few ulps of 2**-24 each.
FLOAT32_FORMULA = 1e-6

# As printed on model cards and in papers: layers, width, query and key-value heads, head width,
# rotated values, dense width, vocabulary, positions, epsilon, base of rotation.
GROUPED = {
    "llama-2-70b": (80, 8192, 64, 8, 128, 128, 28672, 32000, 4096, 1e-5, 1e4),
    "llama-3.1-8b": (32, 4096, 32, 8, 128, 128, 14336, 128256, 131072, 1e-5, 5e5),
    "llama-3.1-70b": (80, 8192, 64, 8, 128, 128, 28672, 128256, 131072, 1e-5, 5e5),
    "llama-3.1-405b": (126, 16384, 128, 8, 128, 128, 53248, 128256, 131072, 1e-5, 5e5),
    "mistral-7b": (32, 4096, 32, 8, 128, 128, 14336, 32000, 32768, 1e-5, 1e4),
    "mixtral-8x7b": (32, 4096, 32, 8, 128, 128, 14336, 32000, 32768, 1e-5, 1e6),
    "mixtral-8x22b": (56, 6144, 48, 8, 128, 128, 16384, 32000, 65536, 1e-5, 1e6),
    "smollm3-3b": (36, 2048, 16, 4, 128, 128, 11008, 128256, 65536, 1e-6, 5e6),
    "phi-4": (40, 5120, 40, 10, 128, 128, 17920, 100352, 16384, 1e-5, 250000),
    "qwen2.5-7b": (28, 3584, 28, 4, 128, 128, 18944, 152064, 32768, 1e-6, 1e6),
    "qwen2.5-72b": (80, 8192, 64, 8, 128, 128, 29568, 152064, 32768, 1e-6, 1e6),
    "qwen3-32b": (64, 5120, 64, 8, 128, 128, 25600, 151936, 40960, 1e-6, 1e6),
    "qwen3-235b-a22b": (94, 4096, 64, 4, 128, 128, 12288, 151936, 40960, 1e-6, 1e6),
    "qwen3-next-80b-a3b": (48, 2048, 16, 2, 256, 64, 5120, 151936, 262144, 1e-6, 1e7),
    # No layer is dense: the width of an expert stands in its place.
    "qwen3.5-397b-a17b": (60, 4096, 32, 2, 256, 64, 1024, 248320, 262144, 1e-6, 1e7),
    "gpt-oss-20b": (24, 2880, 64, 8, 64, 64, 2880, 201088, 131072, 1e-5, 150000),
    "gpt-oss-120b": (36, 2880, 64, 8, 64, 64, 2880, 201088, 131072, 1e-5, 150000),
    "glm-4.6": (92, 5120, 96, 8, 128, 64, 12288, 151552, 202752, 1e-5, 1e6),
    "minimax-m2.5": (62, 3072, 48, 8, 128, 64, 1536, 200064, 196608, 1e-6, 5e6),
    "ling-1t": (80, 8192, 64, 8, 128, 64, 18432, 157184, 32768, 1e-6, 6e5),
}
# Routed experts, top-k, shared, width, dense layers, score, groups and those kept, correction
# bias, scaling. All renormalise.
ROUTED = {
    "mixtral-8x7b": (8, 2, 0, 14336, 0, "softmax", 1, 1, False, 1.0),
    "mixtral-8x22b": (8, 2, 0, 16384, 0, "softmax", 1, 1, False, 1.0),
    "qwen3-235b-a22b": (128, 8, 0, 1536, 0, "softmax", 1, 1, False, 1.0),
    "qwen3-next-80b-a3b": (512, 10, 1, 512, 0, "softmax", 1, 1, False, 1.0),
    "qwen3.5-397b-a17b": (512, 10, 1, 1024, 0, "softmax", 1, 1, False, 1.0),
    "gpt-oss-20b": (32, 4, 0, 2880, 0, "softmax_after_top_k", 1, 1, False, 1.0),
    "gpt-oss-120b": (128, 4, 0, 2880, 0, "softmax_after_top_k", 1, 1, False, 1.0),
    "glm-4.6": (160, 8, 1, 1536, 3, "sigmoid", 1, 1, True, 2.5),
    "deepseek-v3": (256, 8, 1, 2048, 3, "sigmoid", 8, 4, True, 2.5),
    "kimi-linear-48b-a3b": (256, 8, 1, 1024, 1, "sigmoid", 1, 1, True, 2.446),
    "kimi-k2-instruct": (384, 8, 1, 2048, 1, "sigmoid", 1, 1, True, 2.827),
    "kimi-k2.5": (384, 8, 1, 2048, 1, "sigmoid", 1, 1, True, 2.827),
    "minimax-m2.5": (256, 8, 0, 1536, 0, "sigmoid", 1, 1, True, 1.0),
    "ling-1t": (256, 8, 1, 2048, 4, "sigmoid", 8, 4, True, 2.5),
}


@pytest.mark.parametrize("name", sorted(GROUPED))
def test_sizes_are_the_published_ones(name):
    cfg = from_hf(CONFIGS / f"{name}.json")
    gqa = cfg.attention
    assert isinstance(gqa, GqaConfig)
    assert GROUPED[name] == (
        *(cfg.n_layers, cfg.d_model, gqa.n_heads, gqa.n_kv_heads, gqa.head_dim, cfg.rope.dim),
        *(cfg.d_ff, cfg.vocab_size, cfg.max_position, cfg.norm_eps, cfg.rope.theta),
    )
    assert not cfg.rope.interleaved
    assert cfg.tie_embeddings == (name == "smollm3-3b")


@pytest.mark.parametrize("name", sorted(ROUTED))
def test_routing_is_the_published_one(name):
    moe = from_hf(CONFIGS / f"{name}.json").moe
    assert moe is not None
    assert ROUTED[name] == (
        *(moe.n_experts, moe.top_k, moe.n_shared, moe.d_expert, moe.n_dense_layers, moe.scoring),
        *(moe.n_groups, moe.topk_groups, moe.correction_bias, moe.routed_scaling),
    )
    assert moe.normalise


def test_what_only_the_type_of_model_tells():
    qwen, gpt, glm, ling, old_qwen = (
        from_hf(CONFIGS / f"{name}.json")
        for name in ("qwen3-32b", "gpt-oss-20b", "glm-4.6", "ling-1t", "qwen2.5-7b")
    )
    assert (qwen.attention.qk_norm, glm.attention.qk_norm, ling.attention.qk_norm) == (True,) * 3
    assert (gpt.attention.qk_norm, gpt.attention.sinks, glm.attention.sinks) == (False, True, False)
    biases = [
        (cfg.attention.qkv_bias, cfg.attention.o_bias) for cfg in (qwen, gpt, glm, ling, old_qwen)
    ]
    assert biases == [(False, False), (True, True), (True, False), (False, False), (True, False)]
    assert not old_qwen.attention.qk_norm
    minimax = from_hf(CONFIGS / "minimax-m2.5.json")
    assert [cfg.attention.is_qk_norm_joint for cfg in (qwen, glm, minimax)] == [False, False, True]
    assert (minimax.n_prediction_layers, minimax.released_format) == (3, "fp8")
    assert (gpt.moe.router_offset, gpt.moe.expert_bias) == (True, True)
    assert (gpt.moe.swiglu_limit, gpt.moe.swiglu_alpha) == (7.0, 1.702)
    assert (gpt.attention.window, gpt.sliding_layers) == (128, tuple(range(0, 24, 2)))
    # 0.1 ln 32 + 1
    assert gpt.rope.attention_factor == pytest.approx(1.3466, abs=5e-5)
    assert not gpt.rope.scaling.truncate


@pytest.mark.parametrize(
    ("name", "n_values"), [("qwen3-next-80b-a3b", 32), ("qwen3.5-397b-a17b", 64)]
)
def test_recurrent_layers_are_all_but_every_fourth(name: str, n_values: int):
    cfg = from_hf(CONFIGS / f"{name}.json")
    n = cfg.n_layers
    assert cfg.recurrent_layers == tuple(i for i in range(n) if i % 4 != 3)
    assert cfg.recurrent == RecurrentConfig(
        n_key_heads=16, n_value_heads=n_values, key_dim=128, value_dim=128, taps=4
    )
    assert (cfg.attention.gated, cfg.attention.qk_norm, cfg.moe.gated_shared) == (True,) * 3
    # Keys and values of 2 heads of 256 in a quarter of the layers, in 16 bits.
    assert cfg.kv_bytes_per_token() == n // 4 * 2 * 2 * 256 * 2
    # States in fp32, and three inputs of queries, keys and values in 16 bits, in all others.
    kept = 4 * n_values * 128 * 128 + 3 * 2 * (2 * 16 + n_values) * 128
    assert cfg.state_bytes_per_sequence() == n * 3 // 4 * kept


def test_kimi_linear_attends_where_its_file_says_and_turns_nothing():
    cfg = from_hf(CONFIGS / "kimi-linear-48b-a3b.json")
    assert cfg.unrotated_layers == (3, 7, 11, 15, 19, 23, 26)
    assert sorted(cfg.unrotated_layers + cfg.recurrent_layers) == list(range(27))
    assert cfg.recurrent == RecurrentConfig(
        n_key_heads=32, n_value_heads=32, key_dim=128, value_dim=128, taps=4, channel_rank=128
    )
    assert (cfg.n_layers, cfg.d_model, cfg.d_ff, cfg.max_position) == (27, 2304, 9216, 1048576)
    assert cfg.attention.cached_values_per_token == 512 + 64
    assert cfg.kv_bytes_per_token() == 7 * 576 * 2


@pytest.mark.parametrize("name", sorted(name for name in ROPE_FACTS if " " not in name))
def test_rope_frequencies_equal_those_of_transformers(name):
    model_cfg = from_hf(CONFIGS / f"{name}.json")
    facts = ROPE_FACTS[name]
    np.testing.assert_allclose(
        model_cfg.rope.inverse_frequencies(), facts["inverse_frequencies"], rtol=FLOAT32_FORMULA
    )
    assert model_cfg.rope.attention_factor == pytest.approx(facts["attention_factor"])


def test_a_file_may_say_what_multiplies_cos_and_sin():
    """transformers' `_compute_yarn_parameters` takes it in place of what it would compute."""
    fields = hub_fields("deepseek-v3")
    plain, said = (
        from_hf(fields | {"rope_scaling": fields["rope_scaling"] | more})
        for more in ({}, {"attention_factor": 0.75})
    )
    expected = ROPE_FACTS["deepseek-v3 with attention_factor 0.75"]
    assert said.rope.attention_factor == expected["attention_factor"] == 0.75
    assert plain.rope.attention_factor == 1.0
    np.testing.assert_array_equal(said.rope.inverse_frequencies(), plain.rope.inverse_frequencies())
    assert said.attention.softmax_scale == pytest.approx(expected["softmax_scale"], rel=1e-12)


@pytest.mark.parametrize("key", ["mscale", "mscale_all_dim"])
def test_a_temperature_of_zero_is_none(key):
    """transformers tests `if mscale and mscale_all_dim`, so that 0.1 ln 40 + 1 is left."""
    fields = hub_fields("deepseek-v3")
    rules = fields["rope_scaling"]
    rest = {other: value for other, value in rules.items() if other != key}
    found = from_hf(fields | {"rope_scaling": rules | {key: 0}})
    assert found == from_hf(fields | {"rope_scaling": rest})
    assert found.rope.attention_factor == pytest.approx(0.1 * np.log(40) + 1)
    assert (found.attention.rope_temperature == 1.0) == (key == "mscale_all_dim")


def test_both_spellings_of_the_scaling_may_stand_side_by_side():
    fields = hub_fields("deepseek-v3")
    both = fields["rope_scaling"] | {"rope_theta": fields["rope_theta"]}
    assert from_hf(fields | {"rope_parameters": both}) == from_hf(fields)
    both["rope_type"] = both.pop("type")
    assert from_hf(fields | {"rope_parameters": both}) == from_hf(fields)
    for change in ({"factor": 41}, {"truncate": False}):
        with pytest.raises(ConfigError, match=r"'rope_scaling' must be absent .*or equal to it"):
            from_hf(fields | {"rope_parameters": both | change})


@pytest.mark.parametrize("name", ["deepseek-v3", "kimi-k2-instruct", "kimi-k2.5"])
def test_latent_softmax_scale_includes_the_squared_temperature(name):
    model_cfg = from_hf(CONFIGS / f"{name}.json")
    expected = ROPE_FACTS[name]["softmax_scale"]
    assert model_cfg.attention.softmax_scale == pytest.approx(expected, rel=1e-12)
    assert expected > model_cfg.attention.query_head_dim**-0.5


def test_rotated_pairs_are_neighbours_in_deepseek_and_kimi_only():
    interleaved = {path.stem for path in CONFIGS.glob("*.json") if from_hf(path).rope.interleaved}
    assert interleaved == {"deepseek-v3", "kimi-k2-instruct", "kimi-k2.5"}


def test_layer_kinds_and_cache_bytes():
    model_cfg = from_hf(CONFIGS / "deepseek-v3.json")
    assert [model_cfg.is_moe_layer(layer) for layer in (0, 2, 3, 60)] == [False, False, True, True]
    # KiB per token of the published table, 68.6.
    assert model_cfg.kv_bytes_per_token() == 61 * (512 + 64) * 2
    assert replace(model_cfg, n_layers=2).n_moe_layers == 0
    with pytest.raises(ConfigError, match="layer must be 0 to 60, got 61"):
        model_cfg.is_moe_layer(61)


def test_leading_dense_layers_may_be_listed():
    fields = hub_fields("qwen3-235b-a22b")
    assert from_hf(fields | {"mlp_only_layers": [0, 1]}).moe.n_dense_layers == 2
    glm = hub_fields("glm-4.6")
    kinds = ["dense"] * 3 + ["sparse"] * 89
    assert from_hf(glm | {"mlp_layer_types": kinds}) == from_hf(glm)


def test_windows_follow_the_type_of_model():
    mixtral = from_hf(hub_fields("mixtral-8x7b") | {"sliding_window": 4096})
    assert (mixtral.attention.window, mixtral.sliding_layers) == (4096, tuple(range(32)))
    qwen = hub_fields("qwen3-32b")
    assert from_hf(qwen | {"sliding_window": 4096}) == from_hf(qwen)
    all_slide = {"layer_types": ["sliding_attention"] * 32}
    mistral = from_hf(hub_fields("mistral-7b") | all_slide)
    assert mistral == from_hf(hub_fields("mistral-7b"))
    assert (mistral.attention.window, mistral.sliding_layers) == (4096, tuple(range(32)))
    no_window = from_hf(hub_fields("mistral-7b") | {"sliding_window": None})
    assert (no_window.attention.window, no_window.sliding_layers) == (None, ())
    kinds = ["full_attention"] * 60 + ["sliding_attention"] * 4
    switched = {"sliding_window": 4096, "use_sliding_window": True, "layer_types": kinds}
    assert from_hf(qwen | switched).sliding_layers == (60, 61, 62, 63)
    # Without a list, the layers from `max_window_layers` on: 64 in the file, so none.
    late = {"sliding_window": 4096, "use_sliding_window": True}
    assert from_hf(qwen | late) == from_hf(qwen)
    assert from_hf(qwen | late | {"max_window_layers": 62}).sliding_layers == (62, 63)
    assert from_hf(hub_fields("qwen2.5-7b") | late | {"max_window_layers": 26}).sliding_layers == (
        *(26, 27),
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("llama-3.1-8b", {"use_qk_norm": False, "qkv_bias": False, "rope_interleaved": False}),
        ("llama-3.1-8b", {"original_max_position_embeddings": 0, "qk_norm": False}),
        ("llama-2-70b", {"rope_scaling": {}, "original_max_position_embeddings": 4096}),
        ("qwen3-235b-a22b", {"use_qk_norm": True}),
        ("qwen2.5-7b", {"attention_bias": True, "qkv_bias": True, "use_qk_norm": False}),
        ("phi-4", {"partial_rotary_factor": 1.0, "rope_scaling": {"rope_type": "default"}}),
        ("deepseek-v3", {"rope_interleave": True, "rope_interleaved": True}),
        ("ling-1t", {"use_bias": False, "use_qkv_bias": False}),
        ("smollm2-135m", {"is_llama_config": True, "rope_interleaved": False, "pretraining_tp": 1}),
        ("llama-3.1-8b", {"tokenizer_model_max_length": 8192, "internal_version": "2.1"}),
        ("llama-3.1-8b", {"transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}}}),
    ],
)
def test_what_repeats_a_rule_or_can_bear_no_size_says_nothing(name, said):
    assert from_hf(hub_fields(name) | said) == from_hf(hub_fields(name))


def test_layers_without_rotation_are_listed_or_follow_from_an_interval():
    fields = hub_fields("smollm3-3b")
    listed = from_hf(fields)
    assert listed.unrotated_layers == tuple(range(3, 36, 4))
    rest = {key: value for key, value in fields.items() if not key.startswith("no_rope")}
    assert from_hf(rest) == from_hf(rest | {"no_rope_layer_interval": 4}) == listed
    assert from_hf(rest | {"no_rope_layer_interval": 18}).unrotated_layers == (17, 35)
    # The list goes before the interval.
    assert from_hf(fields | {"no_rope_layer_interval": 18}) == listed
    assert from_hf(fields | {"sliding_window": 4096}) == listed  # switched off
    with pytest.raises(ConfigError, match=r"unrotated_layers must be ascending layers .*\(36,\)"):
        replace(listed, unrotated_layers=(36,))
    windowed = replace(listed, attention=replace(listed.attention, window=8))
    with pytest.raises(ConfigError, match=r"without rotation must not be a sliding one, got \[3\]"):
        replace(windowed, sliding_layers=(2, 3))
    net = from_hf(hub_fields("qwen3-next-80b-a3b")).recurrent
    with pytest.raises(ConfigError, match=r"neither a sliding one nor one .* rotation, got \[3\]"):
        replace(listed, recurrent=net, recurrent_layers=(3, 4))
    with pytest.raises(ConfigError, match="recurrent layers need a RecurrentConfig"):
        replace(listed, recurrent_layers=(0,))


def test_queries_may_have_no_latent():
    fields = hub_fields("deepseek-v3")
    found = from_hf(fields | {"q_lora_rank": None})
    assert found.attention.q_lora_rank is None
    # One matrix in place of two and a norm.
    fewer = 7168 * 1536 + 1536 + 1536 * 128 * 192 - 7168 * 128 * 192
    assert n_parameters(from_hf(fields)) - n_parameters(found) == 61 * fewer
    with pytest.raises(ConfigError, match=r"'q_lora_rank' must be a whole number .* it is missing"):
        from_hf({key: value for key, value in fields.items() if key != "q_lora_rank"})


def test_multipliers_are_those_of_the_file():
    granite = hub_fields("llama-3.1-8b") | {
        "model_type": "granite",
        "architectures": ["GraniteForCausalLM"],
    }
    plain = from_hf(granite)  # the class's own: all are 1, that of attention too
    assert (plain.multipliers, plain.attention.softmax_scale) == (Multipliers(), 1.0)
    said = {"embedding_multiplier": 12, "residual_multiplier": 0.22, "logits_scaling": 16.0}
    found = from_hf(granite | said | {"attention_multiplier": 0.0078125})
    assert found.multipliers == Multipliers(embedding=12.0, residual=0.22, logits=16.0)
    assert found.attention.softmax_scale == 0.0078125
    with pytest.raises(ConfigError, match="'residual_multiplier' must be a number from"):
        from_hf(granite | {"residual_multiplier": 0})
    with pytest.raises(ConfigError, match=r"'logits_scaling' = 16\.0 is not known"):
        from_hf(hub_fields("llama-3.1-8b") | {"logits_scaling": 16.0})


def test_how_a_scaled_model_was_tuned_says_nothing():
    fields = hub_fields("deepseek-v3")
    tuned = fields["rope_scaling"] | {"finetuned": True}
    assert from_hf(fields | {"rope_scaling": tuned}) == from_hf(fields)


def test_a_folder_gives_its_whole_name(tmp_path):
    fields = hub_fields("llama-3.1-8b")
    fields.pop("_name_or_path", None)
    folder = tmp_path / "Meta-Llama-3.1-8B"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(fields))
    assert from_hf(folder).name == from_hf(folder / "config.json").name == "Meta-Llama-3.1-8B"
    (folder / "tiny.v2.json").write_text(json.dumps(fields))
    assert from_hf(folder / "tiny.v2.json").name == "tiny.v2"
    for path in ("/fsx/runs/step-1000", "./out", "../out", "C:\\models\\mine", "a/b/c", "~/m", ""):
        (folder / "config.json").write_text(json.dumps(fields | {"_name_or_path": path}))
        assert from_hf(folder).name == "Meta-Llama-3.1-8B"
    for name in ("meta-llama/Llama-3.1-8B", "gpt2-like"):
        (folder / "config.json").write_text(json.dumps(fields | {"_name_or_path": name}))
        assert from_hf(folder).name == name


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
