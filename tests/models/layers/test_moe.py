"""The mixture of experts: the sum over experts does not depend on where they lie."""

import functools
from dataclasses import replace

import jax
import numpy as np
import pytest
from placed_blocks import TINY_KIMI, hidden, place, plan, runner, sqnr_db
from small_machines import tiered

from models.layers.linear import Split
from models.reference import reference_block, with_experts
from models.weights.synthetic import SyntheticWeights
from sharding.plan import MoeShard
from sharding.request import Request

BATCH = 5
#: The block's change of the hidden state against float32 weights that are not rounded. Measured
#: 58.9, 24.9 and 13.7 dB; a lost tensor scale of nvfp4 would leave less than 0.
SQNR_DB = {"fp16": 55.0, "groq-truepoint": 23.0, "nvfp4": 12.0}


@functools.cache
def run(
    split: Split,
    expert: int,
    tensor: int,
    way: str = "virtual",
    batch: int = BATCH,
    policy: str = "fp16",
    order: tuple[str, ...] = MoeShard.order,
) -> jax.Array:
    request = Request(batch=batch, tokens=1, context=1)
    the_plan = plan("moe", split, expert=expert, tensor=tensor)
    assert the_plan.moe is not None
    the_plan = replace(the_plan, moe=replace(the_plan.moe, order=order))
    block = place(TINY_KIMI, "moe", the_plan, request, policy=policy, system=tiered(4))
    x = hidden(64, 1, TINY_KIMI.d_model)[:batch]
    return runner(TINY_KIMI, block, way, {order[1]: 4})(x, *block.arguments[1:])


@pytest.mark.slow
def test_experts_and_columns_over_eight_chips_equal_one_chip() -> None:
    alone = run(Split.COLUMN, 1, 1)
    np.testing.assert_array_equal(run(Split.COLUMN, 4, 2), alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    "order",
    [
        ("replica", "tensor", "expert"),
        pytest.param(("expert", "tensor", "replica"), marks=pytest.mark.long),
    ],
)
def test_the_order_of_axes_moves_no_bit_of_a_column_split(order: tuple[str, ...]) -> None:
    alone = run(Split.COLUMN, 1, 1)
    np.testing.assert_array_equal(run(Split.COLUMN, 3, 2, order=order), alone)


@pytest.mark.long
@pytest.mark.parametrize("way", ["devices", "nested"])
def test_devices_and_virtual_chips_order_axes_alike(way: str) -> None:
    order = ("replica", "tensor", "expert")
    rows = run(Split.ROW, 2, 4, order=order)
    np.testing.assert_array_equal(run(Split.ROW, 2, 4, way, order=order), rows)
    # Neighbours are added first: with other neighbours other sums are rounded.
    assert np.any(np.asarray(rows) != np.asarray(run(Split.ROW, 2, 4)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "policy",
    [
        "fp16",
        pytest.param("groq-truepoint", marks=pytest.mark.long),
        pytest.param("nvfp4", marks=pytest.mark.long),
    ],
)
def test_the_block_is_close_to_float32(policy: str) -> None:
    assert TINY_KIMI.moe is not None
    held = tuple(range(TINY_KIMI.moe.n_experts))
    params = with_experts(SyntheticWeights(TINY_KIMI), 1, held)
    x = np.asarray(hidden(64, 1, TINY_KIMI.d_model)[:BATCH], np.float32)
    expected = np.asarray(reference_block(TINY_KIMI, "moe", params, held)(jax.numpy.asarray(x))) - x
    got = np.asarray(run(Split.COLUMN, 1, 1, policy=policy), np.float32) - x
    assert sqnr_db(expected, got) > SQNR_DB[policy]


@pytest.mark.long
@pytest.mark.parametrize("way", ["nested", "devices"])
def test_devices_give_the_bits_of_virtual_chips(way: str) -> None:
    np.testing.assert_array_equal(run(Split.ROW, 8, 1), run(Split.ROW, 8, 1, way))


@pytest.mark.long
@pytest.mark.parametrize("policy", ["nvfp4", "groq-truepoint", "mxfp4"])
def test_narrow_experts_over_chips_equal_one_chip(policy: str) -> None:
    alone = run(Split.COLUMN, 1, 1, policy=policy)
    np.testing.assert_array_equal(run(Split.COLUMN, 2, 2, policy=policy), alone)
    np.testing.assert_array_equal(run(Split.COLUMN, 2, 2, "devices", policy=policy), alone)


@pytest.mark.long
def test_a_row_split_moves_roundings() -> None:
    assert np.any(np.asarray(run(Split.ROW, 8, 1)) != np.asarray(run(Split.COLUMN, 1, 1)))


@pytest.mark.long
@pytest.mark.parametrize(
    ("expert", "tensor"),
    [(5, 1), (1, 3), (2, 4)],  # 5 and 3 pad
)
def test_padded_splits_equal_one_chip(expert: int, tensor: int) -> None:
    np.testing.assert_array_equal(run(Split.COLUMN, expert, tensor), run(Split.COLUMN, 1, 1))


@pytest.mark.long
def test_a_row_does_not_depend_on_the_batch() -> None:
    one = run(Split.COLUMN, 1, 1, batch=1)
    np.testing.assert_array_equal(run(Split.COLUMN, 1, 1, batch=64)[:1], one)
