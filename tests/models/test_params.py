"""The parameter list: published counts to the last digit, and the agreed shapes."""

import numpy as np
import pytest

from lpu_jax.errors import ConfigError, UnknownNameError
from models.config import MlaConfig
from models.params import KINDS, block_params, n_active, n_parameters
from models.zoo import model, named_models

# Billions: total, active without and with the input embedding. They equal the counts of Hugging
# Face's own classes on the meta device, router biases included, as printed to three decimals.
PUBLISHED = {
    "llama-2-70b": (68.977, 68.715, 68.977),
    "llama-3.1-8b": (8.030, 7.505, 8.030),
    "llama-3.1-70b": (70.554, 69.503, 70.554),
    "llama-3.1-405b": (405.853, 403.752, 405.853),
    "deepseek-v3": (671.026, 36.626, 37.552),
    "kimi-k2": (1026.408, 31.687, 32.862),
}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_counts_equal_the_published_ones(name):
    model_cfg = model(name)
    counts = (
        n_parameters(model_cfg),
        n_active(model_cfg),
        n_active(model_cfg, include_embedding=True),
    )
    assert tuple(round(count / 1e9, 3) for count in counts) == PUBLISHED[name]


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
    has_moe = isinstance(model_cfg.attention, MlaConfig)
    for kind in KINDS if has_moe else [kind for kind in KINDS if kind != "moe"]:
        for spec in block_params(model_cfg, kind).values():
            assert len(spec.axes) == len(spec.shape) >= spec.rows + spec.batch
            assert np.prod(spec.matrix_shape) == spec.n_values


def test_kinds_that_are_not_there_are_refused():
    with pytest.raises(UnknownNameError, match="unknown block kind 'atention'; nearest: attention"):
        block_params(model("kimi-k2"), "atention")
    with pytest.raises(ConfigError, match=r"llama-3\.1-8b has no moe block"):
        block_params(model("llama-3.1-8b"), "moe")
