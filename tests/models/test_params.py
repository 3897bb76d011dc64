"""The parameter list: published counts to the last digit, and the agreed shapes."""

import json
import runpy
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from lpu_jax.errors import ConfigError, UnknownNameError
from models.params import Kind, block_params, n_active, n_parameters
from models.zoo import NAMED, model, named_models

DATA = Path(__file__).parent / "data"

# Total, active without and with the input embedding, as Hugging Face's own classes count them:
# printed by `data/count_oracle.py`.
COUNTED = {
    "smollm2-135m": (134_515_008, 134_515_008, 134_515_008),
    "llama-2-70b": (68_976_648_192, 68_714_504_192, 68_976_648_192),
    "llama-3.1-8b": (8_030_261_248, 7_504_924_672, 8_030_261_248),
    "llama-3.1-70b": (70_553_706_496, 69_503_033_344, 70_553_706_496),
    "llama-3.1-405b": (405_853_388_800, 403_752_042_496, 405_853_388_800),
    "llama-4-scout": (107_769_861_120, 16_138_408_960, 17_172_894_720),
    "llama-4-maverick": (400_711_848_960, 16_150_205_440, 17_184_691_200),
    "mistral-7b": (7_241_732_096, 7_110_660_096, 7_241_732_096),
    "smollm3-3b": (3_075_098_624, 3_075_098_624, 3_075_098_624),
    "phi-4": (14_659_507_200, 14_145_704_960, 14_659_507_200),
    "qwen2.5-7b": (7_615_616_512, 7_070_619_136, 7_615_616_512),
    "qwen2.5-72b": (72_706_203_648, 71_460_495_360, 72_706_203_648),
    "mixtral-8x7b": (46_702_792_704, 12_748_853_248, 12_879_925_248),
    "mixtral-8x22b": (140_620_634_112, 38_955_423_744, 39_152_031_744),
    "qwen3-32b": (32_762_123_264, 31_984_210_944, 32_762_123_264),
    "qwen3-235b-a22b": (235_093_634_560, 21_568_433_664, 22_190_763_520),
    "qwen3-next-80b-a3b": (79_674_391_296, 3_563_764_480, 3_874_929_408),
    "qwen3.5-397b-a17b": (396_346_350_336, 16_331_922_176, 17_349_040_896),
    "gpt-oss-20b": (20_914_757_184, 3_608_307_264, 4_187_440_704),
    "gpt-oss-120b": (116_829_156_672, 5_132_849_472, 5_711_982_912),
    "glm-4.6": (352_797_829_024, 32_856_319_904, 33_632_266_144),
    "minimax-m2.5": (228_689_764_864, 10_415_956_480, 11_030_553_088),
    "minimax-m3": (426_174_572_928, 24_733_280_640, 25_962_473_856),
    "gemma-4-26b-a4b": (25_233_141_790, 3_822_530_590, 3_822_530_590),
    "gemma-4-31b": (30_697_345_340, 30_697_345_340, 30_697_345_340),
    "gemma-3-27b": (27_009_346_304, 27_009_346_304, 27_009_346_304),
    "nemotron-h-56b": (56_324_350_464, 55_250_608_640, 56_324_350_464),
    "nemotron-3-nano-30b-a3b": (31_577_940_288, 3_227_754_816, 3_580_076_352),
    "nemotron-3-super-120b-a12b": (120_668_707_840, 12_233_366_528, 12_770_237_440),
    "nemotron-3-ultra-550b-a55b": (549_308_993_536, 54_985_101_312, 56_058_843_136),
    "glm-5": (743_911_218_432, 40_833_146_112, 41_784_728_832),
    "glm-5.2": (743_377_019_904, 40_298_947_584, 41_250_530_304),
    "deepseek-v3": (671_026_419_200, 36_625_618_432, 37_552_297_472),
    "deepseek-v3.2": (671_877_944_064, 37_477_143_296, 38_403_822_336),
    "kimi-linear-48b-a3b": (49_122_681_728, 3_106_972_544, 3_484_459_904),
    "ling-3.0-flash": (124_414_211_552, 5_103_302_112, 5_505_693_152),
    "kimi-k2": (1_026_408_232_448, 31_687_095_808, 32_861_500_928),
    "kimi-k2.5": (1_026_408_232_448, 31_687_095_808, 32_861_500_928),
}


@pytest.mark.parametrize("name", sorted(COUNTED))
def test_counts_equal_those_of_hugging_face(name):
    cfg = model(name)
    found = (n_parameters(cfg), n_active(cfg), n_active(cfg, include_embedding=True))
    assert found == COUNTED[name]


@pytest.mark.slow
def test_hugging_face_still_counts_so():
    pytest.importorskip("transformers", reason="made with torch and transformers")
    oracle = runpy.run_path(str(DATA / "count_oracle.py"))
    for name, counts in COUNTED.items():
        fields = json.loads((oracle["CONFIGS"] / NAMED[name].file).read_text())
        assert oracle["count"](fields) == counts, name


def test_ling_counts_by_hand():
    """The layer sum written out; no class of Hugging Face's to ask."""
    d, heads, kv_heads, head = 8192, 64, 8, 128
    attention = d * (heads + 2 * kv_heads) * head + heads * head * d + 2 * head
    moe = (256 + 1) * 3 * d * 2048 + 256 * d + 256
    layers = 80 * (attention + 2 * d) + 4 * (3 * d * 18432) + 76 * moe
    total = layers + 2 * 157184 * d + d
    assert n_parameters(model("ling-1t")) == total == 999_705_328_640
    assert n_active(model("ling-1t")) == total - 157184 * d - 76 * 248 * 3 * d * 2048


def test_gpt_oss_counts_by_hand():
    """Biases everywhere and a sink per head, from the sizes of the model card."""
    d, experts = 2880, 32
    attention = d * (64 + 16) * 64 + (64 + 16) * 64 + 64 * 64 * d + d + 64
    moe = experts * (3 * d * d + 2 * d + d) + experts * d + experts
    layers = 24 * (attention + moe + 2 * d)
    assert n_parameters(model("gpt-oss-20b")) == layers + 2 * 201088 * d + d


def test_a_tied_table_counts_once():
    # The number of values in the released file.
    assert n_parameters(model("smollm2-135m")) == 134_515_008


def test_deepseek_counts_by_hand():
    """The layer sum written out, from the sizes of the paper."""
    d, heads, latent, query_latent = 7168, 128, 512, 1536
    attention = d * (query_latent + latent + 64) + query_latent + latent
    attention += query_latent * heads * 192 + latent * heads * 256 + heads * 128 * d
    moe = 256 * 3 * d * 2048 + 3 * d * 2048 + 256 * d + 256
    layers = 61 * (attention + 2 * d) + 3 * (3 * d * 18432) + 58 * moe
    assert n_parameters(model("deepseek-v3")) == layers + 2 * 129280 * d + d


def test_grouped_attention_shapes():
    params = block_params(model("llama-3.1-8b"), "attention")
    assert {name: spec.shape for name, spec in params.items()} == {
        "norm": (4096,),
        "q": (4096, 8, 4, 128),
        "kv": (4096, 8, 2, 128),
        "o": (8, 4, 128, 4096),
    }
    assert params["q"].axes == (None, "kv_heads", "q_per_kv", None)
    assert params["o"].matrix_shape == (1, 4096, 4096)


def test_latent_attention_shapes():
    params = block_params(model("kimi-k2"), "attention")
    assert {name: spec.shape for name, spec in params.items()} == {
        "norm": (7168,),
        "a": (7168, 1536 + 512 + 64),
        "q_norm": (1536,),
        "kv_norm": (512,),
        "q_b": (1536, 64, 192),
        "k_b": (64, 128, 512),
        "v_b": (64, 512, 128),
        "o": (64, 128, 7168),
    }
    assert params["k_b"].matrix_shape == (64, 128, 512)
    assert params["o"].matrix_shape == (1, 64 * 128, 7168)


def test_mixture_shapes():
    params = block_params(model("deepseek-v3"), "moe")
    assert {name: spec.shape for name, spec in params.items()} == {
        "norm": (7168,),
        "router": (7168, 256),
        "router_bias": (256,),
        "gate_up": (256, 7168, 2, 2048),
        "down": (256, 2048, 7168),
        "shared_gate_up": (7168, 2, 2048),
        "shared_down": (2048, 7168),
    }
    assert params["gate_up"].matrix_shape == (256, 7168, 4096)
    assert params["down"].std == pytest.approx(2048**-0.5)


@pytest.mark.parametrize("name", sorted(named_models()))
def test_specs_are_consistent(name):
    model_cfg = model(name)
    has_index = "indexed" in model_cfg.layer_kinds(0)
    absent = {
        "moe": not model_cfg.moe,
        "recurrent": not model_cfg.recurrent,
        "indexed": not has_index,
        "following": not has_index,
        "blocked": not model_cfg.blocked_layers,
    }
    for kind in (kind for kind in get_args(Kind) if not absent.get(kind)):
        for spec in block_params(model_cfg, kind).values():
            assert len(spec.axes) == len(spec.shape) >= spec.rows + spec.batch
            assert np.prod(spec.matrix_shape) * (not spec.is_number) == spec.n_values


def test_kinds_that_are_not_there_are_refused():
    with pytest.raises(UnknownNameError, match="unknown block kind 'atention'; nearest: attention"):
        block_params(model("kimi-k2"), "atention")
    for kind in ("moe", "recurrent"):
        with pytest.raises(ConfigError, match=rf"llama-3\.1-8b has no {kind} block"):
            block_params(model("llama-3.1-8b"), kind)
    for kind in ("indexed", "following"):
        with pytest.raises(ConfigError, match="kimi-k2 has no index: its layers attend to all"):
            block_params(model("kimi-k2"), kind)
