"""Algorithms of collectives whose runs lie inside one node, where any two chips are linked.

For each: its price, its route and its row. Not modelled: as in `links`; routes know no time.
"""

import numpy as np

from ....errors import CostError
from ....machine.ports import Numbers
from ....machine.topology import Topology
from ..closed_form.setting import Setting
from ..closed_form.steps import IN_NODE, Step, make_step
from ..kinds import PRICED_KINDS
from ..routes.rows import EXCHANGE, GATHER, SPREAD, Rows, join_rows, make_rows
from .algorithm import Algorithm, Runs, nowhere

_SPREAD, _GATHER, _SEND = "spread in node", "gather in node", "send in node"
_PASS_ON, _GATHER_IN_RING = "pass on in ring", "gather in ring"


def _is_inside(where: Setting) -> Numbers:
    return where.run.nodes == 1


def _need(topology: Topology) -> str:
    return f"all chips of a run in one node of {topology.node_chips} chips"


def _require_one_node(topology: Topology, algorithm: str, runs: Runs) -> None:
    nodes = runs // topology.node_chips
    if np.any(nodes.min(axis=1) != nodes.max(axis=1)):
        raise CostError(f"{algorithm} needs {_need(topology)}")


def _step(
    where: Setting, name: str, share: Numbers, fan_out: Numbers, times: Numbers = 1.0
) -> Step:
    """A step over links inside the node, for runs of several chips."""
    rates, several = where.rates, where.run.n > 1
    return make_step(
        name, IN_NODE, several, rates.local, share, rates.local_frame, fan_out, times=times
    )


def slice_of_shares(where: Setting, kind: str) -> Numbers:
    """A vector of each chip's share; a vector that is sent to one chip has no shares."""
    return np.ones_like(where.run.n) if kind == "send" else where.run.n


# --- one_shot: every chip sends its whole vector to every peer -----------------------------------


def _price_one_shot(where: Setting, kind: str) -> tuple[Step, ...]:
    del kind
    return (_step(where, _SPREAD, np.ones_like(where.run.n), where.run.n - 1),)


def _route_one_shot(topology: Topology, kind: str, runs: Runs) -> tuple[Rows, int]:
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
    _require_one_node(topology, "one_shot", runs)
    n_runs, n = runs.shape
    src = runs[:, :, None] if kind == "all_reduce" else runs[:, :1, None]
    run = np.arange(n_runs)[:, None, None]
    return make_rows(n, phase=SPREAD, run=run, src=src, dst=runs[:, None, :], first=0), 1


ONE_SHOT = Algorithm(
    name="one_shot",
    kinds=("all_reduce",),
    also_listed=("broadcast",),
    where="one node",
    steps="1: whole vectors to every peer (1)",
    exists=_is_inside,
    needs=_need,
    price=_price_one_shot,
    slice_vectors=lambda where, kind: np.ones_like(where.run.n),
    exact=nowhere,
    route=_route_one_shot,
    step_names=lambda kind, phases: (_SPREAD,) * len(phases),
)


# --- direct: reduce-scatter and all-gather, each share on its own link ---------------------------


def _price_direct(where: Setting, kind: str) -> tuple[Step, ...]:
    n = where.run.n
    own, mates = 1.0 / n, n - 1
    if kind == "send":
        return (_step(where, _SEND, np.ones_like(n), own),)
    spread, gather = (_step(where, name, own, mates) for name in (_SPREAD, _GATHER))
    return (spread, gather) if kind == "all_reduce" else (spread,)


def route_direct(topology: Topology, kind: str, runs: Runs) -> tuple[Rows, int]:
    """Route any kind inside a node: every chip sends each peer its share over their own link.

    Args:
        topology: the machine.
        kind: one of `kinds.LISTED_KINDS`.
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


def _hand_over(runs: Runs) -> tuple[Rows, int]:
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


def _direct_names(kind: str, phases: list[int]) -> tuple[str, ...]:
    if phases in ([SPREAD], [GATHER]):  # a single step has one name, whatever the kind
        return (_SEND if kind == "send" else _SPREAD,)
    words = {SPREAD: _SPREAD, EXCHANGE: "exchange between groups", GATHER: _GATHER}
    return tuple(words[phase] for phase in phases)


DIRECT = Algorithm(
    name="direct",
    kinds=PRICED_KINDS,
    also_listed=("broadcast", "hand_over"),
    where="one node",
    steps="2: reduce-scatter, all-gather (1/n each)",
    exists=_is_inside,
    needs=_need,
    price=_price_direct,
    slice_vectors=slice_of_shares,
    exact=nowhere,
    route=route_direct,
    step_names=_direct_names,
)


# --- ring: the same from chip to chip, over one link at a time -----------------------------------


def _price_ring(where: Setting, kind: str) -> tuple[Step, ...]:
    n = where.run.n
    pass_on, gather = (
        _step(where, name, 1.0 / n, np.ones_like(n), times=n - 1)
        for name in (_PASS_ON, _GATHER_IN_RING)
    )
    return (pass_on, gather) if kind == "all_reduce" else (pass_on,)


def _route_ring(topology: Topology, kind: str, runs: Runs) -> tuple[Rows, int]:
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
    _require_one_node(topology, "ring", runs)
    n_runs, n = runs.shape
    run, hop, place = np.arange(n_runs)[:, None, None], np.arange(n - 1)[:, None], np.arange(n)
    ends = {"src": runs[:, None, :], "dst": np.roll(runs, -1, axis=1)[:, None, :]}
    reduce = make_rows(n, phase=hop, run=run, first=(place - 1 - hop) % n, **ends)
    gather = make_rows(n, phase=GATHER + hop, run=run, first=(place - hop) % n, **ends)
    chosen = {"all_reduce": [reduce, gather], "all_gather": [gather], "reduce_scatter": [reduce]}
    return join_rows(chosen[kind]), n


RING = Algorithm(
    name="ring",
    kinds=("all_reduce", "all_gather", "reduce_scatter"),
    where="one node",
    steps="2 (n - 1): to the next chip (1/n each)",
    exists=_is_inside,
    needs=_need,
    price=_price_ring,
    slice_vectors=slice_of_shares,
    exact=nowhere,
    route=_route_ring,
    step_names=lambda kind, phases: tuple(
        _GATHER_IN_RING if phase >= GATHER else _PASS_ON for phase in phases
    ),
)

ROWS = (ONE_SHOT, DIRECT, RING)
