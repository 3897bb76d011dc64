"""Rows that travel to their experts give what rows on every chip give, and none is ever lost."""

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

from lpu_jax.datapath import expert_slots, mem
from models.layers.dispatch import Dispatch
from models.layers.linear import Split
from models.policy import POLICIES
from sharding.plan import MoeShard
from sharding.request import Request

#: Experts of everything there is: groups and a shared expert, or neither but biases and a clamp.
MODELS = {"kimi": TINY_KIMI, "gpt-oss": TINY_OSS}
#: fp32: two units in the last place of values up to 16. fp16: each dispatch rounds partial sums,
#: their sum and the hidden state in its own places, half a unit in the last place of 2^-7 each.
BOUNDS = {"float32": 2e-6, "fp16": 2 * 2.0**-7}


@functools.cache
def run(
    dispatch: Dispatch,
    expert: int,
    tensor: int,
    batch: int,
    *,
    policy: str = "float32",
    model: str = "kimi",
    way: str = "virtual",
    order: tuple[str, ...] = MoeShard.order,
    forced: tuple[int, ...] = (),
    collective: str = "auto",
) -> np.ndarray:
    cfg, request = MODELS[model], Request(batch=batch, tokens=1, context=1)
    the_plan = plan("moe", Split.ROW, expert=expert, tensor=tensor)
    assert the_plan.moe is not None
    shard = replace(the_plan.moe, dispatch=dispatch, order=order)
    the_plan = replace(the_plan, moe=shard, collective=collective)
    block = place(cfg, "moe", the_plan, request, policy=policy, system=tiered(4))
    x = hidden(64, 1, cfg.d_model)[:batch].astype(POLICIES[policy].dtype)
    _, weights, placement = block.arguments
    if forced:
        bias = jnp.zeros_like(weights["router_bias"]).at[jnp.asarray(forced)].set(100.0)
        weights = {**weights, "router_bias": bias}
    program = runner(cfg, block, way, {order[1]: expert if order[1] == "expert" else tensor})
    return np.asarray(program(x, weights, placement))


def compare(expert: int, tensor: int, batch: int, **choices: Any) -> None:
    policy = choices.get("policy", "float32")
    sent, everywhere = (
        run(dispatch, expert, tensor, batch, **choices).astype(np.float64)
        for dispatch in (Dispatch.ALL_TO_ALL, Dispatch.REPLICATED)
    )
    # Another expert, or a row that is left out, changes a row by its own size.
    np.testing.assert_allclose(sent, everywhere, rtol=0, atol=BOUNDS[policy])


@pytest.mark.long
def test_rows_that_no_chips_share_evenly() -> None:
    compare(3, 2, 7)


@pytest.mark.parametrize(
    ("expert", "tensor", "batch", "policy", "model"),
    some_slow(
        [
            (*sizes, policy, model)
            for model in MODELS
            for policy in BOUNDS
            for sizes in [(4, 2, 5), (5, 1, 1), (1, 3, 4), (3, 2, 64), (12, 1, 3)]
        ],
        count=2,
    ),
)
def test_exchanged_rows_give_the_values_of_replicated_rows(
    expert: int, tensor: int, batch: int, policy: str, model: str
) -> None:
    compare(expert, tensor, batch, policy=policy, model=model)


@pytest.mark.long
@pytest.mark.parametrize("policy", list(BOUNDS))
def test_all_rows_may_use_experts_of_one_chip(policy: str) -> None:
    compare(4, 1, 8, policy=policy, forced=(7,))


@pytest.mark.long
def test_empty_places_take_no_slot_of_an_expert() -> None:
    # One row fills the three slots of its chip; the places of the other share are empty.
    compare(2, 1, 1, forced=(3, 4, 5))


@pytest.mark.parametrize(
    ("way", "order"),
    some_slow(
        [
            (way, order)
            for way in ("devices", "nested")
            for order in (("replica", "expert", "tensor"), ("replica", "tensor", "expert"))
        ],
        count=1,
    ),
)
def test_devices_give_the_bits_of_virtual_chips(way: str, order: tuple[str, ...]) -> None:
    choices: dict[str, Any] = {"policy": "fp16", "order": order}
    np.testing.assert_array_equal(
        run(Dispatch.ALL_TO_ALL, 4, 2, 7, way=way, **choices),
        run(Dispatch.ALL_TO_ALL, 4, 2, 7, **choices),
    )


@pytest.mark.long
@pytest.mark.parametrize("collective", ["auto", "ring"])
def test_a_row_does_not_depend_on_the_rows_beside_it(collective: str) -> None:
    few, many = (
        run(Dispatch.ALL_TO_ALL, 4, 1, batch, policy="fp16", collective=collective)
        for batch in (2, 64)
    )
    np.testing.assert_array_equal(few, many[:2])


# --- lists of rows --------------------------------------------------------------------------------

N_CHIPS, N_LOCAL, N_OWN, TOP_K = 3, 4, 5, 2


@given(
    ids=st.lists(
        st.lists(st.integers(0, N_CHIPS * N_LOCAL - 1), min_size=TOP_K, max_size=TOP_K),
        min_size=N_OWN,
        max_size=N_OWN,
    ),
    share=st.integers(0, N_CHIPS - 1),
    n_rows=st.sampled_from([1, 8, N_CHIPS * N_OWN]),
)
@settings(max_examples=60)
def test_every_row_is_listed_once_for_every_chip_of_its_experts(
    ids: list[list[int]], share: int, n_rows: int
) -> None:
    sent, places = expert_slots.rows_by_chip(
        jnp.asarray(ids, jnp.int32),
        jnp.int32(share),
        n_rows=n_rows,
        n_chips=N_CHIPS,
        n_local=N_LOCAL,
        n_places=N_OWN,
    )
    for chip in range(N_CHIPS):
        users = [
            row
            for row, experts in enumerate(ids)
            if share * N_OWN + row < n_rows and any(e // N_LOCAL == chip for e in experts)
        ]
        assert sent[chip].tolist() == users + [-1] * (N_OWN - len(users))
        back = [chip * N_OWN + users.index(row) if row in users else -1 for row in range(N_OWN)]
        assert places[chip].tolist() == back


def test_rows_that_are_not_held_are_filled_as_asked_and_shares_are_padded() -> None:
    table = jnp.asarray([[1, 2], [3, 4]], jnp.int32)
    rows = jnp.asarray([[1, -1], [2, 0]], jnp.int32)
    found = mem.lookup(table, rows, jnp.int32(0), missing=-1)
    np.testing.assert_array_equal(found, [[[3, 4], [-1, -1]], [[-1, -1], [1, 2]]])
    np.testing.assert_array_equal(mem.pad_rows(table, 3), [[1, 2], [3, 4], [0, 0]])
