"""No plan next to the best is better, on machines too large for brute force.

Neighbours split one part otherwise, in any way, or have some stages more or less. The search knows
nothing of neighbours: it goes by bounds.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from brute_force import CLOSE
from legal_plans import shards

from lpu_jax.errors import PlanError
from lpu_jax.machine.catalogue import system
from models.policy import POLICIES
from models.zoo import model
from sharding.legal import check_plan
from sharding.plan import Plan, Pool
from sharding.predict.evaluate import evaluate
from sharding.request import Request
from sharding.scenario import Scenario
from sharding.search.find import find_plans
from sharding.space.cores import EVERYTHING, parts_of

#: Model, machine, policy, batch, context. Of GLM-5's best two pools a plan with slower and larger
#: dense MLPs is the quicker one: its blocks share stages otherwise, so that tokens cross nearer.
CASES = [
    ("glm-5", "lpx-9", "fp8", 2, 65536),
    ("kimi-k2", "lpx-9", "int4", 64, 4096),
    ("gpt-oss-120b", "lpx-1", "mxfp4", 8, 8192),
    ("llama-3.1-70b", "groq-576", "fp8", 1, 4096),
]
MORE_STAGES = (-3, -2, -1, 1, 2, 3)


def _next_to(plan: Plan, scenario: Scenario) -> Iterator[Plan]:
    """List plans that differ from one in one part, or in the stages of one pool."""
    for number, pool in enumerate(plan.pools):
        for part in parts_of(scenario):
            if plan.pool_of(part) == number:
                table = shards(part, pool.group_chips, scenario, EVERYTHING)
                for row in range(len(table)):
                    yield replace(plan, **{part: table.shard(row)})
        for more in MORE_STAGES:
            resized = Pool(stages=max(pool.stages + more, 1), group_chips=pool.group_chips)
            yield replace(plan, **({"ffn": resized} if number else {"stages": resized.stages}))


def _is_legal(plan: Plan, scenario: Scenario) -> bool:
    try:
        check_plan(plan, scenario)
    except PlanError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_no_plan_next_to_the_best_is_better(case: tuple[str, str, str, int, int]) -> None:
    name, machine, policy, batch, context = case
    request = Request(batch=batch, context=context)
    scenario = Scenario(model(name), system(machine), request, policy=POLICIES[policy])
    plans, _ = find_plans(scenario, top=1)
    assert plans is not None
    (best,) = plans
    plans = [plan for plan in _next_to(best, scenario) if _is_legal(plan, scenario)]
    others = evaluate(plans, scenario)
    assert others.fits.sum() > 1  # the best itself is among them
    least = evaluate([best], scenario).latency_s[0] * (1 - CLOSE)
    assert np.all(others.latency_s[others.fits] >= least), best.name
