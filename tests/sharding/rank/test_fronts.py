"""Fronts of two axes are what searches along one axis find under limits of the other."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from slices import some_slow

from models.zoo import model
from sharding.rank.compare import compare
from sharding.rank.ranking import Objective
from sharding.rank.row import Row
from sharding.request import Request
from sharding.scenario import Scenario, scenario
from sharding.search.find import find_plans

CFG = replace(model("llama-3.1-8b"), n_layers=2)
REQUEST = Request(batch=4, context=64)
#: More rows than any front here has.
ALL = 1000
#: A limit beside a latency that neither includes nor excludes it by rounding.
NUDGE = 1e-9


def _asked(system_name: str) -> Scenario:
    return scenario(CFG, system_name, REQUEST)


def _front(system_name: str, objective: Objective) -> tuple[Row, ...]:
    return compare(CFG, system_name, REQUEST, objective=objective, top=ALL).rows


SECOND: Mapping[str, Any] = {
    "throughput": lambda row: row.tokens_per_s_total,
    "per-chip": lambda row: row.tokens_per_s_per_chip,
    "chips": lambda row: row.n_chips,
}


@pytest.mark.parametrize(
    ("machine", "goal"),
    some_slow([(name, goal) for goal in SECOND for name in ("h100x8", "groq-24")], count=1),
)
def test_a_front_is_the_best_of_one_axis_under_every_limit_of_the_other(
    machine: str, goal: str
) -> None:
    front, asked = _front(machine, f"latency,{goal}"), _asked(machine)  # type: ignore[arg-type]
    latencies = [row.decode_latency_s for row in front]
    assert latencies == sorted(latencies)
    for row, following in zip(front, [*latencies[1:], np.inf], strict=True):
        for most_s in (row.decode_latency_s * (1 + NUDGE), following * (1 - NUDGE)):
            plans, _ = find_plans(asked, goal, 1, most_latency_s=most_s)
            assert plans is not None
            (best,) = compare(CFG, machine, REQUEST, plans=[plans[0]]).rows
            assert SECOND[goal](best) == pytest.approx(SECOND[goal](row), rel=NUDGE)
    plans, _ = find_plans(asked, goal, 1, most_latency_s=latencies[0] * (1 - NUDGE))
    assert plans is None


@pytest.mark.slow
def test_a_front_keeps_plans_that_differ_in_stages_alone() -> None:
    front = _front("groq-24", "pareto")
    splits = [replace(row.plan, stages=1) for row in front]
    assert len(set(splits)) < len(splits)


@pytest.mark.slow
def test_pareto_is_latency_and_throughput() -> None:
    assert _front("groq-24", "pareto") == _front("groq-24", "latency,throughput")
