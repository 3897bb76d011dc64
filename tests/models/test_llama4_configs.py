"""Llama 4: chunks, layers without rotation, interleaved experts, and what is refused of it."""

import math

import numpy as np
import pytest
from released_configs import hub_fields

from lpu_jax.errors import ConfigError
from models.config import GqaConfig
from models.config_parts import Warming
from models.hf_config import from_hf
from models.zoo import model

NOPE = tuple(range(3, 48, 4))


def changed(name: str, **changes: object) -> dict:
    """A file with other values in its text part."""
    fields = hub_fields(name)
    return fields | {"text_config": fields["text_config"] | changes}


def test_layers_of_scout():
    cfg = model("llama-4-scout")
    gqa = cfg.attention
    assert isinstance(gqa, GqaConfig)
    assert cfg.unrotated_layers == NOPE
    assert cfg.sliding_layers == tuple(i for i in range(48) if i not in NOPE)
    assert (gqa.window, gqa.is_chunked, gqa.norms_rotated) == (8192, True, True)
    assert gqa.warming == Warming(step=8192, strength=0.1)
    assert cfg.rope.interleaved
    assert cfg.moe is not None
    assert (cfg.n_moe_layers, cfg.moe.d_shared, cfg.moe.top_k) == (48, 8192, 1)
    # Of 64 pairs the slow ones turn 16 times slower: those with less than a turn in 8192 positions.
    plain = 5e5 ** (-np.arange(64) / 64)
    slowed = np.where(8192 * plain / (2 * math.pi) < 1, plain / 16, plain)
    np.testing.assert_allclose(cfg.rope.inverse_frequencies(), slowed, rtol=1e-12)


def test_layers_of_maverick():
    cfg = model("llama-4-maverick")
    assert isinstance(cfg.attention, GqaConfig)
    assert not cfg.attention.norms_rotated
    assert cfg.rope.scaling is None
    assert [i for i in range(48) if cfg.is_moe_layer(i)] == list(range(1, 48, 2))
    assert (cfg.n_moe_layers, cfg.d_ff) == (24, 16384)


def test_queries_grow_with_the_logarithm_of_whole_steps():
    factors = Warming(step=8192, strength=0.1).factors(20_000)
    assert factors[[0, 8190, 8191, 16383]] == pytest.approx(
        [1, 1, 1 + 0.1 * math.log(2), 1 + 0.1 * math.log(3)]
    )


def test_other_words_for_the_same():
    right = from_hf(hub_fields("llama-4-maverick"))
    kinds = ["full_attention" if i in NOPE else "chunked_attention" for i in range(48)]
    for same in (
        {"no_rope_layers": []},
        {"no_rope_layers": [int(i not in NOPE) for i in range(48)]},
        {"layer_types": kinds},
        {"moe_layers": list(range(1, 48, 2))},
        {"attn_temperature_tuning": 4, "floor_scale": 8192, "attn_scale": 0.1},
    ):
        assert from_hf(changed("llama-4-maverick", **same)) == right
    plain = from_hf(changed("llama-4-maverick", attn_temperature_tuning=False)).attention
    assert isinstance(plain, GqaConfig)
    assert plain.warming is None
    whole = from_hf(changed("llama-4-maverick", attention_chunk_size=None))
    assert (whole.sliding_layers, whole.unrotated_layers) == ((), NOPE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_types": ["full_attention"] * 48}, "'layer_types' must be chunked attention in"),
        ({"moe_layers": [3]}, "'moe_layers' must be"),
        ({"no_rope_layers": [1, 0]}, "a list of 0 or 1 for each of 48 layers"),
        ({"norm_topk_prob": True}, "'norm_topk_prob'"),
        ({"sliding_window": 5}, "'sliding_window' = 5"),
        ({"attn_temperature_tuning": 3}, "'attn_temperature_tuning' must be"),
    ],
)
def test_what_is_not_modelled_is_refused_by_name(change, message):
    with pytest.raises(ConfigError, match=message):
        from_hf(changed("llama-4-scout", **change))
