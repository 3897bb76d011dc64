"""A schedule as a trace that Perfetto and Chrome open: processes, tracks, slices and counters.

Times are rounded to whole nanoseconds, the finest that the viewer keeps; exact cycles are in the
arguments of a slice. Knows programs, no plans. Not shown: rounds of weights after the first of a
product, which are part of its slice.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..datapath.work import Unit, choose
from .program import Program
from .schedule import Slot, Timing
from .time_report import OperationRow

#: Where the first weights of each product are shown; the others are those of the units.
INSTALLS = "MXM weights"
#: Tracks of a chip's units, top to bottom.
UNIT_TRACKS = ("MXM", INSTALLS, "VXM", "SXM", "MEM", "C2C")


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Something that occupies a track from one cycle to another."""

    track: str
    name: str
    start_cycle: float
    end_cycle: float
    args: Mapping[str, Any] = field(default_factory=dict)


class Trace:
    """Collects events of the trace event format; the same calls give the same bytes.

    Source: "Trace Event Format" of the Chromium project, phases X, C and M.
    """

    def __init__(self, clock_hz: float, about: Mapping[str, str] | None = None) -> None:
        """Start an empty trace.

        Args:
            clock_hz: the clock in which cycles are counted.
            about: what the trace shows and rests on, by name; kept beside the events.
        """
        self._clock_hz = clock_hz
        self._about = dict(about or {})
        self._events: list[dict[str, Any]] = []
        self._tracks: dict[tuple[int, str], int] = {}
        self._n_processes = 0

    def process(self, name: str) -> int:
        """Begin a process; they are shown in the order of their making. Returns its number."""
        self._n_processes += 1
        pid = self._n_processes
        self._meta("process_name", pid, 0, {"name": name})
        self._meta("process_sort_index", pid, 0, {"sort_index": pid})
        return pid

    def add(self, pid: int, slices: Sequence[Slice], start_cycle: float = 0.0) -> None:
        """Put slices on the tracks of a process, shifted by `start_cycle`.

        Tracks are shown in the order of their first slice. Slices of one track must not overlap.
        """
        for each in slices:
            begin = self._nanoseconds(start_cycle + each.start_cycle)
            end = self._nanoseconds(start_cycle + each.end_cycle)
            self._events.append(
                {
                    "ph": "X",
                    "name": each.name,
                    "pid": pid,
                    "tid": self.track(pid, each.track),
                    "ts": begin / 1000,
                    "dur": (end - begin) / 1000,
                    "args": dict(each.args),
                }
            )

    def count(self, pid: int, name: str, cycle: float, value: float) -> None:
        """Set a counter of a process."""
        ts = self._nanoseconds(cycle) / 1000
        args = {"value": value}
        self._events.append({"ph": "C", "name": name, "pid": pid, "tid": 0, "ts": ts, "args": args})

    def track(self, pid: int, name: str) -> int:
        """Find a track of a process by name, or begin it. Returns its number."""
        if (pid, name) not in self._tracks:
            tid = 1 + sum(owner == pid for owner, _ in self._tracks)
            self._tracks[pid, name] = tid
            self._meta("thread_name", pid, tid, {"name": name})
            self._meta("thread_sort_index", pid, tid, {"sort_index": tid})
        return self._tracks[pid, name]

    def to_json(self) -> str:
        """The trace as JSON text, one event on each line."""
        lines = ",\n".join(json.dumps(event, separators=(",", ":")) for event in self._events)
        about = json.dumps(self._about)
        return f'{{"displayTimeUnit":"ns","otherData":{about},"traceEvents":[\n{lines}\n]}}\n'

    def _meta(self, name: str, pid: int, tid: int, args: dict[str, Any]) -> None:
        self._events.append({"ph": "M", "name": name, "pid": pid, "tid": tid, "args": args})

    def _nanoseconds(self, cycle: float) -> int:
        return round(cycle / self._clock_hz * 1e9)


def unit_slices(
    program: Program,
    timing: Timing,
    rows: Sequence[OperationRow],
    names: Sequence[str],
    transit_cycles: float,
) -> tuple[Slice, ...]:
    """Show each operation on its unit, for as long as the unit is occupied.

    Args:
        program: the program.
        timing: its schedule, for one plan.
        rows: the operations that take a unit, from `time_report.operation_rows`.
        names: what to call each of them.
        transit_cycles: from one unit to the next.
    """
    slots = [slot for slot in timing.slots if slot.work.unit is not Unit.FREE]
    slices = [
        Slice(
            track=row.unit,
            name=name,
            start_cycle=float(slot.start),
            end_cycle=occupied_until(slot),
            args={
                "operation": row.name,
                "bound by": row.bound_by,
                "busy cycles": row.busy_cycles,
                "latency cycles": float(slot.work.latency_cycles),
                "bytes": row.moved_bytes,
                "status": row.status,
                "assumed": ", ".join(row.assumed),
            },
        )
        for slot, row, name in zip(slots, rows, names, strict=True)
        if not slot.work.absent
    ]
    called = dict(zip(map(id, slots), names, strict=True))
    return (*slices, *_installs(program, timing, called, transit_cycles))


def occupied_until(slot: Slot) -> float:
    """When the unit can take the next operation; a link only when the last vector has arrived."""
    if slot.work.unit is Unit.C2C:
        return float(slot.last)
    return float(slot.last) - float(choose(slot.work.absent, 0.0, slot.work.latency_cycles))


def _installs(
    program: Program, timing: Timing, names: Mapping[int, str], transit_cycles: float
) -> Iterator[Slice]:
    """Show when the first round of weights of each product is installed: as early as possible."""
    known: set[int | None] = {None, *program.inputs}
    made: dict[int | None, float] = {}
    buffer_free = 0.0
    for slot in timing.slots:
        work, operation = slot.work, slot.operation
        if work.stationary is not None:
            weights = operation.reads[work.stationary]
            there = 0.0 if weights in known else made[weights] + transit_cycles
            begin = max(buffer_free, there)
            yield Slice(
                track=INSTALLS,
                name=f"first weights of {names[id(slot)]}",
                start_cycle=begin,
                end_cycle=begin + float(work.install_cycles),
                args={"cycles": float(work.install_cycles)},
            )
            buffer_free = occupied_until(slot) - float(work.drain_cycles)
        made.update(dict.fromkeys(operation.makes, float(slot.last)))
        if operation.result_known:
            known.update(operation.makes)
