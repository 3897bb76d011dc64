"""The collective over levels: spread inside nodes, exchange between them, gather inside nodes.

This is the published three-hop schedule ("flat3"). A node acts as one router: its chips forward
for a run even if they are not in it. Over racks the exchange between racks comes in between, and
where a chip's links do not carry the part that landed on it, a gather before. Not modelled: as in
`links`.
"""

import dataclasses

import numpy as np

from ..ports import Numbers
from ..topology import Topology
from .steps import Rates, Run, Step, make_step


def _rack_links(topology: Topology, run: Run) -> Numbers:
    """Links that the exchange between racks drives, per chip of the run."""
    ports = topology.rack_ports
    if topology.rack_wiring == "line":
        return 2.0 * (run.racks - 1) * topology.rack_chips / run.n
    pairs = run.racks * (run.racks - 1)
    if topology.rack_wiring == "node":
        return pairs * topology.nodes_per_rack * ports.n_links / run.n
    return pairs * ports.n_links / run.n


def far_steps(topology: Topology, rates: Rates, run: Run, *, forwards: bool) -> tuple[Step, ...]:
    """Steps between the first exchange between nodes and the last gather, for runs over racks."""
    ports, links = topology.node_ports, topology.rack_ports
    local_share = run.sharing * ports.share_per_chip
    neighbours = topology.node_chips - 1
    gather = make_step(
        "gather in node", run.far, rates.local, local_share, rates.local_frame, neighbours
    )
    if topology.rack_wiring == "line":
        # A partial sum is passed on unsummed, so that every rack adds in the same order.
        partials = run.racks - 1 if forwards else 1.0
        share, latency = partials / links.n_links, (run.racks - 1) * rates.rack
    else:
        share, latency = 1.0 / links.n_links, rates.rack
    exchange = make_step(
        "exchange between racks",
        run.far,
        latency,
        share,
        rates.rack_frame,
        _rack_links(topology, run),
    )
    if topology.rack_wiring == "line":
        # The chip that a part lands on has its link to the next rack: nothing to gather before.
        return (exchange,)
    if topology.rack_wiring == "node":
        return (gather, exchange)
    node_links = topology.nodes_per_rack * ports.n_links * run.racks / run.n
    again = (
        make_step(
            "reduce in node", run.far, rates.local, local_share, rates.local_frame, neighbours
        ),
        make_step(
            "exchange between nodes",
            run.far,
            rates.node,
            run.sharing / ports.n_links,
            rates.node_frame,
            node_links * (topology.nodes_per_rack - 1),
        ),
    )
    return (gather, exchange, *again)


def _hierarchy(
    topology: Topology,
    rates: Rates,
    run: Run,
    *,
    single: tuple[Numbers, Numbers, Numbers],
    single_fan_out: Numbers,
    shares: tuple[Numbers, Numbers, Numbers],
    far_factor: Numbers = 1.0,
    forwards: bool = True,
) -> tuple[Step, ...]:
    """Build local, node (, rack), local steps.

    `single` are the first and last share for a run inside one node (the middle one is unused);
    `shares` those for a run over the nodes of one rack. A run over racks moves `far_factor` times
    a whole vector wherever it goes.
    """
    ports = topology.node_ports
    whole = run.sharing * ports.share_per_chip * far_factor
    if topology.rack_wiring == "node":
        last = run.sharing * topology.rack_ports.share_per_chip * far_factor
    else:
        last = whole
    neighbours = topology.node_chips - 1
    first_share = np.where(run.single, single[0], np.where(run.far, whole, shares[0]))
    last_share = np.where(run.single, single[2], np.where(run.far, last, shares[2]))
    # Of runs no larger than a node some may lie inside one while others straddle.
    mixed = run.many & (run.n <= topology.node_chips)
    first_share = np.maximum(first_share, np.where(mixed, single[0], 0.0))
    last_share = np.maximum(last_share, np.where(mixed, single[2], 0.0))
    local_fan_out = np.where(run.single, single_fan_out, neighbours)
    receivers = np.where(run.far, topology.nodes_per_rack, run.nodes)
    node_share = np.where(run.far, run.sharing * far_factor / ports.n_links, shares[1])
    node_links = run.nodes * (receivers - 1) * ports.n_links / run.n
    far = far_steps(topology, rates, run, forwards=forwards)
    far = tuple(dataclasses.replace(step, share=step.share * far_factor) for step in far)

    def local(name: str, share: Numbers) -> Step:
        return make_step(name, share > 0, rates.local, share, rates.local_frame, local_fan_out)

    node = make_step(
        "exchange between nodes", run.many, rates.node, node_share, rates.node_frame, node_links
    )
    first = local("spread in node", np.where(run.n > 1, first_share, 0.0))
    return (first, node, *far, local("gather in node", np.where(run.n > 1, last_share, 0.0)))


def hierarchical(topology: Topology, rates: Rates, run: Run, kind: str) -> tuple[Step, ...]:
    """Steps of the hierarchical algorithm; inside one node they are those of `direct`."""
    ports = topology.node_ports
    own = 1.0 / np.maximum(run.n, 1.0)
    whole = run.sharing * ports.share_per_chip
    # What one gateway chip carries to or from the other nodes, if a node's data is all distinct.
    peers = run.nodes - 1
    per_chip = ports.links_per_chip(peers)
    gateway = run.sharing * per_chip * run.most * own / ports.n_links
    mates = run.n - 1
    node = run.most * own / ports.n_links
    if kind == "all_reduce":
        shares = (whole, 1.0 / ports.n_links, whole)
        return _hierarchy(
            topology, rates, run, single=(own, 0.0, own), single_fan_out=mates, shares=shares
        )
    if kind == "all_gather":
        shares = (run.sharing * own, node, gateway)
        return _hierarchy(
            topology, rates, run, single=(own, 0.0, 0.0), single_fan_out=mates, shares=shares
        )
    if kind == "reduce_scatter":
        shares = (gateway, node, run.sharing * own)
        return _hierarchy(
            topology, rates, run, single=(own, 0.0, 0.0), single_fan_out=mates, shares=shares
        )
    if kind == "all_to_all":
        shares = (run.sharing * own + gateway, run.most * node, gateway)
        return _hierarchy(
            topology,
            rates,
            run,
            single=(own, 0.0, 0.0),
            single_fan_out=mates,
            shares=shares,
            far_factor=run.n,
        )
    shares = (whole, run.sharing / ports.n_links, whole)
    return _hierarchy(
        topology,
        rates,
        run,
        single=(1.0, 0.0, 0.0),
        single_fan_out=own,
        shares=shares,
        forwards=False,
    )
