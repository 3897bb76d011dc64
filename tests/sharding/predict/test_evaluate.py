"""Plans in numbers: against sums by hand, one plan against thousands, and what no plan can beat."""

import math
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from legal_plans import legal_plans, shapes

from lpu_jax.cost.collectives.links import hand_overs
from lpu_jax.cost.placed_machine import Groups, PlacedMachine, one_group
from lpu_jax.cost.schedule import Slot
from lpu_jax.datapath.work import Unit
from lpu_jax.machine.catalogue import system
from lpu_jax.machine.system import System
from models.blocks import block_chain, block_kinds
from models.layers.dispatch import Dispatch
from models.layers.linear import Split
from models.params import n_active
from models.policy import POLICIES
from models.zoo import model
from sharding.axes import MESH_AXES, degrees
from sharding.plan import AttentionShard, MlpShard, MoeShard, Plan, SlotRule
from sharding.predict.evaluate import Evaluation, evaluate
from sharding.predict.hand_overs import TOKEN_BYTES
from sharding.predict.kinds import schedule_block
from sharding.predict.serving import prefill
from sharding.request import Request
from sharding.scenario import Scenario
from sharding.search.find import find_plans
from sharding.search.nearest import nearest_plans
from sharding.slots.sizes import slot_plans
from sharding.space.cores import Choices

KIMI, LPX = model("kimi-k2"), system("lpx-9")
ONE = Request(batch=1, context=8192)
PLAN = Plan(
    stages=61,
    group_chips=32,
    attention=AttentionShard(tensor=16, replica=2),
    mlp=MlpShard(tensor=32),
    moe=MoeShard(expert=2, tensor=16),
)


def _scenario(model_name: str, machine: str, policy: str, batch: int, context: int) -> Scenario:
    request = Request(batch=batch, context=context)
    return Scenario(model(model_name), system(machine), request, policy=POLICIES[policy])


@cache
def _drawn(*case: Any) -> Evaluation:
    """Some plans of some shapes: 600 or so."""
    scenario = _scenario(*case)
    every = shapes(scenario)
    return evaluate(legal_plans(scenario, every[:: len(every) // 60], most=10), scenario)


CASES = [
    ("kimi-k2", "lpx-9", "int4", 1, 8192),
    ("kimi-k2", "lpx-2", "fp8", 8, 1024),
    ("llama-2-70b", "groq-576", "int8", 1, 4096),
    ("llama-3.1-8b", "groq-64", "fp16", 64, 2048),
    ("smollm2-135m", "groq-576", "fp16", 4, 512),
]


# --- one MoE block, by hand ---------------------------------------------------------------------

#: Constants of the LPX rack and its chip: facts with their sources are in `lpu_jax.machine`.
TILE_ROWS, TILE_COLUMNS, ARRAYS, ROWS_PER_CYCLE = 160, 320, 2, 78
STREAM_BYTES, MXM_LATENCY, CLOCK_HZ = 100_000, 64, 1.5e9
LOCAL_HOP_S, NODE_STEP_S, FRAME_BYTES = 350e-9, 400e-9, 328
LOCAL_BYTES_PER_S, NODE_BYTES_PER_S = 50e9, 25e9


def _product_cycles(matrices: int, k: int, n: int, bits: float) -> float:
    """Cycles of one row times some matrices: each round lasts as long as it takes to install."""
    tiles = matrices * math.ceil(k / TILE_ROWS) * math.ceil(n / TILE_COLUMNS)
    rounds = math.ceil(tiles / ARRAYS)
    # A row fills whole vectors; two or more narrow ones share one.
    stored = TILE_COLUMNS / (TILE_COLUMNS // n) if n <= TILE_COLUMNS else math.ceil(n / 320) * 320
    streamed = matrices * k * stored * bits / 8 / rounds / STREAM_BYTES
    return (rounds - 1) * max(streamed, min(k, TILE_ROWS) / ROWS_PER_CYCLE, 1) + 1


def _step_cycles(n_vectors: float, latency_s: float, bytes_per_s: float) -> float:
    between = FRAME_BYTES / bytes_per_s * CLOCK_HZ
    return latency_s * CLOCK_HZ + (math.ceil(n_vectors) - 1) * between


def _moe_slots(expert: int, tensor: int) -> tuple[list[Slot], list[Slot]]:
    ways = {"replica": 1, "expert": expert, "tensor": tensor}
    machine = one_group(LPX, expert * tensor)
    policy = POLICIES["int4"]
    report = schedule_block(
        "moe",
        ways,
        machine,
        Scenario(KIMI, LPX, ONE, policy=policy),
        slots={"slots": 8, "capacity": 0, "sent": 1},
        split=Split.ROW,
        collective="auto",
        dispatch=Dispatch.REPLICATED,
    ).report()
    slots = report.timing.slots
    mxm = [slot for slot in slots if slot.work.unit is Unit.MXM]
    return mxm, [slot for slot in slots if slot.work.unit is Unit.C2C]


def test_matrix_products_of_a_moe_block() -> None:
    mxm, _ = _moe_slots(expert=2, tensor=16)
    expected = [
        _product_cycles(1, 7168, 384, 16),  # router
        _product_cycles(1, 7168, 2 * 64, 16),  # the shared expert over all 32 chips
        _product_cycles(1, 64, 7168, 16),
        _product_cycles(8, 7168, 2 * 128, 4.5),  # worst case: all eight experts on one chip
        _product_cycles(8, 128, 7168, 4.5),
    ]
    assert [slot.work.busy_cycles for slot in mxm] == pytest.approx(expected)
    assert {slot.work.latency_cycles for slot in mxm} == {MXM_LATENCY}


def test_collectives_of_a_moe_block_over_two_trays() -> None:
    _, c2c = _moe_slots(expert=2, tensor=16)
    # 7168 fp16 values are 45 vectors. Each of 16 chips of a tray reduces a sixteenth, exchanges it
    # with its twin in the other tray, and sends it to the 15 others, vector by vector: what counts
    # besides the hops is the slowest link.
    share = 7168 * 2 / 320 / 16
    between = _step_cycles(share, NODE_STEP_S, NODE_BYTES_PER_S)
    expected = 2 * LOCAL_HOP_S * CLOCK_HZ + between
    (slot,) = c2c  # routed and shared partial sums are added before they travel
    assert slot.work.busy_cycles + slot.work.latency_cycles == pytest.approx(expected)


def test_collectives_of_a_moe_block_inside_a_tray() -> None:
    _, c2c = _moe_slots(expert=8, tensor=1)
    vectors = 7168 * 2 / 320
    one_shot = _step_cycles(vectors, LOCAL_HOP_S, LOCAL_BYTES_PER_S)
    direct = LOCAL_HOP_S * CLOCK_HZ + _step_cycles(vectors / 8, LOCAL_HOP_S, LOCAL_BYTES_PER_S)
    for slot in c2c:
        cycles = slot.work.busy_cycles + slot.work.latency_cycles
        assert cycles == pytest.approx(min(one_shot, direct))


# --- a token is the sum of its blocks and hand-overs --------------------------------------------


def _alone(plan: Plan, system: System, request: Request) -> float:
    """Latency of a plan: blocks one by one, each pair of stages on its own."""
    bases = system.topology.stage_bases(plan.stages, plan.group_chips)
    machine = PlacedMachine(system=system, groups=(Groups(plan.group_chips, bases),))
    machine = replace(machine, group_of_plan=np.array([0]))
    policy = POLICIES["int4"]
    cycles: dict[str, Any] = {}
    for kind in block_kinds(KIMI):
        named = degrees(plan, kind, KIMI)
        ways = {axis: np.array([named[axis]]) for axis in MESH_AXES[kind]}
        scenario = Scenario(KIMI, system, request, policy=policy)
        runs: list[list[tuple[float, dict[str, Any]]]] = [[(1.0, {})]]
        if kind == "moe":
            assert plan.moe is not None
            runs = [
                [
                    (n.probability, {"slots": n.slots, "sent": n.sent, "capacity": s.capacity or 0})
                    for n in s.steps
                ]
                for s in slot_plans(plan.moe, scenario)
            ]
        means = []
        for steps in runs:
            means.append(0.0)
            for probability, slots in steps:
                report = schedule_block(
                    kind,
                    ways,
                    machine,
                    scenario,
                    slots=slots,
                    split=Split.ROW,
                    collective="auto",
                    dispatch=Dispatch.REPLICATED,
                ).report()
                means[-1] += probability * float(np.asarray(report.timing.cycles).reshape(-1)[0])
        cycles[kind] = min(means)  # of rows that a slot may have, the fastest
    total = sum(cycles[block.kind] for block in block_chain(KIMI))
    clock = float(system.chip.clock_hz)
    payload = request.batch * KIMI.d_model * 2
    ways_on = [(bases[i : i + 2], payload) for i in range(plan.stages - 1)]
    for pair, size in [*ways_on, (bases[[-1, 0]], TOKEN_BYTES * request.batch)]:
        steps = hand_overs(system.topology, clock, plan.group_chips, pair).cycles(size)
        total += float(np.sum(steps))
    return total


@pytest.mark.parametrize("batch", [1, 90])
def test_latency_is_blocks_and_hand_overs(batch: int) -> None:
    request = replace(ONE, batch=batch)
    found = evaluate([PLAN], Scenario(KIMI, LPX, request, policy=POLICIES["int4"]))
    # the same sum in another order
    assert found.latency_cycles[0] == pytest.approx(_alone(PLAN, LPX, request), rel=1e-12)


def test_a_single_stage_hands_nothing_over() -> None:
    plan = replace(PLAN, stages=1)
    found = evaluate([plan], Scenario(KIMI, LPX, ONE, policy=POLICIES["int4"]))
    assert found.hand_over_cycles[0] == 0
    assert found.in_flight[0] == 1
    chain = [found.blocks[block.kind] for block in block_chain(KIMI)]
    assert found.wire_bytes[0] == sum(float(block.wire_bytes[0]) for block in chain)


# --- one and many -------------------------------------------------------------------------------

NUMBERS = (
    "latency_cycles", "lower_cycles", "upper_cycles", "slowest_stage_cycles", "hand_over_cycles",
    "wire_bytes", "weight_bytes", "cache_bytes", "activation_bytes", "in_flight",
    "tokens_per_s_total", "short_bytes",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES[:3])
def test_a_plan_alone_is_the_plan_among_thousands(case: tuple[str, str, str, int, int]) -> None:
    name, machine, policy, batch, context = case
    many = _drawn(*case)
    request = Request(batch=batch, context=context)
    for i in np.linspace(0, len(many.plans) - 1, 8).astype(int):
        plan = many.plans[int(i)]
        one = evaluate(
            [plan], Scenario(model(name), system(machine), request, policy=POLICIES[policy])
        )
        for number in NUMBERS:
            assert getattr(one, number)[0] == getattr(many, number)[i], (plan.name, number)


def test_the_order_of_plans_and_their_variants_do_not_matter() -> None:
    column = replace(PLAN, moe=replace(PLAN.moe, split=Split.COLUMN), stages=40)
    named = replace(PLAN, collective="flat3", stages=50)
    plans = [PLAN, column, named, PLAN, replace(column, stages=62)]
    policy = POLICIES["int4"]
    forth = evaluate(plans, Scenario(KIMI, LPX, ONE, policy=policy))
    back = evaluate(plans[::-1], Scenario(KIMI, LPX, ONE, policy=policy))
    for number in NUMBERS:
        np.testing.assert_array_equal(getattr(forth, number), getattr(back, number)[::-1])
    assert forth.latency_cycles[0] == forth.latency_cycles[3]
    assert forth.latency_cycles[1] != forth.latency_cycles[4]


# --- laws ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_every_plan_is_between_its_bounds(case: tuple[str, str, str, int, int]) -> None:
    found = _drawn(*case)
    assert np.all(found.lower_cycles > 0)
    assert np.all(found.lower_cycles <= found.latency_cycles)
    assert np.all(found.latency_cycles <= found.upper_cycles)
    assert np.all(found.slowest_stage_cycles <= found.latency_cycles)
    assert np.all(found.hand_over_cycles < found.latency_cycles)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_memory_and_flight_are_sane(case: tuple[str, str, str, int, int]) -> None:
    found = _drawn(*case)
    stages = np.array([plan.stages for plan in found.plans])
    for part in (found.weight_bytes, found.cache_bytes, found.activation_bytes):
        assert np.all(np.isfinite(part))
        assert np.all(part >= 0)
    assert np.all(found.in_flight >= 1)
    assert np.all(found.in_flight <= stages)
    np.testing.assert_array_equal(found.cuts.stage_of_block[-1] + 1, stages)
    # Micro-batches in flight have room for their cache.
    room = found.sram_bytes - found.reserved_bytes - found.activation_bytes - found.weight_bytes
    full = found.fits & (found.in_flight > 1)
    assert np.all((found.in_flight * found.cache_bytes)[full] <= room[full] * (1 + 1e-9))
    batch = found.scenario.request.batch
    of_copy = found.tokens_per_s_of_copy
    assert np.all(of_copy <= found.in_flight * batch / found.latency_s * 1.000001)
    per_stage = found.clock_hz * batch / found.slowest_stage_cycles
    assert np.all(of_copy <= per_stage * 1.000001)
    np.testing.assert_array_equal(found.tokens_per_s_total, found.copies * of_copy)
    assert np.all(found.copies >= 1)
    assert np.all(found.copies * found.n_chips <= found.scenario.system.n_chips)
    np.testing.assert_array_equal(found.fits, found.short_bytes <= 0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_no_plan_streams_weights_faster_than_its_chips_can(
    case: tuple[str, str, str, int, int],
) -> None:
    name, machine, policy, batch, _ = case
    cfg, found = model(name), _drawn(*case)
    # All active parameters, the narrow ones in their own width, pass through one group's streams
    # at a time. At batch 1 exactly the active ones, with more sequences at least these.
    bits = {"fp16": 16, "int8": 8, "fp8": 8, "int4": 4}[policy]
    chips = np.array([plan.group_chips for plan in found.plans])
    stream = system(machine).chip.weight_stream_bytes_per_cycle
    bound = n_active(cfg) * bits / 8 / (chips * stream)
    assert batch >= 1
    assert np.all(found.latency_cycles >= bound)


def _same_plans(name: str, policy: str, request: Request, plans: list[Plan]) -> Evaluation:
    machine = LPX if name == "kimi-k2" else system("groq-576")
    return evaluate(plans, Scenario(model(name), machine, request, policy=POLICIES[policy]))


@pytest.mark.parametrize("case", [CASES[0], CASES[2]], ids=["kimi", "llama"])
def test_more_work_is_never_faster(case: tuple[str, str, str, int, int]) -> None:
    name, _, policy, _, _ = case
    plans = list(_drawn(*case).plans[::31])
    small = _same_plans(name, policy, Request(batch=1, context=512), plans)
    longer = _same_plans(name, policy, Request(batch=1, context=4096), plans)
    wider = _same_plans(name, policy, Request(batch=4, context=512), plans)
    chunk = _same_plans(name, policy, Request(batch=1, tokens=128, context=512), plans)
    for more in (longer, wider, chunk):
        assert np.all(more.latency_cycles >= small.latency_cycles)
        assert np.all(more.least_bytes >= small.least_bytes)
    # Chips that share a context hold whole vectors of it, which may not be full.
    is_whole = np.array([plan.attention.context == 1 for plan in plans])
    grown = longer.blocks["attention"].held.cache - small.blocks["attention"].held.cache
    assert np.all(grown >= 0)
    assert np.all(grown[is_whole] > 0)
    # A chunk of 128 tokens is cheaper than 128 tokens one by one, except that in MoE blocks every
    # slot multiplies all of its rows.
    if name != "kimi-k2":
        assert np.all(chunk.latency_cycles < 128 * small.latency_cycles)


def test_every_stage_holds_a_block() -> None:
    """62 pairs of attention and experts fill 62 stages; ten more hold one of a pair."""
    plan = replace(PLAN, stages=72, group_chips=32)
    found = evaluate([plan], Scenario(KIMI, LPX, Request(context=128), policy=POLICIES["int4"]))
    assert set(found.cuts.stage_of_block[:, 0].tolist()) == set(range(72))


@pytest.mark.slow
def test_kimi_k2_in_fp8_does_not_fit_nine_racks() -> None:
    scenario = _scenario("kimi-k2", "lpx-9", "fp8", 1, 8192)
    plans, _ = find_plans(scenario)
    assert plans is None
    one_pool = evaluate(nearest_plans(scenario, 64, Choices(pools=False)), scenario)
    assert not one_pool.fits.any()
    # Regression: 11 experts of 384 over 36 chips, and a share of attention, are that much beyond
    # 475 MB; three chips that share a context hold a third of the cache each.
    best = int(np.argmin(one_pool.short_bytes))
    assert one_pool.plans[best].attention.context == 3
    assert one_pool.short_bytes[best] == pytest.approx(67.8e6, rel=0.01)
    # Without attention beside them, 11 of 384 experts on 35 to 38 chips are still 484 MB; on 39
    # chips they would be 10, but 60 such stages are 2,340 chips, of 2,304.
    nearest = evaluate(nearest_plans(scenario, 64), scenario)
    assert not nearest.fits.any()
    assert nearest.plans[0].ffn is not None
    assert min(nearest.short_bytes) == nearest.short_bytes[0] == pytest.approx(31.9e6, rel=0.01)


@pytest.mark.slow
def test_kimi_k2_in_fp8_fits_ten_racks_in_two_pools_alone() -> None:
    scenario = _scenario("kimi-k2", "lpx-10", "fp8", 1, 8192)
    assert find_plans(scenario, choices=Choices(pools=False))[0] is None
    plans, _ = find_plans(scenario)
    assert plans is not None
    assert plans[0].ffn is not None
    assert evaluate(plans, scenario).fits.all()


@pytest.mark.slow
def test_kimi_k2_in_int4_fits_nine_racks() -> None:
    scenario = _scenario("kimi-k2", "lpx-9", "int4", 1, 8192)
    plans, _ = find_plans(scenario)
    assert plans is not None
    best = evaluate(plans, scenario)
    # Columns of all experts over all chips: 2 x 64 of them, two rows in a vector.
    by_hand = evaluate([replace(PLAN, moe=MoeShard(expert=1, tensor=32))], scenario)
    assert best.fits[0]
    assert by_hand.fits[0]
    assert best.latency_cycles[0] <= by_hand.latency_cycles[0]


def test_only_the_ids_of_sampled_tokens_go_back() -> None:
    """A prefill step samples one token of a sequence, however long its chunk is."""
    cfg, machine = model("smollm2-135m"), system("groq-node")
    plan = Plan(
        stages=2, group_chips=4, attention=AttentionShard(replica=4), mlp=MlpShard(tensor=4)
    )
    request = Request(batch=2, tokens=512, context=512)
    found = evaluate([plan], Scenario(cfg, machine, request, policy=POLICIES["fp16"]))
    clock, bases = float(machine.chip.clock_hz), machine.topology.stage_bases(2, 4)
    hidden = 2 * 512 * cfg.d_model * 2
    forward = hand_overs(machine.topology, clock, 4, bases).cycles(hidden)
    back = hand_overs(machine.topology, clock, 4, bases[::-1]).cycles(2 * TOKEN_BYTES)
    whole = hand_overs(machine.topology, clock, 4, bases[::-1]).cycles(2 * 512 * TOKEN_BYTES)
    assert found.hand_over_cycles[0] == float(np.sum(forward) + np.sum(back))
    assert np.sum(whole) > np.sum(back)  # or the ids of all positions would cost no more


def test_a_stage_holds_the_tables_of_all_kinds_of_blocks() -> None:
    """Kinds of blocks share no table; live values of one block at a time take the same place."""
    found = evaluate([PLAN], Scenario(KIMI, LPX, ONE, policy=POLICIES["int4"]))
    held = [block.held for block in found.blocks.values()]
    tables = [float(np.max(each.tables)) for each in held]
    assert sum(size > 0 for size in tables) > 1
    live = max(float(np.max(each.activations)) for each in held)
    assert found.activation_bytes[0] == live + sum(tables)


# --- slots, and a single chip -------------------------------------------------------------------


def _with_slots(slots: int | None) -> Plan:
    return Plan(
        stages=62,
        group_chips=36,
        attention=AttentionShard(tensor=36, split=Split.ROW),
        mlp=MlpShard(tensor=36, split=Split.ROW),
        moe=MoeShard(expert=36, split=Split.ROW, slots=slots, slot_rule=SlotRule.WORST),
    )


@pytest.mark.slow
def test_slots_of_a_decode_step_do_not_bind_prefill() -> None:
    scenario = Scenario(KIMI, LPX, Request(context=8192), policy=POLICIES["int4"])
    plans = [_with_slots(8), _with_slots(None)]
    bound, free = prefill(plans, np.ones(2, bool), scenario, 100).time_to_first_token_s
    assert bound == free


def test_more_slots_than_the_worst_case_are_never_used() -> None:
    worst, all_local = evaluate(
        [_with_slots(8), _with_slots(11)], Scenario(KIMI, LPX, Request(), policy=POLICIES["int4"])
    ).latency_cycles
    assert all_local == worst


def test_one_chip_sends_nothing() -> None:
    small = model("smollm2-135m")
    plan = Plan(group_chips=1, attention=AttentionShard(), mlp=MlpShard())
    found = evaluate([plan], Scenario(small, system("groq-8"), Request(), policy=POLICIES["fp16"]))
    assert found.wire_bytes[0] == 0
