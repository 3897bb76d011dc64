"""Chips, the links between them, and where groups of chips are put.

A machine has levels: a node is a few chips with a link between any two, a rack is a few nodes, and
there may be racks. Chips are numbered node by node, rack by rack. `GroqTopology` is the first
generation (GroqNode, GroqRack, dragonfly), `LpxTopology` the second (trays of a Groq 3 LPX rack).
How collectives use the links is in `cost.links`.

Not modelled: link errors, synchronisation of clocks, spare nodes, links to the host. The last node
is physically whole even if `n_chips` does not fill it: its other chips forward but hold nothing.

Sources, by key (mostly read in extracts): ISCA22 Abts et al., "A Software-defined Tensor Streaming
Multiprocessor", ISCA 2022. SA26 SemiAnalysis, "Nvidia - The Inference Kingdom Expands", 2026. HC26
Hot Chips 2026, Arsovski and Raghavan, "Think Fast: LPU Accelerator for Heterogeneous Compute".
"""

import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from .errors import PlanError
from .ports import Link, PortMap
from .provenance import Constant, const

#: One number, or one per plan.
Numbers = Any


@dataclass(frozen=True, kw_only=True)
class Span:
    """What a run of contiguous chips touches, at worst; numbers, or arrays with one per plan.

    Attributes:
        n_chips: chips in the run.
        nodes: nodes it touches.
        fewest: fewest chips it has in any node it touches.
        most: most chips it has in any node it touches.
        half_racks: half racks it touches.
        racks: racks it touches.
    """

    n_chips: Numbers
    nodes: Numbers
    fewest: Numbers
    most: Numbers
    half_racks: Numbers
    racks: Numbers


def stack_spans(spans: list[Span]) -> Span:
    """Stack spans of single runs into one span of arrays.

    Args:
        spans: one span per plan.

    Returns:
        A span whose fields are integer arrays `[plans]`.
    """
    return Span(
        **{
            field.name: np.array([getattr(span, field.name) for span in spans], np.int64)
            for field in fields(Span)
        }
    )


@dataclass(frozen=True, kw_only=True)
class Topology(ABC):
    """A machine of levels of chips and links; times in seconds, rates in bytes per second.

    Attributes:
        n_chips: chips that plans may use.
        replaced: constants that differ from the class's own (`provenance.vary`).
    """

    n_chips: int
    replaced: tuple[Constant, ...] = ()

    frame_payload_bytes: int = const(320, "B", "published", "ISCA22: a frame carries one vector")
    frame_bytes: int = const(328, "B", "published", "ISCA22: 320 B payload and 8 B")

    def __post_init__(self) -> None:
        """Refuse machines that cannot exist."""
        if self.n_chips < 1 or self.n_chips > self.max_chips:
            raise PlanError(
                f"a {self.family} machine has 1 to {self.max_chips} chips, not {self.n_chips}"
            )

    # What a machine of this family must say about itself.

    @property
    @abstractmethod
    def family(self) -> str:
        """Name of the family: `"groq"` or `"lpx"`."""

    @property
    @abstractmethod
    def max_chips(self) -> int:
        """Largest machine of the family."""

    @property
    @abstractmethod
    def node_chips(self) -> int:
        """Chips of a node."""

    @property
    @abstractmethod
    def nodes_per_rack(self) -> int:
        """Nodes of a rack."""

    @property
    @abstractmethod
    def nodes_per_half_rack(self) -> int:
        """Nodes of a half rack, the level between node and rack; a whole rack if there is none."""

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

    @abstractmethod
    def node_hop_s(self, half_racks: Numbers) -> Numbers:
        """Time of one vector between nodes of a rack.

        Args:
            half_racks: half racks the transfer may have to touch.

        Returns:
            Seconds, of the shape of `half_racks`.
        """

    @property
    @abstractmethod
    def rack_hop_s(self) -> float:
        """Time of one vector between two linked racks."""

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

    @abstractmethod
    def reach_s(self, n_chips: int) -> float:
        """Time in which one chip's vector can be at any of the first `n_chips` chips.

        Args:
            n_chips: chips to reach, the sender included.

        Returns:
            Seconds; 0 for one chip.
        """

    # What follows from it.

    @property
    def rack_chips(self) -> int:
        """Chips of a rack."""
        return self.node_chips * self.nodes_per_rack

    @property
    def n_nodes(self) -> int:
        """Nodes of the machine; the last may be used in part."""
        return -(-self.n_chips // self.node_chips)

    @property
    def n_racks(self) -> int:
        """Racks of the machine; the last may be used in part."""
        return -(-self.n_chips // self.rack_chips)

    def frame_s(self, link_bytes_per_s: float) -> float:
        """Time between two vectors that follow each other on a link.

        Args:
            link_bytes_per_s: rate of the link, one way.

        Returns:
            Seconds.
        """
        return self.frame_bytes / link_bytes_per_s

    def links_between(self, src: int, dst: int) -> tuple[Link, ...]:
        """List the links from one chip to another, one way.

        Args:
            src: sending chip.
            dst: receiving chip.

        Returns:
            Each parallel link by name; empty if the chips are not linked.
        """
        if src == dst:
            return ()
        size = self.node_chips
        node_a, chip_a = divmod(src, size)
        node_b, chip_b = divmod(dst, size)
        rack_a, place_a = divmod(node_a, self.nodes_per_rack)
        rack_b, place_b = divmod(node_b, self.nodes_per_rack)
        if node_a == node_b:
            return (Link(src=src, dst=dst, part=0, bytes_per_s=self.local_bytes_per_s),)
        if rack_a == rack_b:
            parts = self.node_ports.parts_between(place_a, chip_a, place_b, chip_b)
            rate = self.node_link_bytes_per_s
        else:
            parts = self._rack_parts(rack_a, src % self.rack_chips, rack_b, dst % self.rack_chips)
            rate = self.rack_link_bytes_per_s
        return tuple(Link(src=src, dst=dst, part=part, bytes_per_s=rate) for part in parts)

    def _rack_parts(self, rack_a: int, a: int, rack_b: int, b: int) -> tuple[int, ...]:
        """Numbers of the links from chip `a` of one rack to chip `b` of another."""
        if self.rack_wiring == "line":
            return (0,) if abs(rack_a - rack_b) == 1 and a == b else ()
        if self.rack_wiring == "rack":
            return self.rack_ports.parts_between(rack_a, a, rack_b, b)
        (place_a, chip_a), (place_b, chip_b) = divmod(a, self.node_chips), divmod(b, self.node_chips)
        if place_a != place_b:
            return ()
        return self.rack_ports.parts_between(rack_a, chip_a, rack_b, chip_b)

    def route(self, src: int, dst: int) -> tuple[Link, ...]:
        """Find a shortest way from one chip to another.

        Args:
            src: sending chip.
            dst: receiving chip.

        Returns:
            The links in order, one per hop; empty if `src == dst`.

        Raises:
            PlanError: if a chip is not in the machine.
        """
        for name in (src, dst):
            if not 0 <= name < self.n_chips:
                raise PlanError(f"chip {name} is not in 0..{self.n_chips - 1}")
        frontier: dict[int, tuple[Link, ...]] = {src: ()}
        seen = {src}
        while dst not in frontier:
            following: dict[int, tuple[Link, ...]] = {}
            for chip, way in frontier.items():
                for peer in self._peers(chip):
                    if peer not in seen:
                        seen.add(peer)
                        following[peer] = (*way, self.links_between(chip, peer)[0])
            frontier = following
        return frontier[dst]

    @functools.lru_cache(maxsize=20_000)  # noqa: B019  (topologies are few and small)
    def _peers(self, chip: int) -> tuple[int, ...]:
        """All chips that one chip has a link to."""
        size, rack_chips = self.node_chips, self.rack_chips
        node, position = divmod(chip, size)
        rack, place = divmod(node, self.nodes_per_rack)
        peers = [node * size + other for other in range(size) if other != position]
        n_places = min(self.nodes_per_rack, self.n_nodes)
        for other in range(n_places):
            for far in self.node_ports.far_ends(place, position, other):
                peers.append((rack * self.nodes_per_rack + other) * size + far)
        for other in range(self.n_racks):
            if other == rack:
                continue
            if self.rack_wiring == "line":
                far_chips = [chip % rack_chips] if abs(other - rack) == 1 else []
            elif self.rack_wiring == "rack":
                far_chips = list(self.rack_ports.far_ends(rack, chip % rack_chips, other))
            else:
                ends = self.rack_ports.far_ends(rack, position, other)
                far_chips = [place * size + far for far in ends]
            peers.extend(other * rack_chips + far for far in far_chips)
        return tuple(peers)

    def stage_bases(self, n_groups: int, group_chips: int) -> Int[np.ndarray, " groups"]:
        """Place consecutive groups of contiguous chips so that they straddle as little as can be.

        First choice: no group straddles a node, half rack or rack more than its size demands, with
        chips left idle at the ends; if the machine is too small for that, no group straddles a rack
        without need; else the groups are packed without gaps.

        Args:
            n_groups: groups, in the order in which data passes through them.
            group_chips: chips of each group.

        Returns:
            First chip of each group, ascending.

        Raises:
            PlanError: if the groups need more chips than there are.
        """
        if n_groups < 1 or group_chips < 1:
            raise PlanError(f"{n_groups} groups of {group_chips} chips: both must be at least 1")
        if n_groups * group_chips > self.n_chips:
            raise PlanError(
                f"{n_groups} groups of {group_chips} chips need {n_groups * group_chips} chips; "
                f"the machine has {self.n_chips}"
            )
        half_rack = self.node_chips * self.nodes_per_half_rack
        every = (self.node_chips, half_rack, self.rack_chips)
        for units in (every, (self.node_chips, self.rack_chips), (self.rack_chips,)):
            bases = _place(n_groups, group_chips, tuple(sorted(set(units))))
            if bases[-1] + group_chips <= self.n_chips:
                return bases
        return np.arange(n_groups, dtype=np.int64) * group_chips

    def span(
        self,
        bases: Int[np.ndarray, " groups"] | list[int],
        n_chips_in_run: int,
        group_chips: int | None = None,
    ) -> Span:
        """Find what runs of contiguous chips touch, at worst over all of them.

        Args:
            bases: first chip of each run; or of each group, if `group_chips` is given.
            n_chips_in_run: chips of a run.
            group_chips: chips of a group, which is cut into runs of `n_chips_in_run`.

        Returns:
            The worst of each measure over all runs.

        Raises:
            PlanError: if a group cannot be cut evenly, or a run leaves the machine.
        """
        n = n_chips_in_run
        first = np.asarray(bases, np.int64)
        if group_chips is not None:
            if group_chips % n:
                raise PlanError(f"a group of {group_chips} chips is not cut evenly into runs of {n}")
            first = np.add.outer(first, np.arange(0, group_chips, n)).reshape(-1)
        if n < 1 or first.size == 0 or first.min() < 0 or first.max() + n > self.n_chips:
            raise PlanError(f"runs of {n} chips leave the machine's {self.n_chips} chips")
        last = first + (n - 1)
        size = self.node_chips
        nodes = last // size - first // size + 1
        head = np.minimum(size - first % size, n)
        tail = np.minimum(last % size + 1, n)
        most = np.where(nodes > 2, size, np.maximum(head, tail))
        half = size * self.nodes_per_half_rack
        return Span(
            n_chips=n,
            nodes=int(nodes.max()),
            fewest=int(np.minimum(head, tail).min()),
            most=int(most.max()),
            half_racks=int((last // half - first // half + 1).max()),
            racks=int((last // self.rack_chips - first // self.rack_chips + 1).max()),
        )


def _place(
    n_groups: int, group_chips: int, units: tuple[int, ...]
) -> Int[np.ndarray, " groups"]:
    """Put groups one after another, moving each on to a unit's edge rather than across it.

    A group no larger than a unit must lie inside one; a larger group starts at a unit's edge. The
    pattern repeats with the largest unit, but a plain loop over groups is fast enough: a machine
    has at most some ten thousand.
    """
    bases = np.empty(n_groups, np.int64)
    cursor = 0
    for index in range(n_groups):
        moved = True
        while moved:
            moved = False
            for unit in units:
                used = cursor % unit
                if used and used + group_chips > unit:
                    cursor += unit - used
                    moved = True
        bases[index] = cursor
        cursor += group_chips
    return bases


@dataclass(frozen=True, kw_only=True)
class GroqTopology(Topology):
    """GroqChip1 machines: nodes of 8 chips; up to 33 nodes linked in pairs, or racks of 9 nodes.

    Which chip of a node carries which link, and which node which inter-rack link, is assumed.
    """

    chips_per_node: int = const(8, "1", "published", "ISCA22: a GroqNode is 8 chips")
    node_global_ports: int = const(32, "1", "published", "ISCA22: 4 global links per chip")
    linked_nodes: int = const(33, "1", "published", "ISCA22: 33 nodes, every pair linked")
    rack_nodes: int = const(9, "1", "published", "ISCA22: a rack of 9 nodes is a local group")
    rack_node_links: int = const(2, "1", "published", "ISCA22: double links inside a rack")
    rack_global_ports: int = const(144, "1", "published", "ISCA22: 144 of 288 ports leave the rack")
    largest_chips: int = const(10_440, "1", "published", "ISCA22: 145 racks of 72 chips")
    most_hops: int = const(
        5, "1", "published", "ISCA22, one extract says 6; our wiring needs 7 beyond 17 racks"
    )
    link_bytes_per_s: float = const(
        12.5e9, "B/s", "published", "ISCA22: 4 lanes of 25 Gb/s in built systems"
    )
    hop_s: float = const(722e-9, "s", "published", "ISCA22: per hop, memory to memory")

    @property
    def family(self) -> str:
        return "groq"

    @property
    def max_chips(self) -> int:
        return self.largest_chips

    @property
    def node_chips(self) -> int:
        return self.chips_per_node

    @property
    def _is_flat(self) -> bool:
        """Whether every pair of nodes is linked, so that racks are only furniture."""
        return self.n_nodes <= self.linked_nodes

    @property
    def nodes_per_rack(self) -> int:
        return self.linked_nodes if self._is_flat else self.rack_nodes

    @property
    def nodes_per_half_rack(self) -> int:
        return self.nodes_per_rack

    @property
    def local_bytes_per_s(self) -> float:
        return self.link_bytes_per_s

    @property
    def node_link_bytes_per_s(self) -> float:
        return self.link_bytes_per_s

    @property
    def rack_link_bytes_per_s(self) -> float:
        return self.link_bytes_per_s

    @property
    def local_hop_s(self) -> float:
        return self.hop_s

    def node_hop_s(self, half_racks: Numbers) -> Numbers:
        return np.full(np.shape(half_racks), self.hop_s)

    @property
    def rack_hop_s(self) -> float:
        return self.hop_s

    @functools.cached_property
    def node_ports(self) -> PortMap:
        ports = self.node_global_ports // self.node_chips
        if self._is_flat:
            peers = max(1, self.n_nodes - 1)
            n_links = self.node_global_ports // peers
        else:
            peers, n_links = self.rack_nodes - 1, self.rack_node_links
            ports = n_links * peers // self.node_chips
        return PortMap(positions=self.node_chips, ports=ports, peers=peers, n_links=n_links)

    @property
    def _node_ports_between_racks(self) -> int:
        return self.rack_global_ports // self.rack_nodes

    @property
    def rack_wiring(self) -> Literal["line", "node", "rack"]:
        return "node" if self.n_racks - 1 <= self._node_ports_between_racks else "rack"

    @functools.cached_property
    def rack_ports(self) -> PortMap:
        peers = max(1, self.n_racks - 1)
        ports = self._node_ports_between_racks // self.node_chips
        if self.rack_wiring == "node":
            n_links = self._node_ports_between_racks // peers
            return PortMap(positions=self.node_chips, ports=ports, peers=peers, n_links=n_links)
        n_links = self.rack_global_ports // peers
        return PortMap(positions=self.rack_chips, ports=ports, peers=peers, n_links=n_links)

    def reach_s(self, n_chips: int) -> float:
        if n_chips <= 1:
            return 0.0
        if n_chips <= self.node_chips:
            return self.hop_s
        hops = 3 if n_chips <= self.rack_chips else self.most_hops
        return hops * self.hop_s


@dataclass(frozen=True, kw_only=True)
class LpxTopology(Topology):
    """Groq 3 LPX: trays of 16 chips, racks of 16 trays, racks in a line.

    The wiring is an analyst's (NVIDIA itself prints trays of 8 chips); latencies are HC26's.
    """

    tray_chips: int = const(16, "1", "published", "SA26, HC26: 16 chips per tray (NVIDIA says 8)")
    rack_trays: int = const(16, "1", "published", "SA26: 16 trays per rack")
    half_rack_trays: int = const(8, "1", "derived", "HC26: 128 chips at the second latency step")
    most_racks: int = const(
        64, "1", "assumed", "9 racks are the published point; the line is taken to go on alike"
    )
    tray_link_bytes_per_s: float = const(
        50e9, "B/s", "derived", "SA26: 4x100G to each of 15 peers"
    )
    tray_to_tray_bytes_per_s: float = const(
        25e9, "B/s", "derived", "SA26: 2x100G to one chip of each other tray; equal position assumed"
    )
    rack_to_rack_bytes_per_s: float = const(
        50e9, "B/s", "derived", "SA26: 4x100G per chip between racks in a daisy chain"
    )
    tray_hop_s: float = const(350e-9, "s", "published", "HC26: 16 chips in 0.35 us")
    half_rack_step_s: float = const(400e-9, "s", "derived", "HC26: 128 chips in 0.75 us")
    rack_step_s: float = const(400e-9, "s", "derived", "HC26: 256 chips in 1.15 us")
    racks_step_s: float = const(225e-9, "s", "derived", "HC26: (2.95 - 1.15 us) / 8 further racks")

    @property
    def family(self) -> str:
        return "lpx"

    @property
    def max_chips(self) -> int:
        return self.most_racks * self.rack_trays * self.tray_chips

    @property
    def node_chips(self) -> int:
        return self.tray_chips

    @property
    def nodes_per_rack(self) -> int:
        return self.rack_trays

    @property
    def nodes_per_half_rack(self) -> int:
        return self.half_rack_trays

    @property
    def local_bytes_per_s(self) -> float:
        return self.tray_link_bytes_per_s

    @property
    def node_link_bytes_per_s(self) -> float:
        return self.tray_to_tray_bytes_per_s

    @property
    def rack_link_bytes_per_s(self) -> float:
        return self.rack_to_rack_bytes_per_s

    @property
    def local_hop_s(self) -> float:
        return self.tray_hop_s

    def node_hop_s(self, half_racks: Numbers) -> Numbers:
        across = np.asarray(half_racks) > 1
        return self.half_rack_step_s + np.where(across, self.rack_step_s, 0.0)

    @property
    def rack_hop_s(self) -> float:
        return self.racks_step_s

    @functools.cached_property
    def node_ports(self) -> PortMap:
        peers = self.rack_trays - 1
        return PortMap(
            positions=self.tray_chips, ports=peers, peers=peers, n_links=self.tray_chips
        )

    @property
    def rack_wiring(self) -> Literal["line", "node", "rack"]:
        return "line"

    @functools.cached_property
    def rack_ports(self) -> PortMap:
        return PortMap(positions=self.tray_chips, ports=2, peers=2, n_links=self.tray_chips)

    def reach_s(self, n_chips: int) -> float:
        if n_chips <= 1:
            return 0.0
        further_trays = n_chips > self.tray_chips
        further_half = n_chips > self.tray_chips * self.half_rack_trays
        further_racks = -(-n_chips // self.rack_chips) - 1
        return (
            self.tray_hop_s
            + further_trays * self.half_rack_step_s
            + further_half * self.rack_step_s
            + further_racks * self.racks_step_s
        )
