"""Jobs of `bench_search` and `bench_peers` at this commit."""

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from worker import serve

import sharding.rank.compare as ranking
from lpu_jax.errors import PlanError
from models.blocks import block_chain
from models.layers.linear import Split
from sharding.legal import check_plan
from sharding.plan import AttentionShard, MlpShard, MoeShard, Plan
from sharding.plan_file import plan_from_dict
from sharding.predict.evaluate import evaluate
from sharding.request import Request
from sharding.scenario import Scenario, scenario
from sharding.search.find import find_plans
from sharding.space.cores import Choices
from sharding.space.plan_table import PlanTable

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
POLICIES = ("int4", "nvfp4", "fp8")
CONTEXT = 8192
#: Model, system and policy of a question.
Question = tuple[str, str, str]
_tables: dict[str, PlanTable] = {}


def _asked(question: Question, batch: int = 1) -> Scenario:
    model, system, policy = question
    return scenario(model, system, Request(batch=batch, context=CONTEXT), policy=policy)


def compare(question: Question) -> None:
    """Compare, with ten rows in full."""
    model, system, policy = question
    ranking.compare(model, system, Request(context=CONTEXT), policy=policy)


def _pools(most: int) -> Choices:
    """Plans of one pool, or of one and two."""
    return Choices(pools=most > 1)


def search(question: Question, top: int, most_pools: int) -> dict[str, Any]:
    """Search, evaluate and rank the best plans, of one pool or two; say what was searched."""
    asked = _asked(question)
    plans, searched = find_plans(asked, "latency", top, choices=_pools(most_pools))
    assert plans is not None
    evaluation = evaluate(plans, asked)
    best = ranking.rank(evaluation, "latency")[0]
    counts = searched.counts
    return {
        "plans": searched.plans,
        "branches": counts.branches,
        "ways_timed": counts.timed,
        "plans_compared": counts.compared,
        "best_cycles": float(evaluation.latency_cycles[best]),
    }


def take_plans(path: str, every: int, name: str) -> int:
    """Read each n-th plan of a file into a table; return how many."""
    written = json.loads(Path(path).read_text(encoding="utf-8"))
    _tables[name] = PlanTable.of([plan_from_dict(plan) for plan in written[::every]])
    return len(_tables[name])


def list_plans(question: Question, name: str) -> int:
    """Put legal plans whose groups and degrees are powers of two into a table; return how many."""
    asked = _asked(question)
    _tables[name] = PlanTable.of([plan for plan in _of_powers(asked) if _is_legal(plan, asked)])
    return len(_tables[name])


def _of_powers(asked: Scenario) -> Iterator[Plan]:
    """Plans of every number of stages; parts split groups of 2^n chips by powers of two."""
    mixed = asked.model.moe is not None
    for stages in range(1, len(block_chain(asked.model)) + 1):
        for power in range((asked.system.n_chips // stages).bit_length()):
            chips = 1 << power
            ways = [1 << low for low in range(power + 1)]
            for heads, outer, split in product(ways, ways, Split):
                inner = chips // outer
                yield Plan(
                    stages=stages,
                    group_chips=chips,
                    attention=AttentionShard(tensor=heads, replica=chips // heads, split=split),
                    mlp=MlpShard(tensor=chips, split=split)
                    if mixed
                    else MlpShard(tensor=outer, replica=inner, split=split),
                    moe=MoeShard(expert=outer, tensor=inner, split=split) if mixed else None,
                )


def _is_legal(plan: Plan, asked: Scenario) -> bool:
    try:
        check_plan(plan, asked)
    except PlanError:
        return False
    return True


def evaluate_plans(question: Question, name: str) -> float:
    """Evaluate a table of plans; return the cycles of the fastest that fits."""
    evaluation = evaluate(_tables[name], _asked(question))
    return float(np.min(evaluation.latency_cycles[evaluation.fits]))


def sweep(model: str, system: str, most_pools: int) -> dict[str, float]:
    """Find the fastest plan for every batch under every policy, of one pool or of two too."""
    found, searched_plans = 0, 0.0
    for policy in POLICIES:
        for batch in BATCHES:
            asked = _asked((model, system, policy), batch)
            plans, searched = find_plans(asked, choices=_pools(most_pools))
            found += plans is not None
            searched_plans += searched.plans
    return {
        "searches": len(POLICIES) * len(BATCHES),
        "with_a_plan_that_fits": found,
        "plans": searched_plans,
    }


if __name__ == "__main__":
    serve((compare, search, take_plans, list_plans, evaluate_plans, sweep))
