"""Lower bounds against plans: none that fits is faster than the bound of its stages and chips.

What the bounds rest on is tested where it is said: `tests/lpu_jax/cost/test_best_placed.py` (no run
is better placed) and `test_monotone_schedule.py` beside it (cheaper collectives are never slower).
"""

from dataclasses import fields, replace
from random import Random
from typing import Any

import numpy as np
import pytest
from brute_force import EveryPlan
from hypothesis import given
from hypothesis import strategies as st
from legal_plans import legal_plans, shapes
from random_scenarios import of_lpus, random_scenario, random_topology

from lpu_jax.cost.placed_machine import PlacedMachine
from lpu_jax.cost.timing import hand_over_cycles
from lpu_jax.datapath.work import Passage
from lpu_jax.machine.catalogue import system
from models.policy import POLICIES
from models.zoo import model
from sharding.plan import Plan
from sharding.predict.evaluate import Evaluation, evaluate
from sharding.predict.hand_overs import hidden_bytes
from sharding.predict.placement import usable_bytes
from sharding.predict.placements import Placements
from sharding.request import Request
from sharding.scenario import Scenario
from sharding.search.bounds import (
    Bounds,
    LeastCosts,
    bounds,
    least_hand_over_cycles,
    part_costs,
)
from sharding.search.goals import GOALS
from sharding.search.held import held_cores
from sharding.search.pairs import Pairing
from sharding.search.records import Best
from sharding.search.sought import Sought
from sharding.space.cores import EVERYTHING, in_group

#: Sums of the same terms in other orders.
ROUNDING = 1e-9


def _bounds(scenario: Scenario, *, many_in_flight: bool) -> Bounds:
    space = held_cores(scenario, EVERYTHING)
    return bounds(scenario, space, LeastCosts(scenario), many_in_flight=many_in_flight)


def _blocks_cycles(found: Evaluation) -> np.ndarray:
    """Time of a token's blocks, without hand-overs and host."""
    return np.asarray(found.latency_cycles - found.hand_over_cycles - found.host_cycles)


def _check_bounds(scenario: Scenario, plans: list[Plan]) -> float:
    """Hold the bounds up to plans; return the largest share of a plan's time that is its bound."""
    bound, found = _bounds(scenario, many_in_flight=True), evaluate(plans, scenario)
    stages = np.array([plan.stages for plan in plans])
    chips = np.array([plan.group_chips for plan in plans])
    cycles, room = _blocks_cycles(found), usable_bytes(scenario.system.chip)
    tightest = 0.0
    for number, flight in enumerate(bound.flights.tolist()):
        flies = np.flatnonzero(found.fits & (found.cached_batches >= flight))
        least = bound.blocks_cycles(number, stages[flies], chips[flies], room)
        assert np.all(least <= cycles[flies] * (1 + ROUNDING))
        tightest = max(tightest, float(np.max(least / cycles[flies], initial=0.0)))
    _check_kinds(bound, found, chips)
    return tightest


def _check_kinds(bound: Bounds, found: Evaluation, chips: np.ndarray) -> None:
    """No block of a plan that fits is faster than the least of its kind."""
    for kind, least in bound.kind_cycles.items():
        cycles = np.broadcast_to(np.asarray(found.blocks[kind].timing.cycles), chips.shape)
        assert np.all((least[chips] <= cycles * (1 + ROUNDING))[found.fits]), kind


@pytest.mark.slow
def test_no_plan_of_a_small_machine_is_below_its_bound() -> None:
    for seed in range(3):
        scenario = random_scenario(Random(seed), most_plans=300, pools=False)
        _check_bounds(scenario, EveryPlan(scenario, pools=False).plans)


@pytest.mark.long
def test_no_plan_of_many_small_machines_is_below_its_bound() -> None:
    tight = []
    for seed in range(100, 140):
        scenario = random_scenario(Random(seed), most_plans=3_000, pools=False)
        tight.append(_check_bounds(scenario, EveryPlan(scenario, pools=False).plans))
    # A bound far below all plans would hold too, and would leave nothing out.
    assert sum(share > 1 - ROUNDING for share in tight) > len(tight) / 4


CASES = [
    ("kimi-k2", "lpx-9", "int4", 1),
    ("kimi-k2", "lpx-9", "int4", 16),
    ("gpt-oss-120b", "lpx-2", "mxfp4", 4),
    ("llama-3.1-70b", "lpx-1", "fp8", 8),
    ("deepseek-v3", "groq-10440", "fp8", 2),
    ("llama-3.1-8b", "h100x8", "fp8", 32),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_no_plan_of_a_large_machine_is_below_its_bound(case: tuple[str, str, str, int]) -> None:
    name, machine, policy, batch = case
    scenario = Scenario(
        model(name), system(machine), Request(batch=batch, context=4096), policy=POLICIES[policy]
    )
    bound = _bounds(scenario, many_in_flight=False)
    room = usable_bytes(scenario.system.chip)
    every = np.array(shapes(scenario))
    stages, chips = every.T
    # Those that have most room, those that just have none, and others.
    filled = bound.all_bytes[0][chips] / (stages * bound.stage_bytes(chips, room))
    by_room = np.argsort(np.where(filled > 0, filled, np.inf), kind="stable")
    last = int(np.isfinite(bound.blocks_cycles(0, stages, chips, room)).sum())
    rows = [*by_room[:30], *by_room[30 : last : last // 20 + 1], *by_room[last : last + 20]]
    some = [(int(n), int(m)) for n, m in every[rows]]
    assert _check_bounds(scenario, legal_plans(scenario, some, most=40)) > 0.3


def test_a_bound_is_reached_where_nothing_is_in_the_way() -> None:
    """In one node with memory for everything, some plan takes no longer than the bound."""
    cfg = replace(model("smollm2-135m"), n_layers=4)
    request = Request(context=256)
    scenario = Scenario(cfg, system("groq-node"), request, policy=POLICIES["fp16"])
    bound = _bounds(scenario, many_in_flight=False)
    for chips in (1, 2, 3):
        found = evaluate(legal_plans(scenario, [(1, chips)]), scenario)
        assert found.fits.any()
        (least,) = bound.blocks_cycles(
            0, np.array([1]), np.array([chips]), usable_bytes(scenario.system.chip)
        )
        assert _blocks_cycles(found).min() == pytest.approx(least, rel=ROUNDING)


def _check_live(scenario: Scenario, rng: Random, most: int = 10_000) -> float:
    """Hold least live bytes up to cores in every order, somewhere; return the tightest share."""
    placements, least, tightest = Placements(scenario.system), LeastCosts(scenario), 0.0
    for part in held_cores(scenario, EVERYTHING):
        rows = np.sort(rng.sample(range(len(part.n_chips)), min(most, len(part.n_chips))))
        bound, n_chips = least.of(part, rows), part.n_chips[rows]
        for _ in range(3):
            chips = rng.choice(n_chips.tolist())
            base = np.array([rng.randint(0, scenario.system.n_chips - chips)])
            table, core = in_group(
                part.cores.take(rows), chips, np.flatnonzero(chips % n_chips == 0)
            )
            where = np.full(len(core), placements.number(chips, base))
            costs = part_costs(part.part, table, where, placements, scenario)
            for kind, live in costs.activations.items():
                own = bound.activations[kind][core]
                assert np.all(own <= live), (part.part, kind)
                tightest = max(tightest, float(np.max(own / np.maximum(live, 1), initial=0.0)))
    return tightest


def _check_random_live(seed: int) -> float:
    rng = Random(seed)
    return _check_live(random_scenario(rng, most_plans=3_000, pools=False), rng)


@pytest.mark.slow
def test_no_way_to_split_a_part_has_fewer_live_bytes_than_its_bound() -> None:
    tight = [_check_random_live(seed) for seed in range(4)]
    # A bound far below would hold too, and would leave nothing out.
    assert min(tight) > 0.9


#: Programs of other forms: an indexer, recurrences, a latent mixture, sparse blocks, windows.
OTHER_FORMS = [
    "deepseek-v3.2",
    "gpt-oss-120b",
    "minimax-m3",
    "nemotron-3-ultra-550b-a55b",
    "qwen3-next-80b-a3b",
]


@pytest.mark.slow
@pytest.mark.parametrize("machine", ["groq-node", "gb200x8"])
@pytest.mark.parametrize("name", OTHER_FORMS)
def test_no_way_to_split_a_layer_has_fewer_live_bytes_than_its_bound(
    name: str, machine: str
) -> None:
    request = Request(batch=3, context=4096)
    scenario = Scenario(model(name), system(machine), request, policy=POLICIES["fp16"])
    assert _check_live(scenario, Random(0), most=30) > 0.9


@pytest.mark.long
def test_no_way_to_split_a_part_of_many_machines_has_fewer_live_bytes_than_its_bound() -> None:
    for seed in range(300, 400):
        _check_random_live(seed)


# --- of plans of two pools ----------------------------------------------------------------------


def _check_pairs(scenario: Scenario) -> int:
    """Hold the bounds of pairs up to all plans of two pools that fit; return how many these are."""
    plans = [plan for plan in EveryPlan(scenario).plans if plan.ffn is not None]
    if not plans:
        return 0
    pairing = Pairing(
        Sought(
            scenario=scenario,
            record=Best(GOALS["throughput"], top=1),
            space=held_cores(scenario, EVERYTHING),
            least=LeastCosts(scenario),
        )
    )
    pairs, (first, second) = pairing.pairs(), pairing.pools
    own, other = pairs.branch
    columns = first.stages[own], first.group_chips[own], second.stages[other]
    shapes = np.stack([*columns, second.group_chips[other]], axis=1)
    bound_of = {tuple(shape): i for i, shape in enumerate(shapes.tolist())}
    found = evaluate(plans, scenario)
    for i in np.flatnonzero(found.fits).tolist():
        pools = plans[i].pools
        bound = bound_of[tuple(n for pool in pools for n in (pool.stages, pool.group_chips))]
        assert pairs.bounds.latency[bound] <= found.latency_cycles[i] * (1 + ROUNDING)
        assert pairs.bounds.period[bound] <= found.cycles_per_batch[i] * (1 + ROUNDING)
        assert found.in_flight[i] <= pairs.bounds.most_in_flight[bound]
    return int(found.fits.sum())


@pytest.mark.slow
def test_no_plan_of_two_pools_is_below_the_bound_of_its_pair() -> None:
    counted = [_check_pairs(random_scenario(Random(seed), most_plans=300)) for seed in range(2, 5)]
    assert sum(counted) > 50


@pytest.mark.long
def test_no_plan_of_two_pools_of_many_machines_is_below_the_bound_of_its_pair() -> None:
    for seed in range(200, 230):
        _check_pairs(random_scenario(Random(seed), most_plans=3_000))


@pytest.mark.slow
@given(st.integers(0, 1_000_000))
def test_no_hand_over_between_groups_is_cheaper_than_the_least(seed: int) -> None:
    rng = Random(seed)
    machine = of_lpus(random_topology(rng, most_chips=rng.choice([16, 60, 200])))
    machine = rng.choice([machine, system("lpx-2"), system("groq-72"), system("h100x8")])
    scenario = Scenario(
        model("smollm2-135m"),
        machine,
        Request(batch=rng.choice([1, 3, 64]), context=64),
        policy=POLICIES["fp16"],
    )
    half = machine.n_chips // 2
    least = least_hand_over_cycles(scenario, half)
    n = rng.randint(1, half)
    first = np.array([rng.randint(0, machine.n_chips - 2 * n) for _ in range(50)])
    gap = np.array([rng.randint(0, machine.n_chips - 2 * n - int(base)) for base in first])
    second, payload = first + n + gap, hidden_bytes(scenario)
    for giver, taker in ((first, second), (second, first)):
        assert np.all(hand_over_cycles(machine, n, giver, taker, payload) >= least[n])


# --- what they rest on --------------------------------------------------------------------------


def _check_cheaper_collectives(seed: int, most_plans: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make each number of every passage cheaper on its own: no plan gets slower."""
    rng = Random(seed)
    scenario = random_scenario(rng, most_plans)
    plans = EveryPlan(scenario).plans
    before = _blocks_cycles(evaluate(plans, scenario))
    factors = {one.name: rng.choice([0.0, 0.3, 0.9, 1.0]) for one in fields(Passage)}
    price = PlacedMachine.collective_cycles

    def cheaper(machine: PlacedMachine, *asked: Any) -> Passage:
        found = vars(price(machine, *asked))
        return Passage(
            # What did not wait for the last vector of its operand does not wait now.
            **{n: np.where(np.isinf(x), x, np.nan_to_num(x) * factors[n]) for n, x in found.items()}
        )

    with monkeypatch.context() as patch:
        patch.setattr(PlacedMachine, "collective_cycles", cheaper)
        after = _blocks_cycles(evaluate(plans, scenario))
    assert np.all(after <= before * (1 + ROUNDING))


@pytest.mark.slow
def test_no_plan_is_slower_with_cheaper_collectives(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(3):
        _check_cheaper_collectives(seed, 300, monkeypatch)


@pytest.mark.long
def test_no_plan_of_many_is_slower_with_cheaper_collectives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for seed in range(200, 230):
        _check_cheaper_collectives(seed, 3_000, monkeypatch)
