"""A static schedule: every unit executes its operations in program order, for many plans at once.

An operation starts when its unit is free and its operands, or their first vectors, are available.
In-order issue is monotone (more bytes are never faster) and reproducible. Numbers may be arrays
with one entry per plan; one plan is one number. Not modelled: moving operations past each other,
and conflicts for streams or memory banks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..datapath.work import Hardware, Length, Quantity, Unit, Work, ceil, choose, largest
from .program import Operation, Program


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One operation in the schedule, in cycles from the start of the program."""

    operation: Operation
    work: Work
    start: Quantity
    first: Quantity  #: when its first result vector has been made
    last: Quantity  #: when its last result vector has been made


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Between what the time of a program lies, and how long each unit works, in cycles."""

    lower_cycles: Quantity  #: every unit perfectly overlapped
    upper_cycles: Quantity  #: nothing overlapped
    busy_cycles: Mapping[Unit, Quantity]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """A scheduled program, in cycles."""

    cycles: Quantity
    slots: tuple[Slot, ...]
    limits: Limits | None  #: None if nobody asked

    @property
    def _limits(self) -> Limits:
        assert self.limits is not None, "a timing without limits was asked for them"
        return self.limits

    @property
    def lower_cycles(self) -> Quantity:
        """Time with every unit perfectly overlapped."""
        return self._limits.lower_cycles

    @property
    def upper_cycles(self) -> Quantity:
        """Time with nothing overlapped."""
        return self._limits.upper_cycles

    @property
    def busy_cycles(self) -> Mapping[Unit, Quantity]:
        """How long each unit works."""
        return self._limits.busy_cycles


def schedule(
    program: Program,
    machine: Hardware,
    symbols: Mapping[str, Length] | None = None,
    arrivals: Mapping[int, Quantity] | None = None,
    *,
    limited: bool = True,
) -> Timing:
    """Schedule a program on the units of one chip.

    Args:
        program: from `program.read`.
        machine: chip and links.
        symbols: a number, or an array with one number per plan, for each symbol of the program.
        arrivals: inputs that come from outside the chip, and the cycle at which the last of each
            is there; all others are in memory.
        limited: whether to find the limits too.

    Returns:
        Cycles: scheduled, and a lower and an upper bound; `lower <= cycles <= upper` always.
    """
    works = [operation.work(machine, symbols or {}) for operation in program.operations]
    there: dict[int | None, Quantity] = {}
    there.update((arrivals or {}).items())
    slots = _in_order(program, works, machine, there)
    end: Quantity = largest(0.0, *(slot.last for slot in slots))
    return Timing(
        cycles=ceil(end),
        slots=tuple(slots),
        limits=_limits(program, works, machine, there) if limited else None,
    )


def _limits(
    program: Program, works: list[Work], machine: Hardware, arrivals: Mapping[int | None, Quantity]
) -> Limits:
    """Bound the time of a program from both sides."""
    busy: dict[Unit, Quantity] = {
        unit: _total(work.busy_cycles for work in works if work.unit is unit)
        for unit in Unit
        if unit is not Unit.FREE
    }
    transit = float(machine.chip.transit_cycles)
    upper = _total(
        work.busy_cycles
        + work.latency_cycles
        + work.install_cycles
        + choose(work.absent, 0.0, transit)
        for work in works
        if work.unit is not Unit.FREE
    )
    # The weight stream is a unit of its own where it runs ahead of the arrays.
    streamed = _total(work.install_cycles for work in works) if _runs_ahead(machine) else 0.0
    longest = _critical_path(program, works, transit, arrivals)
    return Limits(
        lower_cycles=largest(longest, streamed, *busy.values()),
        upper_cycles=ceil(upper + largest(0.0, *arrivals.values())),
        busy_cycles=busy,
    )


def _total(quantities: Any) -> Quantity:
    total: Quantity = 0.0
    for quantity in quantities:
        total = total + quantity
    return total


def _in_order(
    program: Program, works: list[Work], machine: Hardware, arrivals: Mapping[int | None, Quantity]
) -> list[Slot]:
    """Issue each operation on its unit in program order."""
    transit = float(machine.chip.transit_cycles)
    # What is known before the program runs, and when all of it is in the chip.
    known: dict[int | None, Quantity] = {**dict.fromkeys((None, *program.inputs), 0.0), **arrivals}
    first: dict[int | None, Quantity] = dict.fromkeys(known, 0.0)
    last: dict[int | None, Quantity] = dict(known)
    unit_free: dict[Unit, Quantity] = dict.fromkeys(Unit, 0.0)
    # When the MXM's second weight buffer can take the next round, or the stream the next product.
    buffer_free: Quantity = 0.0
    slots = []
    for operation, work in zip(program.operations, works, strict=True):
        # What an operation without work passes on: its operand is its result.
        begin = first_out = largest(0.0, *(first[v] for v in operation.reads))
        last_out = largest(0.0, *(last[v] for v in operation.reads))
        if work.unit is not Unit.FREE:
            ready = [
                (last if i in work.waits_for else first)[value] + transit
                for i, value in enumerate(operation.reads)
                if i != work.stationary
            ]
            start = largest(unit_free[work.unit], *ready)
            if work.stationary is not None:
                weights = operation.reads[work.stationary]
                there = known[weights] if weights in known else last[weights] + transit
                installed = largest(buffer_free, there) + work.install_cycles
                start = largest(start, last[weights] + transit)
                if not _runs_ahead(machine):
                    start = largest(start, installed)
            # It cannot end before its slowest operand has come in, and what that still needs.
            arrived = last_out + transit
            end = largest(start + work.busy_cycles, arrived + work.rest_cycles)
            lead = largest(start + work.lead_cycles, arrived + work.lead_behind_cycles)
            if work.stationary is not None:
                if _runs_ahead(machine):  # it multiplies each round when that is installed
                    share = (work.lead_cycles + work.drain_cycles) / work.busy_cycles
                    lead = largest(lead, installed - (1 - share) * work.install_cycles)
                    end = largest(end, installed + work.drain_cycles)
                    buffer_free = installed
                else:
                    buffer_free = end - work.drain_cycles
            done = end + work.latency_cycles
            freed = done if work.unit is Unit.C2C else end
            absent = work.absent
            unit_free[work.unit] = choose(absent, unit_free[work.unit], freed)
            made = done if work.result_is_last else lead + work.latency_cycles
            first_out = choose(absent, first_out, made)
            last_out = choose(absent, last_out, done)
            begin = choose(absent, begin, start)
        slots.append(
            Slot(operation=operation, work=work, start=begin, first=first_out, last=last_out)
        )
        first.update(dict.fromkeys(operation.makes, first_out))
        last.update(dict.fromkeys(operation.makes, last_out))
        if operation.result_known:
            there = largest(0.0, *(known.get(value, 0.0) for value in operation.reads))
            known.update(dict.fromkeys(operation.makes, there))
    return slots


def _runs_ahead(machine: Hardware) -> bool:
    """Whether weights are installed a whole block ahead, in program order."""
    return machine.chip.weight_prefetch == "block"


def _critical_path(
    program: Program, works: list[Work], transit: float, arrivals: Mapping[int | None, Quantity]
) -> Quantity:
    """Longest chain of dependences.

    Every operation has a unit of its own and takes vectors as they are made.
    """
    first: dict[int | None, Quantity] = dict.fromkeys((None, *program.inputs), 0.0)
    last: dict[int | None, Quantity] = {**first, **arrivals}
    longest: Quantity = 0.0
    for operation, work in zip(program.operations, works, strict=True):
        step = choose(work.absent, 0.0, transit) if work.unit is not Unit.FREE else 0.0
        begin = largest(0.0, *(first[v] + step for v in operation.reads))
        arrived = largest(0.0, *(last[v] + step for v in operation.reads))
        last_out = largest(begin + work.busy_cycles, arrived) + work.latency_cycles
        first_out = last_out if work.result_is_last else begin + work.latency_cycles
        first.update(dict.fromkeys(operation.makes, first_out))
        last.update(dict.fromkeys(operation.makes, last_out))
        longest = largest(longest, last_out)
    return np.floor(longest)
