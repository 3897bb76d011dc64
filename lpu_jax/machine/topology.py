"""Chips, the links between them, and where groups of chips are put.

A machine has levels: a node is a few chips with a link between any two, a rack is a few nodes, and
there may be racks. Chips are numbered node by node, rack by rack. What a machine must declare is
abstract here; the machines themselves are in `built_topologies` and `custom_topology`. How
collectives use the links is in `cost.collectives`.

Not modelled: link errors, synchronisation of clocks, failed nodes (a spare one only takes links).
The last node, and the last of several racks, are physically whole even if `n_chips` does not fill
them: their other chips forward but hold nothing.
"""

import functools
import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Int

from ..errors import PlanError
from ..provenance import Constant, check_constants, const
from .graph import LinkGraph, link_graph, repeated
from .ports import Link, Numbers, PortMap
from .spans import Span, Units, copies, period, placed, placed_mixed, worst_span, worst_spans

#: How racks are linked, see `Topology.rack_wiring`.
RackWiring = Literal["line", "ring", "node", "rack"]


@dataclass(frozen=True, kw_only=True)
class Topology(ABC):
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
        check_constants(self)
        self._check_family()
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

    def _check_family(self) -> None:
        """Refuse what machines of its family cannot be."""
        return  # most families have no more to refuse

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
    def rack_wiring(self) -> RackWiring:
        """How racks are linked.

        `"line"`: each chip to the chip of equal position in the neighbouring racks. `"ring"`: the
        same, and the last rack to the first. `"node"`: each node to the node of equal position in
        every other rack. `"rack"`: too many racks for that; each rack to every other rack by links
        on some of its nodes.
        """

    @property
    @abstractmethod
    def rack_ports(self) -> PortMap:
        """Which chips carry the links between racks: of a rack for `"rack"`, else of a node."""

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
        if self.racks_in_chain:
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

    @property
    def rack_hops(self) -> int:
        """Links between any two chips of a rack, at most."""
        if self.nodes_per_rack == 1:
            return 1
        return 2 if self.node_ports.pairs_equals else 3

    @property
    def racks_in_chain(self) -> bool:
        """Whether a rack has links to its neighbours only: in a line, or in a ring."""
        return self.rack_wiring in ("line", "ring")

    def rack_distance(self, racks_apart: Numbers) -> Numbers:
        """Hops from one rack of the chain to another, the shorter way round a ring.

        Args:
            racks_apart: difference of their places in the chain.

        Returns:
            Hops, of the shape of `racks_apart`.
        """
        apart = np.abs(racks_apart)
        return np.minimum(apart, self.n_racks - apart) if self.rack_wiring == "ring" else apart

    def farthest_racks(self, least: Numbers, most: Numbers) -> Numbers:
        """Hops between racks of the chain whose places differ by `least` to `most`, at most.

        Args:
            least: smallest difference.
            most: largest difference.

        Returns:
            Hops, of the shape of both.
        """
        least, half = np.maximum(least, 0), self.n_racks // 2
        ends = np.maximum(self.rack_distance(least), self.rack_distance(most))
        is_between = (self.rack_wiring == "ring") & (least <= half) & (half <= np.asarray(most))
        return np.where(is_between, half, ends)

    def reach_s(self, n_chips: int) -> float:
        """Time in which the best placed chip's vector can be at any of the first chips.

        It goes along shortest paths. In a line of racks the sender is in the middle one.

        Args:
            n_chips: chips to reach, the sender included.

        Returns:
            Seconds; 0 for one chip.
        """
        if n_chips <= 1:
            return 0.0
        time_s = self.local_hop_s
        if n_chips > self.node_chips and self.nodes_per_rack > 1:
            half_racks = 2 if n_chips > self.node_chips * self.nodes_per_half_rack else 1
            time_s *= self.rack_hops - 1
            time_s += float(self.node_hop_s(half_racks))
        further_racks = -(-n_chips // self.rack_chips) - 1
        if not further_racks:
            return time_s
        if self.racks_in_chain:
            return time_s + -(-further_racks // 2) * self.rack_hop_s
        if self.rack_wiring == "node":
            landing_s = 0.0 if self.rack_ports.pairs_equals else self.local_hop_s
            return time_s + self.rack_hop_s + landing_s
        return time_s + self.rack_hop_s + time_s

    def level_of(self, span: Span) -> str:
        """Name the outermost level that runs of chips cross.

        Args:
            span: what the runs touch, in numbers.

        Returns:
            The level's name; `"chip"` for runs of one chip, which cross nothing.
        """
        node, half_rack, rack, racks = self.level_names
        if span.n_chips == 1:
            return "chip"
        if span.nodes == 1:
            return node
        if span.racks > 1:
            return racks
        return half_rack if span.half_racks == 1 else rack

    def frame_s(self, link_bytes_per_s: int | float) -> float:
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
        if self.racks_in_chain:
            return (0,) if self.rack_distance(rack_a - rack_b) == 1 and a == b else ()
        if self.rack_wiring == "rack":
            return self.rack_ports.parts_between(rack_a, a, rack_b, b)
        (place_a, chip_a), (place_b, chip_b) = (
            divmod(a, self.node_chips),
            divmod(b, self.node_chips),
        )
        if place_a != place_b:
            return ()
        return self.rack_ports.parts_between(rack_a, chip_a, rack_b, chip_b)

    def route(self, src: int, dst: int) -> tuple[Link, ...]:
        """Find a shortest path from one chip to another.

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
        way = self.graph.shortest(src, dst)
        if way is None:
            raise PlanError(f"no links lead from chip {src} to chip {dst}")
        return tuple(self.links_between(a, b)[0] for a, b in itertools.pairwise(way))

    @functools.cached_property
    def graph(self) -> LinkGraph:
        """All links as arrays, those of spare chips included."""
        size, per_rack, rack_chips = (self.node_chips, self.nodes_per_rack, self.rack_chips)
        src, dst = np.nonzero(~np.eye(size, dtype=bool))
        inside = np.stack([src, dst, np.zeros_like(src)])
        among = self.node_ports.links_among(min(per_rack, self.installed_nodes))
        return link_graph(
            self.installed_chips,
            [
                repeated(inside, np.arange(self.installed_nodes) * size),
                repeated(_chips_of(among, size), np.arange(self.n_racks) * rack_chips),
                self._rack_links(),
            ],
        )

    def _rack_links(self) -> Int[np.ndarray, "3 links"]:
        """Sending chip, receiving chip and number of each link between racks."""
        rack_chips = self.rack_chips
        if self.racks_in_chain:
            n_chips = rack_chips * self.n_racks
            is_closed = self.rack_wiring == "ring" and self.n_racks > 2
            low = np.arange(n_chips if is_closed else n_chips - rack_chips)
            high = (low + rack_chips) % n_chips
            ends = np.concatenate([[low, high], [high, low]], axis=1)
            return np.concatenate([ends, np.zeros_like(ends[:1])])
        links = _chips_of(self.rack_ports.links_among(self.n_racks), rack_chips)
        if self.rack_wiring == "rack":
            return links
        return repeated(links, np.arange(self.nodes_per_rack) * self.node_chips)

    def stage_bases(
        self, n_groups: int, group_chips: int, within: int | None = None
    ) -> Int[np.ndarray, " groups"]:
        """Place consecutive groups of contiguous chips so that they straddle as little as possible.

        First choice: no group straddles a node, half rack or rack more than its size demands, with
        chips left idle at the ends; if the machine is too small for that, no group straddles a rack
        without need; else the groups are packed without gaps.

        Args:
            n_groups: groups, in the order in which data passes through them.
            group_chips: chips of each group.
            within: how many of the first chips they may lie on; None: all.

        Returns:
            First chip of each group, ascending.

        Raises:
            PlanError: if the groups need more chips than there are.
        """
        return placed(n_groups, group_chips, self._units_within(within))

    def group_bases(
        self, group_chips: Int[np.ndarray, " groups"], within: int | None = None
    ) -> Int[np.ndarray, " groups"]:
        """Place consecutive groups of different sizes, as `stage_bases` does those of one.

        Args:
            group_chips: chips of each group, in the order in which they lie.
            within: how many of the first chips they may lie on; None: all.

        Returns:
            First chip of each group, ascending.

        Raises:
            PlanError: if the groups need more chips than there are.
        """
        return placed_mixed(group_chips, self._units_within(within))

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
        n, first = n_chips_in_run, np.asarray(bases, np.int64)
        if group_chips is None:
            return worst_span(first, n, self._units, alone=first.size == 1)
        if group_chips % n:
            raise PlanError(f"a group of {group_chips} chips is not cut evenly into runs of {n}")
        first = np.add.outer(first, np.arange(0, group_chips, n)).reshape(-1)
        # Groups are stages: they work one after another.
        return worst_span(first, n, self._units, alone=group_chips == n)

    def copies(
        self, ends: Int[np.ndarray, " plans"], within: int | None = None
    ) -> Int[np.ndarray, " plans"]:
        """Count how often what lies on the first chips fits on the machine, side by side.

        A copy lies as the first one does: inside a node, inside a half rack from the edge of a
        node on, inside a rack from there, else from the edge of a rack on.

        Args:
            ends: how many of the first chips it takes, gaps included.
            within: how many of the first chips copies may lie on; None: all.

        Returns:
            At least 1 each.
        """
        return copies(np.asarray(ends, np.int64), self._units_within(within))

    def spans(
        self,
        bases: Sequence[Int[np.ndarray, " _groups"]],
        placement: Int[np.ndarray, " runs"],
        group_chips: Int[np.ndarray, " runs"],
        n_chips_in_run: Int[np.ndarray, " runs"],
    ) -> Span:
        """Find the same for many kinds of runs, each of which cuts its groups evenly.

        Args:
            bases: first chips of groups: one array for each placement.
            placement: the placement of each kind of run.
            group_chips: chips of its groups.
            n_chips_in_run: chips of the run.

        Returns:
            Integer arrays, an entry per kind of run.

        Raises:
            PlanError: if a group cannot be cut evenly.
        """
        if np.any(uneven := group_chips % n_chips_in_run != 0):
            chips, n = (int(x[uneven][0]) for x in (group_chips, n_chips_in_run))
            raise PlanError(f"a group of {chips} chips is not cut evenly into runs of {n}")
        return worst_spans(bases, placement, group_chips, n_chips_in_run, self._units)

    @property
    def period_chips(self) -> int:
        """Chips after which the units repeat: what a run touches depends on where in them it is."""
        return period(self._units)

    def _units_within(self, n_chips: int | None) -> Units:
        """The units of the machine, of whose chips only the first may be used."""
        return self._units if n_chips is None else replace(self._units, machine=n_chips)

    @property
    def _units(self) -> Units:
        half_rack = self.node_chips * self.nodes_per_half_rack
        return Units(
            node=self.node_chips, half_rack=half_rack, rack=self.rack_chips, machine=self.n_chips
        )


def _chips_of(links: Int[np.ndarray, "5 links"], unit_chips: int) -> Int[np.ndarray, "3 links"]:
    """Turn units and positions in them into chips."""
    own, other, part, near, far = links
    return np.stack([own * unit_chips + near, other * unit_chips + far, part])
