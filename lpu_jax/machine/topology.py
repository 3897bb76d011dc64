"""Chips, the links between them, and where groups of chips are put.

A machine has levels: a node is a few chips with a link between any two, a rack is a few nodes, and
there may be racks. Chips are numbered node by node, rack by rack. The machines themselves are in
`built_topologies` and `custom_topology`; how collectives use the links is in `cost.collectives`.

Not modelled: link errors, synchronisation of clocks, failed nodes (a spare one only takes links).
The last node, and the last of several racks, are physically whole even if `n_chips` does not fill
them: their other chips forward but hold nothing.
"""

import functools
import itertools
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Int

from ..errors import PlanError
from .graph import LinkGraph, link_graph
from .levels import Level, levels_of, reach_s
from .ports import Link, Numbers
from .wiring import Wiring


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
        fewest_in_rack: fewest chips it has in any rack it touches.
        alone: whether no other run of its group goes at the same time.
    """

    n_chips: Numbers
    nodes: Numbers
    fewest: Numbers
    most: Numbers
    half_racks: Numbers
    racks: Numbers
    fewest_in_rack: Numbers
    alone: Numbers


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
class Topology(Wiring):
    """A machine of levels of chips and links; times in seconds, rates in bytes per second."""

    @functools.cached_property
    def levels(self) -> tuple[Level, ...]:
        """The levels that this machine has, innermost first; see `levels`."""
        return levels_of(self)

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

    def reach_s(self, n_chips: int) -> float:
        """Time in which one chip's vector can be at any of the first `n_chips` chips.

        Args:
            n_chips: chips to reach, the sender included.

        Returns:
            Seconds; 0 for one chip.
        """
        return reach_s(self, n_chips)

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
        if self.rack_wiring == "line":
            return (0,) if abs(rack_a - rack_b) == 1 and a == b else ()
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
                _repeated(inside, np.arange(self.installed_nodes) * size),
                _repeated(_chips_of(among, size), np.arange(self.n_racks) * rack_chips),
                self._rack_links(),
            ],
        )

    def _rack_links(self) -> Int[np.ndarray, "3 links"]:
        """Sending chip, receiving chip and number of each link between racks."""
        rack_chips = self.rack_chips
        if self.rack_wiring == "line":
            up = np.arange(rack_chips * (self.n_racks - 1))
            ends = np.concatenate([[up, up + rack_chips], [up + rack_chips, up]], axis=1)
            return np.concatenate([ends, np.zeros_like(ends[:1])])
        links = _chips_of(self.rack_ports.links_among(self.n_racks), rack_chips)
        if self.rack_wiring == "rack":
            return links
        return _repeated(links, np.arange(self.nodes_per_rack) * self.node_chips)

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
                raise PlanError(
                    f"a group of {group_chips} chips is not cut evenly into runs of {n}"
                )
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
            fewest_in_rack=int(
                np.minimum(
                    np.minimum(self.rack_chips - first % self.rack_chips, n),
                    np.minimum(last % self.rack_chips + 1, n),
                ).min()
            ),
            # Groups are stages: they work one after another.
            alone=group_chips == n if group_chips is not None else first.size == 1,
        )


def _place(n_groups: int, group_chips: int, units: tuple[int, ...]) -> Int[np.ndarray, " groups"]:
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


def _chips_of(links: Int[np.ndarray, "5 links"], unit_chips: int) -> Int[np.ndarray, "3 links"]:
    """Turn units and positions in them into chips."""
    own, other, part, near, far = links
    return np.stack([own * unit_chips + near, other * unit_chips + far, part])


def _repeated(
    links: Int[np.ndarray, "3 links"], firsts: Int[np.ndarray, " copies"]
) -> Int[np.ndarray, "3 all_links"]:
    """Repeat links in every unit that begins at one of some chips."""
    moved = links[:, None, :] + np.stack([firsts, firsts, np.zeros_like(firsts)])[:, :, None]
    return np.reshape(moved, (3, -1))
