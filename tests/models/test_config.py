"""Reading a Hugging Face configuration: right values, and one clear sentence when it is wrong."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lpu_jax.errors import ConfigError
from models.config import GqaConfig, MlaConfig, MoeConfig
from models.hf_config import from_hf

DATA = Path(__file__).parent / "data"
ROPE_FACTS = json.loads((DATA / "rope.json").read_text())

# transformers evaluates the same formulas in float32: a few ulps of 2**-24 each.
FLOAT32_FORMULA = 1e-6


def hub_fields(name: str) -> dict:
    return json.loads((DATA / "configs" / f"{name}.json").read_text())


@pytest.mark.parametrize("name", sorted(ROPE_FACTS))
def test_rope_frequencies_equal_those_of_transformers(name):
    model_cfg = from_hf(DATA / "configs" / f"{name}.json")
    facts = ROPE_FACTS[name]
    np.testing.assert_allclose(
        model_cfg.rope.inverse_frequencies(), facts["inverse_frequencies"], rtol=FLOAT32_FORMULA
    )
    assert model_cfg.rope.attention_factor == pytest.approx(facts["attention_factor"])


@pytest.mark.parametrize("name", ["deepseek-v3", "kimi-k2-instruct", "kimi-k2.5"])
def test_latent_softmax_scale_includes_the_squared_temperature(name):
    model_cfg = from_hf(DATA / "configs" / f"{name}.json")
    expected = ROPE_FACTS[name]["softmax_scale"]
    assert model_cfg.attention.softmax_scale == pytest.approx(expected, rel=1e-12)
    assert expected > model_cfg.attention.query_head_dim**-0.5


def test_text_part_of_a_multimodal_file_is_read():
    model_cfg = from_hf(DATA / "configs" / "kimi-k2.5.json")
    assert model_cfg.max_position == 262144
    assert model_cfg.norm_eps == 1e-5
    assert isinstance(model_cfg.attention, MlaConfig)
    assert model_cfg.attention.latent_norm_eps == 1e-6
    assert model_cfg.released_format == "int4"


def test_both_rope_spellings_mean_the_same():
    hub = hub_fields("llama-3.1-8b")
    modern = dict(hub)
    rules = modern.pop("rope_scaling")
    modern["rope_parameters"] = rules | {"rope_theta": modern.pop("rope_theta")}
    assert from_hf(hub) == from_hf(modern)


def test_layer_kinds_and_cache_bytes():
    model_cfg = from_hf(DATA / "configs" / "deepseek-v3.json")
    assert [model_cfg.is_moe_layer(layer) for layer in (0, 2, 3, 60)] == [False, False, True, True]
    # KiB per token of the published table, 68.6.
    assert model_cfg.kv_bytes_per_token() == 61 * (512 + 64) * 2
    assert replace(model_cfg, n_layers=2).n_moe_layers == 0
    with pytest.raises(ConfigError, match="layer must be 0 to 60, got 61"):
        model_cfg.is_moe_layer(61)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mixtral"}, "'model_type' must be one of llama, deepseek_v3, kimi_k2"),
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
        ({"_name_or_path": "a\x1b[31m"}, r"printable characters; got 'a\\x1b\[31m'"),
        ({"torch_dtype": "a\nb"}, r"'torch_dtype' must be a text .*; got 'a\\nb'"),
        ({"a\n": 3}, r"key 'a\\n' = 3 is not known"),
        ({"hidden_act": "gelu"}, "'hidden_act' must be \"silu\""),
        ({"attention_bias": True}, "'attention_bias' must be false"),
        ({"sliding_window": 4096}, "'sliding_window' must be null"),
        ({"index_topk": 2048}, "'index_topk' = 2048 is not known"),
        ({"layer_types": ["full_attention"]}, "'layer_types' .* is not known"),
        ({"use_qk_norm": True}, "'use_qk_norm' = True is not known"),
        ({"rope_scaling": {"rope_type": "dynamic"}}, "rope_scaling: key 'rope_type' must be one"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling: key 'factor' .* it is missing"),
        ({"rope_scaling": [1]}, "'rope_scaling' must be an object or null"),
        ({"num_key_value_heads": 7}, "n_heads must be a multiple of n_kv_heads, got 32 and 7"),
        ({"eos_token_id": "stop"}, "'eos_token_id' must be a token number or a list"),
    ],
)
def test_a_bad_key_is_refused_by_name(change, message):
    with pytest.raises(ConfigError, match=message):
        from_hf(hub_fields("llama-3.1-8b") | change)


def test_another_architecture_is_refused():
    with pytest.raises(ConfigError, match=r"mixtral-8x7b\.json: key 'model_type'.*got 'mixtral'"):
        from_hf(DATA / "configs" / "mixtral-8x7b.json")


def test_a_missing_key_is_refused_by_name():
    fields = hub_fields("deepseek-v3")
    del fields["kv_lora_rank"]
    with pytest.raises(ConfigError, match=r"'kv_lora_rank' .*; it is missing"):
        from_hf(fields)


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
    with pytest.raises(ConfigError, match=r"bell\\x07\.json'.* printable"):
        from_hf(tmp_path / "bell\a.json")


@pytest.mark.parametrize("bits", [None, "four", 0, 17])
def test_a_width_of_stored_weights_must_be_a_number_of_bits(bits):
    weights = {"type": "int", "num_bits": bits}
    quantisation = {"quant_method": "compressed-tensors", "config_groups": {"all": {}}}
    quantisation["config_groups"]["all"]["weights"] = weights
    with pytest.raises(ConfigError, match="'num_bits' must be a whole number from 1 to 16"):
        from_hf(hub_fields("llama-3.1-8b") | {"quantization_config": quantisation})


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match=r"GqaConfig\.head_dim must be above 0, got 0"):
        GqaConfig(n_heads=4, n_kv_heads=2, head_dim=0)
    with pytest.raises(ConfigError, match="top_k must fit in the chosen groups"):
        MoeConfig(n_experts=8, top_k=5, n_shared=0, d_expert=4, n_groups=4, topk_groups=2)
