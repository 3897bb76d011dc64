"""Steps of a link schedule: which links they use, how long those take, and what share they carry.

Which steps a collective takes is said in `algorithms`; `priced` adds them up. Not modelled: as in
`links`.
"""

from dataclasses import dataclass, fields

import numpy as np

from ....machine.ports import Numbers
from ....machine.topology import Topology

#: Levels of links, as in `link_table`: steps of the same level share links.
IN_NODE, BETWEEN_NODES, BETWEEN_RACKS = LEVELS = range(3)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a schedule: every link it uses carries at most `share` of the vector.

    Attributes:
        name: what happens.
        level: of the links that it uses: `IN_NODE`, `BETWEEN_NODES` or `BETWEEN_RACKS`.
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
    level: int
    hops: Numbers
    latency_cycles: Numbers
    share: Numbers
    cycles_per_vector: Numbers
    fan_out: Numbers
    times: Numbers = 1.0
    streams: Numbers = 1.0


#: What steps have of each plan.
OF_STEPS = tuple(field.name for field in fields(Step) if field.name not in ("name", "level"))


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
    level: int,
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
        level: of the links that it uses.
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
        level=level,
        hops=np.where(on, 1, 0),
        latency_cycles=np.where(on, latency, 0.0),
        share=np.where(on, share, 0.0),
        cycles_per_vector=np.where(on, frame, 0.0),
        fan_out=np.where(on, fan_out, 0.0),
        times=times,
        streams=np.where(on, streams, 1.0),
    )
