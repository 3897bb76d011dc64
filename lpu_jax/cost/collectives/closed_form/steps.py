"""The shape of a link schedule: steps, their latencies and shares, and what they add up to.

Which steps a collective takes is said in `algorithms`. Not modelled: partial overlap of one step
with the next.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ....machine.ports import Numbers
from ....machine.topology import Topology

# Keeps 49 * (1 / 49) from being rounded up to two vectors.
_CEIL_SLACK = 1e-9


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a schedule: every link it uses carries at most `share` of the vector.

    Attributes:
        name: what happens.
        hops: links that a vector crosses in the step; 0 where it does not take place.
        latency_cycles: from the first vector read to the first vector written.
        share: largest share of the payload on one link; 0 where the step does not take place.
        cycles_per_vector: time between two vectors on a link.
        fan_out: links that each chip of the run drives, on average, if each carried `share`.
        times: how often it takes place, one after another.
        streams: transfers of equal size, of runs that go at once, that make up the share of the
            busiest link; each is of whole vectors.
    """

    name: str
    hops: Numbers
    latency_cycles: Numbers
    share: Numbers
    cycles_per_vector: Numbers
    fan_out: Numbers
    times: Numbers = 1.0
    streams: Numbers = 1.0


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Steps of one collective; every number may be an array with one entry per plan.

    Attributes:
        kind: one of `kinds.PRICED_KINDS`, or `"hand_over"`.
        algorithm: one of `algorithms.table.ALGORITHMS`.
        n_chips: chips of the run.
        legal: whether every link exists.
        exact: whether the time is that of the steps written out link by link, where vectors divide
            evenly; else it is an upper bound.
        pieces: pieces of the payload, one of each chip or for each, that are whole vectors.
        steps: the steps, in order.
        frame_payload_bytes: bytes of one vector.
        frame_bytes: bytes of one vector on a link.
    """

    kind: str
    algorithm: str
    n_chips: Numbers
    legal: Numbers
    exact: Numbers
    pieces: Numbers
    steps: tuple[Step, ...]
    frame_payload_bytes: int
    frame_bytes: int

    def _vectors(self, payload_bytes: Numbers, step: Step) -> Numbers:
        """Vectors that a link carries; at least one for each stream, since no frame is cut."""
        vectors = np.ceil(np.asarray(payload_bytes) / self.frame_payload_bytes)
        whole = self.pieces * np.ceil(vectors / self.pieces)
        each = np.ceil(whole * step.share / step.streams - _CEIL_SLACK)
        return step.streams * np.maximum(1.0, each)

    @property
    def hops(self) -> Numbers:
        """Links that the last vector to arrive has crossed."""
        total = sum((step.hops * step.times for step in self.steps), np.float64(0.0))
        return np.asarray(total).astype(np.int64)

    @property
    def first_cycles(self) -> Numbers:
        """Cycles until the first vector is through: the sum of the latencies."""
        return sum((step.times * step.latency_cycles for step in self.steps), np.float64(0.0))

    def cycles(self, payload_bytes: Numbers) -> Numbers:
        """Time from start to last vector.

        Sums `latency + (ceil(vectors * share) - 1) * cycles_per_vector` over the steps.

        Args:
            payload_bytes: bytes of the full vector of a chip (all_gather: the gathered output;
                reduce_scatter: the input; all_to_all: what one chip holds).

        Returns:
            Cycles, not rounded; 0 for a run of one chip, infinite where a link does not exist.
        """
        total = self.first_cycles + sum(
            (
                step.times * (self._vectors(payload_bytes, step) - 1.0) * step.cycles_per_vector
                for step in self.steps
            ),
            np.float64(0.0),
        )
        return np.where(self.legal, total, np.inf)

    def busiest_link_cycles(self, payload_bytes: Numbers) -> Numbers:
        """Bound the time for which any one link is occupied.

        Args:
            payload_bytes: as for `cycles`.

        Returns:
            Cycles: the sum over the steps of the busiest link of each.
        """
        return sum(
            (
                np.where(np.asarray(step.share) > 0, self._vectors(payload_bytes, step), 0.0)
                * step.times
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
            Bytes; times the chips of the run it is the whole traffic, an upper bound where the
            vectors do not divide evenly or the schedule is not exact.
        """
        return sum(
            (
                step.times * step.fan_out * self._vectors(payload_bytes, step) * self.frame_bytes
                for step in self.steps
            ),
            np.float64(0.0),
        )

    def as_dict(self, payload_bytes: int | float) -> dict[str, Any]:
        """Give a single plan's schedule as plain values, steps that take place only.

        Args:
            payload_bytes: as for `cycles`.

        Returns:
            What reports print: hops, cycles, busiest link, bytes, and the same for each step.
        """
        n_chips = float(self.n_chips)
        return {
            "kind": self.kind,
            "algorithm": self.algorithm,
            "n_chips": int(n_chips),
            "exact": bool(self.exact),
            "hops": int(self.hops),
            "cycles": float(self.cycles(payload_bytes)),
            "busiest_link_cycles": float(self.busiest_link_cycles(payload_bytes)),
            "link_bytes": float(self.link_bytes(payload_bytes)) * n_chips,
            "steps": [
                {
                    "name": step.name,
                    "times": int(step.times),
                    "hops": int(step.hops),
                    "latency_cycles": float(step.latency_cycles),
                    "share": float(step.share),
                    "vectors_per_link": int(self._vectors(payload_bytes, step)),
                    "cycles_per_vector": float(step.cycles_per_vector),
                    "links": float(step.fan_out) * n_chips,
                }
                for step in self.steps
                if step.share > 0
            ],
        }


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

    A link is taken for a frame even if its hop is shorter; a step is over when its links are free.

    Args:
        topology: the machine's links.
        clock_hz: clock in which cycles are counted.
        half_racks: half racks that an exchange between nodes touches.

    Returns:
        Cycles of a first vector, and between vectors, for each kind of link.
    """
    local_frame, node_frame, rack_frame = (
        topology.frame_s(rate) * clock_hz
        for rate in (
            topology.local_bytes_per_s,
            topology.node_link_bytes_per_s,
            topology.rack_link_bytes_per_s,
        )
    )
    return Rates(
        local=max(topology.local_hop_s * clock_hz, local_frame),
        local_frame=local_frame,
        node=np.maximum(topology.node_hop_s(half_racks) * clock_hz, node_frame),
        node_frame=node_frame,
        rack=max(topology.rack_hop_s * clock_hz, rack_frame),
        rack_frame=rack_frame,
    )


def make_step(
    name: str,
    active: Numbers,
    latency: Numbers,
    share: Numbers,
    frame: Numbers,
    fan_out: Numbers,
    *,
    times: Numbers = 1.0,
    streams: Numbers = 1.0,
) -> Step:
    """Make a step that takes no time where it is not active, or carries nothing.

    Args:
        name: what happens.
        active: whether the step takes place.
        latency: cycles of the first vector.
        share: largest share of the payload on one link.
        frame: cycles between vectors on a link.
        fan_out: links that each chip drives, on average.
        times: how often the step takes place.
        streams: transfers that make up the share.

    Returns:
        The step, with zeros where it is not active.
    """
    on = np.asarray(active) & (np.asarray(share) > 0)
    return Step(
        name=name,
        hops=np.where(on, 1, 0),
        latency_cycles=np.where(on, latency, 0.0),
        share=np.where(on, share, 0.0),
        cycles_per_vector=np.where(on, frame, 0.0),
        fan_out=np.where(on, fan_out, 0.0),
        times=times,
        streams=np.where(on, streams, 1.0),
    )
