"""What a collective costs: named algorithms as steps over links, in closed form for many plans.

Every collective runs over runs of contiguous chips (`topology.Span` says what a run touches), all
runs of a group at once. A step moves shares of a vector over links that exist; `cost.transfers`
lists the same steps link by link, and tests hold this module against that list.

`hierarchical` is the schedule "flat3": reduce inside each node onto the chips that own the links
(a node acts as one router: its chips forward for a run even if they are not in it), exchange
between nodes over all links of each pair, gather inside each node; over racks the exchange between
racks comes in between. Where runs share a node or a rack, each local link is counted as if all of
them used it at once, so the closed form is then an upper bound.

Not modelled: rings, two-level reduce-scatter ("hier5"), ways round over a third node, and time for
the additions, which overlap with arrival.
"""

import dataclasses

import numpy as np
from jaxtyping import Int

from ..errors import CostError, unknown
from ..ports import Numbers
from ..topology import Span, Topology
from .hierarchy import far_steps, hierarchical
from .steps import Rates, Run, Schedule, Step, link_rates, make_step, run_of

KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send")
ALGORITHMS = ("direct", "one_shot", "hierarchical")


def _in_node(
    topology: Topology, rates: Rates, run: Run, n_steps: int, share: Numbers
) -> tuple[Step, ...]:
    """One or two steps between all chips of a run inside one node."""
    return tuple(
        make_step(name, run.n > 1, rates.local, share, rates.local_frame, run.n - 1)
        for name in ("spread in node", "gather in node")[:n_steps]
    )


def schedule(
    topology: Topology, clock_hz: int | float, kind: str, algorithm: str, span: Span
) -> Schedule:
    """Schedule a collective over runs of contiguous chips.

    Args:
        topology: the machine's links.
        clock_hz: clock in which cycles are counted.
        kind: one of `KINDS`. `send` moves a vector from one chip of the run to another.
        algorithm: one of `ALGORITHMS`. `one_shot` and `direct` exist only inside one node.
        span: what the runs touch, at worst; fields may be arrays with one entry per plan.

    Returns:
        The schedule, with arrays where the span has arrays.

    Raises:
        UnknownNameError: if the kind or the algorithm has no such name.

    Fidelity:
        Exact against `cost.transfers` inside a node, for runs of whole LPX trays, and for
        all_reduce over all nodes of a GroqChip1 machine whose links divide its chips evenly; an
        upper bound otherwise. Over racks, all_gather and reduce_scatter are priced as an
        all_reduce of the whole vector, all_to_all as an all_gather of everything.

    Source:
        The three-hop schedule: ISCA22. Which chip owns which link: assumed (`ports`).
    """
    if kind not in KINDS:
        raise unknown("collective", kind, KINDS)
    if algorithm not in ALGORITHMS:
        raise unknown("algorithm", algorithm, ALGORITHMS)
    if not clock_hz > 0:
        raise CostError(f"schedule: clock_hz={clock_hz} must be positive")
    run = run_of(topology, span)
    rates = link_rates(topology, clock_hz, np.asarray(span.half_racks))
    own = 1.0 / np.maximum(run.n, 1.0)
    legal = run.nodes == 1
    if algorithm == "hierarchical":
        steps = hierarchical(topology, rates, run, kind)
        legal = run.n >= 1
    elif kind == "send":
        steps = (make_step("send in node", run.n > 1, rates.local, 1.0, rates.local_frame, own),)
    elif kind != "all_reduce":
        steps = _in_node(topology, rates, run, 1, own)
    elif algorithm == "one_shot":
        steps = _in_node(topology, rates, run, 1, np.ones_like(run.n))
    else:
        steps = _in_node(topology, rates, run, 2, own)
    return _finish(topology, kind, algorithm, legal, steps, run.racks)


def _finish(
    topology: Topology,
    kind: str,
    algorithm: str,
    legal: Numbers,
    steps: tuple[Step, ...],
    racks: Numbers,
) -> Schedule:
    """Count hops and wrap up."""

    def hops_of(step: Step) -> Numbers:
        in_line = step.name == "exchange between racks" and topology.rack_wiring == "line"
        return np.where(step.share > 0, racks - 1 if in_line else 1, 0).astype(np.int64)

    return Schedule(
        kind=kind,
        algorithm=algorithm,
        legal=legal,
        hops=sum((hops_of(step) for step in steps), np.int64(0)),
        steps=steps,
        frame_payload_bytes=topology.frame_payload_bytes,
        frame_bytes=topology.frame_bytes,
    )


def hand_overs(
    topology: Topology, clock_hz: int | float, group_chips: int, bases: Int[np.ndarray, " groups"]
) -> Schedule:
    """Schedule the hand-over of a vector from each group of chips to the next.

    Every chip of the sending group holds the whole vector, and so will every chip of the receiving
    group. Inside a node each chip sends a distinct share, which the receivers gather. Between nodes
    the links of all sending nodes carry distinct shares to every receiving node, which gathers;
    where links belong to chips outside a group that does not fill its nodes, the vector is first
    spread onto them. Over racks the vector takes the way of a `send`.

    Args:
        topology: the machine's links.
        clock_hz: clock in which cycles are counted.
        group_chips: chips of each group.
        bases: first chip of each group, in the order of the data.

    Returns:
        A schedule with one entry per pair of consecutive groups; none for a single group.

    Fidelity:
        An upper bound where groups share nodes or cross racks.
    """
    first = np.asarray(bases, np.int64)
    src, dst, group = first[:-1], first[1:], group_chips
    size, rack_chips = topology.node_chips, topology.rack_chips
    low, high = np.minimum(src, dst), np.maximum(src, dst) + group - 1
    half = size * topology.nodes_per_half_rack
    nodes = (src + group - 1) // size - src // size + 1.0
    filled = (src % size == 0) & (group % size == 0) & (dst % size == 0)
    racks = high // rack_chips - low // rack_chips + 1.0
    run = Run(
        n=np.full(src.shape, float(group)),
        nodes=nodes,
        most=np.minimum(nodes * 0 + size, group),
        racks=racks,
        single=low // size == high // size,
        many=low // size != high // size,
        far=racks > 1,
        sharing=np.where(filled & ((racks == 1) | (topology.rack_wiring == "line")), 1, 2),
    )
    rates = link_rates(topology, clock_hz, high // half - low // half + 1)
    steps = _hand_over_steps(topology, rates, run, filled)
    return _finish(topology, "hand_over", "hierarchical", run.n > 0, steps, racks)


def _hand_over_steps(
    topology: Topology, rates: Rates, run: Run, filled: Numbers
) -> tuple[Step, ...]:
    ports = topology.node_ports
    own = 1.0 / run.n
    whole = run.sharing * ports.share_per_chip
    every_chip_linked = ports.n_links == topology.node_chips
    if every_chip_linked:
        spreads = np.zeros_like(run.many)
        node_share = run.sharing * own
        landed = run.sharing * run.nodes * own
    else:
        spreads = run.many & (~filled | run.far)
        shared = 1.0 / (run.nodes * ports.n_links)
        node_share = np.where(spreads, run.sharing / ports.n_links, shared)
        landed = ports.links_per_chip(run.nodes) * shared
        landed = np.where(spreads, whole, landed)
    last = landed
    if topology.rack_wiring == "node":
        last = np.where(run.far, run.sharing * topology.rack_ports.share_per_chip, landed)
    neighbours = topology.node_chips - 1
    exchange = make_step(
        "exchange between groups",
        run.n > 0,
        np.where(run.single, rates.local, rates.node),
        np.where(run.single, own, node_share),
        np.where(run.single, rates.local_frame, rates.node_frame),
        np.where(run.single, 1.0, run.nodes * ports.n_links * own),
    )
    gathers = run.many | (run.n > 1)
    far = far_steps(topology, rates, run, forwards=False)
    if topology.rack_wiring == "line":
        # Hand-overs of two consecutive groups may cross the same boundary of large groups.
        share = np.where(run.far, 2 * landed, 0.0)
        far = tuple(dataclasses.replace(step, share=share) for step in far)
    return (
        make_step("spread in node", spreads, rates.local, whole, rates.local_frame, neighbours),
        exchange,
        *far,
        make_step(
            "gather in node",
            gathers,
            rates.local,
            np.where(run.single, own, last),
            rates.local_frame,
            np.where(run.single, run.n - 1, neighbours),
        ),
    )
