"""The machines that exist: GroqChip1 nodes and racks, and racks of the Groq 3 LPX.

Every number carries its source. Public sources give counts, rates and latencies of links, not the
chips they end on: that placement is assumed (`ports`). Not modelled: as in `topology`.

Sources, by key (mostly read in extracts): ISCA22 Abts et al., "A Software-defined Tensor Streaming
Multiprocessor", ISCA 2022. GRB GroqRack product brief. SA26 SemiAnalysis, "Nvidia - The Inference
Kingdom Expands", 2026. HC26 Hot Chips 2026, Arsovski and Raghavan, "Think Fast: LPU Accelerator for
Heterogeneous Compute". NVB NVIDIA technical blog "Inside NVIDIA Groq 3 LPX", 2026.
"""

import functools
from dataclasses import dataclass
from typing import ClassVar

from ..errors import PlanError
from ..provenance import const
from .ports import PortMap
from .topology import RackWiring, Topology

_HOP = "ISCA22: 722 ns per hop, memory to memory, one vector included"
_SHORT_HOPS = 3


@dataclass(frozen=True, kw_only=True)
class GroqTopology(Topology):
    """GroqChip1 machines: nodes of 8 chips; up to 33 nodes linked in pairs, or racks of 9 nodes."""

    family: ClassVar[str] = "groq"

    node_chips: int = const(8, "1", "published", "ISCA22: a GroqNode is 8 chips")
    spare_nodes: int = const(0, "1", "published", "ISCA22: spare nodes are the operator's choice")
    max_chips: int = const(10_440, "1", "published", "ISCA22: 145 racks of 72 chips")
    #: Of one lane, one way.
    lane_bytes_per_s: float = const(
        3.125e9, "B/s", "published", "ISCA22: lanes of 25 Gb/s in built systems"
    )
    link_lanes: int = const(4, "1", "published", "ISCA20, ISCA22: a link is 4 lanes")
    chip_lanes: int = const(
        44, "1", "published", "ISCA22: 7 local and 4 global of the chip's 16 links, 4 lanes each"
    )
    local_hop_s: float = const(722e-9, "s", "published", _HOP)
    node_step_s: float = const(722e-9, "s", "published", _HOP)
    rack_hop_s: float = const(722e-9, "s", "published", _HOP)
    node_global_ports: int = const(32, "1", "published", "ISCA22: 4 global links per chip")
    linked_nodes: int = const(33, "1", "published", "ISCA22: 33 nodes, every pair linked")
    rack_nodes: int = const(9, "1", "published", "ISCA22: a rack of 9 nodes is a local group")
    rack_node_links: int = const(2, "1", "published", "ISCA22: double links inside a rack")
    rack_global_ports: int = const(144, "1", "published", "ISCA22: 144 of 288 ports leave the rack")
    #: Used by `reach_s` only: the wiring assumed here needs up to 7 hops beyond 17 racks.
    most_hops: int = const(
        5, "1", "published", "ISCA22; one extract says 6", 5, 6, moves_plans=False
    )

    def _check_family(self) -> None:
        """Refuse what machines of its family cannot be."""
        if self.spare_nodes and not self._is_flat:
            raise PlanError(
                f"{self.spare_nodes} spare nodes beside {self.n_nodes}: spare nodes are only "
                f"modelled up to {self.linked_nodes} nodes in all"
            )

    @property
    def _is_flat(self) -> bool:
        """Whether every pair of nodes is linked, so that racks are only furniture."""
        return self.n_nodes + self.spare_nodes <= self.linked_nodes

    @property
    def level_names(self) -> tuple[str, str, str, str]:
        """Up to 9 linked nodes are a rack, more are just nodes; there is no half rack."""
        beyond = self._is_flat and self.n_nodes + self.spare_nodes > self.rack_nodes
        linked = "nodes" if beyond else "rack"
        return "node", linked, linked, "racks"

    @property
    def nodes_per_rack(self) -> int:
        """Nodes that are linked in pairs: of a rack, or of the whole machine up to 33."""
        return self.linked_nodes if self._is_flat else self.rack_nodes

    @property
    def lanes_per_link(self) -> tuple[int, int, int]:
        """All links are alike."""
        return self.link_lanes, self.link_lanes, self.link_lanes

    @property
    def local_bytes_per_s(self) -> float:
        """All links are alike."""
        return self.link_lanes * self.lane_bytes_per_s

    @property
    def node_link_bytes_per_s(self) -> float:
        """All links are alike."""
        return self.local_bytes_per_s

    @property
    def rack_link_bytes_per_s(self) -> float:
        """All links are alike."""
        return self.local_bytes_per_s

    @functools.cached_property
    def node_ports(self) -> PortMap:
        """Links of a node: `32 // (nodes - 1)` per pair up to 33 nodes, then 2 inside a rack."""
        if self._is_flat:
            peers = max(1, self.n_nodes + self.spare_nodes - 1)
            n_links, ports = self.node_global_ports // peers, self.node_global_ports
        else:
            peers, n_links = self.rack_nodes - 1, self.rack_node_links
            ports = n_links * peers
        return PortMap(
            positions=self.node_chips, ports=ports // self.node_chips, peers=peers, n_links=n_links
        )

    @property
    def _node_ports_between_racks(self) -> int:
        return self.rack_global_ports // self.rack_nodes

    @property
    def rack_wiring(self) -> RackWiring:
        """Each node reaches every other rack while its 16 ports suffice (assumed)."""
        return "node" if self.n_racks - 1 <= self._node_ports_between_racks else "rack"

    @functools.cached_property
    def rack_ports(self) -> PortMap:
        """Links between racks, on the chips of a node or on those of a rack."""
        peers = max(1, self.n_racks - 1)
        ports = self._node_ports_between_racks // self.node_chips
        if self.rack_wiring == "node":
            n_links = self._node_ports_between_racks // peers
            return PortMap(positions=self.node_chips, ports=ports, peers=peers, n_links=n_links)
        n_links = self.rack_global_ports // peers
        return PortMap(positions=self.rack_chips, ports=ports, peers=peers, n_links=n_links)

    def reach_s(self, n_chips: int) -> float:
        """One hop inside a node, three among linked nodes, five beyond; see the base class."""
        near_s = super().reach_s(min(n_chips, self.rack_chips))
        far_hops = self.most_hops - _SHORT_HOPS if n_chips > self.rack_chips else 0
        return near_s + far_hops * self.rack_hop_s


@dataclass(frozen=True, kw_only=True)
class LpxTopology(Topology):
    """Groq 3 LPX: trays of chips, racks of 256 chips, racks in a line.

    The wiring is an analyst's, with trays of 16 chips: 4 lanes to each chip of the tray and 2 to
    the chip of equal position of every other tray. NVIDIA prints trays of 8 chips: the same lanes
    then join 7 chips and 31 trays, which is again 90 lanes (derived); but only 8 chips are then one
    hop apart, not 16 as HC26 has it. Latencies are HC26's, also where they disagree with the
    wiring, by which the two halves of a rack would be equally near.
    """

    family: ClassVar[str] = "lpx"
    #: Nine racks are the published point; the line is taken to go on alike, to here.
    most_racks: ClassVar[int] = 64

    tray_chips: int = const(
        16, "1", "published", "SA26, HC26: 16 chips per tray; NVB: 8 chips", options=(16, 8)
    )
    rack_chips: int = const(256, "1", "published", "NVB: 256 chips per rack")
    half_rack_chips: int = const(128, "1", "derived", "HC26: 128 chips at the second latency step")
    #: Of one lane, one way.
    lane_bytes_per_s: float = const(
        12.5e9,
        "B/s",
        "derived",
        "SA26: 100 Gb/s of the 112 are useful; NVB: 2.5 TB/s both ways over 96 lanes are 13 GB/s",
        12.5e9,
        13.0e9,
        faster_at="high",
    )
    chip_lanes: int = const(
        95, "1", "derived", "NVB: 96 lanes; SA26: one of them goes to the tray's FPGA"
    )
    local_lanes: int = const(4, "1", "published", "SA26: 4x100G to each of 15 peers")
    tray_lanes: int = const(
        2, "1", "published", "SA26: 2x100G to one chip of each other tray (equal position assumed)"
    )
    rack_lanes: int = const(
        2, "1", "derived", "SA26: 4x100G per chip in a daisy chain of racks, so 2 each way"
    )
    local_hop_s: float = const(350e-9, "s", "published", "HC26: 16 chips in 0.35 us")
    node_step_s: float = const(400e-9, "s", "derived", "HC26: 128 chips in 0.75 us")
    half_rack_step_s: float = const(
        400e-9,
        "s",
        "derived",
        "HC26: 256 chips in 1.15 us; by SA26's wiring no tray is farther than another",
        0.0,
        400e-9,
        faster_at="low",
    )
    rack_hop_s: float = const(
        450e-9,
        "s",
        "derived",
        "HC26: 1, 3, 5, 7, 9 racks in 1.15, 1.60, 2.05, 2.50, 2.95 us: one hop more for two racks "
        "more, from the middle of a line or round a ring",
    )
    rack_chain: str = const(
        "line",
        "wiring",
        "assumed",
        "SA26: racks in a daisy chain; whether its ends are linked is not public",
        options=("line", "ring"),
    )
    frame_payload_bytes: int = const(320, "B", "published", "NVB: 320-byte vectors")
    frame_bytes: int = const(
        328,
        "B",
        "assumed",
        "not public; as on GroqChip1. HC26: flits of 8 B before and after a packet",
        320,
        336,
        faster_at="low",
    )

    def _check_family(self) -> None:
        """Refuse what machines of its family cannot be."""
        if self.tray_chips < 1 or self.half_rack_chips % self.tray_chips:
            raise PlanError(
                f"half a rack of {self.half_rack_chips} chips is not a whole number of trays of "
                f"{self.tray_chips}"
            )
        if self.half_rack_chips < 1 or self.rack_chips % self.half_rack_chips:
            raise PlanError(
                f"a rack of {self.rack_chips} chips is not a whole number of halves of "
                f"{self.half_rack_chips}"
            )

    @property
    def max_chips(self) -> int:
        """Chips of the longest line of racks."""
        return self.most_racks * self.rack_chips

    @property
    def level_names(self) -> tuple[str, str, str, str]:
        """Tray, half rack, rack, racks."""
        return "tray", "half rack", "rack", "racks"

    @property
    def node_chips(self) -> int:
        """Chips of a tray."""
        return self.tray_chips

    @property
    def nodes_per_rack(self) -> int:
        """Trays of a rack."""
        return self.rack_chips // self.tray_chips

    @property
    def nodes_per_half_rack(self) -> int:
        """Trays of half a rack."""
        return self.half_rack_chips // self.tray_chips

    @property
    def lanes_per_link(self) -> tuple[int, int, int]:
        """Lanes between chips of a tray, between trays, and to each neighbouring rack."""
        return self.local_lanes, self.tray_lanes, self.rack_lanes

    @property
    def local_bytes_per_s(self) -> float:
        """All lanes between two chips of a tray."""
        return self.local_lanes * self.lane_bytes_per_s

    @property
    def node_link_bytes_per_s(self) -> float:
        """All lanes between two chips of different trays."""
        return self.tray_lanes * self.lane_bytes_per_s

    @property
    def rack_link_bytes_per_s(self) -> float:
        """All lanes to one neighbouring rack."""
        return self.rack_lanes * self.lane_bytes_per_s

    @functools.cached_property
    def node_ports(self) -> PortMap:
        """Each chip has one link to the chip of equal position in every other tray."""
        peers = max(1, self.nodes_per_rack - 1)
        return PortMap(positions=self.node_chips, ports=peers, peers=peers, n_links=self.node_chips)

    @property
    def rack_wiring(self) -> RackWiring:
        """Racks form a line, or a ring."""
        return "ring" if self.rack_chain == "ring" else "line"

    @functools.cached_property
    def rack_ports(self) -> PortMap:
        """Each chip has one link to each of two neighbouring racks."""
        return PortMap(positions=self.node_chips, ports=2, peers=2, n_links=self.node_chips)
