"""Laws of the best plan: what adds to the space, or to what plans may use, never makes it worse.

Chips are added to a machine whose wiring stays: parts of one machine, and racks of a line. Where
more chips are wired otherwise (a GroqChip1 node has fewer links to each of more nodes), a larger
machine may be slower, and no law is claimed.
"""

import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from brute_force import CLOSE, OBJECTIVES, costs_of
from hypothesis import given, settings
from hypothesis import strategies as st
from random_scenarios import random_scenario

from lpu_jax.machine.catalogue import system
from lpu_jax.machine.gpu import GpuSpec
from models.layers.linear import Split
from models.policy import POLICIES
from models.zoo import model
from sharding.plan import Plan
from sharding.predict.evaluate import evaluate
from sharding.request import Request
from sharding.scenario import Scenario
from sharding.search.find import find_plans
from sharding.space.cores import EVERYTHING, Choices

seeds, objectives = st.integers(0, 10_000), st.sampled_from(OBJECTIVES)
#: Searches of scenarios as small as these take a tenth of a second.
MOST_PLANS = 3_000
few, many = settings(max_examples=2), settings(max_examples=60)

#: A quick plan of GLM-5 whose stages lie otherwise among each other than those of other plans of
#: the same branch of attention, which were looked at before it.
AMONG_EACH_OTHER = "28x12 a:6t>2d + 77x24 f:4t·6r m:12e·2t row"


def _best(
    scenario: Scenario,
    objective: str,
    choices: Choices = EVERYTHING,
    most_latency_s: float = np.inf,
) -> float:
    """The least cost; infinite if nothing fits."""
    plans, _ = find_plans(scenario, objective, choices=choices, most_latency_s=most_latency_s)
    if plans is None:
        return np.inf
    return float(costs_of(evaluate(plans, scenario))[objective][0])


def _on(scenario: Scenario, n_chips: int) -> Scenario:
    """The same on the first chips of the machine."""
    return replace(scenario, system=replace(scenario.system, n_chips=n_chips))


def _more_chips(seed: int, objective: str) -> None:
    scenario = random_scenario(Random(seed), MOST_PLANS)
    costs = [_best(_on(scenario, n), objective) for n in range(1, scenario.system.n_chips + 1)]
    for fewer, more in itertools.pairwise(costs):
        assert more <= fewer * (1 + CLOSE), costs


def _more_memory(seed: int, objective: str) -> None:
    rng = Random(seed)
    scenario = random_scenario(rng, MOST_PLANS)
    chip, costs = scenario.system.chip, []
    name = "memory_bytes" if isinstance(chip, GpuSpec) else "sram_bytes"
    for factor in sorted([1.0, *(rng.uniform(0.5, 4) for _ in range(4))]):
        larger = replace(chip, **{name: int(chip.memory_bytes * factor)})
        costs.append(
            _best(replace(scenario, system=replace(scenario.system, chip=larger)), objective)
        )
    for less, more in itertools.pairwise(costs):
        assert more <= less * (1 + CLOSE), costs


def _larger_space(seed: int, objective: str) -> None:
    rng = Random(seed)
    scenario = random_scenario(rng, MOST_PLANS)
    stages = rng.randint(1, 4)
    chains = [
        [
            Choices(splits=(Split.COLUMN,), moves=False, most_stages=stages),
            Choices(splits=(Split.COLUMN,), moves=False),
            Choices(moves=False),
            EVERYTHING,
        ],
        [
            Choices(splits_all=True, splits=(Split.ROW,)),
            Choices(splits_all=True),
            EVERYTHING,
        ],
        [Choices(most_stages=stages), Choices(most_stages=stages + 1), EVERYTHING],
    ]
    for chain in chains:
        costs = [_best(scenario, objective, choices) for choices in chain]
        for smaller, larger in itertools.pairwise(costs):
            assert larger <= smaller * (1 + CLOSE), costs


def _looser_limit(seed: int, objective: str) -> None:
    scenario = random_scenario(Random(seed), MOST_PLANS)
    least = _best(scenario, "latency")
    if not np.isfinite(least):
        return
    factors = [1 - 1e-6, 1 + 1e-6, 1.1, 1.5, 3, np.inf]
    costs = [_best(scenario, objective, most_latency_s=least * factor) for factor in factors]
    assert costs[0] == np.inf
    assert np.all(np.isfinite(costs[1:]))
    for tighter, looser in itertools.pairwise(costs):
        assert looser <= tighter * (1 + CLOSE), costs


def _keeps_on_more_chips(seed: int, objective: str) -> None:
    """The best plan of some chips is no worse on more of the same machine."""
    scenario = random_scenario(Random(seed), MOST_PLANS)
    n_chips = scenario.system.n_chips
    plans, _ = find_plans(_on(scenario, max(1, n_chips // 2)), objective, 3)
    if plans is None:
        return
    costs = []
    for n in range(max(1, n_chips // 2), n_chips + 1):
        found = evaluate(plans, _on(scenario, n))
        assert found.fits.all()
        costs.append(costs_of(found)[objective])
    assert np.all(np.diff(costs, axis=0) <= CLOSE * costs[0])


LAWS = [_more_chips, _more_memory, _larger_space, _looser_limit, _keeps_on_more_chips]


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__.strip("_"))
def test_more_never_makes_the_best_plan_worse(law: object) -> None:
    few(given(seeds, objectives)(law))()  # type: ignore[arg-type]


@pytest.mark.long
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__.strip("_"))
def test_more_never_makes_the_best_plan_worse_in_many_cases(law: object) -> None:
    many(given(seeds, objectives)(law))()  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_more_racks_never_make_the_best_plan_worse(objective: str) -> None:
    cfg, policy = model("llama-3.1-8b"), POLICIES["int8"]
    request = Request(batch=4, context=4096)
    costs = [
        _best(Scenario(cfg, system(f"lpx-{n}"), request, policy=policy), objective)
        for n in (1, 2, 3, 4)
    ]
    for fewer, more in itertools.pairwise(costs):
        assert more <= fewer * (1 + CLOSE), costs


# --- the same bytes -----------------------------------------------------------------------------

_SCRIPT = """
import json
from lpu_jax.machine.catalogue import system
from models.zoo import model
from sharding.rank.compare import compare
from sharding.request import Request

for objective in ("latency", "pareto"):
    found = compare("smollm2-135m", "groq-16", Request(context=512), objective=objective, top=5)
    print(json.dumps(found.as_dict()["rows"]))
"""


def _rows(hash_seed: int) -> str:
    """Rows of comparisons as a process of its own writes them."""
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    ran = subprocess.run(
        [sys.executable, "-c", _SCRIPT], env=environment, capture_output=True, text=True, check=True
    )
    return ran.stdout


@pytest.mark.slow
def test_every_process_writes_the_same_bytes() -> None:
    first, second = _rows(1), _rows(2)
    assert first == second
    assert len(json.loads(first.splitlines()[0])) == 5


@pytest.mark.slow
def test_two_searches_find_the_same_plans() -> None:
    scenario = random_scenario(Random(3), MOST_PLANS)
    for objective in (*OBJECTIVES, "pareto"):
        (once, _), (again, _) = (find_plans(scenario, objective, 5) for _ in range(2))
        assert once is not None
        assert again is not None
        assert list(once) == list(again)


@pytest.mark.slow
def test_no_plan_is_lost_whose_stages_lie_otherwise_among_each_other():
    request = Request(batch=2, context=65536)
    scenario = Scenario(model("glm-5"), system("lpx-9"), request, policy=POLICIES["fp8"])
    known = evaluate([Plan.parse(AMONG_EACH_OTHER)], scenario)
    assert known.fits.all()
    plans, _ = find_plans(scenario, top=7)
    assert plans is not None
    # The rows are the best of seven forms: it is one of them, or all of them are better.
    slowest = evaluate(plans, scenario).latency_cycles.max()
    assert slowest <= known.latency_cycles[0] * (1 + CLOSE)
