"""Splits `tree` and `wide`: the bits of one chip under the same rule, and not those of others.

fp32 totals before the last rounding against NumPy loops and Python integers; then blocks of random
models (`fuzz`), each in its own operations, chip by chip.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from exact_sums import round_units, units
from fuzz import promises
from fuzz.blocks import subjects
from fuzz.draw import triple
from jax.sharding import PartitionSpec as P
from placed_blocks import TINY_LLAMA, hidden, place, plan, runner
from small_machines import NODE

from lpu_jax.datapath import c2c
from lpu_jax.datapath.axis import Axis
from lpu_jax.mesh import ChipMesh, run_devices, run_nested, run_virtual
from lpu_jax.numerics.quantized import QuantizedArray, partition, widen
from lpu_jax.numerics.schemes import FP8_BLOCK128, INT4_GROUP32, INT8_COLUMN
from models import leaves
from models.layers.linear import Split, tree_sum, wide_total
from models.policy import FP16
from sharding.request import Request

ROWS, K, COLUMNS, LEAF = 3, 1024, 16, 128
N_LEAVES = K // LEAF


def values(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def weights(scheme: str) -> Any:
    if scheme == "fp16":
        return jnp.asarray(values(K, COLUMNS), jnp.float16)
    spec = {"int8": INT8_COLUMN, "int4": INT4_GROUP32, "fp8": FP8_BLOCK128}[scheme]
    codes = np.clip(40 * values(K, COLUMNS), -7 if scheme == "int4" else -127, 7 + 120)
    codes = np.clip(codes, -8, 7) if scheme == "int4" else codes
    rows = -(-K // spec.block_rows) if spec.block_rows else 1
    scales = np.abs(values(rows, COLUMNS, seed=1)) / 64 + 2.0**-8
    return QuantizedArray(
        codes=jnp.asarray(np.rint(codes), spec.code_dtype),
        scales=jnp.asarray(scales, spec.scale_dtype),
        scheme=spec,
    )


def total(split: Split, w: Any, n: int, way: Any = run_virtual, leaf: int = LEAF) -> np.ndarray:
    """The fp32 total of a product over chips, before it is rounded to the base format."""

    def program(x: jax.Array, w: Any, *, axes: dict[str, Axis]) -> jax.Array:
        if split is Split.TREE:
            part = tree_sum(x, w, policy=FP16, leaf=leaf)
            return c2c.tree_all_reduce(part, axes["x"])
        return wide_total(x, w, policy=FP16, axis=axes["x"])

    x = jnp.asarray(values(ROWS, K, seed=2), jnp.float16)
    mesh = ChipMesh(axes=(("x", n),), topology=NODE.topology)
    of_w = partition(w, P("x")) if isinstance(w, QuantizedArray) else P("x")
    specs = (P(None, "x"), of_w), P()
    run = run_nested(program, mesh, {"x": 2}, *specs) if way is None else way(program, mesh, *specs)
    return np.asarray(jax.jit(run)(x, w))


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.tobytes() == b.tobytes()


def tree(parts: list[np.ndarray]) -> np.ndarray:
    while len(parts) > 1:
        parts = [a + b for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def exact(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    return np.vectorize(round_units, otypes=["f4"])(units(x).dot(units(w)))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["fp16", "int4"])
def test_one_chip_adds_exact_leaves_by_the_tree_or_all_of_them_exactly(scheme: str) -> None:
    w = weights(scheme)
    x = values(ROWS, K, seed=2).astype(np.float16)
    dense = np.asarray(w if scheme == "fp16" else jax.jit(widen)(w))
    cut = [slice(LEAF * i, LEAF * i + LEAF) for i in range(N_LEAVES)]  # within a K tile of 160
    expected = tree([exact(x[:, rows], dense[rows]) for rows in cut])
    assert same_bits(total(Split.TREE, w, 1), expected)
    assert same_bits(total(Split.WIDE, w, 1), exact(x, dense))
    assert not same_bits(expected, exact(x, dense))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["fp16", "int8", "int4", "fp8"])
@pytest.mark.parametrize(("split", "degrees"), [(Split.TREE, (2, 8)), (Split.WIDE, (2, 8))])
def test_chips_have_the_bits_of_one(scheme: str, split: Split, degrees: tuple[int, ...]) -> None:
    w = weights(scheme)
    alone = total(split, w, 1)
    for n in degrees:
        assert same_bits(total(split, w, n), alone), n


@pytest.mark.slow
@pytest.mark.parametrize("split", [Split.TREE, Split.WIDE])
@pytest.mark.parametrize("way", [run_devices, None], ids=["devices", "nested"])
def test_devices_have_the_bits_of_one_chip(split: Split, way: Any) -> None:
    w = weights("fp16")
    assert same_bits(total(split, w, 4, way), total(split, w, 1))


@pytest.mark.slow
def test_another_number_of_leaves_is_another_rule() -> None:
    w = weights("fp16")
    assert not same_bits(total(Split.TREE, w, 1), total(Split.TREE, w, 1, leaf=LEAF // 2))


# --- blocks ---------------------------------------------------------------------------------------


#: Sums long enough to be rounded often before they are rounded to fp16.
WIDE_LLAMA = replace(TINY_LLAMA, d_ff=3840)
ROWS_OF_BLOCK = 256


def block(split: Split, n: int) -> np.ndarray:
    request = Request(batch=ROWS_OF_BLOCK, tokens=1, context=1)
    placed = place(WIDE_LLAMA, "dense", plan("dense", split, tensor=n), request)
    x = hidden(ROWS_OF_BLOCK, 1, WIDE_LLAMA.d_model)
    out = np.asarray(runner(WIDE_LLAMA, placed)(x, *placed.arguments[1:]))
    return out.view(np.uint16)


@pytest.mark.long
def test_witnesses() -> None:
    """What does not have the bits of one chip differs somewhere in 49,152 values."""
    alone = block(Split.COLUMN, 1)
    assert np.any(block(Split.ROW, 4) != alone)
    by_tree = block(Split.TREE, 1)
    assert np.any(by_tree != alone)
    assert np.any(block(Split.WIDE, 1) != alone)
    assert np.any(block(Split.WIDE, 1) != by_tree)
    assert np.all(block(Split.TREE, 4) == by_tree)
    leaves.leaves.cache_clear()
    leaves.rows_of_leaf.cache_clear()
    with mock.patch.object(leaves, "MOST_LEAVES", 4):
        fewer = block(Split.TREE, 4)
    leaves.leaves.cache_clear()
    leaves.rows_of_leaf.cache_clear()
    assert np.any(fewer != by_tree)


@pytest.fixture
def _without_checks_of_annotations() -> Iterator[None]:
    """Chips one by one hand NumPy arrays to operations, whose annotations say arrays of JAX."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.slow
@pytest.mark.usefixtures("_without_checks_of_annotations")
@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(n, marks=pytest.mark.long) for n in range(1, 5))]
)
@pytest.mark.parametrize("split", [Split.TREE, Split.WIDE])
def test_a_random_block_has_the_bits_of_one_chip(split: Split, seed: int) -> None:
    one, counts = triple(seed, split), Counter[str]()
    chosen = [s for s in subjects(one) if s.kind in promises.SPLIT_KINDS]
    promises.check_rule(one, counts, chosen[seed % len(chosen) :][:1], ways=False)
    assert counts.total() == 1
