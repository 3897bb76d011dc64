"""The collective over levels: spread inside nodes, exchange between them, gather inside nodes.

This is the published three-hop schedule ("flat3"). A node acts as one router: its chips forward
for a run even if they are not in it. Over racks the exchange between racks comes in between, and
where a chip's links do not carry the part that landed on it, a gather before. Not modelled: as in
`links`.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from ....machine.ports import Numbers
from ....machine.topology import Topology
from .loads import GateLoads, gate_loads
from .runs import Run
from .steps import BETWEEN_NODES, BETWEEN_RACKS, IN_NODE, Rates, Step, make_step

_TINY = 1e-300


@dataclass(frozen=True, kw_only=True)
class _Flow:
    """What a step carries inside one rack.

    `share` is the part of a vector on the busiest link, all runs counted, in `streams` transfers
    of equal size. `traffic` is the sum over the links of one run, per chip of the run.
    """

    share: Numbers
    traffic: Numbers
    streams: Numbers = 1.0


def _rack_links(topology: Topology, run: Run) -> Numbers:
    """Links that the exchange between racks drives, per chip of the run."""
    ports = topology.rack_ports
    pairs = run.racks * (run.racks - 1)
    if topology.racks_in_chain:
        # Of R racks each sends to R - 1 others, one hop at a time.
        return pairs / np.maximum(run.passes, 1) * topology.rack_chips / run.n
    if topology.rack_wiring == "node":
        return pairs * topology.nodes_per_rack * ports.n_links / run.n
    return pairs * ports.n_links / run.n


def far_steps(
    topology: Topology,
    rates: Rates,
    run: Run,
    *,
    collects: bool = False,
    scale: Numbers = 1.0,
) -> tuple[Step, ...]:
    """Steps between the first exchange between nodes and the last gather, for runs over racks.

    Args:
        topology: the machine's links.
        rates: cycles of its links.
        run: the runs.
        collects: whether what a rack sends is collected from distinct parts of its nodes.
        scale: vectors that move for each of the payload.

    Returns:
        Steps that take no time where a run stays in one rack.
    """
    ports, links = topology.node_ports, topology.rack_ports

    def local(name: str, runs: Numbers, part: float = ports.share_per_chip) -> Step:
        share, mates = scale * runs * part, topology.node_chips - 1
        return make_step(
            name, IN_NODE, run.far, rates.local, share, rates.local_frame, mates, streams=runs
        )

    in_chain = topology.racks_in_chain
    exchange = make_step(
        "exchange between racks",
        BETWEEN_RACKS,
        run.far,
        rates.rack,
        scale * run.crossing / links.n_links,
        rates.rack_frame,
        _rack_links(topology, run),
        # Along a chain partial sums are passed on unsummed: every rack adds in the same order.
        times=np.maximum(run.passes, 1) if in_chain else 1.0,
        streams=run.crossing,
    )
    if in_chain:
        if collects:
            return (local("gather in node", run.collected), exchange)
        if not ports.pairs_equals:
            # Sums land on the few chips that are linked to other nodes; each chip collects the
            # part that its own link to the next rack carries.
            return (local("gather in node", run.collected, 1.0 / links.n_links), exchange)
        return (exchange,)
    gather = local("gather in node", run.collected)
    if topology.rack_wiring == "node":
        return (gather, exchange)
    node_links = topology.nodes_per_rack * ports.n_links * run.racks / run.n
    again = make_step(
        "exchange between nodes",
        BETWEEN_NODES,
        run.far,
        rates.node,
        scale * run.meeting / ports.n_links,
        rates.node_frame,
        node_links * (topology.nodes_per_rack - 1),
        streams=run.meeting,
    )
    return (gather, exchange, local("reduce in node", run.forwarded), again)


def _flows(
    kind: str, run: Run, loads: GateLoads, size: int, n_links: int
) -> tuple[_Flow, _Flow, _Flow]:
    """Find what the local, the node and the last local step carry, for runs over nodes of a rack.

    Exact for contiguous runs that fill their nodes. Inside one rack no two runs share a local link:
    its sender, or its receiver, belongs to the run that uses it.
    """
    own = 1.0 / np.maximum(run.n, 1.0)
    mates, peers = run.most - 1, run.nodes - 1
    if kind in ("all_reduce", "send"):
        parts = loads.parts if kind == "all_reduce" else loads.parts_to_one
        local = _Flow(share=parts / n_links, traffic=loads.parts_total / n_links * mates / run.most)
        many = run.interleaved
        node = _Flow(share=many / n_links, traffic=peers / run.most, streams=many)
        if kind == "send":
            local, node = (replace(flow, traffic=own) for flow in (local, node))
        return local, node, local
    among = _Flow(share=own, traffic=mates * own)
    # Links of a chip to nodes of the run, of which there may be fewer than from first to last.
    gateway = np.minimum(loads.links, loads.parts_to_one * peers)
    if kind == "all_to_all":
        # Messages from chip to chip are dealt out to the links, cut no finer than full nodes need.
        common = math.gcd(size, n_links)
        cut = n_links // common
        dealt = np.minimum(run.most, size // common)
        both, beyond = cut + gateway * dealt, gateway * dealt
        across = run.interleaved * run.most * dealt
        beyond_traffic = mates * own * peers
        return (
            _Flow(share=both * own / cut, traffic=among.traffic + beyond_traffic, streams=both),
            _Flow(share=across * own / cut, traffic=peers * run.most * own, streams=across),
            _Flow(share=beyond * own / cut, traffic=beyond_traffic, streams=beyond),
        )
    # All data of a node is distinct: a gateway carries it once for each of its links.
    of_link = run.most * own / n_links
    beyond = _Flow(share=gateway * of_link, traffic=mates * own * peers)
    node = _Flow(share=run.interleaved * of_link, traffic=peers * own, streams=run.interleaved)
    return (among, node, beyond) if kind == "all_gather" else (beyond, node, among)


def flat3(topology: Topology, rates: Rates, run: Run, kind: str) -> tuple[Step, ...]:
    """Build the steps of the three-hop schedule; inside one node they are those of `direct`.

    Args:
        topology: the machine's links.
        rates: cycles of its links.
        run: the runs.
        kind: one of `kinds.PRICED_KINDS`.

    Returns:
        Local, node (, rack), local steps. Over racks every kind but `send` moves whole vectors as
        an all_reduce does; an all_to_all one for each chip.
    """
    ports = topology.node_ports
    first, node, last = _flows(
        kind, run, gate_loads(ports, run.reach), topology.node_chips, ports.n_links
    )
    own = 1.0 / np.maximum(run.n, 1.0)
    if kind == "send":
        # Of runs that touch one rack less than the others the ends may be farther round a ring.
        run = replace(run, passes=topology.farthest_racks(run.racks - 2, run.racks - 1))
    if kind == "send" and topology.rack_wiring == "rack":
        # What lands in two places of a node may leave it over the same link.
        run = replace(run, forwarded=2 * run.forwarded, collected=2 * run.collected)
    in_node = (1.0 if kind == "send" else own, own if kind == "all_reduce" else 0.0)
    mates = own if kind == "send" else run.n - 1
    scale = run.n if kind == "all_to_all" else np.float64(1.0)
    whole = run.forwarded * ports.share_per_chip * scale
    far_last = whole
    if topology.rack_wiring == "node":
        far_last = run.forwarded * topology.rack_ports.share_per_chip * scale
    neighbours = topology.node_chips - 1
    # Of runs no larger than a node some may lie inside one while others straddle.
    mixed = run.many & ~run.aligned & (run.n <= topology.node_chips)
    counted = run.filled & run.contiguous & ~run.far

    def local(name: str, single: Numbers, near: _Flow, far: Numbers) -> Step:
        share = np.where(run.single, single, np.where(run.far, far, near.share))
        share = np.maximum(share, np.where(mixed, single, 0.0)) if np.any(mixed) else share
        fan_out = np.where(counted, near.traffic / np.maximum(near.share, _TINY), neighbours)
        fan_out = np.where(run.single, mates, fan_out)
        alone = neighbours == 0  # a node of one chip
        active = (run.n > 1) & (not alone)
        streams = np.where(run.single, 1.0, np.where(run.far, run.forwarded, near.streams))
        return make_step(
            name, IN_NODE, active, rates.local, share, rates.local_frame, fan_out, streams=streams
        )

    everywhere = run.nodes * (topology.nodes_per_rack - 1) * ports.n_links / np.maximum(run.n, 1.0)
    exchange = make_step(
        "exchange between nodes",
        BETWEEN_NODES,
        run.many,
        rates.node,
        np.where(run.far, run.meeting * scale / ports.n_links, node.share),
        rates.node_frame,
        np.where(run.far, everywhere, node.traffic / np.maximum(node.share, _TINY)),
        streams=np.where(run.far, run.meeting, node.streams),
    )
    return (
        local("spread in node", in_node[0], first, whole),
        exchange,
        *far_steps(
            topology,
            rates,
            run,
            collects=kind in ("all_gather", "reduce_scatter", "all_to_all"),
            scale=scale,
        ),
        local("gather in node", in_node[1], last, far_last),
    )
