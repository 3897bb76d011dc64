"""Routes of collectives inside a node, and over nodes of a rack in two levels.

Each function lists who sends which pieces to whom, in which phase, for all runs at once, and says
into how many pieces the payload is cut. Not modelled: time.
"""

import numpy as np
from jaxtyping import Int

from ....errors import CostError
from ....machine.topology import Topology
from .rows import EXCHANGE, GATHER, SPREAD, START, Rows, join_rows, make_rows, mirror, near_ends

#: What the phases of the algorithms with two levels are called.
STEP_NAMES = {
    "hier4": (
        "reduce in node",
        "reduce between nodes",
        "gather between nodes",
        "gather in node",
    ),
    "hier5": (
        "reduce in node",
        "reduce between nodes",
        "exchange in node",
        "gather between nodes",
        "gather in node",
    ),
}
#: The same for two_step, which ends in the node for an all_gather and else between nodes.
TWO_STEP_NAMES = (
    ("spread in node", "exchange between nodes"),
    ("exchange between nodes", "gather in node"),
)


def _refuse(kind: str, algorithm: str, kinds: str) -> CostError:
    return CostError(f"{algorithm} is no algorithm for {kind}; it does {kinds}")


def _require_one_node(
    topology: Topology, algorithm: str, runs: Int[np.ndarray, "runs chips"]
) -> None:
    nodes = runs // topology.node_chips
    if np.any(nodes.min(axis=1) != nodes.max(axis=1)):
        raise CostError(
            f"{algorithm} needs all chips of a run in one node of {topology.node_chips} chips"
        )


def direct(topology: Topology, kind: str, runs: Int[np.ndarray, "runs chips"]) -> tuple[Rows, int]:
    """Route any kind inside a node: every chip sends each peer its share over their own link.

    Args:
        topology: the machine.
        kind: one of `link_schedule.KINDS`.
        runs: chips of each run; at least two.

    Returns:
        The transfers and the number of pieces.

    Raises:
        CostError: if a run is not inside one node.
    """
    _require_one_node(topology, "direct", runs)
    n_runs, n = runs.shape
    run, place = np.arange(n_runs)[:, None, None], np.arange(n)
    src, dst = runs[:, :, None], runs[:, None, :]
    own, theirs = place[None, :, None], place[None, None, :]
    if kind == "send":
        ends = {"src": runs[:, 0], "dst": runs[:, -1]}
        return make_rows(n, phase=SPREAD, run=np.arange(n_runs), first=0, **ends), 1
    if kind == "hand_over":
        return _hand_over(runs)
    scatter = make_rows(n, phase=SPREAD, run=run, src=src, dst=dst, first=theirs)
    gather = make_rows(n, phase=GATHER, run=run, src=src, dst=dst, first=own)
    if kind == "all_reduce":
        return join_rows([scatter, gather]), n
    if kind == "broadcast":
        started = runs[gather.run, 0]
        scatter = scatter.take(scatter.src == runs[scatter.run, 0])
        return join_rows([scatter, gather.take(gather.dst != started)]), n
    if kind == "all_to_all":
        return make_rows(
            n, phase=SPREAD, run=run, src=src, dst=dst, first=theirs, origin=own, origins=1
        ), n
    if kind == "all_gather":
        return make_rows(n, phase=SPREAD, run=run, src=src, dst=dst, first=own), n
    return make_rows(n, phase=GATHER, run=run, src=src, dst=dst, first=theirs), n


def _hand_over(runs: Int[np.ndarray, "runs chips"]) -> tuple[Rows, int]:
    """Every chip sends its share to its counterpart; the receivers gather."""
    n_runs, n = runs.shape
    half = n // 2
    share = np.arange(half)
    run, givers, takers = np.arange(n_runs)[:, None], runs[:, :half], runs[:, half:]
    across = make_rows(n, phase=EXCHANGE, run=run, src=givers, dst=takers, first=share)
    gather = make_rows(
        n,
        phase=GATHER,
        run=run[:, :, None],
        src=takers[:, :, None],
        dst=takers[:, None, :],
        first=share[:, None],
    )
    return join_rows([across, gather]), half


def one_shot(
    topology: Topology, kind: str, runs: Int[np.ndarray, "runs chips"]
) -> tuple[Rows, int]:
    """Route an all_reduce or a broadcast inside a node in one step of whole vectors.

    Args:
        topology: the machine.
        kind: `"all_reduce"` or `"broadcast"`.
        runs: chips of each run; at least two.

    Returns:
        The transfers and the number of pieces.

    Raises:
        CostError: for another kind, or if a run is not inside one node.
    """
    if kind not in ("all_reduce", "broadcast"):
        raise _refuse(kind, "one_shot", "all_reduce and broadcast")
    _require_one_node(topology, "one_shot", runs)
    n_runs, n = runs.shape
    src = runs[:, :, None] if kind == "all_reduce" else runs[:, :1, None]
    run = np.arange(n_runs)[:, None, None]
    return make_rows(n, phase=SPREAD, run=run, src=src, dst=runs[:, None, :], first=0), 1


def ring(topology: Topology, kind: str, runs: Int[np.ndarray, "runs chips"]) -> tuple[Rows, int]:
    """Route round a ring of the run's chips inside a node, each share over one link at a time.

    Share `i` is summed from chip `i + 1` on, all the way round to chip `i`.

    Args:
        topology: the machine.
        kind: `"all_reduce"`, `"all_gather"` or `"reduce_scatter"`.
        runs: chips of each run; at least two.

    Returns:
        The transfers and the number of pieces.

    Raises:
        CostError: for another kind, or if a run is not inside one node.
    """
    if kind not in ("all_reduce", "all_gather", "reduce_scatter"):
        raise _refuse(kind, "ring", "all_reduce, all_gather and reduce_scatter")
    _require_one_node(topology, "ring", runs)
    n_runs, n = runs.shape
    run, hop, place = np.arange(n_runs)[:, None, None], np.arange(n - 1)[:, None], np.arange(n)
    ends = {"src": runs[:, None, :], "dst": np.roll(runs, -1, axis=1)[:, None, :]}
    reduce = make_rows(n, phase=hop, run=run, first=(place - 1 - hop) % n, **ends)
    gather = make_rows(n, phase=GATHER + hop, run=run, first=(place - hop) % n, **ends)
    chosen = {"all_reduce": [reduce, gather], "all_gather": [gather], "reduce_scatter": [reduce]}
    return join_rows(chosen[kind]), n


def _by_node(
    topology: Topology, algorithm: str, runs: Int[np.ndarray, "runs chips"]
) -> Int[np.ndarray, "runs nodes mates"]:
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


def hier4(topology: Topology, kind: str, runs: Int[np.ndarray, "runs chips"]) -> tuple[Rows, int]:
    """Route an all_reduce over nodes whose chips each have their own link: scatter twice, gather.

    Args:
        topology: the machine.
        kind: `"all_reduce"`.
        runs: chips of each run, at the same positions of several nodes of one rack.

    Returns:
        The transfers and the number of pieces.

    Raises:
        CostError: for another kind, or if the links do not exist.
    """
    if kind != "all_reduce":
        raise _refuse(kind, "hier4", "all_reduce")
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


def two_step(
    topology: Topology, kind: str, runs: Int[np.ndarray, "runs chips"]
) -> tuple[Rows, int]:
    """Route over nodes whose chips each have their own link, in two hops.

    Args:
        topology: the machine.
        kind: `"all_reduce"`, `"all_gather"`, `"reduce_scatter"` or `"all_to_all"`.
        runs: chips of each run, at the same positions of several nodes of one rack.

    Returns:
        The transfers and the number of pieces.

    Raises:
        CostError: for another kind, or if the links do not exist.
    """
    if kind not in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all"):
        raise _refuse(kind, "two_step", "all_reduce, all_gather, reduce_scatter and all_to_all")
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


def hier5(topology: Topology, kind: str, runs: Int[np.ndarray, "runs chips"]) -> tuple[Rows, int]:
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
        CostError: for another kind, or if a run does not fill its nodes.
    """
    if kind != "all_reduce":
        raise _refuse(kind, "hier5", "all_reduce")
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
