"""Families that differ from Llama's by a few rules: GLM-4, OLMo 2 and 3, EXAONE 4."""

import pytest

from lpu_jax.errors import ConfigError
from models.config import GqaConfig
from models.hf_config import from_hf
from models.params import block_params, n_active, n_parameters

_SHARED = {
    "hidden_act": "silu",
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
#: Sizes of THUDM/GLM-4-9B-0414.
GLM = _SHARED | {
    "model_type": "glm4",
    "attention_bias": True,
    "head_dim": 128,
    "intermediate_size": 13696,
    "max_position_embeddings": 32768,
    "num_hidden_layers": 40,
    "num_key_value_heads": 2,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "vocab_size": 151552,
}
#: Sizes of allenai/OLMo-2-1124-7B.
OLMO = _SHARED | {
    "model_type": "olmo2",
    "attention_bias": False,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 500000,
    "vocab_size": 100352,
}
#: Sizes of allenai/Olmo-3-7B-Instruct, in the hub's spelling.
OLMO3 = OLMO | {
    "model_type": "olmo3",
    "max_position_embeddings": 65536,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "attention_factor": 1.2079441541679836,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
    },
    "sliding_window": 4096,
    "vocab_size": 100278,
}
#: Sizes of LGAI-EXAONE/EXAONE-4.0-32B.
EXAONE = _SHARED | {
    "model_type": "exaone4",
    "head_dim": 128,
    "hidden_size": 5120,
    "intermediate_size": 27392,
    "max_position_embeddings": 131072,
    "num_attention_heads": 40,
    "num_hidden_layers": 64,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 16.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "rope_theta": 1000000,
    "sliding_window": 4096,
    "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 16,
    "sliding_window_pattern": "LLLG",
    "vocab_size": 102400,
}


def test_counts_equal_those_of_transformers():
    # `data/count_oracle.py` on these files
    glm, olmo, olmo3, exaone = (from_hf(file) for file in (GLM, OLMO, OLMO3, EXAONE))
    assert (n_parameters(glm), n_active(glm)) == (9_400_279_040, 8_779_522_048)
    assert (n_parameters(olmo), n_active(olmo)) == (7_298_617_344, 6_887_575_552)
    assert (n_parameters(olmo3), n_active(olmo3)) == (7_298_011_136, 6_887_272_448)
    assert (n_parameters(exaone), n_active(exaone)) == (32_003_216_384, 31_478_928_384)


def test_norms_of_blocks():
    for cfg, expected in (
        (from_hf(GLM), {"norm", "result_norm"}),
        (from_hf(OLMO), {"result_norm"}),
        (from_hf(OLMO3), {"result_norm"}),
        (from_hf(EXAONE), {"result_norm"}),
    ):
        for kind in ("attention", "dense"):
            params = block_params(cfg, kind)
            assert {name for name in params if name in ("norm", "result_norm")} == expected


def test_rotation_and_heads():
    glm, olmo = from_hf(GLM), from_hf(OLMO)
    assert (glm.rope.dim, glm.rope.interleaved) == (64, True)
    assert (olmo.rope.dim, olmo.rope.interleaved) == (128, False)
    assert isinstance(glm.attention, GqaConfig)
    assert isinstance(olmo.attention, GqaConfig)
    assert (glm.attention.qkv_bias, glm.attention.o_bias) == (True, False)
    assert olmo.attention.is_qk_norm_joint


def test_olmo3_scales_the_rotation_of_layers_that_see_all_keys_alone():
    """Files of before transformers 5 have one base for both; it writes a part for each."""
    cfg = from_hf(OLMO3)
    assert cfg.sliding_layers == tuple(layer for layer in range(32) if layer % 4 != 3)
    assert cfg.rope.scaling is not None
    assert cfg.sliding_rope is not None
    assert cfg.sliding_rope.scaling is None
    assert cfg.rope.theta == cfg.sliding_rope.theta == 5e5
    assert from_hf(OLMO3 | {"rope_theta": 1e6}).sliding_rope.theta == 1e6
    of_all = OLMO3["rope_scaling"] | {"rope_theta": 5e5}
    parts = {"full_attention": of_all, "sliding_attention": {"rope_type": "default"}}
    modern = {key: v for key, v in OLMO3.items() if key not in ("rope_scaling", "rope_theta")}
    assert from_hf(modern | {"rope_parameters": parts}) == cfg


def test_exaone_turns_sliding_layers_alone():
    cfg = from_hf(EXAONE)
    assert cfg.unrotated_layers == tuple(range(3, 64, 4))
    assert sorted(cfg.unrotated_layers + cfg.sliding_layers) == list(range(64))
    assert cfg.sliding_rope is None
    by_number = {key: v for key, v in EXAONE.items() if key != "layer_types"}
    assert from_hf(by_number | {"sliding_window_pattern": 4}) == cfg
    del by_number["sliding_window_pattern"]
    assert from_hf(by_number) == cfg  # the pattern of its class


def test_exaone_without_a_window_turns_every_layer():
    """As EXAONE-4.0-1.2B, whose layers see all keys."""
    full = {"layer_types": ["full_attention"] * 64}
    cfg = from_hf(EXAONE | full | {"sliding_window": None, "sliding_window_pattern": None})
    assert (cfg.unrotated_layers, cfg.sliding_layers) == ((), ())
    # To its class a window that no layer has still takes the rotation away.
    windowed = EXAONE | full | {"sliding_window_pattern": "G"}
    assert len(from_hf(windowed).unrotated_layers) == 64


@pytest.mark.parametrize("letters", ["LLG", "GLLL", "LLLX", ""])
def test_letters_that_contradict_the_list_of_layers_are_refused(letters):
    with pytest.raises(ConfigError, match="'sliding_window_pattern' must be the layers of layer_t"):
        from_hf(EXAONE | {"sliding_window_pattern": letters})


def test_letters_without_a_list_of_layers_are_refused():
    letters = {key: v for key, v in EXAONE.items() if key != "layer_types"}
    with pytest.raises(ConfigError, match="'sliding_window_pattern' must be a whole number"):
        from_hf(letters)


@pytest.mark.parametrize("part", [0, "", [], False])
def test_a_rotation_that_is_no_object_is_refused(part):
    """Only null and an empty object say as little as a key that is absent."""
    file = {key: v for key, v in OLMO3.items() if key not in ("rope_theta", "rope_scaling")}
    base = {"rope_type": "default", "rope_theta": 5e5}
    absent = from_hf(file | {"rope_parameters": {"sliding_attention": base}})
    for none in (None, {}):
        both = {"full_attention": none, "sliding_attention": base}
        assert from_hf(file | {"rope_parameters": both}) == absent
    wrong = {"full_attention": part, "sliding_attention": base}
    with pytest.raises(ConfigError, match="'full_attention' must be an object or null; got"):
        from_hf(file | {"rope_parameters": wrong})
