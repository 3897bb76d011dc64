"""What a collective costs: named algorithms as steps over links, in closed form for many plans.

Every collective runs over runs of chips (`spans.Span` says what a run touches), all runs of a
group at once. A step moves shares of a vector over links that exist, each step after the one
before, or, pipelined, slice by slice as soon as the one before lets it (`closed_form.flow`);
`link_schedule` lists the same steps link by link, and tests compare this module with it. Which
algorithms there are, and which steps they take, is said in `algorithms`.

Not modelled: detours over a third node (minimal routes only), and time for the additions, which
overlap with arrival.
"""

from dataclasses import replace

import numpy as np
from jaxtyping import Int

from ...datapath.axis import steps_of
from ...errors import unknown
from ...machine.ports import Numbers
from ...machine.spans import Span
from ...machine.topology import Topology
from .algorithms.algorithm import Algorithm
from .algorithms.table import ALGORITHMS, EVERYWHERE
from .closed_form.hierarchy import far_steps
from .closed_form.loads import gate_loads
from .closed_form.priced import Schedule
from .closed_form.runs import Run
from .closed_form.setting import Setting, setting
from .closed_form.steps import BETWEEN_NODES, IN_NODE, Rates, Step, link_rates, make_step
from .kinds import OWN_PIECES, PRICED_KINDS


def schedule(
    topology: Topology,
    clock_hz: int | float,
    kind: str,
    algorithm: str,
    span: Span,
    stride: Numbers = 1,
) -> Schedule:
    """Schedule a collective over runs of chips.

    Args:
        topology: the machine's links.
        clock_hz: clock in which cycles are counted.
        kind: one of `PRICED_KINDS`. `send` moves a vector from one chip of the run to another.
        algorithm: one of `ALGORITHMS`, or `+pipelined` behind one.
        span: what the runs touch, at worst; fields may be arrays with one entry per plan.
        stride: chips from one chip of a run to the next. If it is not 1, `span.n_chips` counts the
            run, and the other fields are those of its block of `n_chips * stride` chips, which
            `stride` interleaved runs fill.

    Returns:
        The schedule, with arrays where the arguments have arrays.

    Raises:
        UnknownNameError: if the kind or the algorithm has no such name.
        CostError: if the clock is not positive, or a run has no chip.

    Fidelity:
        Exact against the steps written out link by link (`Schedule.exact` says where), for vectors
        that divide evenly: inside a node; over nodes of one rack that runs fill, unless the load of
        a link depends on where in the rack the run lies (then the worst place is taken); for an
        all_reduce over whole nodes of a line of racks whose nodes are linked chip by chip; of all
        these, pipelined, where a slice has no more than a vector for any link. An upper bound
        elsewhere. Over racks, all_gather and reduce_scatter are priced as an all_reduce of the
        whole vector, all_to_all as an all_gather of everything. Pieces that chips have of their own
        are whole vectors.

    Source:
        The three-hop schedule: ISCA22. Which chip owns which link: assumed (`ports`).
    """
    return schedule_in(setting(topology, clock_hz, span, stride), kind, algorithm)


def schedule_in(where: Setting, kind: str, algorithm: str) -> Schedule:
    """Schedule a collective over runs that are ready; see `schedule`.

    Raises:
        UnknownNameError: if the kind or the algorithm has no such name.
    """
    row = _row(kind, algorithm)
    exists_for_kind = kind in row.kinds
    priced = _finish(
        where.topology,
        where.run,
        kind,
        algorithm,
        legal=legal_in(where, kind, algorithm),
        exact=_exact(where, kind, row) if exists_for_kind else np.False_,
        steps=row.price(where, kind) if exists_for_kind else (),
    )
    if algorithm == row.name:
        return priced
    sliced = replace(priced, slice_vectors=row.slice_vectors(where, kind))
    return replace(sliced, exact=priced.exact & sliced.goes_by_vector)


def legal_in(where: Setting, kind: str, algorithm: str) -> Numbers:
    """Say for which runs every link of an algorithm exists; see `schedule`.

    Returns:
        A boolean array; true for a run of one chip, which needs no link.

    Raises:
        UnknownNameError: if the kind or the algorithm has no such name.
    """
    row = _row(kind, algorithm)
    if kind not in row.kinds:
        return np.zeros_like(where.run.n, dtype=bool)
    return row.exists(where)


def _row(kind: str, algorithm: str) -> Algorithm:
    if kind not in PRICED_KINDS:
        raise unknown("collective", kind, PRICED_KINDS)
    if steps_of(algorithm) not in ALGORITHMS:
        raise unknown("algorithm", algorithm, ALGORITHMS)
    return ALGORITHMS[steps_of(algorithm)]


def _exact(where: Setting, kind: str, row: Algorithm) -> Numbers:
    """Where the closed form is the time of the explicit steps; see `schedule`."""
    run = where.run
    near = (run.nodes == 1) | (run.n == 1)
    return near | row.exact(where, kind) if np.any(run.many) else near


def _finish(
    topology: Topology,
    run: Run,
    kind: str,
    algorithm: str,
    *,
    legal: Numbers,
    exact: Numbers,
    steps: tuple[Step, ...],
) -> Schedule:
    return Schedule(
        kind=kind,
        algorithm=algorithm,
        n_chips=run.n,
        legal=legal,
        exact=exact & legal,
        # What each chip has, or gets, is its own; only a vector that all have is cut at will.
        pieces=run.n if kind in OWN_PIECES else 1.0,
        slice_vectors=None,
        steps=steps,
        frame_payload_bytes=topology.frame_payload_bytes,
        frame_bytes=topology.frame_bytes,
    )


def hand_overs(
    topology: Topology, clock_hz: int | float, group_chips: int, bases: Int[np.ndarray, " groups"]
) -> Schedule:
    """Schedule the hand-over of a vector from each group of chips to the next.

    Args:
        topology: the machine's links.
        clock_hz: clock in which cycles are counted.
        group_chips: chips of each group.
        bases: first chip of each group, in the order of the data.

    Returns:
        A schedule with one entry per pair of consecutive groups; none for a single group. See
        `hand_overs_between`.
    """
    first = np.asarray(bases, np.int64)
    return hand_overs_between(topology, clock_hz, group_chips, first[:-1], first[1:])


def hand_overs_between(
    topology: Topology,
    clock_hz: int | float,
    group_chips: int | Int[np.ndarray, " pairs"],
    givers: Int[np.ndarray, " pairs"],
    takers: Int[np.ndarray, " pairs"],
) -> Schedule:
    """Schedule the hand-over of a vector from one group of chips to another of as many.

    Every chip of the sending group holds the whole vector, and so will every chip of the receiving
    group. Inside a node each chip sends a distinct share, which the receivers gather. Between nodes
    the links of all sending nodes carry distinct shares to every receiving node, which gathers;
    where links belong to chips outside a group that does not fill its nodes, the vector is first
    spread onto them. Over racks the vector takes the way of a `send`. With several micro-batches in
    flight all hand-overs of a plan may be made at once, and are priced so: none waits longer.

    Args:
        topology: the machine's links.
        clock_hz: clock in which cycles are counted.
        group_chips: chips of each group: a number, or one per pair.
        givers: first chip of each group that sends.
        takers: first chip of the group that receives.

    Returns:
        A schedule with one entry per pair of groups.

    Fidelity:
        An upper bound where groups share nodes or cross racks.
    """
    src, dst = np.asarray(givers, np.int64), np.asarray(takers, np.int64)
    group = np.broadcast_to(np.asarray(group_chips, np.int64), src.shape)
    size, rack_chips = topology.node_chips, topology.rack_chips
    low, high = np.minimum(src, dst), np.maximum(src, dst) + group - 1
    half = size * topology.nodes_per_half_rack
    nodes = (src + group - 1) // size - src // size + 1.0
    filled = (src % size == 0) & (group % size == 0) & (dst % size == 0)
    racks = high // rack_chips - low // rack_chips + 1.0
    # Racks from the last of the lower group to the first of the higher one.
    between = np.maximum(src, dst) // rack_chips - (np.minimum(src, dst) + group - 1) // rack_chips
    single = low // size == high // size
    # Hand-overs of consecutive groups may meet in a node.
    sharing = np.where(filled & ((racks == 1) | topology.racks_in_chain), 1.0, 2.0)
    ones = np.ones_like(nodes)
    run = Run(
        n=group * ones,
        nodes=nodes,
        reach=nodes,
        most=np.minimum(size, group) * ones,
        racks=racks,
        passes=topology.farthest_racks(between, racks - 1),
        single=single,
        many=~single,
        far=racks > 1,
        contiguous=ones > 0,
        filled=filled,
        aligned=filled,
        interleaved=ones,
        crossing=ones,
        forwarded=sharing,
        collected=sharing,
        meeting=sharing,
    )
    rates = link_rates(topology, clock_hz, high // half - low // half + 1)
    # Givers in a node that the group shares with the next; 0 if it shares none.
    meets = ((src + group - 1) // size >= dst // size) & (src // size <= (dst + group - 1) // size)
    in_last = np.where(dst > src, (src + group - 1) % size + 1, size - src % size)
    steps = _hand_over_steps(topology, rates, run, np.where(meets, np.minimum(group, in_last), 0))
    return _finish(
        topology, run, "hand_over", EVERYWHERE.name, legal=run.n > 0, exact=single, steps=steps
    )


def _hand_over_steps(
    topology: Topology, rates: Rates, run: Run, givers: Numbers
) -> tuple[Step, ...]:
    """Steps of a hand-over; `givers` are chips of each group in the first node of the next."""
    ports = topology.node_ports
    own, sharing = 1.0 / run.n, run.forwarded
    whole = sharing * ports.share_per_chip
    if ports.pairs_equals:
        # Other chips of a node than those of the group may have its links to another rack.
        spreads = run.far & ~run.filled & (not topology.racks_in_chain)
        node_share = sharing * own / ports.links_to_equal
        landed = sharing * run.nodes * own
    else:
        spreads = run.many & (~run.filled | run.far)
        shared = 1.0 / (run.nodes * ports.n_links)
        node_share = np.where(spreads, sharing / ports.n_links, shared)
        # A giver in the receivers' node hands on its part of the node's share besides what lands.
        parts = np.ceil(ports.n_links / np.maximum(givers, 1))
        handed = np.where(givers > 0, parts * shared + ports.share_per_chip, 0.0)
        most = np.maximum(whole, handed)
        landed = np.where(spreads, most, gate_loads(ports, run.nodes + 1).links * shared)
    last = landed
    if topology.rack_wiring == "node":
        last = np.where(run.far, sharing * topology.rack_ports.share_per_chip, landed)
    neighbours = topology.node_chips - 1
    across = "exchange between groups"
    exchange = (
        make_step(across, IN_NODE, run.single, rates.local, own, rates.local_frame, 1.0),
        make_step(
            across,
            BETWEEN_NODES,
            run.many,
            rates.node,
            node_share,
            rates.node_frame,
            run.nodes * ports.n_links * own,
        ),
    )
    far = far_steps(topology, rates, run)
    if topology.racks_in_chain:
        # A chip's link to the next rack takes on what landed on the chip.
        far = tuple(replace(step, share=np.where(run.far, landed, 0.0)) for step in far)
    return (
        make_step(
            "spread in node", IN_NODE, spreads, rates.local, whole, rates.local_frame, neighbours
        ),
        *exchange,
        *far,
        make_step(
            "gather in node",
            IN_NODE,
            run.many | (run.n > 1),
            rates.local,
            np.where(run.single, own, last),
            rates.local_frame,
            np.where(run.single, run.n - 1, neighbours),
        ),
    )
