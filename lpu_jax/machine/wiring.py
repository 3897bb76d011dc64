"""What a machine says about itself: sizes of its levels, ports, rates and times of its links.

`topology` derives links, routes and places from it; `built_topologies` and `custom_topology` fill
it in. Not modelled: as in `topology`.
"""

import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from ..errors import PlanError
from ..provenance import Constant, const
from .ports import Numbers, PortMap


@dataclass(frozen=True, kw_only=True)
class Wiring(ABC):
    """A machine of levels of chips and links; times in seconds, rates in bytes per second.

    Attributes:
        n_chips: chips that plans may use.
        replaced: constants that differ from the class's own (`provenance.vary`).
    """

    family: ClassVar[str]

    n_chips: int
    replaced: tuple[Constant, ...] = ()

    frame_payload_bytes: int = const(320, "B", "published", "ISCA22: a frame carries one vector")
    frame_bytes: int = const(328, "B", "published", "ISCA22: 320 B payload and 8 B")

    def __post_init__(self) -> None:
        """Refuse machines that cannot exist."""
        if not 1 <= self.n_chips <= self.max_chips:
            raise PlanError(
                f"machines of the family {self.family!r} have 1 to {self.max_chips} chips, "
                f"not {self.n_chips}"
            )
        if self.frame_bytes < self.frame_payload_bytes:
            raise PlanError(
                f"a frame of {self.frame_bytes} bytes cannot carry {self.frame_payload_bytes}"
            )
        if self.chip_lanes is not None and self.lanes_per_chip > self.chip_lanes:
            raise PlanError(
                f"a chip of this {self.family} machine needs {self.lanes_per_chip} lanes "
                f"({self.lanes_in_words}); {self.chip_lanes} are wired"
            )

    @property
    @abstractmethod
    def max_chips(self) -> int:
        """Largest machine of the family."""

    @property
    def chip_lanes(self) -> int | None:
        """Lanes of a chip that are wired to other chips; None: as many as the chip has."""
        return None

    @property
    def spare_nodes(self) -> int:
        """Nodes that take links but hold nothing, after all others."""
        return 0

    @property
    @abstractmethod
    def level_names(self) -> tuple[str, str, str, str]:
        """What a node, a half rack, a rack, and all racks are called."""

    @property
    @abstractmethod
    def node_chips(self) -> int:
        """Chips of a node."""

    @property
    @abstractmethod
    def nodes_per_rack(self) -> int:
        """Nodes of a rack."""

    @property
    def nodes_per_half_rack(self) -> int:
        """Nodes of a half rack, a step of latency inside a rack; of a rack if there is none."""
        return self.nodes_per_rack

    @property
    @abstractmethod
    def node_ports(self) -> PortMap:
        """Which chips of a node carry its links to the other nodes of the rack."""

    @property
    @abstractmethod
    def rack_wiring(self) -> Literal["line", "node", "rack"]:
        """How racks are linked.

        `"line"`: each chip to the chip of equal position in the neighbouring racks. `"node"`: each
        node to the node of equal position in every other rack. `"rack"`: too many racks for that;
        each rack to every other rack by links on some of its nodes.
        """

    @property
    @abstractmethod
    def rack_ports(self) -> PortMap:
        """Which chips carry the links between racks: of a node (`"line"`, `"node"`), of a rack."""

    @property
    @abstractmethod
    def lanes_per_link(self) -> tuple[int, int, int]:
        """Lanes that work as one link: inside a node, between nodes, between racks."""

    @property
    @abstractmethod
    def local_bytes_per_s(self) -> float:
        """Rate of the link between two chips of a node, one way."""

    @property
    @abstractmethod
    def node_link_bytes_per_s(self) -> float:
        """Rate of one link between nodes of a rack, one way."""

    @property
    @abstractmethod
    def rack_link_bytes_per_s(self) -> float:
        """Rate of one link between racks, one way."""

    @property
    @abstractmethod
    def local_hop_s(self) -> float:
        """Time of one vector over a link inside a node, memory to memory."""

    @property
    @abstractmethod
    def node_step_s(self) -> float:
        """The same between two nodes of a half rack."""

    @property
    def half_rack_step_s(self) -> float:
        """What the other half of the rack takes in addition."""
        return 0.0

    @property
    @abstractmethod
    def rack_hop_s(self) -> float:
        """Time of one vector between two linked racks."""

    # What follows from it.

    def node_hop_s(self, half_racks: Numbers) -> Numbers:
        """Time of one vector between nodes of a rack, memory to memory.

        Args:
            half_racks: half racks the transfer may have to touch.

        Returns:
            Seconds, of the shape of `half_racks`.
        """
        return self.node_step_s + np.where(np.asarray(half_racks) > 1, self.half_rack_step_s, 0.0)

    @property
    def rack_chips(self) -> int:
        """Chips of a rack."""
        return self.node_chips * self.nodes_per_rack

    @property
    def tiers(self) -> tuple[int, ...]:
        """Chips of a node and of a rack: sums across chips are made inside each of them first."""
        return self.node_chips, self.rack_chips

    @property
    def n_nodes(self) -> int:
        """Nodes of the machine; the last may be used in part."""
        return -(-self.n_chips // self.node_chips)

    @property
    def n_racks(self) -> int:
        """Racks of the machine; the last may be used in part."""
        return -(-self.n_chips // self.rack_chips)

    @property
    def installed_nodes(self) -> int:
        """Nodes that are physically there: spare ones, and all of the last of several racks."""
        if self.n_racks > 1:
            return self.n_racks * self.nodes_per_rack
        return self.n_nodes + self.spare_nodes

    @property
    def installed_chips(self) -> int:
        """Chips that are physically there; plans may use `n_chips` of them."""
        return self.installed_nodes * self.node_chips

    @functools.cached_property
    def most_links(self) -> tuple[int, int, int]:
        """Links of the chip that has most: inside its node, to other nodes, to other racks."""
        places = min(self.nodes_per_rack, self.installed_nodes)
        if self.rack_wiring == "line":
            between_racks = min(2, self.n_racks - 1)
        else:
            between_racks = self.rack_ports.most_links(self.n_racks)
        return self.node_chips - 1, self.node_ports.most_links(places), between_racks

    @property
    def lanes_per_chip(self) -> int:
        """Lanes that links take on the chip that has most of them."""
        return sum(
            links * lanes for links, lanes in zip(self.most_links, self.lanes_per_link, strict=True)
        )

    @property
    def lanes_in_words(self) -> str:
        """Where the lanes of the chip that needs most go, level by level."""
        node, _, rack, racks = self.level_names
        parts = zip(self.most_links, self.lanes_per_link, (node, rack, racks), strict=True)
        return ", ".join(f"{links * lanes} for its {name}" for links, lanes, name in parts if links)
