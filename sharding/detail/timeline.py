"""One token through all stages of a plan as a trace for Perfetto.

A process is a stage; its tracks are its blocks, the functional units of its first chip, and the
links that leave and enter this chip. Links show the explicit schedule of the stage's own chips; an
operation on the C2C track lasts as long as it is priced, which is at the worst-placed stage. Not
shown: other tokens in flight, and what chips outside the stage forward.
"""

from collections.abc import Iterator
from math import ceil

import numpy as np

from lpu_jax.cost.collectives.algorithms.table import EVERYWHERE
from lpu_jax.cost.collectives.kinds import OWN_PIECES
from lpu_jax.cost.collectives.link_check import check
from lpu_jax.cost.collectives.link_schedule import link_schedule
from lpu_jax.cost.collectives.link_table import LinkSchedule, link_name
from lpu_jax.cost.memory import profile
from lpu_jax.cost.placed_machine import PlacedMachine
from lpu_jax.cost.trace import UNIT_TRACKS, Slice, Trace, unit_slices
from models.blocks import Kind

from .explain import collectives
from .explanation import CollectiveUse
from .scheduled import HandOver, KindSchedule, ScheduledPlan, Stage, block_name, first_of

#: Track of what comes from DRAM beside a chip.
DRAM = "DRAM"
#: Track of a stage's blocks and hand-overs.
BLOCKS = "blocks"
#: What times of LPUs are.
_MADE_OF = "static schedule; cycle accuracy is not claimed"
#: Counters of a stage, after the name of the memory.
HELD, LIVE = "bytes: weights, cache, tables", "bytes: live values"


def plan_trace(scheduled: ScheduledPlan) -> Trace:
    """Draw one token through a plan, stage by stage.

    Args:
        scheduled: the plan.

    Returns:
        The trace: the end of its last slice is the latency of a token.
    """
    clock_hz = scheduled.evaluation.clock_hz
    trace = Trace(clock_hz, _about(scheduled))
    memory = scheduled.scenario.system.chip.memory_name
    held, live = f"{memory} {HELD}", f"{memory} {LIVE}"
    units = {kind: kind_slices(schedule) for kind, schedule in scheduled.kinds.items()}
    uses = {kind: collectives(scheduled, each) for kind, each in scheduled.kinds.items()}
    processes = [trace.process(stage.name) for stage in scheduled.stages]
    for pid, stage in zip(processes, scheduled.stages, strict=True):
        _tracks(trace, pid, [slice_ for block in stage.blocks for slice_ in units[block.kind]])
        links: dict[Kind, tuple[Slice, ...]] = {}
        trace.count(pid, held, stage.start_cycles[0], _held_bytes(scheduled, stage))
        for block, now in zip(stage.blocks, stage.start_cycles, strict=True):
            kind = scheduled.kinds[block.kind]
            if block.kind not in links:
                links[block.kind] = tuple(_link_slices(kind, stage, uses[block.kind]))
            trace.add(pid, [_block_slice(block_name(block), kind)], now)
            trace.add(pid, (*units[block.kind], *links[block.kind]), now)
            trace.count(pid, live, now, 0.0)
            for cycle, live_bytes in profile(kind.ranges):
                trace.count(pid, live, now + cycle, live_bytes)
            trace.count(pid, live, now + float(kind.block.timing.cycles), 0.0)
    for step in scheduled.hand_overs:
        _hand_over(trace, scheduled, step, processes[step.source], processes[step.target])
    _host(trace, scheduled)
    return trace


def _about(scheduled: ScheduledPlan) -> dict[str, str]:
    """What a reader of the file must know: what was scheduled, and what its times rest on."""
    asked = scheduled.scenario
    system, request = asked.system, asked.request
    assumed = [constant.name for constant in scheduled.assumed_of_time]
    return {
        "model": asked.model.name,
        "system": system.name,
        "plan": scheduled.plan.name,
        "weights": asked.policy.name,
        "request": f"batch {request.batch}, new tokens {request.tokens}, context {request.context}",
        "time": _MADE_OF if system.lpus is not None else system.note,
        "assumed": ", ".join(dict.fromkeys(assumed)),
    }


def _hand_over(
    trace: Trace, scheduled: ScheduledPlan, step: HandOver, source: int, target: int
) -> None:
    """Show a hand-over where it comes from, and its transfers at both ends."""
    args = {"cycles": step.cycles, "bytes": step.payload_bytes}
    whole = Slice(track=BLOCKS, name=step.name, start_cycle=0.0, end_cycle=step.cycles, args=args)
    trace.add(source, [whole], step.start_cycle)
    ends = [scheduled.stages[number] for number in (step.source, step.target)]
    if scheduled.scenario.system.lpus is None or ends[0].n_chips < ends[1].n_chips:
        return  # a transfer of GPUs only has a price, and one that is handed on has several steps
    _, topology = scheduled.scenario.system.lpus
    chips = [stage.first_chip for stage in ends]
    runs = np.concatenate([first + np.arange(ends[1].n_chips) for first in chips])
    clock_hz, payload = scheduled.evaluation.clock_hz, ceil(step.payload_bytes)
    links = link_schedule(topology, clock_hz, "hand_over", EVERYWHERE.name, runs[None], payload)
    for pid, chip in zip((source, target), chips, strict=True):
        trace.add(pid, tuple(transfer_slices(links, chip, 0.0, "hand-over")), step.start_cycle)


def _host(trace: Trace, scheduled: ScheduledPlan) -> None:
    """Show what host and sampling take after the last stage, if anything."""
    cycles = scheduled.evaluation.host_cycles
    if cycles:
        pid = trace.process("host")
        start = scheduled.latency_cycles - cycles
        spent = Slice(
            track="host", name="host and sampling", start_cycle=0.0, end_cycle=cycles, args={}
        )
        trace.add(pid, [spent], start)


def kind_slices(kind: KindSchedule) -> tuple[Slice, ...]:
    """What the units of a chip do in a kind of block, and what comes to it from DRAM."""
    block = kind.block
    transit = float(block.machine.chip.transit_cycles)
    units = unit_slices(block.program, block.timing, kind.rows, kind.names, transit)
    start, reads = 0.0, []
    for name, cycles in block.dram_cycles.items():
        end = first_of(cycles)
        reads.append(Slice(track=DRAM, name=name, start_cycle=start, end_cycle=end, args={}))
        start = end
    return (*units, *reads)


def _tracks(trace: Trace, pid: int, slices: list[Slice]) -> None:
    """Begin the tracks of a stage in a fixed order."""
    used = {each.track for each in slices}
    trace.track(pid, BLOCKS)
    for name in UNIT_TRACKS:
        if name in used:
            trace.track(pid, name)


def _block_slice(name: str, kind: KindSchedule) -> Slice:
    timing = kind.block.report().timing
    return Slice(
        track=BLOCKS,
        name=name,
        start_cycle=0.0,
        end_cycle=float(timing.cycles),
        args={
            "cycles": float(timing.cycles),
            "lower bound": float(timing.lower_cycles),
            "upper bound": float(timing.upper_cycles),
        },
    )


def _held_bytes(scheduled: ScheduledPlan, stage: Stage) -> float:
    """Weights and cache of a stage on its fullest chip; blocks of one kind share their tables."""
    held = {kind: each.block.report().held for kind, each in scheduled.kinds.items()}
    own = sum(float(held[b.kind].weights) + float(held[b.kind].cache) for b in stage.blocks)
    return own + sum(float(held[kind].tables) for kind in {b.kind for b in stage.blocks})


# --- links ----------------------------------------------------------------------------------------


def links_of_stage(kind: KindSchedule, stage: Stage, use: CollectiveUse) -> LinkSchedule:
    """The explicit link schedule of a collective over all runs of a stage, proven link by link.

    What each chip has of a gathered vector is whole vectors on its links, as it is priced.
    """
    machine = kind.block.machine
    assert isinstance(machine, PlacedMachine)  # a roofline has no collectives to show
    vector_bytes = machine.topology.frame_payload_bytes
    n_vectors = ceil(use.payload_bytes / vector_bytes)
    if use.kind in OWN_PIECES:
        n_vectors = use.chips * ceil(n_vectors / use.chips)
    links = link_schedule(
        machine.topology,
        machine.chip.clock_hz,
        use.kind,
        use.algorithm,
        machine.runs(use.chips, use.stride, stage.number_in_pool),
        n_vectors * vector_bytes,
    )
    # Nothing is shown that two transfers could not do; delivery of every byte is proven in tests.
    check(links, machine.topology, most_followed=0)
    return links


def _link_slices(
    kind: KindSchedule, stage: Stage, uses: tuple[CollectiveUse, ...]
) -> Iterator[Slice]:
    """Show the transfers that leave or enter the first chip of a stage, in one kind of block."""
    for use in uses:
        start = kind.rows[use.operation].start_cycle
        links = links_of_stage(kind, stage, use)
        yield from transfer_slices(links, stage.first_chip, start, use.kind)


def transfer_slices(
    links: LinkSchedule, chip: int, start_cycle: float, name: str
) -> Iterator[Slice]:
    """Show the transfers of a link schedule that leave or enter a chip, each on its link."""
    for i in np.flatnonzero((links.src == chip) | (links.dst == chip)):
        way = "out" if links.src[i] == chip else "in"
        link = link_name(links.src[i], links.dst[i], links.part[i])
        yield Slice(
            track=f"{way} {link}",
            name=f"{name}: {links.step_names[links.step[i]]}",
            start_cycle=start_cycle + float(links.start_cycle[i]),
            end_cycle=start_cycle + float(links.release_cycle[i]),
            args={
                "vectors": int(links.vector_count[i]),
                "bytes": int(links.vector_count[i]) * links.frame_bytes,
                "last vector there at cycle": start_cycle + float(links.arrival_cycle[i]),
                "run": int(links.run[i]),
            },
        )
