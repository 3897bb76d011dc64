"""Families that differ from Llama's by a few rules: GLM-4 and OLMo 2."""

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


def test_counts_equal_those_of_transformers():
    glm, olmo = from_hf(GLM), from_hf(OLMO)  # `data/count_oracle.py` on these files
    assert (n_parameters(glm), n_active(glm)) == (9_400_279_040, 8_779_522_048)
    assert (n_parameters(olmo), n_active(olmo)) == (7_298_617_344, 6_887_575_552)


def test_norms_of_blocks():
    for cfg, expected in (
        (from_hf(GLM), {"norm", "result_norm"}),
        (from_hf(OLMO), {"result_norm"}),
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
