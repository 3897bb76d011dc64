"""Machines of a user's own: one to three levels of units, each linked all-to-all or in a line.

A machine is built from a list of `LevelSpec`, innermost first, and is a `Topology` like any other,
so that placement, collectives and search work on it unchanged. Not modelled: rings, trees, meshes,
switches, and a line anywhere but outermost.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..errors import PlanError
from ..provenance import CALLER, Constant, const, vary
from ..quantities import format_given
from .ports import PortMap
from .topology import RackWiring, Topology

WIRINGS = ("all-to-all", "line")
MOST_LEVELS = 3
#: Larger machines and more links are refused: more than any machine that exists, and enough to
#: keep lists of links in memory.
MOST_CHIPS = 65_536
MOST_LINKS = 10_000_000
_ABSENT = "the machine has no such level"
_PLACES = ("inner", "middle", "outer")


@dataclass(frozen=True, kw_only=True)
class LevelSpec:
    """One level as a user gives it.

    Attributes:
        name: what one unit of this level is called, such as `"board"`.
        units: units it joins: chips, or units of the level before.
        links: links between each pair of units; in a line, to each neighbour.
        lanes: lanes that a link takes on the chips at its ends.
        link_bytes_per_s: rate of one link, one way.
        hop_s: time of one vector over a link, memory to memory.
        wiring: `"all-to-all"` or `"line"`.
    """

    name: str
    units: int
    links: int
    lanes: int
    link_bytes_per_s: float
    hop_s: float
    wiring: str = "all-to-all"

    def __post_init__(self) -> None:
        """Refuse what no level can be."""
        if not (self.name.isprintable() and 0 < len(self.name) <= MOST_NAME):
            raise self.error("name", self.name, f"1 to {MOST_NAME} printable characters")
        if not 2 <= self.units <= MOST_CHIPS:
            raise self.error(
                "units", self.units, f"2 to {MOST_CHIPS} (one unit is not a level: leave it out)"
            )
        if not 1 <= self.links <= MOST_LINKS:
            raise self.error(
                "links",
                self.links,
                f"1 to {MOST_LINKS}: units that no link reaches are not connected",
            )
        if self.lanes < 1:
            raise self.error("lanes", self.lanes, "at least 1")
        if self.wiring not in WIRINGS:
            raise self.error("wiring", self.wiring, " or ".join(map(repr, WIRINGS)))
        if not (self.link_bytes_per_s > 0 and math.isfinite(self.link_bytes_per_s)):
            raise self.error("bandwidth", self.link_bytes_per_s, "above 0 and finite, in bytes/s")
        if not (self.hop_s > 0 and math.isfinite(self.hop_s)):
            raise self.error("latency", self.hop_s, "above 0 and finite, in seconds")

    def error(self, key: str, given: object, allowed: str) -> PlanError:
        """Make the error for one of its values.

        Args:
            key: which value, as a file of the user names it.
            given: the value.
            allowed: what it must be.
        """
        return PlanError(
            f"level {format_given(self.name)}: {key} must be {allowed}, got {format_given(given)}"
        )


#: Of a level, in characters.
MOST_NAME = 40


@dataclass(frozen=True, kw_only=True)
class CustomTopology(Topology):
    """A machine of a user's own; make one with `custom_topology`.

    `inner` is the level of chips, `middle` an all-to-all of its units, and `outer` a second
    all-to-all, or a line of either. Parallel links between two chips of the inner level, and
    between two units of a line, work as one link of their combined rate.
    """

    family: ClassVar[str] = "custom"

    names: tuple[str, str, str] = ("node", "rack", "racks")
    outer_in_line: bool = True

    inner_units: int = const(1, "1", "derived", _ABSENT)
    inner_links: int = const(1, "1", "derived", _ABSENT)
    inner_lanes: int = const(0, "1", "derived", _ABSENT)
    inner_link_bytes_per_s: float | None = const(None, "B/s", "derived", _ABSENT)
    inner_hop_s: float = const(0.0, "s", "derived", _ABSENT)
    middle_units: int = const(1, "1", "derived", _ABSENT)
    middle_links: int = const(1, "1", "derived", _ABSENT)
    middle_lanes: int = const(0, "1", "derived", _ABSENT)
    middle_link_bytes_per_s: float | None = const(None, "B/s", "derived", _ABSENT)
    middle_hop_s: float = const(0.0, "s", "derived", _ABSENT)
    outer_units: int = const(1, "1", "derived", _ABSENT)
    outer_links: int = const(1, "1", "derived", _ABSENT)
    outer_lanes: int = const(0, "1", "derived", _ABSENT)
    outer_link_bytes_per_s: float | None = const(None, "B/s", "derived", _ABSENT)
    outer_hop_s: float = const(0.0, "s", "derived", _ABSENT)

    @property
    def max_chips(self) -> int:
        """Chips that the levels hold."""
        return self.rack_chips * self.outer_units

    @property
    def level_names(self) -> tuple[str, str, str, str]:
        """The user's own names; there is no half rack."""
        node, rack, racks = self.names
        return node, rack, rack, racks

    @property
    def node_chips(self) -> int:
        """Chips of the inner level."""
        return self.inner_units

    @property
    def nodes_per_rack(self) -> int:
        """Inner units of the middle level."""
        return self.middle_units

    @property
    def _line_links(self) -> int:
        """Parallel links from each chip to the chip of equal position of a neighbour."""
        return max(1, self.outer_links // self.rack_chips)

    @property
    def lanes_per_link(self) -> tuple[int, int, int]:
        """Lanes of the links that work as one."""
        outer = self.outer_lanes * (self._line_links if self.outer_in_line else 1)
        return self.inner_lanes * self.inner_links, self.middle_lanes, outer

    @property
    def local_bytes_per_s(self) -> float:
        """Rate of all links between two chips of the inner level."""
        return self.inner_links * _rate(self.inner_link_bytes_per_s)

    @property
    def node_link_bytes_per_s(self) -> float:
        """Rate of a link of the middle level."""
        return _rate(self.middle_link_bytes_per_s)

    @property
    def rack_link_bytes_per_s(self) -> float:
        """Rate of a link of the outer level; in a line, of all links between two chips."""
        parallel = self._line_links if self.outer_in_line else 1
        return parallel * _rate(self.outer_link_bytes_per_s)

    @property
    def local_hop_s(self) -> float:
        """Latency of the inner level."""
        return self.inner_hop_s

    @property
    def node_step_s(self) -> float:
        """Latency of the middle level."""
        return self.middle_hop_s

    @property
    def rack_hop_s(self) -> float:
        """Latency of the outer level."""
        return self.outer_hop_s

    @functools.cached_property
    def node_ports(self) -> PortMap:
        """Links of the middle level, spread evenly over the chips of a unit (assumed)."""
        if self.middle_units == 1:
            return _spread(self.node_chips, 1, self.node_chips)
        return _spread(self.node_chips, self.middle_units - 1, self.middle_links)

    @property
    def rack_wiring(self) -> RackWiring:
        """Inner units of equal place are linked where the links divide evenly among them."""
        if self.outer_in_line:
            return "line"
        return "rack" if self.outer_links % self.middle_units else "node"

    @functools.cached_property
    def rack_ports(self) -> PortMap:
        """Links of the outer level, spread evenly over chips (assumed)."""
        peers = max(1, self.outer_units - 1)
        if self.rack_wiring == "line":
            return _spread(self.node_chips, 2, self.node_chips)
        if self.rack_wiring == "node":
            return _spread(self.node_chips, peers, self.outer_links // self.middle_units)
        return _spread(self.rack_chips, peers, self.outer_links)


def _rate(given: float | None) -> float:
    """A level that is not there takes no time."""
    return math.inf if given is None else given


def _spread(positions: int, peers: int, n_links: int) -> PortMap:
    """Spread the links to all peers over as few ports of each chip as they need."""
    ports = -(-n_links * peers // positions)
    return PortMap(positions=positions, ports=ports, peers=peers, n_links=n_links)


def custom_topology(
    levels: Sequence[LevelSpec],
    n_chips: int | None = None,
    *,
    chip_lanes: int,
    source: str = CALLER,
) -> CustomTopology:
    """Build a machine from its levels.

    Args:
        levels: one to three, innermost first.
        n_chips: chips that plans may use; all that the levels hold if not given.
        chip_lanes: lanes that a chip has.
        source: where the numbers come from, for their provenance.

    Returns:
        The machine.

    Raises:
        PlanError: if there is no such machine, or a chip would need more lanes than it has.
    """
    if not 1 <= len(levels) <= MOST_LEVELS:
        raise PlanError(f"a machine has 1 to {MOST_LEVELS} levels, not {len(levels)}")
    _check_wiring(levels)
    _check_size(levels, chip_lanes)
    in_line = levels[-1].wiring == "line"
    places = dict(zip(_PLACES, levels, strict=False))
    if in_line and len(levels) == 2:
        places = {"inner": levels[0], "outer": levels[1]}
    constants = [
        Constant(
            name=f"{place}_{name}",
            value=getattr(level, name),
            unit=unit,
            status="assumed",
            source=f"{source}, level {level.name}",
        )
        for place, level in places.items()
        for name, unit in _FIELD_UNITS.items()
    ]
    names = tuple((places.get(place) or levels[0]).name for place in _PLACES)
    machine: CustomTopology = vary(
        CustomTopology(n_chips=1),
        *constants,
        names=names,
        outer_in_line=in_line or "outer" not in places,
        n_chips=math.prod(level.units for level in levels) if n_chips is None else n_chips,
    )
    return machine


_FIELD_UNITS = {"units": "1", "links": "1", "lanes": "1", "link_bytes_per_s": "B/s", "hop_s": "s"}


def _check_wiring(levels: Sequence[LevelSpec]) -> None:
    """Refuse lines where collectives could not use them."""
    names = [level.name for level in levels]
    if len(set(names)) < len(names):
        raise PlanError(f"levels must have different names, got {', '.join(map(repr, names))}")
    for level in levels[:-1]:
        if level.wiring == "line":
            raise level.error("wiring", level.wiring, "'all-to-all' unless it is the outermost")
    last = levels[-1]
    if last.wiring != "line":
        return
    if len(levels) == 1:
        raise last.error("wiring", last.wiring, "'all-to-all' at the level of chips")
    unit_chips = math.prod(level.units for level in levels[:-1])
    if last.links % unit_chips:
        raise last.error(
            "links",
            last.links,
            f"a multiple of {unit_chips}, because in a line each chip of a unit is linked with the "
            "chip of equal position",
        )


def _check_size(levels: Sequence[LevelSpec], chip_lanes: int) -> None:
    """Refuse machines that are too large to list, and lanes that cannot suffice."""
    n_chips = math.prod(level.units for level in levels)
    if n_chips > MOST_CHIPS:
        raise PlanError(f"the levels hold {n_chips} chips; at most {MOST_CHIPS} are supported")
    lanes, unit_chips, words = 0, 1, []
    for level in levels:
        peers = min(2, level.units - 1) if level.wiring == "line" else level.units - 1
        links = -(-level.links * peers // unit_chips)
        lanes += links * level.lanes
        words.append(f"{links * level.lanes} for its {level.name}")
        if lanes > chip_lanes:
            raise PlanError(
                f"the links need {lanes} lanes of a chip ({', '.join(words)}); it has {chip_lanes}"
            )
        if links * n_chips > MOST_LINKS:
            raise PlanError(
                f"level {format_given(level.name)}: {links * n_chips} links are more than the "
                f"{MOST_LINKS} that are supported"
            )
        unit_chips *= level.units
