"""Routes of sums and gathers over the nodes of racks, and over racks: the schedule `flat3`.

A node acts as one router: the chips that own its links forward for a run even if they are not in
it. Inside a rack: spread in the node onto the chips that own the links, exchange between all nodes,
gather in the node. Over racks the exchange between racks comes in between, and is followed by a
second round inside each rack where only some nodes have links to another rack. All runs go at once:
tables of chips and pieces are joined on (run, node). Not modelled: time.
"""

import math

import numpy as np
from jaxtyping import Int

from ....machine.topology import Topology
from .in_rack import gather_in_rack, hand_out, sum_in_rack
from .over_racks import rack_links
from .rows import (
    EXCHANGE,
    EXCHANGE_AGAIN,
    FORWARD,
    GATHER,
    RACKS,
    SPREAD,
    SPREAD_AGAIN,
    START,
    Rows,
    equal_pairs,
    first_arrivals,
    join_rows,
    make_rows,
    mirror,
    unique_columns,
)
from .spots import Numbering, Spots, join_spots, make_spots, overlap

IN_RACK = (SPREAD, EXCHANGE, GATHER)
TOWARDS_RACKS = (SPREAD, EXCHANGE, FORWARD)
BEHIND_RACKS = (SPREAD_AGAIN, EXCHANGE_AGAIN, GATHER)


def reduce_over_levels(topology: Topology, runs: Int[np.ndarray, "runs chips"]) -> tuple[Rows, int]:
    """Route an all_reduce over nodes or racks.

    Args:
        topology: the machine.
        runs: chips of each run; all runs reach over racks, or none does.

    Returns:
        The transfers and the number of pieces.
    """
    return _reduce(topology, runs, runs, runs)


def broadcast_over_levels(
    topology: Topology, runs: Int[np.ndarray, "runs chips"]
) -> tuple[Rows, int]:
    """Route a broadcast from the first chip the way of an all_reduce; nobody gets a piece twice.

    Args:
        topology: the machine.
        runs: chips of each run; all runs reach over racks, or none does.

    Returns:
        The transfers and the number of pieces.
    """
    rows, cut = _reduce(topology, runs, runs[:, :1], runs[:, 1:])
    return first_arrivals(rows, runs[:, :1]), cut


def _reduce(
    topology: Topology,
    runs: Int[np.ndarray, "runs chips"],
    sources: Int[np.ndarray, "runs sources"],
    members: Int[np.ndarray, "runs members"],
) -> tuple[Rows, int]:
    """Sum what sources hold and bring it to members."""
    numbering, n = Numbering(topology), runs.shape[1]
    n_links = topology.node_ports.n_links
    run = np.arange(runs.shape[0])[:, None]
    if not crosses_racks(topology, runs):
        holders = make_spots(run, sources, 0, n_links).pieces()
        needs = make_spots(run, members, 0, n_links).pieces()
        return sum_in_rack(numbering, n, n_links, holders, needs, IN_RACK, START), n_links
    links = rack_links(topology, sources, members)
    cut = math.lcm(n_links, links.n_shares)
    share = cut // links.n_shares
    holders = make_spots(run, sources, 0, cut).pieces()
    needs = make_spots(run, members, 0, cut)
    leaving = links.distance <= 1
    gates = make_spots(links.run, links.src, links.share * share, share).take(leaving)
    landed = make_spots(links.run, links.dst, links.share * share, share).pieces()
    positions = _positions(runs // topology.rack_chips, topology.n_racks)
    across = make_rows(
        n,
        phase=RACKS + np.maximum(0, links.distance - 1),
        run=links.run,
        src=links.src,
        dst=links.dst,
        part=links.part,
        first=links.share * share,
        count=share,
        origin=positions[0][links.run, links.origin],
        origins=positions[1][links.run, links.origin],
    )
    if topology.racks_in_chain:
        # Chips pass on in one go what their own rack and the others sent: the last gather.
        own = _at_own_sources(topology, sources, members)
        own = Spots(own.run, own.chip, own.chip % topology.node_chips * share, own.count * share)
        gates = join_spots(gates, own).pieces()
        near = sum_in_rack(numbering, n, cut, holders, gates, TOWARDS_RACKS, START)
        senders = join_spots(gates, landed).pieces()
        return join_rows([near, across, _pass_on(numbering, n, senders, needs, START)]), cut
    near_needs = join_spots(needs, gates).pieces()
    near = sum_in_rack(numbering, n, cut, holders, near_needs, TOWARDS_RACKS, START)
    if topology.rack_wiring == "node":
        return join_rows([near, across, _pass_on(numbering, n, landed, needs, RACKS)]), cut
    behind = sum_in_rack(numbering, n, cut, landed, needs.pieces(), BEHIND_RACKS, RACKS)
    return join_rows([near, across, behind]), cut


def gather_over_levels(topology: Topology, runs: Int[np.ndarray, "runs chips"]) -> tuple[Rows, int]:
    """Route an all_gather over nodes or racks.

    Args:
        topology: the machine.
        runs: chips of each run; all runs reach over racks, or none does.

    Returns:
        The transfers and the number of pieces.
    """
    numbering, (n_runs, n) = Numbering(topology), runs.shape
    run, place = np.arange(n_runs)[:, None], np.arange(n)
    n_links = topology.node_ports.n_links
    links = rack_links(topology, runs, runs) if crosses_racks(topology, runs) else None
    fine = math.lcm(n_links, links.n_shares) if links else n_links
    if links and topology.rack_wiring == "rack":
        # What comes in over a link between racks is spread over links between nodes again.
        fine = n_links * links.n_shares
    holders = make_spots(run, runs, place * fine, fine)
    needs = make_spots(run, runs, 0, n * fine)
    (at, chip), of_cell = unique_columns(
        numbering.key(holders), holders.chip // topology.node_chips * topology.node_chips
    )
    width = np.bincount(of_cell)
    begin = np.full(at.size, n)
    np.minimum.at(begin, of_cell, np.tile(place, n_runs))
    blocks = make_spots(at // numbering.n_nodes, chip, begin * fine, width * fine)
    if links is None:
        rows = gather_in_rack(numbering, n, holders, blocks, needs, IN_RACK)
    else:
        first, count = _positions(runs // topology.rack_chips, topology.n_racks)
        share = count[links.run, links.origin] * fine // links.n_shares
        begin = first[links.run, links.origin] * fine + links.share * share
        gates = make_spots(links.run, links.src, begin, share).take(links.distance <= 1)
        landed = make_spots(links.run, links.dst, begin, share)
        local_needs = _in_rack(numbering, needs, first * fine, count * fine)
        near = gather_in_rack(
            numbering, n, holders, blocks, join_spots(local_needs, gates), TOWARDS_RACKS
        )
        across = make_rows(
            n,
            phase=RACKS + np.maximum(0, links.distance - 1),
            run=links.run,
            src=links.src,
            dst=links.dst,
            part=links.part,
            first=begin,
            count=share,
        )
        if topology.rack_wiring == "rack":
            last = gather_in_rack(numbering, n, landed, landed, needs, BEHIND_RACKS)
        else:
            last = hand_out(numbering, n, GATHER, landed, needs)
        rows = join_rows([near, across, last])
    return rows, n * fine


def scatter_over_levels(
    topology: Topology, runs: Int[np.ndarray, "runs chips"]
) -> tuple[Rows, int]:
    """Route a reduce_scatter over nodes or racks, the mirror image of an all_gather.

    Args:
        topology: the machine.
        runs: chips of each run; all runs reach over racks, or none does.

    Returns:
        The transfers and the number of pieces.
    """
    rows, n_pieces = gather_over_levels(topology, runs)
    return mirror(rows, GATHER), n_pieces


def crosses_racks(topology: Topology, runs: Int[np.ndarray, "runs chips"]) -> bool:
    """Say whether runs reach over several racks.

    Args:
        topology: the machine.
        runs: chips of each run.

    Returns:
        Whether any of them does.
    """
    racks = runs // topology.rack_chips
    return bool(np.any(racks.min(axis=1) != racks.max(axis=1)))


def _positions(
    units: Int[np.ndarray, "runs chips"], n_units: int
) -> tuple[Int[np.ndarray, "runs units"], Int[np.ndarray, "runs units"]]:
    """Find the first position in the run of the chips in each unit, and how many they are."""
    count = np.zeros((units.shape[0], n_units), np.int64)
    np.add.at(count, (np.arange(units.shape[0])[:, None], units), 1)
    return np.cumsum(count, axis=1) - count, count


def _at_own_sources(
    topology: Topology,
    sources: Int[np.ndarray, "runs sources"],
    members: Int[np.ndarray, "runs chips"],
) -> Spots:
    """All chips of the nodes of members that have sources in their own rack."""
    size, rack_chips = topology.node_chips, topology.rack_chips
    runs = np.arange(members.shape[0])[:, None]
    fed = np.zeros((members.shape[0], topology.n_racks), np.bool_)
    fed[runs, sources // rack_chips] = True
    run, place = np.nonzero(fed[runs, members // rack_chips])
    first = members[run, place] // size * size
    return make_spots(run[:, None], first[:, None] + np.arange(size), 0, 1)


def _in_rack(
    numbering: Numbering,
    needs: Spots,
    first: Int[np.ndarray, "runs racks"],
    count: Int[np.ndarray, "runs racks"],
) -> Spots:
    """Narrow needs down to what comes from the own rack."""
    rack = needs.chip // numbering.topology.rack_chips
    return Spots(needs.run, needs.chip, first[needs.run, rack], count[needs.run, rack])


def _pass_on(numbering: Numbering, n: int, senders: Spots, needs: Spots, since: int) -> Rows:
    """Send what landed on chips to the chips of their nodes, as the last step."""
    h, w = equal_pairs(numbering.key(senders), numbering.key(needs))
    found, kept = overlap(senders.take(h), needs.first[w], needs.count[w])
    return make_rows(
        n,
        phase=GATHER,
        run=found.run,
        src=found.chip,
        dst=needs.chip[w[kept]],
        first=found.first,
        count=found.count,
        since=since,
    )
