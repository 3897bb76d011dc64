"""Slots of a mixture: no slot, no capacity and no overflow moves a bit or loses a row."""

import functools
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from placed_blocks import TINY_KIMI, TINY_OSS, hidden, place, plan, runner
from slices import some_slow
from small_machines import tiered

from lpu_jax.datapath import expert_slots
from models.layers.dispatch import Dispatch
from models.layers.linear import Split
from sharding.plan import SlotRule
from sharding.request import Request

BATCH = 9
MODELS = {"kimi": TINY_KIMI, "gpt-oss": TINY_OSS}


@functools.cache
def run(
    model: str,
    split: Split,
    expert: int,
    tensor: int,
    *,
    dispatch: Dispatch = Dispatch.REPLICATED,
    forced: tuple[int, ...] = (),
    way: str = "virtual",
    **of_slots: Any,
) -> np.ndarray:
    cfg, request = MODELS[model], Request(batch=BATCH, tokens=1, context=1)
    the_plan = plan("moe", split, expert=expert, tensor=tensor)
    assert the_plan.moe is not None
    the_plan = replace(the_plan, moe=replace(the_plan.moe, dispatch=dispatch, **of_slots))
    block = place(cfg, "moe", the_plan, request, system=tiered(4))
    x = hidden(BATCH, 1, cfg.d_model)
    _, weights, placement = block.arguments
    if forced:  # all rows choose these experts: most slots of the chips are not enough
        bias = jnp.zeros_like(weights["router_bias"]).at[jnp.asarray(forced)].set(100.0)
        weights = {**weights, "router_bias": bias}
    devices = {"expert": expert} if way == "nested" else None
    return np.asarray(runner(cfg, block, way, devices)(x, weights, placement))


#: One row of a slot; as many as divide nothing; slots that every step overflows; a rule.
SIZES: tuple[dict[str, Any], ...] = (
    {"capacity": 1},
    {"capacity": 4},
    {"slots": 4, "capacity": 2, "overflow": 0.5},
    {"slot_rule": SlotRule.EXPECTED},
)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", SIZES[1:3])
def test_slots_and_capacity_move_no_bit(sizes: dict[str, Any]) -> None:
    alone = run("kimi", Split.COLUMN, 1, 1, capacity=BATCH)
    np.testing.assert_array_equal(run("kimi", Split.COLUMN, 2, 2, **sizes), alone)


@pytest.mark.parametrize(
    ("model", "sizes", "expert", "tensor", "split"),
    some_slow(
        [
            (*model, *way)
            for way in ((5, 1, Split.ROW), (2, 3, Split.COLUMN))
            for model in (("gpt-oss", SIZES[2]), ("kimi", SIZES[0]), ("kimi", SIZES[2]))
        ],
        count=2,
    ),
)
def test_slots_move_no_bit_of_any_split(
    model: str, sizes: dict[str, Any], expert: int, tensor: int, split: Split
) -> None:
    expected = run(model, split, expert, tensor, capacity=BATCH)
    np.testing.assert_array_equal(run(model, split, expert, tensor, **sizes), expected)


@pytest.mark.long
@pytest.mark.parametrize("sizes", SIZES[:3:2])
@pytest.mark.parametrize("dispatch", Dispatch)
def test_no_row_is_lost_where_all_choose_the_experts_of_one_chip(
    sizes: dict[str, Any], dispatch: Dispatch
) -> None:
    choices: dict[str, Any] = {"dispatch": dispatch, "forced": (3, 4, 5)}
    expected = run("kimi", Split.ROW, 4, 2, capacity=BATCH, **choices)
    np.testing.assert_array_equal(run("kimi", Split.ROW, 4, 2, **sizes, **choices), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "dispatch"),
    [
        pytest.param("devices", Dispatch.ALL_TO_ALL, marks=pytest.mark.long),
        ("nested", Dispatch.REPLICATED),
    ],
)
def test_gathered_rows_give_the_same_bits_on_devices(way: str, dispatch: Dispatch) -> None:
    choices: dict[str, Any] = {"dispatch": dispatch, "capacity": 2}
    np.testing.assert_array_equal(
        run("kimi", Split.ROW, 4, 2, way=way, **choices), run("kimi", Split.ROW, 4, 2, **choices)
    )


# --- the lists ------------------------------------------------------------------------------------

N_LOCAL, N_CHIPS, TOP_K = 4, 3, 3
IDS = st.lists(
    st.lists(st.integers(0, N_LOCAL * N_CHIPS - 1), min_size=TOP_K, max_size=TOP_K, unique=True),
    min_size=1,
    max_size=9,
)


def filled(ids: list[list[int]], chip: int, capacity: int) -> list[tuple[int, list[int]]]:
    """The slots of a chip, by lists: an expert, and up to `capacity` of its rows."""
    slots = []
    for expert in range(chip * N_LOCAL, (chip + 1) * N_LOCAL):
        users = [row for row, chosen in enumerate(ids) if expert in chosen]
        for first in range(0, len(users), capacity):
            slots.append((expert, users[first : first + capacity]))
    return slots


@pytest.mark.long
@given(
    ids=IDS, chip=st.integers(0, N_CHIPS - 1), capacity=st.integers(1, 10), spare=st.integers(-2, 2)
)
@settings(max_examples=80)
def test_slots_are_filled_by_ascending_expert_and_row(
    ids: list[list[int]], chip: int, capacity: int, spare: int
) -> None:
    expected = filled(ids, chip, capacity)
    n_slots = max(1, len(expected) + spare)
    slots, rows, pairs = expert_slots.fill_slots(
        jnp.asarray(ids, jnp.int32),
        jnp.int32(chip * N_LOCAL),
        n_local=N_LOCAL,
        n_slots=n_slots,
        capacity=capacity,
    )
    expected = (expected + [(-1, [])] * n_slots)[:n_slots]
    assert slots.tolist() == [expert for expert, _ in expected]
    assert rows.tolist() == [users + [-1] * (capacity - len(users)) for _, users in expected]
    for (expert, users), numbers in zip(expected, pairs.tolist(), strict=True):
        chosen = [divmod(n, TOP_K) for n in numbers[: len(users)]]
        assert [(row, ids[row][j]) for row, j in chosen] == [(row, expert) for row in users]


@pytest.mark.long
@given(ids=IDS, capacity=st.integers(1, 10))
@settings(max_examples=80)
def test_results_are_found_by_ascending_expert(ids: list[list[int]], capacity: int) -> None:
    by_chip = [filled(ids, chip, capacity) for chip in range(N_CHIPS)]
    n_slots = max(1, *map(len, by_chip))
    results = {
        (row, expert): (chip * n_slots + slot) * capacity + place
        for chip, slots in enumerate(by_chip)
        for slot, (expert, users) in enumerate(slots)
        for place, row in enumerate(users)
    }
    sizes = {"n_local": N_LOCAL, "n_slots": n_slots, "capacity": capacity}
    given_ids = jnp.asarray(ids, jnp.int32)
    places = expert_slots.result_places(given_ids, jnp.int32(0), n_chips=N_CHIPS, **sizes)
    expected = [[results[row, e] for e in sorted(chosen)] for row, chosen in enumerate(ids)]
    assert places.T.tolist() == expected
    own = expert_slots.result_places(given_ids, jnp.int32(N_LOCAL), n_chips=1, **sizes)
    shift = n_slots * capacity
    of_second = [
        [p - shift if shift <= p < 2 * shift else -1 for p in of_row] for of_row in expected
    ]
    assert own.T.tolist() == of_second


@pytest.mark.slow
def test_slots_that_are_not_enough_would_show() -> None:
    """What the tests above rest on: a program with fewer slots than a step needs loses rows."""
    request = Request(batch=BATCH, tokens=1, context=1)
    the_plan = plan("moe", Split.ROW, expert=2)
    assert the_plan.moe is not None
    the_plan = replace(the_plan, moe=replace(the_plan.moe, capacity=2))
    block = place(TINY_KIMI, "moe", the_plan, request)
    x = hidden(BATCH, 1, TINY_KIMI.d_model)
    assert block.experts is not None
    few = replace(block, experts=replace(block.experts, slots=2))
    whole, part = (runner(TINY_KIMI, b)(x, *b.arguments[1:]) for b in (block, few))
    assert np.any(np.asarray(whole) != np.asarray(part))
