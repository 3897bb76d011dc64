"""Routes of single messages over nodes and racks: all_to_all, send and hand-over.

A message goes the way of `flat3`: inside its node to the chip that owns the link, over it, and
inside the receiving node to where it is needed. Not modelled: time.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int

from ....errors import CostError
from ....machine.topology import Topology
from .over_levels import crosses_racks
from .rows import (
    EXCHANGE,
    EXCHANGE_AGAIN,
    FORWARD,
    GATHER,
    RACKS,
    SPREAD,
    SPREAD_AGAIN,
    Rows,
    equal_pairs,
    first_arrivals,
    join_rows,
    make_rows,
    near_ends,
    unique_columns,
)

#: Messages of an all_to_all that are still listed one by one.
MOST_MESSAGES = 4_000_000


@dataclass(frozen=True, kw_only=True)
class _Messages:
    """Single pieces on their way to a node; `link` and `rack_link` choose among parallel links."""

    run: Int[np.ndarray, " messages"]
    chip: Int[np.ndarray, " messages"]
    node: Int[np.ndarray, " messages"]
    piece: Int[np.ndarray, " messages"]
    link: Int[np.ndarray, " messages"]
    rack_link: Int[np.ndarray, " messages"]
    origin: Int[np.ndarray, " messages"]


def _flat(**columns: int | Int[np.ndarray, "..."]) -> _Messages:
    arrays = np.broadcast_arrays(*columns.values())
    return _Messages(
        **{
            name: np.asarray(array, np.int64).reshape(-1)
            for name, array in zip(columns, arrays, strict=True)
        }
    )


@dataclass(frozen=True)
class _Carrier:
    """Moves messages and notes their transfers."""

    topology: Topology
    n: int
    messages: _Messages
    one_origin: bool
    tables: list[Rows]

    def move(
        self,
        phase: int | Int[np.ndarray, " moved"],
        src: Int[np.ndarray, " moved"],
        dst: Int[np.ndarray, " moved"],
        which: Int[np.ndarray, " moved"],
        part: int | Int[np.ndarray, " moved"] = 0,
    ) -> None:
        """Note a transfer of some of the messages."""
        sent = self.messages
        self.tables.append(
            make_rows(
                self.n,
                phase=phase,
                run=sent.run[which],
                src=src,
                dst=dst,
                part=part,
                first=sent.piece[which],
                origin=sent.origin[which],
                origins=1 if self.one_origin else self.n,
            )
        )

    def to_node(
        self,
        chip: Int[np.ndarray, " messages"],
        node: Int[np.ndarray, " messages"],
        phases: tuple[int, int],
    ) -> Int[np.ndarray, " messages"]:
        """Carry messages to another node of the same rack; returns where they land."""
        size = self.topology.node_chips
        moves = np.flatnonzero(chip // size != node)
        landed = chip.copy()
        if not moves.size:
            return landed
        a, b, part = chip[moves] // size, node[moves], self.messages.link[moves]
        near, landed[moves] = _node_ends(self.topology, a, b, part)
        self.move(phases[0], chip[moves], near, moves)
        self.move(phases[1], near, landed[moves], moves, part)
        return landed

    def deliver(self) -> Int[np.ndarray, " messages"]:
        """Carry all messages to their nodes; returns where they land."""
        topology, sent = self.topology, self.messages
        size, rack_chips = topology.node_chips, topology.rack_chips
        there = sent.node // topology.nodes_per_rack
        far = np.flatnonzero(sent.chip // rack_chips != there)
        if not far.size:
            return self.to_node(sent.chip, sent.node, (SPREAD, EXCHANGE))
        a, b, part = sent.chip[far] // rack_chips, there[far], sent.rack_link[far]
        leave, arrive = _rack_ends(topology, a, sent.node[far], part)
        stop = sent.node.copy()
        stop[far] = leave // size
        landed = self.to_node(sent.chip, stop, (SPREAD, EXCHANGE))
        stayed = landed[far] == sent.chip[far]
        self.move(np.where(stayed, SPREAD, FORWARD), landed[far], leave, far)
        if topology.racks_in_chain:
            self._along_the_chain(leave, b - a, far)
        else:
            self.move(RACKS, leave, arrive, far, part)
        landed[far] = arrive
        return self.to_node(landed, sent.node, (SPREAD_AGAIN, EXCHANGE_AGAIN))

    def _along_the_chain(
        self,
        chip: Int[np.ndarray, " far"],
        apart: Int[np.ndarray, " far"],
        which: Int[np.ndarray, " far"],
    ) -> None:
        """Carry messages from rack to rack, the shorter way round a ring."""
        topology = self.topology
        distance = np.asarray(topology.rack_distance(apart))
        step = np.where(distance == np.abs(apart), 1, -1) * np.sign(apart) * topology.rack_chips
        n_chips = topology.n_racks * topology.rack_chips
        for hop in range(int(distance.max())):
            on = distance > hop
            src = (chip + hop * step)[on] % n_chips
            self.move(RACKS + hop, src, (src + step[on]) % n_chips, which[on])


def _node_ends(
    topology: Topology,
    a: Int[np.ndarray, " links"],
    b: Int[np.ndarray, " links"],
    part: Int[np.ndarray, " links"],
) -> tuple[Int[np.ndarray, " links"], Int[np.ndarray, " links"]]:
    """Both ends of links between nodes of a rack."""
    size, per_rack = topology.node_chips, topology.nodes_per_rack
    ends = near_ends(topology.node_ports)
    near = a * size + ends[a % per_rack, b % per_rack, part]
    return near, b * size + ends[b % per_rack, a % per_rack, part]


def _rack_ends(
    topology: Topology,
    rack: Int[np.ndarray, " links"],
    node: Int[np.ndarray, " links"],
    part: Int[np.ndarray, " links"],
) -> tuple[Int[np.ndarray, " links"], Int[np.ndarray, " links"]]:
    """Where the way from a rack to a node of another leaves the rack, and where it arrives."""
    size, rack_chips = topology.node_chips, topology.rack_chips
    to, place = np.divmod(node, topology.nodes_per_rack)
    if topology.racks_in_chain:
        position = place * size + part
        return rack * rack_chips + position, to * rack_chips + position
    ends = near_ends(topology.rack_ports)
    base = place * size if topology.rack_wiring == "node" else np.zeros_like(place)
    return (
        rack * rack_chips + base + ends[rack, to, part],
        to * rack_chips + base + ends[to, rack, part],
    )


def _rack_links(topology: Topology, far: bool) -> int:
    """Links between two racks over which a node's data may be spread."""
    if not far:
        return 1
    return topology.node_chips if topology.racks_in_chain else topology.rack_ports.n_links


def send_over_levels(topology: Topology, runs: Int[np.ndarray, "runs chips"]) -> tuple[Rows, int]:
    """Route a vector from the first to the last chip of each run.

    Args:
        topology: the machine.
        runs: chips of each run; all runs reach over racks, or none does.

    Returns:
        The transfers and the number of pieces.
    """
    n_links = topology.node_ports.n_links
    n_rack_links = _rack_links(topology, crosses_racks(topology, runs))
    cut = math.lcm(n_links, n_rack_links)
    piece = np.arange(cut)
    messages = _flat(
        run=np.arange(runs.shape[0])[:, None],
        chip=runs[:, :1],
        node=runs[:, -1:] // topology.node_chips,
        piece=piece,
        link=piece * n_links // cut,
        rack_link=piece * n_rack_links // cut,
        origin=0,
    )
    return _to_chips(topology, runs, messages, runs[:, -1].repeat(cut), one_origin=False), cut


def all_to_all_over_levels(
    topology: Topology, runs: Int[np.ndarray, "runs chips"]
) -> tuple[Rows, int]:
    """Route a message from every chip of a run to every other.

    The messages of a pair of nodes are dealt out to its links in turn, cut no finer than needed to
    load all links alike.

    Args:
        topology: the machine.
        runs: chips of each run; all runs reach over racks, or none does.

    Returns:
        The transfers and the number of pieces.

    Raises:
        CostError: if there are too many messages to list.
    """
    size, n_links = topology.node_chips, topology.node_ports.n_links
    n_runs, n = runs.shape
    run, place = np.arange(n_runs)[:, None], np.arange(n)
    nodes = runs // size
    opens = np.ones(runs.shape, np.bool_)
    opens[:, 1:] = nodes[:, 1:] != nodes[:, :-1]
    begin = np.maximum.accumulate(np.where(opens, place, 0), axis=1)
    widths = np.diff(np.append(np.flatnonzero(opens), runs.size))
    cut = n_links // math.gcd(n_links, *np.unique(widths).tolist())
    if n_runs * n * n * cut > MOST_MESSAGES:
        raise CostError(
            f"all_to_all over {n_runs} runs of {n} chips: {n_runs * n * n * cut} messages are more "
            f"than the {MOST_MESSAGES} that can be listed"
        )
    from_, to = runs[:, :, None, None], runs[:, None, :, None]
    # Chips of a node take turns with the links, and so do the chips that they send to.
    rank = place - begin
    turn = cut * (rank[:, None, :, None] - rank[:, :, None, None]) + np.arange(cut)
    messages = _flat(
        run=run[:, :, None, None],
        chip=from_,
        node=to // size,
        piece=place[:, None] * cut + np.arange(cut),
        link=turn % n_links,
        rack_link=turn % _rack_links(topology, crosses_racks(topology, runs)),
        origin=place[:, None, None],
    )
    dst = np.broadcast_to(to, (n_runs, n, n, cut)).reshape(-1)
    return _to_chips(topology, runs, messages, dst, one_origin=True), n * cut


def _to_chips(
    topology: Topology,
    runs: Int[np.ndarray, "runs chips"],
    messages: _Messages,
    dst: Int[np.ndarray, " messages"],
    *,
    one_origin: bool,
) -> Rows:
    """Carry messages to chips."""
    carrier = _Carrier(topology, runs.shape[1], messages, one_origin, [])
    landed = carrier.deliver()
    phase = np.where(landed == messages.chip, SPREAD, GATHER)
    carrier.move(phase, landed, dst, np.arange(dst.size))
    return join_rows(carrier.tables)


def hand_over_between_levels(
    topology: Topology, runs: Int[np.ndarray, "runs chips"]
) -> tuple[Rows, int]:
    """Route a vector that every chip of a group holds to every chip of another group.

    The links of all nodes of the first group carry distinct shares to every node of the second,
    which gathers them. Where each chip has its own links to the other nodes, each chip sends its
    own share.

    Args:
        topology: the machine.
        runs: chips of the first group, then of the second; in one node, in one rack, or over racks.

    Returns:
        The transfers and the number of pieces.
    """
    size, n_links = topology.node_chips, topology.node_ports.n_links
    n_runs, n = runs.shape
    givers, takers = runs[:, : n // 2], runs[:, n // 2 :]
    run, chip, link, index, n_shares = _shares(topology, givers)
    n_rack_links = _rack_links(topology, crosses_racks(topology, runs))
    cut = math.lcm(*np.unique(n_shares).tolist(), n_rack_links)
    fine = cut // n_shares
    which = np.repeat(np.arange(run.size), fine)
    piece = index[which] * fine[which] + (
        np.arange(which.size) - np.repeat(np.cumsum(fine) - fine, fine)
    )
    (to_run, node), _ = unique_columns(
        np.arange(n_runs).repeat(takers.shape[1]), takers.reshape(-1) // size
    )
    m, b = equal_pairs(run[which], to_run)
    shared = piece[m] * n_rack_links // cut
    in_chain = topology.racks_in_chain
    messages = _flat(
        run=to_run[b],
        chip=chip[which[m]],
        node=node[b],
        piece=piece[m],
        link=link[which[m]],
        # Where a chip's own link to another rack takes on what landed on the chip.
        rack_link=link[which[m]] * size // n_links if in_chain else shared,
        origin=0,
    )
    messages = _from_holders(topology, givers, messages)
    carrier = _Carrier(topology, n, messages, False, [])
    landed = carrier.deliver()
    n_nodes = topology.n_racks * topology.nodes_per_rack
    taker_key = np.arange(n_runs)[:, None] * n_nodes + takers // size
    i, t = equal_pairs(messages.run * n_nodes + messages.node, taker_key.reshape(-1))
    carrier.move(GATHER, landed[i], takers.reshape(-1)[t], i)
    return first_arrivals(join_rows(carrier.tables), givers), cut


def _from_holders(
    topology: Topology, givers: Int[np.ndarray, "runs chips"], messages: _Messages
) -> _Messages:
    """Let messages start at the chip whose link they take, if that chip holds the vector too."""
    size, per_rack = topology.node_chips, topology.nodes_per_rack
    first, a = messages.chip.copy(), messages.chip // size
    near = (a != messages.node) & (a // per_rack == messages.node // per_rack)
    first[near] = _node_ends(topology, a[near], messages.node[near], messages.link[near])[0]
    far = a // per_rack != messages.node // per_rack
    first[far] = _rack_ends(
        topology, a[far] // per_rack, messages.node[far], messages.rack_link[far]
    )[0]
    holds = np.isin(
        messages.run * topology.n_racks * topology.rack_chips + first,
        np.arange(givers.shape[0])[:, None] * topology.n_racks * topology.rack_chips + givers,
    )
    return replace(messages, chip=np.where(holds, first, messages.chip))


def _shares(
    topology: Topology, givers: Int[np.ndarray, "runs chips"]
) -> tuple[Int[np.ndarray, " shares"], ...]:
    """Deal out the vector to the links of the sending nodes.

    Returns:
        For each share its run, the chip that starts with it, its link, its number, and into how
        many shares the vector of its run is cut.
    """
    size, ports = topology.node_chips, topology.node_ports
    n_links = ports.n_links
    n_runs, group = givers.shape
    run = np.arange(n_runs).repeat(group)
    if ports.pairs_equals:
        parallel = ports.links_to_equal
        chip = givers.reshape(-1).repeat(parallel)
        link = chip % size * parallel + np.tile(np.arange(parallel), run.size)
        index = np.tile(np.arange(group * parallel), n_runs)
        return run.repeat(parallel), chip, link, index, np.full_like(chip, group * parallel)
    (at, _), of_node = unique_columns(run, givers.reshape(-1) // size)
    n_nodes = np.bincount(at, minlength=n_runs)
    rank = np.arange(at.size) - (np.cumsum(n_nodes) - n_nodes)[at]
    width = np.bincount(of_node)
    begin = np.cumsum(width) - width
    link = np.tile(np.arange(n_links), at.size)
    cell = np.arange(at.size).repeat(n_links)
    chip = givers.reshape(-1)[begin[cell] + link % width[cell]]
    return at[cell], chip, link, rank[cell] * n_links + link, (n_nodes * n_links)[at[cell]]
