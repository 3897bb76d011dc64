"""The text part of a configuration with other parts: what is read, left out and refused."""

from dataclasses import replace
from typing import Any

import pytest
from released_configs import CONFIGS, hub_fields

from lpu_jax.errors import ConfigError
from models.config import MlaConfig
from models.hf_config import from_hf
from models.params import n_parameters


def test_text_part_of_a_multimodal_file_is_read():
    model_cfg = from_hf(CONFIGS / "kimi-k2.5.json")
    assert model_cfg.max_position == 262144
    assert model_cfg.norm_eps == 1e-5
    assert isinstance(model_cfg.attention, MlaConfig)
    assert model_cfg.attention.latent_norm_eps == 1e-6
    assert model_cfg.released_format == "int4"


def test_keys_about_the_whole_of_a_multimodal_file_count():
    inner = hub_fields("qwen3-32b")
    for key in ("tie_word_embeddings", "torch_dtype"):
        del inner[key]
    outer = {"tie_word_embeddings": True, "torch_dtype": "float16", "text_config": inner}
    model_cfg = from_hf(outer)
    assert (model_cfg.tie_embeddings, model_cfg.released_format) == (True, "fp16")


def test_a_text_part_in_an_unknown_model_is_refused_by_its_type():
    inner = hub_fields("qwen3-32b")
    with pytest.raises(ConfigError) as problem:
        from_hf({"model_type": "llama5", "text_config": {"model_type": "llama5_text"}})
    assert "a text part of type 'llama5_text' in a model of type 'llama5'" in str(problem.value)
    assert "and text models alone, whose types `lpu models --types` lists" in str(problem.value)
    assert "supported are models of type kimi_k25, kimi_k3, qwen3_vl, " in str(problem.value)
    with pytest.raises(ConfigError, match="type 'qwen3' in a model of type 'deep_vision'"):
        from_hf({"model_type": "deep_vision", "text_config": inner})
    with pytest.raises(ConfigError, match="type None in a model of type 'deep_vision'"):
        from_hf({"model_type": "deep_vision", "text_config": {}})
    with pytest.raises(ConfigError, match="text_config: key 'model_type' must be one of kimi_k2"):
        from_hf({"model_type": "kimi_k25", "text_config": inner | {"model_type": "kimi_k26"}})


@pytest.mark.parametrize(
    ("given", "first"), [("glm4_moe_lite", "glm4_moe"), ("deepseek_v33", "deepseek_v3")]
)
def test_an_unknown_type_is_told_of_the_nearest(given: str, first: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"must be one of {first}\b.* \(the nearest of \d+\); got"
    ):
        from_hf({"model_type": given})


def test_a_type_like_no_other_is_told_what_lists_all() -> None:
    with pytest.raises(ConfigError, match=r"one of the types that `lpu models --types` lists; got"):
        from_hf({"model_type": "zzz"})


#: Sizes of the released text parts: width, width of MLPs, layers, heads, of keys, words tied.
QWEN3_VL = {
    "2b": (2048, 6144, 28, 16, 8, True),
    "4b": (2560, 9728, 36, 32, 8, True),
    "8b": (4096, 12288, 36, 32, 8, False),
    "32b": (5120, 25600, 64, 64, 8, False),
    "30b-a3b": (2048, 6144, 48, 32, 4, False),
    "235b-a22b": (4096, 12288, 94, 64, 4, False),
}
WIDTH_OF_EXPERTS = {"30b-a3b": 768, "235b-a22b": 1536}


def qwen3_vl(size: str) -> dict[str, Any]:
    """A released configuration of Qwen3-VL, from its sizes."""
    width, d_ff, layers, heads, key_heads, tied = QWEN3_VL[size]
    kind = "qwen3_vl_moe" if size in WIDTH_OF_EXPERTS else "qwen3_vl"
    inner = {
        "model_type": f"{kind}_text",
        "hidden_size": width,
        "intermediate_size": d_ff,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 262144,
        "rope_theta": 5000000,
        "rope_scaling": {
            "mrope_interleaved": True,
            "mrope_section": [24, 20, 20],
            "rope_type": "default",
        },
    }
    if size in WIDTH_OF_EXPERTS:
        inner |= {"moe_intermediate_size": WIDTH_OF_EXPERTS[size], "norm_topk_prob": True}
        inner |= {"num_experts": 128, "num_experts_per_tok": 8, "decoder_sparse_step": 1}
    outer = {"model_type": kind, "tie_word_embeddings": tied, "vision_config": {"depth": 27}}
    return outer | {"image_token_id": 151655, "text_config": inner}


@pytest.mark.parametrize(
    ("size", "count"),
    [
        # transformers 5.24.0, classes on the meta device, without `model.visual`
        ("2b", 1_720_574_976),
        ("4b", 4_022_468_096),
        ("8b", 8_190_735_360),
        ("32b", 32_762_123_264),
        ("30b-a3b", 30_532_122_624),
        ("235b-a22b", 235_093_634_560),
    ],
)
def test_text_parts_of_qwen3_vl_count_as_those_of_transformers(size, count):
    model_cfg = from_hf(qwen3_vl(size))
    assert n_parameters(model_cfg) == count
    assert model_cfg.rope == replace(from_hf(hub_fields("qwen3-32b")).rope, theta=5e6)


def test_picture_axes_scale_no_rotation_of_other_types():
    with pytest.raises(ConfigError, match=r"'mrope_section' = \[24, 20, 20\] is not known"):
        from_hf(
            hub_fields("qwen3-32b")
            | {"rope_scaling": {"rope_type": "default", "mrope_section": [24, 20, 20]}}
        )
    longer = qwen3_vl("8b")
    longer["text_config"]["rope_scaling"]["rope_type"] = "yarn"
    with pytest.raises(ConfigError, match="'rope_type' must be \"default\", the only rule"):
        from_hf(longer)
    other = qwen3_vl("30b-a3b")
    other["text_config"]["norm_topk_prob"] = False
    with pytest.raises(ConfigError, match="'norm_topk_prob' must be true, as this type"):
        from_hf(other)


def test_keys_beside_the_language_part_are_those_of_other_parts():
    outer = {"text_config": hub_fields("qwen3-32b")}
    others = {"vision_config": {"hidden_size": 1152}, "image_token_id": 7, "mm_hidden_size": 1152}
    others |= {"projector_hidden_act": "gelu", "media_placeholder_token_id": 5, "ignore_index": -1}
    assert from_hf(outer | others) == from_hf(outer)
    for key in ("num_hidden_layers", "hidden_size", "rope_scale", "n_vision_layers", "text_window"):
        with pytest.raises(ConfigError, match=rf"config: key '{key}' = 3 is not known"):
            from_hf(outer | {key: 3})
