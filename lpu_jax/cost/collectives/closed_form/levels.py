"""Collectives with a reduce-scatter and an all-gather on each of two levels: node and rack.

These move less than the three-hop schedule (`hierarchy`) and take more hops, or as few as two where
every chip has links of its own to its counterpart in each other node; parallel ones share what the
chip sends there. They exist inside one rack, for runs with chips
at the same positions of each node; then runs that go at once share no link. Not modelled: as in
`links`.
"""

import numpy as np

from ....machine.ports import Numbers
from ....machine.topology import Topology
from .loads import gate_loads
from .runs import Run
from .steps import Rates, Step, make_step


def _local(name: str, rates: Rates, run: Run, share: Numbers) -> Step:
    """Every chip sends to every other chip of the run in its node."""
    mates = run.per_node - 1
    return make_step(name, mates > 0, rates.local, share, rates.local_frame, mates)


def _between(name: str, topology: Topology, rates: Rates, run: Run, share: Numbers) -> Step:
    """Every chip sends to the chip of equal position in every other node, over all their links."""
    parallel = topology.node_ports.links_to_equal
    links = (run.nodes - 1) * parallel
    return make_step(name, run.many, rates.node, share / parallel, rates.node_frame, links)


def hier4(topology: Topology, rates: Rates, run: Run) -> tuple[Step, ...]:
    """All-reduce: reduce-scatter in the node, then between nodes, and the same way back.

    Args:
        topology: the machine's links.
        rates: cycles of its links.
        run: aligned runs; every chip has links to the chip of equal position in other nodes.

    Returns:
        Four steps; two of them for runs with one chip in each node.
    """
    of_node, own = 1.0 / np.maximum(run.per_node, 1.0), 1.0 / np.maximum(run.n, 1.0)
    return (
        _local("reduce in node", rates, run, of_node),
        _between("reduce between nodes", topology, rates, run, own),
        _between("gather between nodes", topology, rates, run, own),
        _local("gather in node", rates, run, of_node),
    )


def hier5(topology: Topology, rates: Rates, run: Run) -> tuple[Step, ...]:
    """All-reduce over any number of links between two nodes: each link has a block of its own.

    The vector is cut into blocks, one for each node and link of a pair. A local reduce-scatter puts
    the block (node j, link i) onto the chip that owns link i to node j; in node j itself onto an
    owner of a link i that has least to carry. Node j's owners of links i then each hold a part of
    the sum and exchange it, before it goes back the way it came.

    Args:
        topology: the machine's links.
        rates: cycles of its links.
        run: contiguous runs that fill their nodes.

    Returns:
        Five steps; the exchange takes none where each part has one owner.
    """
    ports, size = topology.node_ports, topology.node_chips
    loads = gate_loads(ports, run.reach)
    block = 1.0 / (np.maximum(run.nodes, 1.0) * ports.n_links)

    def local(name: str, most: Numbers, total: Numbers) -> Step:
        fan_out = total / np.maximum(most, 1) / size
        share = most * block
        return make_step(name, run.many, rates.local, share, rates.local_frame, fan_out)

    def between(name: str) -> Step:
        links = (run.nodes - 1) * ports.n_links / size
        return make_step(name, run.many, rates.node, block, rates.node_frame, links)

    n_blocks = run.nodes * ports.n_links
    return (
        local("reduce in node", loads.reduced, n_blocks * (size - 1)),
        between("reduce between nodes"),
        local("exchange in node", loads.shared, loads.shared_total),
        between("gather between nodes"),
        local("gather in node", loads.gathered, loads.gathered_total),
    )


def two_step(topology: Topology, rates: Rates, run: Run, kind: str) -> tuple[Step, ...]:
    """One step inside nodes and one between them, for short vectors.

    Args:
        topology: the machine's links.
        rates: cycles of its links.
        run: aligned runs; every chip has links to the chip of equal position in other nodes.
        kind: all_reduce, all_gather, reduce_scatter or all_to_all.

    Returns:
        Two steps; one for runs with one chip in each node.
    """
    of_node, own = 1.0 / np.maximum(run.per_node, 1.0), 1.0 / np.maximum(run.n, 1.0)
    if kind == "all_gather":
        return (
            _between("exchange between nodes", topology, rates, run, own),
            _local("gather in node", rates, run, of_node),
        )
    local_share, node_share = {
        "all_reduce": (np.ones_like(run.n), np.ones_like(run.n)),
        "reduce_scatter": (of_node, own),
        "all_to_all": (of_node, 1.0 / np.maximum(run.nodes, 1.0)),
    }[kind]
    return (
        _local("spread in node", rates, run, local_share),
        _between("exchange between nodes", topology, rates, run, node_share),
    )
