"""The shape of a link schedule: steps, their latencies and shares, and what they add up to.

Which steps a collective takes is decided in `hierarchy` and `links`. Not modelled: partial overlap
of one step with the next.
"""

from dataclasses import dataclass

import numpy as np

from ..ports import Numbers
from ..topology import Span, Topology

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
class Rates:
    """Latencies and frame times of a topology's three kinds of link, in cycles."""

    local: float
    local_frame: float
    node: Numbers
    node_frame: float
    rack: float
    rack_frame: float


def link_rates(topology: Topology, clock_hz: int | float, half_racks: Numbers) -> Rates:
    """Convert a topology's latencies and rates to cycles.

    Args:
        topology: the machine's links.
        clock_hz: clock in which cycles are counted.
        half_racks: half racks that an exchange between nodes touches.

    Returns:
        Cycles of a first vector, and between vectors, for each kind of link.
    """
    return Rates(
        local=topology.local_hop_s * clock_hz,
        local_frame=topology.frame_s(topology.local_bytes_per_s) * clock_hz,
        node=topology.node_hop_s(half_racks) * clock_hz,
        node_frame=topology.frame_s(topology.node_link_bytes_per_s) * clock_hz,
        rack=topology.rack_hop_s * clock_hz,
        rack_frame=topology.frame_s(topology.rack_link_bytes_per_s) * clock_hz,
    )


def make_step(
    name: str,
    active: Numbers,
    latency: Numbers,
    share: Numbers,
    frame: Numbers,
    fan_out: Numbers,
) -> Step:
    """Make a step that takes no time where it is not active.

    Args:
        name: what happens.
        active: whether the step takes place.
        latency: cycles of the first vector.
        share: largest share of the payload on one link.
        frame: cycles between vectors on a link.
        fan_out: links that each chip drives, on average.

    Returns:
        The step, with zeros where it is not active.
    """
    on = np.asarray(active)
    return Step(
        name=name,
        latency_cycles=np.where(on, latency, 0.0),
        share=np.where(on, share, 0.0),
        cycles_per_vector=np.where(on, frame, 0.0),
        fan_out=np.where(on, fan_out, 0.0),
    )


@dataclass(frozen=True, kw_only=True)
class Run:
    """A span as float arrays, with the masks that every schedule asks for."""

    n: Numbers
    nodes: Numbers
    most: Numbers
    racks: Numbers
    single: Numbers
    many: Numbers
    far: Numbers
    sharing: Numbers


def run_of(topology: Topology, span: Span) -> Run:
    """Turn a span into float arrays and masks.

    Args:
        topology: the machine's links.
        span: what the runs touch.

    Returns:
        The same numbers, and how many runs may use a local link at once.
    """
    n = np.asarray(span.n_chips, np.float64)
    nodes = np.asarray(span.nodes, np.float64)
    racks = np.asarray(span.racks, np.float64)
    meeting = np.asarray(span.fewest) < topology.node_chips
    sharing = np.where(meeting, _MEETING_RUNS, 1)
    if topology.rack_wiring != "line":
        sharing = np.where(racks > 1, _FORWARDING_RUNS, sharing)
    # Nobody to share with.
    sharing = np.where(n >= topology.n_chips, 1, sharing)
    return Run(
        n=n,
        nodes=nodes,
        most=np.asarray(span.most, np.float64),
        racks=racks,
        single=(n > 1) & (nodes == 1),
        many=nodes > 1,
        far=racks > 1,
        sharing=sharing,
    )
