"""Say what a system is made of: its chip, its levels of links, and what is assumed about them.

Not described: what plans do with it.
"""

from typing import Any

from ..provenance import Constant
from ..quantities import format_bytes, format_quantity
from .chip import ChipSpec
from .levels import Level, levels_of, table
from .system import System
from .topology import Topology
from .uncertainty import uncertain


def describe(system: System) -> dict[str, Any]:
    """Describe a system as plain values.

    Args:
        system: the system.

    Returns:
        Name, chip, counts, memory, lanes, the levels of its links (none for GPUs), and every
        constant with its source.
    """
    links: dict[str, Any] = {}
    levels: tuple[Level, ...] = ()
    if system.lpus is not None:
        chip, topology = system.lpus
        levels = levels_of(topology)
        links = {
            "installed_chips": topology.installed_chips,
            "spare_chips": topology.spare_nodes * topology.node_chips,
            "lanes_per_chip": topology.lanes_per_chip,
            "lanes_of_chip": chip.c2c_lanes,
        }
    return {
        "name": system.name,
        "chip": system.chip.name,
        "chips": system.n_chips,
        "sram_bytes": system.memory_bytes,
        "memory": system.chip.memory_name,
        "topology": system.topology.family,
        **links,
        "levels": [level.as_dict() for level in levels],
        "note": system.note,
        "constants": [constant.as_dict() for constant in system.constants()],
    }


def describe_text(system: System) -> str:
    """Describe a system as text for a terminal.

    Args:
        system: the system.

    Returns:
        A line on the chips, the table of levels, and what sources leave open.
    """
    lines = [
        f"{system.name}: {system.n_chips} x {system.chip.title}, "
        f"{format_bytes(system.memory_bytes)} {system.chip.memory_name}"
    ]
    if system.note:
        lines.append(system.note)
    if system.lpus is not None:
        lines += _links(*system.lpus)
    constants = system.constants()
    assumed = sum(constant.is_assumed for constant in constants)
    lines += ["", f"{assumed} of {len(constants)} numbers are assumed."]
    unsure = uncertain(system.topology)
    if unsure:
        lines += ["Of the links, sources leave open:", *map(_open_number, unsure)]
    return "\n".join(lines)


def _open_number(constant: Constant) -> str:
    def written(value: Any) -> str:
        return value if isinstance(value, str) else format_quantity(value, constant.unit)

    others = (
        " or ".join(map(written, constant.options))
        if constant.options
        else f"{written(constant.low)} to {written(constant.high)}"
    )
    return (
        f"  {constant.name} = {written(constant.value)} ({others}), {constant.status}: "
        f"{constant.source}"
    )


def _links(chip: ChipSpec, topology: Topology) -> list[str]:
    lines = []
    spare, unused = topology.spare_nodes, topology.installed_chips - topology.n_chips
    if spare:
        lines.append(
            f"{topology.n_nodes} + {spare} {topology.level_names[0]}s: {topology.installed_chips} "
            f"chips are installed, {spare * topology.node_chips} of them spare."
        )
    elif unused:
        lines.append(
            f"{topology.installed_chips} chips are installed; {unused} only forward for others."
        )
    return [
        *lines,
        "",
        table(levels_of(topology)),
        "",
        f"Lanes of a chip: {topology.lanes_per_chip} of {chip.c2c_lanes} "
        f"({topology.lanes_in_words}).",
        "Links carry the same rate each way. Which chips they end on is assumed.",
    ]
