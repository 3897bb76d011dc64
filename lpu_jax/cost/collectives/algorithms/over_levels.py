"""The algorithm that exists for every run: `flat3`, a node acting as one router.

Its price is in `closed_form.hierarchy`, its routes in `routes`; here they become a row. Not
modelled: as in `links`.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ....machine.ports import Numbers
from ....machine.topology import Topology
from ..closed_form.hierarchy import flat3
from ..closed_form.loads import gate_loads
from ..closed_form.setting import Setting
from ..kinds import OWN_PIECES, PRICED_KINDS
from ..routes.messages import all_to_all_over_levels, hand_over_between_levels, send_over_levels
from ..routes.over_levels import (
    broadcast_over_levels,
    gather_over_levels,
    reduce_over_levels,
    scatter_over_levels,
)
from ..routes.rows import (
    EXCHANGE,
    EXCHANGE_AGAIN,
    GATHER,
    RACKS,
    SPREAD,
    SPREAD_AGAIN,
    Rows,
    join_rows,
)
from .algorithm import Algorithm, Runs, everywhere
from .in_node import route_direct, slice_of_shares

_ROUTES: dict[str, Callable[[Topology, Runs], tuple[Rows, int]]] = {
    "all_reduce": reduce_over_levels,
    "broadcast": broadcast_over_levels,
    "all_gather": gather_over_levels,
    "reduce_scatter": scatter_over_levels,
    "all_to_all": all_to_all_over_levels,
    "send": send_over_levels,
    "hand_over": hand_over_between_levels,
}


def _route(topology: Topology, kind: str, runs: Runs) -> tuple[Rows, int]:
    """Route runs by how far they reach: inside a node directly, in a rack, over racks."""
    nodes, racks = runs // topology.node_chips, runs // topology.rack_chips
    many = nodes.min(axis=1) != nodes.max(axis=1)
    far = racks.min(axis=1) != racks.max(axis=1)
    tables = []

    def in_node(topology: Topology, runs: Runs) -> tuple[Rows, int]:
        return route_direct(topology, kind, runs)

    over_levels = _ROUTES[kind]
    for which, route in ((~many, in_node), (many & ~far, over_levels), (far, over_levels)):
        if which.any():
            numbers = np.flatnonzero(which)
            rows, n_pieces = route(topology, runs[numbers])
            tables.append((replace(rows, run=numbers[rows.run]), n_pieces))
    common = math.lcm(*(n_pieces for _, n_pieces in tables))
    return join_rows([rows.scaled(common // n) for rows, n in tables]), common


def _step_names(kind: str, phases: list[int]) -> tuple[str, ...]:
    if phases in ([SPREAD], [GATHER]):  # inside a node
        return ("spread in node",)
    return tuple(_step_name(kind, phase) for phase in phases)


def _step_name(kind: str, phase: int) -> str:
    """What happens in a phase of several."""
    if kind == "hand_over" and phase == EXCHANGE:
        return "exchange between groups"
    if phase in (EXCHANGE, EXCHANGE_AGAIN):
        return "exchange between nodes"
    if RACKS <= phase < SPREAD_AGAIN - 1:
        return "exchange between racks"
    if phase == SPREAD_AGAIN:
        return "gather in node" if kind == "reduce_scatter" else "reduce in node"
    return "spread in node" if phase == SPREAD else "gather in node"


def _is_exact(where: Setting, kind: str) -> Numbers:
    run, topology = where.run, where.topology
    if kind == "send":
        return run.n < 1
    even = gate_loads(topology.node_ports, run.reach).even
    # Between strided runs only their number is shared, but gateways are members of other runs.
    whole = run.contiguous | (run.aligned & (run.per_node > 1) & (kind != "all_to_all"))
    by_chip = topology.rack_wiring == "line" and topology.node_ports.pairs_equals
    line = by_chip & (kind == "all_reduce") & run.contiguous
    return run.filled & even & whole & (~run.far | line)


def _slice_vectors(where: Setting, kind: str) -> Numbers:
    """A vector for each link between two nodes, and between two racks; of each chip's own data."""
    run, topology = where.run, where.topology
    n = np.asarray(run.n, np.int64)
    n_links = topology.node_ports.n_links
    n_racks = topology.node_chips if topology.racks_in_chain else topology.rack_ports.n_links
    cut = np.full_like(n, n_links)
    if kind == "all_to_all":
        # Messages are dealt out to the links in turn; where nodes differ, cut as fine as needed.
        cut = np.where(run.aligned, cut // np.gcd(cut, run.per_node.astype(np.int64)), cut)
    elif np.any(run.far):
        own = kind in OWN_PIECES and topology.rack_wiring == "rack"
        cut = np.where(run.far, n_links * n_racks if own else math.lcm(n_links, n_racks), cut)
    whole = cut * n if kind in OWN_PIECES else cut
    # Runs no larger than a node may lie inside one, and take a share of each chip.
    near = slice_of_shares(where, kind).astype(np.int64)
    near = np.where(run.n <= topology.node_chips, near, 1)
    return np.where(run.many, np.lcm(whole, near), near).astype(np.float64)


def _leaves_a_node(where: Setting) -> Numbers:
    """Inside one node it is `direct`."""
    return where.run.many


FLAT3 = Algorithm(
    name="flat3",
    kinds=PRICED_KINDS,
    also_listed=("broadcast", "hand_over"),
    where="anywhere",
    steps="local, between nodes (1/L), local; over racks the exchange between racks in between",
    exists=everywhere,
    needs=None,
    price=lambda where, kind: flat3(where.topology, where.rates, where.run, kind),
    slice_vectors=_slice_vectors,
    exact=_is_exact,
    route=_route,
    step_names=_step_names,
    differs=_leaves_a_node,
)

ROWS = (FLAT3,)
