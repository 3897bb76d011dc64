"""Policies whose products tensor cores make: which parts, which bits, and what is refused."""

import pickle

import jax.numpy as jnp
import numpy as np
import pytest
from placed_blocks import TINY_LLAMA, place, plan, runner

from lpu_jax.datapath import mxm, tensor_core
from lpu_jax.errors import ConfigError, LpuError
from models.blocks import Kind
from models.layers.linear import Split, linear, wide_product
from models.policy import POLICIES, policy_named
from sharding.request import Request


def _operands() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 200)) * 2.0 ** rng.integers(-6, 6, (3, 200))
    w = rng.standard_normal((200, 24))
    return x.astype(np.float16), w.astype(np.float16)


@pytest.mark.slow
def test_a_product_is_that_of_the_unit_that_is_named() -> None:
    x, w = map(jnp.asarray, _operands())
    policy = policy_named("fp16@hopper")
    got = linear(x, w, policy=policy.of_part("mlp"))
    np.testing.assert_array_equal(got, tensor_core.matmul(x, w, generation="hopper"))
    assert np.any(np.asarray(got) != np.asarray(mxm.matmul(x, w)))  # tensor cores truncate
    np.testing.assert_array_equal(linear(x, w, policy=policy), mxm.matmul(x, w))


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("fp16@blackwell", {"attention", "mlp", "moe", "vocab"}),
        ("int4@rubin:attention", {"attention", "vocab"}),
    ],
)
def test_parts_have_units(name: str, parts: set[str]) -> None:
    policy = policy_named(name)
    assert policy.name == name
    generation = name.partition("@")[2].partition(":")[0]
    for part in ("attention", "mlp", "moe", "vocab"):
        assert policy.of_part(part).generation == (generation if part in parts else None)
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert hash(policy) != hash(policy.on_chip)
    assert policy.on_chip.of_part("attention").generation is None


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "moves"), [("attention", True), ("dense", False)])
def test_blocks_of_other_parts_keep_their_bits(kind: Kind, moves: bool) -> None:
    def run(policy: str) -> np.ndarray:
        block = place(
            TINY_LLAMA,
            kind,
            plan("attention" if kind == "attention" else "mlp", Split.COLUMN),
            Request(batch=64, context=8),
            policy=policy,
        )
        x = np.random.default_rng(1).standard_normal((64, 1, TINY_LLAMA.d_model))
        return np.asarray(runner(TINY_LLAMA, block)(x.astype(np.float16), *block.arguments[1:])[0])

    assert np.any(run("fp16@blackwell:attention") != run("fp16")) == moves


def test_what_cannot_be_is_refused_in_one_sentence() -> None:
    with pytest.raises(LpuError, match="generation of tensor cores"):
        policy_named("fp16@volta")
    with pytest.raises(LpuError, match="it must be 'attention'"):
        policy_named("fp16@hopper:head")
    for name in ("int8@hopper", "fp8-rows@hopper", "float32@hopper"):
        with pytest.raises(ConfigError, match="tensor cores multiply float16 rows"):
            policy_named(name)
    x, w = map(jnp.asarray, _operands())
    with pytest.raises(LpuError, match="no split 'wide'"):
        wide_product(x, w, policy=policy_named("fp16@hopper").of_part("mlp"))
    assert set(POLICIES) == {name for name in POLICIES if "@" not in name}
