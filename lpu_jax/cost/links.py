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
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from ..errors import CostError, unknown
from ..topology import Span, Topology

KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send")
ALGORITHMS = ("direct", "one_shot", "hierarchical")

#: One number, or one per plan.
Numbers = Any

# Runs that may use a local link at once: two where runs meet inside a node; three where a run over
# racks of GroqNodes also forwards through nodes that it has no chip in.
_MEETING_RUNS = 2
_FORWARDING_RUNS = 3

# Keeps 49 * (1 / 49) from being rounded up to two vectors.
_CEIL_SLACK = 1e-9


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a schedule: every link it uses carries at most `share` of the vector.

    Attributes:
        name: what happens.
        latency_cycles: from the first vector read to the first vector written.
        share: largest share of the payload on one link; 0 where the step does not take place.
        cycles_per_vector: time between two vectors on a link.
        fan_out: links that each chip of the run drives, on average.
    """

    name: str
    latency_cycles: Numbers
    share: Numbers
    cycles_per_vector: Numbers
    fan_out: Numbers


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Steps of one collective; every number may be an array with one entry per plan.

    Attributes:
        kind: one of `KINDS`, or `"hand_over"`.
        algorithm: one of `ALGORITHMS`.
        legal: whether every link exists.
        hops: links that the last vector to arrive has crossed.
        steps: the steps, in order.
        frame_payload_bytes: bytes of one vector.
        frame_bytes: bytes of one vector on a link.
    """

    kind: str
    algorithm: str
    legal: Numbers
    hops: Numbers
    steps: tuple[Step, ...]
    frame_payload_bytes: int
    frame_bytes: int

    def _vectors(self, payload_bytes: Numbers, share: Numbers) -> Numbers:
        """Vectors that a link carries; at least one, since a frame is never cut."""
        vectors = np.ceil(np.asarray(payload_bytes) / self.frame_payload_bytes)
        return np.maximum(1.0, np.ceil(vectors * share - _CEIL_SLACK))

    @property
    def first_cycles(self) -> Numbers:
        """Cycles until the first vector is through: the sum of the latencies."""
        return sum((step.latency_cycles for step in self.steps), np.float64(0.0))

    def cycles(self, payload_bytes: Numbers) -> Numbers:
        """Time from start to last vector.

        Sums `latency + (ceil(vectors * share) - 1) * cycles_per_vector` over the steps.

        Args:
            payload_bytes: bytes of the full vector of a chip (all_gather: the gathered output;
                reduce_scatter: the input; all_to_all: what one chip holds).

        Returns:
            Cycles, not rounded; 0 for a run of one chip.
        """
        return self.first_cycles + sum(
            (
                (self._vectors(payload_bytes, step.share) - 1.0) * step.cycles_per_vector
                for step in self.steps
            ),
            np.float64(0.0),
        )

    def busiest_link_cycles(self, payload_bytes: Numbers) -> Numbers:
        """Bound the time for which any one link is occupied.

        Args:
            payload_bytes: as for `cycles`.

        Returns:
            Cycles: the sum over the steps of the busiest link of each.
        """
        return sum(
            (
                np.where(np.asarray(step.share) > 0, self._vectors(payload_bytes, step.share), 0.0)
                * step.cycles_per_vector
                for step in self.steps
            ),
            np.float64(0.0),
        )

    def link_bytes(self, payload_bytes: Numbers) -> Numbers:
        """Bytes that each chip of the run puts on links, frames included, on average.

        Args:
            payload_bytes: as for `cycles`.

        Returns:
            Bytes; times the chips of the run it is the whole traffic, an upper bound where nodes
            are not filled.
        """
        return sum(
            (
                step.fan_out * self._vectors(payload_bytes, step.share) * self.frame_bytes
                for step in self.steps
            ),
            np.float64(0.0),
        )


@dataclass(frozen=True, kw_only=True)
class _Rates:
    """Latencies and frame times of a topology's three kinds of link, in cycles."""

    local: float
    local_frame: float
    node: Numbers
    node_frame: float
    rack: float
    rack_frame: float


def _rates(topology: Topology, clock_hz: float, half_racks: Numbers) -> _Rates:
    return _Rates(
        local=topology.local_hop_s * clock_hz,
        local_frame=topology.frame_s(topology.local_bytes_per_s) * clock_hz,
        node=topology.node_hop_s(half_racks) * clock_hz,
        node_frame=topology.frame_s(topology.node_link_bytes_per_s) * clock_hz,
        rack=topology.rack_hop_s * clock_hz,
        rack_frame=topology.frame_s(topology.rack_link_bytes_per_s) * clock_hz,
    )


def _step(
    name: str,
    active: Numbers,
    latency: Numbers,
    share: Numbers,
    frame: Numbers,
    fan_out: Numbers,
) -> Step:
    """Make a step that takes no time where it is not active."""
    on = np.asarray(active)
    return Step(
        name=name,
        latency_cycles=np.where(on, latency, 0.0),
        share=np.where(on, share, 0.0),
        cycles_per_vector=np.where(on, frame, 0.0),
        fan_out=np.where(on, fan_out, 0.0),
    )


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A span as float arrays, with the masks that every schedule asks for."""

    n: Numbers
    nodes: Numbers
    most: Numbers
    racks: Numbers
    single: Numbers
    many: Numbers
    far: Numbers
    sharing: Numbers


def _run(topology: Topology, span: Span) -> _Run:
    n = np.asarray(span.n_chips, np.float64)
    nodes = np.asarray(span.nodes, np.float64)
    racks = np.asarray(span.racks, np.float64)
    meeting = np.asarray(span.fewest) < topology.node_chips
    sharing = np.where(meeting, _MEETING_RUNS, 1)
    if topology.rack_wiring != "line":
        sharing = np.where(racks > 1, _FORWARDING_RUNS, sharing)
    # Nobody to share with.
    sharing = np.where(n >= topology.n_chips, 1, sharing)
    return _Run(
        n=n,
        nodes=nodes,
        most=np.asarray(span.most, np.float64),
        racks=racks,
        single=(n > 1) & (nodes == 1),
        many=nodes > 1,
        far=racks > 1,
        sharing=sharing,
    )


def _rack_links(topology: Topology, run: _Run) -> Numbers:
    """Links that the exchange between racks drives, per chip of the run."""
    ports = topology.rack_ports
    if topology.rack_wiring == "line":
        return 2.0 * (run.racks - 1) * topology.rack_chips / run.n
    pairs = run.racks * (run.racks - 1)
    if topology.rack_wiring == "node":
        return pairs * topology.nodes_per_rack * ports.n_links / run.n
    return pairs * ports.n_links / run.n


def _far_steps(
    topology: Topology, rates: _Rates, run: _Run, *, forwards: bool
) -> tuple[Step, ...]:
    """Steps between the first exchange between nodes and the last gather, for runs over racks."""
    ports, links = topology.node_ports, topology.rack_ports
    local_share = run.sharing * ports.share_per_chip
    neighbours = topology.node_chips - 1
    gather = _step(
        "gather in node", run.far, rates.local, local_share, rates.local_frame, neighbours
    )
    if topology.rack_wiring == "line":
        # A partial sum is passed on unsummed, so that every rack adds in the same order.
        partials = run.racks - 1 if forwards else 1.0
        share, latency = partials / links.n_links, (run.racks - 1) * rates.rack
    else:
        share, latency = 1.0 / links.n_links, rates.rack
    exchange = _step(
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
        _step("reduce in node", run.far, rates.local, local_share, rates.local_frame, neighbours),
        _step(
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
    rates: _Rates,
    run: _Run,
    *,
    single: tuple[float, Numbers, Numbers],
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
    local_fan_out = np.where(run.single, single_fan_out, neighbours)
    receivers = np.where(run.far, topology.nodes_per_rack, run.nodes)
    node_share = np.where(run.far, run.sharing * far_factor / ports.n_links, shares[1])
    node_links = run.nodes * (receivers - 1) * ports.n_links / run.n
    far = _far_steps(topology, rates, run, forwards=forwards)
    far = tuple(dataclasses.replace(step, share=step.share * far_factor) for step in far)

    def local(name: str, share: Numbers) -> Step:
        return _step(name, share > 0, rates.local, share, rates.local_frame, local_fan_out)

    node = _step(
        "exchange between nodes", run.many, rates.node, node_share, rates.node_frame, node_links
    )
    first = local("spread in node", np.where(run.n > 1, first_share, 0.0))
    return (first, node, *far, local("gather in node", np.where(run.n > 1, last_share, 0.0)))


def _hierarchical(topology: Topology, rates: _Rates, run: _Run, kind: str) -> tuple[Step, ...]:
    """Steps of the hierarchical algorithm; inside one node they are those of `direct`."""
    ports = topology.node_ports
    own = 1.0 / np.maximum(run.n, 1.0)
    whole = run.sharing * ports.share_per_chip
    # What one gateway chip carries to or from the other nodes, if a node's data is all distinct.
    peers = run.nodes - 1
    per_chip = np.vectorize(ports.links_per_chip, otypes=[np.float64])(peers.astype(np.int64))
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


def _in_node(topology: Topology, rates: _Rates, run: _Run, n_steps: int, share: Numbers) -> Any:
    """One or two steps between all chips of a run inside one node."""
    return tuple(
        _step(name, run.n > 1, rates.local, share, rates.local_frame, run.n - 1)
        for name in ("spread in node", "gather in node")[:n_steps]
    )


def schedule(
    topology: Topology, clock_hz: float, kind: str, algorithm: str, span: Span
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
        Exact against `cost.transfers` for runs that fill whole nodes of one rack, where links and
        chips divide each other; an upper bound otherwise. Over racks, all_gather and
        reduce_scatter are priced as an all_reduce of the whole vector, all_to_all as an
        all_gather of everything.

    Source:
        The three-hop schedule: ISCA22. Which chip owns which link: assumed (`ports`).
    """
    if kind not in KINDS:
        raise unknown("collective", kind, KINDS)
    if algorithm not in ALGORITHMS:
        raise unknown("algorithm", algorithm, ALGORITHMS)
    if not clock_hz > 0:
        raise CostError(f"schedule: clock_hz={clock_hz} must be positive")
    run = _run(topology, span)
    rates = _rates(topology, clock_hz, np.asarray(span.half_racks))
    own = 1.0 / np.maximum(run.n, 1.0)
    legal = run.nodes == 1
    if algorithm == "hierarchical":
        steps = _hierarchical(topology, rates, run, kind)
        legal = run.n >= 1
    elif kind == "send":
        steps = (_step("send in node", run.n > 1, rates.local, 1.0, rates.local_frame, own),)
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
    topology: Topology, clock_hz: float, group_chips: int, bases: Int[np.ndarray, " groups"]
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
    run = _Run(
        n=np.full(src.shape, float(group)),
        nodes=nodes,
        most=np.minimum(nodes * 0 + size, group),
        racks=racks,
        single=low // size == high // size,
        many=low // size != high // size,
        far=racks > 1,
        sharing=np.where(filled & ((racks == 1) | (topology.rack_wiring == "line")), 1, 2),
    )
    rates = _rates(topology, clock_hz, high // half - low // half + 1)
    steps = _hand_over_steps(topology, rates, run, filled)
    return _finish(topology, "hand_over", "hierarchical", run.n > 0, steps, racks)


def _hand_over_steps(
    topology: Topology, rates: _Rates, run: _Run, filled: Numbers
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
        links_per_chip = np.vectorize(ports.links_per_chip, otypes=[np.float64])
        shared = 1.0 / (run.nodes * ports.n_links)
        node_share = np.where(spreads, run.sharing / ports.n_links, shared)
        landed = links_per_chip(run.nodes.astype(np.int64)) * shared
        landed = np.where(spreads, whole, landed)
    last = landed
    if topology.rack_wiring == "node":
        last = np.where(run.far, run.sharing * topology.rack_ports.share_per_chip, landed)
    neighbours = topology.node_chips - 1
    exchange = _step(
        "exchange between groups",
        run.n > 0,
        np.where(run.single, rates.local, rates.node),
        np.where(run.single, own, node_share),
        np.where(run.single, rates.local_frame, rates.node_frame),
        np.where(run.single, 1.0, run.nodes * ports.n_links * own),
    )
    gathers = run.many | (run.n > 1)
    far = _far_steps(topology, rates, run, forwards=False)
    if topology.rack_wiring == "line":
        # Hand-overs of two consecutive groups may cross the same boundary of large groups.
        share = np.where(run.far, 2 * landed, 0.0)
        far = tuple(dataclasses.replace(step, share=share) for step in far)
    return (
        _step("spread in node", spreads, rates.local, whole, rates.local_frame, neighbours),
        exchange,
        *far,
        _step(
            "gather in node",
            gathers,
            rates.local,
            np.where(run.single, own, last),
            rates.local_frame,
            np.where(run.single, run.n - 1, neighbours),
        ),
    )


def hand_over(
    topology: Topology, clock_hz: float, group_chips: int, bases: Int[np.ndarray, " groups"]
) -> Schedule:
    """Schedule the worst hand-over between consecutive groups.

    Args:
        topology: the machine's links.
        clock_hz: clock in which cycles are counted.
        group_chips: chips of each group.
        bases: first chip of each group, in the order of the data.

    Returns:
        One schedule whose every step is the slowest of `hand_overs`; no steps for one group.

    Fidelity:
        An upper bound: steps may be slowest for different pairs.
    """
    every = hand_overs(topology, clock_hz, group_chips, bases)
    if len(bases) < 2:
        return _finish(topology, "hand_over", "hierarchical", np.True_, (), np.float64(1.0))

    steps = tuple(
        Step(
            name=step.name,
            latency_cycles=np.max(step.latency_cycles),
            share=np.max(step.share),
            cycles_per_vector=np.max(step.cycles_per_vector),
            fan_out=np.max(step.fan_out),
        )
        for step in every.steps
    )
    return Schedule(
        kind=every.kind,
        algorithm=every.algorithm,
        legal=np.True_,
        hops=np.max(every.hops),
        steps=steps,
        frame_payload_bytes=every.frame_payload_bytes,
        frame_bytes=every.frame_bytes,
    )
