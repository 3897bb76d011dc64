"""Say what a system is made of: its chip, its levels of links, and what is assumed about them.

A mixed system is its two systems, and the network between them.

Not described: what plans do with it.
"""

from typing import Any

from ..provenance import Constant, assumed, constants_of
from ..quantities import format_bytes, format_quantity
from .chip import ChipSpec
from .levels import Level, levels_of, table
from .mixed import Machine
from .system import System
from .topology import Topology
from .uncertainty import uncertain


def describe(machine: Machine) -> dict[str, Any]:
    """Describe a system as plain values.

    Args:
        machine: the system.

    Returns:
        Name, chip, counts, memory, lanes, the levels of its links (none for GPUs), and every
        constant with its source. Of a mixed one: name, counts, the same of each of its two systems,
        and the constants of the network.
    """
    if isinstance(machine, System):
        return _describe_one(machine)
    return {
        "name": machine.name,
        "chips": machine.n_chips,
        "pools": {pool: _describe_one(system) for pool, system in machine.pools.items()},
        "dram_bytes": machine.dram_bytes,
        "note": machine.note,
        "link": [constant.as_dict() for constant in constants_of(machine.link)],
    }


def describe_text(machine: Machine) -> str:
    """Describe a system as text for a terminal.

    Args:
        machine: the system.

    Returns:
        A line on the chips, the table of levels, and what sources leave open; of a mixed system
        that of both, and every number of the network with its source.
    """
    if isinstance(machine, System):
        return _one_text(machine)
    constants = machine.constants()
    return "\n\n".join(
        (
            f"{machine.name}: {machine.gpus.name} beside {machine.lpus.name}, with "
            f"{format_bytes(machine.dram_bytes)} DRAM beside the LPUs",
            *map(_one_text, machine.pools.values()),
            "\n".join(
                ("The network between them, one way:", *map(_number, constants_of(machine.link)))
            ),
            f"{len(assumed(constants))} of all {len(constants)} numbers are assumed.",
        )
    )


def _describe_one(system: System) -> dict[str, Any]:
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


def _one_text(system: System) -> str:
    lines = [
        f"{system.name}: {system.n_chips} x {system.chip.title}, "
        f"{format_bytes(system.memory_bytes)} {system.chip.memory_name}"
    ]
    if system.note:
        lines.append(system.note)
    if system.lpus is not None:
        lines += _links(*system.lpus)
    if system.dram is not None:
        own = map(_number, constants_of(system.dram))
        lines += ["", "The DRAM beside the LPUs, over a lane of each:", *own]
    constants = system.constants()
    lines += ["", f"{len(assumed(constants))} of {len(constants)} numbers are assumed."]
    unsure = uncertain(system.topology)
    if unsure:
        lines += ["Of the links, sources leave open:", *map(_number, unsure)]
    return "\n".join(lines)


def _number(constant: Constant) -> str:
    """Write a constant with what else it could be, its status and its source."""

    def written(value: Any) -> str:
        return value if isinstance(value, str) else format_quantity(value, constant.unit)

    others = ""
    if constant.options:
        others = f" ({' or '.join(map(written, constant.options))})"
    elif constant.is_uncertain:
        others = f" ({written(constant.low)} to {written(constant.high)})"
    return (
        f"  {constant.name} = {written(constant.value)}{others}, {constant.status}: "
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
