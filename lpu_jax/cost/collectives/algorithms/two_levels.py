"""Algorithms with a step, or two, on each of two levels: inside nodes, and between nodes of a rack.

These move less than the three-hop schedule (`over_levels`) and take more hops, or as few as two
where every chip has links of its own to its counterpart in each other node; parallel ones share
what the chip sends there. They exist inside one rack, for runs with chips at the same positions of
each node; then runs that go at once share no link. Not modelled: as in `links`; routes know no
time.
"""

import numpy as np
from jaxtyping import Int

from ....errors import CostError
from ....machine.ports import Numbers
from ....machine.topology import Topology
from ..closed_form.loads import gate_loads
from ..closed_form.setting import Setting
from ..closed_form.steps import BETWEEN_NODES, IN_NODE, Step, make_step
from ..routes.rows import START, Rows, join_rows, make_rows, mirror, near_ends
from .algorithm import Algorithm, Runs

_TO_CHIP_AND_BACK = (
    "reduce in node",
    "reduce between nodes",
    "gather between nodes",
    "gather in node",
)
_TO_GATEWAY_AND_BACK = (*_TO_CHIP_AND_BACK[:2], "exchange in node", *_TO_CHIP_AND_BACK[2:])
_NODE_FIRST = ("spread in node", "exchange between nodes")
_NODE_LAST = ("exchange between nodes", "gather in node")


def _is_in_a_rack(where: Setting) -> Numbers:
    return where.run.many & ~where.run.far


def _pairs_up(where: Setting) -> Numbers:
    """Runs whose chips all have links to their counterparts, besides those of one chip."""
    paired = where.run.aligned & where.topology.node_ports.pairs_equals
    return (_is_in_a_rack(where) & paired) | (where.run.n == 1)


def _fills_nodes(where: Setting) -> Numbers:
    run = where.run
    return (_is_in_a_rack(where) & run.filled & run.contiguous) | (run.n == 1)


def _need_nodes(topology: Topology) -> str:
    return f"runs that fill several nodes of {topology.node_chips} chips in one rack"


def _need_pairs(topology: Topology) -> str:
    if topology.node_ports.pairs_equals:
        return _need_nodes(topology)
    return (
        f"a link from each of a node's {topology.node_chips} chips to every other node "
        f"(there are {topology.node_ports.n_links})"
    )


def _is_aligned(where: Setting, kind: str) -> Numbers:
    del kind
    return where.run.aligned


def _local(name: str, where: Setting, share: Numbers) -> Step:
    """Every chip sends to every other chip of the run in its node."""
    rates, mates = where.rates, where.run.per_node - 1
    return make_step(name, IN_NODE, mates > 0, rates.local, share, rates.local_frame, mates)


def _between(name: str, where: Setting, share: Numbers) -> Step:
    """Every chip sends to the chip of equal position in every other node, over all their links."""
    rates, run, parallel = where.rates, where.run, where.topology.node_ports.links_to_equal
    links = (run.nodes - 1) * parallel
    return make_step(
        name, BETWEEN_NODES, run.many, rates.node, share / parallel, rates.node_frame, links
    )


def _shares(where: Setting) -> tuple[Numbers, Numbers]:
    """The part of a vector of a chip among those of its node, and among those of its run."""
    run = where.run
    return 1.0 / np.maximum(run.per_node, 1.0), 1.0 / np.maximum(run.n, 1.0)


def _by_node(topology: Topology, algorithm: str, runs: Runs) -> Int[np.ndarray, "runs nodes mates"]:
    """Sort runs by node that have chips at the same positions of several nodes of one rack."""
    size, rack_chips = topology.node_chips, topology.rack_chips
    n_nodes = np.unique(runs[0] // size).size
    if n_nodes > 1 and runs.shape[1] % n_nodes == 0:
        chips = runs.reshape(runs.shape[0], n_nodes, -1)
        first = chips[:, :, :1] // size
        whole = np.all(chips // size == first) and np.all(np.diff(first, axis=1) > 0)
        alike = np.all(chips % size == chips[:, :1] % size)
        if whole and alike and np.all(runs[:, 0] // rack_chips == runs[:, -1] // rack_chips):
            return chips
    raise CostError(
        f"{algorithm} needs runs that have chips at the same positions of several nodes of a rack"
    )


def _own_links(topology: Topology, algorithm: str) -> int:
    """Count the links from every chip to the chip of equal position in another node."""
    if not topology.node_ports.pairs_equals:
        raise CostError(
            f"{algorithm} needs a link from every chip to the chip of equal position in each "
            f"other node; nodes of {topology.node_chips} chips have "
            f"{topology.node_ports.n_links} links to each other here"
        )
    return topology.node_ports.links_to_equal


def _slice_of_pairs(where: Setting, kind: str) -> Numbers:
    """A vector of each chip's share, for each of the links to its counterpart in another node."""
    del kind
    return where.run.n * max(1, where.topology.node_ports.links_to_equal)


# --- hier4: reduce-scatter in the node, then between nodes, and the same way back ----------------


def _price_hier4(where: Setting, kind: str) -> tuple[Step, ...]:
    """Four steps; two of them for runs with one chip in each node."""
    del kind
    of_node, own = _shares(where)
    reduce, reduce_between, gather_between, gather = _TO_CHIP_AND_BACK
    return (
        _local(reduce, where, of_node),
        _between(reduce_between, where, own),
        _between(gather_between, where, own),
        _local(gather, where, of_node),
    )


def _route_hier4(topology: Topology, kind: str, runs: Runs) -> tuple[Rows, int]:
    """Route an all_reduce over nodes whose chips each have their own link: scatter twice, gather.

    Args:
        topology: the machine.
        kind: `"all_reduce"`.
        runs: chips of each run, at the same positions of several nodes of one rack.

    Returns:
        The transfers and the number of pieces.

    Raises:
        CostError: if the links do not exist.
    """
    chips = _by_node(topology, "hier4", runs)
    k = _own_links(topology, "hier4")
    n_runs, m, s = chips.shape
    position, node, link = np.arange(s), np.arange(m), np.arange(k)
    # A chip's part of the node's sum has a piece for each node and parallel link.
    near = {
        "run": np.arange(n_runs)[:, None, None, None],
        "src": chips[:, :, :, None],
        "dst": chips[:, :, None, :],
        "count": m * k,
    }
    own, theirs = position[:, None] * m * k, position * m * k
    # Between chips of equal position: [run, position, node from, node to, link].
    column = chips.transpose(0, 2, 1)
    across = {
        "run": np.arange(n_runs)[:, None, None, None, None],
        "src": column[:, :, :, None, None],
        "dst": column[:, :, None, :, None],
        "part": column[:, :, :1, None, None] % topology.node_chips * k + link,
    }
    piece = position[:, None, None, None] * m * k + link
    n = runs.shape[1]
    return join_rows(
        [
            make_rows(n, phase=0, first=theirs, **near),
            make_rows(n, phase=1, first=piece + node[:, None] * k, **across),
            make_rows(n, phase=2, first=piece + node[:, None, None] * k, **across),
            make_rows(n, phase=3, first=own, **near),
        ]
    ), m * s * k


HIER4 = Algorithm(
    name="hier4",
    kinds=("all_reduce",),
    where="every chip has links to its counterpart in each node of the rack",
    steps="local (1/s), between nodes twice (1/(m L)), local (1/s)",
    exists=_pairs_up,
    needs=_need_pairs,
    price=_price_hier4,
    slice_vectors=_slice_of_pairs,
    exact=_is_aligned,
    route=_route_hier4,
    step_names=lambda kind, phases: tuple(_TO_CHIP_AND_BACK[phase] for phase in phases),
)


# --- hier5: over any number of links between two nodes, each with a block of its own -------------


def _price_hier5(where: Setting, kind: str) -> tuple[Step, ...]:
    """Five steps; the exchange takes none where each part has one owner.

    The vector is cut into blocks, one for each node and link of a pair. A local reduce-scatter puts
    the block (node j, link i) onto the chip that owns link i to node j; in node j itself onto an
    owner of a link i that has least to carry. Node j's owners of links i then each hold a part of
    the sum and exchange it, before it goes back the way it came.
    """
    del kind
    rates, run, ports = where.rates, where.run, where.topology.node_ports
    size = where.topology.node_chips
    loads = gate_loads(ports, run.reach)
    block = 1.0 / (np.maximum(run.nodes, 1.0) * ports.n_links)

    def local(name: str, most: Numbers, total: Numbers) -> Step:
        fan_out = total / np.maximum(most, 1) / size
        share = most * block
        return make_step(name, IN_NODE, run.many, rates.local, share, rates.local_frame, fan_out)

    def between(name: str) -> Step:
        links = (run.nodes - 1) * ports.n_links / size
        return make_step(name, BETWEEN_NODES, run.many, rates.node, block, rates.node_frame, links)

    n_blocks = run.nodes * ports.n_links
    reduce, reduce_between, exchange, gather_between, gather = _TO_GATEWAY_AND_BACK
    return (
        local(reduce, loads.reduced, n_blocks * (size - 1)),
        between(reduce_between),
        local(exchange, loads.shared, loads.shared_total),
        between(gather_between),
        local(gather, loads.gathered, loads.gathered_total),
    )


def _owners(
    ends: Int[np.ndarray, "nodes peers parts"], n_positions: int
) -> Int[np.ndarray, "nodes parts"]:
    """Choose, among the chips of a node that own links of a part, the one with least to carry.

    That chip sums the part which the node itself will own.
    """
    nodes = np.arange(ends.shape[0])
    carried = np.stack([(ends == chip).sum(axis=(1, 2)) for chip in range(n_positions)], axis=1)
    chosen = np.empty((ends.shape[0], ends.shape[2]), np.int64)
    for part in range(ends.shape[2]):
        owns = np.stack([(ends[:, :, part] == chip).any(axis=1) for chip in range(n_positions)], 1)
        chosen[:, part] = np.where(owns, carried, np.iinfo(np.int64).max).argmin(axis=1)
        carried[nodes, chosen[:, part]] += 1
    return chosen


def _route_hier5(topology: Topology, kind: str, runs: Runs) -> tuple[Rows, int]:
    """Route an all_reduce over nodes with any number of links: each node owns a part of the sum.

    Link `i` to node `j` carries piece `i * nodes + j`. Several chips of a node may own a link `i`;
    they exchange what landed on them before the sums go out.

    Args:
        topology: the machine.
        kind: `"all_reduce"`.
        runs: chips of each run, filling several nodes of one rack.

    Returns:
        The transfers and the number of pieces.

    Raises:
        CostError: if a run does not fill its nodes.
    """
    chips = _by_node(topology, "hier5", runs)
    n_runs, m, s = chips.shape
    if s != topology.node_chips:
        raise CostError(f"hier5 needs runs that fill their nodes of {topology.node_chips} chips")
    n, n_links = m * s, topology.node_ports.n_links
    place = chips[:, :, 0] // s % topology.nodes_per_rack
    ends = near_ends(topology.node_ports)[place[:, :, None], place[:, None, :]]
    owner = _owners(ends.reshape(-1, m, n_links), s).reshape(n_runs, m, n_links)
    # Where piece (node j, part i) is summed in node a: [run, a, j, i].
    target = np.where(ends >= 0, ends, owner[:, :, None, :])
    base = chips[:, :, 0]
    gate = base[:, :, None, None] + target
    piece = np.arange(n_links) * m + np.arange(m)[:, None]
    run = np.arange(n_runs).reshape(-1, 1, 1, 1)
    other = ~np.eye(m, dtype=np.bool_)[None, :, :, None]
    far = gate.transpose(0, 2, 1, 3)
    across = {
        "src": np.where(other, gate, 0),
        "dst": np.where(other, far, 0),
        "part": np.arange(n_links),
    }
    # Chips that own a link of a part, and so take part in its sum: [run, node, part, chip].
    owns = (ends[..., None] == np.arange(s)).any(axis=2)
    r, a, i, x, y = np.nonzero(owns[..., :, None] & owns[..., None, :])
    exchange = make_rows(
        n,
        phase=2,
        run=r,
        src=base[r, a] + x,
        dst=base[r, a] + y,
        first=i * m + a,
        since=np.where(owner[r, a, i] == x, START, 1),
    )
    spread = {"run": run[..., None], "first": piece[..., None]}
    mates = chips[:, :, None, None, :]
    gather = make_rows(n, phase=4, src=gate[..., None], dst=mates, **spread)
    node, part = gather.first % m, gather.first // m
    has = (base[gather.run, node] == gather.dst - gather.dst % s) & owns[
        gather.run, node, part, gather.dst % s
    ]
    return join_rows(
        [
            make_rows(n, phase=0, src=mates, dst=gate[..., None], **spread),
            make_rows(n, phase=1, run=run, first=piece, **across),
            exchange,
            make_rows(n, phase=3, run=run, first=piece[:, None, :], **across),
            gather.take(~has),
        ]
    ), m * n_links


def _is_exact_hier5(where: Setting, kind: str) -> Numbers:
    del kind
    run = where.run
    return run.filled & gate_loads(where.topology.node_ports, run.reach).even


def _differs_from_hier4(where: Setting) -> Numbers:
    """Where every chip has links of its own to its counterparts, the two are the same."""
    return ~np.asarray(where.topology.node_ports.pairs_equals)


HIER5 = Algorithm(
    name="hier5",
    kinds=("all_reduce",),
    where="nodes of a rack that the run fills",
    steps="local, between nodes (1/(m L)), local, between nodes, local",
    exists=_fills_nodes,
    needs=_need_nodes,
    price=_price_hier5,
    slice_vectors=lambda where, kind: where.run.nodes * where.topology.node_ports.n_links,
    exact=_is_exact_hier5,
    route=_route_hier5,
    step_names=lambda kind, phases: tuple(_TO_GATEWAY_AND_BACK[phase] for phase in phases),
    differs=_differs_from_hier4,
)


# --- two_step: one step inside nodes and one between them, for short vectors ---------------------


def _price_two_step(where: Setting, kind: str) -> tuple[Step, ...]:
    """Two steps; one for runs with one chip in each node."""
    run, (of_node, own) = where.run, _shares(where)
    if kind == "all_gather":
        between, gather = _NODE_LAST
        return _between(between, where, own), _local(gather, where, of_node)
    local_share, node_share = {
        "all_reduce": (np.ones_like(run.n), np.ones_like(run.n)),
        "reduce_scatter": (of_node, own),
        "all_to_all": (of_node, 1.0 / np.maximum(run.nodes, 1.0)),
    }[kind]
    spread, between = _NODE_FIRST
    return _local(spread, where, local_share), _between(between, where, node_share)


def _slice_of_two_steps(where: Setting, kind: str) -> Numbers:
    of_pairs = _slice_of_pairs(where, kind)
    return of_pairs / where.run.n if kind == "all_reduce" else of_pairs


def _route_two_step(topology: Topology, kind: str, runs: Runs) -> tuple[Rows, int]:
    """Route over nodes whose chips each have their own link, in two hops.

    Args:
        topology: the machine.
        kind: `"all_reduce"`, `"all_gather"`, `"reduce_scatter"` or `"all_to_all"`.
        runs: chips of each run, at the same positions of several nodes of one rack.

    Returns:
        The transfers and the number of pieces.

    Raises:
        CostError: if the links do not exist.
    """
    chips = _by_node(topology, "two_step", runs)
    k = _own_links(topology, "two_step")
    n_runs, m, s = chips.shape
    n = m * s
    node, position, link = np.arange(m), np.arange(s), np.arange(k)
    # Tables are [run, node, chip of the node, chip or node it sends to, rest, link]. Chip x of a
    # run has the k pieces from x * k on, one for each parallel link.
    own_node, own_place = node.reshape(-1, 1, 1, 1, 1), position.reshape(-1, 1, 1, 1)
    to_place, to_node = position.reshape(-1, 1, 1), node.reshape(-1, 1, 1)
    rest_node, rest_place = node[:, None], position[:, None]
    ends = {
        "run": np.arange(n_runs).reshape(-1, 1, 1, 1, 1, 1),
        "src": chips[:, :, :, None, None, None],
    }
    near = {**ends, "dst": chips[:, :, None, :, None, None]}
    across = {
        **ends,
        "dst": chips.transpose(0, 2, 1)[:, None, :, :, None, None],
        "part": ends["src"] % topology.node_chips * k + link,
    }
    if kind == "all_reduce":
        first = make_rows(n, phase=0, first=0, count=k, **near)
        return join_rows([first, make_rows(n, phase=1, first=link, **across)]), k
    if kind == "all_to_all":
        first = make_rows(
            n,
            phase=0,
            first=(rest_node * s + to_place) * k,
            count=k,
            origin=own_node * s + own_place,
            origins=1,
            **near,
        )
        second = make_rows(
            n,
            phase=1,
            first=(to_node * s + own_place) * k + link,
            origin=own_node * s + rest_place,
            origins=1,
            **across,
        )
        return join_rows([first, second]), n * k
    first = make_rows(n, phase=0, first=(own_node * s + own_place) * k + link, **across)
    second = make_rows(n, phase=1, first=(rest_node * s + own_place) * k, count=k, **near)
    rows = join_rows([first, second])
    return (rows if kind == "all_gather" else mirror(rows, 1)), n * k


def _two_step_names(kind: str, phases: list[int]) -> tuple[str, ...]:
    names = _NODE_LAST if kind == "all_gather" else _NODE_FIRST
    return tuple(names[phase] for phase in phases)


TWO_STEP = Algorithm(
    name="two_step",
    kinds=("all_reduce", "all_gather", "reduce_scatter", "all_to_all"),
    where="as `hier4`",
    steps="local one-shot (1), then chips of equal position (s/L)",
    exists=_pairs_up,
    needs=_need_pairs,
    price=_price_two_step,
    slice_vectors=_slice_of_two_steps,
    exact=_is_aligned,
    route=_route_two_step,
    step_names=_two_step_names,
)

ROWS = (HIER4, HIER5, TWO_STEP)
