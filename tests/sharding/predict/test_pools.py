"""Plans of two pools: where they lie, what they hand over, their rates against a simulation."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpu_jax.cost.timing import hand_over_cycles
from lpu_jax.errors import PlanError
from lpu_jax.machine.catalogue import system
from models.blocks import BLOCK_KINDS, block_chain
from models.policy import POLICIES
from models.zoo import model
from sharding.detail.scheduled import schedule_plan
from sharding.legal import check_plan
from sharding.plan import FFN_PARTS, Plan, Pool
from sharding.predict.energy import busy_cycles
from sharding.predict.evaluate import Evaluation, evaluate
from sharding.predict.hand_overs import TOKEN_BYTES, cycles_between, hidden_bytes
from sharding.predict.placement import usable_bytes
from sharding.predict.pools import lay_out
from sharding.rank.choose import on_one_chip
from sharding.request import Request
from sharding.scenario import Scenario

SMALL = replace(model("smollm2-135m"), n_layers=6)
KIMI = model("kimi-k2")
MACHINES = ("groq-24", "lpx-1")
PLANS = (
    "1x2 a:2r + 2x3 f:3t column",
    "2x3 a:3t + 1x4 f:4t row",
    "3x1 a:1 + 6x2 f:2t row",
    "2x2 a:2r v:1t.2r + 2x2 f:2r",
    "7x1 a:1 + 1x8 f:4t.2r row",
)


def _scenario(machine: str, batch: int = 1) -> Scenario:
    request = Request(batch=batch, context=256)
    return Scenario(SMALL, system(machine), request, policy=POLICIES["fp16"])


def _served(kind: str) -> int:
    return int(BLOCK_KINDS[kind].part in FFN_PARTS)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", PLANS)
def test_a_token_crosses_between_the_pools_at_every_ffn(machine: str, name: str) -> None:
    """The timeline, step by step, against the chain of blocks and prices of hand-overs."""
    asked, plan = _scenario(machine, batch=2), Plan.parse(name)
    check_plan(plan, asked)
    scheduled = schedule_plan(plan, asked)
    chain = block_chain(SMALL)
    stage_of = {}
    for stage in scheduled.stages:
        for block, start in zip(stage.blocks, stage.start_cycles, strict=True):
            stage_of[block] = stage
            assert stage.n_chips == plan.pools[_served(block.kind)].group_chips
            assert start >= 0
    assert len(stage_of) == len(chain)
    now, steps, crossings = 0.0, list(scheduled.hand_overs), 0
    found = scheduled.evaluation
    for block, after in pairwise([*chain, chain[0]]):
        own = stage_of[block]
        assert own.start_cycles[own.blocks.index(block)] == pytest.approx(now, rel=1e-12)
        now += float(np.broadcast_to(found.blocks[block.kind].timing.cycles, 1)[0])
        if own is stage_of[after]:
            continue
        step = steps.pop(0)
        assert (step.source, step.target) == (own.number, stage_of[after].number)
        is_back = block == chain[-1]
        assert step.payload_bytes == (2 * TOKEN_BYTES if is_back else hidden_bytes(asked))
        assert step.cycles == pytest.approx(
            _price(asked, own, stage_of[after], step.payload_bytes), rel=1e-12
        )
        now += step.cycles
        crossings += not is_back
    assert not steps
    assert found.latency_cycles[0] == pytest.approx(now, rel=1e-12)
    inside = sum(float(np.broadcast_to(found.blocks[b.kind].wire_bytes, 1)[0]) for b in chain)
    assert found.wire_bytes[0] == inside + hidden_bytes(asked) * crossings
    assert crossings >= 2 * SMALL.n_layers


def _price(asked: Scenario, giver: object, taker: object, payload: float) -> float:
    """One hand-over to as many chips as both have, and further ones inside the larger group."""

    def between(chips: int, source: int, target: int) -> float:
        first, second = np.array([source]), np.array([target])
        return float(hand_over_cycles(asked.system, chips, first, second, payload)[0])

    have = min(giver.n_chips, taker.n_chips)  # type: ignore[attr-defined]
    total = between(have, giver.first_chip, taker.first_chip)  # type: ignore[attr-defined]
    while have < taker.n_chips:  # type: ignore[attr-defined]
        more = min(have, taker.n_chips - have)  # type: ignore[attr-defined]
        total += between(more, taker.first_chip, taker.first_chip + have)  # type: ignore[attr-defined]
        have += more
    return total


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", PLANS)
def test_stages_hold_what_they_serve_and_have_room(machine: str, name: str) -> None:
    asked, plan = _scenario(machine), Plan.parse(name)
    found = evaluate([plan], asked)
    kinds = [block.kind for block in block_chain(SMALL)]
    stage = found.cuts.stage_of_block[:, 0]
    first = plan.stages
    assert set(stage[[_served(k) == 0 for k in kinds]]) == set(range(first))
    assert set(stage[[_served(k) == 1 for k in kinds]]) == set(range(first, plan.n_stages))
    held = np.bincount(
        stage,
        weights=[
            float(np.broadcast_to(found.blocks[k].held.weights + found.blocks[k].held.cache, 1)[0])
            for k in kinds
        ],
    )
    assert found.weight_bytes[0] + found.cache_bytes[0] == pytest.approx(held.max(), rel=1e-12)
    assert found.fits[0] == (found.least_bytes[0] <= usable_bytes(asked.system.chip))
    assert found.in_flight[0] <= plan.n_stages


@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=2),
    st.lists(st.integers(1, 12), min_size=2, max_size=2),
    st.sampled_from(["groq-264", "lpx-2", "h100x8"]),
)
@settings(max_examples=200)
def test_pools_lie_apart(stages: list[int], chips: list[int], machine: str) -> None:
    pools = [Pool(stages=n, group_chips=m) for n, m in zip(stages, chips, strict=True)]
    where = system(machine)
    if sum(pool.n_chips for pool in pools) > where.n_chips:
        with pytest.raises(PlanError):
            lay_out(pools, where)
        return
    groups = lay_out(pools, where)
    taken = np.concatenate(
        [base + np.arange(group.chips) for group in groups for base in group.bases]
    )
    assert len(set(taken.tolist())) == sum(pool.n_chips for pool in pools)
    assert 0 <= taken.min() <= taken.max() < where.n_chips
    # The stages of the pool with fewer lie among those of the other, in order.
    assert all(np.all(np.diff(group.bases) > 0) for group in groups)


def test_a_pool_of_its_own_is_one_pool_whose_stages_hold_the_same() -> None:
    """Groups of one size: blocks take what they take in one pool, whatever lies beside them."""
    asked = _scenario("groq-24")
    one, two = (
        evaluate([Plan.parse(name)], asked) for name in ("14x1 a:1 f:1", "8x1 a:1 + 6x1 f:1")
    )
    for kind in one.blocks:
        assert one.blocks[kind].timing.cycles == two.blocks[kind].timing.cycles
        assert one.blocks[kind].held.weights == two.blocks[kind].held.weights
    np.testing.assert_allclose(busy_cycles(one), busy_cycles(two), rtol=1e-12)


def test_plans_with_and_without_pools_are_evaluated_together_as_alone() -> None:
    asked = _scenario("lpx-1", batch=4)
    names = [PLANS[0], "2x4 a:4r f:4t row", PLANS[3], "1x1 a:1 f:1", PLANS[1]]
    plans = [Plan.parse(name) for name in names]
    together = evaluate(plans, asked)
    assert list(together.plans) == plans
    for i, plan in enumerate(plans):
        alone = evaluate([plan], asked)
        for name in (
            "latency_cycles",
            "slowest_stage_cycles",
            "weight_bytes",
            "copies",
            "in_flight",
        ):
            assert getattr(together, name)[i] == getattr(alone, name)[0], (plan.name, name)


def _rate_of_simulation(found: Evaluation, plan: Plan, asked: Scenario, n_batches: int) -> float:
    """Cycles a micro-batch of a first-come pipeline whose stages do one thing at a time."""
    scheduled = schedule_plan(plan, asked)
    after = {step.start_cycle: step.cycles for step in scheduled.hand_overs}
    visits = sorted(
        (start, stage.number, block)
        for stage in scheduled.stages
        for block, start in zip(stage.blocks, stage.start_cycles, strict=True)
    )
    work = []
    for start, stage, block in visits:
        cycles = float(np.broadcast_to(found.blocks[block.kind].timing.cycles, 1)[0])
        work.append((stage, cycles + after.get(start + cycles, 0.0)))
    free: dict[int, float] = {}
    ready, done = [0.0] * n_batches, []
    place = [0] * n_batches
    while len(done) < n_batches:
        # The micro-batch that can go on first does, the oldest of equals.
        batch = min(
            (i for i in range(n_batches) if place[i] < len(work)),
            key=lambda i: (max(ready[i], free.get(work[place[i]][0], 0.0)), i),
        )
        stage, cycles = work[place[batch]]
        ready[batch] = free[stage] = max(ready[batch], free.get(stage, 0.0)) + cycles
        place[batch] += 1
        if place[batch] == len(work):
            done.append(ready[batch])
    return max(done) / n_batches


@pytest.mark.parametrize("name", PLANS[:3])
def test_no_pipeline_is_faster_than_the_rate_and_a_simple_one_comes_near(name: str) -> None:
    """Micro-batches that never wait for a cache: the slowest stage bounds them all."""
    asked, plan = _scenario("lpx-1"), Plan.parse(name)
    found = evaluate([plan], asked)
    simulated = _rate_of_simulation(found, plan, asked, n_batches=60)
    slowest = float(found.slowest_stage_cycles[0])
    assert simulated >= slowest * (1 - 1e-9)
    assert simulated <= 1.25 * slowest


def test_what_is_no_plan_of_pools_is_refused_in_one_sentence() -> None:
    asked = _scenario("groq-node")
    cases = {
        "1x2 a:2r + 2x4 f:4t": "stages 1 x group 2 + stages 2 x group 4 = 10 chips were asked for",
        "1x2 a:2r + 2x3 f:2t": "mlp: tensor 2 x replica 1 = 2 chips, but a group has 3; off by 1",
        "1x1 a:1 + 7x1 f:1": "7 stages were asked for; pool 2 of smollm2-135m has 6 blocks",
        "9x1 a:1 + 1x1 f:1": "9 stages were asked for; pool 1 of smollm2-135m has 8 blocks",
    }
    for name, words in cases.items():
        with pytest.raises(PlanError, match=words.replace("+", r"\+")):
            check_plan(Plan.parse(name), asked)


def test_one_chip_of_a_plan_has_one_pool() -> None:
    for name in PLANS:
        assert on_one_chip(Plan.parse(name)).n_chips == 1


def test_names_of_pools_are_syntax() -> None:
    for name in (*PLANS, "4x21 a:21t v:7t·3r + 60x37 f:37t m:37e tree slots 4"):
        plan = Plan.parse(name)
        assert Plan.parse(plan.name) == plan
        assert plan.ffn is not None
    with pytest.raises(PlanError, match="ffn is given twice"):
        Plan.parse("1x2 a:2r + 2x4 + 3x3 f:4t")


def test_hand_overs_to_more_chips_take_longer_than_to_as_many() -> None:
    where = system("lpx-1")
    givers = np.array([0, 0, 0]), np.array([4, 4, 4])
    takers = np.array([32, 32, 32]), np.array([2, 4, 13])
    fewer, equal, more = cycles_between(where, givers, takers, 14336.0)
    assert more > equal
    assert fewer > 0


@pytest.mark.slow
def test_two_pools_of_kimi_k2_lack_less_memory_than_one_in_fp8() -> None:
    asked = Scenario(KIMI, system("lpx-9"), Request(context=8192), policy=POLICIES["fp8"])
    one = Plan.parse("64x36 a:12t·3c f:36t m:36e row")
    two = Plan.parse("8x21 a:21t + 61x35 f:35t m:35e row")
    found = evaluate([one, two], asked)
    assert 0 < found.short_bytes[1] < 0.5 * found.short_bytes[0]
