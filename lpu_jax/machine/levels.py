"""The levels of a machine, in numbers and words, and what follows from how they are linked.

What plans and collectives compute with are the attributes of a `Topology`, from which levels are
made. Not modelled: what is in the boxes beside chips and links.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..quantities import format_bytes, format_seconds
from .topology import Topology


@dataclass(frozen=True, kw_only=True)
class Level:
    """Units of the level below, joined by links.

    Attributes:
        name: what one unit of this level is called, such as `"tray"`.
        unit: what it is made of: `"chip"`, or the name of the level below.
        units: how many of them it joins.
        chips: chips of one such unit, spare ones included.
        wiring: how its units are linked, in words.
        links_per_pair: links between two linked units.
        links_per_chip: links of the chip that has most, at this level alone.
        lanes_per_link: lanes that work as one link.
        link_bytes_per_s: rate of one link, one way.
        hop_s: time of one vector over a link of this level, memory to memory.
        most_hops: links that a shortest path between two chips of it may need, at most.
    """

    name: str
    unit: str
    units: int
    chips: int
    wiring: str
    links_per_pair: int
    links_per_chip: int
    lanes_per_link: int
    link_bytes_per_s: float
    hop_s: float
    most_hops: int

    def as_dict(self) -> dict[str, Any]:
        """The level as plain values, for JSON."""
        return dataclasses.asdict(self)


_EQUAL = "chips of equal position"
_SPREAD = "links spread over chips"


def levels_of(topology: Topology) -> tuple[Level, ...]:
    """List the levels that a machine has.

    Args:
        topology: the machine.

    Returns:
        Its levels, innermost first. Where half a rack is nearer than the whole, it is a level of
        its own, although its links are of the same kind.
    """
    levels = [_node(topology)]
    if min(topology.nodes_per_rack, topology.installed_nodes) > 1:
        levels += _rack(topology)
    if topology.n_racks > 1:
        levels.append(_racks(topology))
    return tuple(levels)


def _node(topology: Topology) -> Level:
    return Level(
        name=topology.level_names[0],
        unit="chip",
        units=topology.node_chips,
        chips=topology.node_chips,
        wiring="all-to-all",
        links_per_pair=1,
        links_per_chip=topology.node_chips - 1,
        lanes_per_link=topology.lanes_per_link[0],
        link_bytes_per_s=topology.local_bytes_per_s,
        hop_s=topology.local_hop_s,
        most_hops=1,
    )


def _rack(topology: Topology) -> list[Level]:
    """A rack; or its half and the rack, if the other half takes longer."""
    node, half_rack, rack, _ = topology.level_names
    ports = topology.node_ports
    nodes = min(topology.nodes_per_rack, topology.installed_nodes)
    half = min(topology.nodes_per_half_rack, nodes)
    near = Level(
        name=half_rack,
        unit=node,
        units=half,
        chips=half * topology.node_chips,
        wiring=f"all-to-all, {_EQUAL if ports.pairs_equals else _SPREAD}",
        links_per_pair=ports.n_links,
        links_per_chip=ports.most_links(half),
        lanes_per_link=topology.lanes_per_link[1],
        link_bytes_per_s=topology.node_link_bytes_per_s,
        hop_s=float(topology.node_hop_s(1)),
        most_hops=topology.rack_hops,
    )
    if half == nodes:
        return [near]
    far = dataclasses.replace(
        near,
        name=rack,
        unit=half_rack,
        units=-(-nodes // half),
        chips=nodes * topology.node_chips,
        links_per_pair=half * min(half, nodes - half) * ports.n_links,
        links_per_chip=ports.most_links(nodes) - near.links_per_chip,
        hop_s=float(topology.node_hop_s(2)),
    )
    return [near, far]


def _racks(topology: Topology) -> Level:
    _, _, rack, racks = topology.level_names
    ports = topology.rack_ports
    words, links_per_pair = {
        "line": (f"line, {_EQUAL}", topology.rack_chips),
        "ring": (f"ring, {_EQUAL}", topology.rack_chips),
        "node": (
            f"all-to-all, {topology.level_names[0]}s of equal place",
            topology.nodes_per_rack * ports.n_links,
        ),
        "rack": (f"all-to-all, {_SPREAD}", ports.n_links),
    }[topology.rack_wiring]
    return Level(
        name=racks,
        unit=rack,
        units=topology.n_racks,
        chips=topology.installed_chips,
        wiring=words,
        links_per_pair=links_per_pair,
        links_per_chip=topology.most_links[2],
        lanes_per_link=topology.lanes_per_link[2],
        link_bytes_per_s=topology.rack_link_bytes_per_s,
        hop_s=topology.rack_hop_s,
        most_hops=_racks_hops(topology),
    )


def _racks_hops(topology: Topology) -> int:
    """Links between any two chips of the machine, at most."""
    inside = topology.rack_hops
    if topology.racks_in_chain:
        return inside + int(topology.farthest_racks(0, topology.n_racks - 1))
    if topology.rack_wiring == "node":
        # To the node of equal place, to the chip with the link, over, and on to the chip.
        return inside + (1 if topology.rack_ports.pairs_equals else 2)
    return 2 * inside + 1


_HEAD = (
    "level",
    "joins",
    "chips",
    "wiring",
    "links/pair",
    "links/chip",
    "lanes",
    "link",
    "hop",
    "hops",
)


def table(levels: Sequence[Level]) -> str:
    """Write levels as a table of text.

    Args:
        levels: the levels, innermost first.

    Returns:
        One line per level under a line of headings.
    """
    rows = [
        (
            level.name,
            f"{level.units} x {level.unit}",
            str(level.chips),
            level.wiring,
            str(level.links_per_pair),
            str(level.links_per_chip),
            str(level.lanes_per_link),
            f"{format_bytes(level.link_bytes_per_s)}/s",
            format_seconds(level.hop_s),
            f"<= {level.most_hops}",
        )
        for level in levels
    ]
    widths = [max(len(row[i]) for row in (_HEAD, *rows)) for i in range(len(_HEAD))]
    left = {0, 1, 3}
    lines = (
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (_HEAD, *rows)
    )
    return "\n".join(lines)
