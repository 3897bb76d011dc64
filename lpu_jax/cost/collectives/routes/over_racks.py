"""Links between racks as the routes over levels use them, for each way in which racks are wired.

Not modelled: time.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from ....machine.topology import Topology
from .rows import equal_pairs, near_ends, unique_columns


@dataclass(frozen=True)
class RackLinks:
    """Links from rack to rack that runs use, one entry for each run and link.

    Attributes:
        run: number of the run.
        origin: rack whose data goes over the link.
        distance: hops from origin to receiver, in a chain; else 0.
        src: sending chip.
        dst: receiving chip.
        part: which of the parallel links between the two.
        share: the part of the origin's data that it carries, of `n_shares`.
        n_shares: links over which the data is spread.
    """

    run: Int[np.ndarray, " links"]
    origin: Int[np.ndarray, " links"]
    distance: Int[np.ndarray, " links"]
    src: Int[np.ndarray, " links"]
    dst: Int[np.ndarray, " links"]
    part: Int[np.ndarray, " links"]
    share: Int[np.ndarray, " links"]
    n_shares: int


def rack_links(
    topology: Topology,
    sources: Int[np.ndarray, "runs sources"],
    members: Int[np.ndarray, "runs chips"],
) -> RackLinks:
    """List the links between racks that bring data from chips of a run to other chips of it.

    Args:
        topology: the machine; the runs reach over racks.
        sources: chips whose data is spread over their racks.
        members: chips that need it.

    Returns:
        For each run and rack with sources the links to every other rack with members.
    """
    if topology.racks_in_chain:
        return _chain(topology, sources, members)
    size, per_rack = topology.node_chips, topology.nodes_per_rack
    rack_chips = topology.rack_chips
    run = np.arange(members.shape[0]).repeat(members.shape[1])
    from_run = np.arange(sources.shape[0]).repeat(sources.shape[1])
    (from_run, origin), _ = unique_columns(from_run, sources.reshape(-1) // rack_chips)
    # With links from node to node of equal place, only places with members matter.
    by_node = topology.rack_wiring == "node"
    place = members.reshape(-1) // size % per_rack if by_node else np.zeros_like(run)
    (run, rack, place), _ = unique_columns(run, members.reshape(-1) // rack_chips, place)
    i, j = equal_pairs(from_run, run)
    apart = origin[i] != rack[j]
    i, j = i[apart], j[apart]
    ends = near_ends(topology.rack_ports)
    n_shares = ends.shape[2]
    base = place[j] * size
    near = (origin[i] * rack_chips + base)[:, None] + ends[origin[i], rack[j]]
    far = (rack[j] * rack_chips + base)[:, None] + ends[rack[j], origin[i]]
    part = np.tile(np.arange(n_shares), i.size)
    return RackLinks(
        run=run[j].repeat(n_shares),
        origin=origin[i].repeat(n_shares),
        distance=np.zeros_like(part),
        src=near.reshape(-1),
        dst=far.reshape(-1),
        part=part,
        share=part,
        n_shares=n_shares,
    )


def _chain(
    topology: Topology,
    sources: Int[np.ndarray, "runs sources"],
    members: Int[np.ndarray, "runs chips"],
) -> RackLinks:
    """Pass the data on from rack to rack, each chip to the one of equal position, both ways.

    A ring is closed for runs with chips in all of its racks.
    """
    size, per_rack = topology.node_chips, topology.nodes_per_rack
    run = np.arange(members.shape[0])[:, None]
    from_run = np.arange(sources.shape[0])[:, None]
    has_sources = np.zeros((members.shape[0], topology.n_racks), np.bool_)
    has_sources[from_run, sources // topology.rack_chips] = True
    has_members = np.zeros((*has_sources.shape, per_rack), np.bool_)
    has_members[run, members // topology.rack_chips, members // size % per_rack] = True
    n_racks, rack_chips = topology.n_racks, topology.rack_chips
    everywhere = np.any(has_members, axis=2).all(axis=1)
    is_ring = topology.rack_wiring == "ring" and bool(everywhere.all())
    # The farthest rack of a ring of even length is reached one way only.
    farthest = (n_racks // 2, (n_racks - 1) // 2) if is_ring else (n_racks - 1, n_racks - 1)
    racks, tables = np.arange(n_racks), []
    for way, most in zip((1, -1), farthest, strict=True):
        later = np.zeros_like(has_members)
        for distance in range(most, 0, -1):
            # Seen from the origin: whether the rack so far away, or one behind it, has members.
            there = racks + way * distance
            inside = np.full(n_racks, True) if is_ring else (there >= 0) & (there < n_racks)
            later |= has_members[:, there % n_racks] & inside[:, None]
            r, origin, place = np.nonzero(later & has_sources[:, :, None] & inside[:, None])
            ways, hops = np.full_like(r, way), np.full_like(r, distance)
            tables.append(np.stack([r, origin, hops, place, ways]))
    r, origin, distance, place, way_ = np.concatenate(tables, axis=1).repeat(size, axis=1)
    position = np.tile(np.arange(size), r.size // size)
    dst = (origin + way_ * distance) % n_racks * rack_chips + place * size + position
    return RackLinks(
        run=r,
        origin=origin,
        distance=distance,
        src=(dst - way_ * rack_chips) % (n_racks * rack_chips),
        dst=dst,
        part=np.zeros_like(dst),
        share=position,
        n_shares=size,
    )
