"""What a collective costs: named algorithms as steps over links, in closed form for many plans.

Every collective runs over runs of chips (`topology.Span` says what a run touches), all runs of a
group at once. A step moves shares of a vector over links that exist, each step after the one
before; `link_schedule` lists the same steps link by link, and tests hold this module against it.

* `one_shot`: every chip sends its whole vector to every peer of its node.
* `direct`: reduce-scatter and all-gather among the chips of a node, each share on its own link.
* `ring`: the same from chip to chip, over one link at a time. Its sums have an order of their own.
* `flat3` (`closed_form.hierarchy`): in the node, between nodes, in the node; over racks as well.
* `hier4`, `hier5`, `two_step` (`closed_form.levels`): two levels of one rack.

Not modelled: ways round over a third node (minimal routes only), overlap of one step with the next,
and time for the additions, which overlap with arrival.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int

from ...errors import CostError, unknown
from ...machine.ports import Numbers
from ...machine.topology import Span, Topology
from .closed_form.hierarchy import far_steps, flat3
from .closed_form.levels import hier4, hier5, two_step
from .closed_form.loads import gate_loads
from .closed_form.runs import Run, run_of
from .closed_form.steps import Rates, Schedule, Step, link_rates, make_step

KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send")
#: Algorithms and the kinds of collective they exist for.
KINDS_OF: Mapping[str, tuple[str, ...]] = {
    "one_shot": ("all_reduce",),
    "direct": KINDS,
    "ring": ("all_reduce", "all_gather", "reduce_scatter"),
    "flat3": KINDS,
    "hier4": ("all_reduce",),
    "hier5": ("all_reduce",),
    "two_step": ("all_reduce", "all_gather", "reduce_scatter", "all_to_all"),
}
ALGORITHMS = tuple(KINDS_OF)
_IN_NODE = ("one_shot", "direct", "ring")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Runs of chips on a machine, ready for schedules of any kind and algorithm."""

    topology: Topology
    rates: Rates
    run: Run


def setting(topology: Topology, clock_hz: int | float, span: Span, stride: Numbers = 1) -> Setting:
    """Prepare the schedules over some runs; arguments are those of `schedule`.

    Raises:
        CostError: if the clock is not positive, or a run has no chip.
    """
    if not clock_hz > 0:
        raise CostError(f"schedule: clock_hz={clock_hz} must be positive")
    if np.any(np.asarray(span.n_chips) < 1) or np.any(np.asarray(stride) < 1):
        raise CostError("schedule: a run needs at least one chip, and a stride of at least one.")
    return Setting(
        topology=topology,
        rates=link_rates(topology, clock_hz, np.asarray(span.half_racks)),
        run=run_of(topology, span, stride),
    )


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
        kind: one of `KINDS`. `send` moves a vector from one chip of the run to another.
        algorithm: one of `ALGORITHMS`.
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
        all_reduce over whole nodes of a line of racks whose nodes are linked chip by chip. An upper
        bound elsewhere. Over racks, all_gather and reduce_scatter are priced as an all_reduce of
        the whole vector, all_to_all as an all_gather of everything. Pieces that chips have of their
        own are whole vectors.

    Source:
        The three-hop schedule: ISCA22. Which chip owns which link: assumed (`ports`).
    """
    return schedule_in(setting(topology, clock_hz, span, stride), kind, algorithm)


def schedule_in(where: Setting, kind: str, algorithm: str) -> Schedule:
    """Schedule a collective over runs that are ready; see `schedule`.

    Raises:
        UnknownNameError: if the kind or the algorithm has no such name.
    """
    topology, rates, run = where.topology, where.rates, where.run
    legal = legal_in(where, kind, algorithm)
    if kind not in KINDS_OF[algorithm]:
        steps: tuple[Step, ...] = ()
    elif algorithm == "flat3":
        steps = flat3(topology, rates, run, kind)
    elif algorithm == "hier4":
        steps = hier4(topology, rates, run)
    elif algorithm == "hier5":
        steps = hier5(topology, rates, run)
    elif algorithm == "two_step":
        steps = two_step(topology, rates, run, kind)
    else:
        steps = _in_node(rates, run, kind, algorithm)
    return _finish(topology, run, kind, algorithm, legal, _exact(where, kind, algorithm), steps)


def legal_in(where: Setting, kind: str, algorithm: str) -> Numbers:
    """Say for which runs every link of an algorithm exists; see `schedule`.

    Returns:
        A boolean array; true for a run of one chip, which needs no link.

    Raises:
        UnknownNameError: if the kind or the algorithm has no such name.
    """
    if kind not in KINDS:
        raise unknown("collective", kind, KINDS)
    if algorithm not in ALGORITHMS:
        raise unknown("algorithm", algorithm, ALGORITHMS)
    run = where.run
    if kind not in KINDS_OF[algorithm]:
        return np.zeros_like(run.n, dtype=bool)
    if algorithm in _IN_NODE:
        return run.nodes == 1
    if algorithm == "flat3":
        return run.n >= 1
    level = run.many & ~run.far
    if algorithm == "hier5":
        return (level & run.filled & run.contiguous) | (run.n == 1)
    return (level & run.aligned & where.topology.node_ports.pairs_equals) | (run.n == 1)


def _exact(where: Setting, kind: str, algorithm: str) -> Numbers:
    """Where the closed form is the time of the explicit steps; see `schedule`."""
    run, topology = where.run, where.topology
    near = (run.nodes == 1) | (run.n == 1)
    if algorithm in _IN_NODE or not np.any(run.many):
        return near
    if algorithm in ("hier4", "two_step"):
        return near | run.aligned
    even = gate_loads(topology.node_ports, run.reach).even
    if algorithm == "hier5":
        return near | (run.filled & even)
    if kind == "send":
        return near
    # Between strided runs only their number is shared, but gateways are members of other runs.
    whole = run.contiguous | (run.aligned & (run.per_node > 1) & (kind != "all_to_all"))
    by_chip = topology.rack_wiring == "line" and topology.node_ports.pairs_equals
    line = by_chip & (kind == "all_reduce") & run.contiguous
    return near | (run.filled & even & whole & (~run.far | line))


def _in_node(rates: Rates, run: Run, kind: str, algorithm: str) -> tuple[Step, ...]:
    """Steps between the chips of a run inside one node."""
    own, mates = 1.0 / run.n, run.n - 1

    def step(name: str, share: Numbers, fan_out: Numbers, times: Numbers = 1.0) -> Step:
        return make_step(
            name, mates > 0, rates.local, share, rates.local_frame, fan_out, times=times
        )

    twice = kind == "all_reduce"
    if algorithm == "ring":
        ring = step("pass on in ring", own, np.ones_like(own), times=mates)
        return (ring, step("gather in ring", own, np.ones_like(own), times=mates))[: 1 + twice]
    if algorithm == "one_shot":
        return (step("spread in node", np.ones_like(own), mates),)
    if kind == "send":
        return (step("send in node", np.ones_like(own), own),)
    return (step("spread in node", own, mates), step("gather in node", own, mates))[: 1 + twice]


def _finish(
    topology: Topology,
    run: Run,
    kind: str,
    algorithm: str,
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
        pieces=run.n if kind in ("all_gather", "reduce_scatter", "all_to_all") else 1.0,
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
    spread onto them. Over racks the vector takes the way of a `send`. With several micro-batches in
    flight all hand-overs of a plan may be made at once, and are priced so: none waits longer.

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
    single = low // size == high // size
    # Hand-overs of consecutive groups may meet in a node.
    sharing = np.where(filled & ((racks == 1) | (topology.rack_wiring == "line")), 1.0, 2.0)
    ones = np.ones_like(nodes)
    run = Run(
        n=group * ones,
        nodes=nodes,
        reach=nodes,
        most=np.minimum(size, group) * ones,
        racks=racks,
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
    return _finish(topology, run, "hand_over", "flat3", run.n > 0, single, steps)


def _hand_over_steps(
    topology: Topology, rates: Rates, run: Run, givers: Numbers
) -> tuple[Step, ...]:
    """Steps of a hand-over; `givers` are chips of each group in the first node of the next."""
    ports = topology.node_ports
    own, sharing = 1.0 / run.n, run.forwarded
    whole = sharing * ports.share_per_chip
    if ports.pairs_equals:
        # Other chips of a node than those of the group may have its links to another rack.
        spreads = run.far & ~run.filled & (topology.rack_wiring != "line")
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
    exchange = make_step(
        "exchange between groups",
        run.n > 0,
        np.where(run.single, rates.local, rates.node),
        np.where(run.single, own, node_share),
        np.where(run.single, rates.local_frame, rates.node_frame),
        np.where(run.single, 1.0, run.nodes * ports.n_links * own),
    )
    far = far_steps(topology, rates, run)
    if topology.rack_wiring == "line":
        # A chip's link to the next rack takes on what landed on the chip.
        far = tuple(replace(step, share=np.where(run.far, landed, 0.0)) for step in far)
    return (
        make_step("spread in node", spreads, rates.local, whole, rates.local_frame, neighbours),
        exchange,
        *far,
        make_step(
            "gather in node",
            run.many | (run.n > 1),
            rates.local,
            np.where(run.single, own, last),
            rates.local_frame,
            np.where(run.single, run.n - 1, neighbours),
        ),
    )
