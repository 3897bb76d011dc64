"""Nemotron-H: layers of one block each, Mamba2 and its limits, experts in a narrower space."""

from dataclasses import replace

import pytest
from released_configs import hub_fields

from lpu_jax.errors import ConfigError
from models.blocks import block_chain
from models.config import RecurrentConfig
from models.hf_config import from_hf
from models.params import n_parameters

#: Layers of each kind, groups and heads of Mamba2, width of its states, latent of experts; as the
#: model cards and the report of Nemotron 3 print them.
PRINTED = {
    "nemotron-h-56b": ({"recurrent": 54, "dense": 54, "unrotated": 10}, 8, 256, 256, None),
    "nemotron-3-nano-30b-a3b": ({"recurrent": 23, "moe": 23, "unrotated": 6}, 8, 64, 128, None),
    "nemotron-3-super-120b-a12b": ({"recurrent": 40, "moe": 40, "unrotated": 8}, 8, 128, 128, 1024),
    "nemotron-3-ultra-550b-a55b": (
        {"recurrent": 48, "moe": 48, "unrotated": 12},
        *(8, 256, 128, 2048),
    ),
}


@pytest.mark.parametrize("name", PRINTED)
def test_layers_are_what_is_printed(name: str) -> None:
    cfg, (kinds, n_groups, n_heads, width, latent) = from_hf(hub_fields(name)), PRINTED[name]
    assert cfg.kind_counts == kinds
    assert cfg.recurrent == RecurrentConfig(
        n_key_heads=n_groups,
        n_value_heads=n_heads,
        key_dim=width,
        value_dim=64,
        taps=4,
        rule="mamba2",
    )
    assert (None if cfg.moe is None else cfg.moe.d_latent) == latent
    assert (cfg.activation, cfg.d_routed) == ("relu2", latent or cfg.d_model)
    assert cfg.n_prediction_layers == ("super" in name or "ultra" in name)


def test_a_layer_is_one_block() -> None:
    cfg = from_hf(hub_fields("nemotron-3-nano-30b-a3b"))
    pattern = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"
    letters = {"recurrent": "M", "moe": "E", "unrotated": "*"}
    body = block_chain(cfg)[1:-1]
    assert "".join(letters[block.kind] for block in body) == pattern
    assert [block.layer for block in body] == list(range(52))
    # Keys and values of two heads of 128 in six layers, in 16 bits.
    assert cfg.kv_bytes_per_token() == 6 * 2 * 2 * 128 * 2
    # States in fp32, and three inputs of C, B and x in 16 bits, in 23 layers.
    kept = 4 * 64 * 64 * 128 + 3 * 2 * (2 * 8 * 128 + 64 * 64)
    assert cfg.state_bytes_per_sequence() == 23 * kept


def test_a_list_and_a_pattern_say_the_same() -> None:
    fields = hub_fields("nemotron-3-nano-30b-a3b")
    words = {"M": "mamba", "E": "moe", "*": "attention", "-": "mlp"}
    pattern = fields.pop("hybrid_override_pattern")
    listed = [words[letter] for letter in pattern]
    anew = {"mamba": "linear_attention", "attention": "full_attention"}
    modern = [anew.get(word, word) for word in listed]
    by_pattern = from_hf(fields | {"hybrid_override_pattern": pattern})
    for key, layers in (("layers_block_type", listed), ("layer_types", modern)):
        assert from_hf(fields | {key: layers}) == by_pattern
        shorter = {k: v for k, v in fields.items() if k != "num_hidden_layers"}
        assert from_hf(shorter | {key: layers}) == by_pattern
    with pytest.raises(ConfigError, match="'hybrid_override_pattern' must be the layers that the"):
        from_hf(fields | {"hybrid_override_pattern": pattern, "layer_types": modern[::-1]})


def test_a_limit_of_steps_is_kept_unless_it_is_beyond_all_numbers() -> None:
    fields = hub_fields("nemotron-h-56b")
    infinite = {"__float__": "Infinity"}
    for limits in ([0.0, float("inf")], [0.0, 1e308], [0.0, infinite], None):
        net = from_hf(fields | {"time_step_limit": limits}).recurrent
        assert (net.least_step, net.most_step) == (0.0, None)
    net = from_hf(fields | {"time_step_limit": [0.001, 0.1]}).recurrent
    assert (net.least_step, net.most_step) == (0.001, 0.1)


def test_a_dense_file_may_describe_experts_that_no_layer_has() -> None:
    fields, experts = hub_fields("nemotron-h-56b"), hub_fields("nemotron-3-nano-30b-a3b")
    described = {key: value for key, value in experts.items() if "expert" in key or "moe" in key}
    described |= {key: experts[key] for key in ("n_group", "topk_group", "norm_topk_prob")}
    cfg = from_hf(fields | described)
    assert cfg == from_hf(fields)
    assert n_parameters(cfg) == 56_324_350_464


MISTAKES = [
    ({"hybrid_override_pattern": "ME*X"}, "'hybrid_override_pattern' must be letters of M"),
    ({"hybrid_override_pattern": None}, "'hybrid_override_pattern' must be letters of M"),
    ({"layers_block_type": ["mamba2"] * 52}, "'layers_block_type' must be a list of 'mamba'"),
    ({"num_hidden_layers": 51}, "single_blocks must be 51 of attention"),
    ({"mamba_num_heads": 60}, "'mamba_num_heads' must be a multiple of the 8 groups"),
    ({"mlp_hidden_act": "silu"}, "'mlp_hidden_act' must be \"relu2\""),
    ({"use_conv_bias": False}, "'use_conv_bias' must be true"),
    ({"mamba_proj_bias": True}, "'mamba_proj_bias' must be false"),
    ({"mamba_ssm_cache_dtype": "float16"}, "'mamba_ssm_cache_dtype' must be \"float32\""),
    ({"time_step_limit": [0.1, 0.001]}, "'time_step_limit' must be two numbers, the lower first"),
    ({"time_step_limit": 0.1}, "'time_step_limit' must be two numbers, the lower first"),
    ({"moe_shared_expert_intermediate_size": 3000}, "must be a multiple of the width of an expert"),
    ({"n_shared_experts": 2}, "'n_shared_experts' must be 1"),
    ({"moe_latent_size": 0}, "'moe_latent_size' must be a whole number"),
    ({"residual_in_fp32": True}, "'residual_in_fp32' = True is not known"),
    ({"use_bias": True}, "'use_bias' must be false"),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES)
def test_what_is_not_modelled_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_hf(hub_fields("nemotron-3-nano-30b-a3b") | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"single_blocks": ("recurrent",) * 51}, "single_blocks must be 52 of attention"),
        ({"unrotated_layers": (0,)}, "single_blocks alone must say what layers are"),
        ({"recurrent": None}, "recurrent blocks were given, but not what they are"),
        ({"single_blocks": ("sliding",) * 52}, "layers of one block each must not slide"),
    ],
)
def test_layers_that_contradict_each_other_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(from_hf(hub_fields("nemotron-3-nano-30b-a3b")), **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"least_step": -1.0}, "least_step must be a number from 0 to below most_step"),
        ({"least_step": 0.2, "most_step": 0.1}, "got 0.2 and 0.1"),
        ({"rule": "delta", "least_step": 0.1}, "limits of steps are about the rule mamba2"),
        ({"channel_rank": 8}, "channel_rank is about the rule delta"),
    ],
)
def test_a_recurrence_that_contradicts_itself_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(from_hf(hub_fields("nemotron-h-56b")).recurrent, **change)
