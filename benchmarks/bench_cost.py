"""How fast the cost model is: tracing and scheduling, explaining, link schedules, many plans.

Each figure is the best of a few repetitions in one process; `cold` is measured in a process of its
own for every repetition, after imports. Run with `python benchmarks/bench_cost.py`.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
from record import record

from lpu_jax.cost.collectives.link_check import check
from lpu_jax.cost.collectives.link_schedule import link_schedule
from lpu_jax.machine.catalogue import system
from models.policy import policy_named
from models.zoo import model
from sharding.detail.explain import explain
from sharding.plan import AttentionShard, MlpShard, MoeShard, Plan
from sharding.predict.evaluate import evaluate
from sharding.predict.symbolic import trace_block
from sharding.request import Request
from sharding.scenario import Scenario
from sharding.search.find import find_plans

KIMI, NINE_RACKS = model("kimi-k2"), system("lpx-9")
INT4 = policy_named("int4", KIMI)
REQUEST = Request(context=8192)
OVER_256 = Plan(
    stages=1,
    group_chips=256,
    attention=AttentionShard(tensor=64, replica=4),
    mlp=MlpShard(tensor=256),
    moe=MoeShard(expert=16, tensor=16),
)
OF_STAGES = Plan(
    stages=61,
    group_chips=32,
    attention=AttentionShard(tensor=16, replica=2),
    mlp=MlpShard(tensor=32),
    moe=MoeShard(expert=2, tensor=16),
)
REPETITIONS = 5
#: Plans that are evaluated at once.
MANY = 2000


def best_s(work: Callable[[], object], repetitions: int = REPETITIONS) -> float:
    """Shortest time of some repetitions, in seconds."""
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def moe_layer() -> None:
    """Trace and schedule one MoE layer over 256 chips."""
    trace_block.cache_clear()
    evaluate([OVER_256], Scenario(KIMI, NINE_RACKS, REQUEST, policy=INT4))


def explanation() -> None:
    """Explain one plan: every operation, collective and byte."""
    trace_block.cache_clear()
    explain(KIMI, NINE_RACKS, OF_STAGES, REQUEST, policy=INT4)


def all_reduce_of_the_largest_machine() -> None:
    """List an all-reduce over 10,440 chips link by link; prove that links are not shared."""
    machine = system("groq-10440")
    runs = np.arange(machine.n_chips).reshape(1, -1)
    made = link_schedule(
        machine.topology, float(machine.chip.clock_hz), "all_reduce", "flat3", runs, 14_336
    )
    check(made, machine.topology, most_followed=0)


CASES: dict[str, Callable[[], None]] = {
    "trace_and_schedule_moe_layer_256_chips": moe_layer,
    "explain_one_plan": explanation,
    "link_schedule_all_reduce_10440_chips": all_reduce_of_the_largest_machine,
}


def cold_s(name: str) -> float:
    """Time of the first call in a fresh process."""
    out = subprocess.run(
        [sys.executable, __file__, name], capture_output=True, text=True, check=True
    ).stdout
    return float(json.loads(out))


def plans_per_s() -> dict[str, float | int]:
    """Evaluate the best plans at once, after one trace of each kind of block."""
    scenario = Scenario(KIMI, NINE_RACKS, REQUEST, policy=INT4)
    plans, _ = find_plans(scenario, top=MANY)
    assert plans is not None
    seconds = best_s(lambda: evaluate(plans, scenario), 3)
    return {"plans": len(plans), "s": round(seconds, 3), "plans_per_s": round(len(plans) / seconds)}


def main() -> None:
    """Measure everything, or one case in this process if it is named."""
    if len(sys.argv) > 1:
        print(json.dumps(best_s(CASES[sys.argv[1]], 1)))
        return
    rows = [
        {
            "what": name,
            "cold_s": round(min(cold_s(name) for _ in range(3)), 4),
            "warm_s": round(best_s(work), 4),
        }
        for name, work in CASES.items()
    ]
    record("cost", [*rows, {"what": "evaluate_kimi_k2_lpx_9", **plans_per_s()}])


if __name__ == "__main__":
    main()
