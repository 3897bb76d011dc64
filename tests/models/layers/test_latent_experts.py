"""Experts in a narrower space: the reference's meaning, and bits that no split moves."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from placed_blocks import TINY_NEMOTRON, hidden, place, plan, runner, sqnr_db
from slices import some_slow
from small_machines import tiered

from models.layers.dispatch import Dispatch
from models.layers.linear import Split
from models.reference import reference_block, with_experts
from models.weights.synthetic import SyntheticWeights
from sharding.request import Request

BATCH, LAYER = 5, 1
#: The block's change of the hidden state against float32 weights that are not rounded to float16.
SQNR_DB = 55.0
#: Chips that travelling rows are shared out to: their order of summation differs from one chip's.
TRAVELLED_DB = 60.0


@functools.cache
def run(
    split: Split,
    expert: int,
    tensor: int,
    way: str = "virtual",
    dispatch: Dispatch = Dispatch.REPLICATED,
) -> jax.Array:
    request = Request(batch=BATCH, tokens=1, context=1)
    the_plan = plan("moe", split, expert=expert, tensor=tensor)
    the_plan = replace(the_plan, moe=replace(the_plan.moe, dispatch=dispatch))
    block = place(TINY_NEMOTRON, "moe", the_plan, request, system=tiered(4))
    x = hidden(64, 1, TINY_NEMOTRON.d_model)[:BATCH]
    return runner(TINY_NEMOTRON, block, way, {"expert": 4})(x, *block.arguments[1:])


@pytest.mark.slow
def test_a_block_is_that_of_the_reference() -> None:
    x = np.asarray(hidden(64, 1, TINY_NEMOTRON.d_model)[:BATCH], np.float32)
    source = SyntheticWeights(TINY_NEMOTRON)
    weights = with_experts(source, LAYER, tuple(range(6)))
    expected = np.asarray(reference_block(TINY_NEMOTRON, "moe", weights)(jnp.asarray(x)))
    found = np.asarray(run(Split.COLUMN, 1, 1), np.float32)
    assert sqnr_db(expected - x, found - x) > SQNR_DB


@pytest.mark.parametrize(
    ("split", "ways", "way"),
    some_slow(
        [
            (Split.COLUMN, (4, 2), "virtual"),
            (Split.COLUMN, (3, 1), "virtual"),
            (Split.COLUMN, (4, 2), "devices"),
            (Split.TREE, (4, 2), "virtual"),
            (Split.TREE, (1, 4), "virtual"),
            (Split.WIDE, (3, 2), "virtual"),
            (Split.WIDE, (4, 2), "devices"),
        ],
        count=1,
    ),
)
def test_no_split_moves_a_bit(split: Split, ways: tuple[int, int], way: str) -> None:
    np.testing.assert_array_equal(run(split, *ways, way), run(split, 1, 1))


@pytest.mark.slow
def test_sums_of_rows_and_travelling_rows_are_near() -> None:
    x = np.asarray(hidden(64, 1, TINY_NEMOTRON.d_model)[:BATCH], np.float32)
    alone = np.asarray(run(Split.COLUMN, 1, 1), np.float32) - x
    for dispatch in Dispatch:
        found = np.asarray(run(Split.ROW, 2, 2, dispatch=dispatch), np.float32) - x
        assert sqnr_db(alone, found) > TRAVELLED_DB, dispatch
