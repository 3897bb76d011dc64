"""One chip is one thing: what a plan says of a split over one chip changes no bit and no cycle."""

from copy import deepcopy
from dataclasses import replace
from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
from placed_blocks import TINY_KIMI, hidden, place, runner

from lpu_jax.machine.catalogue import system
from models.layers.dispatch import Dispatch
from models.layers.linear import Split
from models.policy import FP16
from models.zoo import model
from sharding.plan import AttentionShard, MlpShard, MoeShard, Plan
from sharding.predict.evaluate import evaluate
from sharding.rank.choose import promises_one_chip_bits
from sharding.request import Request
from sharding.scenario import Scenario

#: Every way to say that one chip holds the whole block.
ONE_CHIP = [
    Plan(
        group_chips=1,
        attention=AttentionShard(split=split),
        mlp=MlpShard(split=split),
        moe=MoeShard(split=split, dispatch=dispatch, order=order),
    )
    for split, dispatch in product((Split.ROW, Split.COLUMN), Dispatch)
    for order in permutations(("replica", "expert", "tensor"))
    if order[1] != "replica"
]
TWO_BY_COLUMNS = Plan(
    group_chips=2,
    attention=AttentionShard(replica=2),
    mlp=MlpShard(replica=2),
    moe=MoeShard(expert=2, split=Split.COLUMN),
)


def test_a_split_over_one_chip_has_one_name_and_one_promise() -> None:
    assert [plan.name for plan in set(ONE_CHIP)] == ["1x1 a:1 f:1 m:1"]
    assert all(promises_one_chip_bits(plan) for plan in (*ONE_CHIP, TWO_BY_COLUMNS))


def test_rows_stay_where_all_experts_are() -> None:
    rows = MoeShard(tensor=2, dispatch=Dispatch.ALL_TO_ALL)
    assert rows == MoeShard(tensor=2)
    assert MoeShard(expert=2, dispatch=Dispatch.ALL_TO_ALL).dispatch is Dispatch.ALL_TO_ALL
    assert AttentionShard(tensor=2).split is Split.ROW


def _forced(plan: Plan, part: str, **fields: Any) -> Plan:
    """Say of a plan what it does not keep, so that programs and schedules are made of it."""
    forced = deepcopy(plan)
    for name, value in fields.items():
        object.__setattr__(forced if part == "plan" else getattr(forced, part), name, value)
    return forced


@pytest.mark.parametrize(
    "name",
    ["1x1 a:1 f:1 m:1", "1x8 a:2t>4d f:8t m:4t>2e row", "1x8 a:2t·4c f:2t>4r m:4e·2r row"],
)
def test_where_an_axis_of_one_chip_stands_moves_no_cycle(name: str) -> None:
    """What makes it right that plans do not keep it."""
    plan = Plan.parse(name)
    plans = [plan]
    for part, shard in plan.parts.items():
        busy = [axis for axis in shard.order if getattr(shard, axis) > 1]
        others = [
            _forced(plan, part, order=order)
            for order in permutations(shard.order)
            if [axis for axis in order if axis in busy] == busy
            and not (part == "moe" and order[1] == "replica")
        ]
        plans += others[:: -(-len(others) // 4)]
    assert len({tuple(shard.order for shard in plan.parts.values()) for plan in plans}) > 4
    request = Request(batch=4, context=4096)
    found = evaluate(plans, Scenario(model("kimi-k2"), system("groq-node"), request, policy=FP16))
    for numbers in (found.latency_cycles, found.lower_cycles, found.upper_cycles):
        assert len(set(numbers)) == 1


@pytest.mark.parametrize("kind", ["kimi-k2", "llama-3.1-8b"])
def test_one_chip_has_one_time(kind: str) -> None:
    cfg = model(kind)
    one = ONE_CHIP[0] if cfg.moe is not None else replace(ONE_CHIP[0], moe=None)
    # Trees and wide sums are rules of one chip too, with times of their own.
    said = product(["auto", "ring", "direct+pipelined"], [Split.ROW, Split.COLUMN])
    plans = [
        _forced(_forced(one, "plan", collective=collective), "mlp", split=split)
        for collective, split in said
    ]
    assert len(set(plans)) == len(plans)
    found = evaluate(plans, Scenario(cfg, system("groq-1"), Request(context=64), policy=FP16))
    for numbers in (found.latency_cycles, found.lower_cycles, found.upper_cycles):
        assert len(set(numbers)) == 1


@pytest.mark.long
def test_a_mixture_on_one_chip_has_the_bits_of_columns() -> None:
    # The shared expert, whose result a row split adds before it is rounded, tells them apart.
    request = Request(batch=2, tokens=2, context=2)
    x = hidden(2, 2, TINY_KIMI.d_model)

    def run(plan: Plan) -> np.ndarray:
        block = place(TINY_KIMI, "moe", plan, request, policy="bf16")
        return np.asarray(runner(TINY_KIMI, block)(x, *block.arguments[1:]))

    by_columns = run(TWO_BY_COLUMNS).view(np.uint16)
    for plan in (ONE_CHIP[0], _forced(ONE_CHIP[0], "moe", order=("expert", "tensor", "replica"))):
        np.testing.assert_array_equal(run(plan).view(np.uint16), by_columns)
    by_rows = replace(TWO_BY_COLUMNS, moe=MoeShard(expert=2, split=Split.ROW))
    assert np.any(run(by_rows).view(np.uint16) != by_columns)
    assert not promises_one_chip_bits(by_rows)
