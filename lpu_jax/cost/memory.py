"""Memory over the schedule: how long each value lives, the peak of all, and addresses.

A value takes up memory from its first vector until the last operation that reads it has ended.
Values that go from unit to unit on streams alone are counted as if they were stored, so the peak is
an upper bound. Not modelled: which slice and bank an address lies in, and values known before the
program runs: weights, caches and states written in place, and the arguments.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from ..datapath.work import Length, Quantity, Unit, ceil_div, choose, largest
from .program import WRITES_OVER, Operation, Program
from .schedule import Slot, Timing


@dataclass(frozen=True, kw_only=True)
class LiveRange:
    """A value in memory from `start` to just before `end`, in cycles; numbers, or one per plan."""

    name: str  #: of the operation that makes it
    size_bytes: Quantity  #: whole vectors; 0 in plans where it only names another value again
    start: Quantity
    end: Quantity


@dataclass(frozen=True, kw_only=True)
class AddressedRange:
    """A live range at an address."""

    live: LiveRange
    address: int  #: of its first byte


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """Addresses of all values of one plan, in the order of their starts."""

    placed: tuple[AddressedRange, ...]
    peak_bytes: float  #: alive at once, at most: no allocation can do with less
    top_bytes: float  #: what this one takes; what exceeds the peak is fragmentation

    def as_dict(self) -> dict[str, Any]:
        """The allocation as plain values."""
        return {
            "peak_bytes": self.peak_bytes,
            "top_bytes": self.top_bytes,
            "values": [{**vars(placed.live), "address": placed.address} for placed in self.placed],
        }


def live_ranges(
    program: Program, timing: Timing, symbols: Mapping[str, Length], vector_bytes: int
) -> tuple[LiveRange, ...]:
    """Find when each value that a program makes is in memory.

    Args:
        program: the program.
        timing: its schedule, operation by operation.
        symbols: a number, or an array with one number per plan, for each symbol.
        vector_bytes: bytes of a vector; memory is addressed by vectors.

    Returns:
        One range per value, in program order. A result that is an operand under another name (free
        layout, a collective of one chip) adds nothing and keeps its operand alive.
    """
    ends: dict[int | None, Quantity] = dict.fromkeys(program.outputs, timing.cycles)
    found: list[LiveRange] = []
    for slot in reversed(timing.slots):
        operation = slot.operation
        same: Any = True if slot.work.unit is Unit.FREE else slot.work.absent
        # What nobody reads is still written; a range is never empty.
        until = {
            value: largest(ends.get(value, 0.0), slot.last, slot.first + 1)
            for value in operation.makes
        }
        read_until = choose(same, largest(slot.last, *until.values()), slot.last)
        for value in operation.reads:
            ends[value] = largest(ends.get(value, 0.0), read_until)
        if operation.result_known or same is True:
            continue
        made = _stored(operation, program, symbols, vector_bytes)
        for value, stored in reversed(made.items()):
            found.append(
                LiveRange(
                    name=operation.name,
                    size_bytes=choose(same, 0.0, stored),
                    start=slot.first,
                    end=until[value],
                )
            )
    return tuple(reversed(found))


def peak_bytes(ranges: Sequence[LiveRange]) -> Quantity:
    """Bytes that are live at once, at most: a number, or one per plan.

    The sum can only grow where a range starts, so it is taken at every start.
    """
    if not ranges:
        return 0.0
    fields = [(live.size_bytes, live.start, live.end) for live in ranges]
    plans = np.broadcast_shapes(*(np.shape(number) for row in fields for number in row))
    size, start, end = columns = np.empty((3, len(fields), *plans))
    for column, numbers in zip(columns, zip(*fields, strict=True), strict=True):
        for row, number in enumerate(numbers):
            column[row] = number
    peak = np.zeros(plans)
    for instant in start:
        peak = np.maximum(peak, (size * ((start <= instant) & (instant < end))).sum(0))
    return peak if plans else float(peak)


def least_peak_bytes(
    program: Program, timing: Timing, symbols: Mapping[str, Length], vector_bytes: int
) -> Quantity:
    """Bound `peak_bytes` from below, wherever the group lies: by who reads whose result.

    Args:
        program: the program.
        timing: a schedule of it: what is absent, and what each operation takes but over links,
            holds for all.
        symbols: a number, or an array with one number per plan, for each symbol.
        vector_bytes: bytes of a vector.
    """
    makers: list[int] = []
    values: list[int | None] = []
    sizes: list[Quantity] = []
    for i, slot in enumerate(timing.slots):
        operation = slot.operation
        if operation.result_known or slot.work.unit is Unit.FREE:
            continue
        for value, size in _stored(operation, program, symbols, vector_bytes).items():
            makers.append(i)
            values.append(value)
            sizes.append(choose(slot.work.absent, 0.0, size))
    if not sizes:
        return 0.0
    gives = [_gives_while_it_takes(slot) for slot in timing.slots]
    plans = np.broadcast_shapes(*map(np.shape, [*sizes, *gives]))
    bytes_of = np.stack([np.broadcast_to(size, plans) for size in sizes])
    made_by = np.array(makers)[None] == np.arange(len(gives))[:, None]
    held, outlive = _held(timing.slots, np.array(makers), values, program.outputs)
    least = np.zeros(plans)
    for live in _not_within_others(np.concatenate([held, outlive | made_by])):
        least = np.maximum(least, bytes_of[live].sum(0))
    for live, overlap in zip(held | made_by, gives, strict=True):
        if np.any(overlap):
            least = np.maximum(least, np.where(overlap, bytes_of[live].sum(0), 0.0))
    return least if plans else float(least)


def _gives_while_it_takes(slot: Slot) -> Bool[np.ndarray, "*plans"]:
    """Say where an operation gives its first result before it has read its last, in any schedule.

    What is sent over links takes longer elsewhere; kernels of a GPU give all at their end.
    """
    work = slot.work
    if work.unit in (Unit.FREE, Unit.C2C):
        return np.asarray(False)
    streams = (work.lead_cycles < work.busy_cycles) & (work.lead_behind_cycles < work.rest_cycles)
    if work.stationary is not None:  # its weights may come last
        streams &= work.lead_cycles + work.drain_cycles < work.busy_cycles
    return np.asarray(streams & (slot.first < slot.last))


def _held(
    slots: Sequence[Slot],
    makers: Int[np.ndarray, " values"],
    values: Sequence[int | None],
    outputs: Sequence[int | None],
) -> tuple[Bool[np.ndarray, "slots values"], Bool[np.ndarray, "slots values"]]:
    """Say which values are live in every schedule when an operation ends, and which outlive it.

    These are made by what it needs, itself or in turn, and read by it, or by what needs it.
    """
    n_slots = len(slots)
    # A GPU's kernel may read what layout makes of its own result: no maker is known by then.
    maker_of: dict[int | None, int] = {}
    needs = np.zeros((n_slots, n_slots), bool)
    for i, slot in enumerate(slots):
        for value in slot.operation.reads:
            if (maker := maker_of.get(value)) is not None:
                needs[i] |= needs[maker]
                needs[i, maker] = True
        maker_of.update(dict.fromkeys(slot.operation.makes, i))
    readers = _readers(slots, outputs)
    nobody = np.zeros(n_slots + 1, bool)
    read_by = np.stack([readers.get(value, nobody) for value in values], axis=1)
    read_by, leaves = read_by[:n_slots], read_by[n_slots]
    made_before = needs[:, makers]
    read_later = (needs[:, :, None] & read_by[:, None]).any(0)
    outlive = made_before & read_later
    return outlive | (made_before & (read_by | leaves)), outlive


def _readers(
    slots: Sequence[Slot], outputs: Sequence[int | None]
) -> dict[int | None, Bool[np.ndarray, " readers"]]:
    """Say who reads each value, itself or under another name: operations, and last the caller."""
    n = len(slots)
    readers: dict[int | None, Any] = {}
    for value in outputs:
        readers[value] = np.arange(n + 1) == n
    for i, slot in reversed(list(enumerate(slots))):
        own = np.arange(n + 1) == i
        if slot.work.unit is Unit.FREE or slot.work.absent is True:
            for value in slot.operation.makes:
                own = own | readers.get(value, False)
        for value in slot.operation.reads:
            readers[value] = readers.get(value, False) | own
    return readers


def _not_within_others(
    sets: Bool[np.ndarray, "sets values"],
) -> Bool[np.ndarray, "kept values"]:
    """Keep sets of which no other has all."""
    sets = np.unique(sets, axis=0)
    within = (sets[:, None] <= sets[None]).all(2)
    return np.asarray(sets[within.sum(1) == 1])


def _stored(
    operation: Operation, program: Program, symbols: Mapping[str, Length], vector_bytes: int
) -> dict[int, Quantity]:
    """Bytes of each value that an operation makes in memory of its own, in whole vectors."""
    over = WRITES_OVER.get(operation.name)
    if over is not None and operation.reads[0] not in program.inputs:
        over = None
    sizes = operation.result_bytes(symbols)
    return {
        value: ceil_div(size, vector_bytes) * vector_bytes
        for i, (value, size) in enumerate(zip(operation.makes, sizes, strict=True))
        if i != over
    }


def profile(ranges: Sequence[LiveRange]) -> tuple[tuple[float, float], ...]:
    """Bytes that are live over the time of one plan.

    Returns:
        `(cycle, bytes)` wherever the number changes, ascending; it holds from that cycle on.
    """
    changes: dict[float, float] = {}
    for live in ranges:
        for cycle, size in ((live.start, live.size_bytes), (live.end, -live.size_bytes)):
            changes[float(cycle)] = changes.get(float(cycle), 0.0) + float(size)
    total, steps = 0.0, []
    for cycle in sorted(changes):
        if changes[cycle]:
            total += changes[cycle]
            steps.append((cycle, total))
    return tuple(steps)


def allocate(ranges: Sequence[LiveRange]) -> Allocation:
    """Give every value of one plan an address: first fit, largest values first.

    Returns:
        Addresses; no two values share a byte at the same time.
    """
    by_size = sorted(ranges, key=lambda live: (-live.size_bytes, live.start))
    placed: list[AddressedRange] = []
    for live in by_size:
        address = 0
        neighbours = (
            other for other in placed if other.live.start < live.end and live.start < other.live.end
        )
        for other in sorted(neighbours, key=lambda other: other.address):
            if other.address >= address + live.size_bytes:
                break
            address = max(address, int(other.address + other.live.size_bytes))
        placed.append(AddressedRange(live=live, address=address))
    placed.sort(key=lambda each: (each.live.start, each.address))
    return Allocation(
        placed=tuple(placed),
        peak_bytes=float(peak_bytes(ranges)),
        top_bytes=max((each.address + float(each.live.size_bytes) for each in placed), default=0.0),
    )
