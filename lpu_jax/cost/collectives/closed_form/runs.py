"""Runs of chips as arrays: what each touches, and what the runs beside it share with it.

A run is contiguous, or every `stride`-th chip of a contiguous block that `stride` interleaved runs
fill; all runs of a group of chips go at once. Not modelled: blocks that are not contiguous.
"""

from dataclasses import dataclass

import numpy as np

from ....machine.ports import Numbers
from ....machine.spans import Span
from ....machine.topology import Topology

# Runs over racks that may use a link inside a rack at once: two, one that goes on to the next rack
# and one to the rack before, or that meet inside a node. A run that is alone may forward twice if
# what lands for a single node of a rack lands outside of it.
_MEETING_RUNS = 2
_FORWARDING_TWICE = 2


@dataclass(frozen=True, kw_only=True)
class Run:
    """A span as float arrays, with the masks that every schedule asks for.

    Attributes:
        n: chips of the run.
        nodes: nodes it has chips in.
        reach: nodes from its first to its last.
        most: most chips it has in one node.
        racks: racks it touches.
        passes: where racks are in a chain, hops between them, one after another.
        single: whether it lies inside one node.
        many: whether it has chips in several nodes.
        far: whether it has chips in several racks.
        contiguous: whether its chips are neighbours.
        filled: whether its block of chips consists of whole nodes.
        aligned: whether it has chips at the same positions in each of its nodes.
        interleaved: runs that have chips in the same two nodes.
        crossing: of runs over racks, those that use the same link between racks.
        forwarded: of these, those that use the same local link at once.
        collected: the same on the way to the links between racks.
        meeting: of these, those that use the same link between nodes at once.
    """

    n: Numbers
    nodes: Numbers
    reach: Numbers
    most: Numbers
    racks: Numbers
    passes: Numbers
    single: Numbers
    many: Numbers
    far: Numbers
    contiguous: Numbers
    filled: Numbers
    aligned: Numbers
    interleaved: Numbers
    crossing: Numbers
    forwarded: Numbers
    collected: Numbers
    meeting: Numbers

    @property
    def per_node(self) -> Numbers:
        """Chips of an aligned run in each of its nodes."""
        return self.n / np.maximum(self.nodes, 1.0)


def _passes(topology: Topology, n: Numbers, gap: Numbers, racks: Numbers) -> Numbers:
    """Hops along a chain; a ring counts as closed for runs that have chips in all of its racks."""
    has_all = (n * gap == topology.n_racks * topology.rack_chips) & (topology.rack_chips % gap == 0)
    closed = (topology.rack_wiring == "ring") & has_all
    return np.where(closed, racks // 2, racks - 1)


def run_of(topology: Topology, span: Span, stride: Numbers = 1) -> Run:
    """Turn a span into float arrays and masks.

    Args:
        topology: the machine's links.
        span: `n_chips` of a run, and what its block of chips touches.
        stride: chips from one chip of a run to the next; the block is `stride` times the run.

    Returns:
        The same numbers for a single run of the block.
    """
    n = np.asarray(span.n_chips, np.float64)
    gap = np.asarray(stride, np.int64)
    size = topology.node_chips
    reach = np.asarray(span.nodes, np.float64)
    nodes = np.minimum(n, reach)
    racks = np.asarray(span.racks, np.float64)
    filled = np.asarray(span.fewest) == size
    # Chips of a run over several nodes are in every node, or in every k-th of a block.
    divides = (size % gap == 0) | (gap % size == 0)
    interleaved = np.minimum(gap, size).astype(np.float64)
    far = (racks > 1) & (n > 1)
    # Nobody else uses the links at the same time.
    alone = np.asarray(span.alone, np.bool_)
    meeting = np.where(filled | alone, 1, _MEETING_RUNS)
    if topology.racks_in_chain:
        # Nobody forwards on local links but for its own chips.
        forwarded = np.ones_like(interleaved)
        rack_chips = topology.rack_chips
        regular = (rack_chips % gap == 0) | (gap % rack_chips == 0)
        crossing = np.where(regular, interleaved, np.minimum(gap, size * np.maximum(racks - 1, 1)))
        collected = crossing
        if not topology.node_ports.pairs_equals:
            # Chips collect what they send on, in nodes where the run may have no chip: all runs of
            # a block, and those of the block that goes on to the other neighbour.
            collected = np.where(alone, 1, _MEETING_RUNS) * gap
        meeting = meeting * interleaved
    else:
        crossing = gap * np.ones_like(interleaved)
        meeting = np.where(alone, 1, _MEETING_RUNS) * crossing
        twice = (topology.rack_wiring == "rack") & (np.asarray(span.fewest_in_rack) < 2 * size)
        forwarded = np.where(alone, np.where(twice, _FORWARDING_TWICE, 1), _MEETING_RUNS)
        forwarded = collected = forwarded * crossing
    return Run(
        n=n,
        nodes=nodes,
        reach=reach,
        most=np.maximum(1.0, np.minimum(n, -(-np.asarray(span.most) // gap))),
        racks=racks,
        passes=_passes(topology, n, gap, racks),
        single=(n > 1) & (nodes == 1),
        many=(n > 1) & (nodes > 1),
        far=far,
        contiguous=gap == 1,
        filled=filled,
        aligned=filled & divides,
        interleaved=interleaved,
        crossing=crossing,
        forwarded=forwarded,
        collected=collected,
        meeting=meeting,
    )
