"""The search beside GPUs against brute force: both pools by trial, each on its own machine.

Also the bounds of pairs, and laws: a faster network, more GPUs or more LPUs never make the best
plan worse.
"""

import itertools
from dataclasses import replace
from functools import cache
from random import Random
from typing import Any

import numpy as np
import pytest
from brute_force import CLOSE, OBJECTIVES, EveryPlan, costs_of
from hypothesis import given, settings
from hypothesis import strategies as st
from random_scenarios import random_link, random_mixed_scenario
from slices import slow_then_long

from lpu_jax.machine.catalogue import any_system
from lpu_jax.machine.gpu import NvlinkDomain
from lpu_jax.machine.mixed import MixedSystem
from lpu_jax.machine.pool_link import PoolLink
from models.layers.linear import Split
from models.zoo import model
from sharding.legal import check_plan
from sharding.plan import FFN_PARTS
from sharding.predict.evaluate import Evaluation, evaluate
from sharding.predict.placement import usable_bytes
from sharding.request import Request
from sharding.scenario import Scenario
from sharding.scenario import scenario as scenario_of
from sharding.search import pairs as pairs_module
from sharding.search.bounds import LeastCosts
from sharding.search.find import find_plans, fits_somehow
from sharding.search.goals import GOALS
from sharding.search.held import held_cores
from sharding.search.nearest import nearest_plans
from sharding.search.pairs import Pairing
from sharding.search.records import Best
from sharding.search.sought import Sought
from sharding.space.cores import EVERYTHING, Choices

#: Scenarios of the long tests, and of one test of them; each is eight cases where plans fit.
N_SCENARIOS, PER_TEST = 160, 5
#: Small scenarios of which most plans fit: experts on five LPUs beside one GPU, two beside two.
SEEDS = (1, 12)
#: Sums of the same terms in other orders.
ROUNDING = 1e-9


def _mixed(scenario: Scenario) -> MixedSystem:
    assert scenario.mixed is not None
    return scenario.mixed


@cache
def _small(seed: int) -> Scenario:
    return random_mixed_scenario(Random(seed), 100)


# --- brute force ----------------------------------------------------------------------------------


def _limits(every: EveryPlan, rng: Random) -> list[float]:
    """No limit, and one that some of the plans that fit keep to."""
    latencies = every.columns["latency_s"][every.kept()]
    if not len(latencies):
        return [np.inf]
    return [np.inf, float(np.quantile(latencies, rng.choice([0.02, 0.2, 0.6]))) * (1 + 1e-6)]


def _check_case(every: EveryPlan, objective: str, top: int, most_latency_s: float) -> None:
    """Hold what is found up to what brute force finds."""
    scenario, choices = every.scenario, Choices(splits=every.splits, moves=every.moves)
    plans, searched = find_plans(
        scenario, objective, top, choices=choices, most_latency_s=most_latency_s
    )
    assert (searched.plans, searched.plans_of_two_pools) == (0, len(every.plans))
    best = every.ranked(objective, most_latency_s)[:top]
    if plans is None:
        assert not best
        return
    for plan in plans:
        assert plan.ffn is not None
        check_plan(plan, scenario)
    found = evaluate(plans, scenario)
    assert found.fits.all()
    assert np.all(found.latency_s <= most_latency_s)
    costs = costs_of(found)[objective]
    assert len(costs) == len(best)
    np.testing.assert_allclose(costs, best, rtol=CLOSE, atol=0)


def _check_objectives(
    seed: int, most_plans: int, splits: tuple[Split, ...] = (Split.ROW, Split.COLUMN)
) -> int:
    """Check every objective, with and without a limit; count the cases."""
    rng, moves = Random(seed), Split.ROW in splits
    every = EveryPlan(random_mixed_scenario(rng, most_plans), splits, moves)
    assert fits_somehow(every.scenario, Choices(splits=splits, moves=moves)) == bool(
        len(every.kept())
    )
    limits = _limits(every, rng)
    for most_latency_s in limits:
        for objective in OBJECTIVES:
            _check_case(every, objective, rng.choice([1, 1, 3, 8]), most_latency_s)
    return len(limits) * len(OBJECTIVES)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_the_best_plans_beside_gpus_are_those_of_brute_force(seed: int) -> None:
    assert _check_objectives(seed, most_plans=100) == 2 * len(OBJECTIVES)


@pytest.mark.parametrize("seeds", slow_then_long(range(100, 100 + N_SCENARIOS), short=PER_TEST))
def test_the_best_plans_beside_gpus_are_those_of_brute_force_in_many_cases(seeds: range) -> None:
    cases = [_check_objectives(seed, most_plans=2_000) for seed in seeds]
    assert sum(cases) >= len(OBJECTIVES) * len(seeds)


@pytest.mark.long
@pytest.mark.parametrize("split", [Split.COLUMN, Split.TREE, Split.WIDE])
def test_the_best_plans_beside_gpus_that_promise_bits_are_those_of_brute_force(
    split: Split,
) -> None:
    for seed in range(2000, 2008):
        assert _check_objectives(seed, 1_000, (split,)) >= len(OBJECTIVES)


@pytest.mark.long
def test_a_small_model_on_many_chips_takes_few_looks() -> None:
    # On any number of stages it takes as long, and on most numbers of chips nearly.
    asked = scenario_of(
        model("smollm2-135m"), any_system("vr-lpx-9:attention-ffn"), Request(batch=1, context=4096)
    )
    plans, searched = find_plans(asked, "latency", 10)
    assert plans is not None
    assert len(plans) == 10
    pairs = searched.pairs
    assert pairs.pairs > 2_000_000
    assert pairs.looked_at < 10_000


# --- where nothing fits ---------------------------------------------------------------------------


def _without_memory(scenario: Scenario, share: float) -> Scenario:
    """The same with less memory on all chips."""
    mixed = _mixed(scenario)
    gpus, lpus = mixed.gpus, mixed.lpus
    hbm = replace(gpus.chip, memory_bytes=int(gpus.chip.memory_bytes * share) + 1)  # type: ignore[call-arg]
    sram = replace(lpus.chip, sram_bytes=int(lpus.chip.memory_bytes * share) + 1)  # type: ignore[call-arg]
    return scenario.on(replace(mixed, gpus=replace(gpus, chip=hbm), lpus=replace(lpus, chip=sram)))


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_where_nothing_fits_plans_of_two_pools_come_nearest(seed: int) -> None:
    scenario = _without_memory(_small(seed), 0.02)
    every = evaluate(EveryPlan(scenario).plans, scenario)
    assert find_plans(scenario)[0] is None
    assert not every.fits.any()
    plans = nearest_plans(scenario, top=64)
    for plan in plans:
        check_plan(plan, scenario)
    found = evaluate(plans, scenario)
    # Live values are not counted when these are chosen.
    room = max(usable_bytes(own.system.chip) for own in scenario.pools)
    least = float(every.short_bytes.min())
    assert least * (1 - ROUNDING) <= found.short_bytes.min() <= 1.3 * least + 0.1 * room


# --- bounds ---------------------------------------------------------------------------------------


def _pairing(scenario: Scenario, objective: str) -> Pairing:
    return Pairing(
        Sought(
            scenario=scenario,
            record=Best(GOALS[objective], top=1),
            space=held_cores(scenario, EVERYTHING),
            least=LeastCosts(scenario),
        )
    )


def _check_pairs(scenario: Scenario) -> int:
    """Hold the bounds of pairs up to all plans that fit; return how many these are."""
    pairing = _pairing(scenario, "throughput")
    pairs, (first, second) = pairing.pairs(), pairing.pools
    own, other = pairs.branch
    columns = first.stages[own], first.group_chips[own], second.stages[other]
    shapes = np.stack([*columns, second.group_chips[other]], axis=1)
    bound_of = {tuple(shape): i for i, shape in enumerate(shapes.tolist())}
    plans = EveryPlan(scenario).plans
    found = evaluate(plans, scenario)
    there, back = pairs.crossings
    n_layers = scenario.model.n_layers
    for i in np.flatnonzero(found.fits).tolist():
        pools = plans[i].pools
        pair = bound_of[tuple(n for pool in pools for n in (pool.stages, pool.group_chips))]
        assert pairs.bounds.latency[pair] <= found.latency_cycles[i] * (1 + ROUNDING)
        assert pairs.bounds.period[pair] <= found.cycles_per_batch[i] * (1 + ROUNDING)
        assert found.in_flight[i] <= pairs.bounds.most_in_flight[pair]
        assert found.in_flight[i] <= pairs.bounds.shape.stages[pair]
        assert found.copies[i] <= pairs.bounds.shape.copies[pair]
        crossings = n_layers * (there[pair] + back[pair])
        assert crossings <= found.hand_over_cycles[i] * (1 + ROUNDING)
    _check_kinds(pairing, found)
    return int(found.fits.sum())


def _check_kinds(pairing: Pairing, found: Evaluation) -> None:
    """No block of a plan that fits is faster than the least of its kind in its pool."""
    for number, pool in enumerate(pairing.pools):
        chips = np.array([plan.pools[number].group_chips for plan in found.plans])
        for kind, least in pool.bound.kind_cycles.items():
            cycles = np.broadcast_to(np.asarray(found.blocks[kind].timing.cycles), chips.shape)
            assert np.all((least[chips] <= cycles * (1 + ROUNDING))[found.fits]), kind


@pytest.mark.slow
def test_no_plan_beside_gpus_is_below_the_bound_of_its_pair() -> None:
    assert sum(_check_pairs(_small(seed)) for seed in SEEDS) > 50


def test_a_bound_that_is_too_high_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = pairs_module.network_crossing_cycles

    def biased(*asked: Any) -> Any:
        there, back = honest(*asked)
        return 1.01 * there, back

    monkeypatch.setattr(pairs_module, "network_crossing_cycles", biased)
    with pytest.raises(AssertionError):
        _check_pairs(_small(SEEDS[0]))


@pytest.mark.long
@pytest.mark.parametrize("seeds", [range(first, first + 10) for first in range(400, 460, 10)])
def test_no_plan_beside_gpus_is_below_the_bound_of_its_pair_in_many_cases(seeds: range) -> None:
    counted = [_check_pairs(random_mixed_scenario(Random(seed), 3_000)) for seed in seeds]
    assert sum(counted) > 50


@pytest.mark.slow
def test_some_plan_takes_no_longer_than_the_bound_of_its_pair() -> None:
    """A bound far below all plans would hold too, and would leave nothing out."""
    tightest = []
    for seed in SEEDS:
        scenario = _small(seed)
        bound = _pairing(scenario, "latency").pairs().bounds.latency
        plans, _ = find_plans(scenario)
        if plans is not None:
            best = evaluate(plans, scenario).latency_cycles[0]
            tightest.append(float(bound.min() / best))
    assert max(tightest) > 0.99


def test_parts_are_on_the_machine_that_serves_them() -> None:
    """No core of attention has more chips than there are GPUs, none of an FFN more than LPUs."""
    scenario = _small(SEEDS[0])
    for part in held_cores(scenario, EVERYTHING):
        machine = scenario.pools[part.part in FFN_PARTS].system
        assert part.n_chips.max() <= machine.n_chips


# --- laws -----------------------------------------------------------------------------------------

seeds, objectives = st.integers(0, 10_000), st.sampled_from(OBJECTIVES)
many = settings(max_examples=60)
#: No time of a network is longer with these numbers larger.
RATES = ("lane_bytes_per_s", "fpga_port_bytes_per_s", "gpu_port_bytes_per_s")


def _best(scenario: Scenario, objective: str) -> float:
    """The least cost; infinite if nothing fits."""
    plans, _ = find_plans(scenario, objective)
    if plans is None:
        return np.inf
    return float(costs_of(evaluate(plans, scenario))[objective][0])


def _never_worse(scenarios: list[Scenario], objective: str) -> None:
    costs = [_best(scenario, objective) for scenario in scenarios]
    for before, after in itertools.pairwise(costs):
        assert after <= before * (1 + CLOSE), costs


def _linked(scenario: Scenario, link: PoolLink) -> Scenario:
    return scenario.on(replace(_mixed(scenario), link=link))


def _faster_network(seed: int, objective: str, most_plans: int) -> None:
    rng = Random(seed)
    scenario = random_mixed_scenario(rng, most_plans)
    links = [random_link(rng)]
    for _ in range(3):
        names = [name for name in RATES if rng.random() < 0.6]
        better: dict[str, Any] = {
            name: getattr(links[-1], name) * rng.choice([1.01, 2, 50]) for name in names
        }
        if rng.random() < 0.6:
            better["latency_s"] = links[-1].latency_s / rng.choice([1.01, 2, 50])
        links.append(replace(links[-1], **better))
    lanes = _mixed(scenario).link.lpu_lanes  # as many as the LPUs have
    _never_worse([_linked(scenario, replace(link, lpu_lanes=lanes)) for link in links], objective)


def _more_lpus(seed: int, objective: str, most_plans: int) -> None:
    scenario = random_mixed_scenario(Random(seed), most_plans)
    mixed = _mixed(scenario)
    parts = [replace(mixed.lpus, n_chips=n) for n in range(1, mixed.lpus.n_chips + 1)]
    _never_worse([scenario.on(replace(mixed, lpus=part)) for part in parts], objective)


def _more_gpus(seed: int, objective: str, most_plans: int) -> None:
    scenario = random_mixed_scenario(Random(seed), most_plans)
    mixed = _mixed(scenario)
    whole, parts = mixed.gpus, []
    assert isinstance(whole.topology, NvlinkDomain)
    for n in range(1, whole.n_chips + 1):
        parts.append(replace(whole, topology=replace(whole.topology, n_chips=n), n_chips=n))
    _never_worse([scenario.on(replace(mixed, gpus=part)) for part in parts], objective)


LAWS = (_faster_network, _more_lpus, _more_gpus)


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__.strip("_"))
def test_more_never_makes_the_best_plan_worse(law: Any) -> None:
    law(SEEDS[0], "per-chip", 100)


@pytest.mark.long
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__.strip("_"))
def test_more_never_makes_the_best_plan_worse_in_many_cases(law: Any) -> None:
    many(given(seeds, objectives, st.just(1_500))(law))()


@pytest.mark.slow
def test_two_searches_find_the_same_plans_beside_gpus() -> None:
    scenario = _small(SEEDS[1])
    for objective in OBJECTIVES:
        (once, _), (again, _) = (find_plans(scenario, objective, 5) for _ in range(2))
        assert once is not None
        assert again is not None
        assert list(once) == list(again)
