"""The machines that exist: GroqChip1 nodes and racks, and racks of the Groq 3 LPX.

Every number carries its source. Public sources give counts, rates and latencies of links, not the
chips they end on: that placement is assumed (`ports`). Not modelled: as in `topology`.

Sources, by key (mostly read in extracts): ISCA22 Abts et al., "A Software-defined Tensor Streaming
Multiprocessor", ISCA 2022. SA26 SemiAnalysis, "Nvidia - The Inference Kingdom Expands", 2026. HC26
Hot Chips 2026, Arsovski and Raghavan, "Think Fast: LPU Accelerator for Heterogeneous Compute".
"""

import functools
from dataclasses import dataclass
from typing import ClassVar, Literal

from .ports import PortMap
from .provenance import const
from .topology import Topology

_HOP = "ISCA22: 722 ns per hop, memory to memory, one vector included"
_LINK = "ISCA22: 4 lanes of 25 Gb/s in built systems"


@dataclass(frozen=True, kw_only=True)
class GroqTopology(Topology):
    """GroqChip1 machines: nodes of 8 chips; up to 33 nodes linked in pairs, or racks of 9 nodes."""

    family: ClassVar[str] = "groq"

    node_chips: int = const(8, "1", "published", "ISCA22: a GroqNode is 8 chips")
    max_chips: int = const(10_440, "1", "published", "ISCA22: 145 racks of 72 chips")
    local_bytes_per_s: float = const(12.5e9, "B/s", "published", _LINK)
    node_link_bytes_per_s: float = const(12.5e9, "B/s", "published", _LINK)
    rack_link_bytes_per_s: float = const(12.5e9, "B/s", "published", _LINK)
    local_hop_s: float = const(722e-9, "s", "published", _HOP)
    node_step_s: float = const(722e-9, "s", "published", _HOP)
    half_rack_step_s: float = const(0.0, "s", "derived", "ISCA22: all nodes of a rack are linked")
    rack_hop_s: float = const(722e-9, "s", "published", _HOP)
    node_global_ports: int = const(32, "1", "published", "ISCA22: 4 global links per chip")
    linked_nodes: int = const(33, "1", "published", "ISCA22: 33 nodes, every pair linked")
    rack_nodes: int = const(9, "1", "published", "ISCA22: a rack of 9 nodes is a local group")
    rack_node_links: int = const(2, "1", "published", "ISCA22: double links inside a rack")
    rack_global_ports: int = const(144, "1", "published", "ISCA22: 144 of 288 ports leave the rack")
    #: Used by `reach_s` only: the wiring assumed here needs up to 7 hops beyond 17 racks.
    most_hops: int = const(5, "1", "published", "ISCA22 (one extract says 6)")

    @property
    def _is_flat(self) -> bool:
        """Whether every pair of nodes is linked, so that racks are only furniture."""
        return self.n_nodes <= self.linked_nodes

    @property
    def nodes_per_rack(self) -> int:
        """Nodes that are linked in pairs: of a rack, or of the whole machine up to 33."""
        return self.linked_nodes if self._is_flat else self.rack_nodes

    @property
    def nodes_per_half_rack(self) -> int:
        """There is no level between node and rack."""
        return self.nodes_per_rack

    @functools.cached_property
    def node_ports(self) -> PortMap:
        """Links of a node: `32 // (nodes - 1)` per pair up to 33 nodes, then 2 inside a rack."""
        if self._is_flat:
            peers = max(1, self.n_nodes - 1)
            n_links, ports = self.node_global_ports // peers, self.node_global_ports
        else:
            peers, n_links = self.rack_nodes - 1, self.rack_node_links
            ports = n_links * peers
        return PortMap(
            positions=self.node_chips,
            ports=ports // self.node_chips,
            peers=peers,
            n_links=n_links,
        )

    @property
    def _node_ports_between_racks(self) -> int:
        return self.rack_global_ports // self.rack_nodes

    @property
    def rack_wiring(self) -> Literal["line", "node", "rack"]:
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
        if n_chips <= 1:
            return 0.0
        if n_chips <= self.node_chips:
            return self.local_hop_s
        near = self.local_hop_s + self.node_step_s + self.local_hop_s
        if n_chips <= self.rack_chips:
            return near
        return near + (self.most_hops - 3) * self.rack_hop_s


@dataclass(frozen=True, kw_only=True)
class LpxTopology(Topology):
    """Groq 3 LPX: trays of 16 chips, racks of 16 trays, racks in a line.

    The wiring is an analyst's (NVIDIA itself prints trays of 8 chips); latencies are HC26's.
    """

    family: ClassVar[str] = "lpx"

    node_chips: int = const(16, "1", "published", "SA26, HC26: 16 chips per tray (NVIDIA says 8)")
    max_chips: int = const(
        64 * 256,
        "1",
        "assumed",
        "9 racks are the published point; the line is taken to go on alike to 64 racks",
    )
    local_bytes_per_s: float = const(50e9, "B/s", "derived", "SA26: 4x100G to each of 15 peers")
    node_link_bytes_per_s: float = const(
        25e9, "B/s", "derived", "SA26: 2x100G to one chip of each other tray (equal place assumed)"
    )
    rack_link_bytes_per_s: float = const(
        50e9, "B/s", "derived", "SA26: 4x100G per chip between racks in a daisy chain"
    )
    local_hop_s: float = const(350e-9, "s", "published", "HC26: 16 chips in 0.35 us")
    node_step_s: float = const(400e-9, "s", "derived", "HC26: 128 chips in 0.75 us")
    half_rack_step_s: float = const(400e-9, "s", "derived", "HC26: 256 chips in 1.15 us")
    rack_hop_s: float = const(225e-9, "s", "derived", "HC26: (2.95 - 1.15 us) / 8 further racks")
    rack_trays: int = const(16, "1", "published", "SA26: 16 trays per rack")
    half_rack_trays: int = const(8, "1", "derived", "HC26: 128 chips at the second latency step")

    @property
    def nodes_per_rack(self) -> int:
        """Trays of a rack."""
        return self.rack_trays

    @property
    def nodes_per_half_rack(self) -> int:
        """Trays of half a rack."""
        return self.half_rack_trays

    @functools.cached_property
    def node_ports(self) -> PortMap:
        """Each chip has one link to the chip of equal position in every other tray."""
        peers = self.rack_trays - 1
        return PortMap(positions=self.node_chips, ports=peers, peers=peers, n_links=self.node_chips)

    @property
    def rack_wiring(self) -> Literal["line", "node", "rack"]:
        """Racks form a line."""
        return "line"

    @functools.cached_property
    def rack_ports(self) -> PortMap:
        """Each chip has one link to each of two neighbouring racks."""
        return PortMap(positions=self.node_chips, ports=2, peers=2, n_links=self.node_chips)

    def reach_s(self, n_chips: int) -> float:
        """Tray, half rack, rack, racks: one step each; see the base class."""
        if n_chips <= 1:
            return 0.0
        further_trays = n_chips > self.node_chips
        further_half = n_chips > self.node_chips * self.half_rack_trays
        further_racks = -(-n_chips // self.rack_chips) - 1
        return (
            self.local_hop_s
            + further_trays * self.node_step_s
            + further_half * self.half_rack_step_s
            + further_racks * self.rack_hop_s
        )
