"""A roofline of published figures over the same program: what it would take on GPUs.

A kernel (`kernels`) takes the largest of its arithmetic, its memory traffic and its NVLink traffic,
and a launch gap before it; a collective takes a latency in its place (alpha and beta). Kernels run
one after another. This does not simulate a GPU. Weights, keys and values, and all values between
kernels pass through HBM (assumed); latent attention has its cache in two layouts, as the program
holds it. Rows of a mixture choose experts at random, all alike (`routing`): the time is that of the
busiest GPU; the lower bound has even routes, the upper one the worst. Not modelled: the L2 cache,
arithmetic of the vector units, kernels at the same time, and sums inside the NVLink switch.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int

from ..datapath.c2c import WIRE_BITS
from ..datapath.work import Length, Quantity, Unit, Work, choose, largest
from ..errors import CostError
from ..machine.gpu import GpuSpec, NvlinkDomain
from ..machine.system import System
from ..provenance import Constant, constants_of
from .kernels import Kernel, kernels
from .placed_machine import Groups
from .program import Operation, Program
from .routing import Load
from .schedule import Limits, Slot, Timing

#: An end of the range of every constant: `best` is the speed of light.
End = Literal["best", "stated", "worst"]
#: What a kernel may be bound by.
MEMORY, ARITHMETIC, LINK = "HBM", "arithmetic", "link rate"


@dataclass(frozen=True, kw_only=True)
class GpuMachine:
    """GPUs of one NVLink domain as one plan, or each of many plans, sees them.

    Where groups lie makes no difference behind one switch.
    """

    system: System
    groups: tuple[Groups, ...]
    #: which of `groups` each plan uses; None for a single plan
    group_of_plan: Int[np.ndarray, " plans"] | None = None

    @property
    def chip(self) -> GpuSpec:
        """The GPU that runs the program."""
        return _gpus(self.system)[0]


def roofline(
    program: Program, machine: GpuMachine, symbols: Mapping[str, Length] | None = None
) -> Timing:
    """Time a program on one GPU of a group.

    Args:
        program: from `program.read`.
        machine: GPU and NVLink domain.
        symbols: a number, or an array with one number per plan, for each symbol of the program.

    Returns:
        Cycles of the GPU's `clock_hz`, in the form of a schedule with one slot per kernel. `lower`
        is the speed of light: whole rates at the high end of their ranges, no gaps, no latencies,
        even routes. `upper` has the low end of every rate, the longest gaps, the worst routes, and
        no overlap within a kernel.

    Raises:
        CostError: a collective is to run by a named algorithm.

    Fidelity:
        Approximate. Gaps, latencies and reached shares of the rates are assumed, with ranges.
    """
    best, stated = _rates(machine.system, "best"), _rates(machine.system, "stated")
    worst = _rates(machine.system, "worst")
    now: Quantity = 0.0
    lower: Quantity = 0.0
    upper: Quantity = 0.0
    busy: dict[Unit, Quantity] = {unit: 0.0 for unit in Unit if unit is not Unit.FREE}
    slots = []
    for kernel in kernels(program):
        begin = now
        if kernel.unit is Unit.FREE:
            work = Work(unit=Unit.FREE)
        else:
            demand = _demand(kernel, symbols or {}, "spread")
            work = _work(kernel, demand, stated)
            now = now + work.busy_cycles + work.latency_cycles
            least = most = demand
            if kernel.is_routed:
                least = _demand(kernel, symbols or {}, "even")
                most = _demand(kernel, symbols or {}, "worst")
            # Few rows on even routes read every expert, at random they read some of them.
            lower = lower - largest(-_duration(least, best), -_duration(demand, best))
            upper = upper + _duration(most, worst)
            busy[kernel.unit] = busy[kernel.unit] + work.busy_cycles
        slots.append(Slot(operation=kernel.operation, work=work, start=begin, first=now, last=now))
    limits = Limits(lower_cycles=lower, upper_cycles=upper, busy_cycles=busy)
    return Timing(cycles=now, slots=tuple(slots), limits=limits)


def transfer_cycles(system: System, payload_bytes: float | int) -> float:
    """Cycles in which every GPU of a group sends a payload to its counterpart in another group."""
    stated = _rates(system, "stated")
    return stated.latency + payload_bytes * stated.per_link_byte


def constants_behind(program: Program, machine: GpuMachine) -> tuple[tuple[Constant, ...], ...]:
    """List the constants that the time of each kernel rests on.

    Args:
        program: from `program.read`.
        machine: GPU and NVLink domain.

    Returns:
        For each slot of the roofline, its constants in the order of their declaration.
    """
    of_gpu, of_links = constants_of(machine.chip), constants_of(machine.system.topology)
    found = []
    for kernel in kernels(program):
        names = {"memory_bytes_per_s", "memory_efficiency"}
        if kernel.unit is not Unit.C2C:
            names.add("launch_gap_s")
        if kernel.products:
            names.add("arithmetic_efficiency")
            names |= {machine.chip.rate_of(product.operand) for product in kernel.products}
        read = tuple(constant for constant in of_gpu if constant.name in names)
        if kernel.unit is Unit.FREE:
            read = ()
        found.append(read + of_links if kernel.unit is Unit.C2C else read)
    return tuple(found)


# --- what a kernel asks of the machine ------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Demand:
    """What a kernel asks of the machine; numbers, or one per plan."""

    flops: Mapping[str, Quantity]  #: by operand kind
    memory_bytes: Quantity
    link_bytes: Quantity  #: one way, of each GPU
    payload_bytes: Quantity
    launches: Quantity  #: 1, or 0 where it is part of what is before it
    latencies: Quantity  #: 1 for a collective of more than one GPU


def _demand(kernel: Kernel, symbols: Mapping[str, Length], load: Load) -> _Demand:
    """Add up what a kernel asks for; `load` is about routed rows."""
    moved = (value.size_bytes(symbols, load) for value in kernel.moves)
    memory_bytes: Quantity = sum(moved, 0.0)
    flops: dict[str, Quantity] = {}
    for product in kernel.products:
        before = flops.get(product.operand, 0.0)
        flops[product.operand] = before + product.flops(symbols, load)
        memory_bytes = memory_bytes + product.stationary_bytes(symbols, load)
    if kernel.collective is None:
        return _Demand(
            flops=flops,
            memory_bytes=memory_bytes,
            link_bytes=0.0,
            payload_bytes=0.0,
            launches=1.0,
            latencies=0.0,
        )
    several, payload, sent = _collective(kernel.collective, symbols)
    if kernel.sent is not None:
        part = kernel.sent.share(symbols, load)
        payload, sent = payload * part, sent * part
    if kernel.is_alone:  # of one GPU: the operand is the result
        memory_bytes = memory_bytes * several
    return _Demand(
        flops=flops,
        memory_bytes=memory_bytes,
        link_bytes=sent,
        payload_bytes=payload,
        launches=0.0,
        latencies=several,
    )


def _collective(
    operation: Operation, symbols: Mapping[str, Length]
) -> tuple[Quantity, Quantity, Quantity]:
    """Whether a collective has several GPUs (1 or 0), its vector, and what each GPU sends.

    An all-reduce sends its vector almost twice (reduce-scatter, then all-gather); the others almost
    once, as each GPU keeps its own share. Values cross in the format of the wire, if it has one.
    """
    params = operation.numbers(symbols)
    n_chips = params.get("size", params.get("axis_size"))
    if n_chips is None:
        raise CostError(
            f"{operation.name}: the number of GPUs is not in the equation; use "
            "lpu_jax.datapath.c2c instead."
        )
    if params.get("algorithm", "auto") != "auto":
        raise CostError(
            f"{operation.name}: algorithm {params['algorithm']!r} was asked for; a GPU roofline "
            "has only 'auto'."
        )
    kind = operation.name.removeprefix("c2c_")
    several = choose(n_chips > 1, 1.0, 0.0)
    operand = operation.operands[0].bind(symbols)
    whole = operand.size_bytes
    if (wire := operation.params.get("wire")) is not None:
        whole = operand.size * WIRE_BITS[wire] / 8
    if kind == "all_gather":
        whole = whole * n_chips
    share = (n_chips - 1) / n_chips
    times = 2.0 if kind == "all_reduce" else 1.0
    return several, whole * several, whole * several * share * times


# --- constants at one end of their ranges ---------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Rates:
    """Cycles per unit of demand."""

    per_flop: Mapping[str, float]  #: by operand kind
    per_byte: float
    per_link_byte: float
    launch: float
    latency: float
    overlapped: bool  #: memory, arithmetic and links of one kernel


def _gpus(system: System) -> tuple[GpuSpec, NvlinkDomain]:
    assert system.gpus is not None  # `timing.placed` sees LPUs as another machine
    return system.gpus


@functools.lru_cache(maxsize=1 << 8)
def _rates(system: System, end: End) -> _Rates:
    gpu, links = _gpus(system)
    constants = {c.name: c for c in (*constants_of(gpu), *constants_of(links))}

    def value(name: str, high_is_best: bool = True) -> float:
        constant = constants[name]
        ends = constant.low, constant.high
        if end == "stated" or ends[0] is None or ends[1] is None:
            return float(constant.value)
        return float(ends[1] if high_is_best == (end == "best") else ends[0])

    def per(rate: str, efficiency: str) -> float:
        reached = 1.0 if end == "best" else value(efficiency)
        return gpu.clock_hz / (value(rate) * reached)

    def wait(name: str) -> float:
        return 0.0 if end == "best" else value(name, high_is_best=False) * gpu.clock_hz

    return _Rates(
        per_flop={
            operand: per(gpu.rate_of(operand), "arithmetic_efficiency")
            for operand in ("fp16", "fp8", "int8")
        },
        per_byte=per("memory_bytes_per_s", "memory_efficiency"),
        per_link_byte=per("link_bytes_per_s", "link_efficiency"),
        launch=wait("launch_gap_s"),
        latency=wait("collective_latency_s"),
        overlapped=end != "worst",
    )


def _limits(demand: _Demand, rates: _Rates) -> dict[str, Quantity]:
    """Cycles that each part of a kernel would take alone."""
    arithmetic = (flops * rates.per_flop[operand] for operand, flops in demand.flops.items())
    return {
        MEMORY: demand.memory_bytes * rates.per_byte,
        ARITHMETIC: sum(arithmetic, 0.0),
        LINK: demand.link_bytes * rates.per_link_byte,
    }


def _duration(demand: _Demand, rates: _Rates) -> Quantity:
    limits = _limits(demand, rates).values()
    body: Quantity = largest(*limits) if rates.overlapped else sum(limits, 0.0)
    return body + demand.launches * rates.launch + demand.latencies * rates.latency


def _work(kernel: Kernel, demand: _Demand, rates: _Rates) -> Work:
    limits = _limits(demand, rates)
    is_link = kernel.unit is Unit.C2C
    return Work(
        unit=kernel.unit,
        busy_cycles=largest(*limits.values()),
        latency_cycles=demand.launches * rates.launch + demand.latencies * rates.latency,
        limits=limits,
        moved_bytes=demand.payload_bytes if is_link else demand.memory_bytes,
        absent=demand.latencies == 0.0 if kernel.is_alone else False,
    )
