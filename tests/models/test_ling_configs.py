"""Ling 3: bounded Kimi Delta Attention of full rank, and latent attention gated by head."""

from dataclasses import replace

import pytest
from released_configs import hub_fields
from tiny_models import TINY

from lpu_jax.errors import ConfigError
from models.config import MlaConfig, RecurrentConfig
from models.hf_config import from_hf

FLASH = "ling-3.0-flash"


def test_layers_are_those_of_its_class() -> None:
    """Every number of the class's own list of layers, and of its modules."""
    cfg = from_hf(hub_fields(FLASH))
    attends = [layer for layer in range(42) if layer not in cfg.recurrent_layers]
    assert attends == [5, 11, 17, 23, 29, 35, 41]
    assert cfg.unrotated_layers == ()
    assert cfg.recurrent == RecurrentConfig(
        n_key_heads=32,
        n_value_heads=32,
        key_dim=128,
        value_dim=128,
        taps=4,
        is_full_rank=True,
        decay_bound=-5.0,
    )
    assert isinstance(cfg.attention, MlaConfig)
    assert (cfg.attention.gated, cfg.attention.q_lora_rank) == (True, None)
    assert (cfg.rope.dim, cfg.rope.theta, cfg.rope.interleaved) == (64, 6e6, True)
    assert (cfg.n_prediction_layers, cfg.max_position) == (1, 262_144)
    # A latent and a rotated key in seven layers, in 16 bits.
    assert cfg.kv_bytes_per_token() == 7 * (512 + 64) * 2
    # States in fp32, and three inputs of queries, keys and values in 16 bits, in 35 layers.
    assert cfg.state_bytes_per_sequence() == 35 * (4 * 32 * 128 * 128 + 3 * 2 * 3 * 32 * 128)


def test_the_class_and_the_hub_write_the_same_sizes() -> None:
    """The class writes the rotated width as `head_dim`, and that of recurrent heads beside it."""
    fields = hub_fields(FLASH)
    kinds = ["linear_attention" if (layer + 1) % 6 else "full_attention" for layer in range(42)]
    saved = fields | {
        "head_dim": 64,
        "linear_head_dim": 128,
        "linear_num_heads": 32,
        "linear_conv_kernel_dim": 4,
        "layer_types": kinds,
        "mlp_layer_types": ["dense"] * 2 + ["sparse"] * 40,
    }
    assert from_hf(saved) == from_hf(fields)
    assert from_hf(TINY / "bailing_hybrid").recurrent.key_dim == 10


def test_decays_may_have_no_bound() -> None:
    assert from_hf(hub_fields(FLASH) | {"kda_safe_gate": False}).recurrent.decay_bound is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # Ling 2.6: lightning attention.
        ({"architectures": ["BailingMoeV2_5ForCausalLM"]}, "'architectures' must be"),
        ({"group_norm_size": 8}, "'group_norm_size' = 8 is not known"),
        ({"kda_lower_bound": 5.0}, "'kda_lower_bound' must be a number from -1099511627776 to"),
        ({"kda_lower_bound": True}, "'kda_lower_bound' must be a number"),
        ({"layer_group_size": 0}, "'layer_group_size' must be a whole number"),
        ({"layer_types": ["linear_attention"] * 42}, "'layer_group_size' must be that of"),
        ({"first_k_dense_replace": None}, "'first_k_dense_replace' must be a whole number"),
        ({"mlp_layer_types": ["sparse"] * 42}, "'mlp_layer_types' must be"),
        ({"num_key_value_heads": 8}, "'num_key_value_heads' must be 32"),
    ],
)
def test_what_is_not_modelled_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_hf(hub_fields(FLASH) | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decay_bound": 0.5}, "decay_bound must be a number below 0, got 0.5"),
        ({"decay_bound": -float("inf")}, "decay_bound must be a number below 0, got -inf"),
        ({"is_full_rank": False}, "decay_bound is about decays of channels"),
        ({"channel_rank": 8}, "is_full_rank is about the rule delta, and has no channel_rank"),
        ({"rule": "mamba2", "decay_bound": None}, "is_full_rank is about the rule delta"),
    ],
)
def test_a_recurrence_that_contradicts_itself_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(from_hf(hub_fields(FLASH)).recurrent, **change)
