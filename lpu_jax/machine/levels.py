"""The levels of a machine, in numbers and words, and what follows from how they are linked.

What plans and collectives compute with are the attributes of `wiring.Wiring`, from which levels are
made. Not modelled: what is in the boxes beside chips and links.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..quantities import format_bytes, format_seconds
from .wiring import Wiring


@dataclass(frozen=True, kw_only=True)
class Level:
    """Units of the level below, joined by links.

    Attributes:
        name: what one whole is called, such as `"tray"`.
        unit: what it is made of: `"chip"`, or the name of the level below.
        units: how many of them it joins.
        chips: chips of one whole, spare ones included.
        wiring: how its units are linked, in words.
        links_per_pair: links between two linked units.
        links_per_chip: links of the chip that has most, at this level alone.
        lanes_per_link: lanes that work as one link.
        link_bytes_per_s: rate of one link, one way.
        hop_s: time of one vector over a link of this level, memory to memory.
        most_hops: links that a shortest way between two chips of it may need, at most.
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


def levels_of(wiring: Wiring) -> tuple[Level, ...]:
    """List the levels that a machine has.

    Args:
        wiring: the machine.

    Returns:
        Its levels, innermost first. Where half a rack is nearer than the whole, it is a level of
        its own, although its links are of the same kind.
    """
    levels = [_node(wiring)]
    if min(wiring.nodes_per_rack, wiring.installed_nodes) > 1:
        levels += _rack(wiring)
    if wiring.n_racks > 1:
        levels.append(_racks(wiring))
    return tuple(levels)


def _node(wiring: Wiring) -> Level:
    return Level(
        name=wiring.level_names[0],
        unit="chip",
        units=wiring.node_chips,
        chips=wiring.node_chips,
        wiring="all-to-all",
        links_per_pair=1,
        links_per_chip=wiring.node_chips - 1,
        lanes_per_link=wiring.lanes_per_link[0],
        link_bytes_per_s=wiring.local_bytes_per_s,
        hop_s=wiring.local_hop_s,
        most_hops=1,
    )


def _rack(wiring: Wiring) -> list[Level]:
    """A rack; or its half and the rack, if the other half takes longer."""
    node, half_rack, rack, _ = wiring.level_names
    ports = wiring.node_ports
    nodes = min(wiring.nodes_per_rack, wiring.installed_nodes)
    half = min(wiring.nodes_per_half_rack, nodes)
    near = Level(
        name=half_rack,
        unit=node,
        units=half,
        chips=half * wiring.node_chips,
        wiring=f"all-to-all, {_EQUAL if ports.pairs_equals else _SPREAD}",
        links_per_pair=ports.n_links,
        links_per_chip=ports.most_links(half),
        lanes_per_link=wiring.lanes_per_link[1],
        link_bytes_per_s=wiring.node_link_bytes_per_s,
        hop_s=float(wiring.node_hop_s(1)),
        most_hops=_rack_hops(wiring),
    )
    if half == nodes:
        return [near]
    far = dataclasses.replace(
        near,
        name=rack,
        unit=half_rack,
        units=-(-nodes // half),
        chips=nodes * wiring.node_chips,
        links_per_pair=half * min(half, nodes - half) * ports.n_links,
        links_per_chip=ports.most_links(nodes) - near.links_per_chip,
        hop_s=float(wiring.node_hop_s(2)),
    )
    return [near, far]


def _racks(wiring: Wiring) -> Level:
    _, _, rack, racks = wiring.level_names
    ports = wiring.rack_ports
    words, links_per_pair = {
        "line": (f"line, {_EQUAL}", wiring.rack_chips),
        "node": (
            f"all-to-all, {wiring.level_names[0]}s of equal place",
            wiring.nodes_per_rack * ports.n_links,
        ),
        "rack": (f"all-to-all, {_SPREAD}", ports.n_links),
    }[wiring.rack_wiring]
    return Level(
        name=racks,
        unit=rack,
        units=wiring.n_racks,
        chips=wiring.installed_chips,
        wiring=words,
        links_per_pair=links_per_pair,
        links_per_chip=wiring.most_links[2],
        lanes_per_link=wiring.lanes_per_link[2],
        link_bytes_per_s=wiring.rack_link_bytes_per_s,
        hop_s=wiring.rack_hop_s,
        most_hops=_racks_hops(wiring),
    )


def _rack_hops(wiring: Wiring) -> int:
    """Links between any two chips of a rack, at most."""
    if wiring.nodes_per_rack == 1:
        return 1
    return 2 if wiring.node_ports.pairs_equals else 3


def _racks_hops(wiring: Wiring) -> int:
    """Links between any two chips of the machine, at most."""
    inside = _rack_hops(wiring)
    if wiring.rack_wiring == "line":
        return inside + wiring.n_racks - 1
    if wiring.rack_wiring == "node":
        # To the node of equal place, to the chip with the link, over, and on to the chip.
        return inside + (1 if wiring.rack_ports.pairs_equals else 2)
    return 2 * inside + 1


def reach_s(wiring: Wiring, n_chips: int) -> float:
    """Time in which one chip's vector can be at any of the first chips, along a shortest way.

    Args:
        wiring: the machine.
        n_chips: chips to reach, the sender included.

    Returns:
        Seconds; 0 for one chip.
    """
    if n_chips <= 1:
        return 0.0
    time_s = wiring.local_hop_s
    if n_chips > wiring.node_chips and wiring.nodes_per_rack > 1:
        half_racks = 2 if n_chips > wiring.node_chips * wiring.nodes_per_half_rack else 1
        time_s *= _rack_hops(wiring) - 1
        time_s += float(wiring.node_hop_s(half_racks))
    further_racks = -(-n_chips // wiring.rack_chips) - 1
    if not further_racks:
        return time_s
    if wiring.rack_wiring == "line":
        return time_s + further_racks * wiring.rack_hop_s
    if wiring.rack_wiring == "node":
        landing_s = 0.0 if wiring.rack_ports.pairs_equals else wiring.local_hop_s
        return time_s + wiring.rack_hop_s + landing_s
    return time_s + wiring.rack_hop_s + time_s


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
