"""Why one plan takes as long as it does: stages, operations, collectives, hand-overs, memory.

Its totals are those of `evaluate`; its result is in `explanation`. Not modelled: as in
`evaluate`.
"""

from pathlib import Path

from lpu_jax.cost.memory import allocate, peak_bytes
from lpu_jax.cost.placed_machine import PlacedMachine
from lpu_jax.datapath.work import Unit
from lpu_jax.machine.gpu import NvlinkDomain
from lpu_jax.machine.mixed import Machine
from lpu_jax.machine.topology import Topology
from models.config import ModelConfig
from models.policy import Policy

from ..plan import Plan, check_is_plan
from ..predict.latency_range import latency_ranges_s
from ..predict.slot_reading import slot_readings
from ..request import NEXT_TOKEN, Request
from ..scenario import require_one_schedule, scenario
from .explanation import (
    AxisUse,
    BlockUse,
    CollectiveUse,
    Explanation,
    HandOverUse,
    OperationUse,
    SlotUse,
    StageUse,
)
from .scheduled import (
    KindSchedule,
    ScheduledPlan,
    axis_names,
    block_name,
    first_of,
    schedule_plan,
)


def explain(
    model: str | Path | ModelConfig,
    system: str | Path | Machine,
    plan: Plan,
    request: Request = NEXT_TOKEN,
    *,
    policy: str | Policy = "fp16",
) -> Explanation:
    """Explain one plan: what each operation, collective and hand-over takes, and what is held.

    Args:
        model: a zoo name, the path of a `config.json`, or a configuration.
        system: a system's name, the path of a TOML file, or a system; a mixed one has attention on
            its GPUs and FFNs on its LPUs.
        plan: the plan, whether it fits or not.
        request: what a step does: sequences, new tokens, allocated positions, drafts.
        policy: name of a precision policy, or a policy.

    Raises:
        LpuError: an unknown name, or the request or the plan is not possible: one sentence.

    Fidelity:
        Totals are exactly those of `compare`, which are approximate (docs/timing.md).
    """
    check_is_plan("explain", plan)
    asked = scenario(model, system, request, policy=policy)
    require_one_schedule(asked.machine, "explain")
    return explanation(schedule_plan(plan, asked))


def explanation(scheduled: ScheduledPlan) -> Explanation:
    """Explain a plan that was scheduled."""
    found, asked = scheduled.evaluation, scheduled.scenario
    ((shortest_s, longest_s),) = latency_ranges_s([scheduled.plan], asked)
    return Explanation(
        plan=scheduled.plan,
        model=asked.model.name,
        system=asked.machine.name,
        policy=asked.policy.name,
        request=asked.request,
        clock_hz=found.clock_hz,
        latency_cycles=float(found.latency_cycles[0]),
        lower_cycles=float(found.lower_cycles[0]),
        upper_cycles=float(found.upper_cycles[0]),
        latency_range_s=(float(shortest_s), float(longest_s)),
        hand_over_cycles=float(found.hand_over_cycles[0]),
        host_cycles=found.host_cycles,
        fits=bool(found.fits[0]),
        memory_bytes=found.memory_bytes(0),
        stages=tuple(
            StageUse(
                number=stage.number,
                system=stage.system.name,
                first_chip=stage.first_chip,
                last_chip=stage.first_chip + stage.n_chips - 1,
                blocks=tuple(block_name(block) for block in stage.blocks),
                cycles=stage.cycles,
            )
            for stage in scheduled.stages
        ),
        blocks=tuple(_block_use(scheduled, kind) for kind in scheduled.kinds.values()),
        hand_overs=tuple(
            HandOverUse(
                name=step.name,
                source=step.source,
                target=step.target,
                level=hand_over_level(scheduled, step.source, step.target),
                cycles=step.cycles,
                payload_bytes=step.payload_bytes,
                is_back=step.is_back,
            )
            for step in scheduled.hand_overs
        ),
        note=asked.machine.note,
        assumed=scheduled.assumed_of_time,
        assumed_fit=scheduled.assumed_of_fit,
    )


def _block_use(scheduled: ScheduledPlan, kind: KindSchedule) -> BlockUse:
    report, latency = kind.block.report(), scheduled.latency_cycles
    timing, held = report.timing, report.held
    topology = kind.system.topology
    planned, mean = float(timing.cycles), scheduled.evaluation.blocks[kind.kind].timing
    cycles = first_of(mean.cycles)
    count = sum(block.kind == kind.kind for stage in scheduled.stages for block in stage.blocks)
    return BlockUse(
        kind=kind.kind,
        count=count,
        cycles=cycles,
        lower_cycles=first_of(mean.lower_cycles),
        upper_cycles=first_of(mean.upper_cycles),
        share_of_token=count * cycles / latency,
        utilisation={
            unit.value: float(busy) / planned for unit, busy in timing.busy_cycles.items() if busy
        },
        axes=tuple(
            AxisUse(
                axis=axis,
                chips=chips,
                stride=kind.strides[axis],
                level=run_level(kind, topology, chips, kind.strides[axis]),
            )
            for axis, chips in kind.ways.items()
        ),
        operations=tuple(
            OperationUse(
                name=name,
                row=row,
                share_of_block=row.adds_cycles / planned,
                share_of_token=count * row.adds_cycles / latency,
            )
            for row, name in zip(kind.rows, kind.names, strict=True)
        ),
        collectives=collectives(scheduled, kind),
        weight_bytes=float(held.weights),
        cache_bytes=float(held.cache + held.dram_cache),
        dram_cycles=max(map(first_of, kind.block.dram_cycles.values()), default=0.0),
        cached_bytes=float(held.cached),
        live_bytes=float(peak_bytes(kind.ranges)),
        allocated_bytes=allocate(kind.ranges).top_bytes,
        slots=_slot_use(scheduled, kind),
    )


def _slot_use(scheduled: ScheduledPlan, kind: KindSchedule) -> SlotUse | None:
    """Describe the slots of a mixture; a GPU has none."""
    plan, asked = scheduled.plan, scheduled.scenario
    if kind.kind != "moe" or plan.moe is None or kind.system.lpus is None:
        return None
    (reading,) = slot_readings([plan], scheduled.evaluation.slots, asked)
    assert reading is not None
    return SlotUse(
        reading=reading,
        planned_cycles=float(kind.block.timing.cycles),
        worst_cycles=first_of(scheduled.evaluation.blocks[kind.kind].worst_cycles),
    )


def collectives(scheduled: ScheduledPlan, kind: KindSchedule) -> tuple[CollectiveUse, ...]:
    """Describe the collectives of a kind of block that span more than one chip."""
    block, topology, found = kind.block, kind.system.topology, []
    if not isinstance(block.machine, PlacedMachine):  # a roofline has no link schedules
        return ()
    working = [slot for slot in block.timing.slots if slot.work.unit is not Unit.FREE]
    for number, slot in enumerate(working):
        if slot.work.unit is not Unit.C2C or slot.work.absent:
            continue
        params = slot.operation.numbers(block.symbols)
        chips, stride = int(params["size"]), int(params["stride"])
        name = slot.operation.name.removeprefix("c2c_")
        payload = float(slot.work.moved_bytes)
        algorithm, links = block.machine.chosen(name, params["algorithm"], chips, stride, payload)
        named = axis_names(slot.operation)
        found.append(
            CollectiveUse(
                operation=number,
                kind=name,
                algorithm=algorithm,
                axes=tuple(axis for axis in kind.ways if axis in named and kind.ways[axis] > 1),
                chips=chips,
                stride=stride,
                level=run_level(kind, topology, chips, stride),
                hops=int(links.hops),
                exact=bool(links.exact),
                cycles=float(slot.work.busy_cycles) + float(slot.work.latency_cycles),
                busiest_link_cycles=float(links.busiest_link_cycles(payload)),
                payload_bytes=payload,
                link_bytes=float(links.link_bytes(payload)),
                steps=tuple(step.name for step in links.steps if float(step.share) > 0),
            )
        )
    return tuple(found)


def run_level(
    kind: KindSchedule, topology: Topology | NvlinkDomain, chips: int, stride: int
) -> str:
    """The outermost level that runs of chips cross in any stage; `chip` for runs of one."""
    if chips == 1:
        return "chip"
    reach = min(chips * stride, kind.group.chips)
    return topology.level_of(topology.span(kind.group.bases, reach, kind.group.chips))


def hand_over_level(scheduled: ScheduledPlan, source: int, target: int) -> str:
    """The outermost level that lies between two stages; `network` between two machines."""
    ends = [scheduled.stages[number] for number in (source, target)]
    if ends[0].system != ends[1].system:
        return "network"
    topology = ends[0].system.topology
    first = min(stage.first_chip for stage in ends)
    last = max(stage.first_chip + stage.n_chips for stage in ends)
    return topology.level_of(topology.span([first], last - first))
