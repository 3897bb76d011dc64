"""The search against brute force: small random scenarios, all of whose plans are evaluated.

A case is a model, a machine, a policy, a request, a memory, an objective and a limit. Costs are
compared, not plans: several may be equally good.
"""

from collections.abc import Callable
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from brute_force import CLOSE, OBJECTIVES, EveryPlan, costs_of, front_of
from random_scenarios import random_mixed_scenario, random_scenario
from slices import slow_then_long

from lpu_jax.machine.tray_dram import TrayDram
from models.layers.linear import Split
from sharding.legal import check_plan
from sharding.predict.evaluate import evaluate
from sharding.predict.serving import prefill
from sharding.scenario import Scenario
from sharding.search.fewest import smallest_part
from sharding.search.find import find_plans
from sharding.search.first_token import find_first_tokens
from sharding.space.cores import Choices

#: Scenarios of the long tests, and of one test of them; each is as many cases as objectives, or two
#: times that.
N_SCENARIOS, PER_TEST = 150, 5


def _limits(every: EveryPlan, rng: Random) -> list[float]:
    """No limit, and one that some of the plans that fit keep to."""
    latencies = every.columns["latency_s"][every.kept()]
    if not len(latencies):
        return [np.inf]
    # Just above that of some plan: rounding does not decide.
    return [np.inf, float(np.quantile(latencies, rng.choice([0.02, 0.2, 0.6]))) * (1 + 1e-6)]


def _check_case(every: EveryPlan, objective: str, top: int, most_latency_s: float) -> None:
    """Hold what is found up to what brute force finds."""
    scenario, choices = every.scenario, Choices(splits=every.splits, moves=every.moves)
    plans, searched = find_plans(
        scenario, objective, top, choices=choices, most_latency_s=most_latency_s
    )
    assert searched.plans + searched.plans_of_two_pools == len(every.plans)
    if plans is None:
        assert not len(every.kept(most_latency_s))
        return
    for plan in plans:
        check_plan(plan, scenario)
    found = evaluate(plans, scenario)
    assert found.fits.all()
    assert np.all(found.latency_s <= most_latency_s)
    if objective == "pareto":
        best = np.array(every.front(most_latency_s))
        points = np.array(front_of(found.latency_s, 1 / found.tokens_per_s_total))
    else:
        best = np.array(every.ranked(objective, most_latency_s)[:top])
        points = costs_of(found)[objective]
    assert points.shape == best.shape
    np.testing.assert_allclose(points, best, rtol=CLOSE, atol=0)


def _check_objectives(
    seed: int, most_plans: int, splits: tuple[Split, ...] = (Split.ROW, Split.COLUMN)
) -> int:
    """Check every objective, with and without a limit; count the cases."""
    rng, moves = Random(seed), Split.ROW in splits
    every, n_cases = EveryPlan(random_scenario(rng, most_plans), splits, moves), 0
    for most_latency_s in _limits(every, rng):
        for objective in (*OBJECTIVES, "pareto"):
            _check_case(every, objective, rng.choice([1, 1, 3, 8]), most_latency_s)
            n_cases += 1
    return n_cases


@pytest.mark.slow
def test_the_best_plans_are_those_of_brute_force() -> None:
    assert _check_objectives(1000, most_plans=150) >= len(OBJECTIVES)


@pytest.mark.long
@pytest.mark.parametrize("split", [Split.COLUMN, Split.TREE, Split.WIDE])
@pytest.mark.parametrize("seeds", [range(first, first + 2) for first in range(2000, 2010, 2)])
def test_the_best_plans_that_promise_bits_are_those_of_brute_force(
    split: Split, seeds: range
) -> None:
    for seed in seeds:
        assert _check_objectives(seed, 1_000, (split,)) >= len(OBJECTIVES)


@pytest.mark.parametrize("seeds", slow_then_long(range(N_SCENARIOS), short=PER_TEST))
def test_the_best_plans_are_those_of_brute_force_in_hundreds_of_cases(seeds: range) -> None:
    for seed in seeds:
        assert _check_objectives(seed, most_plans=3_000) >= 5


def _check_first_token(
    seed: int, most_plans: int, random: Callable[[Random, int], Scenario] = random_scenario
) -> bool:
    """Hold the earliest first token up to brute force; say whether it was proven."""
    rng = Random(seed)
    every = EveryPlan(random(rng, most_plans))
    scenario = every.scenario
    prompt = rng.randint(1, scenario.request.context)
    earliest = every.earliest_first_token_s(prompt)
    found = find_first_tokens(scenario, prompt, top=rng.choice([1, 3]))
    if found is None:
        assert earliest == np.inf
        return True
    assert evaluate(found.plans, scenario).fits.all()
    times = prefill(found.plans, np.ones(len(found.plans), bool), scenario, prompt).latency_s
    assert np.all(np.diff(times) >= 0)
    if found.is_proven:
        assert times[0] == pytest.approx(earliest, rel=CLOSE)
    return found.is_proven


@pytest.mark.slow
def test_the_earliest_first_token_is_that_of_brute_force() -> None:
    assert _check_first_token(1, most_plans=100)


@pytest.mark.long
def test_the_earliest_first_token_need_not_have_the_least_bound_of_its_form() -> None:
    assert _check_first_token(6, 600, random_mixed_scenario)


@pytest.mark.long
@pytest.mark.parametrize("seeds", [range(first, first + 10) for first in range(0, 40, 10)])
def test_the_earliest_first_token_beside_gpus_is_that_of_brute_force(seeds: range) -> None:
    proven = [_check_first_token(seed, 600, random_mixed_scenario) for seed in seeds]
    assert sum(proven) >= 9


@pytest.mark.long
@pytest.mark.parametrize("seeds", [range(first, first + 10) for first in range(0, 40, 10)])
def test_the_earliest_first_token_is_that_of_brute_force_in_more_cases(seeds: range) -> None:
    proven = [_check_first_token(seed, most_plans=1_500) for seed in seeds]
    assert sum(proven) >= 9


def _check_fewest_chips(seed: int, most_plans: int) -> None:
    scenario = random_scenario(Random(seed), most_plans)
    enough = [
        n
        for n in range(1, scenario.system.n_chips + 1)
        if len(EveryPlan(replace(scenario, system=replace(scenario.system, n_chips=n))).kept())
    ]
    found = smallest_part(scenario)
    assert (None if found is None else found.n_chips) == min(enough, default=None)
    # Bisection asks for this.
    assert enough == list(range(min(enough, default=1), len(enough) + min(enough, default=1)))


@pytest.mark.parametrize("seeds", slow_then_long(range(100, 130), short=2))
def test_the_fewest_chips_are_those_of_brute_force(seeds: range) -> None:
    for seed in seeds:
        _check_fewest_chips(seed, most_plans=1_000)


def _in_dram(scenario: Scenario, rng: Random) -> Scenario:
    """The same with caches in DRAM that has room for few or many of them, and is slow or fast."""
    roomy = replace(scenario.system, dram=TrayDram(fpga_lpus=1))
    held = evaluate(
        EveryPlan(replace(scenario, system=roomy)).plans, replace(scenario, system=roomy)
    )
    n_bytes = float(np.quantile(held.dram_bytes, rng.random())) * rng.choice([0.7, 1.1, 2.5])
    dram = TrayDram(
        fpga_lpus=1,
        dram_bytes=int(n_bytes) + 1,
        dram_bytes_per_s=rng.choice([1e9, 1e11, 1e15]),
        lane_bytes_per_s=1e15,
        dram_latency_s=rng.choice([1e-9, 1e-6]),
    )
    return replace(scenario, system=replace(scenario.system, dram=dram))


def _check_dram(seed: int, most_plans: int) -> int:
    """Check every objective where caches lie in DRAM; count the cases."""
    rng = Random(seed)
    scenario = random_scenario(rng, most_plans)
    while scenario.system.lpus is None:
        scenario = random_scenario(rng, most_plans)
    every, n_cases = EveryPlan(_in_dram(scenario, rng)), 0
    for most_latency_s in _limits(every, rng):
        for objective in (*OBJECTIVES, "pareto"):
            _check_case(every, objective, rng.choice([1, 3]), most_latency_s)
            n_cases += 1
    return n_cases


@pytest.mark.slow
def test_the_best_plans_with_caches_in_dram_are_those_of_brute_force() -> None:
    assert _check_dram(1, most_plans=150) >= len(OBJECTIVES)


@pytest.mark.parametrize("seeds", slow_then_long(range(3000, 3060), short=2))
def test_the_best_plans_with_caches_in_dram_are_those_of_brute_force_in_more_cases(
    seeds: range,
) -> None:
    for seed in seeds:
        assert _check_dram(seed, most_plans=1_500) >= len(OBJECTIVES)
