"""Bytes of released checkpoints against published sizes; what a file spares from its format."""

import dataclasses
import json

import pytest
from released_configs import CONFIGS

from lpu_jax.errors import ConfigError
from models.hf_config import from_hf
from models.params import n_parameters
from models.policy import policy_named
from models.released import released_bytes
from models.zoo import model

# GB, GiB and KiB of cache per token with 16-bit values, to one decimal. The files of gpt-oss have
# 12.8 and 60.8 GiB by its model card, those of Kimi K2.5 594 GB.
PUBLISHED = {
    "llama-2-70b": (138.0, 128.5, 320.0),
    "llama-3.1-8b": (16.1, 15.0, 128.0),
    "llama-3.1-70b": (141.1, 131.4, 320.0),
    "llama-3.1-405b": (811.7, 756.0, 504.0),
    "mixtral-8x7b": (93.4, 87.0, 128.0),
    "mixtral-8x22b": (281.2, 261.9, 224.0),
    "qwen3-32b": (65.5, 61.0, 256.0),
    "qwen3-235b-a22b": (470.2, 437.9, 188.0),
    "qwen3-next-80b-a3b": (159.3, 148.4, 24.0),
    "qwen3.5-397b-a17b": (792.7, 738.3, 30.0),
    "gpt-oss-20b": (13.8, 12.8, 48.0),
    "gpt-oss-120b": (65.2, 60.8, 72.0),
    "glm-4.6": (705.6, 657.1, 368.0),
    "glm-5": (1487.8, 1385.6, 107.2),
    "glm-5.2": (1486.8, 1384.6, 93.0),
    "deepseek-v3": (673.2, 626.9, 68.6),
    "deepseek-v3.2": (674.0, 627.7, 83.9),
    "kimi-linear-48b-a3b": (98.2, 91.5, 7.9),
    "nemotron-3-nano-30b-a3b": (63.2, 58.8, 6.0),
    "nemotron-3-ultra-550b-a55b": (1098.6, 1023.2, 12.0),
    "kimi-k2": (1029.2, 958.5, 68.6),
    "kimi-k2.5": (594.2, 553.4, 68.6),
}


def fields_of(name: str) -> dict:
    fields = json.loads((CONFIGS / f"{name}.json").read_text())
    return fields.get("text_config", fields)


def with_block(name: str, **changes) -> dict:
    fields = fields_of(name)
    return fields | {"quantization_config": fields.get("quantization_config", {}) | changes}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_bytes_equal_the_published_sizes(name):
    cfg = model(name)
    found = released_bytes(cfg)
    per_token = cfg.kv_bytes_per_token() / 2**10
    rounded = tuple(round(value, 1) for value in (found / 1e9, found / 2**30, per_token))
    assert rounded == PUBLISHED[name]


def test_bytes_of_narrow_experts_by_hand():
    """Kimi K2.5: 4.5 bits of each weight of 384 experts in 60 layers, 16 of the rest."""
    experts = 60 * 384 * 3 * 7168 * 2048
    rest = n_parameters(model("kimi-k2.5")) - experts
    assert released_bytes(model("kimi-k2.5")) == experts * 4.5 / 8 + rest * 2


def test_biases_of_experts_stay_wide():
    """gpt-oss-20b: 4.25 bits of the matrices of 32 experts in 24 layers, not of their biases."""
    experts = 24 * 32 * 3 * 2880 * 2880
    rest = n_parameters(model("gpt-oss-20b")) - experts
    assert released_bytes(model("gpt-oss-20b")) == experts * 4.25 / 8 + rest * 2


def test_plain_formats_have_one_width():
    cfg = model("llama-3.1-8b")
    wide = dataclasses.replace(cfg, released_format="fp32")
    assert released_bytes(wide) == 2 * released_bytes(cfg) == 4 * n_parameters(cfg)


@pytest.mark.parametrize(
    ("name", "released", "policy"),
    [
        ("gpt-oss-120b", "mxfp4", "mxfp4-experts"),
        ("kimi-k2", "fp8", "fp8"),
        ("kimi-k2.5", "int4", "int4"),
        ("glm-4.6", "bf16", "bf16"),
        ("qwen3-32b", "bf16", "bf16"),
        ("mixtral-8x22b", "bf16", "bf16"),
        ("ling-1t", "bf16", "bf16"),
        ("llama-2-70b", "fp16", "fp16"),
    ],
)
def test_a_policy_holds_every_released_format(name, released, policy):
    assert model(name).released_format == released
    assert model(name).released_roles is None
    assert policy_named("released", model(name)).name == policy


def narrow_roles(fields: dict) -> set[str]:
    cfg = from_hf(fields)
    assert cfg.released_format in {"fp8", "int4", "mxfp4"}
    policy = policy_named("released", cfg)
    return {role for role, scheme in policy.weights.items() if scheme.bits_per_value < 16}


EVERY = {"attention", "dense", "expert", "shared"}


@pytest.mark.parametrize(
    ("spared", "narrow"),
    [
        ([], EVERY),
        (["lm_head", "model.embed_tokens"], EVERY),
        (["self_attn"], EVERY),  # the end of no module's name, nor the start of one
        (["model.layers.*.self_attn"], EVERY - {"attention"}),
        (["model.layers.*.mlp"], {"attention"}),
        # The router's pattern must not take gate_proj with it.
        (["model.layers.*.mlp.gate"], EVERY),
        ([f"model.layers.{layer}.self_attn" for layer in range(61)], EVERY - {"attention"}),
        (["down_proj", "gate_proj", "up_proj"], {"attention"}),
    ],
)
def test_modules_named_in_an_fp8_file_stay_wide(spared, narrow):
    assert narrow_roles(with_block("deepseek-v3", modules_to_not_convert=spared)) == narrow


def test_what_stays_wide_has_two_bytes():
    whole = from_hf(fields_of("deepseek-v3"))
    block = {"modules_to_not_convert": ["model.layers.*.self_attn"]}
    cfg = from_hf(with_block("deepseek-v3", **block))
    # Both down and both up projections, keys, values and output of 128 heads in 61 layers.
    attention = 7168 * 2112 + 1536 * 128 * 192 + 512 * 128 * 256 + 128 * 128 * 7168
    wider = 61 * attention * (2 - 1 - 4 / 128**2)
    assert released_bytes(cfg) - released_bytes(whole) == pytest.approx(wider, rel=1e-12)


def test_ignored_modules_of_compressed_tensors_stay_wide():
    ignore = fields_of("kimi-k2.5")["quantization_config"]["ignore"]
    assert narrow_roles(fields_of("kimi-k2.5")) == {"expert"}
    assert narrow_roles(with_block("kimi-k2.5", ignore=ignore[1:])) == {"expert", "head"}
    assert narrow_roles(with_block("kimi-k2.5", ignore=["re:.*self_attn.*"])) == (
        {"dense", "expert", "shared", "head"}
    )
    weights = {"num_bits": 4, "type": "int", "group_size": 32, "strategy": "group"}
    group = {"targets": ["re:.*mlp.experts.*", "lm_head"], "weights": weights}
    fields = with_block("kimi-k2.5", config_groups={"a": group}, ignore=[])
    assert narrow_roles(fields) == {"expert", "head"}
    dense = fields_of("llama-3.1-8b")
    dense["quantization_config"] = fields_of("kimi-k2.5")["quantization_config"]
    # All its parts are in the list.
    assert released_bytes(from_hf(dense)) == 2 * n_parameters(from_hf(dense))
    dense["quantization_config"] = dense["quantization_config"] | {"ignore": ["lm_head"]}
    assert narrow_roles(dense) == {"attention", "dense"}


def test_experts_named_in_an_mxfp4_file_stay_wide():
    fields = with_block("gpt-oss-20b", modules_to_not_convert=["model.layers.*.mlp.experts"])
    cfg = from_hf(fields)
    assert narrow_roles(fields) == set()
    assert released_bytes(cfg) == 2 * n_parameters(cfg)


@pytest.mark.parametrize(
    ("name", "block", "words"),
    [
        ("deepseek-v3", {"weight_block_size": [64, 64]}, "fp8 e4m3 in blocks of 64x64"),
        ("deepseek-v3", {"weight_block_size": None}, "fp8 e4m3 in blocks of a whole matrix"),
        ("deepseek-v3", {"fmt": "e5m2"}, "fp8 e5m2 in blocks of 128x128"),
        (
            "deepseek-v3",
            {"modules_to_not_convert": ["model.layers.0.self_attn"]},
            "fp8 in part of attention",
        ),
        ("deepseek-v3", {"quant_method": "gptq"}, "gptq"),
        ("kimi-k2.5", {"config_groups": {}}, "compressed-tensors with 0 groups of layers"),
        (
            "kimi-k2.5",
            {"config_groups": {"group_0": {"targets": ["Linear"]}}},
            "compressed-tensors without narrow weights",
        ),
        (
            "kimi-k2.5",
            {"config_groups": {"a": {"weights": {"num_bits": 4, "group_size": 128}}}},
            "int4 per group of 128",
        ),
        (
            "kimi-k2.5",
            {"config_groups": {"a": {"weights": {"num_bits": 4, "group_size": -1}}}},
            "int4 per channel",
        ),
        (
            "glm-4.6",
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "a": {"weights": {"type": "float", "num_bits": 8, "strategy": "channel"}}
                },
            },
            "float8 per channel",
        ),
        (
            "kimi-k2.5",
            {"config_groups": {"a": {"weights": {"num_bits": 4}}}},
            "int4 per tensor",
        ),
    ],
)
def test_other_formats_are_named_and_have_no_bytes(name, block, words):
    """Sizes are read all the same; only what needs the format is refused."""
    cfg = from_hf(with_block(name, **block))
    assert cfg.released_format == words
    with pytest.raises(ConfigError, match=f"is released in {words}, which no policy holds"):
        released_bytes(cfg)


def test_a_second_file_about_formats_is_not_overlooked(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(fields_of("llama-3.1-8b")))
    assert from_hf(tmp_path).released_format == "bf16"
    beside = tmp_path / "hf_quant_config.json"
    beside.write_text('{"quantization": {"quant_algo": "NVFP4", "exclude_modules": ["lm_head"]}}')
    cfg = from_hf(tmp_path)
    assert (cfg.released_format, cfg.released_roles) == ("nvfp4", None)
    # Where nothing is listed, the head alone is spared.
    beside.write_text('{"quantization": {"quant_algo": "NVFP4"}}')
    cfg = from_hf(tmp_path)
    assert (cfg.released_format, cfg.released_roles) == ("nvfp4", None)
    beside.write_text('{"quantization": {"quant_algo": "FP8"}}')
    assert from_hf(tmp_path).released_format == "fp8-column"
    for text, message in (
        ('{"a": 1}', "'quantization' must be an object"),
        ("[1]", "must hold a JSON object"),
        ("{", "not valid JSON"),
    ):
        beside.write_text(text)
        with pytest.raises(ConfigError, match=f"hf_quant_config.json: .*{message}"):
            from_hf(tmp_path)


def modelopt(*spared: str, size: int = 16) -> dict:
    """How ModelOpt writes NVFP4 into a config.json."""
    narrow = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": size}
    return {
        "config_groups": {"group_0": {"weights": narrow, "targets": ["Linear"]}},
        "ignore": list(spared),
        "quant_algo": "NVFP4",
        "quant_method": "modelopt",
    }


def test_nvfp4_of_modelopt_spares_what_its_patterns_name():
    spared = ["lm_head", *(f"model.layers.{i}.self_attn*" for i in range(62))]
    fields = fields_of("minimax-m2.5") | {"quantization_config": modelopt(*spared)}
    cfg = from_hf(fields)
    assert (cfg.released_format, cfg.released_roles) == ("nvfp4", ("expert",))
    # Four bits a value, an 8-bit scale of 16, in experts; 16 bits elsewhere.
    experts = 62 * 256 * 3 * 3072 * 1536
    assert released_bytes(cfg) == experts * 4.5 / 8 + 2 * (n_parameters(cfg) - experts)
    wide = from_hf(fields | {"quantization_config": modelopt(*spared, size=32)})
    assert wide.released_format == "modelopt NVFP4"
    part = from_hf(fields | {"quantization_config": modelopt(*spared[:-1])})
    assert part.released_format == "nvfp4 in part of attention"


def test_modelopt_is_known_by_its_algorithm():
    block = {"quant_algo": "FP8", "producer": {"name": "modelopt"}}
    fields = fields_of("llama-3.1-8b")
    words = "fp8-column"
    assert from_hf(fields | {"quantization_config": block}).released_format == words
    block |= {"quant_algo": "MIXED_PRECISION"}
    words = "modelopt MIXED_PRECISION"
    assert from_hf(fields | {"quantization_config": block}).released_format == words
    with pytest.raises(ConfigError, match="'quant_method' must be a string"):
        from_hf(fields | {"quantization_config": {"producer": {"name": "modelopt"}}})


@pytest.mark.parametrize(
    ("name", "spared", "found"),
    [
        # As NVIDIA's files of these models spare modules: whole names, and wildcards.
        ("kimi-k2.5", ["language_model.lm_head", "language_model.model.layers.*.self_attn*"], None),
        ("nemotron-3-ultra-550b-a55b", ["lm_head", "backbone.layers.*.mixer.conv1d", "mtp*"], None),
        ("nemotron-3-ultra-550b-a55b", ["lm_head", "backbone.layers.*.mixer.?_proj"], "attention"),
        ("nemotron-3-ultra-550b-a55b", ["lm_head", "*latent_proj"], "shared"),
        ("qwen3-235b-a22b", ["model.layers.*.self_attn"], ("expert", "head")),
    ],
)
def test_modelopt_spares_modules_by_pattern(name, spared, found):
    block = {"quant_algo": "NVFP4", "group_size": 16, "exclude_modules": spared}
    cfg = from_hf(fields_of(name) | {"quantization_config": block})
    if isinstance(found, str):
        assert cfg.released_format == f"nvfp4 in part of {found}"
        return
    roles = {"kimi-k2.5": ("dense", "expert", "shared")}.get(name, found)
    assert (cfg.released_format, cfg.released_roles) == ("nvfp4", roles)


def test_bytes_of_nvfp4_by_hand():
    """Ultra: 4.5 bits of all matrices but embedding, head and routers; 16 of these and vectors."""
    cfg = from_hf(
        fields_of("nemotron-3-ultra-550b-a55b")
        | {"quantization_config": {"quant_algo": "NVFP4", "quant_method": "modelopt"}}
    )
    ends = 2 * 131072 * 8192 + 48 * 512 * (8192 + 1)
    # Norms; taps, biases, decays, steps and skips of Mamba2, and the norms of its results.
    vectors = 109 * 8192 + 48 * (5 * (16384 + 2048) + 3 * 256 + 16384)
    narrow = n_parameters(cfg) - ends - vectors
    assert released_bytes(cfg) == narrow * 4.5 / 8 + (ends + vectors) * 2


@pytest.mark.parametrize("bits", [None, "four", 0, 17])
def test_a_width_of_stored_weights_must_be_a_number_of_bits(bits):
    weights = {"type": "int", "num_bits": bits}
    quantisation = {"quant_method": "compressed-tensors", "config_groups": {"all": {}}}
    quantisation["config_groups"]["all"]["weights"] = weights
    with pytest.raises(ConfigError, match="'num_bits' must be a whole number from 1 to 16"):
        from_hf(fields_of("llama-3.1-8b") | {"quantization_config": quantisation})


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"modules_to_not_convert": ["model.(layers"]}, "'modules_to_not_convert' must be regular"),
        ({"modules_to_not_convert": "lm_head"}, "'modules_to_not_convert' must be a list of str"),
        ({"weight_block_size": "128"}, "'weight_block_size' must be a list of whole numbers"),
        ({"quant_method": None}, "'quant_method' must be a string"),
    ],
)
def test_a_broken_block_is_refused_by_name(block, message):
    with pytest.raises(ConfigError, match=f"quantization_config: key {message}"):
        from_hf(with_block("deepseek-v3", **block))
