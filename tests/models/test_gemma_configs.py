"""Gemma: two kinds of layer with heads and rotations of their own, and what is refused of it."""

import pytest
from released_configs import hub_fields
from small_machines import NODE

from lpu_jax.errors import ConfigError
from models.blocks import block_arguments
from models.config import GqaConfig
from models.hf_config import from_hf
from models.layers.linear import Split
from models.params import block_params
from models.policy import FP16
from models.rope import LinearScaling, RopeConfig
from models.zoo import model
from sharding import axes
from sharding.predict.placement import held_bytes
from sharding.request import Request


def changed(name: str, **changes: object) -> dict:
    """A file with other values in its text part; None leaves a key out."""
    fields = hub_fields(name)
    text = {key: v for key, v in (fields["text_config"] | changes).items() if v is not None}
    return fields | {"text_config": text}


def test_layers_of_gemma_3():
    cfg = model("gemma-3-27b")
    assert [i for i in range(62) if i not in cfg.sliding_layers] == list(range(5, 62, 6))
    assert cfg.attention == cfg.attention_of("sliding")
    assert (cfg.attention.window, cfg.attention.scale) == (1024, 168**-0.5)
    assert cfg.rope == RopeConfig(
        theta=1e6, dim=128, interleaved=False, scaling=LinearScaling(factor=8.0)
    )
    assert cfg.rope_of("sliding") == RopeConfig(theta=1e4, dim=128, interleaved=False)
    assert (cfg.multipliers.embedding, cfg.activation) == (5376**0.5, "gelu_tanh")
    assert cfg.norms_results
    assert cfg.eos_token_ids == (1, 106)  # of the whole; the text part says none
    assert (cfg.logit_cap, cfg.attention.cap, cfg.scales_layers) == (None, None, False)


def test_layers_of_gemma_4():
    cfg = model("gemma-4-31b")
    assert [i for i in range(60) if i not in cfg.sliding_layers] == list(range(5, 60, 6))
    full, local = cfg.attention_of("attention"), cfg.attention_of("sliding")
    assert isinstance(full, GqaConfig)
    assert isinstance(local, GqaConfig)
    assert (full.n_kv_heads, full.head_dim, full.window) == (4, 512, None)
    assert (local.n_kv_heads, local.head_dim, local.window) == (16, 256, 1024)
    assert (full.are_values_keys, local.are_values_keys) == (True, False)
    assert (full.softmax_scale, local.softmax_scale) == (1.0, 1.0)
    assert (cfg.rope.dim, cfg.rope.width, cfg.rope_of("sliding").dim) == (128, 512, 256)
    # The fastest 64 of 256 pairs, with the frequencies that they have among all.
    assert cfg.rope.inverse_frequencies()[[0, -1]] == pytest.approx([1.0, 1e6 ** (-126 / 512)])
    assert (cfg.logit_cap, cfg.scales_layers) == (30.0, True)
    # Ten global layers and fifty others, two bytes a value.
    assert cfg.kv_bytes_per_token() == 2 * (10 * 2 * 4 * 512 + 50 * 2 * 16 * 256)


def test_experts_of_gemma_4_lie_beside_a_dense_mlp():
    cfg = model("gemma-4-26b-a4b")
    moe = cfg.moe
    assert moe is not None
    assert cfg.n_moe_layers == 30
    assert (moe.n_experts, moe.top_k, moe.d_expert, moe.d_shared) == (128, 8, 704, 2112)
    assert (moe.activation, moe.has_own_norms, moe.normalise) == ("gelu_tanh", True, True)
    norms = {name for name, spec in block_params(cfg, "moe").items() if spec.role == "norm"}
    results = {"shared_result_norm", "expert_result_norm", "result_norm"}
    scales = {"expert_scale", "layer_scale"}
    assert norms == {"norm", "router_norm", "expert_norm"} | results | scales


def test_both_spellings_of_global_heads():
    fields = changed("gemma-4-31b", global_head_dim=None, num_global_key_value_heads=None)
    own = {str(i): {"head_dim": 512, "num_key_value_heads": 4} for i in range(5, 60, 6)}
    text = fields["text_config"] | {"per_layer_config": own}
    assert from_hf(fields | {"text_config": text}) == from_hf(hub_fields("gemma-4-31b"))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("gemma-4-31b", {"enable_moe_block": True}, "'moe_intermediate_size' must be"),
        ("gemma-4-26b-a4b", {"enable_moe_block": False}, "key 'moe_intermediate_size' = 704"),
        ("gemma-4-26b-a4b", {"intermediate_size": 2000}, "a multiple of the width of an expert"),
        ("gemma-4-31b", {"use_double_wide_mlp": True}, "'use_double_wide_mlp' must be false"),
        ("gemma-4-31b", {"num_kv_shared_layers": 4}, "'num_kv_shared_layers' must be 0"),
        ("gemma-4-31b", {"hidden_size_per_layer_input": 256}, "'hidden_size_per_layer_input'"),
        # The class has 256.
        ("gemma-4-31b", {"hidden_size_per_layer_input": None}, "'hidden_size_per_layer_input'"),
        ("gemma-4-31b", {"use_bidirectional_attention": "all"}, 'must be "vision"'),
        ("gemma-4-31b", {"per_layer_config": {"5": {}}}, "the same for all layers that do not"),
        ("gemma-4-31b", {"rope_theta": 1e6}, "'rope_theta' must be absent beside"),
        ("gemma-4-31b", {"num_global_key_value_heads": 3}, "n_heads must be a multiple of n_kv"),
        ("gemma-3-27b", {"attn_logit_softcapping": 50.0}, "'attn_logit_softcapping' = 50.0"),
        ("gemma-3-27b", {"final_logit_softcapping": 30.0}, "'final_logit_softcapping' = 30.0"),
        ("gemma-3-27b", {"use_bidirectional_attention": True}, "'use_bidirectional_attention'"),
        ("gemma-3-27b", {"hidden_activation": "gelu"}, "'hidden_activation' must be"),
    ],
)
def test_what_is_not_modelled_is_refused_by_name(name, change, message):
    with pytest.raises(ConfigError, match=message):
        from_hf(changed(name, **change))


def tables(name: str, kind: str) -> float:
    """Bytes of the tables that a kind of block adds to a chip."""
    cfg, ways = model(name), dict.fromkeys(axes.MESH_AXES[kind], 1)
    sizes = axes.sizes(cfg, kind, FP16, ways, Request(context=640))
    arguments = block_arguments(cfg, kind, FP16, Split.ROW, sizes)
    return held_bytes(arguments, NODE.chip, None)["tables"]


def test_sliding_layers_hold_tables_only_where_they_are_their_own():
    assert tables("gpt-oss-20b", "sliding") < 100 < tables("gpt-oss-20b", "attention")
    assert tables("gemma-4-31b", "sliding") > 640 * 256 * 2 * 4 > tables("gemma-4-31b", "attention")
