"""Which chip of a node carries which link to the other nodes.

Public sources give the number of links per chip and per pair of nodes, not the chips they end on.
The placement here is therefore assumed. It keeps, as far as the numbers allow, every chip on one
part of the vector, so that a reduction inside the node prepares the data for all its links at once.
Not modelled: cable lengths and spare ports.
"""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

#: One number, or one per plan.
Numbers = Any


@dataclass(frozen=True, kw_only=True)
class Link:
    """One link, one way.

    Attributes:
        src: sending chip.
        dst: receiving chip.
        part: number of the link among those of the same pair of nodes (or racks).
        bytes_per_s: rate.
    """

    src: int
    dst: int
    part: int
    bytes_per_s: float

    @property
    def name(self) -> str:
        """The link's name, such as `"3>11#1"`."""
        return f"{self.src}>{self.dst}#{self.part}"


@dataclass(frozen=True, kw_only=True)
class PortMap:
    """Places `n_links` links to each of `peers` peers on the chips of a node.

    Link `i` of a pair carries part `i` of `n_links` of a vector and ends, on both sides, on the
    chip that this map gives for part `i` and the rank of the peer.

    Attributes:
        positions: chips of the node.
        ports: links that each chip can carry.
        peers: other nodes.
        n_links: links to each of them.
    """

    positions: int
    ports: int
    peers: int
    n_links: int

    def __post_init__(self) -> None:
        """Check that the links find ports."""
        assert self.n_links >= 1
        assert self.n_links * self.peers <= self.positions * self.ports

    @property
    def _chips_per_part(self) -> int:
        """Chips that carry only this part; 0 if parts do not fall on whole chips."""
        return 0 if self.positions % self.n_links else self.positions // self.n_links

    def position(self, part: int, rank: int) -> int:
        """Find the chip that carries one link.

        Args:
            part: number of the link in its pair, from 0.
            rank: rank of the peer among the peers, from 0.

        Returns:
            The chip's position in the node.
        """
        if self._chips_per_part:
            return part * self._chips_per_part + rank % self._chips_per_part
        if self.n_links % self.positions == 0:
            return part // (self.n_links // self.positions)
        # Parts and chips do not divide each other: fill the ports part by part.
        return (part * self.peers + rank) // self.ports

    @staticmethod
    def rank(own: int, other: int) -> int:
        """Rank of a peer: its number, not counting oneself.

        Args:
            own: number of this node.
            other: number of the peer.

        Returns:
            The rank, from 0.
        """
        return other if other < own else other - 1

    def ends(self, own: int, other: int, part: int) -> tuple[int, int]:
        """Find both ends of one link.

        Args:
            own: number of the sending node.
            other: number of the receiving node.
            part: number of the link.

        Returns:
            Position in the sending node, position in the receiving node.
        """
        return (
            self.position(part, self.rank(own, other)),
            self.position(part, self.rank(other, own)),
        )

    def parts_between(self, own: int, chip: int, other: int, far: int) -> tuple[int, ...]:
        """List the links of a pair of nodes that join two given chips.

        Args:
            own: number of the sending node.
            chip: position in it.
            other: number of the receiving node.
            far: position in it.

        Returns:
            Numbers of the links, often none.
        """
        if own == other:
            return ()
        found = _by_near_chip(self, own, other).get(chip, ())
        return tuple(part for part, end in found if end == far)

    def far_ends(self, own: int, chip: int, other: int) -> tuple[int, ...]:
        """List the chips of another node that a chip has a link to.

        Args:
            own: number of the chip's node.
            chip: its position.
            other: number of the other node.

        Returns:
            Positions in the other node.
        """
        if own == other:
            return ()
        found = _by_near_chip(self, own, other).get(chip, ())
        return tuple(sorted({far for _, far in found}))

    @functools.cached_property
    def parts_per_chip(self) -> int:
        """Most parts of a vector that one chip carries, over all its links."""
        parts: dict[int, set[int]] = {}
        for part in range(self.n_links):
            for rank in range(self.peers):
                parts.setdefault(self.position(part, rank), set()).add(part)
        return max(len(carried) for carried in parts.values())

    @property
    def share_per_chip(self) -> float:
        """Largest share of a vector that one chip carries, over all its links."""
        return self.parts_per_chip / self.n_links

    def links_per_chip(self, n_peers: Numbers) -> Numbers:
        """Bound the links that one chip has to a contiguous range of peers.

        Args:
            n_peers: peers in the range, a number or an array.

        Returns:
            An upper bound of the same shape, exact where parts fall on whole chips.
        """
        if self._chips_per_part:
            links = np.ceil(np.asarray(n_peers) / self._chips_per_part)
        else:
            links = np.asarray(n_peers, np.float64) * self.parts_per_chip
        return np.minimum(self.ports, links)


@functools.lru_cache(maxsize=100_000)
def _by_near_chip(ports: PortMap, own: int, other: int) -> dict[int, tuple[tuple[int, int], ...]]:
    """List the links of a pair of nodes by the sending chip: number and receiving chip of each."""
    found: dict[int, tuple[tuple[int, int], ...]] = {}
    for part in range(ports.n_links):
        near, far = ports.ends(own, other, part)
        found[near] = (*found.get(near, ()), (part, far))
    return found
