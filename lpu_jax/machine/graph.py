"""The links of a machine as one graph, to count, to walk and to prove connected.

Chips are numbers and links are rows of arrays, so that a machine of ten thousand chips is listed
and searched in milliseconds. Not modelled: rates and times; `topology` has them by level.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int


@dataclass(frozen=True, kw_only=True, eq=False)
class LinkGraph:
    """Every link, one way, sorted by sending chip.

    Attributes:
        n_chips: chips, spare ones included.
        src: sending chip of each link.
        dst: receiving chip.
        part: number of the link among those of the same pair of nodes (or racks).
        level: 0 inside a node, 1 between nodes of a rack, 2 between racks.
        first: first link of each chip, then the number of links.
    """

    n_chips: int
    src: Int[np.ndarray, " links"]
    dst: Int[np.ndarray, " links"]
    part: Int[np.ndarray, " links"]
    level: Int[np.ndarray, " links"]
    first: Int[np.ndarray, " chips_and_end"]

    def links_per_chip(self, level: int | None = None) -> Int[np.ndarray, " chips"]:
        """Count the links that leave each chip.

        Args:
            level: count those of one level only.

        Returns:
            Links of each chip.
        """
        src = self.src if level is None else self.src[self.level == level]
        counts: Int[np.ndarray, " chips"] = np.bincount(src, minlength=self.n_chips)
        return counts

    def _beyond(self, chips: Int[np.ndarray, " reached"]) -> Int[np.ndarray, " links"]:
        """Numbers of all links that leave some chips."""
        counts = self.first[chips + 1] - self.first[chips]
        ends = np.cumsum(counts)
        skipped = np.repeat(self.first[chips] - (ends - counts), counts)
        links: Int[np.ndarray, " links"] = np.arange(ends[-1]) + skipped
        return links

    def _walk(
        self, src: int, dst: int | None = None
    ) -> tuple[Int[np.ndarray, " chips"], Int[np.ndarray, " chips"]]:
        """Go from a chip to all others, nearest first, until all (or `dst`) are reached.

        Returns:
            Hops to each chip, -1 where it was not reached, and the chip before it on the way.
        """
        hops = np.full(self.n_chips, -1)
        before = np.full(self.n_chips, -1)
        hops[src] = 0
        reached = np.array([src])
        while reached.size and (dst is None or hops[dst] < 0):
            links = self._beyond(reached)
            links = links[hops[self.dst[links]] < 0]
            distance = hops[reached[0]] + 1
            reached, index = np.unique(self.dst[links], return_index=True)
            hops[reached] = distance
            before[reached] = self.src[links[index]]
        return hops, before

    def hops_from(self, src: int) -> Int[np.ndarray, " chips"]:
        """Count the links of a shortest path from one chip to every chip.

        Args:
            src: the chip.

        Returns:
            Hops to each chip; -1 where there is no path.
        """
        return self._walk(src)[0]

    def shortest(self, src: int, dst: int) -> tuple[int, ...] | None:
        """Find a shortest path from one chip to another.

        Args:
            src: first chip.
            dst: last chip.

        Returns:
            The chips on the path, both ends included; None if there is no path.
        """
        hops, before = self._walk(src, dst)
        if hops[dst] < 0:
            return None
        way = [dst]
        while way[-1] != src:
            way.append(int(before[way[-1]]))
        return tuple(reversed(way))


def link_graph(n_chips: int, levels: list[Int[np.ndarray, "3 _"]]) -> LinkGraph:
    """Put the links of all levels into one graph.

    Args:
        n_chips: chips.
        levels: for each level, rows of sending chips, receiving chips and numbers of links.

    Returns:
        The graph.
    """
    src, dst, part = np.concatenate(levels, axis=1)
    level = np.repeat(np.arange(len(levels)), [links.shape[1] for links in levels])
    order = np.lexsort((part, dst, src))
    src = src[order]
    return LinkGraph(
        n_chips=n_chips,
        src=src,
        dst=dst[order],
        part=part[order],
        level=level[order],
        first=np.searchsorted(src, np.arange(n_chips + 1)),
    )


def repeated(
    links: Int[np.ndarray, "3 links"], firsts: Int[np.ndarray, " copies"]
) -> Int[np.ndarray, "3 all_links"]:
    """Repeat links in every unit that begins at one of some chips.

    Args:
        links: rows of sending chips, receiving chips and numbers of links, as if in a first unit.
        firsts: first chip of each unit.

    Returns:
        The same rows, for all units.
    """
    moved = links[:, None, :] + np.stack([firsts, firsts, np.zeros_like(firsts)])[:, :, None]
    return np.reshape(moved, (3, -1))
