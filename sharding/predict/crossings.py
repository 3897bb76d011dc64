"""Ways of the hidden state between a pool of GPUs and one of LPUs, over the network between them.

Two ways are tried, and the quicker one is taken. Either the chips of the receiving group each get
the whole vector over their own lanes, which the network copies for them, while those that send it
share it out. Or its parts are spread over all lanes of both groups, and an all-gather over the
receiving group's own links brings them together. The lanes are busy while bytes pass, and free
while these are on their way.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from ..scenario import Scenario

Whole = Int[np.ndarray, " ways"]
Numbers = Float[np.ndarray, " ways"]


@dataclass(frozen=True, kw_only=True)
class Crossings:
    """What ways across take, an entry per way, in cycles of the LPUs."""

    cycles: Numbers
    lpu_lanes: Numbers  #: in which the lanes of the LPUs are busy
    gpu_ports: Numbers  #: in which the ports of the GPUs are busy


def crossings(
    gpus: Whole,
    lpus: Whole,
    to_lpus: Bool[np.ndarray, " ways"],
    n_bytes: float,
    scenario: Scenario,
    gather: Numbers | float,
) -> Crossings:
    """Price ways across.

    Args:
        gpus: chips of the group of GPUs.
        lpus: chips of the group of LPUs.
        to_lpus: whether the LPUs receive.
        n_bytes: the vector, which every chip of the group that sends holds.
        scenario: with a mixed system.
        gather: cycles of an all-gather of the vector in the group that receives.

    Fidelity: approximate; the network's rates and latency are partly assumed
        (`machine.pool_link`).
    """
    assert scenario.mixed is not None  # without one there is nothing to cross
    link, clock_hz = scenario.mixed.link, float(scenario.system.chip.clock_hz)
    one = np.ones_like(lpus)
    takers = np.where(to_lpus, one, lpus), np.where(to_lpus, gpus, one)
    whole = (link.transfer_s(n_bytes, *takers) - link.latency_s) * clock_hz
    parts = (link.transfer_s(n_bytes, lpus, gpus) - link.latency_s) * clock_hz
    is_whole = whole <= parts + gather
    lanes = np.where(is_whole & to_lpus, 1, lpus), np.where(is_whole & ~to_lpus, 1, gpus)
    return Crossings(
        cycles=link.latency_s * clock_hz + np.minimum(whole, parts + gather),
        lpu_lanes=n_bytes / link.lpus_bytes_per_s(lanes[0]) * clock_hz,
        gpu_ports=n_bytes / link.gpus_bytes_per_s(lanes[1]) * clock_hz,
    )


def least_crossings(
    gpus: Whole, lpus: Whole, to_lpus: bool, n_bytes: float, scenario: Scenario
) -> Numbers:
    """Bound ways across: an all-gather takes nothing."""
    to = np.full(len(lpus), to_lpus)
    return crossings(gpus, lpus, to, n_bytes, scenario, 0.0).cycles


def crossing_bytes(scenario: Scenario) -> float:
    """Bytes of the hidden state of a step on the network."""
    assert scenario.mixed is not None
    request, bits = scenario.request, scenario.mixed.link.wire_value_bits
    return request.batch * request.tokens * scenario.model.d_model * bits / 8
