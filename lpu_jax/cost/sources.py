"""What the cost of each operation rests on: the constants of the machine that its cost rule reads.

Rules are run once more on a chip that notes which of its fields are read. Not known: which constant
of the links a collective used; it is taken to rest on all of them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ..datapath.work import Length, Unit
from ..machine.chip import ChipSpec, MxmMode
from ..provenance import Constant, constants_of, weakest
from .placed_machine import PlacedMachine
from .program import Program


class _ObservedChip(ChipSpec):
    """A chip that notes which of its constants are read."""

    def __getattribute__(self, name: str) -> Any:
        # Fields of a frozen dataclass cannot be set, so the notes lie beside them.
        object.__getattribute__(self, "__dict__").setdefault("_read", set()).add(name)
        return object.__getattribute__(self, name)

    def mxm_mode(self, operand: str) -> MxmMode:
        """Look up a mode without reading those of other operands."""
        mode: MxmMode | None = getattr(self, f"mxm_{operand}", None)
        return super().mxm_mode(operand) if mode is None else mode


def constants_read(
    program: Program, machine: PlacedMachine, symbols: Mapping[str, Length] | None = None
) -> tuple[tuple[Constant, ...], ...]:
    """List the constants that the cost rule of each operation reads, for one plan.

    Args:
        program: the program.
        machine: chip and links.
        symbols: a number for each symbol of the program.

    Returns:
        For each operation, in program order, its constants in the order of their declaration. An
        operation without work rests on none.
    """
    chip = _ObservedChip(**vars(machine.chip))
    observed = replace(machine, system=replace(machine.system, chip=chip))
    of_chip, of_links = constants_of(machine.chip), constants_of(machine.topology)
    found: list[tuple[Constant, ...]] = []
    for operation in program.operations:
        notes: set[str] = vars(chip)["_read"]
        notes.clear()
        work = operation.work(observed, symbols or {})
        works = work.unit is not Unit.FREE and not work.absent
        read = tuple(c for c in of_chip if c.name in notes) if works else ()
        found.append(read + of_links if works and work.unit is Unit.C2C else read)
    return tuple(found)


def worst_status(constants: Iterable[Constant]) -> str:
    """The weakest status among constants, published before derived before assumed; `-` for none."""
    return weakest(c.status for c in constants)
