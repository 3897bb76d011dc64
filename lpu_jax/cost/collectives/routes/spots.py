"""Tables of chips and the pieces that they hold or need, and the numbering of runs and nodes.

What the routes over levels are made of. Not modelled: time.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from ....machine.topology import Topology
from .rows import equal_pairs, near_ends, unique_columns


@dataclass(frozen=True)
class Spots:
    """Chips and the pieces that they hold or need: `count` of them from `first` on."""

    run: Int[np.ndarray, " spots"]
    chip: Int[np.ndarray, " spots"]
    first: Int[np.ndarray, " spots"]
    count: Int[np.ndarray, " spots"]

    def take(self, which: Int[np.ndarray, " some"] | Bool[np.ndarray, " spots"]) -> "Spots":
        """Select spots.

        Args:
            which: indices, or a mask.

        Returns:
            The spots selected.
        """
        return Spots(self.run[which], self.chip[which], self.first[which], self.count[which])

    def pieces(self) -> "Spots":
        """Split spots into single pieces.

        Returns:
            One spot for each run, chip and piece.
        """
        index = np.repeat(np.arange(self.run.size), self.count)
        offset = np.arange(index.size) - np.repeat(np.cumsum(self.count) - self.count, self.count)
        (run, chip, first), _ = unique_columns(
            self.run[index], self.chip[index], self.first[index] + offset
        )
        return Spots(run, chip, first, np.ones_like(first))


def make_spots(
    run: Int[np.ndarray, "..."],
    chip: Int[np.ndarray, "..."],
    first: int | Int[np.ndarray, "..."],
    count: int | Int[np.ndarray, "..."],
) -> Spots:
    """Make spots from columns that broadcast against each other.

    Args:
        run: number of the run.
        chip: the chip.
        first: first piece.
        count: number of pieces.

    Returns:
        Spots with flat columns.
    """
    columns = np.broadcast_arrays(run, chip, first, count)
    return Spots(*(np.asarray(column, np.int64).reshape(-1) for column in columns))


def join_spots(a: Spots, b: Spots) -> Spots:
    """Put two tables together.

    Args:
        a: one.
        b: the other.

    Returns:
        All spots of both.
    """
    pairs = ((a.run, b.run), (a.chip, b.chip), (a.first, b.first), (a.count, b.count))
    return Spots(*(np.concatenate(pair) for pair in pairs))


def overlap(
    spots: Spots, first: Int[np.ndarray, " spots"], count: Int[np.ndarray, " spots"]
) -> tuple[Spots, Int[np.ndarray, " kept"]]:
    """Cut each spot down to a range of pieces.

    Args:
        spots: the spots.
        first: first piece of each one's range.
        count: pieces of it.

    Returns:
        What is left of those of which something is left, and which these are.
    """
    low = np.maximum(spots.first, first)
    high = np.minimum(spots.first + spots.count, first + count)
    kept = np.flatnonzero(high > low)
    return Spots(spots.run[kept], spots.chip[kept], low[kept], (high - low)[kept]), kept


def union(spots: Spots, dst: Int[np.ndarray, " spots"]) -> tuple[Spots, Int[np.ndarray, " kept"]]:
    """Cut down spots that are sent to chips so that each piece goes to a chip once.

    Args:
        spots: the senders and their pieces.
        dst: receiver of each.

    Returns:
        What is left of those of which something is left, and which these are.
    """
    order = np.lexsort((spots.first, spots.chip, dst, spots.run))
    sorted_, to = spots.take(order), dst[order]
    opens = np.ones(order.size, np.bool_)
    opens[1:] = (
        (sorted_.run[1:] != sorted_.run[:-1])
        | (to[1:] != to[:-1])
        | (sorted_.chip[1:] != sorted_.chip[:-1])
    )
    group = np.cumsum(opens)
    end = sorted_.first + sorted_.count
    # One running maximum serves all groups, because each is lifted above those before it.
    lift = group * (int(end.max(initial=0)) + 1)
    reached = np.maximum.accumulate(end + lift)
    begin = sorted_.first.copy()
    begin[1:] = np.where(opens[1:], begin[1:], np.maximum(begin[1:], reached[:-1] - lift[1:]))
    kept = np.flatnonzero(end > begin)
    left = Spots(sorted_.run[kept], sorted_.chip[kept], begin[kept], (end - begin)[kept])
    return left, order[kept]


@dataclass(frozen=True)
class Numbering:
    """A topology's numbering, with keys for (run, node).

    Attributes:
        topology: the machine.
    """

    topology: Topology

    @property
    def n_nodes(self) -> int:
        """Nodes of all racks, unused ones of the last rack included."""
        return self.topology.n_racks * self.topology.nodes_per_rack

    @property
    def n_chips(self) -> int:
        """Chips of all racks, unused ones of the last rack included."""
        return self.n_nodes * self.topology.node_chips

    def key(self, spots: Spots) -> Int[np.ndarray, " spots"]:
        """Number (run, node) of spots; divided by the nodes of a rack it numbers (run, rack).

        Args:
            spots: the spots.

        Returns:
            One number for each.
        """
        return np.asarray(spots.run * self.n_nodes + spots.chip // self.topology.node_chips)

    def links(
        self, sources: Int[np.ndarray, " from_"], receivers: Int[np.ndarray, " to"]
    ) -> tuple[Int[np.ndarray, " links"], ...]:
        """List all links from nodes that have something to other nodes of the rack that need it.

        Args:
            sources: keys of nodes, repeated at will.
            receivers: keys of nodes.

        Returns:
            For each link its sending and receiving chip, the keys of their nodes, and its part.
        """
        size, per_rack = self.topology.node_chips, self.topology.nodes_per_rack
        a, b = np.unique(sources), np.unique(receivers)
        i, j = equal_pairs(a // per_rack, b // per_rack)
        apart = a[i] != b[j]
        a, b = a[i][apart], b[j][apart]
        n_links = self.topology.node_ports.n_links
        if not a.size:
            return (a, a, a, a, a)
        ends = near_ends(self.topology.node_ports)
        near = (a % self.n_nodes * size)[:, None] + ends[a % per_rack, b % per_rack]
        far = (b % self.n_nodes * size)[:, None] + ends[b % per_rack, a % per_rack]
        part = np.tile(np.arange(n_links), a.size)
        return near.reshape(-1), far.reshape(-1), a.repeat(n_links), b.repeat(n_links), part
