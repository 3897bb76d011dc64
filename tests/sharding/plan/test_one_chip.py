"""One chip is one thing: what a plan says of a split over one chip changes no bit and no cycle."""

from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest
from placed_blocks import TINY_KIMI, hidden, place, runner

from lpu_jax.machine.catalogue import system
from models.layers.dispatch import Dispatch
from models.layers.linear import Split
from models.policy import FP16
from models.zoo import model
from sharding.legal import Search
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
    for split, dispatch in product(Split, Dispatch)
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
    in_order = {replace(plan, moe=replace(plan.moe, order=MoeShard.order)) for plan in ONE_CHIP}
    assert [plan.name for plan in in_order] == ["1x1 a:1 f:1 m:1"]
    assert all(promises_one_chip_bits(plan) for plan in (*ONE_CHIP, TWO_BY_COLUMNS))


def test_rows_stay_where_all_experts_are() -> None:
    rows = MoeShard(tensor=2, dispatch=Dispatch.ALL_TO_ALL)
    assert rows == MoeShard(tensor=2)
    assert MoeShard(expert=2, dispatch=Dispatch.ALL_TO_ALL).dispatch is Dispatch.ALL_TO_ALL
    assert AttentionShard(tensor=2).split is Split.ROW


@pytest.mark.parametrize("kind", ["kimi-k2", "llama-3.1-8b"])
def test_one_chip_has_one_time(kind: str) -> None:
    cfg = model(kind)
    plans = ONE_CHIP if cfg.moe is not None else [replace(plan, moe=None) for plan in ONE_CHIP]
    found = evaluate(plans, Scenario(cfg, system("groq-1"), Request(context=64), policy=FP16))
    for numbers in (found.latency_cycles, found.lower_cycles, found.upper_cycles):
        assert len(set(numbers)) == 1


def test_a_search_finds_every_plan_once() -> None:
    search = Search(
        Scenario(model("smollm2-135m"), system("groq-node"), Request(context=64), policy=FP16)
    )
    plans = list(search.plans())
    assert len(plans) == len(set(plans))
    assert any(plan.attention.output_ways == 1 for plan in plans)


@pytest.mark.slow
def test_a_mixture_on_one_chip_has_the_bits_of_columns() -> None:
    # The shared expert, whose result a row split adds before it is rounded, tells them apart.
    request = Request(batch=2, tokens=2, context=2)
    x = hidden(2, 2, TINY_KIMI.d_model)

    def run(plan: Plan) -> np.ndarray:
        block = place(TINY_KIMI, "moe", plan, request, policy="bf16")
        return np.asarray(runner(TINY_KIMI, block)(x, *block.arguments[1:]))

    by_columns = run(TWO_BY_COLUMNS).view(np.uint16)
    different = {
        (plan.moe.split, plan.moe.dispatch, plan.moe.order[0] == "replica"): plan
        for plan in ONE_CHIP
    }
    for plan in different.values():
        np.testing.assert_array_equal(run(plan).view(np.uint16), by_columns)
    by_rows = replace(TWO_BY_COLUMNS, moe=MoeShard(expert=2, split=Split.ROW))
    assert np.any(run(by_rows).view(np.uint16) != by_columns)
    assert not promises_one_chip_bits(by_rows)
