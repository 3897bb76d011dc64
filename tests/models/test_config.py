"""Reading a Hugging Face configuration: right values. Wrong ones are in `test_refused_configs`."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from released_configs import CONFIGS, hub_fields

from lpu_jax.errors import ConfigError
from models.config import GqaConfig, Multipliers, RecurrentConfig
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
    # Heads are not rotated, whatever the file says.
    "nemotron-h-56b": (118, 8192, 64, 8, 128, 128, 32768, 131072, 8192, 1e-5, 1e4),
    "nemotron-3-nano-30b-a3b": (52, 2688, 32, 2, 128, 128, 1856, 131072, 262144, 1e-5, 1e4),
    "nemotron-3-super-120b-a12b": (88, 4096, 32, 2, 128, 128, 2688, 131072, 262144, 1e-5, 1e4),
    "nemotron-3-ultra-550b-a55b": (108, 8192, 64, 2, 128, 128, 5120, 131072, 262144, 1e-5, 1e4),
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
    "glm-5": (256, 8, 1, 2048, 3, "sigmoid", 1, 1, True, 2.5),
    "glm-5.2": (256, 8, 1, 2048, 3, "sigmoid", 1, 1, True, 2.5),
    "deepseek-v3": (256, 8, 1, 2048, 3, "sigmoid", 8, 4, True, 2.5),
    "deepseek-v3.2": (256, 8, 1, 2048, 3, "sigmoid", 8, 4, True, 2.5),
    "kimi-linear-48b-a3b": (256, 8, 1, 1024, 1, "sigmoid", 1, 1, True, 2.446),
    "kimi-k2-instruct": (384, 8, 1, 2048, 1, "sigmoid", 1, 1, True, 2.827),
    "kimi-k2.5": (384, 8, 1, 2048, 1, "sigmoid", 1, 1, True, 2.827),
    # A shared expert is as wide as two others.
    "nemotron-3-nano-30b-a3b": (128, 6, 2, 1856, 0, "sigmoid", 1, 1, True, 2.5),
    "nemotron-3-super-120b-a12b": (512, 22, 2, 2688, 0, "sigmoid", 1, 1, True, 5.0),
    "nemotron-3-ultra-550b-a55b": (512, 22, 2, 5120, 0, "sigmoid", 1, 1, True, 5.0),
    "minimax-m2.5": (256, 8, 0, 1536, 0, "sigmoid", 1, 1, True, 1.0),
    "ling-3.0-flash": (512, 8, 1, 768, 2, "sigmoid", 8, 4, True, 2.5),
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


def test_rotated_pairs_are_neighbours_in_few_families():
    interleaved = {path.stem for path in CONFIGS.glob("*.json") if from_hf(path).rope.interleaved}
    deepseek, kimi = {"deepseek-v3", "deepseek-v3.2"}, {"kimi-k2-instruct", "kimi-k2.5"}
    others = {"glm-5", "glm-5.2", "llama-4-scout", "llama-4-maverick", "ling-3.0-flash"}
    assert interleaved == deepseek | kimi | others


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
