"""When a function runs: the time of any JAX function on one chip of a system, with its reasons.

The report has a row for each operation, the use of each unit, and every assumption that took part:
constants of the machine that no public source states, and rules for ordinary JAX primitives.
Not modelled: what happens before the first and after the last operation, such as host transfers.
"""

import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr
from jax.sharding import PartitionSpec as P

from .. import mesh as chip_mesh
from ..arguments import described
from ..datapath.work import Length, Unit, Work
from ..errors import CostError, MeshError
from ..machine.catalogue import system as system_named
from ..machine.system import System
from ..mesh import ChipMesh
from ..provenance import Constant, constants_of
from ..quantities import format_bytes, format_seconds
from .placed_machine import Groups
from .program import Program, read
from .schedule import Slot, Timing
from .sources import worst_status
from .timing import Placed, constants_read, timing
from .timing import placed as placed_on


@dataclass(frozen=True, kw_only=True)
class OperationRow:
    """One operation of the program as scheduled, in cycles from its start."""

    name: str
    unit: str
    start_cycle: float
    busy_cycles: float  #: how long the unit takes vectors
    end_cycle: float  #: when the last result vector has been made
    #: by how much it moves the end of the program; over all operations these add up to the time
    adds_cycles: float
    moved_bytes: float  #: read from memory or sent over links
    share: float  #: of the whole time that its unit is busy with it
    bound_by: str  #: what it takes this long for
    status: str  #: the weakest of the constants its cost rests on: published, derived or assumed
    assumed: tuple[str, ...]  #: names of those that are assumed


@dataclass(frozen=True, kw_only=True)
class Report:
    """The time of one program on one chip.

    `lower` is what it takes with every unit perfectly overlapped, `upper` with nothing overlapped.
    """

    system: str
    n_chips: int
    clock_hz: float
    cycles: float
    lower_cycles: float
    upper_cycles: float
    operations: tuple[OperationRow, ...]
    utilisation: dict[str, float]  #: busy share of the time, by unit
    assumed: tuple[Constant, ...]  #: constants without a public source that were read
    assumed_rules: tuple[str, ...]  #: ordinary JAX primitives that were priced by assumed rules
    note: str = ""  #: what the numbers are, where they are not a schedule of an LPU

    @property
    def seconds(self) -> float:
        """Scheduled time."""
        return self.cycles / self.clock_hz

    @property
    def lower_s(self) -> float:
        """Lower bound of the time."""
        return self.lower_cycles / self.clock_hz

    @property
    def upper_s(self) -> float:
        """Upper bound of the time."""
        return self.upper_cycles / self.clock_hz

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return plain | {
            "seconds": self.seconds,
            "lower_s": self.lower_s,
            "upper_s": self.upper_s,
            "operations": [asdict(row) for row in self.operations],
            "utilisation": dict(self.utilisation),
            "assumed": [asdict(constant) for constant in self.assumed],
            "assumed_rules": list(self.assumed_rules),
        }

    def table(self) -> str:
        """The report as text: the time, its bounds, a line for each operation, the assumptions."""
        lines = [
            f"{format_seconds(self.seconds)} ({self.cycles:.0f} cycles) on {self.system}, "
            f"{self.n_chips} chip{'s' if self.n_chips > 1 else ''}; "
            f"between {format_seconds(self.lower_s)} and {format_seconds(self.upper_s)}",
            "",
            f"{'start':>9} {'busy':>9} {'end':>9} {'share':>6} {'moved':>9}  "
            f"unit {'bound by':<13} operation",
        ]
        lines += [
            f"{row.start_cycle:>9.0f} {row.busy_cycles:>9.0f} {row.end_cycle:>9.0f} "
            f"{row.share:>6.1%} {format_bytes(row.moved_bytes, digits=3):>9}  "
            f"{row.unit:<4} {row.bound_by:<13} {_short(row.name)}"
            for row in self.operations
        ]
        used = ", ".join(f"{unit} {share:.1%}" for unit, share in self.utilisation.items())
        lines += ["", f"busy: {used or 'nothing'}"]
        if self.assumed:
            names = ", ".join(f"{c.name} {_value(c)}".strip() for c in self.assumed)
            lines.append(_wrapped(f"assumed constants: {names}"))
        if self.assumed_rules:
            rules = ", ".join(self.assumed_rules)
            lines.append(_wrapped(f"assumed rules of JAX primitives: {rules}"))
        if self.note:
            lines.append(_wrapped(self.note))
        return "\n".join(lines)


def time(
    fn: Callable[..., Any],
    *args: Any,
    system: str | System,
    mesh: ChipMesh | None = None,
    in_specs: Any = None,
    out_specs: Any = None,
) -> Report:
    """Time any JAX function on one chip of a system, without running it.

    Args:
        fn: the program of one chip. With a mesh it is called as `fn(*shards, axes=axes)`.
        *args: arrays or `jax.ShapeDtypeStruct`s; with a mesh they are global.
        system: a named system, or one of your own.
        mesh: the chips that run the program together; None for a single chip.
        in_specs: with a mesh, how each argument is split; None: all chips hold all of it.
        out_specs: the same for the results; None: they may lie as they like.

    Returns:
        The scheduled time, its bounds, and what they rest on.

    Raises:
        CostError: an operation has no cost rule, and the sentence names its primitive; it is no
            function, or does not take these arguments.
        PlanError: the system has fewer chips than the mesh.
        MeshError: not a mesh, or one of a machine with other nodes or racks; specs without one.
        UnknownNameError: there is no such system.

    Fidelity:
        Approximate: the schedule is static and exact for the stated rules; rules of ordinary JAX
        primitives are assumed.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jax.ShapeDtypeStruct((16, 320), jnp.float16)
        >>> time(lambda x: x @ x.T, x, system="groq-node").operations[-1].unit
        'MXM'
    """
    if mesh is None and (in_specs is not None or out_specs is not None):
        raise MeshError("time: in_specs and out_specs were given without a mesh.")
    _check_program(fn, args, mesh)
    whole = system if isinstance(system, System) else system_named(system)
    if mesh is not None:
        chip_mesh.check_mesh("time", mesh)
    n_chips = 1 if mesh is None else mesh.n_chips
    machine = placed_on(whole, (Groups.first(whole, n_chips),))
    if mesh is not None:
        _check_tiers(mesh, whole)
    program = read(_trace(fn, args, mesh, in_specs, out_specs))
    return report(program, timing(program, machine), machine)


def report(
    program: Program,
    timing: Timing,
    machine: Placed,
    symbols: Mapping[str, Length] | None = None,
) -> Report:
    """Describe a schedule of one program on one chip, with what its numbers rest on.

    Args:
        program: what was scheduled.
        timing: its schedule, for one plan.
        machine: what it was scheduled on, for one plan.
        symbols: a number for each symbol of the program.
    """
    cycles, chip = float(timing.cycles), machine.chip
    read = constants_read(program, machine, symbols)
    # Crossing from unit to unit is in every schedule.
    names = {"transit_cycles", *(constant.name for row in read for constant in row)}
    constants = (*constants_of(chip), *constants_of(machine.system.topology))
    return Report(
        system=machine.system.name,
        n_chips=machine.groups[0].chips,
        clock_hz=float(chip.clock_hz),
        cycles=cycles,
        lower_cycles=float(timing.lower_cycles),
        upper_cycles=float(timing.upper_cycles),
        operations=operation_rows(timing, read),
        utilisation={
            unit.value: float(busy) / cycles for unit, busy in timing.busy_cycles.items() if busy
        },
        assumed=tuple(c for c in constants if c.name in names and c.status == "assumed"),
        assumed_rules=program.ordinary,
        note=machine.system.note,
    )


def operation_rows(timing: Timing, read: Sequence[Sequence[Constant]]) -> tuple[OperationRow, ...]:
    """Describe the operations of a schedule that take a unit, in program order.

    Args:
        timing: the schedule, for one plan.
        read: the constants behind each operation, from `sources.constants_read`.
    """
    cycles, frontier = float(timing.cycles), 0.0
    rows = []
    for slot, constants in zip(timing.slots, read, strict=True):
        if slot.work.unit is Unit.FREE:
            continue
        adds = max(0.0, float(slot.last) - frontier)
        frontier += adds
        rows.append(_row(slot, cycles, adds, constants))
    return tuple(rows)


def bound_by(work: Work) -> str:
    """What an operation takes its time for, for one plan: its largest limit, or its latency.

    The first of equal limits counts; an operation without work is bound by nothing.
    """
    if work.absent:
        return "-"
    limits = {name: float(cycles) for name, cycles in work.limits.items()}
    reason = max(limits, key=lambda name: limits[name], default="-")
    if float(work.latency_cycles) > float(work.busy_cycles):
        return "link latency" if work.unit is Unit.C2C else "latency"
    return reason


def _check_tiers(mesh: ChipMesh, system: System) -> None:
    """Refuse a mesh of a machine that makes sums across chips in another order."""
    if mesh.tiers != chip_mesh.tiers_of(system.topology, mesh.n_chips):
        theirs, ours = (
            " and ".join(map(str, topology.tiers)) for topology in (mesh.topology, system.topology)
        )
        raise MeshError(
            f"time: the mesh is of a machine with {theirs} chips in a node and a rack; "
            f"{system.name} has {ours}."
        )


def _check_program(fn: Any, args: tuple[Any, ...], mesh: ChipMesh | None) -> None:
    """Refuse what cannot be traced; programs of a mesh are checked where they are traced.

    Raises:
        CostError: it is no function, does not take so many arguments, or one holds no array.
    """
    if not callable(fn):
        raise CostError(f"time: fn is {described(fn)}; it must be a function.")
    for path, leaf in jax.tree_util.tree_flatten_with_path(args)[0]:
        is_text = getattr(getattr(leaf, "dtype", None), "kind", "") in "OSUMm" and hasattr(
            leaf, "dtype"
        )
        if is_text or not (
            hasattr(leaf, "shape") or isinstance(leaf, bool | int | float | complex)
        ):
            raise CostError(
                f"time: args{jax.tree_util.keystr(path)} is {described(leaf)}; it must be an array "
                "or a jax.ShapeDtypeStruct."
            )
    if mesh is not None:
        return
    try:
        inspect.signature(fn).bind(*args)
    except TypeError as error:
        raise CostError(f"time: fn cannot take {len(args)} arguments: {error}.") from None
    except ValueError:
        return  # a callable of C has no signature


def _trace(
    fn: Callable[..., Any], args: tuple[Any, ...], mesh: ChipMesh | None, *specs: Any
) -> ClosedJaxpr:
    if mesh is None:
        return jax.make_jaxpr(fn)(*args)
    in_specs, out_specs = specs
    return chip_mesh.trace(fn, mesh, P() if in_specs is None else in_specs, out_specs, *args)


def _row(slot: Slot, cycles: float, adds: float, constants: Sequence[Constant]) -> OperationRow:
    busy = float(slot.work.busy_cycles)
    return OperationRow(
        name=slot.operation.name,
        unit=slot.work.unit.value,
        start_cycle=float(slot.start),
        busy_cycles=busy,
        end_cycle=float(slot.last),
        adds_cycles=adds,
        moved_bytes=float(slot.work.moved_bytes),
        share=busy / cycles if cycles else 0.0,
        bound_by=bound_by(slot.work),
        status=worst_status(constants),
        assumed=tuple(c.name for c in constants if c.status == "assumed"),
    )


def _value(constant: Constant) -> str:
    value = constant.value
    if not isinstance(value, int | float):
        return ""
    unit = "" if constant.unit == "1" else f" {constant.unit}"
    low_high = "" if constant.low is None else f" ({constant.low:g}..{constant.high:g})"
    return f"{value:g}{unit}{low_high}"


_LONGEST_NAME = 50
_TEXT_WIDTH = 120


def _wrapped(text: str) -> str:
    return textwrap.fill(text, _TEXT_WIDTH, subsequent_indent="  ")


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}..."
