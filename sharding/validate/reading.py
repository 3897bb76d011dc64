"""What a plan takes, as a figure needs it: the time, its range, its bound and its terms.

The terms of a time add up to it: what an operation adds to the end of its block is split into the
latency of its unit, the time that the unit is busy, and the rest, in which it waits. Not modelled:
which term another schedule would save; a term that runs beside a longer one adds nothing.
"""

from collections.abc import Mapping
from typing import Any

from lpu_jax.datapath.work import Unit, Work

from ..detail.scheduled import ScheduledPlan, first_of, schedule_plan
from ..plan import Plan
from ..predict.latency_range import latency_ranges_s
from ..scenario import Scenario

HOPS, LINKS = "collectives: latency of hops", "collectives: bytes on links"
LATENCIES = "latencies of units, or launches of kernels"
WAITING = "transit from unit to unit, and waiting"
ROUTINGS = "steps that need more, or fewer, expert slots than planned"
HAND_OVERS, HOST = "hand-overs between stages", "host and sampling"


def plan_reading(
    plan: Plan, scenario: Scenario, per_s: float, *, chosen: bool = False
) -> dict[str, Any]:
    """Read the latency of a plan.

    Args:
        plan: a legal plan.
        scenario: the model, the machine, the request and the formats.
        per_s: units of the figure in a second.
        chosen: whether the plan was chosen because it fits, so that what decides this counts too.

    Returns:
        What a `Figure` says of our reading, by field.
    """
    scheduled = schedule_plan(plan, scenario)
    found = scheduled.evaluation
    per_cycle = per_s / found.clock_hz
    constants = scheduled.assumed_of_time + (scheduled.assumed_of_fit if chosen else ())
    ((shortest_s, longest_s),) = latency_ranges_s([plan], scenario)
    return {
        "ours": float(found.latency_cycles[0]) * per_cycle,
        "ours_range": (float(shortest_s) * per_s, float(longest_s) * per_s),
        "bound": float(found.lower_cycles[0]) * per_cycle,
        "bound_of": f"{plan.name} {_bound_in_words(scenario)}",
        "terms": {name: cycles * per_cycle for name, cycles in terms(scheduled).items()},
        "assumed": tuple(dict.fromkeys(constant.name for constant in constants)),
    }


def _bound_in_words(scenario: Scenario) -> str:
    overlap = "with perfect overlap in every block"
    whole = "at the GPU's whole rates, without launches and latencies"
    if scenario.crosses:
        return f"{whole}, and {overlap} of the LPUs"
    return overlap if scenario.system.lpus else whole


def terms(scheduled: ScheduledPlan) -> Mapping[str, float]:
    """Split the latency of a plan into terms, in cycles, largest first; they add up to it."""
    found: dict[str, float] = {}

    def add(name: str, cycles: float) -> None:
        found[name] = found.get(name, 0.0) + cycles

    for kind in scheduled.kinds.values():
        count = sum(b.kind == kind.kind for stage in scheduled.stages for b in stage.blocks)
        timing = kind.block.timing
        working = [slot.work for slot in timing.slots if slot.work.unit is not Unit.FREE]
        for work, row in zip(working, kind.rows, strict=True):
            latency = min(row.adds_cycles, float(work.latency_cycles))
            busy = min(row.adds_cycles - latency, float(work.busy_cycles))
            add(HOPS if work.unit is Unit.C2C else LATENCIES, count * latency)
            add(_busy_name(work), count * busy)
            add(WAITING, count * (row.adds_cycles - latency - busy))
        # A block ends with a whole cycle; of a mixture the mean over the routings of a step counts.
        ends = sum(row.adds_cycles for row in kind.rows)
        add(WAITING, count * (float(timing.cycles) - ends))
        mean = first_of(scheduled.evaluation.blocks[kind.kind].timing.cycles)
        add(ROUTINGS, count * (mean - float(timing.cycles)))
    add(HAND_OVERS, float(scheduled.evaluation.hand_over_cycles[0]))
    add(HOST, scheduled.evaluation.host_cycles)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _busy_name(work: Work) -> str:
    if work.unit is Unit.C2C:
        return LINKS
    if work.unit is Unit.MXM and work.limits:
        limits = {name: float(cycles) for name, cycles in work.limits.items()}
        return f"{work.unit.value}: {max(limits, key=lambda name: limits[name])}"
    return work.unit.value
