"""The mixture of gpt-oss, biases and clamp, against NumPy float64, and over chips."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from placed_blocks import TINY_OSS, hidden, place, plan, runner
from small_machines import tiered

from lpu_jax.datapath import vxm
from models.layers.linear import Split
from models.policy import POLICIES
from models.reference import with_experts
from models.weights.synthetic import SyntheticWeights
from sharding.request import Request

BATCH = 5
assert TINY_OSS.moe is not None
MOE = TINY_OSS.moe


def rms_normed(x: np.ndarray, norm: np.ndarray) -> np.ndarray:
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + TINY_OSS.norm_eps) * norm


def activated(gate_up: np.ndarray, limit: float) -> np.ndarray:
    gate, up = np.minimum(gate_up[0], limit), np.clip(gate_up[1], -limit, limit)
    return (up + 1) * gate / (1 + np.exp(-MOE.swiglu_alpha * gate))


def expected_block(x: np.ndarray, limit: float = 0.5) -> np.ndarray:
    """The block in float64, expert by expert; `x` is `[m, d]`."""
    params = with_experts(SyntheticWeights(TINY_OSS), 0, tuple(range(MOE.n_experts)))
    w = {name: np.asarray(value, np.float64) for name, value in params.items()}
    normed = rms_normed(x.astype(np.float64), w["norm"])
    logits = normed @ w["router"] + w["router_offset"]
    out = x.astype(np.float64)
    for row in range(len(x)):
        chosen = np.argsort(-logits[row], kind="stable")[: MOE.top_k]
        gates = np.exp(logits[row, chosen] - logits[row, chosen].max())
        for expert, gate in zip(chosen, gates / gates.sum(), strict=True):
            gate_up = np.einsum("d,dcf->cf", normed[row], w["gate_up"][expert])
            h = activated(gate_up + w["gate_up_bias"][expert], limit)
            out[row] += gate * (h @ w["down"][expert] + w["down_bias"][expert, 0])
    return out


@functools.cache
def run(
    split: Split, expert: int, tensor: int, policy: str = "fp16", way: str = "virtual"
) -> np.ndarray:
    request = Request(batch=BATCH, tokens=1, context=1)
    the_plan = plan("moe", split, expert=expert, tensor=tensor)
    block = place(TINY_OSS, "moe", the_plan, request, policy=policy, system=tiered(4))
    x = hidden(BATCH, 1, TINY_OSS.d_model).astype(POLICIES[policy].dtype)
    return np.asarray(runner(TINY_OSS, block, way)(x, *block.arguments[1:]))[:, 0]


@pytest.mark.slow
def test_biases_and_clamp_are_those_of_float64() -> None:
    x = np.asarray(hidden(BATCH, 1, TINY_OSS.d_model), np.float32)[:, 0]
    expected = expected_block(x)
    # The clamp is at work: without it the block is another one.
    assert np.max(np.abs(expected - expected_block(x, limit=np.inf))) > 0.1
    # A product of 96 terms and two sums in fp32, values up to 10.
    np.testing.assert_allclose(run(Split.COLUMN, 2, 2, "float32"), expected, rtol=0, atol=1e-5)


@pytest.mark.long
def test_biases_over_experts_and_columns_equal_one_chip() -> None:
    np.testing.assert_array_equal(run(Split.COLUMN, 2, 2), run(Split.COLUMN, 1, 1))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["virtual", "devices"])
@pytest.mark.parametrize(("expert", "tensor"), [(5, 1), (1, 3), (2, 4)])  # 5 and 3 pad
def test_padded_splits_with_biases_equal_one_chip(expert: int, tensor: int, way: str) -> None:
    alone = run(Split.COLUMN, 1, 1)
    np.testing.assert_array_equal(run(Split.COLUMN, expert, tensor, way=way), alone)


@pytest.mark.slow
@pytest.mark.parametrize(("expert", "tensor"), [(2, 3), (3, 2)])
def test_partial_sums_hold_each_bias_once(expert: int, tensor: int) -> None:
    x = np.asarray(hidden(BATCH, 1, TINY_OSS.d_model), np.float32)[:, 0]
    found = run(Split.ROW, expert, tensor, "float32")
    # A bias of spread 0.1 that is held twice or not at all would show.
    np.testing.assert_allclose(found, expected_block(x), rtol=0, atol=1e-5)


def test_the_smaller_of_two() -> None:
    inf, nan = np.inf, np.nan
    x = jnp.asarray([0.0, -0.0, nan, 1.0, -inf, 2.0, 7.5], jnp.float32)
    y = jnp.asarray([-0.0, 0.0, 1.0, nan, inf, -3.0, 7.5], jnp.float32)
    expected = np.float32([-0.0, -0.0, nan, nan, -inf, -3.0, 7.5])
    for smaller in (vxm.minimum(x, y), vxm.minimum(y, x)):
        np.testing.assert_array_equal(smaller, expected)
        np.testing.assert_array_equal(np.signbit(smaller[:2]), True)
    np.testing.assert_array_equal(jax.jit(lambda x: vxm.minimum(x, 0.5))(y[5:]), [-3.0, 0.5])
