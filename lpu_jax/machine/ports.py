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
from jaxtyping import Int

from ..errors import PlanError

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
        """Refuse links that find no ports, and peers that no link reaches."""
        if self.n_links < 1:
            raise PlanError(
                f"{self.positions} chips with {self.ports} ports each have no link to each of "
                f"{self.peers} peers: they are not connected"
            )
        if self.n_links * self.peers > self.positions * self.ports:
            raise PlanError(
                f"{self.n_links} links to each of {self.peers} peers need "
                f"{self.n_links * self.peers} ports; {self.positions} chips with {self.ports} each "
                f"have {self.positions * self.ports}"
            )

    @property
    def _chips_per_part(self) -> int:
        """Chips that carry only this part; 0 if parts do not fall on whole chips."""
        return 0 if self.positions % self.n_links else self.positions // self.n_links

    @property
    def pairs_equals(self) -> bool:
        """Whether every chip is linked with the chip of equal position of every peer."""
        return self.n_links % self.positions == 0

    @property
    def links_to_equal(self) -> int:
        """Parallel links from a chip to its counterpart in a peer, where `pairs_equals`; else 1."""
        return self.n_links // self.positions if self.pairs_equals else 1

    def position(self, part: Numbers, rank: Numbers) -> Numbers:
        """Find the chip that carries one link.

        Args:
            part: number of the link in its pair, from 0; a number or an array.
            rank: rank of the peer among the peers, from 0; likewise.

        Returns:
            The chip's position in the node.
        """
        if self._chips_per_part:
            return part * self._chips_per_part + rank % self._chips_per_part
        if self.pairs_equals:
            return part // self.links_to_equal
        # Parts and chips do not divide each other: fill the ports part by part.
        return (part * self.peers + rank) // self.ports

    @staticmethod
    def rank(own: Numbers, other: Numbers) -> Numbers:
        """Rank of a peer: its number, not counting oneself.

        Args:
            own: number of this node; a number or an array.
            other: number of the peer; likewise.

        Returns:
            The rank, from 0.
        """
        return other - (other > own)

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

    def links_among(self, n_units: int) -> Int[np.ndarray, "5 links"]:
        """List all links among the first nodes, each way on its own.

        Args:
            n_units: nodes, at most the peers and one.

        Returns:
            Rows: sending node, receiving node, number of the link, position in the sending node,
            position in the receiving node.
        """
        own, other, part = (
            grid.reshape(-1)
            for grid in np.meshgrid(
                np.arange(n_units), np.arange(n_units), np.arange(self.n_links), indexing="ij"
            )
        )
        differs = own != other
        own, other, part = own[differs], other[differs], part[differs]
        near = self.position(part, self.rank(own, other))
        far = self.position(part, self.rank(other, own))
        return np.stack([own, other, part, near, far])

    def most_links(self, n_units: int) -> int:
        """Count the links of the chip that has most, among the first nodes.

        Args:
            n_units: nodes, at most the peers and one.

        Returns:
            Links of one chip.
        """
        return _most_links(self, n_units)

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


@functools.lru_cache(maxsize=1000)
def _most_links(ports: PortMap, n_units: int) -> int:
    """Count links by sending node and position; see `PortMap.most_links`."""
    own, _, _, near, _ = ports.links_among(n_units)
    return int(np.bincount(own * ports.positions + near).max(initial=0))
