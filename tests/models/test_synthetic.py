"""Random weights: reproducible from their name alone, all different, of the right spread."""

import dataclasses
import itertools

import numpy as np
import pytest

from lpu_jax.errors import ConfigError, WeightsError
from models.config import MlaConfig, MoeConfig
from models.params import block_params
from models.rope import RopeConfig
from models.weights.synthetic import NORM_RANGE, SyntheticWeights
from models.zoo import DEEPSEEK_V3, SMOLLM2_135M

TINY = dataclasses.replace(
    DEEPSEEK_V3,
    name="tiny",
    n_layers=3,
    d_model=64,
    d_ff=96,
    vocab_size=128,
    attention=MlaConfig(
        n_heads=4,
        q_lora_rank=24,
        kv_lora_rank=16,
        nope_head_dim=8,
        rope_head_dim=8,
        v_head_dim=8,
    ),
    rope=RopeConfig(theta=1e4, dim=8, interleaved=True),
    moe=MoeConfig(n_experts=8, top_k=2, n_shared=1, d_expert=32, n_dense_layers=1),
)


def everything(weights: SyntheticWeights) -> dict[str, np.ndarray]:
    blocks = [("embed", 0), ("head", 0), ("dense", 0), ("moe", 1), ("moe", 2)]
    blocks += [("attention", layer) for layer in range(3)]
    arrays = {
        f"{kind}/{layer}/{name}": array
        for kind, layer in blocks
        for name, array in weights.block(kind, layer).items()
    }
    for layer, expert_id in itertools.product((1, 2), range(8)):
        for name, array in weights.expert(layer, expert_id).items():
            arrays[f"expert/{layer}/{name}/{expert_id}"] = array
    return arrays


def test_values_do_not_depend_on_what_was_asked_before():
    first = everything(SyntheticWeights(TINY, seed=7))
    fresh = SyntheticWeights(TINY, seed=7)
    np.testing.assert_array_equal(fresh.expert(2, 5)["down"], first["expert/2/down/5"], strict=True)
    np.testing.assert_array_equal(
        fresh.block("moe", 1)["router"], first["moe/1/router"], strict=True
    )


# Printed by the program once; NumPy is free to move it, and then this line says so.
PINNED = -0.14399764


def test_a_pinned_value_does_not_move():
    """Guards the label and the generator: published results name a seed."""
    value = SyntheticWeights(TINY, seed=0).expert(1, 3)["down"][0, 0]
    assert value == np.float32(PINNED)


def test_no_two_tensors_are_equal():
    arrays = everything(SyntheticWeights(TINY, seed=7))
    starts = {name: array.ravel()[:8].tobytes() for name, array in arrays.items()}
    assert len(set(starts.values())) == len(starts)
    other_seed = everything(SyntheticWeights(TINY, seed=8))
    assert all(not np.array_equal(arrays[name], other_seed[name]) for name in arrays)


def test_shapes_and_spreads_are_those_of_the_specification():
    weights = SyntheticWeights(TINY)
    for kind, layer in (("embed", 0), ("attention", 0), ("dense", 0), ("moe", 1), ("head", 0)):
        specs = block_params(TINY, kind)
        arrays = weights.block(kind, layer)
        assert arrays.keys() == {name for name, spec in specs.items() if spec.role != "expert"}
        for name, array in arrays.items():
            spec = specs[name]
            assert array.dtype == np.float32
            assert array.shape == spec.shape
            if spec.role == "norm":
                assert NORM_RANGE[0] <= array.min() < array.max() <= NORM_RANGE[1]
            elif array.size > 1000:
                # The spread of a sample of n normals is itself spread by 1 / sqrt(2 n).
                assert array.std() == pytest.approx(spec.std, rel=5 / np.sqrt(2 * array.size))
    expert = weights.expert(1, 0)
    assert {name: array.shape for name, array in expert.items()} == {
        "gate_up": (64, 2, 32),
        "down": (32, 64),
    }


def test_tied_head_is_the_transposed_table():
    tied = SyntheticWeights(dataclasses.replace(SMOLLM2_135M, vocab_size=96))
    np.testing.assert_array_equal(tied.block("head")["out"], tied.block("embed")["table"].T)


def test_blocks_that_are_not_there_are_refused():
    weights = SyntheticWeights(TINY)
    with pytest.raises(WeightsError, match="layer 0 has a dense block, not moe"):
        weights.block("moe", 0)
    with pytest.raises(WeightsError, match="layer 0 has no routed experts"):
        weights.expert(0, 0)
    with pytest.raises(WeightsError, match="expert must be 0 to 7, got 8"):
        weights.expert(1, 8)
    with pytest.raises(ConfigError, match="layer must be 0 to 2, got 3"):
        weights.block("attention", 3)
